//! Who may take part: certificates of the fleet, of the right role, for the right node, in their time.

use std::time::Duration;

use tidemark_common::clock::SystemClock;
use tidemark_common::pki::{Credentials, PkiPaths};
use tidemark_common::tls::ALPN_CONTROL;
use tidemark_common::transport::{Dialer, Greeting, client_endpoint};
use tidemark_proto::ErrorKind;
use tidemark_proto::slot::even_share;
use tidemark_proto::wire::hello::Purpose;
use tidemark_tests::fleet::{AgentSpec, Api, Fleet, authority, issue};

use crate::steps::fill;

/// Exit code of a wrong configuration.
const CONFIG: i32 = 64;
/// Seconds of a day.
const DAY: u64 = 86_400;

/// A fleet with a good cluster of two, and a stranger that would overlap with one of them.
async fn fleet() -> (Fleet, AgentSpec) {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    fill(&fleet.router("orders", 2).await, 1, 100).await;
    (fleet, AgentSpec::new("orders", "n9", even_share(0, 2)))
}

/// A backup of the two good nodes, and nothing of a third.
async fn assert_not_in_the_backup(fleet: &Fleet) {
    let _ = fleet.ready("orders", 2).await;
    let backup = fleet.backup("orders").await.unwrap();
    let nodes: Vec<_> = backup.node_evidence.iter().map(|n| n.node.as_str()).collect();
    assert_eq!(nodes, ["n0", "n1"]);
}

/// Dials the coordinator's control port as a client with these certificates would.
async fn dial(fleet: &Fleet, tls: PkiPaths, speak_for: Option<(&str, &str)>) -> ErrorKind {
    let credentials = Credentials::load(tls).unwrap();
    let mut greeting = Greeting::of(credentials.identity(), Purpose::Control, "test");
    if let Some((cluster, node)) = speak_for {
        (greeting.cluster, greeting.node) = (cluster.into(), node.into());
    }
    let expected = tidemark_common::identity::Expected::Coordinator;
    let address = vec![fleet.coordinator().agent_address.to_string()];
    let endpoint = client_endpoint().unwrap();
    let dialer = Dialer::new(endpoint, &credentials, ALPN_CONTROL, expected, address, greeting).unwrap();
    dialer.connect_once().await.expect_err("a stranger was let in").kind()
}

fn good(fleet: &Fleet, uri: &str, folder: &str) -> PkiPaths {
    issue(fleet.authority(), uri, &fleet.dir().join(folder), 1, SystemClock.time())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_authority_is_refused() {
    let (mut fleet, mut spec) = fleet().await;
    let other = authority(&fleet.dir().join("other"));
    let uri = "tidemark://agent/orders/n9";
    let foreign = issue(&other, uri, &fleet.dir().join("foreign"), 1, SystemClock.time());
    // It trusts only its own authority: it must not take the coordinator for one of its fleet.
    spec.tls = Some(foreign.clone());
    fleet.start_agent(spec);
    let _ = fleet.agent("orders", "n9").process.logged("not of this fleet's authority").await;
    // It trusts ours: the coordinator must not take it for one of ours.
    let disguised = PkiPaths { ca: fleet.dir().join("pki/ca.crt"), ..foreign };
    assert_eq!(dial(&fleet, disguised, None).await, ErrorKind::Denied);
    assert_not_in_the_backup(&fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_refused() {
    let (fleet, _) = fleet().await;
    let long_ago = SystemClock.time() - Duration::from_secs(400 * DAY);
    let uri = "tidemark://agent/orders/n9";
    let expired = issue(fleet.authority(), uri, &fleet.dir().join("expired"), 30, long_ago);
    assert_eq!(dial(&fleet, expired, None).await, ErrorKind::Denied);
    assert_not_in_the_backup(&fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_is_no_agent_and_an_agent_no_operator() {
    let (mut fleet, mut spec) = fleet().await;
    let operator = good(&fleet, "tidemark://operator/mallory", "operator");
    spec.tls = Some(operator.clone());
    fleet.start_agent(spec);
    let process = &mut fleet.agent("orders", "n9").process;
    assert_eq!(process.ended().await.code(), Some(CONFIG));
    assert!(process.log().contains("operator/mallory"), "{}", process.log());
    assert_eq!(dial(&fleet, operator, Some(("orders", "n9"))).await, ErrorKind::Denied);
    let agent = Credentials::load(good(&fleet, "tidemark://agent/orders/n0", "agent")).unwrap();
    let api = Api::new(fleet.coordinator().api_address, &agent);
    let refused = api.get::<serde_json::Value>("status").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{}", refused.report());
    assert_not_in_the_backup(&fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_speaks_for_its_own_node_alone() {
    let (mut fleet, mut spec) = fleet().await;
    let other = good(&fleet, "tidemark://agent/orders/n8", "other-node");
    spec.tls = Some(other.clone());
    fleet.start_agent(spec);
    let process = &mut fleet.agent("orders", "n9").process;
    assert_eq!(process.ended().await.code(), Some(CONFIG));
    assert!(process.log().contains("n8") && process.log().contains("n9"), "{}", process.log());
    assert_eq!(dial(&fleet, other, Some(("orders", "n0"))).await, ErrorKind::Denied);
    assert_not_in_the_backup(&fleet).await;
}
