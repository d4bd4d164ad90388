//! What a scratch server held in the end, sorted: given out part by part, as often as it is asked for.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use tidemark_proto::slot::SLOT_COUNT;
use tidemark_proto::stored::log::LogEntry;
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, Timestamp, error::ResultExt, slot_of};

use super::named::{Fate, Named, Scope};
use crate::overlay::{LogSorter, Overlay, Wanted, long_entry};
use crate::rdb::{RdbSink, RecordHead, ValueSummary};
use crate::record::{RedisMeta, redis_key};
use crate::run::LongValue;

/// Values over this many bytes stay in a file.
const LONG: usize = 1 << 20;
/// Buffer of each temporary file, in bytes.
const FILE_BUFFER: usize = 256 << 10;

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
        let sorted = Sorted::of(self.sorter.finish()?, long, &self.dir)?;
        let (functions, records) = (named.functions.then_some(self.functions), self.records);
        Ok(Folded { named, sorted: Some(sorted), functions, records })
    }
}

/// Records in a file, by slot and key: given out as often as they are asked for.
#[derive(Debug)]
pub struct Sorted {
    file: Arc<File>,
    /// Where the records of each slot begin in the file, and its end.
    places: Vec<u64>,
    long: Option<Arc<File>>,
}

impl Sorted {
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

    /// Hands on the entries of `slots`, each as it is encoded.
    fn each(&self, slots: &SlotSet, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut bytes = Vec::new();
        for &(first, last) in slots.ranges() {
            let (from, to) = (self.places[usize::from(first)], self.places[usize::from(last) + 1]);
            let stretch = LongValue::new(self.file.clone(), from, to - from);
            let mut reader = BufReader::with_capacity(FILE_BUFFER, stretch.reader());
            let (mut left, read) = (to - from, "reading back records");
            while left > 0 {
                let mut len = [0; 4];
                reader.read_exact(&mut len).or_kind(ErrorKind::Retry, read)?;
                bytes.resize(u32::from_le_bytes(len) as usize, 0);
                reader.read_exact(&mut bytes).or_kind(ErrorKind::Retry, read)?;
                left -= 4 + bytes.len() as u64;
                take(&bytes)?;
            }
        }
        Ok(())
    }

    /// The records of `scope`, ascending by (slot, key); of about `budget` bytes in memory. Deletes are among them where they were
    /// asked for.
    pub fn overlay(&self, scope: &Scope, budget: usize, dir: &Path) -> Result<Overlay> {
        let mut sorter = LogSorter::new(everything(scope.slots.clone(), Some(scope)), budget, dir);
        self.each(&scope.slots, |entry| sorter.push_chunk(entry))?;
        Ok(sorter.finish()?.with_long(self.long.clone()))
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
        match self.place {
            Some(place) => long_entry(slot, key, &self.encoded, place, &mut self.entry),
            None => {
                let put = Some((&self.encoded[..], &self.value[..]));
                let (at, kind) = (Timestamp(2), Default::default());
                LogEntry { slot, at, key, put, kind }.encode(&mut self.entry);
            }
        }
        self.records += 1;
        self.sorter.push_chunk(&self.entry)
    }
}

/// What a log makes of a base.
#[derive(Debug)]
pub struct Folded {
    named: Named,
    sorted: Option<Sorted>,
    /// The libraries of functions, where they were asked for and the log changed them.
    pub functions: Option<Vec<Vec<u8>>>,
    /// Records that come of the log.
    pub records: u64,
}

impl Folded {
    /// Of a log that leaves nothing behind.
    pub(super) fn nothing(named: Named) -> Self {
        Self { named, sorted: None, functions: None, records: 0 }
    }

    /// Whether a record of the base still counts. Of all others [`Self::overlay`] says what there is instead.
    pub fn keeps(&self, slot: u16, key: &[u8]) -> Result<bool> {
        Ok(self.named.fate(slot, key)? == Fate::Stays)
    }

    /// When a key was last named by the log; `None` where it was not.
    pub fn written(&self, key: &[u8]) -> Option<Timestamp> {
        self.named.written(key)
    }

    /// The records of `scope` that come of the log, ascending by (slot, key); of about `budget` bytes in memory.
    pub fn overlay(&self, scope: &Scope, budget: usize, dir: &Path) -> Result<Overlay> {
        self.sorted.as_ref().map_or_else(|| Ok(Overlay::empty()), |sorted| sorted.overlay(scope, budget, dir))
    }

    /// The records that come of the log, and deletes for those keys of the base that are gone.
    pub fn with_gone(self, gone: Gone, dir: &Path) -> Result<Sorted> {
        let mut sorter = gone.sorter;
        let long = match &self.sorted {
            Some(sorted) => {
                sorted.each(&SlotSet::all(), |entry| sorter.push_chunk(entry))?;
                sorted.long.clone()
            }
            None => None,
        };
        Sorted::of(sorter.finish()?, long, dir)
    }
}
