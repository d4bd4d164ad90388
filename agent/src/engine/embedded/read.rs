//! Reading: a view of one incarnation at one timestamp.
//!
//! A view pins nothing: it stands on a snapshot of the storage library, which keeps what collection takes away later.
//! The safe point is read after that snapshot is taken; collection moves it before it removes anything, so whatever
//! lies at or above it is whole in the snapshot.
//!
//! A view of a clone has two layers: what was written in it lies over the parent as of the clone's timestamp, and hides it key
//! by key, deletes included. Both are read in the same order and from the same snapshot.

use std::cmp::Ordering;
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::sync::Arc;

use fjall::{Keyspace, Readable, UserKey, UserValue};
use tidemark_proto::{Error, Result, Timestamp, slot_of};

use super::generation::Generation;
use super::overlay::Overlay;
use super::{fault, key, value};
use crate::engine::{ChangeVisitor, RecordRef, RecordVisitor, ScanRange, Snapshot};
use crate::kv::{ScanPage, Versioned, check_slot};

/// Most records that one page of a client's scan may ask for.
pub const MAX_SCAN_LIMIT: usize = 10_000;

/// The state of one incarnation, or of a clone of it, at one timestamp.
pub(super) struct View {
    pub(super) generation: Arc<Generation>,
    pub(super) snapshot: fjall::Snapshot,
    /// As of when the incarnation is read.
    pub(super) at: Timestamp,
    /// The safe point when the view was taken.
    pub(super) floor: Timestamp,
    /// The clone that lies over it, and as of when that is read.
    over: Option<(Arc<Overlay>, Timestamp)>,
}

/// Byte ranges of the data keyspace, ascending: `from` inclusive, `to` exclusive.
pub(super) type Ranges = Vec<(Vec<u8>, Vec<u8>)>;

impl View {
    /// A view at `at`; `NotFound` below the safe point.
    pub(super) fn new(generation: Arc<Generation>, at: Timestamp) -> Result<Self> {
        let snapshot = generation.db.snapshot();
        generation.check_not_too_old(at)?;
        let floor = generation.safe_point();
        Ok(Self { generation, snapshot, at, floor, over: None })
    }

    /// A view of a clone at `at`; `NotFound` when it was dropped, before it began, or below its safe point.
    pub(super) fn of_clone(generation: Arc<Generation>, overlay: Arc<Overlay>, at: Timestamp) -> Result<Self> {
        let view = Self::new(generation, overlay.at);
        // What was dropped keeps nothing of the parent either: that is not what the reader is to hear.
        overlay.check_standing()?;
        overlay.check_readable(at)?;
        Ok(Self { over: Some((overlay, at)), ..view? })
    }

    /// The timestamp that is read.
    fn read_at(&self) -> Timestamp {
        self.over.as_ref().map_or(self.at, |(_, at)| *at)
    }

    /// The timestamp that a stored one stands for.
    pub(super) fn effective(&self, stored: Timestamp) -> Timestamp {
        if stored == Timestamp::ZERO { self.generation.base() } else { stored }
    }

    /// All versions of the incarnation in a byte range.
    pub(super) fn versions(
        &self,
        from: &[u8],
        to: &[u8],
    ) -> impl Iterator<Item = Result<(UserKey, UserValue)>> + use<> {
        self.versions_in(&self.generation.data, from, to)
    }

    fn versions_in(
        &self,
        data: &Keyspace,
        from: &[u8],
        to: &[u8],
    ) -> impl Iterator<Item = Result<(UserKey, UserValue)>> + use<> {
        let items = self.snapshot.range(data, from..to);
        items.map(|item| item.into_inner().map_err(fault::fjall("read records")))
    }

    /// What a byte range shows: for every key its newest version, deletes included.
    fn newest(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<Found>> + use<> {
        let layer = |data: &Keyspace, at| {
            let versions = self.versions_in(data, from, to);
            Newest { versions, at, base: self.generation.base(), decided: None }.peekable()
        };
        let over = self.over.as_ref().map(|(overlay, at)| layer(&overlay.data, *at));
        Layers { under: layer(&self.generation.data, self.at), over }
    }

    /// Visits the live record of every key in a byte range, with its timestamp.
    fn live(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(RecordRef<'_>, Timestamp) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let mut scratch = Vec::new();
        for found in self.newest(from, to) {
            let found = found?;
            if let Some(value) = value::read(&found.stored)? {
                let (slot, key) = key::decode(found.prefix(), &mut scratch)?;
                if visit(RecordRef { slot, key, meta: &[], value }, found.at)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The first key of a byte range that has a version in any layer.
    fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<UserKey>> {
        let under = self.versions(from, to).next().transpose()?.map(|(key, _)| key);
        let Some((overlay, _)) = &self.over else { return Ok(under) };
        let over = self.versions_in(&overlay.data, from, to).next().transpose()?.map(|(key, _)| key);
        Ok(match (under, over) {
            (Some(under), Some(over)) => Some(under.min(over)),
            (under, over) => under.or(over),
        })
    }

    /// The record of `key`.
    pub(super) fn get(&self, raw: &[u8]) -> Result<Option<Versioned>> {
        let mut from = Vec::new();
        key::encode_prefix(&mut from, slot_of(raw), raw);
        let to = key::end_of_versions(&from);
        key::push_time(&mut from, self.read_at());
        let mut found = None;
        let _ = self.live(&from, &to, &mut |record, timestamp| {
            found = Some(Versioned { key: raw.to_vec(), value: record.value.to_vec(), timestamp });
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// The record of `key` for a client; `Request` for a key of a slot that the node does not own.
    pub(super) fn get_own(&self, raw: &[u8]) -> Result<Option<Versioned>> {
        let _ = check_slot(raw, &self.generation.slots)?;
        self.get(raw)
    }

    /// A page for a client; see `KvStore::scan`.
    pub(super) fn page(&self, prefix: &[u8], from: &[u8], limit: usize, max_bytes: usize) -> Result<ScanPage> {
        if limit == 0 {
            return Err(Error::request(format!("a scan of 0 records: ask for 1 to {MAX_SCAN_LIMIT}")));
        }
        let limit = limit.min(MAX_SCAN_LIMIT);
        let mut page = ScanPage { records: Vec::new(), next: None, at: self.read_at() };
        let mut bytes = 0;
        let mut take = |record: RecordRef<'_>, timestamp| {
            bytes += record.key.len() + record.value.len();
            page.records.push(Versioned { key: record.key.to_vec(), value: record.value.to_vec(), timestamp });
            if page.records.len() < limit && bytes <= max_bytes {
                return Ok(ControlFlow::Continue(()));
            }
            page.next = Some([&record.slot.to_be_bytes(), record.key].concat());
            Ok(ControlFlow::Break(()))
        };
        let start = if from.is_empty() { Vec::new() } else { key::bound_after(from)? };
        for (first, last) in self.generation.slots.ranges() {
            let end = key::slot_start(last + 1).to_vec();
            if prefix.is_empty() {
                let begin = start.clone().max(key::slot_start(*first).to_vec());
                if begin < end && self.live(&begin, &end, &mut take)?.is_break() {
                    break;
                }
            } else if self.each_slot(prefix, &start, *first, *last, &mut take)?.is_break() {
                break;
            }
        }
        Ok(page)
    }

    /// The records whose key begins with `prefix`, slot by slot, skipping slots without any record.
    fn each_slot(
        &self,
        prefix: &[u8],
        start: &[u8],
        first: u16,
        last: u16,
        take: &mut dyn FnMut(RecordRef<'_>, Timestamp) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let (mut slot, mut low) = (first, Vec::new());
        while slot <= last {
            key::encode_start(&mut low, slot, prefix);
            let end = after_prefix(&low);
            let begin = low.as_slice().max(start);
            let Some(found) = self.first(begin, &key::slot_start(last + 1))? else { break };
            if found[..] < end[..] && self.live(begin, &end, take)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            slot = key::slot(&found)?.max(slot + 1);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The byte ranges of a scan range.
    pub(super) fn ranges(range: &ScanRange) -> Result<Ranges> {
        let lower = if range.lower.is_empty() { None } else { Some(key::bound(&range.lower)?) };
        let upper = if range.upper.is_empty() { None } else { Some(key::bound(&range.upper)?) };
        let clip = |&(first, last): &(u16, u16)| {
            let (mut from, mut to) = (key::slot_start(first).to_vec(), key::slot_start(last + 1).to_vec());
            if let Some(lower) = &lower {
                from = from.max(lower.clone());
            }
            if let Some(upper) = &upper {
                to = to.min(upper.clone());
            }
            (from, to)
        };
        Ok(range.slots.ranges().iter().map(clip).filter(|(from, to)| from < to).collect())
    }
}

/// A version that a layer shows.
struct Found {
    encoded: UserKey,
    /// Bytes of the key's prefix.
    prefix: usize,
    stored: UserValue,
    at: Timestamp,
}

impl Found {
    fn prefix(&self) -> &[u8] {
        &self.encoded[..self.prefix]
    }
}

/// The newest version at or below `at` of every key, from all versions in order.
struct Newest<I> {
    versions: I,
    at: Timestamp,
    /// What a stored timestamp of zero stands for.
    base: Timestamp,
    /// The key whose newest version has been told.
    decided: Option<UserKey>,
}

impl<I: Iterator<Item = Result<(UserKey, UserValue)>>> Newest<I> {
    /// The version, unless it is too new or an older one of a key that is decided.
    fn look(&mut self, encoded: UserKey, stored: UserValue) -> Result<Option<Found>> {
        let (prefix, at) = key::split(&encoded)?;
        let at = if at == Timestamp::ZERO { self.base } else { at };
        if at > self.at {
            return Ok(None);
        }
        if let Some(last) = &self.decided
            && key::split(last)?.0 == prefix
        {
            return Ok(None);
        }
        let prefix = prefix.len();
        self.decided = Some(encoded.clone());
        Ok(Some(Found { encoded, prefix, stored, at }))
    }
}

impl<I: Iterator<Item = Result<(UserKey, UserValue)>>> Iterator for Newest<I> {
    type Item = Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let looked = self.versions.next()?.and_then(|(encoded, stored)| self.look(encoded, stored));
            if let Some(found) = looked.transpose() {
                return Some(found);
            }
        }
    }
}

/// Two layers in one order: of a key that both show, the upper one counts.
struct Layers<I: Iterator> {
    under: Peekable<I>,
    over: Option<Peekable<I>>,
}

impl<I: Iterator<Item = Result<Found>>> Iterator for Layers<I> {
    type Item = Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        let Some(over) = &mut self.over else { return self.under.next() };
        let order = match (self.under.peek(), over.peek()) {
            (Some(Ok(under)), Some(Ok(over))) => over.prefix().cmp(under.prefix()),
            // Its end; or an error, which is told first.
            (None | Some(Ok(_)), Some(Err(_))) | (None, _) => Ordering::Less,
            (Some(_), _) => Ordering::Greater,
        };
        match order {
            Ordering::Less => over.next(),
            Ordering::Greater => self.under.next(),
            Ordering::Equal => {
                drop(self.under.next());
                over.next()
            }
        }
    }
}

/// The end (exclusive) of all byte strings that begin with `prefix`, which begins with a slot below 16384.
fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while end.last() == Some(&0xFF) {
        let _ = end.pop();
    }
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

impl Snapshot for View {
    fn at(&self) -> Timestamp {
        self.read_at()
    }

    fn scan(&self, range: &ScanRange, visit: &mut RecordVisitor<'_>) -> Result<()> {
        for (from, to) in Self::ranges(range)? {
            if self.live(&from, &to, &mut |record, _| visit(record))?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn changes(&self, since: Timestamp, range: &ScanRange, visit: &mut ChangeVisitor<'_>) -> Result<()> {
        self.visit_changes(since, range, visit)
    }
}
