//! Commands, put together from the entries of a log.

use std::io::BufReader;
use std::path::Path;

use tidemark_proto::stored::log::{EntryKind, LogEntry, database};
use tidemark_proto::{Error, Result, SlotSet, Timestamp};

use crate::redis::resp::read_command;
use crate::run::{LONG_PIECE, LongValue, Spool};

/// Commands up to this many bytes are held in memory whole; longer ones wait in a file.
const MOST_HELD: usize = 16 << 20;

/// Takes the commands of a log, in order.
pub trait Takes {
    /// The next one.
    fn take(&mut self, command: &Command<'_>) -> Result<()>;
}

/// Takes the entries of a log, in order.
pub trait Entries {
    /// The next one, of a group and its slots; `bytes` are its own.
    fn entry(&mut self, group: (u32, &GroupSlots), entry: &LogEntry<'_>, bytes: &[u8]) -> Result<()>;
}

/// Slots of a group of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSlots {
    /// Those whose commands count; of a command of several slots that which it does to keys of these.
    pub counted: SlotSet,
    /// Those of them that a command empties which empties databases of the group's node.
    pub emptied: SlotSet,
}

/// All commands of a node count that owns these slots.
impl From<SlotSet> for GroupSlots {
    fn from(owned: SlotSet) -> Self {
        Self { counted: SlotSet::all(), emptied: owned }
    }
}

/// A command.
#[derive(Debug)]
pub struct Command<'a> {
    /// When it was run.
    pub at: Timestamp,
    /// The slot of its keys, or [`ALL_SLOTS`](tidemark_proto::stored::log::ALL_SLOTS).
    pub slot: u16,
    /// Slots of its group.
    pub of: &'a GroupSlots,
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

/// Puts commands together.
#[derive(Debug)]
pub(super) struct Pieces {
    /// Group, slot, time and database of the command of which there are pieces.
    begun: Option<(u32, u16, Timestamp, u64)>,
    /// Whether the present command came in several pieces.
    several: bool,
    held: Vec<u8>,
    long: bool,
    spool: Spool,
}

impl Pieces {
    /// What is too long for memory waits in `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        Self { begun: None, several: false, held: Vec::new(), long: false, spool: Spool::new(dir) }
    }

    /// The next entry; whether it is the last of a command. `Damaged` where a piece is missing before it.
    pub(super) fn push(&mut self, group: u32, entry: &LogEntry<'_>) -> Result<bool> {
        let (meta, value) = entry.put.unwrap_or_default();
        let (this, last) = ((group, entry.slot, entry.at, database(meta)?), entry.kind == EntryKind::Command);
        match self.begun {
            None if last => {
                self.several = false;
                return Ok(true);
            }
            None => {
                (self.begun, self.several, self.long) = (Some(this), true, false);
                self.held.clear();
            }
            Some(begun) if begun != this => {
                return Err(Error::damaged(format!("the end of a command of {} is missing in the log", entry.at)));
            }
            Some(_) => {}
        }
        if !self.long && self.held.len() + value.len() > MOST_HELD {
            self.spool.begin()?;
            self.spool.add(&self.held)?;
            self.long = true;
        }
        match self.long {
            true => self.spool.add(value)?,
            false => self.held.extend_from_slice(value),
        }
        if last {
            self.begun = None;
        }
        Ok(last)
    }

    /// The command whose last entry was pushed.
    pub(super) fn command<'a>(&'a self, of: &'a GroupSlots, last: &LogEntry<'a>) -> Result<Command<'a>> {
        let (meta, value) = last.put.unwrap_or_default();
        let request = match (self.several, self.long) {
            (false, _) => Request::Held(value),
            (true, false) => Request::Held(&self.held),
            (true, true) => Request::Long(self.spool.value()?),
        };
        Ok(Command { at: last.at, slot: last.slot, of, db: database(meta)?, request })
    }

    /// There are no more entries.
    pub(super) fn end(&self) -> Result<()> {
        match self.begun {
            None => Ok(()),
            Some(_) => Err(Error::damaged("a log of commands ends inside a command")),
        }
    }
}

/// Hands commands on.
#[derive(Debug)]
pub struct Joined<T> {
    pieces: Pieces,
    takes: T,
}

impl<T: Takes> Joined<T> {
    pub(super) fn new(dir: &Path, takes: T) -> Self {
        Self { pieces: Pieces::new(dir), takes }
    }

    pub(super) fn finish(self) -> Result<T> {
        self.pieces.end().map(|()| self.takes)
    }
}

impl<T: Takes> Entries for Joined<T> {
    fn entry(&mut self, (group, of): (u32, &GroupSlots), entry: &LogEntry<'_>, _: &[u8]) -> Result<()> {
        match self.pieces.push(group, entry)? {
            true => self.takes.take(&self.pieces.command(of, entry)?),
            false => Ok(()),
        }
    }
}
