//! From a snapshot to the run of a part: full, as a delta by the engine's changes, as a delta by the key index, or as what differs from
//! a part that was sent before the cut.
//!
//! Every record is checked to lie in the part: a record outside of it fails the backup instead of hiding in it.

mod join;
mod over;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tidemark_common::record::slot_of_record;
use tidemark_common::run::{Entry, RunSummary, RunWriter};
use tidemark_common::seal::Sealer;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::run::sort_key;
use tidemark_proto::{Error, Result, SlotSet, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::engine::{LongRecord, Next, Packed, RecordRef, ScanRange, Scanned, Snapshot, record_hash};
use crate::keyindex::IndexWriter;

/// Records between two looks at the cancellation token.
const CANCEL_EVERY: u64 = 1024;

/// How a part's run is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// Every record.
    Full,
    /// What the engine says has changed since the timestamp.
    Changes(Timestamp),
    /// What differs from this key index.
    KeyIndex(PathBuf),
    /// What was written since the base and differs from this key index, which is that of the part as it was sent before the cut.
    Over(PathBuf),
}

/// Counters of a running upload, shared by its parts.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of keys, meta and values read.
    pub bytes: AtomicU64,
    /// Records read.
    pub records: AtomicU64,
    /// Bytes sent.
    pub wire_bytes: AtomicU64,
    /// Parts done.
    pub parts: AtomicU64,
    /// What is read and sent under another command of the job, and counts too.
    pub before: OnceLock<Arc<Counters>>,
}

/// The run of a part.
#[derive(Debug)]
pub struct BuiltPart {
    /// First sort key past the part; empty = to the end of its slots.
    pub upper: Vec<u8>,
    /// What was written.
    pub run: RunSummary,
    /// Digest of the records (full), or what to add to the parent's (delta).
    pub digest: SetDigest,
    /// Live bytes (full), or what to add to the parent's (delta; wraps).
    pub live_bytes: u64,
}

/// What a part is made of.
#[derive(Debug)]
pub struct PartInput<'a> {
    /// The state.
    pub snapshot: &'a dyn Snapshot,
    /// The part's range.
    pub range: &'a ScanRange,
    /// How.
    pub method: &'a Method,
    /// Where to write the new key index, if the engine needs one.
    pub new_index: Option<&'a Path>,
    /// A full run is closed at about this many bytes.
    pub part_bytes: u64,
    /// Counters to raise.
    pub counters: &'a Counters,
    /// Ends the work.
    pub cancel: &'a CancellationToken,
}

impl std::fmt::Debug for dyn Snapshot + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Snapshot").field(&self.at()).finish()
    }
}

/// Builds a part's run; sealed blocks go to `sink` in order.
pub fn build(input: &PartInput<'_>, sealer: &Sealer, sink: impl FnMut(Vec<u8>) -> Result<()>) -> Result<BuiltPart> {
    if let Method::Over(early) = input.method
        && !over::is_touched(input)?
    {
        return Ok(over::as_it_came(input, early));
    }
    let mut builder = Builder {
        input,
        writer: RunWriter::new(sealer, sink)?,
        index: input.new_index.map(IndexWriter::create).transpose()?,
        digest: SetDigest::default(),
        live_bytes: 0,
        upper: input.range.upper.clone(),
        seen: 0,
    };
    match input.method {
        Method::Full => builder.full()?,
        Method::Changes(since) => builder.changes(*since)?,
        Method::KeyIndex(old) => builder.merge_join(old)?,
        Method::Over(early) => builder.over(early)?,
    }
    if let Some(index) = builder.index.take() {
        index.finish()?;
    }
    let (upper, digest, live_bytes) = (builder.upper, builder.digest, builder.live_bytes);
    Ok(BuiltPart { upper, run: builder.writer.finish()?, digest, live_bytes })
}

struct Builder<'a, F> {
    input: &'a PartInput<'a>,
    writer: RunWriter<'a, F>,
    index: Option<IndexWriter>,
    digest: SetDigest,
    live_bytes: u64,
    upper: Vec<u8>,
    seen: u64,
}

fn bytes_of(record: &RecordRef<'_>) -> u64 {
    (record.key.len() + record.meta.len() + record.value.len()) as u64
}

fn entry<'a>(record: &RecordRef<'a>) -> Entry<'a> {
    Entry { slot: record.slot, key: record.key, put: Some((record.meta, record.value)) }
}

impl<F: FnMut(Vec<u8>) -> Result<()>> Builder<'_, F> {
    fn check(&mut self, slot: u16, key: &[u8], meta: &[u8]) -> Result<()> {
        self.seen += 1;
        if self.seen.is_multiple_of(CANCEL_EVERY) && self.input.cancel.is_cancelled() {
            return Err(Error::cancelled("the upload was ended"));
        }
        if slot_of_record(key, meta) != slot || !self.input.range.slots.contains(slot) {
            let slots = &self.input.range.slots;
            return Err(Error::damaged(format!(
                "the store gave a record of slot {slot} where a part holds {slots}"
            )));
        }
        Ok(())
    }

    fn count(&self, bytes: u64, records: u64) {
        let _ = self.input.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        let _ = self.input.counters.records.fetch_add(records, Ordering::Relaxed);
    }

    fn plus(&mut self, hash: u128, bytes: u64) {
        self.digest.add(hash);
        self.live_bytes = self.live_bytes.wrapping_add(bytes);
    }

    fn minus(&mut self, hash: u128, bytes: u64) {
        self.digest.remove(hash);
        self.live_bytes = self.live_bytes.wrapping_sub(bytes);
    }

    fn remember(&mut self, slot: u16, key: &[u8], bytes: u64, hash: u128) -> Result<()> {
        match &mut self.index {
            Some(index) => index.push(&sort_key(slot, key), bytes, hash),
            None => Ok(()),
        }
    }

    fn full(&mut self) -> Result<()> {
        let input = self.input;
        input.snapshot.scan_packed(input.range, &mut |scanned| {
            let record = match scanned {
                Scanned::Record(record) => record,
                Scanned::Packed(packed) => return self.packed(&packed),
                Scanned::Long(record) => return self.long(&record),
            };
            if self.writer.raw_bytes() >= input.part_bytes {
                self.upper = sort_key(record.slot, record.key);
                return Ok(Next::Stop);
            }
            self.check(record.slot, record.key, record.meta)?;
            let (bytes, hash) = (bytes_of(&record), record_hash(record));
            self.count(bytes, 1);
            self.plus(hash, bytes);
            self.remember(record.slot, record.key, bytes, hash)?;
            self.writer.push(entry(&record))?;
            Ok(Next::Go)
        })
    }

    fn long(&mut self, record: &LongRecord<'_>) -> Result<Next> {
        let LongRecord { slot, key, meta, value } = *record;
        if self.writer.raw_bytes() >= self.input.part_bytes {
            self.upper = sort_key(slot, key);
            return Ok(Next::Stop);
        }
        self.check(slot, key, meta)?;
        let (bytes, hash) = (record.bytes(), record.hash()?);
        self.count(bytes, 1);
        self.plus(hash, bytes);
        self.remember(slot, key, bytes, hash)?;
        self.writer.push_long(slot, key, meta, value.len(), &mut value.reader())?;
        Ok(Next::Go)
    }

    /// Takes packed records as they are; where the part ends among them, or may, they are asked for one by one.
    fn packed(&mut self, packed: &Packed<'_>) -> Result<Next> {
        let (block, input) = (&packed.block, self.input);
        if input.cancel.is_cancelled() {
            return Err(Error::cancelled("the upload was ended"));
        }
        let slot_of = |key: &[u8]| key.first_chunk::<2>().map(|slot| u16::from_be_bytes(*slot));
        let (Some(first), Some(last)) = (slot_of(block.first), slot_of(block.last)) else {
            return Err(Error::bug("packed records without slots"));
        };
        let slots = SlotSet::range(first, last);
        let inside = input.range.slots.intersect(&slots) == slots;
        if !inside || self.writer.raw_bytes() + block.bytes > input.part_bytes {
            return Ok(Next::Open);
        }
        self.count(block.bytes, u64::from(block.records));
        self.digest = self.digest.plus(packed.digest);
        self.live_bytes = self.live_bytes.wrapping_add(block.bytes);
        if let Some(index) = &mut self.index {
            index.push_entries(packed.entries)?;
        }
        self.writer.push_packed(block)?;
        Ok(Next::Go)
    }

    fn changes(&mut self, since: Timestamp) -> Result<()> {
        let input = self.input;
        input.snapshot.changes(since, input.range, &mut |change| {
            let Some(either) = change.new.or(change.old) else {
                return Err(Error::bug("a change of nothing into nothing"));
            };
            self.check(either.slot, either.key, either.meta)?;
            if let Some(old) = change.old {
                self.count(bytes_of(&old), 1);
                self.minus(record_hash(old), bytes_of(&old));
            }
            match change.new {
                Some(new) => {
                    self.count(bytes_of(&new), 1);
                    self.plus(record_hash(new), bytes_of(&new));
                    self.writer.push(entry(&new))?;
                }
                None => self.writer.push(Entry { slot: either.slot, key: either.key, put: None })?,
            }
            Ok(ControlFlow::Continue(()))
        })
    }
}
