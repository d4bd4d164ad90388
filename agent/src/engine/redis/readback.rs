//! What a server holds, read as a replica reads it, as a digest of what its records mean.

use std::collections::HashMap;

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::rdb::{RdbSink, RecordHead, ValueSummary};
use tidemark_common::record::{RedisMeta, record_hash, redis_key};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::{Result, SlotSet, slot_of};

use super::conn::{Address, Login};
use super::sync::read_once;

/// Sums up records of some slots, and looks for those of a list.
#[derive(Debug)]
struct Sum<'a> {
    slots: &'a SlotSet,
    digest: SetDigest,
    /// Expiring records that were loaded, by hash: when they expire, and how many of that hash were not met yet.
    expiring: HashMap<u128, (i64, u64)>,
    key: Vec<u8>,
    meta: Option<RedisMeta>,
    encoded: Vec<u8>,
}

impl RdbSink for Sum<'_> {
    fn begin(&mut self, head: &RecordHead<'_>) -> Result<()> {
        redis_key(head.db, head.key, &mut self.key);
        self.meta = self.slots.contains(slot_of(head.key)).then(|| RedisMeta::of(head, 0));
        Ok(())
    }

    fn value(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, summary: ValueSummary) -> Result<()> {
        let Some(meta) = self.meta.take() else { return Ok(()) };
        RedisMeta { meaning: summary.meaning, ..meta }.encode(&mut self.encoded);
        let hash = record_hash(&self.key, &self.encoded, &[]);
        self.digest.add(hash);
        if let Some((_, left)) = self.expiring.get_mut(&hash) {
            *left = left.saturating_sub(1);
        }
        Ok(())
    }
}

/// The digest of the server's records in `slots`. `expiring` are records that were put there, with the time at which each
/// expires: one that is gone, and had expired by the end of the reading, counts as if it were there.
pub(super) fn read_back(
    address: &Address,
    login: &Login,
    slots: &SlotSet,
    expiring: Vec<(i64, u128)>,
) -> Result<SetDigest> {
    let mut by_hash: HashMap<u128, (i64, u64)> = HashMap::with_capacity(expiring.len());
    for (at, hash) in expiring {
        by_hash.entry(hash).or_insert((at, 0)).1 += 1;
    }
    let (digest, encoded) = (SetDigest::default(), Vec::new());
    let mut sum = Sum { slots, digest, expiring: by_hash, key: Vec::new(), meta: None, encoded };
    read_once(address, login, &mut sum)?;
    let now = SystemClock.millis() as i64;
    for (hash, (_, left)) in sum.expiring.into_iter().filter(|(_, (at, _))| *at <= now) {
        (0..left).for_each(|_| sum.digest.add(hash));
    }
    Ok(sum.digest)
}
