//! Writing runs.

use std::io::Read;

use tidemark_proto::stored::run::{
    BLOCK_TARGET, BlockEntry, CONTINUATION, Index, MAX_INLINE, SEAL_BLOCK, put_varint, sort_key,
};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::block::{Packer, seal_index};
use super::packed::PackedBlock;
use super::{Entry, ZSTD_LEVEL};
use crate::seal::{NONCE_LEN, Sealer, TAG_LEN};

const TAG_PUT: u8 = 0;
const TAG_DELETE: u8 = 1;
const TAG_LONG: u8 = 2;

/// Bytes of key, meta and value.
pub(super) fn bytes_of(entry: &Entry<'_>) -> u64 {
    (entry.key.len() + entry.put.map_or(0, |(meta, value)| meta.len() + value.len())) as u64
}

/// Appends a record to a block; answers the value that must follow in blocks of its own.
pub(super) fn encode<'a>(raw: &mut Vec<u8>, entry: &Entry<'a>) -> Option<&'a [u8]> {
    let tag = match entry.put {
        None => TAG_DELETE,
        Some((_, value)) if value.len() > MAX_INLINE => TAG_LONG,
        Some(_) => TAG_PUT,
    };
    encode_head(raw, tag, entry.slot, entry.key);
    let (meta, value) = entry.put?;
    encode_meta(raw, meta, value.len() as u64);
    if tag == TAG_LONG {
        return Some(value);
    }
    raw.extend_from_slice(value);
    None
}

fn encode_head(raw: &mut Vec<u8>, tag: u8, slot: u16, key: &[u8]) {
    raw.push(tag);
    raw.extend_from_slice(&slot.to_le_bytes());
    put_varint(raw, key.len() as u64);
    raw.extend_from_slice(key);
}

fn encode_meta(raw: &mut Vec<u8>, meta: &[u8], value_len: u64) {
    put_varint(raw, meta.len() as u64);
    raw.extend_from_slice(meta);
    put_varint(raw, value_len);
}

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
        self.raw_bytes += bytes_of(&entry);
        if let Some(value) = encode(&mut self.raw, &entry) {
            return self.long_value(value);
        }
        if self.raw.len() >= BLOCK_TARGET { self.close_block() } else { Ok(()) }
    }

    /// Adds a record whose value, of `len` bytes, is read in pieces. One of at most [`MAX_INLINE`] bytes is a `Bug`.
    pub fn push_long(&mut self, slot: u16, key: &[u8], meta: &[u8], len: u64, value: &mut impl Read) -> Result<()> {
        if len <= MAX_INLINE as u64 {
            return Err(Error::bug("a short value among the long ones"));
        }
        self.check_order(Entry { slot, key, put: None })?;
        if self.raw.is_empty() {
            self.first = sort_key(slot, key);
        }
        self.records += 1;
        self.in_block += 1;
        self.raw_bytes += (key.len() + meta.len()) as u64 + len;
        encode_head(&mut self.raw, TAG_LONG, slot, key);
        encode_meta(&mut self.raw, meta, len);
        self.close_block()?;
        let (mut left, mut piece) = (len, vec![0; CONTINUATION]);
        while left > 0 {
            let here = left.min(CONTINUATION as u64) as usize;
            value.read_exact(&mut piece[..here]).or_kind(ErrorKind::Retry, "reading a long value")?;
            self.emit(&piece[..here], Vec::new(), 0)?;
            left -= here as u64;
        }
        Ok(())
    }

    /// Adds a block that was packed before. Its records count as if each had been pushed.
    pub fn push_packed(&mut self, block: &PackedBlock<'_>) -> Result<()> {
        self.close_block()?;
        if self.records > 0 && *self.last >= *block.first {
            return Err(Error::bug("a run got a packed block out of order"));
        }
        self.last.clear();
        self.last.extend_from_slice(block.last);
        self.records += u64::from(block.records);
        self.raw_bytes += block.bytes;
        let mut sealed = Vec::with_capacity(NONCE_LEN + block.plain.len() + TAG_LEN);
        sealed.resize(NONCE_LEN, 0);
        sealed.extend_from_slice(block.plain);
        self.sealer.seal(SEAL_BLOCK, self.index.blocks.len() as u32, &mut sealed);
        self.emit_sealed(sealed, block.first.to_vec(), block.records, block.raw_len()?)
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
        self.emit_sealed(sealed, first, records, raw.len() as u32)
    }

    fn emit_sealed(&mut self, sealed: Vec<u8>, first: Vec<u8>, records: u32, raw_len: u32) -> Result<()> {
        let sealed_len = sealed.len() as u32;
        self.index.blocks.push(BlockEntry { first, records, raw_len, sealed_len });
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
