//! Steps that scenarios share.

use std::time::Duration;

use tidemark_coordinator::catalog::BackupDetail;
use tidemark_coordinator::kv::{LoadOptions, LoadReport, Router, check, load};
use tidemark_proto::Timestamp;
use tidemark_tests::fleet::{Fleet, Records, eventually, load_options, records_at, write};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A load that runs until it is told to stop.
pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<tidemark_proto::Result<LoadReport>>,
}

impl Running {
    /// Writes base records, then updates them without an end, with causal chains beside.
    pub(crate) fn start(router: &Router, seed: u64, records: u64) -> Self {
        let (router, stop) = (router.another_client(), CancellationToken::new());
        let options = LoadOptions {
            duration: Some(Duration::from_secs(3600)),
            chains: 4,
            rate: 4000,
            patience: Duration::from_secs(20),
            ..load_options(seed, records)
        };
        let token = stop.clone();
        let task = tokio::spawn(async move { load(&router, &options, token).await });
        Self { stop, task }
    }

    /// Stops it; it must have gone well.
    pub(crate) async fn stop(self) -> LoadReport {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("a load without a refusal")
    }
}

/// Writes `records` records and waits for all of them.
pub(crate) async fn fill(router: &Router, seed: u64, records: u64) {
    let _ = load(router, &load_options(seed, records), CancellationToken::new()).await.expect("load");
}

/// Waits until `steps` steps of chains are there.
pub(crate) async fn chains_have(router: &Router, steps: u64) {
    eventually("steps of chains", async || {
        let found = check(router, None).await.expect("check");
        (found.chain_steps >= steps).then_some(())
    })
    .await;
}

/// What a backup must hold: a scan at its cut.
pub(crate) async fn at_cut(router: &Router, backup: &BackupDetail) -> Records {
    let records = records_at(router, Some(Timestamp(backup.item.cut))).await;
    assert_eq!(records.len() as u64, backup.item.records, "records of the backup");
    records
}

/// Tells where two states differ, without showing a thousand records.
pub(crate) fn assert_same(found: &Records, expected: &Records) {
    let name = |key: &Vec<u8>| String::from_utf8_lossy(key).into_owned();
    let missing: Vec<_> = expected.keys().filter(|k| !found.contains_key(*k)).take(5).map(name).collect();
    let strange: Vec<_> = found.keys().filter(|k| !expected.contains_key(*k)).take(5).map(name).collect();
    let other: Vec<_> = expected
        .iter()
        .filter(|(k, v)| found.get(*k).is_some_and(|f| f != *v))
        .take(5)
        .map(|(k, _)| name(k))
        .collect();
    let none: Vec<String> = Vec::new();
    assert_eq!((missing, strange, other), (none.clone(), none.clone(), none), "missing, strange, other values");
}

/// The cluster holds exactly `expected`, and what loads wrote there is consistent.
pub(crate) async fn assert_holds(fleet: &Fleet, cluster: &str, nodes: usize, expected: &Records) {
    let router = fleet.router(cluster, nodes).await;
    assert_same(&records_at(&router, None).await, expected);
    let checked = check(&router, None).await.expect("check");
    assert!(checked.is_clean(), "{checked:?}");
}

/// The cluster takes writes and gives them back.
pub(crate) async fn assert_takes_writes(fleet: &Fleet, cluster: &str, nodes: usize) {
    let router = fleet.router(cluster, nodes).await;
    for n in 0..20 {
        let key = format!("probe:{n}").into_bytes();
        let _ = write(&router, &key, Some(b"here")).await.expect("a write");
        assert_eq!(router.get(key.clone(), None).await.expect("a read").expect("a record").value, b"here");
        let _ = write(&router, &key, None).await.expect("a delete");
    }
}
