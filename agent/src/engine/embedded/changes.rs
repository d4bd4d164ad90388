//! Changes since a timestamp: slot by slot, from the change index.
//!
//! The keys that changed in a slot are gathered and sorted; each is then looked up at both timestamps. When they do
//! not fit into [`GATHER_BYTES`], the slot is compared in one pass over all its versions instead, which needs no
//! memory: so memory is bounded whatever changed, and the cost is never above that of a scan.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use fjall::{Readable, UserKey, UserValue};
use tidemark_proto::{Error, Result, Timestamp};

use super::read::View;
use super::{fault, key, value};
use crate::engine::{ChangeRef, ChangeVisitor, RecordRef, ScanRange};

/// Most bytes of changed keys that are gathered for one slot, with [`GATHER_OVERHEAD`] for each.
const GATHER_BYTES: usize = 4 << 20;
/// What one gathered key costs beside its bytes.
const GATHER_OVERHEAD: usize = 48;

/// The versions of one key that matter, as stored.
#[derive(Default)]
struct Pair {
    key: Option<UserKey>,
    new: Option<UserValue>,
    old: Option<UserValue>,
}

impl View {
    /// See `Snapshot::changes`.
    pub(super) fn visit_changes(
        &self,
        since: Timestamp,
        range: &ScanRange,
        visit: &mut ChangeVisitor<'_>,
    ) -> Result<()> {
        if since < self.floor {
            return Err(Error::not_found(format!(
                "TooOld: changes since {since} are below the safe point {}: take everything",
                self.floor
            )));
        }
        if since >= self.at {
            return Ok(());
        }
        for (from, to) in Self::ranges(range)? {
            let (mut slot, end) = (key::slot(&from)?, to.as_slice());
            while let Some(next) = self.next_changed_slot(slot, since, end)? {
                if self.slot_changes(next, since, &from, end, visit)?.is_break() {
                    return Ok(());
                }
                slot = next + 1;
            }
        }
        Ok(())
    }

    /// The first slot from `slot` on, beginning below `end`, in which anything was written in the time asked for.
    pub(super) fn next_changed_slot(&self, mut slot: u16, since: Timestamp, end: &[u8]) -> Result<Option<u16>> {
        loop {
            if key::slot_start(slot).as_slice() >= end {
                return Ok(None);
            }
            let from = key::change_start(slot, since.next());
            let Some(item) = self.snapshot.range(&self.generation.changes, from..).next() else {
                return Ok(None);
            };
            let entry = item.key().map_err(fault::fjall("read the change index"))?;
            let (found, at, _) = key::split_change(&entry)?;
            if found > slot {
                slot = found;
            } else if at <= self.at {
                return Ok(Some(slot));
            } else {
                slot += 1;
            }
        }
    }

    fn slot_changes(
        &self,
        slot: u16,
        since: Timestamp,
        from: &[u8],
        end: &[u8],
        visit: &mut ChangeVisitor<'_>,
    ) -> Result<ControlFlow<()>> {
        let low = from.max(&key::slot_start(slot)).to_vec();
        let high = end.min(&key::slot_start(slot + 1)).to_vec();
        let Some(prefixes) = self.gather(slot, since, &low, &high)? else {
            return self.compare(&low, &high, since, visit);
        };
        for prefix in prefixes {
            let mut first = prefix.to_vec();
            key::push_time(&mut first, self.at);
            if self.compare(&first, &key::end_of_versions(&prefix), since, visit)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Prefixes of the keys that were written, sorted; `None` when they are too many.
    fn gather(&self, slot: u16, since: Timestamp, low: &[u8], high: &[u8]) -> Result<Option<BTreeSet<Box<[u8]>>>> {
        let (mut out, mut bytes, mut prefix) = (BTreeSet::new(), 0, Vec::new());
        let (first, last) = (key::change_start(slot, since.next()), key::change_start(slot, self.at.next()));
        for item in self.snapshot.range(&self.generation.changes, first..last) {
            let entry = item.key().map_err(fault::fjall("read the change index"))?;
            let (_, _, raw) = key::split_change(&entry)?;
            key::encode_prefix(&mut prefix, slot, raw);
            if prefix.as_slice() < low || prefix.as_slice() >= high || out.contains(prefix.as_slice()) {
                continue;
            }
            bytes += prefix.len() + GATHER_OVERHEAD;
            if bytes > GATHER_BYTES {
                return Ok(None);
            }
            let _ = out.insert(prefix.clone().into_boxed_slice());
        }
        Ok(Some(out))
    }

    /// Compares both times for every key with versions in a byte range.
    fn compare(
        &self,
        from: &[u8],
        to: &[u8],
        since: Timestamp,
        visit: &mut ChangeVisitor<'_>,
    ) -> Result<ControlFlow<()>> {
        let (mut pair, mut scratch) = (Pair::default(), Vec::new());
        for item in self.versions(from, to) {
            let (encoded, stored) = item?;
            let (prefix, at) = key::split(&encoded)?;
            let at = self.effective(at);
            let same = match &pair.key {
                Some(k) => key::split(k)?.0 == prefix,
                None => false,
            };
            if !same {
                if pair.visit(&mut scratch, visit)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                pair = Pair { key: Some(encoded.clone()), ..Pair::default() };
            }
            if at <= self.at && pair.new.is_none() {
                pair.new = Some(stored.clone());
            }
            if at <= since && pair.old.is_none() {
                pair.old = Some(stored);
            }
        }
        pair.visit(&mut scratch, visit)
    }
}

impl Pair {
    fn visit(&self, scratch: &mut Vec<u8>, visit: &mut ChangeVisitor<'_>) -> Result<ControlFlow<()>> {
        let Some(encoded) = &self.key else { return Ok(ControlFlow::Continue(())) };
        let (old, new) = (live(&self.old)?, live(&self.new)?);
        if old == new {
            return Ok(ControlFlow::Continue(()));
        }
        let (slot, key) = key::decode(key::split(encoded)?.0, scratch)?;
        let record = |value| RecordRef { slot, key, meta: &[], value };
        visit(ChangeRef { old: old.map(record), new: new.map(record) })
    }
}

fn live(stored: &Option<UserValue>) -> Result<Option<&[u8]>> {
    stored.as_ref().map_or(Ok(None), |s| value::read(s))
}
