//! Load and check over nodes in one process.

use std::time::Duration;

use tidemark_common::testing::TestFleet;
use tidemark_common::transport::client_endpoint;
use tidemark_coordinator::kv::{LoadOptions, NodeRoute, Router, check, load};
use tidemark_proto::ErrorKind;
use tidemark_proto::slot::even_share;
use tidemark_tests::nodes::{CLUSTER, TestNode};
use tokio_util::sync::CancellationToken;

/// A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

fn start(fleet: &TestFleet, n: u16) -> Vec<TestNode> {
    (0..n).map(|i| TestNode::start(fleet, i, n)).collect()
}

fn router(fleet: &TestFleet, nodes: &[TestNode]) -> Router {
    let n = nodes.len() as u16;
    let route = |(i, node): (u16, &TestNode)| NodeRoute {
        node: node.name.clone(),
        cluster: CLUSTER.parse().unwrap(),
        address: node.address.to_string(),
        slots: even_share(i, n),
    };
    let routes = (0..).zip(nodes).map(route).collect();
    let credentials = fleet.credentials("tidemark://operator/alice");
    Router::new(&client_endpoint().unwrap(), &credentials, "test", routes).unwrap()
}

fn options() -> LoadOptions {
    LoadOptions {
        records: 500,
        seed: 7,
        duration: Some(Duration::from_millis(300)),
        chains: 3,
        ..Default::default()
    }
}

async fn run(router: &Router, options: &LoadOptions) -> tidemark_coordinator::kv::LoadReport {
    load(router, options, CancellationToken::new()).await.unwrap()
}

#[tokio::test]
async fn a_load_is_found_whole_by_the_check() {
    let fleet = TestFleet::new();
    let nodes = start(&fleet, 3);
    let router = router(&fleet, &nodes);
    let done = run(&router, &options()).await;
    assert!(done.writes >= 500 && done.chain_steps > 3 && done.retries == 0, "{done:?}");
    assert!(done.ack_p50_micros > 0 && done.ack_p50_micros <= done.ack_max_micros, "{done:?}");
    let found = check(&router, None).await.unwrap();
    assert!(found.is_clean(), "{found:?}");
    assert_eq!((found.records, found.chain_steps), (500, done.chain_steps));
    assert!(nodes.iter().all(|n| n.store.keys().iter().any(|k| k.starts_with(b"chain:"))), "chains use all nodes");
    // At any timestamp of the past as well: that is what `after` is for.
    let past = check(&router, Some(tidemark_proto::Timestamp(found.at.0 - (100 << 18)))).await.unwrap();
    assert!(past.is_clean() && past.chain_steps < found.chain_steps, "{past:?}");
}

#[tokio::test]
async fn steps_follow_each_other_on_other_nodes() {
    let fleet = TestFleet::new();
    let nodes = start(&fleet, 2);
    let router = router(&fleet, &nodes);
    let _ = run(&router, &LoadOptions { chains: 1, records: 0, ..options() }).await;
    let step = |key: &[u8]| {
        let text = String::from_utf8(key.to_vec()).unwrap();
        text.split(':').nth(3).unwrap().split('#').next().unwrap().parse::<usize>().unwrap()
    };
    for (i, node) in nodes.iter().enumerate() {
        let first = step(&node.store.keys()[0]) % 2;
        assert!(node.store.keys().iter().all(|k| step(k) % 2 == first), "node {i} has every other step");
    }
}

#[tokio::test]
async fn a_lost_cause_and_a_damaged_value_are_found() {
    let fleet = TestFleet::new();
    let nodes = start(&fleet, 3);
    let router = router(&fleet, &nodes);
    let _ = run(&router, &options()).await;
    let cause = nodes
        .iter()
        .flat_map(|n| n.store.keys().into_iter().map(move |k| (n, k)))
        .find(|(_, k)| String::from_utf8_lossy(k).contains(":0#"))
        .unwrap();
    assert!(cause.0.store.forget(&cause.1));
    let found = check(&router, None).await.unwrap();
    assert_eq!((found.violations, found.wrong_values), (1, 0), "{found:?}");
    let record = b"load:7:3";
    nodes[router.node_of(record)].store.damage(record, b"0 something else");
    let found = check(&router, None).await.unwrap();
    assert_eq!((found.violations, found.wrong_values, found.faults.len()), (1, 1, 2), "{found:?}");
}

#[tokio::test]
async fn a_node_that_is_away_is_waited_for() {
    let fleet = TestFleet::new();
    let nodes = start(&fleet, 2);
    let router = router(&fleet, &nodes);
    nodes[1].gate.shut("the store is restoring");
    let wanted = LoadOptions { duration: None, chains: 0, ..options() };
    let loading = {
        let router = router.clone();
        tokio::spawn(async move { run(&router, &wanted).await })
    };
    // The other node's share is done and the load still waits.
    let share = (0..500).filter(|n| router.node_of(format!("load:7:{n}").as_bytes()) == 0).count();
    let waiting = async {
        while nodes[0].store.keys().len() < share - 16 * 4 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the other node's share");
    assert!(!loading.is_finished());
    nodes[1].gate.open();
    let done = tokio::time::timeout(PATIENCE, loading).await.unwrap().unwrap();
    assert!(done.writes == 500 && done.retries > 0, "{done:?}");
    assert!(check(&router, None).await.unwrap().is_clean());
}

#[tokio::test]
async fn a_load_without_end_stops_on_request() {
    let fleet = TestFleet::new();
    let nodes = start(&fleet, 2);
    let router = router(&fleet, &nodes);
    let stop = CancellationToken::new();
    let wanted = LoadOptions { duration: Some(Duration::from_secs(3600)), ..options() };
    let loading = {
        let (router, stop) = (router.clone(), stop.clone());
        tokio::spawn(async move { load(&router, &wanted, stop).await })
    };
    while nodes[0].store.keys().is_empty() {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    let done = tokio::time::timeout(PATIENCE, loading).await.unwrap().unwrap().unwrap();
    assert!(done.writes > 0 && done.seconds < 60.0, "{done:?}");
}

#[tokio::test]
async fn routes_must_tile_the_slots() {
    let fleet = TestFleet::new();
    let nodes = start(&fleet, 2);
    let credentials = fleet.credentials("tidemark://operator/alice");
    let endpoint = client_endpoint().unwrap();
    let route = |i: u16, slots: &str| NodeRoute {
        node: nodes[usize::from(i)].name.clone(),
        cluster: CLUSTER.parse().unwrap(),
        address: nodes[usize::from(i)].address.to_string(),
        slots: slots.parse().unwrap(),
    };
    for (one, two, says) in [("0-5000", "5002-16383", "5001"), ("0-5000", "5000-16383", "5000")] {
        let refused = Router::new(&endpoint, &credentials, "test", vec![route(0, one), route(1, two)]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        assert!(refused.message().contains(says), "{refused}");
    }
}
