//! The data listener and its client, over a store in memory.

use std::time::Duration;

use tidemark_common::testing::TestFleet;
use tidemark_proto::wire::kv::{MAX_KEY, MAX_WRITES, Write};
use tidemark_proto::{ErrorKind, Timestamp};
use tidemark_tests::nodes::TestNode;

/// A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

fn put(key: &str, value: &str) -> Vec<Write> {
    vec![Write { key: key.into(), value: Some(value.into()) }]
}

/// Waits until `done`, letting others run.
async fn until(what: &str, done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}

#[tokio::test]
async fn writes_and_reads_come_back_by_time() {
    let fleet = TestFleet::new();
    let node = TestNode::start(&fleet, 0, 1);
    let client = node.client(&fleet);
    let first = client.commit(put("k", "one"), Timestamp::ZERO).await.unwrap();
    let second = client.commit(put("k", "two"), first).await.unwrap();
    assert!(second > first);
    let value = |at| {
        let client = client.clone();
        async move { client.get(b"k".to_vec(), at).await.unwrap().map(|r| r.value) }
    };
    assert_eq!(value(None).await.unwrap(), b"two");
    assert_eq!(value(Some(first)).await.unwrap(), b"one");
    assert_eq!(value(Some(first.prev())).await, None);
    let gone = client.commit(vec![Write { key: b"k".to_vec(), value: None }], second).await.unwrap();
    assert_eq!(value(Some(gone)).await, None);
    // What a client has seen elsewhere lies before its next commit, even if this node's clock is behind.
    let seen = Timestamp(gone.0 + (30_000 << tidemark_proto::time::LOGICAL_BITS));
    assert!(client.commit(put("k", "three"), seen).await.unwrap() > seen);
}

#[tokio::test]
async fn pages_cover_everything_once() {
    let fleet = TestFleet::new();
    let node = TestNode::start(&fleet, 0, 1);
    let client = node.client(&fleet);
    let writes = (0..100).map(|i| Write { key: format!("p{i}").into(), value: Some(vec![7; 10]) }).collect();
    let _ = client.commit(writes, Timestamp::ZERO).await.unwrap();
    let _ = client.commit(put("other", "x"), Timestamp::ZERO).await.unwrap();
    let (mut keys, mut from, mut at) = (Vec::new(), Vec::new(), None);
    loop {
        let page = client.scan(b"p".to_vec(), from, at, 7).await.unwrap();
        assert!(page.records.len() <= 7);
        keys.extend(page.records.into_iter().map(|r| r.key));
        at = Some(page.at);
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 100);
}

#[tokio::test]
async fn commits_pipeline_while_the_store_is_held() {
    let fleet = TestFleet::new();
    let node = TestNode::start(&fleet, 0, 1);
    let client = node.client(&fleet);
    node.store.hold();
    let calls: Vec<_> = (0..50)
        .map(|i| {
            let client = client.clone();
            tokio::spawn(async move { client.commit(put(&format!("k{i}"), "v"), Timestamp::ZERO).await })
        })
        .collect();
    // All are at the store before any is answered.
    until("50 waiting commits", || node.store.waiting() == 50).await;
    node.store.release();
    for call in calls {
        assert!(call.await.unwrap().unwrap() > Timestamp::ZERO);
    }
}

#[tokio::test]
async fn a_failed_request_leaves_the_stream_alive() {
    let fleet = TestFleet::new();
    let node = TestNode::start(&fleet, 0, 2);
    let client = node.client(&fleet);
    let foreign = (0..).map(|i| format!("f{i}")).find(|k| tidemark_proto::slot_of(k.as_bytes()) >= 8192).unwrap();
    let own = (0..).map(|i| format!("o{i}")).find(|k| tidemark_proto::slot_of(k.as_bytes()) < 8192).unwrap();
    let refused = client.commit(put(&foreign, "v"), Timestamp::ZERO).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let long = Write { key: vec![b'x'; MAX_KEY + 1], value: None };
    let many = vec![Write { key: b"x".to_vec(), value: None }; MAX_WRITES + 1];
    for bad in [Vec::new(), vec![long], many] {
        assert_eq!(client.commit(bad, Timestamp::ZERO).await.unwrap_err().kind(), ErrorKind::Request);
    }
    let _ = client.commit(put(&own, "v"), Timestamp::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_shut_gate_ends_connections_and_refuses_new_ones() {
    let fleet = TestFleet::new();
    let node = TestNode::start(&fleet, 0, 1);
    let (old, new) = (node.client(&fleet), node.client(&fleet));
    node.store.hold();
    let waiting = {
        let old = old.clone();
        tokio::spawn(async move { old.commit(put("k", "v"), Timestamp::ZERO).await })
    };
    until("a waiting commit", || node.store.waiting() == 1).await;
    node.gate.shut("the store is restoring");
    let ended = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Retry);
    assert!(ended.message().contains("restoring"), "{ended}");
    let refused = new.get(b"k".to_vec(), None).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Retry);
    assert!(refused.message().contains("restoring"), "{refused}");
    node.store.release();
    node.gate.open();
    assert!(new.get(b"k".to_vec(), None).await.is_ok());
    assert!(old.get(b"k".to_vec(), None).await.is_ok(), "the old client dials anew");
}

#[tokio::test]
async fn shutdown_answers_what_was_read() {
    let fleet = TestFleet::new();
    let node = TestNode::start(&fleet, 0, 1);
    let client = node.client(&fleet);
    node.store.hold();
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.commit(put("k", "v"), Timestamp::ZERO).await })
    };
    until("a waiting commit", || node.store.waiting() == 1).await;
    node.cancel.cancel();
    tokio::task::yield_now().await;
    node.store.release();
    assert!(waiting.await.unwrap().is_ok());
    tokio::time::timeout(PATIENCE, node.running).await.expect("the listener ends").unwrap();
}

#[tokio::test]
async fn a_client_of_another_node_is_told_so() {
    let fleet = TestFleet::new();
    let (one, two) = (TestNode::start(&fleet, 0, 2), TestNode::start(&fleet, 1, 2));
    let wrong = TestNode { name: two.name.clone(), ..one };
    let refused = wrong.client(&fleet).get(b"k".to_vec(), None).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied);
    assert!(refused.report().contains("agent/orders/n1"), "{}", refused.report());
}
