//! Limits of rates, measured on real processes: bytes on the network between its first and its last byte.
//!
//! Whatever the machine: more than the limit must never pass. That as much passes is only asked where the same fleet
//! without a limit was fast enough.

use std::time::Duration;

use tidemark_coordinator::job::JobInfo;
use tidemark_coordinator::kv::Router;
use tidemark_proto::wire::kv::Write;
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, Scrape, ended, restore_of};
use tokio::time::Instant;

/// The limit, bytes a second.
const LIMIT: f64 = 5e6;
/// What is sent in each measurement: four seconds' worth.
const DATA: u64 = 20_000_000;
/// Bytes of a value.
const VALUE: usize = 16 << 10;
/// Values of one commit.
const BATCH: usize = 16;
/// How far from the limit the measured rate may be.
const TOLERANCE: f64 = 0.10;
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Data on the network so far, of one direction.
const RECEIVED: &str = "tidemark_coordinator_network_bytes_total{direction=\"received\"}";
const SENT: &str = "tidemark_coordinator_network_bytes_total{direction=\"sent\"}";
/// Less than this is acknowledgements, offers and keep-alives.
const NOISE: f64 = 64e3;

/// Writes values that do not compress.
async fn fill(router: &Router, nodes: usize) {
    let mut batches: Vec<Vec<Write>> = vec![Vec::new(); nodes];
    for n in 0..DATA / VALUE as u64 {
        let key = format!("noise:{n}").into_bytes();
        let mut value = vec![0; VALUE];
        rand::fill(&mut value[..]);
        let node = router.node_of(&key);
        batches[node].push(Write { key, value: Some(value) });
        if batches[node].len() == BATCH {
            let _ = router.commit(node, std::mem::take(&mut batches[node])).await.expect("commit");
        }
    }
    for (node, rest) in batches.into_iter().enumerate().filter(|(_, rest)| !rest.is_empty()) {
        let _ = router.commit(node, rest).await.expect("commit");
    }
}

async fn full_backup(fleet: &Fleet) -> JobInfo {
    fleet.api().post("clusters/orders/backups", &serde_json::json!({"full": true})).await.expect("a backup")
}

async fn set(fleet: &Fleet, change: serde_json::Value) {
    let _: serde_json::Value = fleet.api().put("limits", &change).await.expect("limits");
}

/// A count, and the times between which it was right.
#[derive(Clone, Copy)]
struct Point {
    asked: Instant,
    told: Instant,
    value: f64,
}

/// Counts of what passed.
struct Curve(Vec<Point>);

impl Curve {
    async fn look(fleet: &Fleet, series: &str) -> Point {
        let asked = Instant::now();
        let value = fleet.scrape().await.value(series);
        Point { asked, told: Instant::now(), value }
    }

    /// Looks at `series` until the job has ended, which must be well.
    async fn of(fleet: &Fleet, job: &JobInfo, series: &str) -> Self {
        let mut points = Vec::new();
        loop {
            points.push(Self::look(fleet, series).await);
            let info: JobInfo = fleet.api().get(&format!("jobs/{}", job.id)).await.expect("job");
            if ended(&info) {
                assert_eq!(info.error, None);
                points.push(Self::look(fleet, series).await);
                return Self(points);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn first(&self) -> Point {
        self.0[0]
    }

    fn last(&self) -> Point {
        self.0[self.0.len() - 1]
    }

    /// When the last byte had passed.
    fn done(&self) -> Point {
        *self.0.iter().find(|p| p.value >= self.last().value - NOISE).expect("the last point")
    }

    /// Bytes a second from the first byte to the last, never more than it was.
    fn rate(&self) -> f64 {
        let began = self.0.iter().rfind(|p| p.value <= self.first().value + NOISE).expect("the first point");
        let passed = self.last().value - self.first().value;
        assert!(passed > 0.9 * DATA as f64, "only {passed} bytes passed");
        (self.done().value - began.value) / (self.done().told - began.asked).as_secs_f64()
    }

    /// The steepest `span` since `from`: bytes a second, never more than it was.
    fn steepest(&self, span: Duration, from: Instant) -> f64 {
        let after = self.0.iter().enumerate().filter(|(_, p)| p.asked >= from);
        let slopes = after.filter_map(|(n, a)| {
            let b = self.0[n..].iter().find(|b| b.asked - a.asked >= span)?;
            Some((b.value - a.value) / (b.told - a.asked).as_secs_f64())
        });
        slopes.fold(0.0, f64::max)
    }
}

/// `rate` is `limit`, or as much as the machine could without one.
fn assert_limited(what: &str, rate: f64, limit: f64, unlimited: f64) {
    eprintln!("{what}: {:.2} MB/s with a limit of {:.2}, {:.1} without", rate / 1e6, limit / 1e6, unlimited / 1e6);
    assert!(rate <= limit * (1.0 + TOLERANCE), "{what}: {rate} bytes a second pass a limit of {limit}");
    // A machine that hardly manages the limit alone says nothing about it.
    if unlimited > 3.0 * limit {
        assert!(rate >= limit * (1.0 - TOLERANCE), "{what}: only {rate} bytes a second under a limit of {limit}");
    }
}

async fn fleet() -> Fleet {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    fill(&fleet.router("orders", 2).await, 2).await;
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_the_fleet_or_of_each_agent_is_the_rate() {
    let fleet = fleet().await;
    let unlimited = Curve::of(&fleet, &full_backup(&fleet).await, RECEIVED).await.rate();
    set(&fleet, serde_json::json!({"fleet": "5MB"})).await;
    let rate = Curve::of(&fleet, &full_backup(&fleet).await, RECEIVED).await.rate();
    assert_limited("fleet", rate, LIMIT, unlimited);
    // Two agents with half of it each.
    set(&fleet, serde_json::json!({"fleet": "none", "per_agent": "2.5MB"})).await;
    let rate = Curve::of(&fleet, &full_backup(&fleet).await, RECEIVED).await.rate();
    assert_limited("each agent", rate, LIMIT, unlimited);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_limit_counts_in_a_running_job_up_and_down() {
    let fleet = fleet().await;
    let unlimited = Curve::of(&fleet, &full_backup(&fleet).await, RECEIVED).await.rate();
    // Up: at 1 MB/s it would take 20 s.
    set(&fleet, serde_json::json!({"fleet": "1MB"})).await;
    let job = full_backup(&fleet).await;
    let passed = async |series: &str| fleet.scrape().await.value(series);
    let begin = passed(RECEIVED).await;
    while passed(RECEIVED).await < begin + 1e6 {
        tokio::time::sleep(LOOK).await;
    }
    let (changed, before) = (Instant::now(), passed(RECEIVED).await);
    set(&fleet, serde_json::json!({"fleet": "5MB"})).await;
    let curve = Curve::of(&fleet, &job, RECEIVED).await;
    let left = curve.done().value - before;
    let took = curve.done().told - changed;
    assert_limited("raised", left / took.as_secs_f64(), LIMIT, unlimited);
    // Down: from no limit to 5 MB/s while it runs.
    set(&fleet, serde_json::json!({"fleet": "10MB"})).await;
    let job = full_backup(&fleet).await;
    let begin = passed(RECEIVED).await;
    while passed(RECEIVED).await < begin + 4e6 {
        tokio::time::sleep(LOOK).await;
    }
    set(&fleet, serde_json::json!({"fleet": "5MB"})).await;
    // What was on its way may still come.
    let from = Instant::now() + Duration::from_millis(300);
    let steepest = Curve::of(&fleet, &job, RECEIVED).await.steepest(Duration::from_millis(1500), from);
    assert_limited("lowered", steepest, LIMIT, unlimited);
    // None: at once.
    set(&fleet, serde_json::json!({"fleet": "100kB"})).await;
    let job = full_backup(&fleet).await;
    set(&fleet, serde_json::json!({"fleet": "none"})).await;
    let began = Instant::now();
    let _ = Curve::of(&fleet, &job, RECEIVED).await;
    assert!(began.elapsed() < Duration::from_secs(60), "at 100 kB/s it would take 200 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn restores_are_limited_and_limits_outlive_the_coordinator() {
    let sections = "[limits]\nper_agent = \"40MB\"\n".to_owned();
    let mut fleet = Fleet::start_with(CoordinatorSpec { sections, ..CoordinatorSpec::default() }).await;
    fleet.add_cluster("orders", 2).await;
    fill(&fleet.router("orders", 2).await, 2).await;
    let _ = fleet.backup("orders").await.expect("a backup");
    fleet.add_cluster("fast", 1).await;
    let run = async |fleet: &Fleet, target: &str| {
        let job: JobInfo = fleet.api().post("restores", &restore_of("orders", target)).await.expect("a restore");
        Curve::of(fleet, &job, SENT).await.rate()
    };
    let unlimited = run(&fleet, "fast").await;
    let shown = fleet.tidemark(&["limits", "set", "--fleet", "5MB"]).await;
    assert!(shown.contains("5MB/s, set by an operator"), "{shown}");
    fleet.restart_coordinator().await;
    let _ = fleet.ready("orders", 2).await;
    let shown: serde_json::Value =
        serde_json::from_str(&fleet.tidemark(&["limits", "show", "-o", "json"]).await).expect("JSON");
    assert_eq!(shown["fleet"]["bytes_per_second"], 5_000_000, "{shown}");
    assert_eq!((&shown["fleet"]["source"], &shown["per_agent"]["source"]), (&"operator".into(), &"config".into()));
    assert_eq!(shown["per_agent"]["rate"], "40MB", "{shown}");
    fleet.add_cluster("slow", 2).await;
    let rate = run(&fleet, "slow").await;
    assert_limited("restore", rate, LIMIT, unlimited);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_a_node_limits_it_alone() {
    let mut fleet = Fleet::start().await;
    let limited = "[limits]\nbytes_per_second = \"5MB\"\n";
    fleet.add_cluster_with("orders", 1, |spec| spec.sections = limited.to_owned()).await;
    fill(&fleet.router("orders", 1).await, 1).await;
    let rate = Curve::of(&fleet, &full_backup(&fleet).await, RECEIVED).await.rate();
    fleet.add_cluster("free", 1).await;
    let job: JobInfo = fleet.api().post("restores", &restore_of("orders", "free")).await.expect("a restore");
    let unlimited = Curve::of(&fleet, &job, SENT).await.rate();
    assert_limited("upload of the node", rate, LIMIT, unlimited);
    fleet.add_cluster_with("copy", 1, |spec| spec.sections = limited.to_owned()).await;
    let job: JobInfo = fleet.api().post("restores", &restore_of("orders", "copy")).await.expect("a restore");
    let rate = Curve::of(&fleet, &job, SENT).await.rate();
    assert_limited("restore of the node", rate, LIMIT, unlimited);
    let told: Scrape = fleet.scrape_agent("copy", "n0").await;
    assert_eq!(told.value("tidemark_agent_limit_bytes_per_second"), LIMIT);
    assert!(told.value("tidemark_agent_limited_seconds_total") > 0.0);
}
