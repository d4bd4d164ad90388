use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use quinn::Endpoint;
use quinn::crypto::rustls::QuicClientConfig;
use tidemark_proto::frame::Header;
use tidemark_proto::wire::control::{Describe, Hold};
use tidemark_proto::wire::hello::Purpose;
use tidemark_proto::{ErrorKind, Result};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::identity::{Expected, Identity};
use crate::metric_names;
use crate::pki::Credentials;
use crate::testing::TestFleet;
use crate::tls;

const COORDINATOR: &str = "tidemark://coordinator/c1";
const AGENT: &str = "tidemark://agent/orders/n1";

/// A test that waits this long has failed.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Counts by `name{label=value}`.
#[derive(Default, Clone)]
struct Counts(Arc<Mutex<HashMap<String, Arc<AtomicU64>>>>);

impl Counts {
    fn installed() -> &'static Self {
        static COUNTS: OnceLock<Counts> = OnceLock::new();
        COUNTS.get_or_init(|| {
            let counts = Counts::default();
            metrics::set_global_recorder(counts.clone()).ok().unwrap();
            counts
        })
    }

    fn refused(&self, reason: &str) -> u64 {
        let name = format!("{}{{reason={reason}}}", metric_names::HANDSHAKES_REFUSED);
        self.0.lock().unwrap().get(&name).map_or(0, |c| c.load(Ordering::SeqCst))
    }
}

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels: Vec<_> = key.labels().map(|l| format!("{}={}", l.key(), l.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Counter::from_arc(self.0.lock().unwrap().entry(name).or_default().clone())
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// A port that answers hellos and hands out what came of them.
struct Port {
    endpoint: Endpoint,
    address: SocketAddr,
    results: mpsc::Receiver<Result<Accepted>>,
}

impl Port {
    fn open(address: SocketAddr, credentials: &Credentials) -> Self {
        let endpoint = server_endpoint(address, credentials, tls::ALPN_CONTROL).unwrap();
        let (tx, results) = mpsc::channel(16);
        let accepting = endpoint.clone();
        drop(tokio::spawn(async move {
            let door = Door::coordinator("test", 7);
            while let Some(incoming) = accepting.accept().await {
                if tx.send(door.accept(incoming).await).await.is_err() {
                    return;
                }
            }
        }));
        Self { address: endpoint.local_addr().unwrap(), endpoint, results }
    }

    fn loopback(credentials: &Credentials) -> Self {
        Self::open(SocketAddr::from(([127, 0, 0, 1], 0)), credentials)
    }

    async fn next(&mut self) -> Result<Accepted> {
        self.results.recv().await.unwrap()
    }

    fn dialer(&self, credentials: &Credentials) -> Dialer {
        let greeting = Greeting::of(credentials.identity(), Purpose::Control, "test");
        self.dialer_with(credentials, greeting)
    }

    fn dialer_with(&self, credentials: &Credentials, greeting: Greeting) -> Dialer {
        let endpoint = client_endpoint().unwrap();
        let addresses = vec![self.address.to_string()];
        Dialer::new(endpoint, credentials, tls::ALPN_CONTROL, Expected::Coordinator, addresses, greeting).unwrap()
    }

    /// Both ends of one good connection.
    async fn pair(&mut self, credentials: &Credentials) -> (Session, Accepted) {
        let session = self.dialer(credentials).connect_once().await.unwrap();
        (session, self.next().await.unwrap())
    }
}

#[tokio::test]
async fn a_good_pair_talks() {
    let fleet = TestFleet::new();
    let mut port = Port::loopback(&fleet.credentials(COORDINATOR));
    let (session, accepted) = port.pair(&fleet.credentials(AGENT)).await;
    assert_eq!(accepted.identity.to_string(), AGENT);
    assert_eq!(accepted.purpose, Purpose::Control);
    assert_eq!((session.identity.to_string().as_str(), session.version, session.epoch), (COORDINATOR, 1, 7));

    let (mut to_agent, _) = open_bi(&accepted.connection).await.unwrap();
    to_agent.write_message(&Hold { budget_micros: 5 }).await.unwrap();
    to_agent.write_raw(60, 1, Bytes::from(vec![7; 100_000])).await.unwrap();
    to_agent.finish().unwrap();
    let (_answer, mut at_agent) = accept_bi(&session.connection).await.unwrap();
    assert_eq!(at_agent.read_message::<Hold>().await.unwrap().budget_micros, 5);
    assert_eq!(at_agent.read_raw(60, 100_000).await.unwrap(), vec![7; 100_000]);
    at_agent.read_end().await.unwrap();
}

async fn expect_refused(port: &mut Port, dialer: Dialer, kind: ErrorKind, reason: &str, says: &str) {
    let counts = Counts::installed();
    let before = counts.refused(reason);
    let told = dialer.connect_once().await.unwrap_err();
    let seen = port.next().await.unwrap_err();
    assert_eq!((told.kind(), seen.kind()), (kind, kind), "{reason}: {} / {}", told.report(), seen.report());
    assert!(told.report().contains(says), "{reason}: `{}` does not say `{says}`", told.report());
    assert_eq!(counts.refused(reason), before + 1, "{reason} is counted once");
}

#[tokio::test]
async fn strangers_are_refused_and_counted() {
    let _ = Counts::installed();
    let fleet = TestFleet::new();
    let mut port = Port::loopback(&fleet.credentials(COORDINATOR));
    let agent = fleet.credentials(AGENT);
    let denied = ErrorKind::Denied;

    // Signed by another fleet's authority, but trusting this one: the server must find out.
    let stranger = TestFleet::new();
    let mut paths = stranger.issue("stranger", &AGENT.parse().unwrap(), (-1, 30));
    paths.ca = fleet.dir().join("ca.crt");
    let dialer = port.dialer(&TestFleet::open(paths));
    expect_refused(&mut port, dialer, denied, "untrusted", "authority").await;

    let old = TestFleet::open(fleet.issue("old", &AGENT.parse().unwrap(), (-30, -1)));
    let dialer = port.dialer(&old);
    expect_refused(&mut port, dialer, denied, "expired", "expired").await;

    let mut greeting = Greeting::of(agent.identity(), Purpose::Control, "test");
    greeting.node = "n2".into();
    let dialer = port.dialer_with(&agent, greeting);
    expect_refused(&mut port, dialer, denied, "wrong_node", "speaking for another node").await;

    let dialer = port.dialer(&fleet.credentials("tidemark://operator/alice"));
    expect_refused(&mut port, dialer, denied, "wrong_role", "operator/alice may not").await;

    let mut greeting = Greeting::of(agent.identity(), Purpose::Control, "test");
    greeting.versions = (2, 3);
    let dialer = port.dialer_with(&agent, greeting);
    expect_refused(&mut port, dialer, ErrorKind::Unsupported, "version", "2 to 3").await;
}

#[tokio::test]
async fn a_client_without_certificate_is_refused_and_counted() {
    let counts = Counts::installed();
    let fleet = TestFleet::new();
    let credentials = fleet.credentials(COORDINATOR);
    let mut port = Port::loopback(&credentials);
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(credentials.current().roots.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![tls::ALPN_CONTROL.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let endpoint = client_endpoint().unwrap();
    let connecting = endpoint.connect_with(config, port.address, "localhost").unwrap();
    assert_eq!(port.next().await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(counts.refused("no_certificate"), 1);
    if let Ok(connection) = connecting.await {
        let told = error_of(connection.closed().await);
        assert_eq!(told.kind(), ErrorKind::Denied);
        assert!(told.message().contains("no certificate"), "{told}");
    }
}

#[tokio::test]
async fn a_server_of_another_role_is_refused() {
    let fleet = TestFleet::new();
    let port = Port::loopback(&fleet.credentials(AGENT));
    let refused = port.dialer(&fleet.credentials("tidemark://agent/orders/n2")).connect_once().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied);
    assert!(refused.report().contains("expected a coordinator"), "{}", refused.report());
}

#[tokio::test]
async fn renewed_certificates_serve_new_connections() {
    let fleet = TestFleet::new();
    let server = fleet.credentials(COORDINATOR);
    let mut port = Port::loopback(&server);
    let identity: Identity = AGENT.parse().unwrap();
    let expired = fleet.issue("agent", &identity, (-30, -1));
    let agent = TestFleet::open(expired);
    let dialer = port.dialer(&agent);
    assert!(dialer.connect_once().await.is_err());
    assert!(port.next().await.is_err());
    let _ = fleet.issue("agent", &identity, (-1, 30));
    let session = dialer.connect_once().await.unwrap();
    assert_eq!(port.next().await.unwrap().identity, identity);
    drop(session);

    let before = server.current().not_after;
    let _ = fleet.issue("coordinator-c1", &COORDINATOR.parse().unwrap(), (-1, 60));
    let _session = dialer.connect_once().await.unwrap();
    assert!(server.current().not_after > before);
}

#[tokio::test]
async fn oversize_frames_are_refused_before_allocation() {
    let fleet = TestFleet::new();
    let mut port = Port::loopback(&fleet.credentials(COORDINATOR));
    let (session, accepted) = port.pair(&fleet.credentials(AGENT)).await;
    let (mut send, _recv) = session.connection.open_bi().await.unwrap();
    // A header alone: if the body were waited for or made room for, this would hang or take 4 GiB.
    let header = Header { len: u32::MAX, kind: 21, version: 1 };
    send.write_all(&header.encode()).await.unwrap();
    let (_writer, mut reader) = accept_bi(&accepted.connection).await.unwrap();
    let refused = reader.read_message::<Describe>().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Damaged);
    assert!(refused.message().contains("4294967295"), "{refused}");
}

#[tokio::test]
async fn stream_codes_arrive_as_their_kinds() {
    let fleet = TestFleet::new();
    let mut port = Port::loopback(&fleet.credentials(COORDINATOR));
    let (session, accepted) = port.pair(&fleet.credentials(AGENT)).await;
    for kind in ErrorKind::ALL {
        let (mut writer, mut answers) = open_bi(&session.connection).await.unwrap();
        writer.write_message(&Describe {}).await.unwrap();
        let (mut answer, mut reader) = accept_bi(&accepted.connection).await.unwrap();
        let _: Describe = reader.read_message().await.unwrap();
        answer.reset(kind);
        assert_eq!(answers.read_header().await.unwrap_err().kind(), kind);
        reader.stop(kind);
        assert_eq!(writer.stopped().await.kind(), kind);
    }
    // A writer that is dropped in the middle must not look finished.
    let (mut writer, _answers) = open_bi(&session.connection).await.unwrap();
    writer.write_message(&Describe {}).await.unwrap();
    let (_answer, mut reader) = accept_bi(&accepted.connection).await.unwrap();
    let _: Describe = reader.read_message().await.unwrap();
    drop(writer);
    assert_eq!(reader.read_end().await.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[tokio::test]
async fn the_dialer_returns_after_the_server_did() {
    let fleet = TestFleet::new();
    let credentials = fleet.credentials(COORDINATOR);
    let mut port = Port::loopback(&credentials);
    let mut dialer = port.dialer(&fleet.credentials(AGENT));
    let cancel = CancellationToken::new();
    let session = dialer.connect(&cancel).await.unwrap();
    let accepted = port.next().await.unwrap();

    let address = port.address;
    port.endpoint.close(quinn::VarInt::from_u32(ErrorKind::Retry.code()), b"restarting");
    let lost = error_of(session.connection.closed().await);
    assert_eq!(lost.kind(), ErrorKind::Retry);
    port.endpoint.wait_idle().await;
    // Connections keep their endpoint's socket.
    drop((port, accepted));
    let again = tokio::spawn(async move { dialer.connect(&CancellationToken::new()).await });
    let reopened = tokio::time::timeout(PATIENCE, reopen(address, &credentials));
    let mut port = reopened.await.expect("the old endpoint gave its port back");
    let _session = again.await.unwrap().unwrap();
    assert_eq!(port.next().await.unwrap().identity.to_string(), AGENT);
}

/// The old endpoint's task lets go of its socket soon after its last handle is dropped.
async fn reopen(address: SocketAddr, credentials: &Credentials) -> Port {
    loop {
        match std::net::UdpSocket::bind(address) {
            Ok(free) => {
                drop(free);
                return Port::open(address, credentials);
            }
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test]
async fn dialling_ends_on_request() {
    let fleet = TestFleet::new();
    let port = Port::loopback(&fleet.credentials(COORDINATOR));
    let mut dialer = port.dialer(&fleet.credentials(AGENT));
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert_eq!(dialer.connect(&cancel).await.unwrap_err().kind(), ErrorKind::Cancelled);
}
