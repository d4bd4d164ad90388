//! The log of a store: what changed since a position, for as long as the store keeps it.

use std::time::Duration;

use tidemark_proto::stored::log::LogEntry;
use tidemark_proto::wire::control::{Held, Ownership, Sealed};
use tidemark_proto::{Error, Incarnation, Result, SlotSet, Timestamp};

/// What is asked of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogWanted {
    /// The data that `from` counts in; zero for whatever is there.
    pub incarnation: Incarnation,
    /// Last position received; 0: begin a log now.
    pub from: u64,
    /// Up to here nothing needs to be kept.
    pub durable: u64,
    /// What is read may end here or later: the store's clock is moved to it.
    pub now: Timestamp,
    /// Bytes of entries to read, about.
    pub most: u64,
    /// Bytes of entries that the store keeps for the log at most.
    pub spool: u64,
    /// Time up to which the log was received; zero where that is the position itself.
    pub closed: Timestamp,
    /// Another node gave the log up to `from`: it is to go on here.
    pub takes_over: bool,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogReached {
    /// Id of the data.
    pub incarnation: Incarnation,
    /// Slots that the node owns.
    pub slots: SlotSet,
    /// Position after which the entries begin.
    pub from: u64,
    /// Position at which they end, inclusive.
    pub to: u64,
    /// Nothing is committed any more at or below this.
    pub closed: Timestamp,
    /// What came before `from` is not in the log: it begins here, or the store does not have what was asked for any more.
    pub begins: bool,
    /// It goes on from `from`, but under another history than was asked for.
    pub branches: bool,
    /// Bytes of entries behind `to`, about.
    pub behind: u64,
}

/// Takes the entries of one read: those of a slot together, by ascending slot, within a slot by ascending timestamp.
pub trait LogSink {
    /// The next entry.
    fn entry(&mut self, entry: LogEntry<'_>) -> Result<()>;

    /// Forget all entries of this read: it begins anew, with fewer.
    fn restart(&mut self);
}

/// A store that has a log.
pub trait LogSource: Send + Sync {
    /// Reads what changed after `wanted.from`, up to some later position. Where the store cannot tell it (another
    /// incarnation, or dropped because the spool was full), a log begins anew now, without entries.
    fn read_log(&self, wanted: &LogWanted, sink: &mut dyn LogSink) -> Result<LogReached>;

    /// Keeps nothing for the log any more.
    fn stop_log(&self) -> Result<()>;

    /// Stops writes for at most `budget` (zero: only reads), for a restore point of the log; as [`crate::engine::Engine::hold`].
    fn hold_log(&self, budget: Duration) -> Result<Held> {
        let _ = budget;
        Err(no_points())
    }

    /// The second reading: everything up to the position of the hold gets a timestamp at or below `at`, all else a later one.
    fn seal_log(&self, at: Timestamp) -> Result<Sealed> {
        let _ = at;
        Err(no_points())
    }

    /// Ends the hold.
    fn release_log(&self) -> Result<(Ownership, Duration)> {
        Err(no_points())
    }
}

/// What stores answer any time of which is a restore point.
fn no_points() -> Error {
    Error::unsupported("the log of this store needs no holds: every time is a restore point")
}
