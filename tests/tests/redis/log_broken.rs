//! The log of real servers when things break: the bucket is away, the spool is full, clocks do not agree.

use std::sync::atomic::Ordering;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_proto::Timestamp;
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, eventually as later, restore_of};
use tidemark_tests::redis::{Cluster, Flavor, Server, eventually};
use tidemark_tests::s3::{Conditions, S3};

use super::chains::{Chains, check};
use super::flow::{get, protect_one, spec};
use super::log::{enable, fleet, now, point_after, status};
use super::past::extracted;

async fn fleet_on(s3: &S3, spool_mib: u64) -> Fleet {
    let spec = CoordinatorSpec {
        url: s3.url(),
        options: s3.options(),
        repository: "request_timeout_seconds = 1".into(),
        sections: format!(
            "[pitr]\nspool_mib = {spool_mib}\npoint_interval_ms = 200\n[backup]\nslots_per_region = 512"
        ),
        ..CoordinatorSpec::default()
    };
    Fleet::start_with(spec).await
}

/// What a restore at a time onto a new server holds of some keys.
async fn restored(fleet: &mut Fleet, name: &str, at: u64, keys: &[&str]) -> Vec<Option<u64>> {
    let server = Server::start(Flavor::Redis, &[]);
    protect_one(fleet, name, &server).await;
    let request = RestoreRequest { at: Some(at), ..restore_of("orders", name) };
    let _ = fleet.restore(&request).await.unwrap_or_else(|e| panic!("{name}: {}", e.report()));
    let mut clients = [server.client()];
    keys.iter().map(|key| get(&mut clients, key)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_away_leaves_no_gap_and_a_full_spool_breaks_the_log_honestly() {
    let s3 = S3::start(Conditions::Honoured).await;
    let server = Server::start(Flavor::Redis, &[]);
    let mut fleet = fleet_on(&s3, 2).await;
    protect_one(&mut fleet, "orders", &server).await;
    enable(&fleet).await;
    let first = point_after(&fleet, Timestamp(1)).await.windows[0].earliest;
    let mut client = server.client();
    let away = s3.take_no_segment();
    for n in 0..2000 {
        let _ = client.run(&format!("SET a {n}"));
    }
    let told = later("trouble that is told", async || {
        Some(status(&fleet).await).filter(|s| !s.trouble.is_empty() && !s.healthy)
    })
    .await;
    assert_eq!(told.windows.len(), 1, "{told:?}");
    away.store(false, Ordering::Relaxed);
    let after = point_after(&fleet, now()).await;
    assert_eq!((after.windows.len(), after.windows[0].earliest), (1, first), "no gap: {after:?}");

    // More than the spool holds: what is dropped is a gap, and is told.
    let away = s3.take_no_segment();
    let large = "x".repeat(300_000);
    for n in 0..20 {
        let _ = client.call(&["SET", &format!("large:{n}"), &large]);
        let _ = client.run(&format!("SET b {n}"));
    }
    away.store(false, Ordering::Relaxed);
    let _ = client.run("SET c 7");
    let broken = later("another window", async || {
        let status = status(&fleet).await;
        (status.windows.len() == 2 && status.healthy).then_some(status)
    })
    .await;
    let [one, two] = &broken.windows[..] else { panic!("{broken:?}") };
    assert!(one.ended.contains("began anew") && two.earliest > one.latest, "{broken:?}");
    let end = restored(&mut fleet, "end", one.latest, &["a", "c"]).await;
    assert_eq!(end, [Some(1999), None], "the last point before the gap");
    let begin = restored(&mut fleet, "begin", two.earliest, &["a", "b", "c"]).await;
    assert_eq!(begin, [Some(1999), Some(19), Some(7)], "the first point behind it");
    // Behind it the one before is taken. (A backup that was taken meanwhile is a point as well, for later times.)
    let between = one.latest + 1;
    assert_eq!(restored(&mut fleet, "between", between, &["a", "c"]).await, end);
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_ten_seconds_off_mix_nothing() {
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    let mut fleet = fleet().await;
    for (n, wrong) in ["0", "10000", "-10000"].into_iter().enumerate() {
        let mut spec = spec("orders", &format!("n{n}"), format!("127.0.0.1:{}", cluster.ports()[n]));
        spec.env.push(("TIDEMARK_CLOCK_WRONG_BY_MS".into(), wrong.into()));
        fleet.start_agent(spec);
    }
    let _ = fleet.ready("orders", 3).await;
    enable(&fleet).await;
    let chains = Chains::start(&cluster, 3);
    let first = point_after(&fleet, Timestamp(1)).await.windows[0].earliest;
    let steps = chains.steps();
    eventually("more load", || (chains.steps() > steps + 1500).then_some(()));
    chains.stop();
    // The cluster's time goes with the clock that is ahead.
    let stopped = status(&fleet).await.windows[0].latest;
    let window = point_after(&fleet, Timestamp(stopped + 1)).await.windows;
    assert_eq!((window.len(), window[0].earliest), (1, first));
    let (mut rng, mut before) = (StdRng::seed_from_u64(3), 0);
    let mut times: Vec<u64> = (0..12).map(|_| rng.random_range(first..=window[0].latest)).collect();
    times.extend([first, window[0].latest]);
    times.sort_unstable();
    for at in times {
        let state = extracted(&fleet, at);
        let steps = check(3, |key| state.get(key).map(|step| step.parse().expect("number")));
        assert!(steps >= before, "at {at}: {steps} steps, before {before}");
        before = steps;
    }
    assert!(before > steps, "{before} steps");
}
