//! A whole fleet beside its peers, on the same text-like records in one run: full backup, second backup after 1 % of the
//! keys changed at random, restore. Ours is three agents and a coordinator with QUIC between them; each peer is one local
//! process on three files with the same records. MB are 10^6 bytes of keys and values.
//!
//! `tests/bench` builds, installs the peers and runs it; arguments: `[MiB] [rounds]`.

use std::time::{Duration, Instant};

use tidemark_coordinator::job::JobInfo;
use tidemark_coordinator::kv::{LoadOptions, Router, load};
use tidemark_proto::Result;
use tidemark_proto::wire::kv::Write;
use tidemark_tests::bench::peers::{Borg, Peer, Restic};
use tidemark_tests::bench::{BenchRecord, Dumps, change, mb_per_second, peak_rss_mib, text_records};
use tidemark_tests::fleet::{Fleet, restore_of};
use tokio_util::sync::CancellationToken;

/// Data when no size is given, in MiB.
const DEFAULT_MIB: u64 = 1024;
/// Nodes of the fleet.
const NODES: u16 = 3;
/// Writes of one commit while the data is loaded.
const BATCH: usize = 500;
/// Writes a second while the cut is measured.
const LOAD_RATE: u64 = 2000;
/// Share of the keys that change before the second backup.
const CHANGED: f64 = 0.01;

/// What one contender did. Rates in MB/s of logical data; bytes as stored.
struct Row {
    name: &'static str,
    full: f64,
    full_bytes: u64,
    second_seconds: f64,
    second_bytes: u64,
    restore: f64,
}

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let mib = numbers.next().unwrap_or(DEFAULT_MIB);
    let rounds = numbers.next().unwrap_or(1);
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    for round in 1..=rounds {
        println!("round {round} of {rounds}: {mib} MiB of text-like records");
        runtime.block_on(one_round(mib << 20, round))?;
    }
    Ok(())
}

async fn one_round(bytes: u64, seed: u64) -> Result<()> {
    let mut records = text_records(seed, bytes);
    let logical: u64 = records.iter().map(|r| (r.key.len() + r.value.len()) as u64).sum();
    let dumps = Dumps::write(&records, NODES);
    let mut peers: Vec<Box<dyn Peer>> = vec![Box::new(Restic::new()), Box::new(Borg::new())];
    peers.retain(|p| p.is_there());
    let mut rows: Vec<Row> = peers.iter().map(|p| peer_first(p.as_ref(), &dumps, logical)).collect();
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("bench", NODES).await;
    let router = fleet.router("bench", usize::from(NODES)).await;
    let start = Instant::now();
    fill(&router, &records).await?;
    println!("loaded through the data protocol: {:.0} MB/s", mb_per_second(logical, start));
    let mut ours = ours_first(&fleet, logical).await?;
    let changed = change(&mut records, CHANGED, seed);
    fill(&router, &changed).await?;
    ours_second(&fleet, &mut ours).await?;
    dumps.rewrite(&records, NODES);
    for (peer, row) in peers.iter().zip(&mut rows) {
        peer_second(peer.as_ref(), &dumps, logical, row);
    }
    ours_restore(&mut fleet, logical, &mut ours).await?;
    stall(&fleet, &router).await?;
    report(&ours, &rows, logical);
    memory(&mut fleet);
    Ok(())
}

async fn fill(router: &Router, records: &[BenchRecord]) -> Result<()> {
    let mut by_node: Vec<Vec<&BenchRecord>> = vec![Vec::new(); router.len()];
    for r in records {
        by_node[router.node_of(&r.key)].push(r);
    }
    let send = by_node.iter().enumerate().map(|(node, own)| {
        let router = router.another_client();
        async move {
            for batch in own.chunks(BATCH) {
                let put = |r: &&BenchRecord| Write { key: r.key.clone(), value: Some(r.value.clone()) };
                let _ = router.commit(node, batch.iter().map(put).collect()).await?;
            }
            Ok::<(), tidemark_proto::Error>(())
        }
    });
    futures::future::try_join_all(send).await.map(drop)
}

async fn ours_first(fleet: &Fleet, logical: u64) -> Result<Row> {
    let start = Instant::now();
    let backup = fleet.backup("bench").await?;
    let full = mb_per_second(logical, start);
    Ok(Row {
        name: "tidemark",
        full,
        full_bytes: backup.item.new_bytes,
        second_seconds: 0.0,
        second_bytes: 0,
        restore: 0.0,
    })
}

async fn ours_second(fleet: &Fleet, row: &mut Row) -> Result<()> {
    let start = Instant::now();
    let backup = fleet.backup("bench").await?;
    row.second_seconds = start.elapsed().as_secs_f64();
    row.second_bytes = backup.item.new_bytes;
    Ok(())
}

/// Acknowledgement latency under load while backups are taken, beside the same load without.
async fn stall(fleet: &Fleet, router: &Router) -> Result<()> {
    let options = || LoadOptions {
        records: 100_000,
        value_size: 1000,
        rate: LOAD_RATE,
        batch: 1,
        duration: Some(Duration::from_secs(6)),
        updates_only: true,
        ..LoadOptions::default()
    };
    let quiet = load(router, &options(), CancellationToken::new()).await?;
    let backups = async {
        let mut held = Vec::new();
        for _ in 0..3 {
            let job = fleet.start_backup("bench").await?;
            let end: JobInfo = follow(fleet, &job).await;
            let nodes =
                end.result.as_ref().and_then(|r| r["node_evidence"].as_array().cloned()).unwrap_or_default();
            held.extend(nodes.iter().filter_map(|n| n["held_micros"].as_u64()));
        }
        Ok::<_, tidemark_proto::Error>(held)
    };
    let options = options();
    let (busy, held) = tokio::join!(load(router, &options, CancellationToken::new()), backups);
    let (busy, held) = (busy?, held?);
    println!(
        "acks at {LOAD_RATE} writes/s: p99 {:.1} ms, longest {:.1} ms; with three backups: p99 {:.1} ms, longest {:.1} ms; writes held at the cuts for {:.1} ms at most",
        quiet.ack_p99_micros as f64 / 1e3,
        quiet.ack_max_micros as f64 / 1e3,
        busy.ack_p99_micros as f64 / 1e3,
        busy.ack_max_micros as f64 / 1e3,
        held.iter().max().copied().unwrap_or(0) as f64 / 1e3,
    );
    Ok(())
}

async fn follow(fleet: &Fleet, job: &JobInfo) -> JobInfo {
    // The error is in the job as well.
    let _ = fleet.api().job_end(job).await;
    fleet.api().job(job).await
}

async fn ours_restore(fleet: &mut Fleet, logical: u64, row: &mut Row) -> Result<()> {
    fleet.add_cluster("copy", NODES).await;
    let _ = fleet.ready("copy", usize::from(NODES)).await;
    let start = Instant::now();
    let _ = fleet.restore(&restore_of("bench", "copy")).await?;
    row.restore = mb_per_second(logical, start);
    Ok(())
}

fn peer_first(peer: &dyn Peer, dumps: &Dumps, logical: u64) -> Row {
    peer.init();
    let start = Instant::now();
    peer.backup(dumps.dir());
    let full = mb_per_second(logical, start);
    Row { name: peer.name(), full, full_bytes: peer.stored(), second_seconds: 0.0, second_bytes: 0, restore: 0.0 }
}

fn peer_second(peer: &dyn Peer, dumps: &Dumps, logical: u64, row: &mut Row) {
    let start = Instant::now();
    peer.backup(dumps.dir());
    row.second_seconds = start.elapsed().as_secs_f64();
    row.second_bytes = peer.stored().saturating_sub(row.full_bytes);
    let start = Instant::now();
    peer.restore();
    row.restore = mb_per_second(logical, start);
}

fn report(ours: &Row, peers: &[Row], logical: u64) {
    println!(
        "{:10} {:>10} {:>12} {:>12} {:>13} {:>10}",
        "", "full MB/s", "stored MB", "second s", "second MB", "restore MB/s"
    );
    for row in std::iter::once(ours).chain(peers) {
        println!(
            "{:10} {:>10.0} {:>12.1} {:>12.2} {:>13.1} {:>10.0}",
            row.name,
            row.full,
            row.full_bytes as f64 / 1e6,
            row.second_seconds,
            row.second_bytes as f64 / 1e6,
            row.restore
        );
    }
    for peer in peers {
        println!(
            "ours / {}: full {:.2}, restore {:.2}",
            peer.name,
            ours.full / peer.full,
            ours.restore / peer.restore
        );
    }
    println!("second backup stored {:.2} % of the data", ours.second_bytes as f64 * 100.0 / logical as f64);
}

fn memory(fleet: &mut Fleet) {
    let mut line = format!("peak RSS: coordinator {} MiB", peak_rss_mib(fleet.coordinator().process.id()));
    for cluster in ["bench", "copy"] {
        for n in 0..NODES {
            let node = format!("n{n}");
            let rss = peak_rss_mib(fleet.agent(cluster, &node).process.id());
            line.push_str(&format!(", {cluster}/{node} {rss} MiB"));
        }
    }
    println!("{line}");
}
