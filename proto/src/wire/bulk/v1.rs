//! Bulk messages, version 1. Frozen: never edit a struct that a build has sent.

use rkyv::{Archive, Deserialize, Serialize};

use crate::hash::SetDigest;
use crate::id::{Incarnation, JobId};
use crate::slot::SlotSet;
use crate::time::Timestamp;
use crate::wire::control::SecretKey;

/// The agent wants to send a part.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PartOffer {
    /// The backup job.
    pub job: JobId,
    /// Attempt of the upload command.
    pub attempt: u32,
    /// Region.
    pub region: u16,
    /// Slots of the part.
    pub slots: SlotSet,
    /// First sort key of the part; empty = from the beginning.
    pub lower: Vec<u8>,
    /// 1: a delta on the parent that the upload command named; 0: a full run.
    pub delta: u8,
}

/// As [`PartOffer`] of a full run, before the cut of its job: a part as the base of the node has it. Once all of it has come it is
/// answered with [`EarlyKept`]; what is stored of it counts only through an [`OverOffer`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct EarlyOffer {
    /// What is offered.
    pub offer: PartOffer,
}

/// All of a part that was offered early has come.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct EarlyKept {}

/// As [`PartOffer`], of a part that came early: a delta on that run, with nothing in it where the part stands at the cut as it came.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct OverOffer {
    /// What is offered; `delta` is 1.
    pub offer: PartOffer,
    /// The [`Grant::run_tag`] under which the part came.
    pub early: [u8; 16],
}

/// The part may come.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Grant {
    /// What identifies the run in the associated data of its seals.
    pub run_tag: [u8; 16],
    /// Subkey of this attempt; seals nothing else.
    pub key: SecretKey,
    /// 1: seal by encryption; 0: the repository is not encrypted, seal by checksum.
    pub encrypt: u8,
}

/// The part has been sent whole.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PartDone {
    /// First sort key past the part; empty = to the end.
    pub upper: Vec<u8>,
    /// Block frames sent.
    pub blocks: u32,
    /// Records in the run: puts and deletes.
    pub records: u64,
    /// Bytes of keys, meta and values in the run.
    pub raw_bytes: u64,
    /// Full run: digest of its records. Delta: what to add to the parent's digest (counts and sums wrap).
    pub digest: SetDigest,
    /// Full run: live bytes. Delta: what to add to the parent's live bytes (wraps).
    pub live_bytes: u64,
}

/// Packs and job record are durable.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Stored {}

/// The agent wants a run of a part assigned to it.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Fetch {
    /// The restore job.
    pub job: JobId,
    /// Number of the part in the plan.
    pub part: u32,
    /// Number of the run in the part.
    pub run: u32,
}

/// Send these blocks.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct FetchBlocks {
    /// First block.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// The agent is ready to be asked for the log of its store.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogOpen {
    /// The session, as the command to start the log named it.
    pub session: JobId,
}

/// Send what changed after `from`.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogPull {
    /// The data that `from` counts in; zero for whatever is there.
    pub incarnation: Incarnation,
    /// Last position received; 0: begin a log now, without what is there already.
    pub from: u64,
    /// Everything up to here is durable and need not be kept.
    pub durable: u64,
    /// The coordinator's time: the batch may end there or later, so that a node whose clock is behind holds nobody up.
    pub now: Timestamp,
    /// Bytes of entries to send, about.
    pub most_bytes: u32,
    /// Bytes of entries that the node keeps for the log at most; beyond, it may drop them, and says so.
    pub spool_bytes: u64,
    /// Slots of one region.
    pub slots_per_region: u16,
    /// What identifies the batch in the associated data of its seals.
    pub run_tag: [u8; 16],
    /// Subkey of this batch; seals nothing else.
    pub key: SecretKey,
    /// 1: seal by encryption; 0: the repository is not encrypted, seal by checksum.
    pub encrypt: u8,
}

/// As [`LogPull`], of a store whose log is its stream of commands. Answered with the same batch.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogFollow {
    /// What is asked. `incarnation` is the first half of the name of the history in which `from` counts bytes, or zero.
    pub pull: LogPull,
    /// Time up to which the log was received: all that follows gets a later one.
    pub closed: Timestamp,
    /// Where the log has not come from this node: it may take it over from its server's own memory of the stream, where that
    /// reaches back to `from`.
    pub takes_over: u8,
}

/// One chunk of a batch; its number is its place.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogChunk {
    /// Region.
    pub region: u16,
    /// Raw bytes.
    pub raw_len: u32,
    /// Entries.
    pub entries: u32,
    /// Lowest timestamp.
    pub first: Timestamp,
    /// Highest timestamp.
    pub last: Timestamp,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogBatch {
    /// Id of the data.
    pub incarnation: Incarnation,
    /// Slots that the node owns.
    pub slots: SlotSet,
    /// Position after which the batch begins: that of the pull, unless `begins`.
    pub from: u64,
    /// Position at which it ends, inclusive.
    pub to: u64,
    /// The node commits nothing more at or below this.
    pub closed: Timestamp,
    /// 1: what came before `from` is not here: a log begins, or the node has lost what the pull asked for. 2: the log goes on from
    /// `from` in another history than the pull named, or with other slots.
    pub begins: u8,
    /// Bytes of entries that wait behind `to`, about.
    pub behind_bytes: u64,
    /// The node's wall clock, milliseconds since 1970.
    pub clock_millis: u64,
    /// The chunks that follow, ascending by region.
    pub chunks: Vec<LogChunk>,
}

/// The agent wants the log of a part assigned to it: every chunk of its region that the restore needs.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct FetchLog {
    /// The restore job.
    pub job: JobId,
    /// Number of the part in the plan.
    pub part: u32,
}

/// A chunk follows, with what opens it.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogPiece {
    /// What identifies its batch in the associated data of its seal.
    pub run_tag: [u8; 16],
    /// Subkey of the batch.
    pub key: SecretKey,
    /// 1: sealed by encryption; 0: sealed by checksum.
    pub encrypt: u8,
    /// Its number in the batch.
    pub number: u32,
}

/// The next chunks of a log of commands are of one node and one stretch of time: their entries are in order when they are in the
/// order of their timestamps. What comes in a later group was run later, slot by slot.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogGroup {
    /// How many chunks follow, each with its [`LogPiece`].
    pub pieces: u32,
}
