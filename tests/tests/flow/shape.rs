//! Restore into another shape: more nodes, fewer nodes, some keys, another engine.

use tidemark_coordinator::kv::check;
use tidemark_tests::fleet::{EngineKind, Fleet, Records, records_at, restore_of};

use crate::steps::{Running, assert_holds, assert_same, assert_takes_writes, at_cut, chains_have, fill};

/// Takes a backup under a load of causal chains and restores it onto another shape.
async fn under_load(from: u16, to: u16) {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", from).await;
    let router = fleet.router("orders", usize::from(from)).await;
    let load = Running::start(&router, 1, 3000);
    chains_have(&router, 200).await;
    let backup = fleet.backup("orders").await.unwrap();
    chains_have(&router, check(&router, None).await.unwrap().chain_steps + 100).await;
    let report = load.stop().await;
    assert!(report.chain_steps > 300, "{report:?}");
    assert_eq!(backup.node_evidence.len(), usize::from(from));
    for node in &backup.node_evidence {
        assert_eq!(node.held_at, node.sealed_at, "{node:?}");
        assert!(node.max_timestamp < backup.item.cut, "{node:?}");
        assert!(node.held_micros < 250_000, "writes were held for longer than the budget: {node:?}");
    }
    let expected = at_cut(&router, &backup).await;
    fleet.add_cluster("copy", to).await;
    let restored = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    assert_eq!(restored["records"], expected.len());
    assert_holds(&fleet, "copy", usize::from(to), &expected).await;
    assert_takes_writes(&fleet, "copy", usize::from(to)).await;
    // The source went on and is as it was.
    assert!(records_at(&router, None).await.len() > expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_onto_five_under_load() {
    under_load(3, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_onto_two_under_load() {
    under_load(5, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_keys_that_the_filter_takes() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 7, 1000).await;
    let backup = fleet.backup("orders").await.unwrap();
    let takes = |key: &[u8]| {
        let n = key.strip_prefix(b"load:7:").expect("a load record");
        n.starts_with(b"1") && !n.starts_with(b"12")
    };
    let mut expected = at_cut(&router, &backup).await;
    expected.retain(|k, _| takes(k));
    assert!(expected.len() > 50);
    fleet.add_cluster("copy", 3).await;
    let mut request = restore_of("orders", "copy");
    request.keys = vec!["load:7:1*".into(), "!load:7:12*".into()];
    let restored = fleet.restore(&request).await.unwrap();
    assert_eq!(restored["records"], expected.len());
    assert_holds(&fleet, "copy", 3, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_split_by_size_and_come_back() {
    let sections = "[backup]\nslots_per_region = 8192".to_owned();
    let spec = tidemark_tests::fleet::CoordinatorSpec { sections, ..Default::default() };
    let mut fleet = Fleet::start_with(spec).await;
    fleet.add_cluster_with("orders", 2, |agent| agent.part_bytes = 64 << 10).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 3, 4000).await;
    let first = fleet.backup("orders").await.unwrap();
    assert!(first.parts >= 6, "two regions in parts of 64 KiB: {first:?}");
    // Deltas on parts that end inside a region.
    fill(&router, 4, 50).await;
    let second = fleet.backup("orders").await.unwrap();
    assert!(second.parts >= first.parts && second.full_parts == 0 && second.delta_parts > 0, "{second:?}");
    let expected = at_cut(&router, &second).await;
    fleet.add_cluster("copy", 3).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    assert_holds(&fleet, "copy", 3, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_and_odd_records_come_back() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    let mut expected = Records::new();
    let mut put = |key: &[u8], value: Vec<u8>| drop(expected.insert(key.to_vec(), value));
    put(b"long", (0..5u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect());
    put(b"just one MiB", vec![7; 1 << 20]);
    put(b"a byte over", vec![8; (1 << 20) + 1]);
    put(b"empty", Vec::new());
    put(b"\x00\xff\x00", b"binary key".to_vec());
    put(&[b'k'; 2000], b"long key".to_vec());
    for tag in 0..200 {
        put(format!("{{same slot}}:{tag}").as_bytes(), vec![tag as u8; tag]);
    }
    for (key, value) in &expected {
        let _ = tidemark_tests::fleet::write(&router, key, Some(value)).await.unwrap();
    }
    let _ = fleet.backup("orders").await.unwrap();
    fleet.add_cluster("copy", 3).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    let copy = fleet.router("copy", 3).await;
    assert_same(&records_at(&copy, None).await, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_agents_onto_embedded_and_back() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster_with("orders", 2, |agent| agent.engine = EngineKind::Memory).await;
    let router = fleet.router("orders", 2).await;
    let load = Running::start(&router, 1, 1000);
    chains_have(&router, 100).await;
    let backup = fleet.backup("orders").await.unwrap();
    let _ = load.stop().await;
    let expected = at_cut(&router, &backup).await;
    fleet.add_cluster("disk", 3).await;
    let _ = fleet.restore(&restore_of("orders", "disk")).await.unwrap();
    assert_holds(&fleet, "disk", 3, &expected).await;
    let again = fleet.backup("disk").await.unwrap();
    assert_eq!(again.item.records, expected.len() as u64);
    fleet.add_cluster_with("memory", 1, |agent| agent.engine = EngineKind::Memory).await;
    let _ = fleet.restore(&restore_of("disk", "memory")).await.unwrap();
    assert_holds(&fleet, "memory", 1, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_nothing_finds_the_last_writes() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 3).await;
    let router = fleet.router("orders", 3).await;
    fill(&router, 1, 100).await;
    // One node after the other has the last word.
    for node in 0..3 {
        let key = (0..).map(|n| format!("last:{n}").into_bytes()).find(|k| router.node_of(k) == node).unwrap();
        let _ = tidemark_tests::fleet::write(&router, &key, Some(b"here")).await.unwrap();
        let stranger = fleet.router("orders", 3).await;
        assert!(records_at(&stranger, None).await.contains_key(&key), "node {node}");
    }
}
