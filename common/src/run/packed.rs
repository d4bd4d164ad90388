//! Blocks of records that are packed before it is known which run they go into: all that is left to do then is to seal them.

use tidemark_proto::stored::run::{BLOCK_TARGET, MAX_BLOCK, MAX_INLINE, sort_key};
use tidemark_proto::{Error, Result};

use super::block::{Packer, Unpacker};
use super::reader::{Cursor, Place};
use super::writer::{bytes_of, encode};
use super::{Entry, ZSTD_LEVEL};

/// A block that is compressed and not sealed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedBlock<'a> {
    /// Sort key of its first record.
    pub first: &'a [u8],
    /// Sort key of its last record.
    pub last: &'a [u8],
    /// Records in it.
    pub records: u32,
    /// Bytes of their keys, meta and values.
    pub bytes: u64,
    /// What is sealed: codec, raw length, bytes.
    pub plain: &'a [u8],
}

impl PackedBlock<'_> {
    /// Raw bytes of the block.
    pub(super) fn raw_len(&self) -> Result<u32> {
        let len = self.plain.get(1..).and_then(<[u8]>::first_chunk::<4>);
        len.map(|len| u32::from_le_bytes(*len)).ok_or_else(|| Error::damaged("a packed block is cut short"))
    }
}

/// Packs records block by block, as a [`super::RunWriter`] does.
pub struct BlockPacker {
    packer: Packer,
    raw: Vec<u8>,
    plain: Vec<u8>,
    first: Vec<u8>,
    last: Vec<u8>,
    records: u32,
    bytes: u64,
}

impl std::fmt::Debug for BlockPacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockPacker").field("records", &self.records).finish_non_exhaustive()
    }
}

impl BlockPacker {
    /// Packs with the default compression.
    pub fn new() -> Result<Self> {
        Ok(Self {
            packer: Packer::new(ZSTD_LEVEL)?,
            raw: Vec::with_capacity(BLOCK_TARGET + (BLOCK_TARGET >> 2)),
            plain: Vec::new(),
            first: Vec::new(),
            last: Vec::new(),
            records: 0,
            bytes: 0,
        })
    }

    /// Adds a record behind those before it; `true` when the block is full and must be closed. A value of more than
    /// [`MAX_INLINE`] bytes is a `Bug`: it needs blocks of its own.
    pub fn push(&mut self, entry: &Entry<'_>) -> Result<bool> {
        if entry.put.is_some_and(|(_, value)| value.len() > MAX_INLINE) {
            return Err(Error::bug("a long value in a packed block"));
        }
        if self.records == 0 {
            self.first = sort_key(entry.slot, entry.key);
        }
        self.last.clear();
        self.last.extend_from_slice(&entry.slot.to_be_bytes());
        self.last.extend_from_slice(entry.key);
        self.records += 1;
        self.bytes += bytes_of(entry);
        let _ = encode(&mut self.raw, entry);
        Ok(self.raw.len() >= BLOCK_TARGET)
    }

    /// The block of what was pushed since the last one, `None` if nothing was; the next record begins another one.
    pub fn close(&mut self) -> Result<Option<PackedBlock<'_>>> {
        if self.records == 0 {
            return Ok(None);
        }
        self.plain.clear();
        self.packer.plain(&self.raw, &mut self.plain)?;
        self.raw.clear();
        let (records, bytes) = (std::mem::take(&mut self.records), std::mem::take(&mut self.bytes));
        Ok(Some(PackedBlock { first: &self.first, last: &self.last, records, bytes, plain: &self.plain }))
    }
}

/// Reads packed blocks; call [`PackedReader::open`], then [`PackedReader::advance`], then [`PackedReader::current`].
pub struct PackedReader {
    unpacker: Unpacker,
    raw: Vec<u8>,
    pos: usize,
    cur: Option<Cursor>,
}

impl std::fmt::Debug for PackedReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedReader").field("pos", &self.pos).finish_non_exhaustive()
    }
}

impl PackedReader {
    /// A reader without a block.
    pub fn new() -> Result<Self> {
        Ok(Self { unpacker: Unpacker::new()?, raw: Vec::new(), pos: 0, cur: None })
    }

    /// Takes up a block, before its first record.
    pub fn open(&mut self, plain: &[u8]) -> Result<()> {
        (self.pos, self.cur) = (0, None);
        self.unpacker.unpack_plain(0, plain, &mut self.raw, MAX_BLOCK)
    }

    /// Goes to the next record; `false` after the last.
    pub fn advance(&mut self) -> Result<bool> {
        self.cur = None;
        if self.pos == self.raw.len() {
            return Ok(false);
        }
        let (cur, pos, long) = Cursor::parse(&self.raw, self.pos)?;
        if long.is_some() {
            return Err(Error::damaged("a packed block with a long value"));
        }
        (self.pos, self.cur) = (pos, Some(cur));
        Ok(true)
    }

    /// The current record, if there is one.
    pub fn current(&self) -> Option<Entry<'_>> {
        let cur = self.cur.as_ref()?;
        let put = cur.put.as_ref().map(|(meta, place)| {
            let value = match place {
                Place::Block(range) => &self.raw[range.clone()],
                Place::Long => &[][..],
            };
            (&self.raw[meta.clone()], value)
        });
        Some(Entry { slot: cur.slot, key: &self.raw[cur.key.clone()], put })
    }
}
