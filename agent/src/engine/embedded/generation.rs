//! One incarnation: its database, its durable numbers and its pins.
//!
//! Keyspaces: `data` (versions), `changes` (what changed when), `meta` (numbers, pins, finished parts of a load, clones),
//! and those of clones, see [`super::overlay`].
//! A record with timestamp 0 was loaded by a restore and stands for the incarnation's base timestamp: a load does not
//! know yet at which timestamp it will be committed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use fjall::config::{BlockSizePolicy, CompressionPolicy, FilterPolicy};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use tidemark_proto::{CloneName, Error, Incarnation, Result, SlotSet, Timestamp};

use super::fault;
use super::overlay::Overlay;

/// Data blocks, in bytes: large enough for fast scans, small enough for single reads.
const DATA_BLOCK: u32 = 32 << 10;
/// Blocks of the change index and the meta data, in bytes.
const SMALL_BLOCK: u32 = 8 << 10;
/// A memtable of `data` or `changes`, in bytes. Up to five of each may stand in memory while the disk is slow.
const MEMTABLE: u64 = 8 << 20;
/// A memtable of `meta`, in bytes.
const META_MEMTABLE: u64 = 1 << 20;
/// All journals of one incarnation, in bytes.
const JOURNALS: u64 = 128 << 20;
/// Threads of one database that flush and compact. The library's first one only flushes: it hands a compaction back to the
/// queue, and while nobody else is free it takes and returns the same one without a pause, on a whole processor. With three
/// there is one to take it, which finds that there is nothing to do beside a compaction under way.
const WORKERS: usize = 3;

const BASE: &str = "base";
const COMMITS: &str = "commits";
const COLLECTED: &str = "collected";
const SAFE: &str = "safe";
const SPOOL: &str = "spool";
const PIN: &str = "pin/";
/// Longest name of a pin, in bytes.
pub(super) const MAX_PIN_NAME: usize = 256;
/// Most pins of one store.
pub(super) const MAX_PINS: usize = 10_000;

/// What the committed groups add up to; written with every group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Commits {
    /// Commits since the incarnation began.
    pub(super) position: u64,
    /// Highest commit timestamp.
    pub(super) highest: Timestamp,
    /// Versions with a value that were written.
    pub(super) records: u64,
    /// Bytes of their keys and values.
    pub(super) bytes: u64,
}

/// What collection took away; written by the collector alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Collected {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pin {
    at: Timestamp,
    /// Wall clock, milliseconds since 1970.
    lease_end: u64,
}

/// Pins, clones and the safe point move under one lock, so that none is taken below the safe point.
#[derive(Debug, Default)]
struct Pins {
    pins: BTreeMap<String, Pin>,
    /// What lies under clones: without an end.
    clones: BTreeMap<CloneName, Timestamp>,
    safe: Timestamp,
}

/// One incarnation's data, open.
pub(super) struct Generation {
    pub(super) incarnation: Incarnation,
    pub(super) slots: SlotSet,
    pub(super) data: Keyspace,
    pub(super) changes: Keyspace,
    pub(super) meta: Keyspace,
    pub(super) db: Database,
    base: AtomicU64,
    spool: AtomicU64,
    pins: Mutex<Pins>,
    collected: Mutex<Collected>,
    overlays: RwLock<BTreeMap<CloneName, Arc<Overlay>>>,
    /// Last field: the files go after the handles on them.
    removal: Removal,
}

struct Removal {
    dir: PathBuf,
    doomed: AtomicBool,
}

impl Drop for Removal {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Acquire)
            && let Err(e) = std::fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(dir = %self.dir.display(), error = %e, "cannot remove old data; the next start tries again");
        }
    }
}

/// How a keyspace is made.
pub(super) fn options(block: u32, memtable: u64) -> KeyspaceCreateOptions {
    // Every read is a range read, which asks no filter. Index blocks of lower levels go through the block cache.
    KeyspaceCreateOptions::default()
        .data_block_size_policy(BlockSizePolicy::all(block))
        .data_block_compression_policy(CompressionPolicy::disabled())
        .filter_policy(FilterPolicy::disabled())
        .max_memtable_size(memtable)
}

impl Generation {
    /// Opens or makes the database in `dir`.
    pub(super) fn open(dir: &Path, incarnation: Incarnation, slots: SlotSet, cache_bytes: u64) -> Result<Self> {
        let what = format!("open the data in {}", dir.display());
        let db = Database::builder(dir)
            .cache_size(cache_bytes)
            .max_journaling_size(JOURNALS)
            .worker_threads(WORKERS)
            .open()
            .map_err(fault::fjall(&what))?;
        let keyspace =
            |name, block, memtable| db.keyspace(name, || options(block, memtable)).map_err(fault::fjall(&what));
        let generation = Self {
            incarnation,
            slots,
            data: keyspace("data", DATA_BLOCK, MEMTABLE)?,
            changes: keyspace("changes", SMALL_BLOCK, MEMTABLE)?,
            meta: keyspace("meta", SMALL_BLOCK, META_MEMTABLE)?,
            db: db.clone(),
            base: AtomicU64::new(0),
            spool: AtomicU64::new(0),
            pins: Mutex::default(),
            collected: Mutex::default(),
            overlays: RwLock::default(),
            removal: Removal { dir: dir.to_owned(), doomed: AtomicBool::new(false) },
        };
        generation.recover()?;
        generation.recover_clones()?;
        Ok(generation)
    }

    fn recover(&self) -> Result<()> {
        let [base] = self.numbers(BASE)?;
        self.base.store(base, Ordering::Release);
        let [spool] = self.numbers(SPOOL)?;
        self.spool.store(spool, Ordering::Release);
        let [records, bytes] = self.numbers(COLLECTED)?;
        *self.collected.lock().expect("collected") = Collected { records, bytes };
        let mut pins = self.pins.lock().expect("pins");
        let [safe] = self.numbers(SAFE)?;
        pins.safe = Timestamp(safe);
        for item in self.meta.prefix(PIN) {
            let (key, value) = item.into_inner().map_err(fault::fjall("read the pins"))?;
            let [at, lease_end] = decode_numbers(&value)?;
            let name = String::from_utf8_lossy(&key[PIN.len()..]).into_owned();
            let _ = pins.pins.insert(name, Pin { at: Timestamp(at), lease_end });
        }
        Ok(())
    }

    /// The numbers of the committed groups.
    pub(super) fn commits(&self) -> Result<Commits> {
        let [position, highest, records, bytes] = self.numbers(COMMITS)?;
        Ok(Commits { position, highest: Timestamp(highest), records, bytes })
    }

    /// Puts the numbers into a batch.
    pub(super) fn put_commits(&self, batch: &mut OwnedWriteBatch, c: Commits) {
        batch.insert(&self.meta, COMMITS, encode_numbers([c.position, c.highest.0, c.records, c.bytes]));
    }

    /// What collection took away so far.
    pub(super) fn collected(&self) -> Collected {
        *self.collected.lock().expect("collected")
    }

    /// Puts the collector's new numbers into a batch.
    pub(super) fn put_collected(&self, batch: &mut OwnedWriteBatch, c: Collected) {
        *self.collected.lock().expect("collected") = c;
        batch.insert(&self.meta, COLLECTED, encode_numbers([c.records, c.bytes]));
    }

    /// The timestamp of loaded records.
    pub(super) fn base(&self) -> Timestamp {
        Timestamp(self.base.load(Ordering::Acquire))
    }

    /// Most bytes that are kept for the log, as was asked for last; `None` where nobody has.
    pub(super) fn spool(&self) -> Option<u64> {
        Some(self.spool.load(Ordering::Acquire)).filter(|bytes| *bytes > 0)
    }

    /// Takes note of that, durably: it counts after a restart, too.
    pub(super) fn set_spool(&self, bytes: u64) -> Result<()> {
        if self.spool.load(Ordering::Acquire) != bytes {
            let mut batch = self.durable_batch();
            batch.insert(&self.meta, SPOOL, encode_numbers([bytes]));
            batch.commit().map_err(fault::fjall("write the store's numbers"))?;
            self.spool.store(bytes, Ordering::Release);
        }
        Ok(())
    }

    /// Closes a load, durably: its records are at `at`, below which nothing is known.
    pub(super) fn set_base(&self, at: Timestamp, commits: Commits) -> Result<()> {
        let mut batch = self.durable_batch();
        batch.insert(&self.meta, BASE, encode_numbers([at.0]));
        batch.insert(&self.meta, SAFE, encode_numbers([at.0]));
        self.put_commits(&mut batch, commits);
        batch.commit().map_err(fault::fjall("close the load"))?;
        self.base.store(at.0, Ordering::Release);
        self.pins.lock().expect("pins").safe = at;
        Ok(())
    }

    /// A batch that is on disk when it is committed.
    pub(super) fn durable_batch(&self) -> OwnedWriteBatch {
        self.db.batch().durability(Some(PersistMode::SyncData))
    }

    /// Below it nothing can be read.
    pub(super) fn safe_point(&self) -> Timestamp {
        self.pins.lock().expect("pins").safe
    }

    /// `NotFound` below the safe point.
    pub(super) fn check_not_too_old(&self, at: Timestamp) -> Result<()> {
        check_at(at, self.safe_point())
    }

    /// Highest timestamp that pins, clones and the safe point speak of.
    pub(super) fn highest_promised(&self) -> Timestamp {
        let pins = self.pins.lock().expect("pins");
        pins.pins.values().map(|p| p.at).chain(pins.clones.values().copied()).fold(pins.safe, Timestamp::max)
    }

    /// The clone of this name.
    pub(super) fn clone_named(&self, name: &CloneName) -> Option<Arc<Overlay>> {
        self.overlays.read().expect("clones").get(name).cloned()
    }

    /// All clones, by name.
    pub(super) fn clones(&self) -> Vec<Arc<Overlay>> {
        self.overlays.read().expect("clones").values().cloned().collect()
    }

    /// Takes up a clone whose record is durable.
    pub(super) fn take_up(&self, overlay: Overlay) -> Arc<Overlay> {
        let (name, overlay) = (overlay.name.clone(), Arc::new(overlay));
        let _ = self.pins.lock().expect("pins").clones.insert(name.clone(), overlay.at);
        let _ = self.overlays.write().expect("clones").insert(name, Arc::clone(&overlay));
        overlay
    }

    /// Commits `batch`, the record of a clone, and keeps what a reader at `at` needs. `NotFound` below the safe point.
    pub(super) fn keep(&self, name: &CloneName, at: Timestamp, batch: OwnedWriteBatch) -> Result<()> {
        let mut pins = self.pins.lock().expect("pins");
        check_at(at, pins.safe)?;
        batch.commit().map_err(fault::fjall("write the record of a clone"))?;
        let _ = pins.clones.insert(name.clone(), at);
        Ok(())
    }

    /// Commits `batch`, which removes the record of a clone, and forgets it.
    pub(super) fn let_go(&self, name: &CloneName, batch: OwnedWriteBatch) -> Result<()> {
        let mut pins = self.pins.lock().expect("pins");
        batch.commit().map_err(fault::fjall("remove the record of a clone"))?;
        let _ = pins.clones.remove(name);
        let _ = self.overlays.write().expect("clones").remove(name);
        Ok(())
    }

    /// Sets or renews a pin, durably.
    pub(super) fn pin(&self, name: &str, at: Timestamp, lease: Duration, now: u64) -> Result<()> {
        if name.is_empty() || name.len() > MAX_PIN_NAME {
            return Err(Error::request(format!("a pin's name of {} bytes: use 1 to {MAX_PIN_NAME}", name.len())));
        }
        let lease_end = now.saturating_add(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
        let mut pins = self.pins.lock().expect("pins");
        check_at(at, pins.safe)?;
        if pins.pins.len() >= MAX_PINS && !pins.pins.contains_key(name) {
            return Err(Error::full(format!("{MAX_PINS} pins stand already: drop some first")));
        }
        let mut batch = self.durable_batch();
        batch.insert(&self.meta, [PIN, name].concat(), encode_numbers([at.0, lease_end]));
        batch.commit().map_err(fault::fjall("write a pin"))?;
        let _ = pins.pins.insert(name.to_owned(), Pin { at, lease_end });
        Ok(())
    }

    /// Drops a pin, durably.
    pub(super) fn unpin(&self, name: &str) -> Result<()> {
        let mut pins = self.pins.lock().expect("pins");
        if !pins.pins.contains_key(name) {
            return Ok(());
        }
        let mut batch = self.durable_batch();
        batch.remove(&self.meta, [PIN, name].concat());
        batch.commit().map_err(fault::fjall("drop a pin"))?;
        let _ = pins.pins.remove(name);
        Ok(())
    }

    /// Pins whose lease has not ended, and those of clones (`clone:<name>`).
    pub(super) fn pins(&self, now: u64) -> Vec<(String, Timestamp)> {
        let pins = self.pins.lock().expect("pins");
        let leased = pins.pins.iter().filter(|(_, p)| p.lease_end > now).map(|(name, p)| (name.clone(), p.at));
        leased.chain(pins.clones.iter().map(|(name, at)| (format!("clone:{name}"), *at))).collect()
    }

    /// Drops ended pins and moves the safe point up to `wanted`, but not over a pin; durably, before anybody may
    /// collect below it. Answers the safe point.
    pub(super) fn move_safe_point(&self, wanted: Timestamp, now: u64) -> Result<Timestamp> {
        let mut pins = self.pins.lock().expect("pins");
        let ended: Vec<_> =
            pins.pins.iter().filter(|(_, p)| p.lease_end <= now).map(|(name, _)| name.clone()).collect();
        let leased = pins.pins.values().filter(|p| p.lease_end > now).map(|p| p.at);
        let lowest = leased.chain(pins.clones.values().copied()).min();
        let safe = wanted.min(lowest.unwrap_or(Timestamp::MAX)).max(pins.safe);
        if safe == pins.safe && ended.is_empty() {
            return Ok(safe);
        }
        let mut batch = self.durable_batch();
        batch.insert(&self.meta, SAFE, encode_numbers([safe.0]));
        for name in &ended {
            batch.remove(&self.meta, [PIN, name].concat());
        }
        batch.commit().map_err(fault::fjall("move the safe point"))?;
        pins.pins.retain(|name, _| !ended.contains(name));
        pins.safe = safe;
        Ok(safe)
    }

    /// Removes the files when the last handle on them goes.
    pub(super) fn doom(&self) {
        self.removal.doomed.store(true, Ordering::Release);
    }

    fn numbers<const N: usize>(&self, key: &str) -> Result<[u64; N]> {
        let value = self.meta.get(key).map_err(fault::fjall("read the store's numbers"))?;
        value.map_or(Ok([0; N]), |v| decode_numbers(&v))
    }
}

/// `NotFound` below a safe point.
pub(super) fn check_at(at: Timestamp, safe: Timestamp) -> Result<()> {
    if at >= safe {
        return Ok(());
    }
    Err(Error::not_found(format!(
        "TooOld: timestamp {at} is below the safe point {safe}, older versions have been collected; \
         take a later timestamp, or keep more by a longer retention or a pin"
    )))
}

/// Numbers in a row, little-endian.
pub(super) fn encode_numbers<const N: usize>(numbers: [u64; N]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// The numbers of a row.
pub(super) fn decode_numbers<const N: usize>(bytes: &[u8]) -> Result<[u64; N]> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    if chunks.len() != N || !rest.is_empty() {
        return Err(Error::damaged("the store's own numbers are damaged: restore this node from a backup"));
    }
    Ok(std::array::from_fn(|i| u64::from_le_bytes(chunks[i])))
}
