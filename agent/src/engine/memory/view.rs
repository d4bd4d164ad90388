//! Reads of the reference engine.

use std::ops::Bound;
use std::sync::Arc;

use tidemark_proto::{Error, Result, Timestamp};

use super::{Data, Key};
use crate::engine::{ChangeVisitor, RecordRef, RecordVisitor, ScanRange, Snapshot};

/// All versions, read at one timestamp.
pub(super) struct View {
    pub(super) at: Timestamp,
    pub(super) data: Arc<Data>,
}

impl View {
    /// Live records from a bound on.
    pub(super) fn live(&self, from: Bound<Key>) -> impl Iterator<Item = (&Key, Timestamp, &Vec<u8>)> {
        self.data.range((from, Bound::Unbounded)).filter_map(|(key, versions)| {
            let (at, value) = versions.range(..=self.at).next_back()?;
            Some((key, *at, value.as_ref()?))
        })
    }
}

pub(super) fn sort_key(slot: u16, key: &[u8]) -> Vec<u8> {
    [&slot.to_be_bytes(), key].concat()
}

impl Snapshot for View {
    fn at(&self) -> Timestamp {
        self.at
    }

    fn scan(&self, range: &ScanRange, visit: &mut RecordVisitor<'_>) -> Result<()> {
        for ((slot, key), _, value) in self.live(Bound::Unbounded) {
            let sort = sort_key(*slot, key);
            let within = sort >= range.lower && (range.upper.is_empty() || sort < range.upper);
            if range.slots.contains(*slot)
                && within
                && visit(RecordRef { slot: *slot, key, meta: &[], value })?.is_break()
            {
                break;
            }
        }
        Ok(())
    }

    fn changes(&self, _: Timestamp, _: &ScanRange, _: &mut ChangeVisitor<'_>) -> Result<()> {
        Err(Error::unsupported("the memory engine keeps no changes: compare with an index of the keys"))
    }
}
