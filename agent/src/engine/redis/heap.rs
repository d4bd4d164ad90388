//! Reading chunks, many at once in the order of their records.

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::chunk::{self, Chunk, HEAD};
use super::spill::Sorted;

/// Memory for reading all chunks of one scan, in bytes.
const READ_MEMORY: usize = 16 << 20;
/// Least and most bytes that are read of a chunk at once.
const READ_AT_ONCE: (usize, usize) = (4 << 10, 256 << 10);

/// Bytes of each of so many chunks that are read at once.
pub(super) fn read_step(chunks: usize) -> usize {
    (READ_MEMORY / chunks.max(1)).clamp(READ_AT_ONCE.0, READ_AT_ONCE.1)
}

/// Reads one chunk.
struct Cursor<'c> {
    chunk: &'c Chunk,
    buffer: Vec<u8>,
    /// Offset in the chunk at which the buffer begins, and the record at hand in the buffer.
    offset: u64,
    at: usize,
    len: usize,
    step: usize,
    /// Offset in the chunk up to which is read ahead: nobody asks for what lies behind it.
    wanted: u64,
}

impl<'c> Cursor<'c> {
    /// At the first record of the chunk that may lie in a slot from `slot` on; those after `last` are read one by one.
    fn new(chunk: &'c Chunk, (slot, last): (u16, u16), step: usize) -> Result<Self> {
        let offset = chunk.offset_of(slot);
        if chunk.start + offset < chunk.given_back.load(Ordering::Relaxed) {
            return Err(Error::bug(format!("slot {slot} of the base is read where it was given back")));
        }
        let mut cursor =
            Self { chunk, buffer: Vec::new(), offset, at: 0, len: 0, step, wanted: chunk.offset_after(last) };
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
        let wanted = self.wanted.saturating_sub(self.offset) as usize;
        let ahead = wanted.saturating_sub(have).min(self.step);
        let more = need.saturating_sub(have).max(ahead).min(left);
        self.buffer.resize(have + more, 0);
        let from = self.chunk.start + self.offset + have as u64;
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
        let len = chunk::record_len(&self.buffer[self.at..]);
        self.fill(len)?;
        self.len = len;
        Ok(())
    }
}

/// Cursors with the smallest record first: a binary heap that is ordered by what the cursors point at.
pub(super) struct Heap<'c> {
    cursors: Vec<Cursor<'c>>,
}

impl<'c> Heap<'c> {
    /// Records of the slots from the first to the last, and some behind them, whose reading costs more.
    pub(super) fn new(sorted: &'c Sorted, slots: (u16, u16), step: usize) -> Result<Self> {
        let cursors = sorted.chunks.iter().map(|c| Cursor::new(c, slots, step)).collect::<Result<Vec<_>>>()?;
        let mut heap = Self { cursors: cursors.into_iter().filter(|c| !c.ended()).collect() };
        for i in (0..heap.cursors.len() / 2).rev() {
            heap.sink(i);
        }
        Ok(heap)
    }

    fn less(&self, a: usize, b: usize) -> bool {
        chunk::sort_key(self.cursors[a].record()) < chunk::sort_key(self.cursors[b].record())
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

    pub(super) fn peek(&self) -> Option<&[u8]> {
        self.cursors.first().map(Cursor::record)
    }

    pub(super) fn advance(&mut self) -> Result<()> {
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
