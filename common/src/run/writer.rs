//! Writing runs.

use tidemark_proto::stored::run::{
    BLOCK_TARGET, BlockEntry, CONTINUATION, Index, MAX_INLINE, SEAL_BLOCK, put_varint, sort_key,
};
use tidemark_proto::{Error, Result};

use super::block::{Packer, seal_index};
use super::{Entry, ZSTD_LEVEL};
use crate::seal::Sealer;

const TAG_PUT: u8 = 0;
const TAG_DELETE: u8 = 1;
const TAG_LONG: u8 = 2;

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSummary {
    /// The sealed index.
    pub index: Vec<u8>,
    /// Blocks.
    pub blocks: u32,
    /// Records: puts and deletes.
    pub records: u64,
    /// Bytes of keys, meta and values.
    pub raw_bytes: u64,
    /// Bytes of the sealed blocks.
    pub sealed_bytes: u64,
}

/// Builds a run from entries in ascending (slot, key) order; hands each sealed block to `sink`.
pub struct RunWriter<'s, F> {
    sealer: &'s Sealer,
    sink: F,
    packer: Packer,
    raw: Vec<u8>,
    first: Vec<u8>,
    last: Vec<u8>,
    in_block: u32,
    index: Index,
    records: u64,
    raw_bytes: u64,
    sealed_bytes: u64,
}

impl<F> std::fmt::Debug for RunWriter<'_, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunWriter").field("records", &self.records).finish_non_exhaustive()
    }
}

impl<'s, F: FnMut(Vec<u8>) -> Result<()>> RunWriter<'s, F> {
    /// A writer with the default compression.
    pub fn new(sealer: &'s Sealer, sink: F) -> Result<Self> {
        Ok(Self {
            sealer,
            sink,
            packer: Packer::new(ZSTD_LEVEL)?,
            raw: Vec::with_capacity(BLOCK_TARGET + (BLOCK_TARGET >> 2)),
            first: Vec::new(),
            last: Vec::new(),
            in_block: 0,
            index: Index::default(),
            records: 0,
            raw_bytes: 0,
            sealed_bytes: 0,
        })
    }

    /// Bytes of keys, meta and values so far.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Adds the next entry. A key that does not ascend is a `Bug` of the caller.
    pub fn push(&mut self, entry: Entry<'_>) -> Result<()> {
        self.check_order(entry)?;
        if self.raw.is_empty() {
            self.first = sort_key(entry.slot, entry.key);
        }
        self.records += 1;
        self.in_block += 1;
        self.raw_bytes += entry.key.len() as u64;
        let tag = match entry.put {
            None => TAG_DELETE,
            Some((_, value)) if value.len() > MAX_INLINE => TAG_LONG,
            Some(_) => TAG_PUT,
        };
        self.raw.push(tag);
        self.raw.extend_from_slice(&entry.slot.to_le_bytes());
        put_varint(&mut self.raw, entry.key.len() as u64);
        self.raw.extend_from_slice(entry.key);
        if let Some((meta, value)) = entry.put {
            self.raw_bytes += (meta.len() + value.len()) as u64;
            put_varint(&mut self.raw, meta.len() as u64);
            self.raw.extend_from_slice(meta);
            put_varint(&mut self.raw, value.len() as u64);
            if tag == TAG_LONG {
                return self.long_value(value);
            }
            self.raw.extend_from_slice(value);
        }
        if self.raw.len() >= BLOCK_TARGET { self.close_block() } else { Ok(()) }
    }

    fn check_order(&mut self, entry: Entry<'_>) -> Result<()> {
        let slot = entry.slot.to_be_bytes();
        if self.records > 0 && (&self.last[..2], &self.last[2..]) >= (&slot[..], entry.key) {
            return Err(Error::bug(format!("a run got slot {} out of order", entry.slot)));
        }
        self.last.clear();
        self.last.extend_from_slice(&slot);
        self.last.extend_from_slice(entry.key);
        Ok(())
    }

    fn long_value(&mut self, value: &[u8]) -> Result<()> {
        self.close_block()?;
        for piece in value.chunks(CONTINUATION) {
            self.emit(piece, Vec::new(), 0)?;
        }
        Ok(())
    }

    fn close_block(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.raw);
        let first = std::mem::take(&mut self.first);
        let records = std::mem::take(&mut self.in_block);
        let done = self.emit(&raw, first, records);
        self.raw = raw;
        self.raw.clear();
        done
    }

    fn emit(&mut self, raw: &[u8], first: Vec<u8>, records: u32) -> Result<()> {
        let number = self.index.blocks.len() as u32;
        let sealed = self.packer.pack(self.sealer, SEAL_BLOCK, number, raw)?;
        let sealed_len = sealed.len() as u32;
        self.index.blocks.push(BlockEntry { first, records, raw_len: raw.len() as u32, sealed_len });
        self.sealed_bytes += u64::from(sealed_len);
        (self.sink)(sealed)
    }

    /// Closes the last block and seals the index.
    pub fn finish(mut self) -> Result<RunSummary> {
        self.close_block()?;
        Ok(RunSummary {
            index: seal_index(self.sealer, &self.index)?,
            blocks: self.index.blocks.len() as u32,
            records: self.records,
            raw_bytes: self.raw_bytes,
            sealed_bytes: self.sealed_bytes,
        })
    }
}
