//! Deletion and collection: what is needed stays, what is not goes, beside running backups and restores.

use rand::{Rng, RngExt, SeedableRng};
use tidemark_coordinator::catalog::BackupDetail;
use tidemark_coordinator::job::JobInfo;
use tidemark_coordinator::job::collect::{CollectReport, CollectRequest};
use tidemark_coordinator::kv::Router;
use tidemark_proto::ErrorKind;
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, restore_of, write};

use crate::steps::{Running, assert_holds, at_cut, fill};

async fn collect(fleet: &Fleet, dry_run: bool) -> CollectReport {
    let request = CollectRequest { cluster: Some("orders".parse().unwrap()), dry_run };
    let jobs: Vec<JobInfo> = fleet.api().post("repository/collect", &request).await.unwrap();
    assert_eq!(jobs.len(), 1);
    serde_json::from_value(fleet.api().job_end(&jobs[0]).await.unwrap()).unwrap()
}

async fn delete(fleet: &Fleet, backup: &str) {
    let _: serde_json::Value = fleet.api().delete(&format!("clusters/orders/backups/{backup}")).await.unwrap();
}

/// Bytes of the cluster's objects in the folder, ledger and events left out: they are history.
fn data_bytes(fleet: &Fleet) -> u64 {
    let root = fleet.repository().join("clusters/orders");
    ["packs", "roots", "jobs"].iter().map(|f| folder_bytes(&root.join(f))).sum()
}

fn folder_bytes(folder: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|e| if e.path().is_dir() { folder_bytes(&e.path()) } else { e.metadata().unwrap().len() })
        .sum()
}

/// Writes `count` of the keys below `keys` with values that do not compress.
async fn change(router: &Router, rng: &mut rand::rngs::StdRng, keys: std::ops::Range<u32>) {
    for n in keys {
        let mut value = vec![0; 1000];
        rng.fill_bytes(&mut value);
        let _ = write(router, format!("day:{n}").as_bytes(), Some(&value)).await.unwrap();
    }
}

const KEYS: u32 = 3000;
const DAYS: usize = 30;
const KEPT: usize = 7;

#[tokio::test(flavor = "multi_thread")]
async fn thirty_days_of_which_seven_are_kept_leave_little_that_is_dead() {
    // Few enough parts that each changes every day, as parts of a GiB of which 1 % changes do.
    let spec =
        CoordinatorSpec { sections: "[backup]\nslots_per_region = 1024".into(), ..CoordinatorSpec::default() };
    let mut fleet = Fleet::start_with(spec).await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    change(&router, &mut rng, 0..KEYS).await;
    let mut backups: Vec<BackupDetail> = Vec::new();
    let mut worst: f64 = 0.0;
    for day in 0..DAYS {
        for _ in 0..KEYS / 100 {
            let key = rng.random_range(0..KEYS);
            change(&router, &mut rng, key..key + 1).await;
        }
        backups.push(fleet.backup("orders").await.unwrap());
        if backups.len() > KEPT {
            delete(&fleet, &backups.remove(0).item.id).await;
        }
        let report = collect(&fleet, false).await;
        let share = report.dead_bytes as f64 / report.kept_bytes as f64;
        assert!(share < 0.25, "day {day}: {share:.3} of the store is dead: {report:?}");
        worst = worst.max(share);
        let live = collect(&fleet, true).await;
        assert_eq!((live.packs, live.manifest_objects, live.job_records), (0, 0, 0), "collected twice: {live:?}");
        assert_eq!(live.backups as usize, backups.len());
    }
    assert!(worst > 0.0, "no pack ever had dead bytes in it: this test shows nothing");
    // Every backup that is left restores; the oldest one builds on runs of days that are long deleted.
    let expected = at_cut(&router, &backups[KEPT - 1]).await;
    fleet.add_cluster("copy", 3).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    assert_holds(&fleet, "copy", 3, &expected).await;
    for backup in &backups {
        let _ = fleet.verify("orders", &backup.item.id).await.unwrap();
    }
    // Backups are deleted in any order; the last one needs what the others shared.
    for n in [3, 0, 5, 1, 4, 2] {
        delete(&fleet, &backups[n].item.id).await;
    }
    let _ = collect(&fleet, false).await;
    let _ = fleet.verify("orders", &backups[6].item.id).await.unwrap();
    let before = data_bytes(&fleet);
    delete(&fleet, &backups[6].item.id).await;
    let last = collect(&fleet, false).await;
    assert!(last.packs > 0 && last.kept_bytes == 0, "{last:?}");
    assert_eq!(data_bytes(&fleet), 0, "of {before} bytes");
    let refused = fleet.verify("orders", &backups[6].item.id).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    // And the history goes on.
    let again = fleet.backup("orders").await.unwrap();
    assert!(again.item.records == u64::from(KEYS) && again.delta_parts == 0, "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_touches_nothing_and_orphans_of_dead_jobs_are_found() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 500).await;
    let backup = fleet.backup("orders").await.unwrap();
    // What a coordinator leaves that was killed in the middle of a pack, after a pack, and before its ledger entry.
    let orders = fleet.repository().join("clusters/orders");
    let pack = fleet.packs("orders").remove(0);
    let orphan = orders.join("packs/ab/ab0123456789abcdef0123456789abcd");
    std::fs::create_dir_all(orphan.parent().unwrap()).unwrap();
    let _ = std::fs::copy(&pack, &orphan).unwrap();
    let staged = orders.join("packs/ab/abffffffffffffffffffffffffffffff#1");
    std::fs::write(&staged, b"half a pack").unwrap();
    let root = orders.join(format!("roots/{}", "ab".repeat(32)));
    std::fs::write(&root, b"a root without an entry").unwrap();
    let stranger = orders.join("packs/notes.txt");
    std::fs::write(&stranger, b"somebody's").unwrap();
    let entries = || std::fs::read_dir(orders.join("ledger")).unwrap().count();
    let before = entries();
    let dry = collect(&fleet, true).await;
    assert!(dry.packs == 1 && dry.manifest_objects == 1 && dry.job_records > 0, "{dry:?}");
    assert!(orphan.exists() && root.exists() && staged.exists() && entries() == before, "a dry run writes nothing");
    let done = collect(&fleet, false).await;
    assert_eq!((done.packs, done.pack_bytes, done.staged_files), (1, dry.pack_bytes, 1), "{done:?}");
    assert!(!orphan.exists() && !root.exists() && !staged.exists() && stranger.exists());
    let _ = fleet.verify("orders", &backup.item.id).await.unwrap();
    // The next backup builds on what was kept.
    assert_eq!(fleet.backup("orders").await.unwrap().full_parts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn collection_runs_beside_backups_and_restores() {
    let sections = "[backup]\nslots_per_region = 64\n[memory]\ningest_mib = 6\nserve_mib = 6";
    let spec = CoordinatorSpec { sections: sections.into(), ..CoordinatorSpec::default() };
    let mut fleet = Fleet::start_with(spec).await;
    fleet.add_cluster("orders", 2).await;
    fleet.add_cluster("copy", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 3000).await;
    let first = fleet.backup("orders").await.unwrap();
    let expected = at_cut(&router, &first).await;
    let load = Running::start(&router, 2, 500);
    // A restore of a backup that is deleted and collected while it is read, and backups whose parents go.
    let mut request = restore_of("orders", "copy");
    request.backup = first.item.id.clone();
    let restore: JobInfo = fleet.api().post("restores", &request).await.unwrap();
    tidemark_tests::fleet::eventually("the restore to be loading", async || {
        let job = fleet.api().job(&restore).await;
        assert!(!tidemark_tests::fleet::ended(&job), "the restore was done before its backup could be deleted");
        (job.phase == "loading parts").then_some(())
    })
    .await;
    delete(&fleet, &first.item.id).await;
    let held = collect(&fleet, false).await;
    assert_eq!((held.backups, held.held_backups, held.packs), (0, 1, 0), "{held:?}");
    for _ in 0..5 {
        let job = fleet.start_backup("orders").await.unwrap();
        let collected = collect(&fleet, false);
        let (_, backup) = tokio::join!(collected, fleet.api().job_end(&job));
        let backup: BackupDetail = serde_json::from_value(backup.unwrap()).unwrap();
        let _ = fleet.verify("orders", &backup.item.id).await.unwrap();
        delete(&fleet, &backup.item.id).await;
    }
    let _ = fleet.api().job_end(&restore).await.unwrap();
    let _ = load.stop().await;
    assert_holds(&fleet, "copy", 2, &expected).await;
    // The reader has left: its backup is garbage now.
    let after = collect(&fleet, false).await;
    assert!(after.held_backups == 0 && after.kept_bytes == 0, "{after:?}");
    assert!(fleet.verify("orders", &first.item.id).await.is_err());
}
