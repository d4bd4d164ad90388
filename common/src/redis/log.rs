//! A log of commands put in order: its chunks come in groups, each of one node and one stretch of time.
//!
//! A group is sorted in bounded memory; what does not fit goes to files without a name. In order its commands go to who takes them, or
//! lie in one such file, which is read as often as it is needed. Of a command that is long only a piece is in memory.
//!
//! Only commands of one slot must be in order, and those of several slots with all: a group without these is not sorted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tidemark_proto::slot::SLOT_COUNT;
use tidemark_proto::stored::log::{ALL_SLOTS, EntryKind, LogEntry, take_entry};
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, Timestamp, error::ResultExt};

mod command;
mod ordered;

pub use command::{Command, Entries, GroupSlots, Joined, Request, Takes};
pub use ordered::{CommandReader, Ordered, ToFile};

/// What an entry costs in memory beside its bytes.
const OVERHEAD: usize = 24;
/// Buffer of each temporary file, in bytes.
const FILE_BUFFER: usize = 64 << 10;

/// Which commands count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Those after this.
    pub after: Timestamp,
    /// Those up to and including this.
    pub at: Timestamp,
    /// Of these slots, and those of no single slot.
    pub slots: SlotSet,
}

impl Span {
    fn takes(&self, entry: &LogEntry<'_>, counted: &SlotSet) -> bool {
        let slot = entry.slot == ALL_SLOTS || counted.contains(entry.slot);
        entry.at > self.after && entry.at <= self.at && slot
    }
}

/// An entry of the group at hand.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: Timestamp,
    start: u32,
    len: u32,
}

/// Takes chunks and puts their commands in order.
#[derive(Debug)]
pub struct CommandLog<O = ToFile> {
    span: Span,
    budget: usize,
    dir: PathBuf,
    arena: Vec<u8>,
    /// Entries in `arena`, as they came.
    places: Vec<Place>,
    /// Sorted stretches of the group at hand, each later than the one before.
    spilled: Vec<File>,
    /// The newest entry of each slot, of a group that is not sorted.
    newest: Option<Vec<Timestamp>>,
    groups: Vec<GroupSlots>,
    /// Slots of the group at hand that count.
    counted: SlotSet,
    out: O,
}

fn temporary(dir: &Path) -> Result<File> {
    tempfile::tempfile_in(dir).or_kind(ErrorKind::Full, format_args!("a temporary file in {}", dir.display()))
}

fn full<T>(done: std::io::Result<T>) -> Result<T> {
    done.or_kind(ErrorKind::Full, "writing the log of commands to a temporary file")
}

impl CommandLog {
    /// Puts commands in order to be read. Takes about `budget` bytes of memory (at most 1 GiB); files without a name lie in `dir`.
    pub fn new(span: Span, budget: usize, dir: &Path) -> Self {
        Self::of(span, budget, dir, ToFile::new(dir))
    }

    /// There are no more chunks.
    pub fn finish(mut self) -> Result<Ordered> {
        self.end_group()?;
        self.out.finish(self.groups)
    }
}

impl<T: Takes> CommandLog<Joined<T>> {
    /// Puts commands in order and hands each on.
    pub fn handing_on(span: Span, budget: usize, dir: &Path, takes: T) -> Self {
        Self::of(span, budget, dir, Joined::new(dir, takes))
    }

    /// There are no more chunks: who took the commands.
    pub fn finish(mut self) -> Result<T> {
        self.end_group()?;
        self.out.finish()
    }
}

impl<O: Entries> CommandLog<O> {
    fn of(span: Span, budget: usize, dir: &Path, out: O) -> Self {
        Self {
            span,
            budget: budget.min(1 << 30),
            dir: dir.to_owned(),
            arena: Vec::new(),
            places: Vec::new(),
            spilled: Vec::new(),
            newest: None,
            groups: Vec::new(),
            counted: SlotSet::EMPTY,
            out,
        }
    }

    /// Begins the next group, with its slots; of a node that owns some, all of whose commands count, these.
    pub fn group(&mut self, slots: impl Into<GroupSlots>) -> Result<()> {
        self.end_group()?;
        let slots = slots.into();
        self.counted = self.span.slots.intersect(&slots.counted);
        self.groups.push(slots);
        self.newest = None;
        Ok(())
    }

    /// The same for a group without commands of several slots, whose chunks come region by region, each region's in order: it is
    /// not sorted. One that is not so is `Unsupported`.
    pub fn group_in_order(&mut self, slots: impl Into<GroupSlots>) -> Result<()> {
        self.group(slots)?;
        self.newest = Some(vec![Timestamp::ZERO; usize::from(SLOT_COUNT)]);
        Ok(())
    }

    /// Takes the commands of a raw chunk of the present group that count. `Damaged` where it holds anything else.
    pub fn push_chunk(&mut self, raw: &[u8]) -> Result<()> {
        if self.groups.is_empty() {
            return Err(Error::bug("a chunk of a log of commands before its group"));
        }
        let mut rest = raw;
        loop {
            let before = rest;
            let Some(entry) = take_entry(&mut rest)? else { return Ok(()) };
            if matches!(entry.kind, EntryKind::Record | EntryKind::RecordPart) {
                return Err(Error::damaged("a log of commands holds a record"));
            }
            if !self.span.takes(&entry, &self.counted) {
                continue;
            }
            let bytes = &before[..before.len() - rest.len()];
            let Some(newest) = &mut self.newest else {
                self.push(bytes, entry.at)?;
                continue;
            };
            match newest.get_mut(usize::from(entry.slot)) {
                Some(newest) if *newest <= entry.at => *newest = entry.at,
                _ => {
                    return Err(Error::unsupported(format!(
                        "the log at {} is not in the order of its slots",
                        entry.at
                    )));
                }
            }
            let group = self.groups.len() - 1;
            self.out.entry((group as u32, &self.groups[group]), &entry, bytes)?;
        }
    }

    fn push(&mut self, bytes: &[u8], at: Timestamp) -> Result<()> {
        let full = self.arena.len() + bytes.len() + (self.places.len() + 1) * OVERHEAD > self.budget;
        if full && !self.places.is_empty() {
            self.spill()?;
        }
        self.places.push(Place { at, start: self.arena.len() as u32, len: bytes.len() as u32 });
        self.arena.extend_from_slice(bytes);
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        let mut out = BufWriter::with_capacity(FILE_BUFFER, temporary(&self.dir)?);
        drain(&mut self.places, &mut self.arena, |at, bytes| {
            full(out.write_all(&at.0.to_le_bytes()))?;
            full(out.write_all(&(bytes.len() as u32).to_le_bytes()))?;
            full(out.write_all(bytes))
        })?;
        let mut file = full(out.into_inner().map_err(std::io::IntoInnerError::into_error))?;
        let _ = full(file.seek(SeekFrom::Start(0)))?;
        self.spilled.push(file);
        Ok(())
    }

    fn end_group(&mut self) -> Result<()> {
        let Some(group) = self.groups.len().checked_sub(1) else { return Ok(()) };
        if !self.spilled.is_empty() && !self.places.is_empty() {
            self.spill()?;
        }
        let group = (group as u32, &self.groups[group]);
        let out = &mut self.out;
        let mut give = |bytes: &[u8]| {
            let entry = take_entry(&mut &bytes[..])?.ok_or_else(|| Error::bug("an empty entry of a log"))?;
            out.entry(group, &entry, bytes)
        };
        if self.spilled.is_empty() {
            drain(&mut self.places, &mut self.arena, |_, bytes| give(bytes))
        } else {
            merge(std::mem::take(&mut self.spilled), give)
        }
    }
}

/// Hands on what is in memory, in order. Pieces of one command stay in the order in which they came.
fn drain(
    places: &mut Vec<Place>,
    arena: &mut Vec<u8>,
    mut each: impl FnMut(Timestamp, &[u8]) -> Result<()>,
) -> Result<()> {
    places.sort_by_key(|place| place.at);
    for place in &*places {
        each(place.at, &arena[place.start as usize..][..place.len as usize])?;
    }
    places.clear();
    arena.clear();
    Ok(())
}

/// A sorted stretch, with the time of its next entry.
struct Stretch {
    file: BufReader<File>,
    at: Option<Timestamp>,
}

fn read_back(file: &mut impl Read, bytes: &mut [u8]) -> Result<()> {
    file.read_exact(bytes).or_kind(ErrorKind::Retry, "reading back the log of commands")
}

impl Stretch {
    fn step(&mut self) -> Result<()> {
        use std::io::BufRead;
        let ended = self.file.fill_buf().or_kind(ErrorKind::Retry, "reading back the log of commands")?.is_empty();
        let mut at = [0; 8];
        if !ended {
            read_back(&mut self.file, &mut at)?;
        }
        self.at = (!ended).then_some(Timestamp(u64::from_le_bytes(at)));
        Ok(())
    }
}

/// Merges sorted stretches by time. Entries of one time come from the earlier stretch first.
fn merge(files: Vec<File>, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let stretch = |file| Stretch { file: BufReader::with_capacity(FILE_BUFFER, file), at: None };
    let mut stretches: Vec<_> = files.into_iter().map(stretch).collect();
    let (mut heap, mut bytes) = (BinaryHeap::new(), Vec::new());
    for (i, stretch) in stretches.iter_mut().enumerate() {
        stretch.step()?;
        heap.extend(stretch.at.map(|at| Reverse((at, i))));
    }
    while let Some(Reverse((_, i))) = heap.pop() {
        let stretch = &mut stretches[i];
        let mut len = [0; 4];
        read_back(&mut stretch.file, &mut len)?;
        bytes.resize(u32::from_le_bytes(len) as usize, 0);
        read_back(&mut stretch.file, &mut bytes)?;
        write(&bytes)?;
        stretch.step()?;
        heap.extend(stretch.at.map(|at| Reverse((at, i))));
    }
    Ok(())
}
