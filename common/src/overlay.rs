//! A log laid over a state: the newest version of each key up to a time, sorted, and merged with the records before.
//!
//! Entries come in any order of keys; they are sorted in bounded memory, what does not fit goes to unnamed temporary files.
//! CPU work and file IO: call it from threads that may block.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_proto::stored::log::{EntryKind, LogEntry, take_entry};
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, Timestamp, error::ResultExt};

use crate::run::{Entry, LongValue};

mod long;
mod sorted;

use long::LongPieces;
pub(crate) use long::long_entry;
use sorted::SortedFile;
pub(crate) use sorted::Stretches;

/// What one entry costs in memory beside its bytes.
const OVERHEAD: usize = 24;
/// Buffer of each temporary file, in bytes.
const FILE_BUFFER: usize = 64 << 10;

/// Which entries count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Entries after this.
    pub after: Timestamp,
    /// Entries up to and including this.
    pub at: Timestamp,
    /// Of these slots.
    pub slots: SlotSet,
    /// First sort key (slot big-endian ++ key); empty = from the beginning.
    pub lower: Vec<u8>,
    /// Sort key to stop before; empty = to the end.
    pub upper: Vec<u8>,
}

impl Wanted {
    fn takes(&self, entry: &LogEntry<'_>) -> bool {
        let place = (entry.slot.to_be_bytes(), entry.key);
        let below = |bound: &[u8]| {
            let (slot, key) = bound.split_at_checked(2).unwrap_or((bound, &[]));
            (&place.0[..], place.1) < (slot, key)
        };
        entry.at > self.after
            && entry.at <= self.at
            && self.slots.contains(entry.slot)
            && !below(&self.lower)
            && (self.upper.is_empty() || below(&self.upper))
    }
}

/// One entry in the arena.
#[derive(Debug, Clone, Copy)]
struct Place {
    slot: u16,
    key: u32,
    key_len: u32,
    start: u32,
    end: u32,
    at: Timestamp,
}

/// Gathers entries and sorts them.
#[derive(Debug)]
pub struct LogSorter {
    wanted: Wanted,
    budget: usize,
    dir: PathBuf,
    arena: Vec<u8>,
    places: Vec<Place>,
    spilled: Vec<Stretches>,
    long: LongPieces,
    bytes: u64,
}

impl LogSorter {
    /// A sorter that takes about `budget` bytes of memory (at most 1 GiB) and puts what does not fit into `dir`.
    pub fn new(wanted: Wanted, budget: usize, dir: &Path) -> Self {
        let (arena, places, spilled, long) = Default::default();
        Self { wanted, budget: budget.min(1 << 30), dir: dir.to_owned(), arena, places, spilled, long, bytes: 0 }
    }

    /// Takes the entries of a raw chunk that count.
    pub fn push_chunk(&mut self, raw: &[u8]) -> Result<()> {
        let mut rest = raw;
        loop {
            let before = rest;
            let Some(entry) = take_entry(&mut rest)? else { return Ok(()) };
            if !self.wanted.takes(&entry) {
                continue;
            }
            if !self.long.takes(&entry) {
                self.push(&before[..before.len() - rest.len()], &entry)?;
            } else if let Some(named) = self.long.add(&entry, &self.dir)? {
                self.push(&named, &decode(&named)?)?;
            }
        }
    }

    fn push(&mut self, bytes: &[u8], entry: &LogEntry<'_>) -> Result<()> {
        if !self.places.is_empty()
            && self.arena.len() + bytes.len() + (self.places.len() + 1) * OVERHEAD > self.budget
        {
            self.spill()?;
        }
        let start = self.arena.len() as u32;
        let key = start + (entry.key.as_ptr() as usize - bytes.as_ptr() as usize) as u32;
        self.arena.extend_from_slice(bytes);
        let (key_len, end) = (entry.key.len() as u32, self.arena.len() as u32);
        self.places.push(Place { slot: entry.slot, key, key_len, start, end, at: entry.at });
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Bytes of entries that count.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sorts what is in memory and keeps the newest of each key.
    fn settle(&mut self) {
        let arena = &self.arena;
        let key = |p: &Place| &arena[p.key as usize..][..p.key_len as usize];
        self.places.sort_unstable_by(|a, b| (a.slot, key(a), b.at).cmp(&(b.slot, key(b), a.at)));
        self.places.dedup_by(|later, first| later.slot == first.slot && key(later) == key(first));
    }

    fn spill(&mut self) -> Result<()> {
        self.settle();
        let failed = || format!("a temporary file in {}", self.dir.display());
        let file = tempfile::tempfile_in(&self.dir).or_kind(ErrorKind::Full, failed())?;
        let (mut out, mut len) = (BufWriter::with_capacity(FILE_BUFFER, &file), 0);
        for place in &self.places {
            let bytes = &self.arena[place.start as usize..place.end as usize];
            out.write_all(&(bytes.len() as u32).to_le_bytes()).or_kind(ErrorKind::Full, failed())?;
            out.write_all(bytes).or_kind(ErrorKind::Full, failed())?;
            len += 4 + bytes.len() as u64;
        }
        out.flush().or_kind(ErrorKind::Full, failed())?;
        drop(out);
        self.spilled.push(Stretches {
            file: Arc::new(file),
            ranges: VecDeque::from([(0, len)]),
            long: self.long.file(),
        });
        self.arena.clear();
        self.places.clear();
        Ok(())
    }

    /// The newest entry of each key, ascending by (slot, key).
    pub fn finish(mut self) -> Result<Overlay> {
        self.settle();
        self.long.check_whole()?;
        let files = std::mem::take(&mut self.spilled);
        let mut overlay = Overlay::of_files(files, None)?;
        (overlay.arena, overlay.places, overlay.long) = (self.arena, self.places, self.long.file());
        Ok(overlay)
    }
}

/// Where the current entry is.
#[derive(Debug, Clone, Copy)]
enum From {
    Memory,
    File(usize),
}

/// The newest entry of each key, in order.
#[derive(Debug)]
pub struct Overlay {
    files: Vec<SortedFile>,
    arena: Vec<u8>,
    places: Vec<Place>,
    /// Where the long values of entries in memory lie.
    long: Option<Arc<File>>,
    next: usize,
    current: Option<From>,
}

fn decode(bytes: &[u8]) -> Result<LogEntry<'_>> {
    take_entry(&mut &bytes[..])?.ok_or_else(|| Error::bug("an empty entry of a log"))
}

impl Overlay {
    /// One without entries.
    pub fn empty() -> Self {
        Self { files: Vec::new(), arena: Vec::new(), places: Vec::new(), long: None, next: 0, current: None }
    }

    /// The newest entry of each key in these files, of those that are `wanted`. Of each file a buffer is in memory, and one entry.
    pub(crate) fn of_files(files: Vec<Stretches>, wanted: Option<Wanted>) -> Result<Self> {
        let wanted = wanted.map(Arc::new);
        let open = |file: Stretches| {
            let len: u64 = file.ranges.iter().map(|(from, to)| to - from).sum();
            let buffer = usize::try_from(len).unwrap_or(FILE_BUFFER).min(FILE_BUFFER);
            let file = BufReader::with_capacity(buffer, file);
            SortedFile { file, entry: Vec::new(), alive: true, wanted: wanted.clone() }
        };
        let mut overlay = Self { files: files.into_iter().map(open).collect(), ..Self::empty() };
        overlay.files.iter_mut().try_for_each(SortedFile::step)?;
        Ok(overlay)
    }

    /// The file with the long value of the current entry, if it has one.
    fn long_file(&self) -> Option<&Arc<File>> {
        match self.current? {
            From::Memory => self.long.as_ref(),
            From::File(i) => self.files[i].file.get_ref().long.as_ref(),
        }
    }

    /// The value of the current entry, where it is too long for memory: the entry has none then.
    pub fn long(&self) -> Result<Option<LongValue>> {
        let Some(file) = self.long_file() else { return Ok(None) };
        let entry = self.at(self.current.ok_or_else(|| Error::bug("an overlay that was not advanced"))?)?;
        Ok(long::named(&entry).map(|(at, len)| LongValue::new(file.clone(), at, len)))
    }

    fn at(&self, from: From) -> Result<LogEntry<'_>> {
        match from {
            From::Memory => {
                let place = &self.places[self.next];
                decode(&self.arena[place.start as usize..place.end as usize])
            }
            From::File(i) => decode(&self.files[i].entry),
        }
    }

    fn sources(&self) -> impl Iterator<Item = From> {
        let memory = (self.next < self.places.len()).then_some(From::Memory);
        let alive = (0..self.files.len()).filter(|&i| self.files[i].alive);
        memory.into_iter().chain(alive.map(From::File))
    }

    fn pass(&mut self, from: From) -> Result<()> {
        match from {
            From::Memory => self.next += 1,
            From::File(i) => self.files[i].step()?,
        }
        Ok(())
    }

    /// Goes to the next key; `false` after the last.
    pub fn advance(&mut self) -> Result<bool> {
        if let Some(from) = self.current.take() {
            self.pass(from)?;
        }
        if self.files.is_empty() {
            self.current = (self.next < self.places.len()).then_some(From::Memory);
            return Ok(self.current.is_some());
        }
        loop {
            // The smallest key; of one that stands in several places the newest, and the others are passed.
            let mut best: Option<From> = None;
            let mut older = None;
            for from in self.sources() {
                let Some(now) = best else {
                    best = Some(from);
                    continue;
                };
                let (a, b) = (self.at(now)?, self.at(from)?);
                match (b.slot, b.key).cmp(&(a.slot, a.key)) {
                    std::cmp::Ordering::Less => (best, older) = (Some(from), None),
                    std::cmp::Ordering::Greater => {}
                    std::cmp::Ordering::Equal if b.at > a.at => (best, older) = (Some(from), Some(now)),
                    std::cmp::Ordering::Equal => older = Some(from),
                }
            }
            match (best, older) {
                (None, _) => return Ok(false),
                (_, Some(older)) => self.pass(older)?,
                (Some(best), None) => {
                    self.current = Some(best);
                    return Ok(true);
                }
            }
        }
    }

    /// The current entry. Only after [`Overlay::advance`] answered `true`.
    pub fn current(&self) -> Result<LogEntry<'_>> {
        let mut entry = self.at(self.current.ok_or_else(|| Error::bug("an overlay that was not advanced"))?)?;
        if self.long_file().is_some() && entry.kind == EntryKind::CommandPart {
            entry.put = entry.put.map(|(meta, _)| (meta, &[][..]));
        }
        Ok(entry)
    }
}

/// Walks a state with an overlay over it.
#[derive(Debug)]
pub struct Overlaid {
    overlay: Overlay,
    /// The overlay stands on an entry that was not given out yet.
    ahead: bool,
}

impl Overlaid {
    /// Over nothing yet.
    pub fn new(mut overlay: Overlay) -> Result<Self> {
        let ahead = overlay.advance()?;
        Ok(Self { overlay, ahead })
    }

    /// Gives out all records of the overlay before `entry`, then tells whether `entry` itself is replaced: then its
    /// newer record, if it is no delete, has been given out as well.
    pub fn before(
        &mut self,
        entry: Entry<'_>,
        mut give: impl FnMut(Entry<'_>, Option<&LongValue>) -> Result<()>,
    ) -> Result<bool> {
        while self.ahead {
            let over = self.overlay.current()?;
            let order = (over.slot, over.key).cmp(&(entry.slot, entry.key));
            if order.is_gt() {
                return Ok(false);
            }
            if over.put.is_some() {
                give(Entry { slot: over.slot, key: over.key, put: over.put }, self.overlay.long()?.as_ref())?;
            }
            self.ahead = self.overlay.advance()?;
            if order.is_eq() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Gives out what is left behind the last record below.
    pub fn rest(&mut self, mut give: impl FnMut(Entry<'_>, Option<&LongValue>) -> Result<()>) -> Result<()> {
        while self.ahead {
            let over = self.overlay.current()?;
            if over.put.is_some() {
                give(Entry { slot: over.slot, key: over.key, put: over.put }, self.overlay.long()?.as_ref())?;
            }
            self.ahead = self.overlay.advance()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
