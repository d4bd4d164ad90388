//! What the benches share.

pub mod logged;
pub mod peers;
pub mod redis_load;

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tidemark_proto::slot::even_share;
use tidemark_proto::slot_of;

/// One record of bench data.
#[derive(Debug, Clone)]
pub struct BenchRecord {
    /// Hash slot.
    pub slot: u16,
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

/// Bytes of a bench value.
pub const VALUE: usize = 1000;

/// About `bytes` of text-like records, ascending by (slot, key): the same for the same seed.
pub fn text_records(seed: u64, bytes: u64) -> Vec<BenchRecord> {
    let mut rng = StdRng::seed_from_u64(seed);
    let words: Vec<String> = (0..2000)
        .map(|_| (0..rng.random_range(3..10)).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect())
        .collect();
    let mut records: Vec<BenchRecord> = (0..bytes / VALUE as u64)
        .map(|i| {
            let mut value = Vec::with_capacity(VALUE + 16);
            while value.len() < VALUE {
                // Squared, so that some words are frequent, as in text.
                let at: f64 = rng.random::<f64>();
                value.extend_from_slice(words[(at * at * words.len() as f64) as usize].as_bytes());
                value.push(b' ');
            }
            value.truncate(VALUE);
            let key = format!("record:{i:010}").into_bytes();
            BenchRecord { slot: slot_of(&key), key, value }
        })
        .collect();
    records.sort_by(|a, b| (a.slot, &a.key).cmp(&(b.slot, &b.key)));
    records
}

/// Millions of bytes a second since `start`.
pub fn mb_per_second(bytes: u64, start: Instant) -> f64 {
    bytes as f64 / 1e6 / start.elapsed().as_secs_f64()
}

/// Changes a share of the records at random; answers the changed ones.
pub fn change(records: &mut [BenchRecord], share: f64, seed: u64) -> Vec<BenchRecord> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
    let wanted = (records.len() as f64 * share) as usize;
    let mut changed = Vec::with_capacity(wanted);
    for _ in 0..wanted {
        let at = rng.random_range(0..records.len());
        let record = &mut records[at];
        // A word in the middle becomes another: most of the value stays.
        for byte in &mut record.value[VALUE / 2..VALUE / 2 + 24] {
            *byte = rng.random_range(b'a'..=b'z');
        }
        changed.push(record.clone());
    }
    changed
}

/// Peak resident memory of a process, in MiB; 0 when it is gone.
pub fn peak_rss_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0) >> 10
}

/// Ticks of a processor's time in a second, in what the kernel tells of a process: the same on all Linux systems of today.
const TICKS: f64 = 100.0;

/// Seconds of processors' time that a process has taken so far; 0 when it is gone.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Its name may hold spaces; behind it the fields 3 and on. User and system time are 14 and 15.
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// The value that such a share of all is not above; 0 of none.
pub fn share_of(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let at = (values.len() as f64 * share).ceil() as usize;
    values.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// The records as files, one a node, as a peer finds them.
#[derive(Debug)]
pub struct Dumps {
    dir: TempDir,
}

impl Dumps {
    /// Writes `nodes` files.
    pub fn write(records: &[BenchRecord], nodes: u16) -> Self {
        let dumps = Self { dir: tempfile::tempdir().expect("temporary folder") };
        dumps.rewrite(records, nodes);
        dumps
    }

    /// Writes them anew: the same order, changed values in place.
    pub fn rewrite(&self, records: &[BenchRecord], nodes: u16) {
        for n in 0..nodes {
            let slots = even_share(n, nodes);
            let file = std::fs::File::create(self.dir.path().join(format!("node-{n}.dump"))).expect("dump");
            let mut file = std::io::BufWriter::new(file);
            for r in records.iter().filter(|r| slots.contains(r.slot)) {
                file.write_all(&r.key).and_then(|()| file.write_all(&r.value)).expect("dump");
            }
            let file = file.into_inner().expect("dump");
            file.sync_all().expect("dump");
        }
    }

    /// Their folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}
