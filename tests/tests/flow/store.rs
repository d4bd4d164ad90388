//! Object stores on their worst days: an S3 server that throttles, falls silent, cuts answers off, forgets to say what it
//! did; stores that ignore conditions; full disks.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::Method;
use tidemark_coordinator::job::JobState;
use tidemark_proto::ErrorKind;
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, binary, eventually, records_at, restore_of};
use tidemark_tests::s3::{Asked, Conditions, Fault, S3};

use crate::steps::{assert_holds, assert_takes_writes, at_cut, fill};

/// Seconds before a request without an answer is given up: short, for tests.
const REQUEST_TIMEOUT: u64 = 2;

fn on(s3: &S3) -> CoordinatorSpec {
    CoordinatorSpec {
        url: s3.url(),
        options: s3.options(),
        repository: format!("request_timeout_seconds = {REQUEST_TIMEOUT}"),
        sections: "[backup]\nslots_per_region = 512".into(),
        ..CoordinatorSpec::default()
    }
}

async fn fleet_on(s3: &S3) -> Fleet {
    let mut fleet = Fleet::start_with(on(s3)).await;
    fleet.add_cluster("orders", 2).await;
    fill(&fleet.router("orders", 2).await, 1, 3000).await;
    fleet
}

/// A backup, its verification and its restore come through.
async fn comes_through(fleet: &mut Fleet) {
    let router = fleet.router("orders", 2).await;
    let backup = fleet.backup("orders").await.unwrap();
    let expected = at_cut(&router, &backup).await;
    let _ = fleet.verify("orders", &backup.item.id).await.unwrap();
    fleet.add_cluster("copy", 3).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    assert_holds(fleet, "copy", 3, &expected).await;
    // What the faults left in the history is one backup, no more.
    let backups = fleet.backups("orders").await;
    assert_eq!(backups.len(), 1, "{backups:?}");
    let checked = fleet.check_repository().await;
    assert!(checked.iter().all(Result::is_ok), "{checked:?}");
}

/// Fails each `every`th request in the way that `fault` says.
fn each(every: u64, fault: impl Fn(u64) -> Fault + Send + Sync + 'static) -> impl Fn(&Asked) -> Option<Fault> {
    let seen = AtomicU64::new(0);
    move |_| {
        let n = seen.fetch_add(1, Ordering::Relaxed) + 1;
        n.is_multiple_of(every).then(|| fault(n / every))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_slows_down_and_fails_nothing() {
    let s3 = S3::start(Conditions::Honoured).await;
    let mut fleet = fleet_on(&s3).await;
    s3.misbehave(each(3, |n| Fault::Refused(if n.is_multiple_of(2) { 503 } else { 429 })));
    comes_through(&mut fleet).await;
    assert!(s3.faults() > 20, "{}", s3.faults());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_everything_for_a_while() {
    let s3 = S3::start(Conditions::Honoured).await;
    let fleet = fleet_on(&s3).await;
    let router = fleet.router("orders", 2).await;
    let until = Arc::new(Mutex::new(None::<Instant>));
    let away = until.clone();
    // From the first pack on, for eight seconds.
    s3.misbehave(move |asked| {
        let mut until = away.lock().unwrap();
        if until.is_none() && asked.method == Method::PUT && asked.key.contains("/packs/") {
            *until = Some(Instant::now() + Duration::from_secs(8));
        }
        until.filter(|end| Instant::now() < *end).map(|_| Fault::Refused(503))
    });
    let backup = fleet.backup("orders").await.unwrap();
    assert!(until.lock().unwrap().is_some_and(|end| Instant::now() > end), "the backup did not wait");
    s3.behave();
    assert_eq!(at_cut(&router, &backup).await.len(), 3000);
    let _ = fleet.verify("orders", &backup.item.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_that_won_although_their_answer_said_otherwise() {
    let s3 = S3::start(Conditions::Honoured).await;
    let mut fleet = fleet_on(&s3).await;
    // The first put of every ledger entry, job record and manifest object is done and then denied.
    let denied = Mutex::new(std::collections::HashSet::new());
    s3.misbehave(move |asked| {
        let first = asked.method == Method::PUT
            && !asked.query.contains_key("uploadId")
            && denied.lock().unwrap().insert(asked.key.clone());
        first.then_some(Fault::DoneAndRefused(500))
    });
    comes_through(&mut fleet).await;
    assert!(s3.faults() > 5, "{}", s3.faults());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_entry_that_was_put_without_a_word() {
    let s3 = S3::start(Conditions::Honoured).await;
    let mut fleet = fleet_on(&s3).await;
    let silent = AtomicU64::new(0);
    s3.misbehave(move |asked| {
        let entry = asked.method == Method::PUT && asked.key.contains("/ledger/");
        (entry && silent.fetch_add(1, Ordering::Relaxed) < 3).then_some(Fault::DoneAndSilent)
    });
    comes_through(&mut fleet).await;
    assert_eq!(s3.faults(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_slow_cut_off_or_short() {
    let s3 = S3::start(Conditions::Honoured).await;
    let mut fleet = fleet_on(&s3).await;
    let faults = each(4, |n| match n % 3 {
        0 => Fault::Slow(Duration::from_millis(20)),
        1 => Fault::CutOff,
        _ => Fault::Short,
    });
    s3.misbehave(move |asked| {
        faults(asked).filter(|_| asked.method == Method::GET && asked.key.contains("/packs/"))
    });
    comes_through(&mut fleet).await;
    assert!(s3.faults() > 5, "{}", s3.faults());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_for_good_fails_the_backup_and_nothing_else() {
    let s3 = S3::start(Conditions::Honoured).await;
    let fleet = fleet_on(&s3).await;
    let first = fleet.backup("orders").await.unwrap();
    let router = fleet.router("orders", 2).await;
    fill(&router, 2, 500).await;
    s3.misbehave(|asked| {
        (asked.method != Method::GET && asked.key.contains("/packs/")).then_some(Fault::Refused(403))
    });
    let error = fleet.backup("orders").await.unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && error.message().contains("/packs/"), "{error}");
    assert_takes_writes(&fleet, "orders", 2).await;
    s3.behave();
    let listed = fleet.backups("orders").await;
    assert_eq!((listed[0].state.as_str(), listed[1].id.as_str()), ("failed", first.item.id.as_str()));
    assert!(listed[0].reason.contains("/packs/"), "{:?}", listed[0]);
    let second = fleet.backup("orders").await.unwrap();
    assert_eq!((second.item.records, second.parent), (3500, first.root));
    assert_eq!(s3.open_uploads(), 0, "uploads that were begun are called off");
}

fn init(s3: &S3) -> std::process::Output {
    let mut command = Command::new(binary("tidemark"));
    let _ = command.args(["repo", "init", "--repository", &s3.url(), "--insecure-no-encryption"]);
    for (name, value) in s3.options() {
        let _ = command.args(["--option", &format!("{name}={value}")]);
    }
    command.output().expect("tidemark")
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_do_not_honour_conditions_are_refused() {
    for conditions in [Conditions::Ignored, Conditions::CheckedThenWritten] {
        let s3 = S3::start(conditions).await;
        let refused = tokio::task::block_in_place(|| init(&s3));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("If-None-Match"), "{conditions:?}: {said}");
        assert!(!s3.keys().iter().any(|k| k.ends_with("repository/repository")), "{:?}", s3.keys());
    }
    let s3 = S3::start(Conditions::Honoured).await;
    let made = tokio::task::block_in_place(|| init(&s3));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A small file system in memory; gone when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &std::path::Path, size: &str) -> Self {
        std::fs::create_dir_all(at).expect("folder");
        let options = format!("size={size}");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output();
        let done = done.expect("mount");
        assert!(
            done.status.success(),
            "this test mounts a tmpfs, as root: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        Self(at.to_owned())
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        let done = Command::new("mount").args(["-o", &options]).arg(&self.0).status().expect("mount");
        assert!(done.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Values that do not compress.
async fn fill_raw(fleet: &Fleet, seed: u64, count: u32) {
    use rand::{Rng, SeedableRng};
    let router = fleet.router("orders", 2).await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    for n in 0..count {
        let mut value = vec![0; 4000];
        rng.fill_bytes(&mut value);
        let _ = tidemark_tests::fleet::write(&router, format!("raw:{seed}:{n}").as_bytes(), Some(&value))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_repository() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&dir.path().join("disk"), "3m");
    let url = format!("file://{}/repository", disk.0.display());
    let spec = CoordinatorSpec { url, ..CoordinatorSpec::default() };
    let mut fleet = Fleet::start_with(spec).await;
    fleet.add_cluster("orders", 2).await;
    fill_raw(&fleet, 1, 200).await;
    let first = fleet.backup("orders").await.unwrap();
    let router = fleet.router("orders", 2).await;
    let expected = at_cut(&router, &first).await;
    fill_raw(&fleet, 2, 1000).await;
    // Several times: what a failed one leaves open is missing to the next.
    for _ in 0..4 {
        let error = fleet.backup("orders").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    }
    assert_takes_writes(&fleet, "orders", 2).await;
    // Nothing is lost, and with room the next one works without help.
    let _ = fleet.verify("orders", &first.item.id).await.unwrap();
    disk.resize("64m");
    let second = fleet.backup("orders").await.unwrap();
    assert_eq!((second.item.records, second.parent.as_str()), (1200, first.root.as_str()));
    fleet.add_cluster("copy", 2).await;
    let mut request = restore_of("orders", "copy");
    request.backup = first.item.id.clone();
    let _ = fleet.restore(&request).await.unwrap();
    assert_holds(&fleet, "copy", 2, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_an_agents_state() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&dir.path().join("disk"), "64k");
    let mut fleet = Fleet::start().await;
    let state = disk.0.clone();
    fleet
        .add_cluster_with("orders", 2, |a| {
            a.delta = "key-index".into();
            a.state_dir = (a.node == "n1").then(|| state.join("n1"));
        })
        .await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 20_000).await;
    let error = fleet.backup("orders").await.unwrap_err();
    assert!(error.kind() == ErrorKind::Full && error.message().contains("n1"), "{error}");
    assert_takes_writes(&fleet, "orders", 2).await;
    disk.resize("64m");
    let backup = fleet.backup("orders").await.unwrap();
    assert_eq!(backup.item.records, 20_000);
    let expected = records_at(&router, None).await;
    fleet.add_cluster("copy", 2).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    assert_holds(&fleet, "copy", 2, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_a_restored_node() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&dir.path().join("disk"), "80m");
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    fill_raw(&fleet, 1, 3000).await;
    let router = fleet.router("orders", 2).await;
    let backup = fleet.backup("orders").await.unwrap();
    let expected = at_cut(&router, &backup).await;
    let data = disk.0.clone();
    fleet.add_cluster_with("copy", 2, |a| a.data_dir = (a.node == "n1").then(|| data.join("n1"))).await;
    // What is left after the empty store stands.
    disk.resize("4m");
    let job = fleet.api().post("restores", &restore_of("orders", "copy")).await.unwrap();
    let error = fleet.api().job_end(&job).await.unwrap_err();
    assert!(error.message().contains("n1"), "{error}");
    eventually("the restore to have ended", async || {
        (fleet.api().job(&job).await.state == JobState::Failed).then_some(())
    })
    .await;
    disk.resize("200m");
    // A store that could not write asks to be started anew.
    fleet.agent("copy", "n1").process.kill().await;
    fleet.restart_agent("copy", "n1");
    let _ = fleet.ready("copy", 2).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    assert_holds(&fleet, "copy", 2, &expected).await;
}
