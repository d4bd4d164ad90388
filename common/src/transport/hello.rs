//! The hello on both sides. See [`tidemark_proto::wire::hello`] for the exchange.

use std::time::Duration;

use metrics::counter;
use quinn::{Connection, Incoming, VarInt};
use rustls_pki_types::CertificateDer;
use tidemark_proto::wire::hello::{Hello, MAX_VERSION, MIN_VERSION, Purpose, Refused, Welcome, choose_version};
use tidemark_proto::{Error, ErrorKind, Result};
use tokio::time::timeout;

use super::codes::{close, error_of};
use super::frames::{FrameReader, FrameWriter, accept_bi, open_bi};
use super::limits;
use super::refusal::{RefusalReason, count_refusal};
use crate::identity::Identity;
use crate::metric_names;

/// How long a refused peer is given to read why.
const REFUSAL_GRACE: Duration = Duration::from_secs(1);

/// Which identities may connect for which purpose.
pub type Admission = fn(&Identity, Purpose) -> bool;

/// What the dialling side says of itself.
#[derive(Debug, Clone)]
pub struct Greeting {
    /// What the connection is for.
    pub purpose: Purpose,
    /// This build, for people.
    pub build: String,
    /// Cluster that the configuration names; empty for coordinators and operators.
    pub cluster: String,
    /// Node that the configuration names; empty for coordinators and operators.
    pub node: String,
    /// Oldest and newest protocol version spoken.
    pub versions: (u16, u16),
}

impl Greeting {
    /// The greeting of a party with this identity and this build's versions.
    pub fn of(identity: &Identity, purpose: Purpose, build: &str) -> Self {
        let (cluster, node) = match identity {
            Identity::Agent { cluster, node } => (cluster.as_str(), node.as_str()),
            Identity::Coordinator { .. } | Identity::Operator { .. } => ("", ""),
        };
        Self {
            purpose,
            build: build.to_owned(),
            cluster: cluster.to_owned(),
            node: node.to_owned(),
            versions: (MIN_VERSION, MAX_VERSION),
        }
    }
}

/// A connection that this side dialled and the peer welcomed.
#[derive(Debug, Clone)]
pub struct Session {
    /// The connection.
    pub connection: Connection,
    /// Who answered, from its certificate.
    pub identity: Identity,
    /// Protocol version of the connection.
    pub version: u16,
    /// The peer's build, for people.
    pub build: String,
    /// Epoch of the coordinator; 0 from an agent.
    pub epoch: u64,
}

/// A connection that this side accepted and welcomed.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The connection.
    pub connection: Connection,
    /// Who dialled, from its certificate.
    pub identity: Identity,
    /// What for.
    pub purpose: Purpose,
    /// Protocol version of the connection.
    pub version: u16,
    /// The peer's build, for people.
    pub build: String,
}

/// The identity in a peer's certificate. TLS has checked its chain.
pub fn peer_identity(connection: &Connection) -> Result<Identity> {
    let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = chain.as_ref().and_then(|c| c.first());
    Identity::of_certificate(leaf.ok_or_else(|| Error::denied("the peer showed no certificate"))?)
}

/// Says hello on a connection that this side dialled. A refusal is an error with its kind and reason.
pub async fn greet(connection: Connection, greeting: &Greeting) -> Result<Session> {
    let identity = peer_identity(&connection)?;
    let (mut writer, mut reader) = open_bi(&connection).await?;
    let hello = Hello {
        min_version: greeting.versions.0,
        max_version: greeting.versions.1,
        build: greeting.build.clone(),
        purpose: greeting.purpose.code(),
        cluster: greeting.cluster.clone(),
        node: greeting.node.clone(),
    };
    writer.write_message(&hello).await?;
    writer.finish()?;
    let header = reader.read_header().await?.ok_or_else(|| Error::retry("the peer went away during the hello"))?;
    if header.kind == <Refused as tidemark_proto::frame::Message>::KIND {
        let refused: Refused = reader.decode(header).await?;
        let kind = ErrorKind::from_code(u64::from(refused.code));
        return Err(Error::new(kind, format!("refused by {identity}: {}", refused.message)));
    }
    let welcome: Welcome = reader.decode(header).await?;
    if !(greeting.versions.0..=greeting.versions.1).contains(&welcome.version) {
        return Err(Error::unsupported(format!("the peer chose protocol version {}", welcome.version)));
    }
    Ok(Session { connection, identity, version: welcome.version, build: welcome.build, epoch: welcome.epoch })
}

/// The answering side of the hello.
#[derive(Debug, Clone)]
pub struct Door {
    /// This build, for people.
    pub build: String,
    /// Epoch of the coordinator; 0 for an agent.
    pub epoch: u64,
    /// Who may enter.
    pub admits: Admission,
    /// Why nobody may enter at present (`Retry`), if so.
    pub closed: Option<String>,
    /// Oldest and newest protocol version spoken.
    pub versions: (u16, u16),
}

impl Door {
    /// A coordinator's control port: agents, for control and bulk.
    pub fn coordinator(build: &str, epoch: u64) -> Self {
        let admits: Admission = |identity, purpose| {
            matches!(identity, Identity::Agent { .. }) && matches!(purpose, Purpose::Control | Purpose::Bulk)
        };
        Self { build: build.to_owned(), epoch, admits, closed: None, versions: (MIN_VERSION, MAX_VERSION) }
    }

    /// An agent's data port: everybody of the fleet.
    pub fn data(build: &str) -> Self {
        let admits: Admission = |_, purpose| purpose == Purpose::Kv;
        Self { build: build.to_owned(), epoch: 0, admits, closed: None, versions: (MIN_VERSION, MAX_VERSION) }
    }

    /// Takes an incoming connection through TLS and hello, within [`limits::HANDSHAKE_TIMEOUT`]. A refusal is counted,
    /// told to the peer and returned. The window of a bulk connection is left to the caller to open
    /// ([`limits::CONNECTION_WINDOW`], or less).
    pub async fn accept(&self, incoming: Incoming) -> Result<Accepted> {
        let from = incoming.remote_address();
        let late = || {
            count_refusal(RefusalReason::Other);
            Error::retry("the handshake took too long")
        };
        let accepted = match timeout(limits::HANDSHAKE_TIMEOUT, self.enter(incoming)).await {
            Ok(result) => result,
            Err(_) => Err(late()),
        };
        accepted.map_err(|e| e.context(format!("connection from {from} refused")))
    }

    async fn enter(&self, incoming: Incoming) -> Result<Accepted> {
        let connection = incoming.await.map_err(|e| {
            count_refusal(RefusalReason::of_connection(&e));
            error_of(e)
        })?;
        let (mut writer, mut reader) =
            accept_bi(&connection).await.inspect_err(|_| count_refusal(RefusalReason::Other))?;
        match self.judge(&connection, &mut reader).await {
            Ok(accepted) => {
                let welcome = Welcome { version: accepted.version, build: self.build.clone(), epoch: self.epoch };
                if accepted.purpose != Purpose::Bulk {
                    connection.set_receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW));
                }
                writer.write_message(&welcome).await?;
                writer.finish()?;
                counter!(metric_names::HANDSHAKES_ACCEPTED, "purpose" => purpose_name(accepted.purpose))
                    .increment(1);
                Ok(accepted)
            }
            Err((reason, error)) => {
                count_refusal(reason);
                refuse(&connection, writer, &error).await;
                Err(error)
            }
        }
    }

    async fn judge(
        &self,
        connection: &Connection,
        reader: &mut FrameReader,
    ) -> Result<Accepted, (RefusalReason, Error)> {
        let identity = peer_identity(connection).map_err(|e| (RefusalReason::WrongRole, e))?;
        let hello: Hello = reader.read_message().await.map_err(|e| (RefusalReason::Other, e))?;
        let purpose = Purpose::from_code(hello.purpose).map_err(|e| (RefusalReason::Version, e))?;
        if !(self.admits)(&identity, purpose) {
            let text = format!("{identity} may not connect here for {}", purpose_name(purpose));
            return Err((RefusalReason::WrongRole, Error::denied(text)));
        }
        let own = Greeting::of(&identity, purpose, "");
        if (&hello.cluster, &hello.node) != (&own.cluster, &own.node) {
            let text = format!(
                "speaking for another node: the certificate is of {identity}, the configuration names `{}/{}`",
                hello.cluster, hello.node
            );
            return Err((RefusalReason::WrongNode, Error::denied(text)));
        }
        let version = choose_version(self.versions, (hello.min_version, hello.max_version))
            .map_err(|e| (RefusalReason::Version, e))?;
        if let Some(why) = &self.closed {
            return Err((RefusalReason::Other, Error::retry(why)));
        }
        Ok(Accepted { connection: connection.clone(), identity, purpose, version, build: hello.build })
    }
}

/// Tells the peer why, waits a moment until it has it, and closes.
async fn refuse(connection: &Connection, mut writer: FrameWriter, error: &Error) {
    let refused = Refused { code: error.kind().code(), message: error.message().to_owned() };
    let told = async {
        writer.write_message(&refused).await?;
        writer.drained().await
    };
    // A peer that does not listen learns it from the close.
    let _ = timeout(REFUSAL_GRACE, told).await;
    close(connection, error);
}

fn purpose_name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Control => "control",
        Purpose::Bulk => "bulk",
        Purpose::Kv => "kv",
    }
}
