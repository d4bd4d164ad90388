//! Visiting records that were sorted on disk: the base, and over it what the log since then made of the keys that it names.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidemark_common::record::split_redis_key;
use tidemark_common::run::LongValue;
use tidemark_proto::{Error, Result, SlotSet, Timestamp};

use super::chunk::{self, Here, Value};
use super::heap::{Heap, read_step};
use super::ready::{Ready, ReadyCursor};
use super::spill::Sorted;
use crate::engine::{
    ChangeVisitor, LongRecord, Next, Over, OverVisitor, PackedVisitor, RecordRef, RecordVisitor, ScanRange,
    Scanned, Snapshot,
};

/// Longest value that is given to those who want it in memory, in bytes. Backups take long values from where they lie.
const MOST_IN_MEMORY: usize = 1 << 30;

/// Where records of the base are visited: its chunks, or what was made ready of them.
enum BaseCursor<'c> {
    Chunks(Heap<'c>),
    Ready(Box<ReadyCursor<'c>>),
}

impl BaseCursor<'_> {
    fn key(&self) -> Option<(u16, &[u8])> {
        match self {
            Self::Chunks(heap) => heap.peek().map(chunk::sort_key),
            Self::Ready(cursor) => cursor.key(),
        }
    }

    /// The record at hand; what is packed is opened for it.
    fn here(&mut self) -> Result<Option<Here<'_>>> {
        match self {
            Self::Chunks(heap) => Ok(heap.peek().map(chunk::here)),
            Self::Ready(cursor) => {
                cursor.open()?;
                Ok(cursor.here())
            }
        }
    }

    fn advance(&mut self) -> Result<()> {
        match self {
            Self::Chunks(heap) => heap.advance(),
            Self::Ready(cursor) => {
                cursor.open()?;
                cursor.advance()
            }
        }
    }
}

/// What the log has emptied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Emptied {
    /// All databases.
    pub all: bool,
    /// These.
    pub dbs: BTreeSet<u64>,
    /// These slots, in all of them.
    pub slots: SlotSet,
}

impl Emptied {
    fn any(&self) -> bool {
        self.all || !self.dbs.is_empty() || !self.slots.is_empty()
    }

    fn hides(&self, slot: u16, key: &[u8]) -> Result<bool> {
        if self.dbs.is_empty() || self.all {
            return Ok(self.all || self.slots.contains(slot));
        }
        Ok(self.slots.contains(slot) || self.dbs.contains(&split_redis_key(key)?.0))
    }
}

/// The state at a cut.
#[derive(Debug)]
pub struct State {
    /// The cut.
    pub at: Timestamp,
    /// The base.
    pub base: Arc<Sorted>,
    /// What was made ready of it.
    pub(super) ready: Option<Arc<Ready>>,
    /// What the log made of the keys that it names.
    pub over: Sorted,
    /// What the log hides of the base.
    pub emptied: Emptied,
    /// Tells the base from others; 0 where nobody asks.
    pub(super) base_id: u64,
}

impl State {
    /// What a base alone holds.
    pub fn of(at: Timestamp, base: Arc<Sorted>) -> Self {
        Self { at, base, ready: None, over: Sorted::default(), emptied: Emptied::default(), base_id: 0 }
    }

    /// Visits every record of the range once, ascending by (slot, key).
    pub fn scan(&self, range: &ScanRange, visit: &mut RecordVisitor<'_>) -> Result<()> {
        self.scan_packed(range, &mut |scanned| match scanned {
            Scanned::Record(record) => Ok(if visit(record)?.is_break() { Next::Stop } else { Next::Go }),
            Scanned::Packed(_) => Ok(Next::Open),
            Scanned::Long(LongRecord { slot, key, meta, value }) => {
                let value = value.whole(MOST_IN_MEMORY)?;
                Ok(if visit(RecordRef { slot, key, meta, value: &value })?.is_break() {
                    Next::Stop
                } else {
                    Next::Go
                })
            }
        })
    }

    /// As [`Self::scan`]; what is ready and untouched is visited as it stands.
    pub fn scan_packed(&self, range: &ScanRange, visit: &mut PackedVisitor<'_>) -> Result<()> {
        let below = self.ready.as_ref().map_or(0, |ready| ready.below());
        for &(first, last) in range.slots.ranges() {
            // What is ready of them, and the rest.
            let ready = (first < below).then(|| (first, last.min(below - 1)));
            let rest = (last >= below).then(|| (first.max(below), last));
            for slots in ready.into_iter().chain(rest) {
                if self.visit_slots(slots, range, visit)? == Next::Stop {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Visits what the log made of the keys of the range that it names. `Unsupported` where it emptied slots or databases: what it did
    /// to their keys stands nowhere.
    pub fn over(&self, range: &ScanRange, visit: &mut OverVisitor<'_>) -> Result<()> {
        if self.emptied.any() {
            return Err(Error::unsupported("slots or databases were emptied since the base"));
        }
        let step = read_step(self.over.chunks.len());
        for &(first, last) in range.slots.ranges() {
            let mut over = Heap::new(&self.over, (first, last), step)?;
            let window = Window { first, last, range };
            while let Some(record) = over.peek().map(chunk::here) {
                if window.ends_before(record.slot, record.key) {
                    break;
                }
                if window.has_begun(record.slot, record.key) && self.visit_over(&record, visit)? == Next::Stop {
                    return Ok(());
                }
                over.advance()?;
            }
        }
        Ok(())
    }

    fn visit_over(&self, record: &Here<'_>, visit: &mut OverVisitor<'_>) -> Result<Next> {
        let Here { slot, key, value, .. } = *record;
        if let Value::Gone = value {
            return visit(Over::Gone { slot, key });
        }
        self.visit_one(&self.over, record, &mut |scanned| match scanned {
            Scanned::Record(record) => visit(Over::Record(record)),
            Scanned::Long(record) => visit(Over::Long(record)),
            Scanned::Packed(_) => Err(Error::bug("a packed record alone")),
        })
    }

    fn base_from(&self, slots: (u16, u16), step: usize) -> Result<BaseCursor<'_>> {
        match self.ready.as_ref().filter(|ready| slots.0 < ready.below()) {
            Some(ready) => ReadyCursor::new(ready, slots.0).map(|c| BaseCursor::Ready(Box::new(c))),
            None => Heap::new(&self.base, slots, step).map(BaseCursor::Chunks),
        }
    }

    fn visit_slots(
        &self,
        (first, last): (u16, u16),
        range: &ScanRange,
        visit: &mut PackedVisitor<'_>,
    ) -> Result<Next> {
        let step = read_step(self.base.chunks.len() + self.over.chunks.len());
        let (mut base, mut over) =
            (self.base_from((first, last), step)?, Heap::new(&self.over, (first, last), step)?);
        let window = Window { first, last, range };
        loop {
            if let Some(next) = self.visit_packed(&mut base, &over, &window, visit)? {
                match next {
                    Next::Stop => return Ok(Next::Stop),
                    _ => continue,
                }
            }
            let (from_over, both) = match (base.key(), over.peek().map(chunk::sort_key)) {
                (None, None) => return Ok(Next::Go),
                (Some(_), None) => (false, false),
                (None, Some(_)) => (true, false),
                (Some(b), Some(o)) => (o <= b, o == b),
            };
            let source = if from_over { &self.over } else { &*self.base };
            let record = if from_over { over.peek().map(chunk::here) } else { base.here()? };
            let record = record.ok_or_else(|| Error::bug("a record that is not there"))?;
            let Here { slot, key, .. } = record;
            if window.ends_before(slot, key) {
                return Ok(Next::Go);
            }
            let hidden = !from_over && self.emptied.hides(slot, key)?;
            if window.has_begun(slot, key) && !hidden && self.visit_one(source, &record, visit)? == Next::Stop {
                return Ok(Next::Stop);
            }
            if from_over {
                over.advance()?;
            }
            if both || !from_over {
                base.advance()?;
            }
        }
    }

    /// Visits what is packed at the front of `base`, where nothing between its first and its last record lies outside of the range or
    /// was touched by the log. `None`: the next record comes alone.
    fn visit_packed(
        &self,
        base: &mut BaseCursor<'_>,
        over: &Heap<'_>,
        window: &Window<'_>,
        visit: &mut PackedVisitor<'_>,
    ) -> Result<Option<Next>> {
        let BaseCursor::Ready(cursor) = base else { return Ok(None) };
        let Some(packed) = cursor.packed() else { return Ok(None) };
        let (first, last) = (split_key(packed.block.first)?, split_key(packed.block.last)?);
        let touches = over.peek().map(chunk::sort_key).filter(|o| *o <= last);
        if touches.is_some_and(|o| o < first) {
            // What the log made of keys before it comes first.
            return Ok(None);
        }
        if !window.has_begun(last.0, last.1) {
            cursor.skip()?;
            return Ok(Some(Next::Go));
        }
        let whole = window.has_begun(first.0, first.1) && !window.ends_before(last.0, last.1);
        if touches.is_some() || self.emptied.any() || !whole {
            return Ok(None);
        }
        let next = visit(Scanned::Packed(packed))?;
        match next {
            Next::Go => cursor.skip()?,
            Next::Open => cursor.open()?,
            Next::Stop => {}
        }
        Ok(Some(next))
    }

    fn visit_one(&self, source: &Sorted, record: &Here<'_>, visit: &mut PackedVisitor<'_>) -> Result<Next> {
        let Here { slot, key, meta, value } = *record;
        match value {
            Value::Gone => Ok(Next::Go),
            Value::Bytes(value) => visit(Scanned::Record(RecordRef { slot, key, meta, value })),
            Value::Long(offset, len) => {
                let file = source.long.clone().ok_or_else(|| Error::bug("a long value without its file"))?;
                let value = &LongValue::new(file, offset, len);
                visit(Scanned::Long(LongRecord { slot, key, meta, value }))
            }
        }
    }
}

/// Slot and key of a sort key.
fn split_key(sort_key: &[u8]) -> Result<(u16, &[u8])> {
    let (slot, key) = sort_key.split_first_chunk::<2>().ok_or_else(|| Error::bug("a sort key without a slot"))?;
    Ok((u16::from_be_bytes(*slot), key))
}

/// What of a range is visited at once.
struct Window<'r> {
    first: u16,
    last: u16,
    range: &'r ScanRange,
}

impl Window<'_> {
    fn has_begun(&self, slot: u16, key: &[u8]) -> bool {
        slot >= self.first && (self.range.lower.is_empty() || below(&self.range.lower, slot, key))
    }

    fn ends_before(&self, slot: u16, key: &[u8]) -> bool {
        slot > self.last || (!self.range.upper.is_empty() && below(&self.range.upper, slot, key))
    }
}

/// Whether `bound` is at or below (slot, key).
fn below(bound: &[u8], slot: u16, key: &[u8]) -> bool {
    let (bound_slot, bound_key) = bound.split_at(2.min(bound.len()));
    (bound_slot, bound_key) <= (&slot.to_be_bytes()[..], key)
}

impl Snapshot for Arc<State> {
    fn at(&self) -> Timestamp {
        self.at
    }

    fn scan(&self, range: &ScanRange, visit: &mut RecordVisitor<'_>) -> Result<()> {
        State::scan(self, range, visit)
    }

    fn scan_packed(&self, range: &ScanRange, visit: &mut PackedVisitor<'_>) -> Result<()> {
        State::scan_packed(self, range, visit)
    }

    fn changes(&self, _: Timestamp, _: &ScanRange, _: &mut ChangeVisitor<'_>) -> Result<()> {
        Err(Error::unsupported("a Redis server keeps no changes: the key index finds them"))
    }

    fn base(&self) -> u64 {
        self.base_id
    }

    fn over(&self, range: &ScanRange, visit: &mut OverVisitor<'_>) -> Result<()> {
        State::over(self, range, visit)
    }
}
