//! Deltas by the key index: a streaming merge-join of a snapshot with the index of the parent's records.

use std::path::Path;

use tidemark_common::run::Entry;
use tidemark_proto::stored::run::sort_key;
use tidemark_proto::{Error, Result};

use super::{Builder, bytes_of, entry};
use crate::engine::{LongRecord, Next, Scanned, record_hash};
use crate::keyindex::IndexReader;

impl<F: FnMut(Vec<u8>) -> Result<()>> Builder<'_, F> {
    /// The delta of a snapshot against the key index at `old`.
    pub(super) fn merge_join(&mut self, old: &Path) -> Result<()> {
        let input = self.input;
        let mut old = Peek::new(IndexReader::open(old)?)?;
        input.snapshot.scan_packed(input.range, &mut |scanned| {
            match scanned {
                Scanned::Packed(_) => return Ok(Next::Open),
                Scanned::Record(record) => {
                    let (bytes, hash) = (bytes_of(&record), record_hash(record));
                    if self.join(&mut old, (record.slot, record.key, record.meta), (bytes, hash))? {
                        self.writer.push(entry(&record))?;
                    }
                }
                Scanned::Long(record) => {
                    let LongRecord { slot, key, meta, value } = record;
                    if self.join(&mut old, (slot, key, meta), (record.bytes(), record.hash()?))? {
                        self.writer.push_long(slot, key, meta, value.len(), &mut value.reader())?;
                    }
                }
            }
            Ok(Next::Go)
        })?;
        self.drop_before(&mut old, None)
    }

    /// Compares a record with the index, with all that stands before it there. Whether it has changed.
    fn join(
        &mut self,
        old: &mut Peek,
        (slot, key, meta): (u16, &[u8], &[u8]),
        (bytes, hash): (u64, u128),
    ) -> Result<bool> {
        self.check(slot, key, meta)?;
        let place = sort_key(slot, key);
        self.drop_before(old, Some(&place))?;
        self.count(bytes, 1);
        let before = old.at(&place);
        // One that means the same stands as it was stored, whatever it takes in the store by now: compressed, in another encoding.
        let stands = before.filter(|(_, before)| *before == hash).map_or(bytes, |(stored, _)| stored);
        self.remember(slot, key, stands, hash)?;
        match before {
            Some((_, before)) if before == hash => old.step().map(|()| false),
            Some((before_bytes, before)) => {
                self.minus(before, before_bytes);
                self.plus(hash, bytes);
                old.step().map(|()| true)
            }
            None => {
                self.plus(hash, bytes);
                Ok(true)
            }
        }
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
pub(super) struct Peek {
    reader: IndexReader,
    /// Whether there is an entry.
    pub(super) alive: bool,
    pub(super) key: Vec<u8>,
    pub(super) bytes: u64,
    pub(super) hash: u128,
}

impl Peek {
    /// At the first entry.
    pub(super) fn new(reader: IndexReader) -> Result<Self> {
        let mut peek = Self { reader, alive: true, key: Vec::new(), bytes: 0, hash: 0 };
        peek.step()?;
        Ok(peek)
    }

    /// Goes to the next entry.
    pub(super) fn step(&mut self) -> Result<()> {
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

    /// Bytes and hash of the entry, when it is of this key.
    pub(super) fn at(&self, key: &[u8]) -> Option<(u64, u128)> {
        (self.alive && self.key == key).then_some((self.bytes, self.hash))
    }
}
