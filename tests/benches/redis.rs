//! A Redis Cluster of three primaries on loopback beside its peers, in one run on the same data: first backup beside
//! `redis-cli --cluster backup`, second backup after 1 % of the keys changed at random, restore into an empty Cluster of five
//! primaries beside `redis-cli --pipe` of the same keys and the time in which a server loads an RDB file of them. Latency of
//! `SET` with and without backups.
//!
//! Arguments: `[keys, default 1500000] [seconds of the latency's measurement, default 10] [full-sync delay of the servers in
//! seconds, default 0: the servers' own default is 5, which replicas wait for where the agents may not see to that; the peer does not, as it
//! lets the servers write their file `dump.rdb` anew and takes that] [bases at once on
//! this host, default 3, as if each node had a host of its own; the product's default is 1 for each host] [rounds, default 0:
//! where given, peer and first backup so many times in turns, each into a repository of its own, and nothing else] [1: bases go
//! through the servers' files (`engine.base_through_file`), as the peer's do; 2: their settings are left
//! alone (`base_at_once`, `base_uncompressed`), as where the agents' user has no `+config|set`; 3: they compress]`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_coordinator::events::EventItem;
use tidemark_coordinator::job::JobInfo;
use tidemark_proto::{Result, SlotSet};
use tidemark_tests::bench::{cpu_seconds, peak_rss_mib};
use tidemark_tests::fleet::{AgentSpec, CoordinatorSpec, EngineKind, Fleet, eventually, restore_of};
use tidemark_tests::redis::{Client, Cluster, Flavor, Reply, Server};

/// Commands in one pipeline while the data is made.
const BATCH: usize = 2000;
/// One key in so many changes before the second backup.
const CHANGED: usize = 100;

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let keys = numbers.next().unwrap_or(1_500_000) as usize;
    let seconds = numbers.next().unwrap_or(10);
    let delay = numbers.next().unwrap_or(0).to_string();
    let (at_once, rounds) = (numbers.next().unwrap_or(3), numbers.next().unwrap_or(0));
    // The servers are to store nothing: the file goes again.
    let (engine, deletes) = match numbers.next() {
        Some(1) => ("base_through_file = true\n", "yes"),
        Some(2) => ("base_at_once = false\nbase_uncompressed = false\n", "no"),
        Some(3) => ("base_uncompressed = false\n", "no"),
        _ => ("", "no"),
    };
    let options = ["--repl-diskless-sync-delay", &delay, "--rdb-del-sync-files", deletes];
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let source = Cluster::start(Flavor::Redis, 3, &options);
    let start = Instant::now();
    fill(&source, 0..keys, 0);
    println!(
        "{keys} keys made in {:.1} s, full-sync delay {delay} s, {at_once} bases at once",
        start.elapsed().as_secs_f64()
    );
    for _ in 0..rounds {
        let _ = runtime.block_on(first_backup(&source, (at_once, engine)))?;
    }
    if rounds > 0 { Ok(()) } else { runtime.block_on(run(&source, keys, (seconds, at_once, engine), &options)) }
}

fn words(line: String) -> Vec<Vec<u8>> {
    line.split(' ').map(|w| w.as_bytes().to_vec()).collect()
}

/// A key of a mix of types; another `version` is another value.
fn command(i: usize, version: u64) -> Vec<Vec<u8>> {
    let mut rng = StdRng::seed_from_u64((i as u64) << 8 | version);
    let mut text = |len: usize| -> String {
        (0..len).map(|_| char::from(b"etaoinshrdlucmfw"[rng.random_range(0..16usize)])).collect()
    };
    words(match i % 10 {
        0..=5 => format!("SET string:{i} {}", text(200 + i % 200)),
        6 | 7 => {
            let fields: Vec<String> = (0..6).map(|f| format!("field{f} {}", text(40))).collect();
            format!("HSET hash:{i} {}", fields.join(" "))
        }
        8 => format!("SADD set:{i} {}", (0..8).map(|_| text(16)).collect::<Vec<_>>().join(" ")),
        _ => {
            let members: Vec<String> = (0..8).map(|m| format!("{m} {}", text(16))).collect();
            format!("ZADD zset:{i} {}", members.join(" "))
        }
    })
}

/// Sends commands to the nodes that own their keys.
fn fill(cluster: &Cluster, keys: impl Iterator<Item = usize>, version: u64) {
    let slots: Vec<Vec<(u16, u16)>> = cluster.clients().iter_mut().map(owned).collect();
    let mut clients = cluster.clients();
    let mut batches: Vec<Vec<Vec<Vec<u8>>>> = vec![Vec::new(); clients.len()];
    for i in keys {
        let command = command(i, version);
        let slot = tidemark_proto::slot_of(&command[1]);
        let node = slots.iter().position(|s| s.iter().any(|(a, b)| (*a..=*b).contains(&slot))).expect("an owner");
        batches[node].push(command);
        if batches[node].len() == BATCH {
            send(&mut clients[node], &std::mem::take(&mut batches[node]));
        }
    }
    clients.iter_mut().zip(&batches).for_each(|(client, batch)| send(client, batch));
}

fn send(client: &mut Client, batch: &[Vec<Vec<u8>>]) {
    for reply in client.pipeline(batch) {
        assert!(!matches!(reply, Reply::Error(_)), "{reply:?}");
    }
}

/// Slots of the node behind the connection.
fn owned(client: &mut Client) -> Vec<(u16, u16)> {
    let me = client.run("CLUSTER MYID").text();
    let text = client.run("CLUSTER NODES").text();
    let line = text.lines().find(|l| l.starts_with(&me)).expect("its own line");
    let range = |w: &str| {
        let (a, b) = w.split_once('-').unwrap_or((w, w));
        (a.parse().expect("slot"), b.parse().expect("slot"))
    };
    line.split(' ').skip(8).map(range).collect()
}

async fn protect(fleet: &mut Fleet, name: &str, cluster: &Cluster, engine: &str) {
    for (i, port) in cluster.ports().into_iter().enumerate() {
        let mut spec = AgentSpec::new(name, &format!("n{i}"), SlotSet::EMPTY);
        spec.engine = EngineKind::Redis(format!("127.0.0.1:{port}"), engine.to_owned());
        fleet.start_agent(spec);
    }
    let _ = fleet.ready(name, cluster.nodes.len()).await;
}

fn seconds_of(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn folder_bytes(dir: &Path) -> u64 {
    std::fs::read_dir(dir).expect("folder").flatten().map(|f| f.metadata().expect("metadata").len()).sum()
}

/// What operators have today: the nodes' files, one after the other.
fn peer_backup(source: &Cluster, dir: &Path) -> f64 {
    let place = format!("127.0.0.1:{}", source.ports()[0]);
    let mut cli = Command::new("redis-cli");
    let cli = cli.args(["--cluster", "backup", &place]).arg(dir).stdout(Stdio::null()).stderr(Stdio::null());
    seconds_of(|| assert!(cli.status().expect("redis-cli").success(), "redis-cli --cluster backup"))
}

/// Processors' time that coordinator and agents have taken so far, in seconds.
fn ours(fleet: &mut Fleet, nodes: usize) -> f64 {
    let agents: f64 = (0..nodes).map(|n| cpu_seconds(fleet.agent("source", &format!("n{n}")).process.id())).sum();
    agents + cpu_seconds(fleet.coordinator().process.id())
}

/// The peer's backup, then ours into a repository without one; the fleet, and bytes stored.
async fn first_backup(source: &Cluster, (at_once, engine): (u64, &str)) -> Result<(Fleet, u64)> {
    let files = tempfile::tempdir().expect("folder");
    let peer = peer_backup(source, files.path());
    let dump_bytes = folder_bytes(files.path());
    println!("redis-cli --cluster backup: {peer:.2} s, {:.0} MB of files", dump_bytes as f64 / 1e6);
    let sections = format!("[backup]\nmax_parallel_bases = {at_once}\n");
    let mut fleet = Fleet::start_with(CoordinatorSpec { sections, ..Default::default() }).await;
    protect(&mut fleet, "source", source, engine).await;
    let (start, before) = (Instant::now(), ours(&mut fleet, source.nodes.len()));
    let first = fleet.backup("source").await?;
    let (took, cpu) = (start.elapsed().as_secs_f64(), ours(&mut fleet, source.nodes.len()) - before);
    println!(
        "first backup: {took:.2} s ({:.2} of the peer's time), {:.0} MB stored, cut and all; {cpu:.2} s of processors' time",
        took / peer,
        first.item.new_bytes as f64 / 1e6
    );
    phases(&fleet, "source").await?;
    Ok((fleet, first.item.new_bytes))
}

async fn run(
    source: &Cluster,
    keys: usize,
    (seconds, at_once, engine): (u64, u64, &str),
    options: &[&str],
) -> Result<()> {
    let (mut fleet, first_bytes) = first_backup(source, (at_once, engine)).await?;
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let mut rng = StdRng::seed_from_u64(1);
    fill(source, (0..keys / CHANGED).map(|_| rng.random_range(0..keys)), 1);
    let start = Instant::now();
    let second = fleet.backup("source").await?;
    let share = second.item.new_bytes as f64 * 100.0 / first_bytes as f64;
    println!(
        "second backup: {:.2} s, {:.2} MB stored, {share:.2} % of the first's",
        start.elapsed().as_secs_f64(),
        mb(second.item.new_bytes)
    );
    phases(&fleet, "source").await?;
    latency(source, &fleet, seconds).await?;
    restore(&mut fleet, keys, options).await?;
    let mut line = format!("peak RSS: coordinator {} MiB", peak_rss_mib(fleet.coordinator().process.id()));
    for (cluster, nodes) in [("source", 3), ("target", 5)] {
        for n in 0..nodes {
            let rss = peak_rss_mib(fleet.agent(cluster, &format!("n{n}")).process.id());
            line.push_str(&format!(", {cluster}/n{n} {rss}"));
        }
    }
    println!("{line} MiB");
    Ok(())
}

/// Says how long the phases of the newest job took.
async fn phases(fleet: &Fleet, cluster: &str) -> Result<()> {
    let jobs: Vec<JobInfo> = fleet.api().get("jobs").await?;
    let job = jobs.iter().find(|j| j.cluster.as_str() == cluster).expect("a job");
    let kept = async || {
        let events: Vec<EventItem> = fleet.api().get(&format!("events?job={}", job.id)).await.ok()?;
        events.iter().any(|e| e.what == "succeeded").then_some(events)
    };
    let events = eventually("the job's events", kept).await;
    let began: Vec<_> = events.iter().filter(|e| e.what == "phase" || e.what == "succeeded").collect();
    let told = began.windows(2).map(|e| (&e[0].message, (e[1].at_millis - e[0].at_millis) as f64 / 1e3));
    let long: Vec<_> =
        told.filter(|(_, took)| *took >= 0.05).map(|(name, took)| format!("{name} {took:.2} s")).collect();
    println!("  {}", long.join(", "));
    for event in events.iter().filter(|e| e.what == "early") {
        println!("  {} {}", event.node, event.message);
    }
    Ok(())
}

/// `SET`s one after the other on a connection of its own until `stop`; microseconds of each, sorted.
fn probe(cluster: &Cluster, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<u64>> {
    let mut client = cluster.clients().remove(0);
    let slots = owned(&mut client);
    let key = (0..).map(|i| format!("probe:{i}")).find(|k| {
        let slot = tidemark_proto::slot_of(k.as_bytes());
        slots.iter().any(|(a, b)| (*a..=*b).contains(&slot))
    });
    let key = key.expect("a key of the node");
    std::thread::spawn(move || {
        let mut times = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            let _ = client.call(&["SET", &key, "v"]);
            times.push(start.elapsed().as_micros() as u64);
        }
        times.sort_unstable();
        times
    })
}

async fn latency(source: &Cluster, fleet: &Fleet, seconds: u64) -> Result<()> {
    let told = |what: &str, times: &[u64]| {
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1e3;
        println!(
            "SET {what}: p50 {:.2} ms, p99.9 {:.2} ms, longest {:.2} ms ({} of them)",
            at(0.5),
            at(0.999),
            at(1.0),
            times.len()
        );
    };
    let stop = Arc::new(AtomicBool::new(false));
    let probing = probe(source, stop.clone());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    told("without backups", &probing.join().expect("probe"));
    let stop = Arc::new(AtomicBool::new(false));
    let probing = probe(source, stop.clone());
    let (until, mut held) = (Instant::now() + Duration::from_secs(seconds), Vec::new());
    while Instant::now() < until {
        held.extend(fleet.backup("source").await?.node_evidence.iter().map(|n| n.held_micros));
    }
    stop.store(true, Ordering::Relaxed);
    told("with backups", &probing.join().expect("probe"));
    let longest = held.iter().max().copied().unwrap_or(0) as f64 / 1e3;
    println!("{} backups meanwhile; writes held at the cuts for at most {longest:.2} ms", held.len() / 3);
    Ok(())
}

async fn restore(fleet: &mut Fleet, keys: usize, options: &[&str]) -> Result<()> {
    let target = Cluster::start(Flavor::Redis, 5, options);
    protect(fleet, "target", &target, "").await;
    let start = Instant::now();
    let _ = fleet.restore(&restore_of("source", "target")).await?;
    let ours = start.elapsed().as_secs_f64();
    // The same keys as commands, and as a file, into one server each: per server the machine has as much to give.
    let pipe = Server::start(Flavor::Redis, &[]);
    let mut commands = Vec::new();
    for i in 0..keys {
        let args = command(i, 0);
        commands.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
        for arg in args {
            commands.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            commands.extend_from_slice(&arg);
            commands.extend_from_slice(b"\r\n");
        }
    }
    let piped = seconds_of(|| {
        let mut cli = Command::new("redis-cli");
        let child = cli.arg("-s").arg(pipe.socket()).arg("--pipe").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = child.spawn().expect("redis-cli");
        std::io::Write::write_all(&mut child.stdin.take().expect("pipe"), &commands).expect("commands");
        assert!(child.wait().expect("redis-cli").success(), "redis-cli --pipe");
    });
    drop(commands);
    let file = pipe.save();
    drop(pipe);
    let loaded = seconds_of(|| drop(Server::load(Flavor::Redis, &[], Some(&file))));
    let rate = |seconds: f64| keys as f64 / seconds / 1e3;
    println!(
        "restore into five primaries, read back and all: {ours:.2} s, {:.0} k keys/s; redis-cli --pipe {piped:.2} s, {:.0} k \
         keys/s; a server loads their RDB in {loaded:.2} s, {:.0} k keys/s",
        rate(ours),
        rate(piped),
        rate(loaded)
    );
    Ok(())
}
