//! From a snapshot to the run of a part: full, as a delta by the engine's changes, or as a delta by the key index.
//!
//! Every record is checked to lie in the part: a record outside of it fails the backup instead of hiding in it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_common::record::slot_of_record;
use tidemark_common::run::{Entry, RunSummary, RunWriter};
use tidemark_common::seal::Sealer;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::run::sort_key;
use tidemark_proto::{Error, Result, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::engine::{RecordRef, ScanRange, Snapshot, record_hash};
use crate::keyindex::{IndexReader, IndexWriter};

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
    fn check(&mut self, record: &RecordRef<'_>) -> Result<()> {
        let slot = record.slot;
        self.seen += 1;
        if self.seen.is_multiple_of(CANCEL_EVERY) && self.input.cancel.is_cancelled() {
            return Err(Error::cancelled("the upload was ended"));
        }
        if slot_of_record(record.key, record.meta) != slot || !self.input.range.slots.contains(slot) {
            let slots = &self.input.range.slots;
            return Err(Error::damaged(format!(
                "the store gave a record of slot {slot} where a part holds {slots}"
            )));
        }
        Ok(())
    }

    fn count(&self, bytes: u64) {
        let _ = self.input.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        let _ = self.input.counters.records.fetch_add(1, Ordering::Relaxed);
    }

    fn plus(&mut self, hash: u128, bytes: u64) {
        self.digest.add(hash);
        self.live_bytes = self.live_bytes.wrapping_add(bytes);
    }

    fn minus(&mut self, hash: u128, bytes: u64) {
        self.digest.remove(hash);
        self.live_bytes = self.live_bytes.wrapping_sub(bytes);
    }

    fn remember(&mut self, record: &RecordRef<'_>, bytes: u64, hash: u128) -> Result<()> {
        match &mut self.index {
            Some(index) => index.push(&sort_key(record.slot, record.key), bytes, hash),
            None => Ok(()),
        }
    }

    fn full(&mut self) -> Result<()> {
        let input = self.input;
        input.snapshot.scan(input.range, &mut |record| {
            if self.writer.raw_bytes() >= input.part_bytes {
                self.upper = sort_key(record.slot, record.key);
                return Ok(ControlFlow::Break(()));
            }
            self.check(&record)?;
            let (bytes, hash) = (bytes_of(&record), record_hash(record));
            self.count(bytes);
            self.plus(hash, bytes);
            self.remember(&record, bytes, hash)?;
            self.writer.push(entry(&record))?;
            Ok(ControlFlow::Continue(()))
        })
    }

    fn changes(&mut self, since: Timestamp) -> Result<()> {
        let input = self.input;
        input.snapshot.changes(since, input.range, &mut |change| {
            let Some(either) = change.new.or(change.old) else {
                return Err(Error::bug("a change of nothing into nothing"));
            };
            self.check(&either)?;
            if let Some(old) = change.old {
                self.count(bytes_of(&old));
                self.minus(record_hash(old), bytes_of(&old));
            }
            match change.new {
                Some(new) => {
                    self.count(bytes_of(&new));
                    self.plus(record_hash(new), bytes_of(&new));
                    self.writer.push(entry(&new))?;
                }
                None => self.writer.push(Entry { slot: either.slot, key: either.key, put: None })?,
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn merge_join(&mut self, old: &Path) -> Result<()> {
        let input = self.input;
        let mut old = Peek::new(IndexReader::open(old)?)?;
        input.snapshot.scan(input.range, &mut |record| {
            self.check(&record)?;
            let key = sort_key(record.slot, record.key);
            self.drop_before(&mut old, Some(&key))?;
            let (bytes, hash) = (bytes_of(&record), record_hash(record));
            self.count(bytes);
            self.remember(&record, bytes, hash)?;
            match old.at(&key) {
                Some((_, before)) if before == hash => old.step()?,
                Some((before_bytes, before)) => {
                    self.minus(before, before_bytes);
                    self.plus(hash, bytes);
                    old.step()?;
                    self.writer.push(entry(&record))?;
                }
                None => {
                    self.plus(hash, bytes);
                    self.writer.push(entry(&record))?;
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        self.drop_before(&mut old, None)
    }

    /// Writes deletes for the old keys before `key` (all that are left for `None`).
    fn drop_before(&mut self, old: &mut Peek, key: Option<&[u8]>) -> Result<()> {
        while old.alive && key.is_none_or(|k| old.key[..] < *k) {
            let gone = std::mem::take(&mut old.key);
            if gone.len() < 2 {
                return Err(Error::damaged("key index: an entry without a slot"));
            }
            self.minus(old.hash, old.bytes);
            self.writer.push(Entry { slot: u16::from_be_bytes([gone[0], gone[1]]), key: &gone[2..], put: None })?;
            old.step()?;
        }
        Ok(())
    }
}

/// The entry at the front of an index.
struct Peek {
    reader: IndexReader,
    alive: bool,
    key: Vec<u8>,
    bytes: u64,
    hash: u128,
}

impl Peek {
    fn new(reader: IndexReader) -> Result<Self> {
        let mut peek = Self { reader, alive: true, key: Vec::new(), bytes: 0, hash: 0 };
        peek.step()?;
        Ok(peek)
    }

    fn step(&mut self) -> Result<()> {
        match self.reader.next()? {
            Some(entry) => {
                self.key.clear();
                self.key.extend_from_slice(&entry.key);
                (self.bytes, self.hash) = (entry.bytes, entry.hash);
            }
            None => self.alive = false,
        }
        Ok(())
    }

    fn at(&self, key: &[u8]) -> Option<(u64, u128)> {
        (self.alive && self.key == key).then_some((self.bytes, self.hash))
    }
}
