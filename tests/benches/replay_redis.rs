//! A restore of a server of Redis to a time, with a log of commands over a small base, beside `redis-cli --pipe` of the same commands
//! and beside the restore of a backup of the same state. At the end all servers must hold the same.
//!
//! Arguments: `[thousands of commands, default 2000]`. Binaries first: `cargo build --release --workspace --bins`.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_coordinator::events::EventItem;
use tidemark_coordinator::job::JobInfo;
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_proto::Result;
use tidemark_tests::bench::logged::{now, point, protect};
use tidemark_tests::bench::peak_rss_mib;
use tidemark_tests::bench::redis_load::put_command;
use tidemark_tests::fleet::{Fleet, eventually, restore_of};
use tidemark_tests::redis::{Flavor, Server};

/// Thousands of commands when no number is given.
const THOUSANDS: u64 = 2000;
/// Numbers that keys of each type are made of.
const KEYS: u64 = 100_000;
/// Bytes of a value.
const VALUE: usize = 100;
/// Commands that are sent before their answers are read while the log is made.
const BATCH: u64 = 500;
/// Keys of the base that the log is applied to.
const BASE_KEYS: u64 = 1000;

fn main() -> Result<()> {
    let thousands = std::env::args().skip(1).find_map(|a| a.parse::<u64>().ok()).unwrap_or(THOUSANDS);
    tokio::runtime::Runtime::new().expect("runtime").block_on(restores(thousands * 1000))
}

/// The command of this number: strings, counters, hashes and sets.
fn put_numbered(out: &mut Vec<u8>, rng: &mut StdRng, number: u64) {
    let key = rng.random_range(0..KEYS);
    let text: String = (0..VALUE).map(|_| char::from(b"etaoinshrdlucmfw"[rng.random_range(0..16usize)])).collect();
    match number % 10 {
        0..=5 => put_command(out, &[b"SET", format!("string:{key}").as_bytes(), text.as_bytes()]),
        6 | 7 => put_command(out, &[b"INCR", format!("counter:{key}").as_bytes()]),
        8 => {
            let (hash, field) = (format!("hash:{}", key / 10), format!("field{}", key % 10));
            put_command(out, &[b"HSET", hash.as_bytes(), field.as_bytes(), text.as_bytes()]);
        }
        _ => put_command(out, &[b"SADD", format!("set:{}", key / 10).as_bytes(), &text.as_bytes()[..16]]),
    }
}

/// Sends `commands` to a server from one client and writes them to a file.
fn make(server: &Server, commands: u64, file: &Path) -> u64 {
    let (mut client, mut rng, mut bytes) = (server.client(), StdRng::seed_from_u64(7), 0);
    let mut file = std::fs::File::create(file).expect("file");
    for start in (0..commands).step_by(BATCH as usize) {
        let mut out = Vec::new();
        let count = BATCH.min(commands - start);
        (start..start + count).for_each(|number| put_numbered(&mut out, &mut rng, number));
        client.exchange(&out, count as usize);
        file.write_all(&out).expect("file");
        bytes += out.len() as u64;
    }
    bytes
}

/// A restore to a time with the log over a small base, beside the same commands by the server's own tool.
async fn restores(commands: u64) -> Result<()> {
    let servers = [(); 4].map(|()| Server::start(Flavor::Redis, &[]));
    let [source, then, latest, piped] = &servers;
    for server in [source, piped] {
        let mut client = server.client();
        (0..BASE_KEYS).for_each(|n| drop(client.run(&format!("SET base:{n} {n}"))));
    }
    let mut fleet = Fleet::start().await;
    protect(&mut fleet, "source", source).await;
    let _ = fleet.tidemark(&["pitr", "enable", "--cluster", "source"]).await;
    let _ = point(&fleet, "source", now()).await;
    let file = fleet.dir().join("commands");
    let start = Instant::now();
    let bytes = make(source, commands, &file);
    let made = start.elapsed();
    let at = point(&fleet, "source", now()).await;
    println!(
        "{:44} {:>8} {:>8} {:>10} {:>8}",
        format!("{commands} commands, {BASE_KEYS} keys before"),
        "MB",
        "s",
        "commands/s",
        "MB/s"
    );
    let told = |what: &str, took: Duration| {
        let (seconds, mb) = (took.as_secs_f64(), bytes as f64 / 1e6);
        println!("{what:44} {mb:>8.0} {seconds:>8.2} {:>10.0} {:>8.1}", commands as f64 / seconds, mb / seconds);
    };
    told("made by one client, in pipelines", made);
    protect(&mut fleet, "then", then).await;
    protect(&mut fleet, "latest", latest).await;
    let request = RestoreRequest { backup: String::new(), at: Some(at), ..restore_of("source", "then") };
    let start = Instant::now();
    let _ = fleet.restore(&request).await?;
    let by_log = start.elapsed();
    told("restored to a time, read back and all", by_log);
    phases(&fleet, "then").await?;
    let by_pipe = pipe(piped, &file);
    told("redis-cli --pipe", by_pipe);
    let _ = fleet.backup("source").await?;
    let start = Instant::now();
    let _ = fleet.restore(&restore_of("source", "latest")).await?;
    told("restored from a backup of that state", start.elapsed());
    let digests = servers.each_ref().map(Server::digest);
    assert!(
        digests.iter().all(|d| *d == digests[0]),
        "source, both restores and the pipe hold the same: {digests:?}"
    );
    println!("time by the log / by redis-cli --pipe: {:.2}", by_log.as_secs_f64() / by_pipe.as_secs_f64());
    let rss = ["source", "then", "latest"].map(|c| peak_rss_mib(fleet.agent(c, "n0").process.id()));
    println!("peak RSS: agents {rss:?} MiB, coordinator {} MiB", peak_rss_mib(fleet.coordinator().process.id()));
    Ok(())
}

fn pipe(server: &Server, file: &Path) -> Duration {
    let start = Instant::now();
    let input = std::fs::File::open(file).expect("file");
    let mut cli = Command::new("redis-cli");
    let done = cli.arg("-s").arg(server.socket()).arg("--pipe").stdin(input).stdout(Stdio::null()).status();
    assert!(done.expect("redis-cli").success(), "redis-cli --pipe");
    start.elapsed()
}

/// Says how long the phases of the newest job onto a cluster took.
async fn phases(fleet: &Fleet, cluster: &str) -> Result<()> {
    let jobs: Vec<JobInfo> = fleet.api().get("jobs").await?;
    let job = jobs.iter().find(|j| j.cluster.as_str() == cluster).expect("a job");
    let events = eventually("the job's events", async || {
        let events: Vec<EventItem> = fleet.api().get(&format!("events?job={}", job.id)).await.ok()?;
        events.iter().any(|e| e.what == "succeeded").then_some(events)
    })
    .await;
    let began: Vec<_> = events.iter().filter(|e| e.what == "phase" || e.what == "succeeded").collect();
    let told = began.windows(2).map(|e| (&e[0].message, (e[1].at_millis - e[0].at_millis) as f64 / 1e3));
    let told: Vec<_> = told.map(|(name, took)| format!("{name} {took:.2} s")).collect();
    println!("  {}", told.join(", "));
    Ok(())
}
