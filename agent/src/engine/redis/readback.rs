//! What a server holds, read as a replica reads it, as a digest of what its records mean.
//!
//! A record that expires while the server is read may be met or not. So those that have expired by the end of the reading count as
//! they were loaded, all others as they were met. For that the records that are met are summed up by the second in which they
//! expire: what is in memory depends on the time that the reading takes and not on the number of keys. Hashes whose fields expire
//! one by one are known by their keys: one that lacks nothing but what has expired counts as it was loaded.

use std::collections::{BTreeMap, HashMap};

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::rdb::lasting::Lasting;
use tidemark_common::rdb::{Class, RdbSink, RecordHead, ValueSummary, class_of};
use tidemark_common::record::{RedisMeta, record_hash, redis_key};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::{Error, Result, SlotSet, slot_of};

use super::conn::{Address, Login};
use super::notes::Volatile;
use super::sync::read_once;

/// Longest reading, in seconds: a day, for which the sums take some megabytes.
const LONGEST: i64 = 24 * 60 * 60;
/// Longest hash whose fields expire that is compared field by field, in bytes.
const MOST_HELD: usize = 1 << 30;

/// Sums up records of some slots.
#[derive(Debug)]
struct Sum<'a> {
    slots: &'a SlotSet,
    /// When the reading began, in seconds since 1970.
    begun: i64,
    /// Records that do not expire, or not while a server can be read.
    lasting: SetDigest,
    /// Those that expire earlier, by the second in which they do.
    expiring: BTreeMap<i64, SetDigest>,
    /// Hashes that were loaded, by key, whose fields expire one by one.
    volatile: HashMap<u128, Volatile>,
    key: Vec<u8>,
    meta: Option<RedisMeta>,
    /// The record at hand, if it is one of these, and its value.
    fading: Option<u128>,
    raw: Vec<u8>,
    encoded: Vec<u8>,
}

impl<'a> Sum<'a> {
    fn new(slots: &'a SlotSet, begun: i64, volatile: HashMap<u128, Volatile>) -> Self {
        Self {
            slots,
            begun,
            lasting: SetDigest::default(),
            expiring: BTreeMap::new(),
            volatile,
            key: Vec::new(),
            meta: None,
            fading: None,
            raw: Vec::new(),
            encoded: Vec::new(),
        }
    }

    /// What was met and does not expire before this second.
    fn from(&self, second: i64) -> SetDigest {
        self.expiring.range(second..).fold(self.lasting, |sum, (_, digest)| sum.plus(*digest))
    }

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

    /// When the record at hand goes, as its part's list of expiring records has it.
    fn ends(&self, meta: &RedisMeta) -> Option<i64> {
        let loaded = self.fading.and_then(|key| self.volatile.get(&key));
        [meta.expire_at_millis, loaded.and_then(|loaded| loaded.fields.ends())].into_iter().flatten().min()
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
        let second = self.ends(&meta).map(|at| at.div_euclid(1000));
        match second.filter(|second| *second <= self.begun + LONGEST) {
            Some(second) => self.expiring.entry(second.max(self.begun)).or_default().add(hash),
            None => self.lasting.add(hash),
        }
        Ok(())
    }
}

/// The digest of the server's records in `slots`. What expires by the end of the reading counts as it was loaded: `loaded` answers
/// that of all records that were put there and expire before a time (milliseconds since 1970). A hash of `volatile` of which
/// fields have expired counts as it was loaded, too.
pub(super) fn read_back(
    address: &Address,
    login: &Login,
    slots: &SlotSet,
    volatile: HashMap<u128, Volatile>,
    loaded: impl FnOnce(i64) -> Result<SetDigest>,
) -> Result<SetDigest> {
    let seconds = || SystemClock.millis() as i64 / 1000;
    let mut sum = Sum::new(slots, seconds(), volatile);
    read_once(address, login, &mut sum)?;
    // Whole seconds, as they were summed up.
    let ended = seconds() + 1;
    if ended > sum.begun + LONGEST {
        return Err(Error::unsupported("reading the server back took longer than a day"));
    }
    Ok(sum.from(ended).plus(loaded(ended * 1000)?))
}

#[cfg(test)]
mod tests {
    use tidemark_common::rdb::Family;

    use super::*;

    fn meet(sum: &mut Sum<'_>, key: &[u8], expire_at_millis: Option<i64>) -> u128 {
        let head = RecordHead {
            db: 0,
            key,
            type_byte: 0,
            family: Family::Redis,
            expire_at_millis,
            lru_idle_seconds: None,
            lfu_freq: None,
        };
        sum.begin(&head).unwrap();
        sum.end(ValueSummary { raw_len: 1, meaning: 7, elements: 1 }).unwrap();
        record_hash(&sum.key, &sum.encoded, &[])
    }

    #[test]
    fn records_count_as_met_unless_they_have_expired() {
        let slots = SlotSet::all();
        let mut sum = Sum::new(&slots, 1000, HashMap::new());
        let mut met = |key: &[u8], at| meet(&mut sum, key, at);
        // The second one had expired before the reading, and was not dropped yet.
        let (lasting, _) = (met(b"a", None), met(b"b", Some(999_000)));
        let (soon, border) = (met(b"c", Some(1_003_999)), met(b"d", Some(1_004_000)));
        let far = met(b"e", Some((1000 + LONGEST + 1) * 1000));
        let of = |hashes: &[u128]| {
            let mut digest = SetDigest::default();
            hashes.iter().for_each(|hash| digest.add(*hash));
            digest
        };
        assert_eq!(sum.from(1004), of(&[lasting, border, far]));
        assert_eq!(sum.from(1003), of(&[lasting, soon, border, far]));
        let none = SlotSet::EMPTY;
        let mut elsewhere = Sum::new(&none, 1000, HashMap::new());
        let _ = meet(&mut elsewhere, b"a", None);
        assert_eq!(elsewhere.from(0), SetDigest::default(), "of other slots");
    }
}
