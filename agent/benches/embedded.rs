//! Rates of the embedded engine: load, verify, scan, changes, commits, and the memory it takes. Run with
//! `cargo bench -p tidemark-agent --bench embedded -- [MiB of data] [directory]`.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidemark_agent::engine::embedded::{Embedded, Options};
use tidemark_agent::engine::{Engine, RecordRef, ScanRange};
use tidemark_agent::kv::{KvStore, Write};
use tidemark_common::clock::Hlc;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::id::JobId;
use tidemark_proto::slot::RegionMap;
use tidemark_proto::{Result, SlotSet, Timestamp, slot_of};

const VALUE: usize = 1024;
const COMMIT_TIME: Duration = Duration::from_secs(3);
const MIB: f64 = (1 << 20) as f64;

/// A value that does not compress.
fn value(seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..VALUE / 8)
        .flat_map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()
        })
        .collect()
}

/// Peak and present resident memory in MiB.
fn rss() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name: &str| {
        let kib = status.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
        kib.unwrap_or(0u64) / 1024
    };
    format!("RSS {} MiB, peak {} MiB", line("VmRSS:"), line("VmHWM:"))
}

fn report(what: &str, bytes: u64, took: Duration) {
    let rate = bytes as f64 / 1e6 / took.as_secs_f64();
    println!("{what:<34} {:8.1} MiB in {took:>9.2?}  {rate:8.0} MB/s  {}", bytes as f64 / MIB, rss());
}

/// Keys by region, each region sorted by (slot, key).
fn regions(records: u64) -> Vec<Vec<(u16, Vec<u8>)>> {
    let map = RegionMap::new(RegionMap::DEFAULT_SLOTS_PER_REGION).unwrap();
    let mut out = vec![Vec::new(); usize::from(map.count())];
    for i in 0..records {
        let key = format!("user:{i:012}:profile").into_bytes();
        let slot = slot_of(&key);
        out[usize::from(map.region_of(slot))].push((slot, key));
    }
    out.iter_mut().for_each(|r| r.sort());
    out
}

fn load(store: &Embedded, parts: &[Vec<(u16, Vec<u8>)>], threads: usize, at: Timestamp) -> Result<()> {
    let loader = store.restore(JobId::from_u128(1), SlotSet::all(), true)?;
    let pool: Vec<_> = (0..64).map(value).collect();
    let (next, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let begin = Instant::now();
    std::thread::scope(|s| {
        for _ in 0..threads {
            let _ = s.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(records) = parts.get(i) else { break };
                    let mut part = loader.part(i as u32).unwrap();
                    for (n, (slot, key)) in records.iter().enumerate() {
                        let record = RecordRef { slot: *slot, key, meta: &[], value: &pool[n % pool.len()] };
                        part.put(record, tidemark_agent::engine::record_hash(record)).unwrap();
                        let _ = bytes.fetch_add((key.len() + VALUE) as u64, Ordering::Relaxed);
                    }
                    let _ = part.finish(SetDigest::default()).unwrap();
                }
            });
        }
    });
    let bytes = bytes.into_inner();
    report(&format!("load, {threads} threads"), bytes, begin.elapsed());
    let begin = Instant::now();
    let digest = loader.verify()?;
    report(&format!("verify {} records", digest.count), bytes, begin.elapsed());
    let begin = Instant::now();
    let _ = loader.commit(at)?;
    println!("switch in {:.2?}", begin.elapsed());
    Ok(())
}

fn scan(store: &Embedded, what: &str) -> Result<()> {
    let at = store.hold(JobId::from_u128(2), Duration::ZERO)?.max_timestamp;
    let begin = Instant::now();
    let mut bytes = 0;
    store.snapshot(at)?.scan(&ScanRange::slots(SlotSet::all()), &mut |r| {
        bytes += (r.key.len() + r.value.len()) as u64;
        Ok(ControlFlow::Continue(()))
    })?;
    report(what, bytes, begin.elapsed());
    Ok(())
}

fn commits(store: &Embedded, clients: u64, records: u64) {
    let (count, end) = (AtomicU64::new(0), Instant::now() + COMMIT_TIME);
    let begin = Instant::now();
    std::thread::scope(|s| {
        for c in 0..clients {
            let count = &count;
            let _ = s.spawn(move || {
                let mut x = c + 1;
                while Instant::now() < end {
                    x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let key = format!("user:{:012}:profile", (x >> 20) % records).into_bytes();
                    let write = Write::Put { key, value: value(x) };
                    let _ = store.commit(vec![write], Timestamp::ZERO).blocking_recv().unwrap().unwrap();
                    let _ = count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let (n, took) = (count.into_inner(), begin.elapsed());
    println!("commits, {clients:>3} clients: {:.0}/s  {}", n as f64 / took.as_secs_f64(), rss());
}

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let mib: u64 = args.first().and_then(|a| a.parse().ok()).unwrap_or(1024);
    let records = (mib << 20) / VALUE as u64;
    let dir = args.get(1).map_or_else(|| tempfile::tempdir().unwrap(), |d| tempfile::tempdir_in(d).unwrap());
    let hlc = Hlc::system();
    let store = Embedded::open(dir.path().join("store"), Options::new(SlotSet::all(), hlc.clone()))?;
    let parts = regions(records);
    println!("{records} records in {} parts; {}", parts.len(), rss());
    load(&store, &parts, 2, hlc.now())?;
    drop(parts);
    scan(&store, "scan after load")?;
    scan(&store, "scan again")?;
    let since = store.hold(JobId::from_u128(2), Duration::ZERO)?.max_timestamp;
    for clients in [1, 8, 64] {
        commits(&store, clients, records);
    }
    scan(&store, "scan after commits")?;
    let at = store.hold(JobId::from_u128(2), Duration::ZERO)?.max_timestamp;
    let (begin, mut bytes, mut count) = (Instant::now(), 0, 0);
    store.snapshot(at)?.changes(since, &ScanRange::slots(SlotSet::all()), &mut |c| {
        count += 1;
        bytes += c.new.map_or(0, |r| (r.key.len() + r.value.len()) as u64);
        Ok(ControlFlow::Continue(()))
    })?;
    report(&format!("changes: {count}"), bytes, begin.elapsed());
    println!("estimate: {} records; {}", store.describe()?.records, rss());
    store.close();
    Ok(())
}
