//! Control messages, version 1. Frozen: never edit a struct that a build has sent.

mod bases;
mod clones;
mod kept;
mod log;
mod options;
mod secret;

use rkyv::{Archive, Deserialize, Serialize};

use crate::hash::{Hash, SetDigest};
use crate::id::{Incarnation, JobId};
use crate::slot::SlotSet;
use crate::time::Timestamp;

pub use bases::*;
pub use clones::*;
pub use kept::*;
pub use log::{LogHold, LogRelease, LogSeal, LogStart, LogStop};
pub use options::{LoadOptions, PartBounds, RestoreBeginAs, RestoreCount, RestoreCounted, RestorePartsLogged};
pub use secret::*;

/// Opens every command.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct CommandHead {
    /// Epoch of the coordinator; lower than seen before is refused.
    pub epoch: u64,
    /// The job that this command belongs to; zero for none.
    pub job: JobId,
    /// Attempt at this step of the job, from 1.
    pub attempt: u32,
}

/// Where a node's stream of changes stands.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize)]
pub struct Position {
    /// Name of the history that `offset` counts in: the incarnation (embedded), the replication id (Redis).
    pub history: String,
    /// Commits (embedded) or bytes (Redis) since the history began.
    pub offset: u64,
}

/// What a node believes to own.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize)]
pub struct Ownership {
    /// `primary` or `replica`.
    pub role: String,
    /// Slots it serves.
    pub slots: SlotSet,
    /// Slots that are moving to or from it.
    pub moving: SlotSet,
    /// Version of the owner map as the node knows it (Redis: config epoch; embedded: 0).
    pub config_epoch: u64,
}

impl Ownership {
    /// Whether both slot sets have the form that their type promises: a peer may send anything.
    pub fn is_canonical(&self) -> bool {
        self.slots.is_canonical() && self.moving.is_canonical()
    }
}

/// Is the node there and ready? Changes nothing, pauses nothing.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Describe {}

/// What a node is and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize)]
pub struct Description {
    /// Engine name: `embedded`, `memory`, `redis`.
    pub engine: String,
    /// Version of the engine or server.
    pub engine_version: String,
    /// Id of the data.
    pub incarnation: Incarnation,
    /// `available` or `restoring`.
    pub state: String,
    /// Present position.
    pub position: Position,
    /// Present ownership.
    pub ownership: Ownership,
    /// The node's wall clock, milliseconds since 1970.
    pub clock_millis: u64,
    /// Live records, estimated.
    pub records: u64,
    /// Bytes of live keys and values, estimated.
    pub bytes: u64,
    /// Whether the engine can tell changes since a timestamp.
    pub changes_since: bool,
    /// Where clients of the store reach it (`host:port`), or empty.
    pub data_address: String,
    /// Highest ledger number of its cluster that the agent was told, 0 for none.
    pub ledger_number: u64,
    /// Hash of that ledger entry.
    pub ledger_hash: Hash,
}

/// Stop acknowledging writes.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Hold {
    /// The store resumes by itself after this long, in microseconds; 0 reads positions without a pause.
    pub budget_micros: u64,
}

/// The first reading of the cut.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize)]
pub struct Held {
    /// Position while held.
    pub position: Position,
    /// Highest timestamp the node ever issued.
    pub max_timestamp: Timestamp,
    /// Ownership while held.
    pub ownership: Ownership,
    /// Id of the data.
    pub incarnation: Incarnation,
    /// Wall clock, milliseconds since 1970.
    pub clock_millis: u64,
}

/// All have held: the cut is at `at`.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Seal {
    /// The timestamp of the cut; later commits get higher ones.
    pub at: Timestamp,
}

/// The second reading of the cut. The node pinned `at`; a position other than in [`Held`] is answered by a failure.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize)]
pub struct Sealed {
    /// Position at the second reading.
    pub position: Position,
}

/// Go on.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Release {}

/// Writes go on.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize)]
pub struct Released {
    /// Ownership read after the release.
    pub ownership: Ownership,
    /// How long writes were held, in microseconds.
    pub held_micros: u64,
}

/// What the repository holds already of one part.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PartParent {
    /// Region.
    pub region: u16,
    /// Slots of the part.
    pub slots: SlotSet,
    /// First sort key (slot big-endian ++ key) of the part; empty = from the beginning.
    pub lower: Vec<u8>,
    /// First sort key past the part; empty = to the end.
    pub upper: Vec<u8>,
    /// Hash of the parent's part entry.
    pub hash: Hash,
}

/// Send the state at `at`.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Upload {
    /// The cut.
    pub at: Timestamp,
    /// Slots to send (the node's own at the cut).
    pub slots: SlotSet,
    /// Slots of one region.
    pub slots_per_region: u16,
    /// Address of the ingest process (`host:port`).
    pub ingest: String,
    /// Cut of the parent backup; zero for a full backup.
    pub parent_at: Timestamp,
    /// Incarnation of the node at the parent; a delta is only possible if it is still the same.
    pub parent_incarnation: Incarnation,
    /// Parts that may be sent as deltas.
    pub parents: Vec<PartParent>,
    /// Parts sent at once; 0 lets the agent choose by its cores.
    pub concurrency: u32,
    /// Parts already stored in an earlier attempt at this job: (region, lower).
    pub stored: Vec<(u16, Vec<u8>)>,
}

/// As [`Upload`], going on in the middle of regions: an earlier attempt has stored their first parts.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct UploadRest {
    /// What to send.
    pub upload: Upload,
    /// Where parts that are stored end and the next one begins: (region, sort key).
    pub rest: Vec<(u16, Vec<u8>)>,
}

/// Which jobs are open on the node? Answered with [`OpenJobs`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ListJobs {}

/// Jobs that left something on the node which only their end takes away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct OpenJobs {
    /// Backups: pins, indexes that wait.
    pub backups: Vec<JobId>,
    /// The restore whose staging area is open: at most one.
    pub restores: Vec<JobId>,
}

/// What could this node be backed up for? Answered with a [`Description`]: of the node itself where it owns its slots; of the
/// primary that it follows where it is a replica in step with it, or where its own store is away and it still holds the
/// log of its shard. Anything else is a failure that says why.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct DescribeSource {}

/// All parts are stored.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Uploaded {
    /// Parts sent in this attempt.
    pub parts: u32,
    /// Bytes of keys and values read from the store.
    pub bytes_read: u64,
}

/// The end of a job for the agent: pins, hold and waiting indexes are dropped or made current.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Settle {
    /// 1: the ledger holds the backup; 0: it failed.
    pub committed: u8,
    /// Cut of the backup.
    pub at: Timestamp,
    /// Highest ledger number of the cluster.
    pub ledger_number: u64,
    /// Hash of that entry.
    pub ledger_hash: Hash,
    /// Hash of each part entry of this node in the manifest: (region, lower, hash).
    pub parts: Vec<(u16, Vec<u8>, Hash)>,
}

/// Done, nothing to say.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Done {}

/// Make ready to take a restore beside the present data.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreBegin {
    /// Timestamp of the state that will be loaded.
    pub at: Timestamp,
    /// Slots that this node will hold.
    pub slots: SlotSet,
    /// 1: present data may be replaced; 0: refuse unless the store is empty.
    pub in_place: u8,
    /// Address of the serve process (`host:port`).
    pub serve: String,
}

/// The agent's staging area is ready.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreReady {
    /// Parts that an earlier attempt loaded whole.
    pub loaded: Vec<LoadedPart>,
}

/// One run of a part, with what opens it.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RunSource {
    /// Number of the run in the part: 0 is the base.
    pub number: u32,
    /// Number of blocks.
    pub blocks: u32,
    /// What identifies the run in the associated data of its seals.
    pub run_tag: [u8; 16],
    /// The subkey of the run's attempt; nothing else is opened by it.
    pub key: SecretKey,
    /// 1: sealed by encryption; 0: sealed by checksum.
    pub encrypt: u8,
}

/// One part to load.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestorePart {
    /// Number of the part in the restore's plan.
    pub number: u32,
    /// Slots of the part that this node takes.
    pub slots: SlotSet,
    /// The part's runs, oldest first.
    pub runs: Vec<RunSource>,
    /// Bytes of keys and values to expect, for progress.
    pub bytes: u64,
}

/// Load these parts.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreParts {
    /// The parts.
    pub parts: Vec<RestorePart>,
    /// Key globs; `!` in front excludes; empty takes all.
    pub keys: Vec<String>,
    /// Parts loaded at once; 0 lets the agent choose by its cores.
    pub concurrency: u32,
}

/// What was loaded of one part.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LoadedPart {
    /// Number of the part in the restore's plan.
    pub number: u32,
    /// Digest of the records read from the repository in this node's slots, before any filter.
    pub source: SetDigest,
    /// Digest of the records given to the loader.
    pub loaded: SetDigest,
}

/// The parts are loaded.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestorePartsDone {
    /// Result for each part.
    pub parts: Vec<LoadedPart>,
}

/// Read back what was loaded; nothing is switched.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreVerify {
    /// What all parts together must read back as.
    pub expect: SetDigest,
}

/// The staged data reads back as expected.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreVerified {
    /// Digest read back from the store.
    pub digest: SetDigest,
}

/// Switch to what was read back, open the store.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreFinish {
    /// What was read back; refused unless [`RestoreVerify`] has found the same.
    pub expect: SetDigest,
}

/// The store is open on the restored data.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreFinished {
    /// Id of the new data.
    pub incarnation: Incarnation,
    /// Digest read back from the store.
    pub digest: SetDigest,
}

/// Drop the staging area and open the store as it was.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreAbort {}

/// How far a command has come; counts since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes of keys and values handled.
    pub bytes: u64,
    /// Bytes sent or received on the network.
    pub wire_bytes: u64,
    /// Records handled.
    pub records: u64,
    /// Parts finished.
    pub parts: u32,
}

/// What does a report of a fault need to know of this agent? Changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Diagnose {}

/// What an agent tells for the report of a fault. Nothing of it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Diagnosed {
    /// Its build.
    pub build: String,
    /// Its configuration as TOML; files of keys are named, their content is not told.
    pub config: String,
    /// Its metrics in the text format of Prometheus.
    pub metrics: String,
    /// Its last log lines.
    pub log: String,
}

/// The command failed.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Failure {
    /// Code of the error kind.
    pub code: u32,
    /// What happened and what to do.
    pub message: String,
}
