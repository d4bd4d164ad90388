//! Visiting records that were sorted on disk: the base, and over it what the log since then made of the keys that it names.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use tidemark_common::record::{REDIS_MAX_VALUE, split_redis_key};
use tidemark_proto::{Error, ErrorKind, Result, Timestamp, error::ResultExt};

use super::spill::{self, Chunk, HEAD, Sorted};
use crate::engine::{ChangeVisitor, RecordRef, RecordVisitor, ScanRange, Snapshot};

/// Memory for reading all chunks of one scan, in bytes.
const READ_MEMORY: usize = 16 << 20;
/// Least and most bytes that are read of a chunk at once.
const READ_AT_ONCE: (usize, usize) = (4 << 10, 256 << 10);
/// Longest value that is held in memory.
const MAX_VALUE: u64 = REDIS_MAX_VALUE as u64;

/// Reads one chunk.
struct Cursor<'c> {
    chunk: &'c Chunk,
    buffer: Vec<u8>,
    /// Offset in the chunk at which the buffer begins, and the record at hand in the buffer.
    offset: u64,
    at: usize,
    len: usize,
    step: usize,
}

impl<'c> Cursor<'c> {
    /// At the first record of the chunk that may lie in a slot from `slot` on.
    fn new(chunk: &'c Chunk, slot: u16, step: usize) -> Result<Self> {
        let before = chunk.index.partition_point(|(s, _)| *s <= slot);
        let offset = before.checked_sub(1).map_or(0, |i| chunk.index[i].1);
        let mut cursor = Self { chunk, buffer: Vec::new(), offset, at: 0, len: 0, step };
        cursor.advance()?;
        Ok(cursor)
    }

    fn record(&self) -> &[u8] {
        &self.buffer[self.at..self.at + self.len]
    }

    fn ended(&self) -> bool {
        self.len == 0
    }

    /// Makes `need` bytes from the present record on available.
    fn fill(&mut self, need: usize) -> Result<()> {
        if self.buffer.len() - self.at >= need {
            return Ok(());
        }
        drop(self.buffer.drain(..self.at));
        self.offset += self.at as u64;
        self.at = 0;
        let have = self.buffer.len();
        let left = (self.chunk.len - self.offset) as usize - have;
        let more = need.saturating_sub(have).max(self.step).min(left);
        self.buffer.resize(have + more, 0);
        let from = self.offset + have as u64;
        self.chunk
            .file
            .read_exact_at(&mut self.buffer[have..], from)
            .or_kind(ErrorKind::Retry, "reading back the base")
    }

    fn advance(&mut self) -> Result<()> {
        self.at += self.len;
        self.len = 0;
        if self.offset + self.at as u64 == self.chunk.len {
            return Ok(());
        }
        self.fill(HEAD)?;
        let len = spill::record_len(&self.buffer[self.at..]);
        self.fill(len)?;
        self.len = len;
        Ok(())
    }
}

/// Cursors with the smallest record first: a binary heap that is ordered by what the cursors point at.
struct Heap<'c> {
    cursors: Vec<Cursor<'c>>,
}

impl<'c> Heap<'c> {
    fn new(sorted: &'c Sorted, slot: u16, step: usize) -> Result<Self> {
        let cursors = sorted.chunks.iter().map(|c| Cursor::new(c, slot, step)).collect::<Result<Vec<_>>>()?;
        let mut heap = Self { cursors: cursors.into_iter().filter(|c| !c.ended()).collect() };
        for i in (0..heap.cursors.len() / 2).rev() {
            heap.sink(i);
        }
        Ok(heap)
    }

    fn less(&self, a: usize, b: usize) -> bool {
        spill::sort_key(self.cursors[a].record()) < spill::sort_key(self.cursors[b].record())
    }

    fn sink(&mut self, mut i: usize) {
        loop {
            let child = 2 * i + 1;
            if child >= self.cursors.len() {
                return;
            }
            let smaller =
                if child + 1 < self.cursors.len() && self.less(child + 1, child) { child + 1 } else { child };
            if !self.less(smaller, i) {
                return;
            }
            self.cursors.swap(i, smaller);
            i = smaller;
        }
    }

    fn peek(&self) -> Option<&[u8]> {
        self.cursors.first().map(Cursor::record)
    }

    fn advance(&mut self) -> Result<()> {
        if let Some(first) = self.cursors.first_mut() {
            first.advance()?;
            if first.ended() {
                drop(self.cursors.swap_remove(0));
            }
            self.sink(0);
        }
        Ok(())
    }
}

/// Which databases the log has emptied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Emptied {
    /// All of them.
    pub all: bool,
    /// These.
    pub dbs: BTreeSet<u64>,
}

impl Emptied {
    fn hides(&self, key: &[u8]) -> Result<bool> {
        if self.dbs.is_empty() {
            return Ok(self.all);
        }
        Ok(self.all || self.dbs.contains(&split_redis_key(key)?.0))
    }
}

/// The state at a cut.
#[derive(Debug)]
pub struct State {
    /// The cut.
    pub at: Timestamp,
    /// The base.
    pub base: Arc<Sorted>,
    /// What the log made of the keys that it names.
    pub over: Sorted,
    /// What the log hides of the base.
    pub emptied: Emptied,
    /// Room for one long value: those who visit in parallel take turns with it.
    pub long: Mutex<Vec<u8>>,
}

impl State {
    /// What a base alone holds.
    pub fn of(at: Timestamp, base: Arc<Sorted>) -> Self {
        Self { at, base, over: Sorted::default(), emptied: Emptied::default(), long: Mutex::default() }
    }

    /// Visits every record of the range once, ascending by (slot, key).
    pub fn scan(&self, range: &ScanRange, visit: &mut RecordVisitor<'_>) -> Result<()> {
        for &(first, last) in range.slots.ranges() {
            if self.visit_slots(first, last, range, visit)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn visit_slots(
        &self,
        first: u16,
        last: u16,
        range: &ScanRange,
        visit: &mut RecordVisitor<'_>,
    ) -> Result<ControlFlow<()>> {
        let chunks = (self.base.chunks.len() + self.over.chunks.len()).max(1);
        let step = (READ_MEMORY / chunks).clamp(READ_AT_ONCE.0, READ_AT_ONCE.1);
        let (mut base, mut over) = (Heap::new(&self.base, first, step)?, Heap::new(&self.over, first, step)?);
        loop {
            let (from_over, both) = match (base.peek(), over.peek()) {
                (None, None) => return Ok(ControlFlow::Continue(())),
                (Some(_), None) => (false, false),
                (None, Some(_)) => (true, false),
                (Some(b), Some(o)) => {
                    let (b, o) = (spill::sort_key(b), spill::sort_key(o));
                    (o <= b, o == b)
                }
            };
            let (source, heap) = if from_over { (&self.over, &over) } else { (&*self.base, &base) };
            let record = heap.peek().ok_or_else(|| Error::bug("a heap that is not empty"))?;
            let (slot, key) = spill::sort_key(record);
            if slot > last || (!range.upper.is_empty() && below(&range.upper, slot, key)) {
                return Ok(ControlFlow::Continue(()));
            }
            let hidden = spill::is_gone(record) || (!from_over && self.emptied.hides(key)?);
            if slot >= first && !hidden && (range.lower.is_empty() || below(&range.lower, slot, key)) {
                let meta = spill::meta_of(record);
                let visited = match spill::value_of(record) {
                    Ok(place) => visit(RecordRef { slot, key, meta, value: &record[place] })?,
                    Err(place) => {
                        let mut long = self.long.lock().unwrap_or_else(PoisonError::into_inner);
                        read_long(source, place, &mut long)?;
                        let visited = visit(RecordRef { slot, key, meta, value: &long });
                        *long = Vec::new();
                        visited?
                    }
                };
                if visited.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            if from_over {
                over.advance()?;
            }
            if both || !from_over {
                base.advance()?;
            }
        }
    }
}

/// Whether `bound` is at or below (slot, key).
fn below(bound: &[u8], slot: u16, key: &[u8]) -> bool {
    let (bound_slot, bound_key) = bound.split_at(2.min(bound.len()));
    (bound_slot, bound_key) <= (&slot.to_be_bytes()[..], key)
}

fn read_long(source: &Sorted, (offset, len): (u64, u64), out: &mut Vec<u8>) -> Result<()> {
    let file = source.long.as_ref().ok_or_else(|| Error::bug("a long value without its file"))?;
    if len > MAX_VALUE {
        return Err(Error::unsupported(format!("a value of {len} bytes: at most {MAX_VALUE} can be backed up")));
    }
    out.resize(len as usize, 0);
    file.read_exact_at(out, offset).or_kind(ErrorKind::Retry, "reading back a long value")
}

impl Snapshot for Arc<State> {
    fn at(&self) -> Timestamp {
        self.at
    }

    fn scan(&self, range: &ScanRange, visit: &mut RecordVisitor<'_>) -> Result<()> {
        State::scan(self, range, visit)
    }

    fn changes(&self, _: Timestamp, _: &ScanRange, _: &mut ChangeVisitor<'_>) -> Result<()> {
        Err(Error::unsupported("a Redis server keeps no changes: the key index finds them"))
    }
}
