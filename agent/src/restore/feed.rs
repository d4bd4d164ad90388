//! Giving records to the loader: those that are wanted, changed as the restore says.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidemark_common::record::slot_of_record;
use tidemark_common::run::{Entry, LongValue};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::{Error, Result};

use super::options::{ChangedLong, Changes};
use super::{CANCEL_EVERY, LoadJob};
use crate::engine::{LongRecord, PartLoader, RecordRef, record_hash};

/// The record of an entry that is a put. `Damaged` where it stands under another slot than its own.
pub(super) fn record_of<'e>(entry: &Entry<'e>) -> Result<RecordRef<'e>> {
    let (meta, value) = entry.put.unwrap_or_default();
    if slot_of_record(entry.key, meta) != entry.slot {
        return Err(Error::damaged(format!("a record stands under slot {} that is not its own", entry.slot)));
    }
    Ok(RecordRef { slot: entry.slot, key: entry.key, meta, value })
}

/// Feeds the loader of a part, then of those behind it in its row.
pub(super) struct Feed {
    job: Arc<LoadJob>,
    loader: Box<dyn PartLoader>,
    rule: Changes,
    seen: u64,
}

impl Feed {
    /// Begins part `number`.
    pub(super) fn begin(job: &Arc<LoadJob>, number: u32) -> Result<Self> {
        let (loader, rule) = (job.session.loader.part(number)?, Changes::new(job.session.expiry));
        Ok(Self { job: job.clone(), loader, rule, seen: 0 })
    }

    /// `Cancelled` when the command was; looks now and then.
    pub(super) fn tick(&mut self) -> Result<()> {
        self.seen += 1;
        match self.seen.is_multiple_of(CANCEL_EVERY) && self.job.cancel.is_cancelled() {
            true => Err(Error::cancelled("the restore was ended")),
            false => Ok(()),
        }
    }

    fn count(&self, bytes: u64) {
        let _ = self.job.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        let _ = self.job.counters.records.fetch_add(1, Ordering::Relaxed);
    }

    /// The next record; `hash` is its own, where it is known.
    pub(super) fn give(&mut self, entry: Entry<'_>, hash: Option<u128>) -> Result<()> {
        self.tick()?;
        let record = record_of(&entry)?;
        self.count((record.key.len() + record.meta.len() + record.value.len()) as u64);
        if !self.job.selection.takes(&entry)? {
            return Ok(());
        }
        match self.rule.change(record)? {
            None => self.loader.put(record, hash.unwrap_or_else(|| record_hash(record))),
            Some(changed) => self.loader.put(changed, record_hash(changed)),
        }
    }

    /// The next record, whose value is `long` where that is given.
    pub(super) fn give_any(&mut self, entry: &Entry<'_>, long: Option<&LongValue>) -> Result<()> {
        let Some(value) = long else { return self.give(*entry, None) };
        let RecordRef { slot, key, meta, .. } = record_of(entry)?;
        let record = LongRecord { slot, key, meta, value };
        self.give_long(entry, record, record.hash()?)
    }

    /// The next record, whose long value is read piece by piece.
    pub(super) fn give_long(&mut self, entry: &Entry<'_>, record: LongRecord<'_>, hash: u128) -> Result<()> {
        self.tick()?;
        self.count(record.bytes());
        if !self.job.selection.takes(entry)? {
            return Ok(());
        }
        match self.rule.change_long(&record)? {
            ChangedLong::Same => self.loader.put_long(record, hash),
            ChangedLong::Meta(meta) => {
                let changed = LongRecord { meta, ..record };
                self.loader.put_long(changed, changed.hash()?)
            }
            ChangedLong::All(changed) => self.loader.put(changed, record_hash(changed)),
        }
    }

    /// Ends the part with the digest of its source and goes on with part `number`; answers the digest of what was put.
    pub(super) fn then(&mut self, source: SetDigest, number: u32) -> Result<SetDigest> {
        self.loader.then(source, number)
    }

    /// Makes the part, and those of its row before it, durable with the digest of its source; answers the digest of what was put.
    pub(super) fn finish(self, source: SetDigest) -> Result<SetDigest> {
        self.loader.finish(source)
    }
}
