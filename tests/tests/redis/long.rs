//! Long values: no process of ours holds one in memory, whatever is done with it.

use std::path::Path;
use std::time::Duration;

use tidemark_agent::engine::redis::{Options, Redis};
use tidemark_agent::engine::{Engine, Next, ScanRange, Scanned, job_pin};
use tidemark_common::rdb::RawValue;
use tidemark_common::record::RedisMeta;
use tidemark_proto::id::JobId;
use tidemark_proto::{SlotSet, Timestamp};
use tidemark_tests::bench::peak_rss_mib;
use tidemark_tests::fleet::{AgentSpec, EngineKind, Fleet, restore_of};
use tidemark_tests::redis::{Client, Flavor, Server};

use super::fenced::good;

/// What a daemon may take at most, in MiB, whatever the length of values. The values of this test have 200, 150 and 100.
const MOST_RSS: u64 = 160;
/// Bytes of what is appended at once.
const STEP: usize = 4 << 20;

/// Text that does not shrink much, another one for each `seed`.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).map(|b| b'!' + b % 90).take(len).collect()
}

fn append(client: &mut Client, key: &str, mib: usize) {
    let mut piece = text(key.len() as u64, STEP);
    for i in 0..mib << 20 >> 22 {
        piece[..8].copy_from_slice(format!("{i:08}").as_bytes());
        let _ = client.call(&[&b"APPEND"[..], key.as_bytes(), &piece]);
    }
}

/// A string of 200 MiB, a list of 150, a hash of 100 with a few large fields, and short ones around them.
fn fill(client: &mut Client) {
    append(client, "{a}text", 200);
    let piece = text(77, STEP);
    for i in 0..150 << 20 >> 22 {
        let number = format!("{i}");
        let mut command: Vec<&[u8]> = vec![b"RPUSH", b"{b}list", number.as_bytes()];
        command.extend(piece.chunks(8192));
        let _ = client.call(&command);
    }
    for i in 0..25 {
        let field = format!("field{i}");
        let _ = client.call(&[&b"HSET"[..], b"{c}hash", field.as_bytes(), &piece]);
    }
    for i in 0..2000 {
        let _ = client.run(&format!("SET key:{i} {}", "v".repeat(i % 300 + 1)));
    }
}

fn spec(cluster: &str, server: &Server, options: &str) -> AgentSpec {
    let mut spec = AgentSpec::new(cluster, "n0", SlotSet::EMPTY);
    spec.engine = EngineKind::Redis(format!("unix:{}", server.socket().display()), options.into());
    spec
}

fn same(what: &str, server: &Server, wanted: &str) {
    assert_eq!(server.client().run("DEBUG DIGEST").text(), wanted, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_restores_and_exports_of_long_values_take_little_memory() {
    let (source, plain, native) =
        (Server::start(Flavor::Redis, &[]), Server::start(Flavor::Redis, &[]), Server::start(Flavor::Redis, &[]));
    fill(&mut source.client());
    let wanted = source.client().run("DEBUG DIGEST").text();
    let mut fleet = Fleet::start().await;
    fleet.start_agent(spec("orders", &source, ""));
    fleet.start_agent(spec("plain", &plain, ""));
    // Every long value is over it, and made by commands.
    fleet.start_agent(spec("native", &native, "native_over_bytes = 2_000_000"));
    for cluster in ["orders", "plain", "native"] {
        let _ = fleet.ready(cluster, 1).await;
    }
    let backup = good(fleet.backup("orders").await);
    assert_eq!(backup.item.records, 2003);
    let _ = good(fleet.verify("orders", "latest").await);
    for (cluster, server) in [("plain", &plain), ("native", &native)] {
        let _ = good(fleet.restore(&restore_of("orders", cluster)).await);
        same(cluster, server, &wanted);
    }
    let commands = native.client().run("INFO commandstats").text();
    assert!(commands.contains("cmdstat_append:") && commands.contains("cmdstat_rpush:"), "{commands}");

    let mut told = vec![("coordinator".to_owned(), peak_rss_mib(fleet.coordinator().process.id()))];
    for cluster in ["orders", "plain", "native"] {
        told.push((cluster.to_owned(), peak_rss_mib(fleet.agent(cluster, "n0").process.id())));
    }
    assert!(told.iter().all(|(_, mib)| *mib < MOST_RSS), "peaks of memory in MiB: {told:?}");
    println!("peaks of memory in MiB: {told:?}");
    // What long values wait in has no name: nothing is left of it.
    assert_eq!(files_of_long_values(fleet.dir()), 0);
}

fn files_of_long_values(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let count = |path: &Path| match path.is_dir() {
        true => files_of_long_values(path),
        false => usize::from(path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("long-"))),
    };
    entries.map(|entry| count(&entry.path())).sum()
}

/// Long values that the log behind the base changes, makes and deletes.
#[test]
fn long_values_in_the_log_are_those_of_the_cut() {
    let (server, dir) = (Server::start(Flavor::Redis, &[]), tempfile::tempdir().expect("folder"));
    let mut client = server.client();
    for key in ["stays", "grows", "goes", "shrinks"] {
        append(&mut client, key, 8);
    }
    let engine = Redis::open(Options { native_over: 1 << 20, ..super::cut::options(&server, dir.path()) });
    let (engine, job, at) = (engine.expect("engine"), JobId([3; 16]), Timestamp(7));
    engine.prepare(job, true, &|| false, &|_| ()).expect("a base");
    let _ = client.call(&[&b"SET"[..], b"comes", &text(99, STEP)]);
    append(&mut client, "grows", 4);
    let _ = client.run("DEL goes");
    let _ = client.run("SET shrinks short");
    let _ = engine.hold(job, Duration::from_millis(200)).expect("hold");
    let _ = engine.seal(job, at).expect("seal");
    let _ = engine.release(job).expect("release");
    let mut found = Vec::new();
    let snapshot = engine.snapshot(at).expect("snapshot");
    let scan = snapshot.scan_packed(&ScanRange::slots(SlotSet::all()), &mut |scanned| {
        let mut see = |key: &[u8], meta: &[u8], value: &dyn Fn(RedisMeta) -> u128, len: u64| {
            let meta = RedisMeta::decode(meta).expect("meta");
            assert_eq!(value(meta), meta.meaning, "{}", String::from_utf8_lossy(key));
            found.push((String::from_utf8_lossy(&key[1..]).into_owned(), len >> 20));
        };
        match scanned {
            Scanned::Packed(_) => return Ok(Next::Open),
            Scanned::Record(r) => see(r.key, r.meta, &|m| meaning(r.value, m), r.value.len() as u64),
            Scanned::Long(r) => see(r.key, r.meta, &|m| meaning(r.value, m), r.value.len()),
        }
        Ok(Next::Go)
    });
    scan.expect("scan");
    found.sort();
    let wanted = [("comes", 4), ("grows", 12), ("shrinks", 0), ("stays", 8)];
    assert_eq!(found, wanted.map(|(key, mib)| (key.to_owned(), mib)));
    drop(snapshot);
    engine.unpin(&job_pin(job)).expect("unpin");
}

fn meaning<V: RawValue + ?Sized>(value: &V, meta: RedisMeta) -> u128 {
    let mut meaning = tidemark_common::rdb::Meaning::new();
    value.show(meta.type_byte, meta.family, &mut meaning).expect("a value");
    meaning.finish().0
}
