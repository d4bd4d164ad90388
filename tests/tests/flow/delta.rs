//! Only what changed travels, and chains of deltas restore exactly.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_coordinator::catalog::BackupDetail;
use tidemark_coordinator::kv::Router;
use tidemark_tests::fleet::{AgentSpec, EngineKind, Fleet, Records, restore_of, write};

use crate::steps::{assert_holds, at_cut, fill};

/// Base records.
const RECORDS: u64 = 6000;

/// Changes, deletes and new keys: some 60 of them.
async fn change(router: &Router, rng: &mut StdRng) {
    for _ in 0..60 {
        let n = rng.random_range(0..RECORDS);
        let (load, own) = (format!("load:5:{n}").into_bytes(), format!("own:{n}").into_bytes());
        let value: Vec<u8> = (0..rng.random_range(0..300)).map(|_| rng.random()).collect();
        let _ = match rng.random_range(0..3) {
            0 => write(router, &load, None).await,
            1 => write(router, &own, Some(&value)).await,
            _ => write(router, &own, None).await,
        }
        .expect("a write");
    }
}

/// Four backups with changes between them; each restores to what a scan at its cut says.
async fn chain(change_agent: impl Fn(&mut AgentSpec)) {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster_with("orders", 2, change_agent).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 5, RECORDS).await;
    let mut rng = StdRng::seed_from_u64(11);
    let mut taken: Vec<(BackupDetail, Records)> = Vec::new();
    for round in 0..4 {
        if round > 0 {
            change(&router, &mut rng).await;
        }
        let backup = fleet.backup("orders").await.unwrap();
        let records = at_cut(&router, &backup).await;
        taken.push((backup, records));
    }
    let first = &taken[0].0;
    assert!(first.full_parts == first.parts && first.delta_parts == 0 && first.parent.is_empty(), "{first:?}");
    for (before, (backup, _)) in taken.iter().zip(&taken[1..]) {
        assert_eq!(backup.parent, before.0.root);
        // A part whose deltas pass half its base is written anew.
        assert!(backup.delta_parts > 20 && backup.delta_parts + backup.full_parts <= 60, "{backup:?}");
        assert!(backup.full_parts < 10, "{backup:?}");
        assert_eq!(backup.same_parts + backup.delta_parts + backup.full_parts, first.parts, "{backup:?}");
        assert!(backup.item.new_bytes < first.item.new_bytes / 5, "{backup:?} after {first:?}");
    }
    fleet.add_cluster("copy", 3).await;
    for (backup, records) in taken.iter().rev() {
        let mut request = restore_of("orders", "copy");
        (request.backup, request.in_place) = (backup.item.id.clone(), true);
        let _ = fleet.restore(&request).await.unwrap();
        assert_holds(&fleet, "copy", 3, records).await;
        let verified = fleet.verify("orders", &backup.item.id).await;
        assert!(verified.is_ok(), "{verified:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_deltas_by_the_engines_changes() {
    chain(|_| ()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_deltas_by_key_index() {
    chain(|agent| agent.delta = "key-index".into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_deltas_of_memory_agents() {
    chain(|agent| agent.engine = EngineKind::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_key_index_costs_a_full_run_and_nothing_else() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster_with("orders", 2, |agent| agent.delta = "key-index".into()).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 5, 1000).await;
    let first = fleet.backup("orders").await.unwrap();
    fleet.stop_agent("orders", "n1").await;
    std::fs::remove_dir_all(fleet.dir().join("orders-n1.state")).unwrap();
    fleet.restart_agent("orders", "n1");
    let router = fleet.router("orders", 2).await;
    let _ = write(&router, b"own:1", Some(b"new")).await.unwrap();
    let second = fleet.backup("orders").await.unwrap();
    assert!(second.full_parts > 0 && second.full_parts < first.parts, "{second:?}");
    assert_eq!(second.full_parts + second.delta_parts + second.same_parts, first.parts, "{second:?}");
    let expected = at_cut(&router, &second).await;
    fleet.add_cluster("copy", 2).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    assert_holds(&fleet, "copy", 2, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_the_next_backup_is_full() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 5, 500).await;
    let first = fleet.backup("orders").await.unwrap();
    let expected = at_cut(&router, &first).await;
    let mut request = restore_of("orders", "orders");
    request.in_place = true;
    let _ = fleet.restore(&request).await.unwrap();
    let second = fleet.backup("orders").await.unwrap();
    assert!(second.full_parts == second.parts && second.item.cut > first.item.cut, "{second:?}");
    let incarnation = |b: &BackupDetail| b.node_evidence[0].incarnation.clone();
    assert_ne!(incarnation(&first), incarnation(&second), "a restore is a new incarnation");
    assert_holds(&fleet, "orders", 2, &expected).await;
}
