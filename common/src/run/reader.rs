//! Reading runs.

use std::ops::Range;

use tidemark_proto::stored::run::{Index, MAX_INLINE, take, take_varint};
use tidemark_proto::{Error, Result, SlotSet};

use super::block::Unpacker;
use super::{Entry, LongValue, Spool};
use crate::record::RecordHasher;
use crate::seal::Sealer;

/// Where sealed blocks come from, in the order asked for.
pub trait BlockSource {
    /// The next sealed block (nonce, ciphertext, tag), `None` after the last.
    fn next_block(&mut self) -> Result<Option<Vec<u8>>>;
}

impl<F: FnMut() -> Result<Option<Vec<u8>>>> BlockSource for F {
    fn next_block(&mut self) -> Result<Option<Vec<u8>>> {
        self()
    }
}

/// The blocks that can hold records of `slots`, as ascending ranges of block numbers.
pub fn blocks_for(index: &Index, slots: &SlotSet) -> Vec<Range<u32>> {
    let slot_of = |i: usize| {
        let first = &index.blocks.get(i)?.first;
        (first.len() >= 2).then(|| u16::from_be_bytes([first[0], first[1]]))
    };
    let mut out: Vec<Range<u32>> = Vec::new();
    let mut i = 0;
    while i < index.blocks.len() {
        // A block goes with the continuation blocks behind it.
        let mut end = i + 1;
        while end < index.blocks.len() && index.blocks[end].first.is_empty() {
            end += 1;
        }
        // Its records lie between its own first slot and that of the next block.
        let (from, to) = (slot_of(i).unwrap_or(0), slot_of(end).unwrap_or(u16::MAX));
        if !slots.intersect(&SlotSet::range(from, to)).is_empty() {
            match out.last_mut() {
                Some(last) if last.end == i as u32 => last.end = end as u32,
                _ => out.push(i as u32..end as u32),
            }
        }
        i = end;
    }
    out
}

/// Walks the records of a run; call [`RunReader::advance`], then [`RunReader::current`].
pub struct RunReader<S> {
    sealer: Sealer,
    source: S,
    numbers: std::iter::Flatten<std::vec::IntoIter<Range<u32>>>,
    unpacker: Unpacker,
    raw: Vec<u8>,
    pos: usize,
    long: Vec<u8>,
    /// A piece of a long value on its way to the spool.
    piece: Vec<u8>,
    long_values: LongValues,
    spooled: Option<LongValue>,
    hashed: Option<(u128, u64)>,
    max_value: u64,
    cur: Option<Cursor>,
}

/// What becomes of long values.
enum LongValues {
    /// They are held in memory.
    Held,
    Spooled(Spool),
    Hashed,
}

/// Places of a record's fields in its block.
pub(super) struct Cursor {
    pub(super) slot: u16,
    pub(super) key: Range<usize>,
    pub(super) put: Option<(Range<usize>, Place)>,
}

pub(super) enum Place {
    Block(Range<usize>),
    Long,
}

impl Cursor {
    /// Of the record at `pos` in `raw`; with where it ends, and the length of its value if that follows in other blocks.
    pub(super) fn parse(raw: &[u8], pos: usize) -> Result<(Self, usize, Option<u64>)> {
        let total = raw.len();
        let mut rest = &raw[pos..];
        let here = |rest: &[u8], len: usize| total - rest.len() - len..total - rest.len();
        let head = take(&mut rest, 3)?;
        let (tag, slot) = (head[0], u16::from_le_bytes([head[1], head[2]]));
        let len = take_varint(&mut rest)?;
        let key = take(&mut rest, len)?.len();
        let key = here(rest, key);
        let mut cur = Self { slot, key, put: None };
        let mut long = None;
        if tag != 1 {
            let len = take_varint(&mut rest)?;
            let meta = take(&mut rest, len)?.len();
            let meta = here(rest, meta);
            let len = take_varint(&mut rest)?;
            cur.put = Some(match tag {
                0 => {
                    let value = take(&mut rest, len)?.len();
                    (meta, Place::Block(here(rest, value)))
                }
                2 => {
                    long = Some(len);
                    (meta, Place::Long)
                }
                other => return Err(Error::damaged(format!("block: record of unknown kind {other}"))),
            });
        }
        Ok((cur, total - rest.len(), long))
    }
}

impl<S> std::fmt::Debug for RunReader<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunReader").field("pos", &self.pos).finish_non_exhaustive()
    }
}

impl<S: BlockSource> RunReader<S> {
    /// A reader of the blocks `numbers`, which `source` gives in that order. Values longer than `max_value` bytes are
    /// refused as `Unsupported`: the engine at hand could not hold them.
    pub fn new(sealer: Sealer, numbers: Vec<Range<u32>>, source: S, max_value: u64) -> Result<Self> {
        let (unpacker, numbers) = (Unpacker::new()?, numbers.into_iter().flatten());
        let (raw, long, piece) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self {
            sealer,
            source,
            numbers,
            unpacker,
            raw,
            pos: 0,
            long,
            piece,
            long_values: LongValues::Held,
            spooled: None,
            hashed: None,
            max_value,
            cur: None,
        })
    }

    /// Puts long values into a file instead of memory: [`Self::long`] has them, and [`Self::current`] an empty value.
    pub fn spooling(mut self, spool: Spool) -> Self {
        self.long_values = LongValues::Spooled(spool);
        self
    }

    /// Reads long values only to hash their records: [`Self::hashed`] has the hash, and [`Self::current`] an empty value.
    pub fn hashing(mut self) -> Self {
        self.long_values = LongValues::Hashed;
        self
    }

    /// Hash of the current record and length of its value, where that was not kept.
    pub fn hashed(&self) -> Option<(u128, u64)> {
        self.hashed
    }

    /// The value of the current record where it lies in a file.
    pub fn long(&self) -> Option<&LongValue> {
        self.spooled.as_ref()
    }

    /// Goes to the next record; `false` after the last.
    pub fn advance(&mut self) -> Result<bool> {
        while self.pos == self.raw.len() {
            if !self.load()? {
                self.cur = None;
                return Ok(false);
            }
        }
        self.parse()?;
        Ok(true)
    }

    /// The current record. Only after [`RunReader::advance`] answered `true`.
    pub fn current(&self) -> Entry<'_> {
        let cur = self.cur.as_ref().expect("advance() answered true");
        let put = cur.put.as_ref().map(|(meta, place)| {
            let value = match place {
                Place::Block(r) => &self.raw[r.clone()],
                Place::Long => &self.long[..],
            };
            (&self.raw[meta.clone()], value)
        });
        Entry { slot: cur.slot, key: &self.raw[cur.key.clone()], put }
    }

    /// Takes up the next block; `into_piece` where it is one of a long value.
    fn fetch(&mut self, into_piece: bool) -> Result<bool> {
        let Some(number) = self.numbers.next() else { return Ok(false) };
        let missing = || Error::damaged(format!("block {number}: the run ends before it"));
        let mut sealed = self.source.next_block()?.ok_or_else(missing)?;
        let raw = if into_piece { &mut self.piece } else { &mut self.raw };
        self.unpacker.block(&self.sealer, number, &mut sealed, raw)?;
        Ok(true)
    }

    fn load(&mut self) -> Result<bool> {
        self.pos = 0;
        self.raw.clear();
        self.fetch(false)
    }

    fn parse(&mut self) -> Result<()> {
        let (cur, pos, long) = Cursor::parse(&self.raw, self.pos)?;
        self.pos = pos;
        self.cur = Some(cur);
        (self.spooled, self.hashed) = (None, None);
        long.map_or(Ok(()), |len| self.assemble(len))
    }

    fn assemble(&mut self, len: u64) -> Result<()> {
        if len > self.max_value {
            return Err(Error::unsupported(format!(
                "a value of {len} bytes is longer than this engine holds ({} bytes)",
                self.max_value
            )));
        }
        if self.pos != self.raw.len() || len <= MAX_INLINE as u64 {
            return Err(Error::damaged("block: a long value does not stand where one may"));
        }
        self.long.clear();
        if let LongValues::Spooled(spool) = &mut self.long_values {
            spool.begin()?;
        }
        let Entry { key, put, .. } = self.current();
        let mut hasher = RecordHasher::new(key, put.map_or(&[], |(meta, _)| meta));
        let mut come = 0;
        while come < len {
            if !self.fetch(true)? {
                return Err(Error::damaged("run: ends inside a long value"));
            }
            come += self.piece.len() as u64;
            match &mut self.long_values {
                LongValues::Spooled(spool) => spool.add(&self.piece)?,
                LongValues::Hashed => hasher.value(&self.piece),
                LongValues::Held => self.long.extend_from_slice(&self.piece),
            }
        }
        if come != len {
            return Err(Error::damaged("run: a long value is longer than it says"));
        }
        match &self.long_values {
            LongValues::Spooled(spool) => self.spooled = Some(spool.value()?),
            LongValues::Hashed => self.hashed = Some((hasher.finish(), len)),
            LongValues::Held => {}
        }
        Ok(())
    }
}
