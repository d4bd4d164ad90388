//! The data listener and its client, over a store in memory.

use std::time::Duration;

use tidemark_common::identity::Expected;
use tidemark_common::testing::TestFleet;
use tidemark_common::tls;
use tidemark_common::transport::{Dialer, Greeting, client_endpoint, open_bi};
use tidemark_proto::frame::Message;
use tidemark_proto::wire::hello::Purpose;
use tidemark_proto::wire::kv::{
    CloneOpened, Commit, Committed, Failure, Get, MAX_KEY, MAX_WRITES, OpenClone, Scan, Value, Write,
};
use tidemark_proto::{CloneName, ErrorKind, Timestamp};
use tidemark_tests::nodes::{CLUSTER, TestNode};

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

fn name(text: &str) -> CloneName {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_client_of_a_clone_reads_and_writes_there_alone() {
    let fleet = TestFleet::new();
    let node = TestNode::start(&fleet, 0, 1);
    let (parent, trial) = (node.client(&fleet), name("trial"));
    let clone = parent.of_clone(trial.clone());
    let refused = clone.get(b"k".to_vec(), None).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    assert!(refused.message().contains("trial"), "{refused}");
    let store = node.store.add_clone(&trial);
    let at = parent.commit(put("k", "parent"), Timestamp::ZERO).await.unwrap();
    let there = clone.commit(put("k", "clone"), at).await.unwrap();
    assert!(there > at);
    let value = |r: Option<tidemark_proto::wire::kv::Record>| r.map(|r| r.value).unwrap_or_default();
    assert_eq!(value(parent.get(b"k".to_vec(), None).await.unwrap()), b"parent");
    assert_eq!(value(clone.get(b"k".to_vec(), None).await.unwrap()), b"clone");
    assert_eq!(clone.scan(Vec::new(), Vec::new(), None, 10).await.unwrap().records.len(), 1);
    assert_eq!((store.keys().len(), node.store.keys().len()), (1, 1));
    // Old clients go on beside; another one of the name is not the one that was opened.
    let _ = node.store.add_clone(&trial);
    assert_eq!(value(clone.get(b"k".to_vec(), None).await.unwrap()), b"clone");
    assert!(parent.of_clone(trial).get(b"k".to_vec(), None).await.unwrap().is_none());
}

/// Requests that were written without waiting for the answer, which is that there is no such clone.
#[tokio::test]
async fn no_request_for_a_clone_that_is_not_there_goes_to_the_parent() {
    let fleet = TestFleet::new();
    let node = TestNode::start(&fleet, 0, 1);
    let _ = node.client(&fleet).commit(put("k", "parent"), Timestamp::ZERO).await.unwrap();
    let _ = node.store.add_clone(&name("there"));
    let credentials = fleet.credentials("tidemark://operator/alice");
    let greeting = Greeting::of(credentials.identity(), Purpose::Kv, "test");
    let expected = Expected::Agent { cluster: CLUSTER.parse().unwrap(), node: node.name.clone() };
    let addresses = vec![node.address.to_string()];
    let endpoint = client_endpoint().unwrap();
    let dialer = Dialer::new(endpoint, &credentials, tls::ALPN_KV, expected, addresses, greeting).unwrap();
    let session = dialer.connect_once().await.unwrap();
    let (mut writer, mut reader) = open_bi(&session.connection).await.unwrap();
    let get = || Get { key: b"k".to_vec(), at: None };
    let scan = Scan { prefix: Vec::new(), from: Vec::new(), at: None, limit: 10 };
    let commit = || Commit { writes: put("astray", "v"), after: Timestamp::ZERO };
    for bad in ["nobody", "No name"] {
        writer.write_message(&OpenClone { name: bad.into() }).await.unwrap();
        writer.write_message(&get()).await.unwrap();
        writer.write_message(&scan).await.unwrap();
        writer.write_message(&commit()).await.unwrap();
    }
    writer.write_message(&OpenClone { name: "there".into() }).await.unwrap();
    writer.write_message(&get()).await.unwrap();
    writer.write_message(&commit()).await.unwrap();
    for code in [ErrorKind::NotFound, ErrorKind::Request].map(|k| k.code()) {
        for _ in 0..4 {
            let header = reader.read_header().await.unwrap().unwrap();
            assert_eq!(header.kind, Failure::KIND);
            let failure: Failure = reader.decode(header).await.unwrap();
            assert_eq!(failure.code, code, "{}", failure.message);
        }
    }
    assert_eq!(reader.read_message::<CloneOpened>().await.unwrap().at, Timestamp(7));
    assert_eq!(reader.read_message::<Value>().await.unwrap().record, None, "the clone is empty");
    assert!(reader.read_message::<Committed>().await.unwrap().at > Timestamp::ZERO);
    assert_eq!(node.store.keys(), vec![b"k".to_vec()]);
}
