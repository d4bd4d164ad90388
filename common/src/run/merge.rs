//! Merging the runs of a part: for each key the newest run wins, and a delete hides what lies below it.

use std::cmp::Ordering;

use tidemark_proto::{Error, Result};

use super::reader::{BlockSource, RunReader};
use super::{Entry, LongValue};

/// Walks the live records of a part; call [`Merge::advance`], then [`Merge::current`].
pub struct Merge<S> {
    /// Oldest first. Runs of a part are few (at most about 11), so the smallest is found by looking at each.
    runs: Vec<Source<S>>,
    winner: usize,
}

struct Source<S> {
    reader: RunReader<S>,
    alive: bool,
    /// The record at hand was given out (or hidden) and the reader must move before it is looked at again.
    stale: bool,
    /// Sort key of the record before, to find runs that are out of order. Only kept by merges of several runs.
    last: Vec<u8>,
}

impl<S> std::fmt::Debug for Merge<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Merge").field("runs", &self.runs.len()).finish_non_exhaustive()
    }
}

fn order(a: &Entry<'_>, b: &Entry<'_>) -> Ordering {
    (a.slot, a.key).cmp(&(b.slot, b.key))
}

impl<S: BlockSource> Merge<S> {
    /// A merge of `runs`, oldest first.
    pub fn new(runs: Vec<RunReader<S>>) -> Self {
        let source = |reader| Source { reader, alive: true, stale: true, last: Vec::new() };
        Self { runs: runs.into_iter().map(source).collect(), winner: 0 }
    }

    /// Goes to the next live record; `false` after the last.
    pub fn advance(&mut self) -> Result<bool> {
        loop {
            for run in self.runs.iter_mut().filter(|r| r.alive && r.stale) {
                run.step()?;
            }
            let Some(winner) = self.pick() else { return Ok(false) };
            let (before, rest) = self.runs.split_at_mut(winner);
            let entry = rest[0].reader.current();
            for run in before.iter_mut().filter(|r| r.alive) {
                run.stale = order(&run.reader.current(), &entry).is_eq();
            }
            let live = entry.put.is_some();
            rest[0].stale = true;
            self.winner = winner;
            if live {
                return Ok(true);
            }
        }
    }

    /// The run with the smallest key; among equal keys the newest.
    fn pick(&self) -> Option<usize> {
        let mut best: Option<usize> = None;
        for (i, run) in self.runs.iter().enumerate().filter(|(_, r)| r.alive) {
            let better = best.is_none_or(|b| order(&run.reader.current(), &self.runs[b].reader.current()).is_le());
            if better {
                best = Some(i);
            }
        }
        best
    }

    /// The current record; always a put. Only after [`Merge::advance`] answered `true`.
    pub fn current(&self) -> Entry<'_> {
        self.runs[self.winner].reader.current()
    }

    /// Hash of the current record and length of its value, where that was not kept: see [`RunReader::hashing`].
    pub fn hashed(&self) -> Option<(u128, u64)> {
        self.runs[self.winner].reader.hashed()
    }

    /// The value of the current record where it lies in a file: see [`RunReader::spooling`].
    pub fn long(&self) -> Option<&LongValue> {
        self.runs[self.winner].reader.long()
    }
}

impl<S: BlockSource> Source<S> {
    fn step(&mut self) -> Result<()> {
        self.stale = false;
        self.alive = self.reader.advance()?;
        if self.alive {
            let entry = self.reader.current();
            let slot = entry.slot.to_be_bytes();
            if !self.last.is_empty() && (&self.last[..2], &self.last[2..]) >= (&slot[..], entry.key) {
                return Err(Error::damaged("run: its records are not in order"));
            }
            self.last.clear();
            self.last.extend_from_slice(&slot);
            self.last.extend_from_slice(entry.key);
        }
        Ok(())
    }
}
