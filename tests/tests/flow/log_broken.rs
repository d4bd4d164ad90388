//! The log when things break: the bucket is away, the spool is full, clocks do not agree, everything is killed. No change
//! is missing from a window, and what is lost is said.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_proto::Timestamp;
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, eventually, records_at};
use tidemark_tests::s3::{Conditions, S3};

use crate::log::{enable, restorable_to, status};
use crate::model::{Model, at};
use crate::steps::assert_same;

fn on(s3: &S3, spool_mib: u64) -> CoordinatorSpec {
    CoordinatorSpec {
        url: s3.url(),
        options: s3.options(),
        repository: "request_timeout_seconds = 1".into(),
        sections: format!("[pitr]\nspool_mib = {spool_mib}\n[backup]\nslots_per_region = 512"),
        ..CoordinatorSpec::default()
    }
}

/// Restores `wanted` onto a cluster of one node, and compares.
async fn assert_restores(fleet: &mut Fleet, target: &str, model: &Model, wanted: Timestamp) {
    fleet.add_cluster(target, 1).await;
    let _ = fleet.restore(&RestoreRequest { in_place: false, ..at(target, wanted) }).await.unwrap();
    assert_same(&records_at(&fleet.router(target, 1).await, None).await, &model.at(wanted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_away_for_a_while_leaves_no_gap() {
    let s3 = S3::start(Conditions::Honoured).await;
    let mut fleet = Fleet::start_with(on(&s3, 64)).await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    enable(&fleet).await;
    let window = restorable_to(&fleet, Timestamp(1)).await.windows.pop().expect("a window");
    let mut model = Model::default();
    let before = model.write(&router, "before".into(), Some(vec![1])).await;
    let _ = restorable_to(&fleet, before).await;
    let away = s3.take_no_segment();
    let mut last = before;
    for n in 0..200u32 {
        last = model.write(&router, format!("key:{}", n % 30), Some(vec![2; 300])).await;
    }
    let told =
        eventually("trouble that is told", async || Some(status(&fleet).await).filter(|s| !s.trouble.is_empty()))
            .await;
    assert!(!told.healthy && told.windows[0].latest < last.0, "{told:?}");
    away.store(false, Ordering::Relaxed);
    let after = restorable_to(&fleet, last).await;
    assert_eq!((after.windows.len(), after.windows[0].earliest), (1, window.earliest), "{after:?}");
    assert_restores(&mut fleet, "copy", &model, last).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_spool_breaks_the_log_honestly_and_a_new_window_begins() {
    let s3 = S3::start(Conditions::Honoured).await;
    let mut fleet = Fleet::start_with(on(&s3, 1)).await;
    fleet.add_cluster("orders", 1).await;
    let router = fleet.router("orders", 1).await;
    enable(&fleet).await;
    let _ = restorable_to(&fleet, Timestamp(1)).await;
    let mut model = Model::default();
    let before = model.write(&router, "before".into(), Some(vec![1])).await;
    let _ = restorable_to(&fleet, before).await;
    let away = s3.take_no_segment();
    for n in 0..12u32 {
        let _ = model.write(&router, format!("key:{n}"), Some(vec![2; 500_000])).await;
    }
    away.store(false, Ordering::Relaxed);
    let last = model.write(&router, "last".into(), Some(vec![3])).await;
    let after = restorable_to(&fleet, last).await;
    assert!(after.windows.len() == 2 && after.healthy, "{after:?}");
    let (first, second) = (&after.windows[0], &after.windows[1]);
    assert!(first.ended.contains("began anew") && first.latest >= before.0, "{after:?}");
    assert!(second.earliest > first.latest, "{after:?}");
    // What lies between cannot be restored: the time before it is taken, and told.
    let between = Timestamp(first.latest + (second.earliest - first.latest) / 2);
    assert_eq!(fleet.plan(&at("orders", between)).await.unwrap().state().0, first.latest);
    let (end, begin) = (Timestamp(first.latest), Timestamp(second.earliest));
    assert_restores(&mut fleet, "first", &model, end).await;
    assert_restores(&mut fleet, "second", &model, begin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_ten_seconds_off_hold_nothing_up_and_mix_nothing() {
    let mut fleet = Fleet::start().await;
    let wrong = AtomicU64::new(0);
    fleet
        .add_cluster_with("orders", 3, |spec| {
            let by = ["0", "10000", "-10000"][wrong.fetch_add(1, Ordering::Relaxed) as usize % 3];
            spec.env.push(("TIDEMARK_CLOCK_WRONG_BY_MS".into(), by.into()));
        })
        .await;
    let router = fleet.router("orders", 3).await;
    enable(&fleet).await;
    let _ = restorable_to(&fleet, Timestamp(1)).await;
    let (mut rng, mut model) = (StdRng::seed_from_u64(3), Model::default());
    let mut last = Timestamp::ZERO;
    for n in 0..300u32 {
        last = model.write(&router, format!("key:{}", n % 60), Some(n.to_le_bytes().to_vec())).await;
    }
    let status = restorable_to(&fleet, last).await;
    let window = &status.windows[0];
    fleet.add_cluster("copy", 1).await;
    let copy = fleet.router("copy", 1).await;
    for _ in 0..6 {
        let wanted = Timestamp(rng.random_range(window.earliest..=last.0));
        let _ = fleet.restore(&RestoreRequest { no_safety_backup: true, ..at("copy", wanted) }).await.unwrap();
        assert_same(&records_at(&copy, None).await, &model.at(wanted));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_killed_while_the_log_runs() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let mut router = fleet.router("orders", 2).await;
    enable(&fleet).await;
    let window = restorable_to(&fleet, Timestamp(1)).await.windows.pop().expect("a window");
    let mut model = Model::default();
    let mut last = Timestamp::ZERO;
    for round in 0..4u32 {
        for n in 0..60u32 {
            last = model.write(&router, format!("key:{}", n % 25), Some(vec![round as u8; 200])).await;
        }
        match round {
            0 | 2 => {
                let node = format!("n{}", round / 2);
                fleet.agent("orders", &node).process.kill().await;
                fleet.revive_agent("orders", &node).await;
            }
            _ => {
                fleet.coordinator().process.signal(nix::sys::signal::Signal::SIGKILL);
                fleet.revive_coordinator().await;
            }
        }
        let _ = fleet.ready("orders", 2).await;
        router = fleet.router("orders", 2).await;
    }
    // All at once.
    fleet.coordinator().process.signal(nix::sys::signal::Signal::SIGKILL);
    for node in ["n0", "n1"] {
        fleet.agent("orders", node).process.kill().await;
    }
    fleet.revive_coordinator().await;
    for node in ["n0", "n1"] {
        fleet.revive_agent("orders", node).await;
    }
    let _ = fleet.ready("orders", 2).await;
    let after = restorable_to(&fleet, last).await;
    assert_eq!((after.windows.len(), after.windows[0].earliest), (1, window.earliest), "no gap: {after:?}");
    assert_restores(&mut fleet, "copy", &model, last).await;
}
