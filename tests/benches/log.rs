//! The log of the embedded store, nodes and a coordinator on loopback: what it costs those who write, how far it is
//! behind them, and how fast a restore to a time lays it over a small base. MB are 10^6 bytes of values.
//!
//! Two clusters of one fleet take the same load in turns, one without a log and one with it. Their clients are in this
//! process, on the same machine.
//!
//! All processes share one machine: beside the time stands what processors' time they took, so that it can be told what a node
//! would come to that has processors of its own.
//!
//! Arguments: `[MiB of log that a restore lays over its base, default 512; 0: none] [rounds of writes, default 3; 0: none]
//! [seconds of one load, default 10] [nodes of each cluster, default 2] [restores of each kind, default 1]`. Binaries first:
//! `cargo build --release --workspace --bins`.

use std::time::{Duration, Instant};

use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_coordinator::kv::{LoadOptions, LoadReport, Router, load};
use tidemark_coordinator::log::PitrStatus;
use tidemark_proto::{Result, Timestamp};
use tidemark_tests::bench::{cpu_seconds, peak_rss_mib};
use tidemark_tests::fleet::{Fleet, eventually, restore_of, write};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Log when no size is given, in MiB.
const DEFAULT_MIB: u64 = 512;
/// Rounds when no number is given.
const ROUNDS: u64 = 3;
/// Length of one load when none is given, in seconds.
const SECONDS: u64 = 10;
/// Nodes of each cluster when no number is given.
const NODES: u16 = 2;
/// Restores of each kind when no number is given.
const RESTORES: u64 = 1;
/// Bytes of a value.
const VALUE: usize = 1000;
/// Writes of one commit.
const BATCH: usize = 16;
/// Records that the load updates.
const RECORDS: u64 = 20_000;
/// Records of the base that the log is laid over.
const BASE_RECORDS: u64 = 2000;
/// Times that each key is written in the log that a restore lays over its base.
const PASSES: u64 = 2;
/// Time between two looks at the lag.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The clusters: without a log, and with it.
const SIDES: [&str; 2] = ["plain", "logged"];

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let mib = numbers.next().unwrap_or(DEFAULT_MIB);
    let rounds = numbers.next().unwrap_or(ROUNDS);
    let seconds = numbers.next().unwrap_or(SECONDS);
    let nodes = numbers.next().map_or(NODES, |n| n.clamp(1, 64) as u16);
    let times = numbers.next().unwrap_or(RESTORES).max(1);
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        if rounds > 0 {
            writes(rounds, Duration::from_secs(seconds), nodes).await?;
        }
        if mib > 0 {
            restores(mib << 20, nodes, times).await?;
        }
        Ok(())
    })
}

fn options(records: u64, seed: u64) -> LoadOptions {
    LoadOptions { records, seed, value_size: VALUE, batch: BATCH, ..LoadOptions::default() }
}

async fn put(router: &Router, options: &LoadOptions) -> Result<LoadReport> {
    load(router, options, CancellationToken::new()).await
}

async fn status(fleet: &Fleet, cluster: &str) -> PitrStatus {
    fleet.api().get(&format!("clusters/{cluster}/pitr")).await.expect("status")
}

/// Writes a last key and waits until it is durable in the log; answers its time.
async fn drained(fleet: &Fleet, cluster: &str, router: &Router) -> Result<Timestamp> {
    let last = write(router, b"last", Some(b"1")).await?;
    eventually("the log to be durable", async || {
        let status = status(fleet, cluster).await;
        status.windows.last().is_some_and(|w| w.latest >= last.0).then_some(())
    })
    .await;
    Ok(last)
}

/// Bytes of all segments that the coordinator has stored, those that were merged since included.
async fn stored(fleet: &Fleet, cluster: &str) -> f64 {
    let series = format!("{}{{cluster=\"{cluster}\"}}", tidemark_coordinator::metric_names::LOG_BYTES);
    fleet.scrape().await.get(&series).unwrap_or(0.0)
}

/// What one load came to.
struct Row {
    commits: f64,
    mb: f64,
    p99_millis: f64,
    /// Of the log: MB stored, and how many milliseconds each look found it behind.
    log: Option<(f64, Vec<u64>)>,
    seconds: f64,
    /// Processors' time of coordinator and agents, in seconds.
    cpu: Cpu,
}

/// Processors' time, in seconds.
#[derive(Debug, Clone, Copy, Default)]
struct Cpu {
    coordinator: f64,
    agents: f64,
}

impl Cpu {
    /// What the coordinator and the agents of a cluster have taken so far.
    fn so_far(fleet: &mut Fleet, cluster: &str, nodes: u16) -> Self {
        let coordinator = cpu_seconds(fleet.coordinator().process.id());
        let agent = |n| cpu_seconds(fleet.agent(cluster, &format!("n{n}")).process.id());
        Self { coordinator, agents: (0..nodes).map(agent).sum() }
    }

    fn since(self, before: Self) -> Self {
        Self { coordinator: self.coordinator - before.coordinator, agents: self.agents - before.agents }
    }
}

async fn writes(rounds: u64, duration: Duration, nodes: u16) -> Result<()> {
    let mut fleet = Fleet::start().await;
    let mut routers = Vec::new();
    for cluster in SIDES {
        fleet.add_cluster(cluster, nodes).await;
        let router = fleet.router(cluster, usize::from(nodes)).await;
        let _ = put(&router, &options(RECORDS, 1)).await?;
        routers.push(router);
    }
    let _ = fleet.tidemark(&["pitr", "enable", "--cluster", SIDES[1]]).await;
    let _ = drained(&fleet, SIDES[1], &routers[1]).await?;
    println!(
        "updates at full rate, {VALUE} B values, {BATCH} in a commit, {nodes} nodes, {} s each; processors' time until the log is drained:",
        duration.as_secs()
    );
    println!(
        "{:>5} {:8} {:>10} {:>8} {:>11} {:>11} {:>11} {:>10} {:>10} {:>11} {:>11}",
        "round",
        "",
        "commits/s",
        "MB/s",
        "ack p99 ms",
        "agents s/GB",
        "coord. s/GB",
        "log MB",
        "log MB/s",
        "lag p99 ms",
        "drained s"
    );
    let mut rows = [Vec::new(), Vec::new()];
    for round in 1..=rounds {
        // Who comes first changes, so that neither always finds the machine as the other left it.
        for side in if round % 2 == 1 { [0, 1] } else { [1, 0] } {
            let before = Cpu::so_far(&mut fleet, SIDES[side], nodes);
            let mut row = one_load(&fleet, SIDES[side], &routers[side], duration, round).await?;
            let start = Instant::now();
            if side == 1 {
                let _ = drained(&fleet, SIDES[1], &routers[1]).await?;
            }
            row.cpu = Cpu::so_far(&mut fleet, SIDES[side], nodes).since(before);
            print_row(round, SIDES[side], &row, start.elapsed());
            rows[side].push(row);
        }
    }
    told_of_writes(&rows);
    memory(&mut fleet, SIDES.map(str::to_owned).as_slice(), nodes);
    Ok(())
}

fn told_of_writes(rows: &[Vec<Row>; 2]) {
    let mean = |rows: &[Row], of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
    let (plain, logged) = (mean(&rows[0], |r| r.commits), mean(&rows[1], |r| r.commits));
    let (plain_mb, logged_mb) = (mean(&rows[0], |r| r.mb), mean(&rows[1], |r| r.mb));
    let mut lags: Vec<u64> = rows[1].iter().filter_map(|r| r.log.as_ref()).flat_map(|l| l.1.clone()).collect();
    println!(
        "mean: without {plain:.0} commits/s, {plain_mb:.1} MB/s; with the log {logged:.0} commits/s, {logged_mb:.1} MB/s; with / \
         without {:.3}; lag p99 {} ms, longest {} ms, {} looks",
        logged / plain,
        share_of(&mut lags, 0.99),
        share_of(&mut lags, 1.0),
        lags.len()
    );
}

async fn one_load(fleet: &Fleet, cluster: &str, router: &Router, duration: Duration, seed: u64) -> Result<Row> {
    let logged = cluster == SIDES[1];
    let before = if logged { stored(fleet, cluster).await } else { 0.0 };
    let options = LoadOptions { duration: Some(duration), updates_only: true, ..options(RECORDS, seed + 1) };
    let (over, ends) = oneshot::channel::<()>();
    let work = async {
        let report = put(router, &options).await;
        drop(over);
        report
    };
    let (report, lags) = tokio::join!(work, look_at_lag(fleet, cluster, logged, ends));
    let report = report?;
    let log = match logged {
        true => Some(((stored(fleet, cluster).await - before) / 1e6, lags)),
        false => None,
    };
    Ok(Row {
        commits: report.writes_per_second / BATCH as f64,
        mb: report.writes_per_second * VALUE as f64 / 1e6,
        p99_millis: report.ack_p99_micros as f64 / 1e3,
        log,
        seconds: report.seconds,
        cpu: Cpu::default(),
    })
}

/// How many milliseconds the log is behind, by every look until the load is over. The cluster without a log is asked the
/// same: the questions must not make a difference.
async fn look_at_lag(fleet: &Fleet, cluster: &str, logged: bool, mut ends: oneshot::Receiver<()>) -> Vec<u64> {
    let mut lags = Vec::new();
    loop {
        tokio::select! {
            _ = &mut ends => return lags,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let asked: Result<PitrStatus> = fleet.api().get(&format!("clusters/{cluster}/pitr")).await;
        if let (true, Ok(status)) = (logged, asked) {
            lags.push(status.nodes.iter().map(|n| n.lag_millis).max().unwrap_or(0).max(status.rpo_millis));
        }
    }
}

/// The value that such a share of all is not above; 0 of none.
fn share_of(values: &mut [u64], share: f64) -> u64 {
    values.sort_unstable();
    let at = (values.len() as f64 * share).ceil() as usize;
    values.get(at.saturating_sub(1)).copied().unwrap_or(0)
}

fn print_row(round: u64, side: &str, row: &Row, drained: Duration) {
    let told = match &row.log {
        None => String::new(),
        Some((mb, lags)) => format!(
            "{mb:>10.1} {:>10.1} {:>11} {:>11.1}",
            mb / row.seconds,
            share_of(&mut lags.clone(), 0.99),
            drained.as_secs_f64()
        ),
    };
    let gb = row.mb * row.seconds / 1e3;
    let (agents, coordinator) = (row.cpu.agents / gb, row.cpu.coordinator / gb);
    println!(
        "{round:>5} {side:8} {:>10.0} {:>8.1} {:>11.1} {agents:>11.2} {coordinator:>11.2} {told}",
        row.commits, row.mb, row.p99_millis
    );
}

/// What restores of one kind came to, all of them together.
#[derive(Debug, Clone, Copy, Default)]
struct Restored {
    seconds: f64,
    cpu: Cpu,
}

/// Restores to a time with the log over a small base, beside those of a backup of the same state.
async fn restores(bytes: u64, nodes: u16, times: u64) -> Result<()> {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("source", nodes).await;
    let router = fleet.router("source", usize::from(nodes)).await;
    let _ = put(&router, &options(BASE_RECORDS, 1)).await?;
    let _ = fleet.tidemark(&["pitr", "enable", "--cluster", "source"]).await;
    let _ = drained(&fleet, "source", &router).await?;
    let records = bytes / VALUE as u64 / PASSES;
    for _ in 0..PASSES {
        let _ = put(&router, &options(records, 2)).await?;
    }
    let last = drained(&fleet, "source", &router).await?;
    // The backup's cut lies behind that time: the log is laid over an older one.
    let _ = fleet.backup("source").await?;
    let (mut by_log, mut by_backup) = (Restored::default(), Restored::default());
    let mut clusters = vec!["source".to_owned()];
    for n in 0..times {
        let (then, latest) = (format!("then-{n}"), format!("latest-{n}"));
        let at = RestoreRequest { backup: String::new(), at: Some(last.0), ..restore_of("source", &then) };
        restored(&mut fleet, &at, nodes, &mut by_log).await?;
        restored(&mut fleet, &restore_of("source", &latest), nodes, &mut by_backup).await?;
        clusters.extend([then, latest]);
    }
    let logged = records * PASSES * VALUE as u64 * times;
    let state = (records + BASE_RECORDS) * VALUE as u64 * times;
    println!(
        "{:44} {:>8} {:>8} {:>8} {:>8} {:>11} {:>11} {:>14}",
        format!("{times} restores onto {nodes} nodes, read back and all"),
        "MB",
        "s",
        "MB/s",
        "a node",
        "agents' s",
        "coord.'s s",
        "MB/agents' s"
    );
    let told = |what: &str, bytes: u64, took: Restored| {
        let (mb, cpu) = (bytes as f64 / 1e6, took.cpu);
        let rate = mb / took.seconds;
        let node = rate / f64::from(nodes);
        println!(
            "{what:44} {mb:>8.0} {:>8.2} {rate:>8.1} {node:>8.1} {:>11.2} {:>11.2} {:>14.1}",
            took.seconds,
            cpu.agents,
            cpu.coordinator,
            mb / cpu.agents
        );
    };
    told("to a time, by bytes of log", logged, by_log);
    told("to a time, by bytes of the state", state, by_log);
    told("of a backup of that state", state, by_backup);
    println!("time by the log / by the backup: {:.2}", by_log.seconds / by_backup.seconds);
    memory(&mut fleet, &clusters, nodes);
    Ok(())
}

async fn restored(fleet: &mut Fleet, request: &RestoreRequest, nodes: u16, sum: &mut Restored) -> Result<()> {
    let target = request.target.clone().expect("a target").to_string();
    fleet.add_cluster(&target, nodes).await;
    let (start, before) = (Instant::now(), Cpu::so_far(fleet, &target, nodes));
    let _ = fleet.restore(request).await?;
    sum.seconds += start.elapsed().as_secs_f64();
    let cpu = Cpu::so_far(fleet, &target, nodes).since(before);
    sum.cpu.agents += cpu.agents;
    sum.cpu.coordinator += cpu.coordinator;
    Ok(())
}

fn memory(fleet: &mut Fleet, clusters: &[String], nodes: u16) {
    let mut line = format!("peak RSS: coordinator {} MiB", peak_rss_mib(fleet.coordinator().process.id()));
    for cluster in clusters {
        for n in 0..nodes {
            let rss = peak_rss_mib(fleet.agent(cluster, &format!("n{n}")).process.id());
            line.push_str(&format!(", {cluster}/n{n} {rss}"));
        }
    }
    println!("{line} MiB\n");
}
