//! The log of a store: what changed since a position, for as long as the store keeps it.

use tidemark_proto::stored::log::LogEntry;
use tidemark_proto::{Incarnation, Result, SlotSet, Timestamp};

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
}
