//! Reads of the past and clones of the embedded store, two nodes and a coordinator on loopback, the repository a folder: how long a
//! read of one key takes from a backup, and from the log over it, and how many requests to the store it needs; how long it takes to
//! make a clone of a small store and of a large one.
//!
//! Arguments: `[MiB of the large store, default 1024] [reads of each kind, default 300]`. Binaries first: `cargo build --release
//! --workspace --bins`.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_coordinator::clones::{CloneItem, DroppedClone};
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_coordinator::kv::{LoadOptions, load};
use tidemark_coordinator::log::PitrStatus;
use tidemark_coordinator::metric_names::{STORE_ATTEMPTS, outcome};
use tidemark_coordinator::query::Found;
use tidemark_proto::Result;
use tidemark_proto::wire::kv::Write;
use tidemark_tests::bench::{peak_rss_mib, share_of};
use tidemark_tests::fleet::{Fleet, eventually, restore_of};
use tokio_util::sync::CancellationToken;

/// Data when no size is given, in MiB.
const DEFAULT_MIB: u64 = 1024;
/// Reads of each kind when no number is given.
const READS: usize = 300;
/// One read by the command line for so many by the API: each is a process.
const BY_CLI: usize = 10;
/// Nodes.
const NODES: u16 = 2;
/// Bytes of a value.
const VALUE: usize = 1000;
/// The small store is so much smaller than the large one.
const SMALLER: u64 = 64;
/// One record in so many is written anew behind the backup.
const LOGGED: u64 = 20;
/// Writes of one commit.
const BATCH: usize = 100;
/// Clones of each store.
const CLONES: usize = 10;
/// Makes the records.
const SEED: u64 = 3;

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let mib = numbers.next().unwrap_or(DEFAULT_MIB);
    let reads = numbers.next().map_or(READS, |n| n as usize);
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let records = (mib << 20) / VALUE as u64;
        let mut fleet = Fleet::start().await;
        fill(&mut fleet, "small", records / SMALLER).await?;
        fill(&mut fleet, "large", records).await?;
        println!("two stores of {} and {records} records of {VALUE} B, {NODES} nodes each", records / SMALLER);
        point_reads(&fleet, records, reads).await?;
        for cluster in ["small", "large"] {
            clones(&fleet, cluster).await?;
        }
        println!("peak RSS: coordinator {} MiB", peak_rss_mib(fleet.coordinator().process.id()));
        Ok(())
    })
}

async fn fill(fleet: &mut Fleet, cluster: &str, records: u64) -> Result<()> {
    fleet.add_cluster(cluster, NODES).await;
    let router = fleet.router(cluster, usize::from(NODES)).await;
    let options = LoadOptions { records, seed: SEED, value_size: VALUE, ..LoadOptions::default() };
    load(&router, &options, CancellationToken::new()).await.map(drop)
}

/// A backup, a log over it, and reads of both.
async fn point_reads(fleet: &Fleet, records: u64, reads: usize) -> Result<()> {
    // Nothing else asks the store while reads are counted: the log of an idle cluster rests.
    let idle = ["pitr", "enable", "--cluster", "large", "--idle-ms", "600000"];
    let _ = fleet.tidemark(&idle).await;
    let backup = fleet.backup("large").await?;
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!("the backup: {:.0} MB, {:.0} MB stored", mb(backup.item.data_bytes), mb(backup.item.new_bytes));
    let router = fleet.router("large", usize::from(NODES)).await;
    let mut writes = vec![Vec::new(); usize::from(NODES)];
    for n in (0..records).step_by(LOGGED as usize) {
        let (key, value) = (format!("load:{SEED}:{n}").into_bytes(), format!("newer {n}").into_bytes());
        writes[router.node_of(&key)].push(Write { key, value: Some(value) });
    }
    let mut last = backup.item.cut;
    for (node, writes) in writes.iter().enumerate() {
        for batch in writes.chunks(BATCH) {
            last = last.max(router.commit(node, batch.to_vec()).await?.0);
        }
    }
    eventually("the log to be durable", async || {
        let status: PitrStatus = fleet.api().get("clusters/large/pitr").await.ok()?;
        status.windows.last().is_some_and(|w| w.latest >= last).then_some(())
    })
    .await;
    let request = RestoreRequest { backup: String::new(), at: Some(last), ..restore_of("large", "large") };
    let told = fleet
        .plan(&request)
        .await
        .map_or_else(|e| e.to_string(), |p| format!("{} segments, {} B", p.log_segments, p.log_bytes));
    println!("the log over it: {} writes, {told}", records.div_ceil(LOGGED));
    println!(
        "{:44} {:>8} {:>8} {:>8} {:>8} {:>10}",
        "one random key", "first ms", "p50 ms", "p99 ms", "max ms", "requests"
    );
    read_all(fleet, "from the backup, API", (records, reads), backup.item.cut, false).await?;
    read_all(fleet, "with the log over it, API", (records, reads), last, false).await?;
    read_all(fleet, "from the backup, CLI", (records, reads.div_ceil(BY_CLI)), backup.item.cut, true).await?;
    read_all(fleet, "with the log over it, CLI", (records, reads.div_ceil(BY_CLI)), last, true).await
}

/// Attempts at requests that the coordinator has made to the store.
async fn requests(fleet: &Fleet) -> f64 {
    let scrape = fleet.scrape().await;
    outcome::ALL.iter().filter_map(|o| scrape.get(&format!("{STORE_ATTEMPTS}{{outcome=\"{o}\"}}"))).sum()
}

async fn read_all(fleet: &Fleet, what: &str, (records, reads): (u64, usize), at: u64, cli: bool) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(at);
    let (before, mut millis) = (requests(fleet).await, Vec::new());
    for _ in 0..reads {
        let n = rng.random_range(0..records);
        let key = format!("load:{SEED}:{n}");
        let start = Instant::now();
        let record = if cli {
            let line = ["query", "get", &key, "--at", &at.to_string(), "-C", "large", "-o", "json"];
            let shown = fleet.tidemark(&line).await;
            millis.push(start.elapsed().as_secs_f64() * 1e3);
            serde_json::from_str::<Found>(&shown).expect("JSON").record
        } else {
            let query = serde_json::json!({"cluster": "large", "key": key, "at": at});
            let found: Found = fleet.api().post("queries/get", &query).await?;
            millis.push(start.elapsed().as_secs_f64() * 1e3);
            found.record
        };
        let record = record.expect("the record is there");
        let value = record["value"].as_str().expect("a value");
        let newer = what.starts_with("with") && n % LOGGED == 0;
        assert_eq!(value == format!("newer {n}"), newer, "{key} holds {value}");
    }
    let each = (requests(fleet).await - before) / reads as f64;
    println!(
        "{what:44} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {each:>10.1}   ({reads} reads)",
        millis[0],
        share_of(&millis, 0.5),
        share_of(&millis, 0.99),
        share_of(&millis, 1.0)
    );
    Ok(())
}

/// Clones are made and dropped, one after the other.
async fn clones(fleet: &Fleet, cluster: &str) -> Result<()> {
    let (mut made, mut dropped) = (Vec::new(), Vec::new());
    for n in 0..CLONES {
        let start = Instant::now();
        let path = format!("clusters/{cluster}/clones");
        let clone: CloneItem = fleet.api().post(&path, &serde_json::json!({"name": format!("c{n}")})).await?;
        made.push(start.elapsed().as_secs_f64() * 1e3);
        assert_eq!((clone.state.as_str(), clone.nodes.len()), ("complete", usize::from(NODES)));
        let start = Instant::now();
        let _: DroppedClone = fleet.api().delete(&format!("{path}/c{n}")).await?;
        dropped.push(start.elapsed().as_secs_f64() * 1e3);
    }
    println!(
        "clones of the {cluster} store: made in p50 {:.1} ms, longest {:.1} ms; dropped in p50 {:.1} ms ({CLONES} of them)",
        share_of(&made, 0.5),
        share_of(&made, 1.0),
        share_of(&dropped, 0.5)
    );
    Ok(())
}
