//! The log: every change reaches the repository once and in order, whatever dies meanwhile, and what is restorable is told.

use std::collections::BTreeMap;

use tidemark_common::segment::each_entry;
use tidemark_coordinator::log::{Found, PitrStatus, Walk};
use tidemark_coordinator::repository::{Ledger, MasterKey, Repository, Store, StoreConfig};
use tidemark_proto::{ClusterName, Timestamp};
use tidemark_tests::fleet::{EngineKind, Fleet, eventually, write};

use crate::steps::{Running, chains_have, fill};

/// Every version of every key that the log holds.
type Versions = BTreeMap<(Vec<u8>, Timestamp), Option<Vec<u8>>>;

async fn repository(fleet: &Fleet) -> Repository {
    let url = format!("file://{}", fleet.repository().display());
    let store = Store::open(&StoreConfig { url, ..StoreConfig::default() }).expect("store");
    let key = MasterKey::load(Some(&fleet.dir().join("master.key"))).expect("key");
    Repository::open(store, key.as_ref()).await.expect("repository")
}

/// Reads the log as it lies in the repository. A change that is there twice is an error.
async fn logged(fleet: &Fleet, cluster: &str) -> Versions {
    let (repository, cluster) = (repository(fleet).await, ClusterName::new(cluster).expect("name"));
    let ledger = Ledger::load(&repository, &cluster).await.expect("ledger");
    let mut walk = Walk::over(&repository, &ledger).await.expect("segments");
    let mut versions = Versions::new();
    while let Some(found) = walk.next().await.expect("a footer") {
        let Found::Segment(info) = found else { panic!("{found:?}") };
        let path = info.range.path(&cluster);
        let bytes = repository.store().get(&path).await.expect("segment");
        let segment = repository.check_segment(&cluster, info.range, &bytes).expect("a whole segment").segment;
        for chunk in &segment.chunks {
            let sealed = bytes[chunk.offset as usize..chunk.offset as usize + chunk.len as usize].to_vec();
            let raw = repository.open_segment_chunk(&cluster, &segment, chunk, sealed).expect("a chunk");
            each_entry(&raw, |e| {
                let value = e.put.map(|(_, value)| value.to_vec());
                assert!(versions.insert((e.key.to_vec(), e.at), value).is_none(), "a change is there twice");
                Ok(())
            })
            .expect("entries");
        }
    }
    versions
}

pub(crate) async fn status(fleet: &Fleet) -> PitrStatus {
    fleet.api().get("clusters/orders/pitr").await.expect("status")
}

/// Waits until everything up to `at` can be restored.
pub(crate) async fn restorable_to(fleet: &Fleet, at: Timestamp) -> PitrStatus {
    eventually("a window up to a time", async || {
        let status = status(fleet).await;
        status.windows.last().is_some_and(|w| w.latest >= at.0 && w.ended.is_empty()).then_some(status)
    })
    .await
}

pub(crate) async fn enable(fleet: &Fleet) {
    let out = fleet
        .tidemark(&["pitr", "enable", "--cluster", "orders", "--interval-ms", "200", "--idle-ms", "1000"])
        .await;
    assert!(out.contains("log") && out.contains("on"), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_is_logged_once_and_the_window_begins_by_itself() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 3).await;
    let router = fleet.router("orders", 3).await;
    fill(&router, 5, 2000).await;
    enable(&fleet).await;
    let mut written = Versions::new();
    let mut last = Timestamp::ZERO;
    for n in 0..300u32 {
        let key = format!("key:{}", n % 70).into_bytes();
        let value = (!n.is_multiple_of(7)).then(|| n.to_le_bytes().repeat(20));
        last = write(&router, &key, value.as_deref()).await.expect("a write");
        let _ = written.insert((key, last), value);
    }
    let status = restorable_to(&fleet, last).await;
    assert!(status.healthy && status.nodes.iter().all(|n| n.streaming), "{status:?}");
    assert_eq!(fleet.backups("orders").await.len(), 1, "the base was taken by itself");
    let began = status.windows[0].earliest;
    let found = logged(&fleet, "orders").await;
    let after = |versions: &Versions| -> Versions {
        versions.iter().filter(|((_, at), _)| at.0 > began).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    assert_eq!(after(&found), after(&written));
    let shown = fleet.tidemark(&["cluster", "show", "orders"]).await;
    assert!(shown.contains("restorable: "), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_goes_on_over_restarts_of_everything() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 3).await;
    let router = fleet.router("orders", 3).await;
    fill(&router, 5, 500).await;
    enable(&fleet).await;
    let load = Running::start(&router, 6, 500);
    chains_have(&router, 200).await;
    let first = restorable_to(&fleet, Timestamp(1)).await;
    let lag = r#"tidemark_coordinator_log_lag_seconds{cluster="orders",node="n2"}"#;
    let rpo = r#"tidemark_coordinator_log_rpo_seconds{cluster="orders"}"#;
    let told = fleet.scrape().await;
    assert!(told.value(lag) < 600.0 && told.value(rpo) < 600.0, "{}", told.text);
    let _ = fleet.tidemark(&["pitr", "pause", "--cluster", "orders"]).await;
    let told = fleet.scrape().await;
    assert!(told.value(lag).is_nan() && told.value(rpo).is_nan(), "nobody knows while nothing is streamed");
    fleet.agent("orders", "n2").process.kill().await;
    fleet.revive_agent("orders", "n2").await;
    fleet.coordinator().process.signal(nix::sys::signal::Signal::SIGKILL);
    fleet.revive_coordinator().await;
    let paused = fleet.tidemark(&["pitr", "status", "--cluster", "orders"]).await;
    assert!(paused.contains("paused"), "{paused}");
    assert!(status(&fleet).await.segments > 0, "what is stored is told of also while nothing runs");
    let resumed = fleet.tidemark(&["pitr", "resume", "--cluster", "orders"]).await;
    assert!(resumed.contains("RESTORABLE FROM"), "what stands can be restored also now: {resumed}");
    let router = fleet.router("orders", 3).await;
    chains_have(&router, 600).await;
    let _ = load.stop().await;
    let last = write(&router, b"last", Some(b"1")).await.expect("a write");
    let status = restorable_to(&fleet, last).await;
    assert_eq!((status.windows.len(), status.windows[0].earliest), (1, first.windows[0].earliest), "{status:?}");
    let found = logged(&fleet, "orders").await;
    assert!(found.contains_key(&(b"last".to_vec(), last)));
}

/// The objects of the log, oldest first.
pub(crate) fn segment_files(fleet: &Fleet) -> Vec<std::path::PathBuf> {
    let dir = fleet.repository().join("clusters/orders/log");
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("folder").map(|f| f.expect("file").path()).collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_segment_is_named_ends_the_window_and_a_new_one_begins() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    enable(&fleet).await;
    let _ = restorable_to(&fleet, Timestamp(1)).await;
    let before = write(&router, b"before", Some(&[1; 5000])).await.expect("a write");
    let _ = restorable_to(&fleet, before).await;
    let many = segment_files(&fleet).len();
    let lost = write(&router, b"lost", Some(&[2; 5000])).await.expect("a write");
    let _ = restorable_to(&fleet, lost).await;
    let path = segment_files(&fleet)[many..]
        .iter()
        .max_by_key(|path| std::fs::metadata(path).expect("metadata").len())
        .expect("a segment with the write")
        .clone();
    let mut bytes = std::fs::read(&path).expect("segment");
    bytes[20] ^= 1;
    std::fs::write(&path, bytes).expect("damage");
    let name = path.file_name().expect("name").to_str().expect("UTF-8").to_owned();
    let found: Vec<_> = fleet.check_repository().await.into_iter().filter_map(Result::err).collect();
    assert!(found.len() == 1 && found[0].message().contains(&name), "{found:?}");
    let status = eventually("a window behind the damage", async || {
        let status = status(&fleet).await;
        (status.windows.len() == 2 && status.healthy).then_some(status)
    })
    .await;
    let first = &status.windows[0];
    assert!(first.latest >= before.0 && first.latest < lost.0, "{status:?}");
    assert!(first.ended.contains(name.trim_start_matches('0')), "{status:?}");
    assert!(status.windows[1].earliest > lost.0, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_backups_shortens_the_window_and_collection_takes_the_log_before() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    enable(&fleet).await;
    let _ = restorable_to(&fleet, Timestamp(1)).await;
    for n in 0..20u32 {
        let at = write(&router, b"key", Some(&n.to_le_bytes())).await.expect("a write");
        let _ = restorable_to(&fleet, at).await;
    }
    let second = fleet.backup("orders").await.expect("a backup");
    let last = write(&router, b"key", Some(b"last")).await.expect("a write");
    let status = restorable_to(&fleet, last).await;
    let first = &status.windows[0];
    assert!(first.bases.len() == 2 && first.earliest < second.item.cut, "{status:?}");
    let oldest = first.bases[0].clone();
    let _ = fleet.tidemark(&["backup", "delete", &oldest, "--cluster", "orders", "-y"]).await;
    let before = segment_files(&fleet).len();
    let told = fleet.tidemark(&["repo", "gc", "-o", "json"]).await;
    assert!(told.contains("log_segments"), "{told}");
    let after = segment_files(&fleet).len();
    assert!(after + 10 < before, "{before} -> {after}");
    let status = restorable_to(&fleet, last).await;
    assert_eq!((status.windows.len(), status.windows[0].earliest), (1, second.item.cut), "{status:?}");
    // What is left is whole, also for whoever reads it anew.
    fleet.restart_coordinator().await;
    let _ = fleet.ready("orders", 2).await;
    let status = restorable_to(&fleet, last).await;
    assert_eq!((status.windows.len(), status.windows[0].earliest), (1, second.item.cut), "{status:?}");
    assert!(fleet.check_repository().await.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_a_log_is_refused_and_an_idle_one_has_nothing_to_lose() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster_with("other", 1, |spec| spec.engine = EngineKind::Memory).await;
    let refused = fleet.try_tidemark(&["pitr", "enable", "--cluster", "other"]).await.unwrap_err();
    assert!(refused.contains("have no log yet") && refused.contains("backup create"), "{refused}");
    let told = fleet.tidemark(&["pitr", "status", "--cluster", "other"]).await;
    assert!(told.contains("off"), "nothing was entered: {told}");
    fleet.add_cluster("orders", 2).await;
    let out = fleet
        .tidemark(&["pitr", "enable", "--cluster", "orders", "--interval-ms", "200", "--idle-ms", "600000"])
        .await;
    assert!(out.contains("on"), "{out}");
    let before = restorable_to(&fleet, Timestamp(1)).await.windows[0].latest;
    // No segment comes for ten minutes, and yet nothing would be lost.
    let end = Timestamp::new(Timestamp(before).millis() + 3000, 0);
    let status = eventually("three idle seconds", async || {
        let status = status(&fleet).await;
        status.nodes.iter().all(|n| n.safe > end.0).then_some(status)
    })
    .await;
    assert!(status.rpo_millis < 3000 && status.nodes.iter().all(|n| n.closed < end.0), "{status:?}");
}
