//! What scratch servers held in the end, sorted: given out part by part, as often as it is asked for.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use tidemark_proto::slot::SLOT_COUNT;
use tidemark_proto::stored::log::LogEntry;
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, Timestamp, error::ResultExt, slot_of};

use super::named::{Fate, Named, Scope};
use crate::overlay::{LogSorter, Overlay, Stretches, Wanted, long_entry};
use crate::rdb::{RdbSink, RecordHead, ValueSummary};
use crate::record::{RedisMeta, redis_key};

/// Values over this many bytes stay in a file.
const LONG: usize = 1 << 20;
/// Buffer of each temporary file, in bytes.
const FILE_BUFFER: usize = 64 << 10;

fn temporary(dir: &Path) -> Result<File> {
    tempfile::tempfile_in(dir).or_kind(ErrorKind::Full, format_args!("a temporary file in {}", dir.display()))
}

fn full<T>(done: std::io::Result<T>) -> Result<T> {
    done.or_kind(ErrorKind::Full, "writing records to a temporary file")
}

fn everything(slots: SlotSet, scope: Option<&Scope>) -> Wanted {
    let (lower, upper) = scope.map(|s| (s.lower.clone(), s.upper.clone())).unwrap_or_default();
    Wanted { after: Timestamp::ZERO, at: Timestamp::MAX, slots, lower, upper }
}

/// Takes a dump apart.
pub(super) struct Sink {
    sorter: LogSorter,
    scope: Scope,
    long: Option<BufWriter<File>>,
    long_len: u64,
    functions: Vec<Vec<u8>>,
    key: Vec<u8>,
    slot: u16,
    meta: Option<RedisMeta>,
    encoded: Vec<u8>,
    value: Vec<u8>,
    /// Where the value at hand begins in the file of long values, and its length so far, if it is there.
    place: Option<(u64, u64)>,
    entry: Vec<u8>,
    dir: std::path::PathBuf,
    records: u64,
}

impl Sink {
    pub(super) fn new(scope: Scope, budget: usize, dir: &Path) -> Self {
        Self {
            sorter: LogSorter::new(everything(SlotSet::all(), None), budget, dir),
            scope,
            long: None,
            long_len: 0,
            functions: Vec::new(),
            key: Vec::new(),
            slot: 0,
            meta: None,
            encoded: Vec::new(),
            value: Vec::new(),
            place: None,
            entry: Vec::new(),
            dir: dir.to_owned(),
            records: 0,
        }
    }

    fn add_long(&mut self, piece: &[u8]) -> Result<()> {
        let out = match &mut self.long {
            Some(out) => out,
            None => self.long.insert(BufWriter::with_capacity(FILE_BUFFER, temporary(&self.dir)?)),
        };
        full(out.write_all(piece))?;
        self.long_len += piece.len() as u64;
        Ok(())
    }

    /// What was taken, and what of the base goes with it.
    pub(super) fn finish(self, named: Named) -> Result<Folded> {
        let long = self.long.map(|out| full(out.into_inner().map_err(std::io::IntoInnerError::into_error)));
        let long = long.transpose()?.map(Arc::new);
        let sorted = Run::of(self.sorter.finish()?, long, &self.dir)?;
        let (functions, records) = (named.functions.then_some(self.functions), self.records);
        let share = Share { slots: self.scope.slots, named };
        Ok(Folded { shares: vec![share], sorted: Sorted { runs: vec![sorted] }, functions, records })
    }
}

/// Records in a file, by slot and key.
#[derive(Debug)]
struct Run {
    file: Arc<File>,
    /// Where the records of each slot begin in the file, and its end.
    places: Vec<u64>,
    long: Option<Arc<File>>,
}

impl Run {
    /// Writes down what an overlay gives, whose long values lie in `long`.
    fn of(mut overlay: Overlay, long: Option<Arc<File>>, dir: &Path) -> Result<Self> {
        let mut out = BufWriter::with_capacity(FILE_BUFFER, temporary(dir)?);
        let (mut places, mut at, mut bytes) = (vec![0; usize::from(SLOT_COUNT) + 1], 0, Vec::new());
        let mut slot = 0;
        while overlay.advance()? {
            let entry = overlay.current()?;
            while slot <= usize::from(entry.slot) {
                places[slot] = at;
                slot += 1;
            }
            bytes.clear();
            entry.encode(&mut bytes);
            full(out.write_all(&(bytes.len() as u32).to_le_bytes()))?;
            full(out.write_all(&bytes))?;
            at += 4 + bytes.len() as u64;
        }
        places[slot..].fill(at);
        let file = Arc::new(full(out.into_inner().map_err(std::io::IntoInnerError::into_error))?);
        Ok(Self { file, places, long })
    }

    /// Where the records of `slots` lie, if there are any.
    fn stretches(&self, slots: &SlotSet) -> Option<Stretches> {
        let range =
            |&(first, last): &(u16, u16)| (self.places[usize::from(first)], self.places[usize::from(last) + 1]);
        let ranges: VecDeque<_> = slots.ranges().iter().map(range).filter(|(from, to)| from < to).collect();
        let (file, long) = (self.file.clone(), self.long.clone());
        (!ranges.is_empty()).then_some(Stretches { file, ranges, long })
    }
}

/// Records in files, each by slot and key: given out as often as they are asked for.
#[derive(Debug, Default)]
pub struct Sorted {
    runs: Vec<Run>,
}

impl Sorted {
    /// All that these hold.
    pub fn join(all: impl IntoIterator<Item = Self>) -> Self {
        Self { runs: all.into_iter().flat_map(|sorted| sorted.runs).collect() }
    }

    /// The records of `scope`, ascending by (slot, key). Deletes are among them where they were asked for.
    pub fn overlay(&self, scope: &Scope) -> Result<Overlay> {
        let files = self.runs.iter().filter_map(|run| run.stretches(&scope.slots)).collect();
        Overlay::of_files(files, Some(everything(scope.slots.clone(), Some(scope))))
    }
}

/// Keys of the base whose records do not count any more.
#[derive(Debug)]
pub struct Gone {
    sorter: LogSorter,
    entry: Vec<u8>,
}

impl Gone {
    /// None yet. What does not fit into `budget` bytes goes to files without a name in `dir`.
    pub fn new(budget: usize, dir: &Path) -> Self {
        Self { sorter: LogSorter::new(everything(SlotSet::all(), None), budget, dir), entry: Vec::new() }
    }

    /// One more.
    pub fn add(&mut self, slot: u16, key: &[u8]) -> Result<()> {
        self.entry.clear();
        // Older than any record that comes of the log.
        let (at, kind) = (Timestamp(1), Default::default());
        LogEntry { slot, at, key, put: None, kind }.encode(&mut self.entry);
        self.sorter.push_chunk(&self.entry)
    }
}

impl RdbSink for Sink {
    fn function(&mut self, code: &[u8]) -> Result<()> {
        self.functions.push(code.to_vec());
        Ok(())
    }

    fn begin(&mut self, head: &RecordHead<'_>) -> Result<()> {
        redis_key(head.db, head.key, &mut self.key);
        self.slot = slot_of(head.key);
        self.meta = Some(RedisMeta::of(head, 0));
        self.value.clear();
        self.place = None;
        Ok(())
    }

    fn value(&mut self, piece: &[u8]) -> Result<()> {
        if self.place.is_none() && self.value.len() + piece.len() <= LONG {
            self.value.extend_from_slice(piece);
            return Ok(());
        }
        let (at, len) = match self.place {
            Some(place) => place,
            None => {
                let (at, held) = (self.long_len, std::mem::take(&mut self.value));
                self.add_long(&held)?;
                (at, held.len() as u64)
            }
        };
        self.add_long(piece)?;
        self.place = Some((at, len + piece.len() as u64));
        Ok(())
    }

    fn end(&mut self, summary: ValueSummary) -> Result<()> {
        let meta = self.meta.take().ok_or_else(|| Error::bug("the end of no record"))?;
        if !self.scope.takes(self.slot, &self.key) {
            return Ok(());
        }
        RedisMeta { meaning: summary.meaning, ..meta }.encode(&mut self.encoded);
        self.entry.clear();
        let (slot, key) = (self.slot, &self.key[..]);
        let put = Some((&self.encoded[..], &self.value[..]));
        let entry = LogEntry { slot, at: Timestamp(2), key, put, kind: Default::default() };
        match self.place {
            Some(place) => long_entry(&entry, place, &mut self.entry),
            None => entry.encode(&mut self.entry),
        }
        self.records += 1;
        self.sorter.push_chunk(&self.entry)
    }
}

/// What is known of the keys of some slots.
#[derive(Debug)]
struct Share {
    slots: SlotSet,
    named: Named,
}

/// What a log makes of a base.
#[derive(Debug)]
pub struct Folded {
    /// No two of the same slots.
    shares: Vec<Share>,
    sorted: Sorted,
    /// The libraries of functions, where they were asked for and the log changed them.
    pub functions: Option<Vec<Vec<u8>>>,
    /// Records that come of the log.
    pub records: u64,
}

impl Folded {
    /// Of a log that leaves nothing behind in the keys of `slots`.
    pub(super) fn nothing(named: Named, slots: SlotSet) -> Self {
        let shares = vec![Share { slots, named }];
        Self { shares, sorted: Sorted::default(), functions: None, records: 0 }
    }

    /// What a log makes of all slots, of what it makes of some of them each; no slot may be in two.
    pub fn join(all: impl IntoIterator<Item = Self>) -> Self {
        let mut joined = Self { shares: Vec::new(), sorted: Sorted::default(), functions: None, records: 0 };
        for folded in all {
            joined.shares.extend(folded.shares);
            joined.sorted.runs.extend(folded.sorted.runs);
            joined.functions = joined.functions.or(folded.functions);
            joined.records += folded.records;
        }
        joined
    }

    fn named(&self, slot: u16) -> Option<&Named> {
        self.shares.iter().find(|share| share.slots.contains(slot)).map(|share| &share.named)
    }

    /// Whether a record of the base still counts. Of all others [`Self::overlay`] says what there is instead.
    pub fn keeps(&self, slot: u16, key: &[u8]) -> Result<bool> {
        self.named(slot).map_or(Ok(true), |named| Ok(named.fate(slot, key)? == Fate::Stays))
    }

    /// When a key was last named by the log; `None` where it was not.
    pub fn written(&self, slot: u16, key: &[u8]) -> Option<Timestamp> {
        self.named(slot)?.written(key)
    }

    /// The records of `scope` that come of the log, ascending by (slot, key).
    pub fn overlay(&self, scope: &Scope) -> Result<Overlay> {
        self.sorted.overlay(scope)
    }

    /// The records that come of the log, and deletes for those keys of the base that are gone.
    pub fn with_gone(self, gone: Gone, dir: &Path) -> Result<Sorted> {
        let mut sorted = self.sorted;
        sorted.runs.push(Run::of(gone.sorter.finish()?, None, dir)?);
        Ok(sorted)
    }
}
