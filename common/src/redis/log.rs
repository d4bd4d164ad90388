//! A log of commands put in order: its chunks come in groups, each of one node and one stretch of time.
//!
//! A group is sorted in bounded memory; what does not fit goes to files without a name. In order it lies in one such file, which is
//! read as often as it is needed. Of a command that is long only a piece is in memory.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_proto::stored::log::{ALL_SLOTS, EntryKind, LogEntry, database, take_entry};
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, Timestamp, error::ResultExt};

use super::resp::read_command;
use crate::run::{LONG_PIECE, LongReader, LongValue, Spool};

/// What an entry costs in memory beside its bytes.
const OVERHEAD: usize = 24;
/// Buffer of each temporary file, in bytes.
const FILE_BUFFER: usize = 256 << 10;
/// Commands up to this many bytes are held in memory whole; longer ones wait in a file.
const MOST_HELD: usize = 16 << 20;

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
    fn takes(&self, entry: &LogEntry<'_>) -> bool {
        let slot = entry.slot == ALL_SLOTS || self.slots.contains(entry.slot);
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
pub struct CommandLog {
    span: Span,
    budget: usize,
    dir: PathBuf,
    arena: Vec<u8>,
    /// Entries in `arena`, as they came.
    places: Vec<Place>,
    /// Sorted stretches of the group at hand, each later than the one before.
    spilled: Vec<File>,
    out: Option<BufWriter<File>>,
    written: u64,
    owners: Vec<SlotSet>,
    entries: u64,
}

fn temporary(dir: &Path) -> Result<File> {
    tempfile::tempfile_in(dir).or_kind(ErrorKind::Full, format_args!("a temporary file in {}", dir.display()))
}

fn full<T>(done: std::io::Result<T>) -> Result<T> {
    done.or_kind(ErrorKind::Full, "writing the log of commands to a temporary file")
}

impl CommandLog {
    /// Takes about `budget` bytes of memory (at most 1 GiB); files without a name lie in `dir`.
    pub fn new(span: Span, budget: usize, dir: &Path) -> Self {
        Self {
            span,
            budget: budget.min(1 << 30),
            dir: dir.to_owned(),
            arena: Vec::new(),
            places: Vec::new(),
            spilled: Vec::new(),
            out: None,
            written: 0,
            owners: Vec::new(),
            entries: 0,
        }
    }

    /// Begins the next group, of a node that owns these slots: commands that empty its databases empty no others.
    pub fn group(&mut self, owner: SlotSet) -> Result<()> {
        self.end_group()?;
        self.owners.push(owner);
        Ok(())
    }

    /// Takes the commands of a raw chunk of the present group that count. `Damaged` where it holds anything else.
    pub fn push_chunk(&mut self, raw: &[u8]) -> Result<()> {
        if self.owners.is_empty() {
            return Err(Error::bug("a chunk of a log of commands before its group"));
        }
        let mut rest = raw;
        loop {
            let before = rest;
            let Some(entry) = take_entry(&mut rest)? else { return Ok(()) };
            if entry.kind == EntryKind::Record {
                return Err(Error::damaged("a log of commands holds a record"));
            }
            if self.span.takes(&entry) {
                self.push(&before[..before.len() - rest.len()], entry.at)?;
            }
        }
    }

    fn push(&mut self, bytes: &[u8], at: Timestamp) -> Result<()> {
        let full = self.arena.len() + bytes.len() + (self.places.len() + 1) * OVERHEAD > self.budget;
        if full && !self.places.is_empty() {
            self.spill()?;
        }
        self.places.push(Place { at, start: self.arena.len() as u32, len: bytes.len() as u32 });
        self.arena.extend_from_slice(bytes);
        self.entries += 1;
        Ok(())
    }

    /// Writes what is in memory, in order, by `each`. Pieces of one command stay in the order in which they came.
    fn drain(&mut self, mut each: impl FnMut(Timestamp, &[u8]) -> Result<()>) -> Result<()> {
        self.places.sort_by_key(|place| place.at);
        for place in &self.places {
            each(place.at, &self.arena[place.start as usize..][..place.len as usize])?;
        }
        self.places.clear();
        self.arena.clear();
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        let mut out = BufWriter::with_capacity(FILE_BUFFER, temporary(&self.dir)?);
        self.drain(|at, bytes| {
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
        let Some(group) = self.owners.len().checked_sub(1).map(|group| group as u32) else { return Ok(()) };
        if self.places.is_empty() && self.spilled.is_empty() {
            return Ok(());
        }
        if !self.spilled.is_empty() && !self.places.is_empty() {
            self.spill()?;
        }
        let mut out = match self.out.take() {
            Some(out) => out,
            None => BufWriter::with_capacity(FILE_BUFFER, temporary(&self.dir)?),
        };
        let mut written = self.written;
        let mut write = |bytes: &[u8]| {
            written += 8 + bytes.len() as u64;
            full(out.write_all(&group.to_le_bytes()))?;
            full(out.write_all(&(bytes.len() as u32).to_le_bytes()))?;
            full(out.write_all(bytes))
        };
        match std::mem::take(&mut self.spilled) {
            none if none.is_empty() => self.drain(|_, bytes| write(bytes))?,
            files => merge(files, write)?,
        }
        (self.out, self.written) = (Some(out), written);
        Ok(())
    }

    /// There are no more chunks.
    pub fn finish(mut self) -> Result<Ordered> {
        self.end_group()?;
        let into = |out: BufWriter<File>| full(out.into_inner().map_err(std::io::IntoInnerError::into_error));
        let file = self.out.take().map(into).transpose()?;
        Ok(Ordered { file: file.map(Arc::new), len: self.written, owners: self.owners, entries: self.entries })
    }
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

/// A log of commands in order.
#[derive(Debug, Clone)]
pub struct Ordered {
    file: Option<Arc<File>>,
    len: u64,
    owners: Vec<SlotSet>,
    entries: u64,
}

impl Ordered {
    /// Whether there is no command.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Reads the commands from the first on. What of them is too long for memory waits in `dir`.
    pub fn commands(&self, dir: &Path) -> CommandReader {
        let file = self.file.clone().map(|file| LongValue::new(file, 0, self.len));
        let (at, spool) = (0, Spool::new(dir));
        CommandReader {
            file,
            at,
            owners: self.owners.clone(),
            ahead: Vec::new(),
            ahead_at: 0,
            entry: Vec::new(),
            held: Vec::new(),
            spool,
        }
    }
}

/// Reads commands in order.
#[derive(Debug)]
pub struct CommandReader {
    file: Option<LongValue>,
    at: u64,
    owners: Vec<SlotSet>,
    /// Bytes of the file that were read ahead, and how many of them were taken.
    ahead: Vec<u8>,
    ahead_at: usize,
    entry: Vec<u8>,
    held: Vec<u8>,
    spool: Spool,
}

/// A command.
#[derive(Debug)]
pub struct Command<'a> {
    /// When it was run.
    pub at: Timestamp,
    /// The slot of its keys, or [`ALL_SLOTS`].
    pub slot: u16,
    /// Slots of its node.
    pub owner: &'a SlotSet,
    /// Its database.
    pub db: u64,
    /// Its bytes.
    pub request: Request<'a>,
}

/// The bytes of a command, a request of the Redis protocol.
#[derive(Debug)]
pub enum Request<'a> {
    /// In memory.
    Held(&'a [u8]),
    /// In a file.
    Long(LongValue),
}

impl Request<'_> {
    /// Its words, of each the first `most` bytes.
    pub fn words(&self, most: u64) -> Result<Vec<Vec<u8>>> {
        match self {
            Self::Held(bytes) => read_command(&mut &bytes[..], most),
            Self::Long(long) => read_command(&mut BufReader::with_capacity(LONG_PIECE, long.reader()), most),
        }
    }

    /// Hands its bytes on piece by piece.
    pub fn pieces(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self {
            Self::Held(bytes) => take(bytes),
            Self::Long(long) => long.pieces(take),
        }
    }
}

impl CommandReader {
    /// Reads exactly as many bytes as `out` has; `false` at the end of the file.
    fn take(&mut self, out: &mut [u8]) -> Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let mut have = 0;
        while have < out.len() {
            if self.ahead_at == self.ahead.len() {
                self.ahead.resize(FILE_BUFFER, 0);
                let mut reader: LongReader<'_> = file.reader_at(self.at);
                let read =
                    reader.read(&mut self.ahead).or_kind(ErrorKind::Retry, "reading back the log of commands")?;
                self.ahead.truncate(read);
                (self.at, self.ahead_at) = (self.at + read as u64, 0);
                if read == 0 {
                    return if have == 0 {
                        Ok(false)
                    } else {
                        Err(Error::bug("a file of commands ends inside one"))
                    };
                }
            }
            let some = (out.len() - have).min(self.ahead.len() - self.ahead_at);
            out[have..have + some].copy_from_slice(&self.ahead[self.ahead_at..][..some]);
            (have, self.ahead_at) = (have + some, self.ahead_at + some);
        }
        Ok(true)
    }

    /// The next command, `None` after the last. `Damaged` where a piece of one is missing.
    #[allow(clippy::should_implement_trait, reason = "what it answers lives until the next call")]
    pub fn next(&mut self) -> Result<Option<Command<'_>>> {
        self.held.clear();
        let (mut first, mut long) = (None, false);
        loop {
            let mut head = [0; 8];
            if !self.take(&mut head)? {
                return match first {
                    None => Ok(None),
                    Some(_) => Err(Error::damaged("a log of commands ends inside a command")),
                };
            }
            let (group, len) = head.split_at(4);
            let number = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            let (group, len) = (number(group), number(len));
            let mut bytes = std::mem::take(&mut self.entry);
            bytes.resize(len as usize, 0);
            let _ = self.take(&mut bytes)?;
            let entry = take_entry(&mut &bytes[..])?.ok_or_else(|| Error::bug("an empty entry of a log"))?;
            let (meta, value) = entry.put.unwrap_or_default();
            let this = (group, entry.slot, entry.at, database(meta)?);
            if *first.get_or_insert(this) != this {
                return Err(Error::damaged(format!("the end of a command of {} is missing in the log", entry.at)));
            }
            if !long && self.held.len() + value.len() > MOST_HELD {
                self.spool.begin()?;
                self.spool.add(&self.held)?;
                long = true;
            }
            match long {
                true => self.spool.add(value)?,
                false => self.held.extend_from_slice(value),
            }
            let whole = entry.kind == EntryKind::Command;
            self.entry = bytes;
            if whole {
                let (group, slot, at, db) = this;
                let request = if long { Request::Long(self.spool.value()?) } else { Request::Held(&self.held) };
                return Ok(Some(Command { at, slot, owner: &self.owners[group as usize], db, request }));
            }
        }
    }
}
