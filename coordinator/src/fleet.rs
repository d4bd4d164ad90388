//! The agents that are connected, and commands to them.

use std::collections::BTreeMap;
use std::sync::RwLock;
use std::time::Duration;

use quinn::Connection;
use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::transport::open_bi;
use tidemark_proto::frame::Message;
use tidemark_proto::wire::control::{CommandHead, Describe, DescribeSource, Description, Progress};
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result};
use tokio::sync::watch;

/// Time for an agent to describe itself.
pub const DESCRIBE_DEADLINE: Duration = Duration::from_secs(5);

/// A node by its names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Cluster.
    pub cluster: ClusterName,
    /// Node.
    pub node: NodeName,
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.cluster, self.node)
    }
}

/// A connected agent.
#[derive(Debug, Clone)]
pub struct Connected {
    connection: Connection,
    /// Its build.
    pub build: String,
    /// When it connected, milliseconds since 1970.
    pub since_millis: u64,
    /// How far its clock was from this one when it last described itself, milliseconds, the way there and back included.
    pub clock_offset_millis: u64,
    /// What it last said of itself.
    pub description: Option<Description>,
}

/// All connected agents.
#[derive(Debug, Default)]
pub struct Fleet {
    agents: RwLock<BTreeMap<Member, Connected>>,
    /// Counts arrivals.
    arrivals: watch::Sender<u64>,
}

impl Fleet {
    /// A new control connection of `member`; one that stood before is closed: the agent has restarted.
    pub fn join(&self, member: Member, connection: Connection, build: String, now_millis: u64) {
        let agent =
            Connected { connection, build, since_millis: now_millis, clock_offset_millis: 0, description: None };
        let old = self.agents.write().expect("fleet").insert(member, agent);
        if let Some(old) = old {
            old.connection.close(quinn::VarInt::from_u32(ErrorKind::Conflict.code()), b"the agent connected again");
        }
        self.arrivals.send_modify(|n| *n += 1);
    }

    /// Whether the connection of `member` stands.
    pub fn is_connected(&self, member: &Member) -> bool {
        let agents = self.agents.read().expect("fleet");
        agents.get(member).is_some_and(|a| a.connection.close_reason().is_none())
    }

    /// Waits until all `members` are connected; `Retry`, naming those that are away, after `patience`.
    pub async fn wait_for(&self, members: &[Member], patience: Duration) -> Result<()> {
        let mut arrivals = self.arrivals.subscribe();
        let all_there = arrivals.wait_for(|_| members.iter().all(|m| self.is_connected(m)));
        // The sender lives as long as the fleet.
        let waited = tokio::time::timeout(patience, all_there).await.map(drop);
        waited.map_err(|_| {
            let away: Vec<_> =
                members.iter().filter(|m| !self.is_connected(m)).map(|m| format!("node {m}")).collect();
            Error::retry(format!("{} has not connected for {} s", away.join(", "), patience.as_secs()))
        })
    }

    /// The connection has ended.
    pub fn leave(&self, member: &Member, connection: &Connection) {
        let mut agents = self.agents.write().expect("fleet");
        if agents.get(member).is_some_and(|a| a.connection.stable_id() == connection.stable_id()) {
            let _ = agents.remove(member);
        }
    }

    /// The address of the machine from which `member` connects; empty when it is not connected.
    pub fn host(&self, member: &Member) -> String {
        let agents = self.agents.read().expect("fleet");
        agents
            .get(member)
            .map(|a| a.connection.remote_address().ip().to_canonical().to_string())
            .unwrap_or_default()
    }

    /// The nodes of a cluster (of all for `None`) that are connected.
    pub fn members(&self, cluster: Option<&ClusterName>) -> Vec<(Member, Connected)> {
        let agents = self.agents.read().expect("fleet");
        let wanted = agents.iter().filter(|(m, _)| cluster.is_none_or(|c| m.cluster == *c));
        wanted.map(|(m, a)| (m.clone(), a.clone())).collect()
    }

    fn connection(&self, member: &Member) -> Result<Connection> {
        let agents = self.agents.read().expect("fleet");
        let agent = agents.get(member);
        agent.map(|a| a.connection.clone()).ok_or_else(|| Error::retry(format!("{member} is not connected")))
    }

    /// Asks an agent to describe itself, and remembers the answer.
    pub async fn describe(&self, member: &Member, head: CommandHead) -> Result<Description> {
        let description: Description = self.command(member, head, &Describe {}, DESCRIBE_DEADLINE, |_| ()).await?;
        if !description.ownership.is_canonical() {
            return Err(Error::damaged(format!("node {member}: a slot set is not in order")));
        }
        if let Some(agent) = self.agents.write().expect("fleet").get_mut(member) {
            agent.clock_offset_millis = SystemClock.millis().abs_diff(description.clock_millis);
            agent.description = Some(description.clone());
        }
        Ok(description)
    }

    /// Asks an agent what it can be backed up for.
    pub async fn describe_source(&self, member: &Member, head: CommandHead) -> Result<Description> {
        let described: Description =
            self.command(member, head, &DescribeSource {}, DESCRIBE_DEADLINE, |_| ()).await?;
        match described.ownership.is_canonical() {
            true => Ok(described),
            false => Err(Error::damaged(format!("node {member}: a slot set is not in order"))),
        }
    }

    /// Sends a command and waits for its reply; `deadline` bounds the time without a word from the agent. Dropping the
    /// future cancels the command. Errors name the node.
    pub async fn command<Q: Message, R: Message>(
        &self,
        member: &Member,
        head: CommandHead,
        request: &Q,
        deadline: Duration,
        on_progress: impl FnMut(Progress),
    ) -> Result<R> {
        let connection = self.connection(member)?;
        let done = exchange(&connection, head, request, deadline, on_progress).await;
        done.map_err(|e| {
            // Closed by this side: the agent has connected again, and the command can be given again.
            let again = connection.close_reason() == Some(quinn::ConnectionError::LocallyClosed);
            let e = if again { Error::retry("the agent connected again").with_source(e) } else { e };
            e.context(format_args!("node {member}"))
        })
    }
}

async fn exchange<Q: Message, R: Message>(
    connection: &Connection,
    head: CommandHead,
    request: &Q,
    deadline: Duration,
    mut on_progress: impl FnMut(Progress),
) -> Result<R> {
    let silent = || Error::retry(format!("no word for {} ms", deadline.as_millis()));
    let (mut writer, mut reader) = open_bi(connection).await?;
    writer.write_message(&head).await?;
    writer.write_message(request).await?;
    loop {
        let header = tokio::time::timeout(deadline, reader.read_reply_header()).await.map_err(|_| silent())??;
        if header.kind == Progress::KIND {
            on_progress(reader.decode(header).await?);
        } else {
            let reply = reader.decode(header).await?;
            let _ = writer.finish();
            return Ok(reply);
        }
    }
}
