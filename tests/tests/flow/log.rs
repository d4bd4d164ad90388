//! The log: every change reaches the repository once and in order, whatever dies meanwhile, and what is restorable is told.

use std::collections::BTreeMap;

use tidemark_common::segment::each_entry;
use tidemark_coordinator::log::{Found, LogIndex, PitrStatus};
use tidemark_coordinator::repository::{MasterKey, Repository, Store, StoreConfig};
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Timestamp};
use tidemark_tests::fleet::{Fleet, eventually, write};

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
    let index = LogIndex::load(&repository, &cluster, 1).await.expect("index");
    let mut versions = Versions::new();
    for found in index.entries() {
        let Found::Segment(info) = found else { panic!("{found:?}") };
        let path = paths::log(&cluster, info.number);
        let bytes = repository.store().get(&path).await.expect("segment");
        let segment = repository.check_segment(&cluster, info.number, &bytes).expect("a whole segment").segment;
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
        let value = (n % 7 != 0).then(|| n.to_le_bytes().repeat(20));
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
    let _ = fleet.tidemark(&["pitr", "pause", "--cluster", "orders"]).await;
    fleet.agent("orders", "n2").process.kill().await;
    fleet.revive_agent("orders", "n2").await;
    fleet.coordinator().process.signal(nix::sys::signal::Signal::SIGKILL);
    fleet.revive_coordinator().await;
    let paused = fleet.tidemark(&["pitr", "status", "--cluster", "orders"]).await;
    assert!(paused.contains("paused"), "{paused}");
    let _ = fleet.tidemark(&["pitr", "resume", "--cluster", "orders"]).await;
    let router = fleet.router("orders", 3).await;
    chains_have(&router, 600).await;
    let _ = load.stop().await;
    let last = write(&router, b"last", Some(b"1")).await.expect("a write");
    let status = restorable_to(&fleet, last).await;
    assert_eq!((status.windows.len(), status.windows[0].earliest), (1, first.windows[0].earliest), "{status:?}");
    let found = logged(&fleet, "orders").await;
    assert!(found.contains_key(&(b"last".to_vec(), last)));
}
