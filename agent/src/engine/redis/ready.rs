//! A base, or its first slots, merged into blocks as a full run takes them: what is left to do at the upload is to seal them.
//!
//! The file: units, ascending by (slot, key). A unit: `kind (u8) | records (u32) | bytes of keys, meta and values (u64) | sum of
//! their hashes (16) | lengths of first key, last key, entries, body (4 x u32)`, all little-endian, then these four. Kind 0: the
//! body is a packed block; 1: it is one record of a chunk, whose value is a long one. The file is of this process alone.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tidemark_common::record::slot_of_record;
use tidemark_common::run::{BlockPacker, Entry, PackedBlock, PackedReader};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::run::sort_key;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::chunk::{self, Here, Value};
use crate::engine::{Packed, RecordRef, record_hash};
use crate::fsutil::write_strips;
use crate::keyindex::{Entries, MAX_ENTRIES};

/// Bytes of a unit before its keys.
const HEAD: usize = 45;
/// Bytes that are written at once.
const WRITE: usize = 256 << 10;
/// Bytes that are read at once.
const READ: usize = 256 << 10;

const BLOCK: u8 = 0;
const LONG: u8 = 1;

/// What is ready: all records of the slots below some slot.
#[derive(Debug, Clone)]
pub(super) struct Ready {
    file: Arc<File>,
    /// Records of slots below this one are here, all others are not.
    below: u16,
    /// How far the file counts.
    end: u64,
    /// Slots with the offset of the first unit that begins in them.
    index: Vec<(u16, u64)>,
}

/// By what more is ready.
#[derive(Debug)]
pub(super) struct Whole {
    below: u16,
    end: u64,
    index: Vec<(u16, u64)>,
}

impl Ready {
    /// Records of slots below this one are here, all others are not.
    pub(super) fn below(&self) -> u16 {
        self.below
    }

    /// Takes up what became whole next.
    pub(super) fn grow(&mut self, whole: Whole) {
        (self.below, self.end) = (whole.below, whole.end);
        self.index.extend(whole.index);
    }
}

/// Writes units.
struct Units {
    file: Arc<File>,
    buffer: Vec<u8>,
    /// Where the buffer goes.
    at: u64,
    /// Of what is not told as whole yet.
    index: Vec<(u16, u64)>,
}

/// Writes what is made ready, slot by slot.
pub(super) struct ReadyWriter {
    units: Units,
    packer: BlockPacker,
    entries: Entries,
    digest: SetDigest,
    key: Vec<u8>,
}

impl ReadyWriter {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.or_kind(ErrorKind::Full, format_args!("{}", path.display()))?;
        Ok(Self {
            units: Units { file: Arc::new(file), buffer: Vec::with_capacity(WRITE), at: 0, index: Vec::new() },
            packer: BlockPacker::new()?,
            entries: Entries::default(),
            digest: SetDigest::default(),
            key: Vec::new(),
        })
    }

    /// Adds the next record of a chunk.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let record = chunk::here(bytes);
        let value = match record.value {
            Value::Bytes(value) => value,
            Value::Long(..) => {
                self.close_block()?;
                let key = sort_key(record.slot, record.key);
                return self.units.put(LONG, (1, 0), SetDigest::default(), [&key, &key, &[], bytes]);
            }
            Value::Gone => return Err(Error::bug("a base with a key that does not exist")),
        };
        let Here { slot, key, meta, .. } = record;
        if slot_of_record(key, meta) != slot {
            return Err(Error::damaged(format!("a record that is not of slot {slot} stands there")));
        }
        let hash = record_hash(RecordRef { slot, key, meta, value });
        self.digest.add(hash);
        self.key.clear();
        self.key.extend_from_slice(&slot.to_be_bytes());
        self.key.extend_from_slice(key);
        self.entries.push(&self.key, (key.len() + meta.len() + value.len()) as u64, hash);
        let full = self.packer.push(&Entry { slot, key, put: Some((meta, value)) })?;
        if full || self.entries.bytes().len() >= MAX_ENTRIES / 2 { self.close_block() } else { Ok(()) }
    }

    fn close_block(&mut self) -> Result<()> {
        if let Some(block) = self.packer.close()? {
            let digest = std::mem::take(&mut self.digest);
            let parts = [block.first, block.last, self.entries.bytes(), block.plain];
            self.units.put(BLOCK, (block.records, block.bytes), digest, parts)?;
            self.entries.clear();
        }
        Ok(())
    }

    /// What is ready before anything is whole: nothing.
    pub(super) fn ready(&self) -> Ready {
        Ready { file: self.units.file.clone(), below: 0, end: 0, index: Vec::new() }
    }

    /// All records of slots below `below` were put. Once this has answered, they are in the file, whatever comes.
    pub(super) fn whole(&mut self, below: u16) -> Result<Whole> {
        self.close_block()?;
        self.units.flush()?;
        Ok(Whole { below, end: self.units.at, index: std::mem::take(&mut self.units.index) })
    }
}

impl Units {
    fn put(&mut self, kind: u8, (records, bytes): (u32, u64), digest: SetDigest, parts: [&[u8]; 4]) -> Result<()> {
        let slot = u16::from_be_bytes([parts[0][0], parts[0][1]]);
        if self.index.last().is_none_or(|(last, _)| *last != slot) {
            self.index.push((slot, self.at + self.buffer.len() as u64));
        }
        self.buffer.push(kind);
        self.buffer.extend_from_slice(&records.to_le_bytes());
        self.buffer.extend_from_slice(&bytes.to_le_bytes());
        self.buffer.extend_from_slice(&digest.low.to_le_bytes());
        self.buffer.extend_from_slice(&digest.high.to_le_bytes());
        parts.iter().for_each(|part| self.buffer.extend_from_slice(&(part.len() as u32).to_le_bytes()));
        parts.iter().for_each(|part| self.buffer.extend_from_slice(part));
        if self.buffer.len() >= WRITE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        write_strips(&self.file, &self.buffer, self.at).or_kind(ErrorKind::Full, "making the base ready")?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Visits what is ready.
pub(super) struct ReadyCursor<'r> {
    ready: &'r Ready,
    buffer: Vec<u8>,
    /// Where the buffer begins in the file.
    offset: u64,
    /// The unit at hand, in the buffer.
    at: usize,
    unit: Option<Unit>,
    /// Whether the records of the unit are visited one by one.
    open: bool,
    reader: PackedReader,
}

/// Places in the buffer.
struct Unit {
    kind: u8,
    records: u32,
    bytes: u64,
    digest: SetDigest,
    parts: [std::ops::Range<usize>; 4],
}

impl<'r> ReadyCursor<'r> {
    /// At the first unit that may hold records of `slot`.
    pub(super) fn new(ready: &'r Ready, slot: u16) -> Result<Self> {
        // A unit that begins in a slot before may reach into this one.
        let before = ready.index.partition_point(|(s, _)| *s < slot);
        let offset = before.checked_sub(1).map_or(0, |i| ready.index[i].1);
        let (buffer, reader) = (Vec::new(), PackedReader::new()?);
        let mut cursor = Self { ready, buffer, offset, at: 0, unit: None, open: false, reader };
        cursor.load()?;
        Ok(cursor)
    }

    /// Makes `need` bytes from the unit at hand on available; `false` at the end of the file.
    fn fill(&mut self, need: usize) -> Result<bool> {
        if self.buffer.len() - self.at >= need {
            return Ok(true);
        }
        drop(self.buffer.drain(..self.at));
        self.offset += self.at as u64;
        self.at = 0;
        let have = self.buffer.len();
        let left = usize::try_from(self.ready.end - self.offset).unwrap_or(usize::MAX) - have;
        if left == 0 && have == 0 {
            return Ok(false);
        }
        let more = need.saturating_sub(have).max(READ).min(left);
        self.buffer.resize(have + more, 0);
        let from = self.offset + have as u64;
        self.ready
            .file
            .read_exact_at(&mut self.buffer[have..], from)
            .or_kind(ErrorKind::Retry, "reading the base")?;
        match self.buffer.len() >= need {
            true => Ok(true),
            false => Err(Error::damaged("what was made ready of the base is cut short")),
        }
    }

    /// Takes up the unit at hand.
    fn load(&mut self) -> Result<()> {
        (self.unit, self.open) = (None, false);
        if !self.fill(HEAD)? {
            return Ok(());
        }
        let head = &self.buffer[self.at..self.at + HEAD];
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let (kind, records, bytes) = (head[0], word(1), long(5));
        let digest = SetDigest { count: u64::from(records), low: long(13), high: long(21) };
        let lens = [29, 33, 37, 41].map(|at| word(at) as usize);
        let _ = self.fill(HEAD + lens.iter().sum::<usize>())?;
        let mut end = self.at + HEAD;
        let parts = lens.map(|len| {
            end += len;
            end - len..end
        });
        self.unit = Some(Unit { kind, records, bytes, digest, parts });
        if kind == LONG {
            self.open = true;
        }
        Ok(())
    }

    /// Goes past the unit at hand.
    pub(super) fn skip(&mut self) -> Result<()> {
        if let Some(unit) = &self.unit {
            self.at = unit.parts[3].end;
        }
        self.load()
    }

    /// The unit at hand, while none of its records was visited alone.
    pub(super) fn packed(&self) -> Option<Packed<'_>> {
        let unit = self.unit.as_ref().filter(|u| u.kind == BLOCK && !self.open)?;
        let [first, last, entries, plain] = unit.parts.each_ref().map(|range| &self.buffer[range.clone()]);
        let block = PackedBlock { first, last, records: unit.records, bytes: unit.bytes, plain };
        Some(Packed { block, digest: unit.digest, entries })
    }

    /// Goes on with the records of the unit at hand one by one.
    pub(super) fn open(&mut self) -> Result<()> {
        if let Some(unit) = self.unit.as_ref().filter(|_| !self.open) {
            self.reader.open(&self.buffer[unit.parts[3].clone()])?;
            self.open = true;
            let _ = self.reader.advance()?;
        }
        Ok(())
    }

    /// Slot and key of the first record that was not passed.
    pub(super) fn key(&self) -> Option<(u16, &[u8])> {
        let unit = self.unit.as_ref()?;
        match self.here() {
            Some(record) => Some((record.slot, record.key)),
            None => {
                let (slot, key) = self.buffer[unit.parts[0].clone()].split_first_chunk::<2>()?;
                Some((u16::from_be_bytes(*slot), key))
            }
        }
    }

    /// The record at hand; only of an open unit.
    pub(super) fn here(&self) -> Option<Here<'_>> {
        let unit = self.unit.as_ref().filter(|_| self.open)?;
        if unit.kind == LONG {
            return Some(chunk::here(&self.buffer[unit.parts[3].clone()]));
        }
        let entry = self.reader.current()?;
        let (meta, value) = entry.put?;
        Some(Here { slot: entry.slot, key: entry.key, meta, value: Value::Bytes(value) })
    }

    /// Goes to the next record, or the next unit.
    pub(super) fn advance(&mut self) -> Result<()> {
        let block = self.unit.as_ref().is_some_and(|u| u.kind == BLOCK);
        if block && self.open && self.reader.advance()? {
            return Ok(());
        }
        self.skip()
    }
}
