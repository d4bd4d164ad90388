//! What a server holds, read as a replica reads it, as a digest of what its records mean.

use std::collections::HashMap;

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::rdb::lasting::Lasting;
use tidemark_common::rdb::{Class, RdbSink, RecordHead, ValueSummary, class_of};
use tidemark_common::record::{RedisMeta, record_hash, redis_key};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::{Result, SlotSet, slot_of};

use super::conn::{Address, Login};
use super::notes::{Expiring, Volatile};
use super::sync::read_once;

/// Longest hash whose fields expire that is compared field by field, in bytes.
const MOST_HELD: usize = 1 << 30;

/// Sums up records of some slots, and looks for those of a list.
#[derive(Debug)]
struct Sum<'a> {
    slots: &'a SlotSet,
    digest: SetDigest,
    /// Expiring records that were loaded, by hash: when they expire, and how many of that hash were not met yet.
    expiring: HashMap<u128, (i64, u64)>,
    /// Hashes that were loaded, by key, whose fields expire one by one.
    volatile: HashMap<u128, Volatile>,
    key: Vec<u8>,
    meta: Option<RedisMeta>,
    /// The record at hand, if it is one of these, and its value.
    fading: Option<u128>,
    raw: Vec<u8>,
    encoded: Vec<u8>,
}

impl Sum<'_> {
    /// What the record at hand meant when it was loaded, where all that it lacks has expired since.
    fn meant(&self, meta: &RedisMeta, summary: &ValueSummary) -> Result<u128> {
        let loaded = self.fading.and_then(|key| self.volatile.get(&key));
        let Some(loaded) = loaded.filter(|loaded| loaded.meaning != summary.meaning) else {
            return Ok(summary.meaning);
        };
        if self.raw.len() as u64 != summary.raw_len || class_of(meta.type_byte, meta.family) != Some(Class::Hash) {
            return Ok(summary.meaning);
        }
        // A field that expires later than now was there when the server began to send.
        let now = SystemClock.millis() as i64;
        let found = Lasting::of(meta.type_byte, meta.family, &self.raw[..])?;
        let whole = found.left(now) == loaded.fields.left(now);
        Ok(if whole { loaded.meaning } else { summary.meaning })
    }
}

impl RdbSink for Sum<'_> {
    fn begin(&mut self, head: &RecordHead<'_>) -> Result<()> {
        redis_key(head.db, head.key, &mut self.key);
        self.meta = self.slots.contains(slot_of(head.key)).then(|| RedisMeta::of(head, 0));
        self.raw.clear();
        self.fading = (!self.volatile.is_empty()).then(|| Volatile::hash(&self.key));
        self.fading = self.fading.filter(|key| self.volatile.contains_key(key));
        Ok(())
    }

    fn value(&mut self, piece: &[u8]) -> Result<()> {
        if self.fading.is_some() && self.raw.len() + piece.len() <= MOST_HELD {
            self.raw.extend_from_slice(piece);
        }
        Ok(())
    }

    fn end(&mut self, summary: ValueSummary) -> Result<()> {
        let Some(meta) = self.meta.take() else { return Ok(()) };
        let meaning = self.meant(&meta, &summary)?;
        RedisMeta { meaning, ..meta }.encode(&mut self.encoded);
        let hash = record_hash(&self.key, &self.encoded, &[]);
        self.digest.add(hash);
        if let Some((_, left)) = self.expiring.get_mut(&hash) {
            *left = left.saturating_sub(1);
        }
        Ok(())
    }
}

/// The digest of the server's records in `slots`. `expiring` are records that were put there, with the time at which each
/// expires: one that is gone, and had expired by the end of the reading, counts as if it were there. So does a hash of which fields
/// have expired, if it is one of those that are given too.
pub(super) fn read_back(
    address: &Address,
    login: &Login,
    slots: &SlotSet,
    (expiring, volatile): (Vec<Expiring>, HashMap<u128, Volatile>),
) -> Result<SetDigest> {
    let mut by_hash: HashMap<u128, (i64, u64)> = HashMap::with_capacity(expiring.len());
    for (at, hash) in expiring {
        by_hash.entry(hash).or_insert((at, 0)).1 += 1;
    }
    let (digest, key, raw, encoded) = (SetDigest::default(), Vec::new(), Vec::new(), Vec::new());
    let mut sum = Sum { slots, digest, expiring: by_hash, volatile, key, meta: None, fading: None, raw, encoded };
    read_once(address, login, &mut sum)?;
    let now = SystemClock.millis() as i64;
    for (hash, (_, left)) in sum.expiring.into_iter().filter(|(_, (at, _))| *at <= now) {
        (0..left).for_each(|_| sum.digest.add(hash));
    }
    Ok(sum.digest)
}
