//! The ledger: the append-only, numbered, hash-chained history of a cluster. What is not in it did not happen.
//!
//! An entry is put with create-if-absent at the next number. Entries of an epoch below an earlier entry's are ignored
//! by readers: they are the late writes of a fenced coordinator. The body is the archive of the struct that `kind`
//! names, so that new kinds need no new entry format.

use rkyv::{Archive, Deserialize, Serialize};

use crate::frame;
use crate::hash::Hash;
use crate::id::{JobId, PackId};
use crate::time::Timestamp;

/// Version of [`Entry`].
pub const VERSION: u8 = 1;
/// Kind of [`Fence`].
pub const KIND_FENCE: u16 = 1;
/// Kind of [`Policy`].
pub const KIND_POLICY: u16 = 2;
/// Kind of [`Backup`].
pub const KIND_BACKUP: u16 = 3;
/// Kind of [`Delete`].
pub const KIND_DELETE: u16 = 4;
/// Kind of [`Failed`].
pub const KIND_FAILED: u16 = 5;

/// Kind of [`Condemn`].
pub const KIND_CONDEMN: u16 = 6;
/// Kind of [`Hold`].
pub const KIND_HOLD: u16 = 7;
/// Kind of [`Leave`].
pub const KIND_LEAVE: u16 = 8;
/// Kind of [`LogPolicy`].
pub const KIND_LOG_POLICY: u16 = 9;
/// Kind of [`Trim`].
pub const KIND_TRIM: u16 = 10;
/// Kind of [`Void`].
pub const KIND_VOID: u16 = 11;

/// [`LogPolicy::state`]: no log is kept.
pub const LOG_OFF: u8 = 0;
/// [`LogPolicy::state`]: changes are streamed.
pub const LOG_ON: u8 = 1;
/// [`LogPolicy::state`]: nothing is streamed, but nodes keep what is not yet stored.
pub const LOG_PAUSED: u8 = 2;

/// Names in one [`Condemn`] at most: packs and roots together.
pub const MAX_CONDEMNED: usize = 16 << 10;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, from 1.
    pub number: u64,
    /// Hash of the stored bytes of the entry before; zero for the first.
    pub previous: Hash,
    /// Epoch of the coordinator that wrote it.
    pub epoch: u64,
    /// Drawn for this put, so that a put that timed out but won is recognised.
    pub put_id: [u8; 16],
    /// When, milliseconds since 1970.
    pub at_millis: u64,
    /// What the body is.
    pub kind: u16,
    /// Archive of the body.
    pub body: Vec<u8>,
}

/// A coordinator took over: nothing of a lower epoch counts from here on.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Fence {
    /// The coordinator's name.
    pub coordinator: String,
}

/// How a cluster is protected; the newest counts.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Policy {
    /// Engine of the cluster.
    pub engine: String,
    /// Slots of one region; never changes once written.
    pub slots_per_region: u16,
    /// Nodes that must be in every backup.
    pub nodes: Vec<String>,
}

/// A complete backup.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Backup {
    /// Job that made it; also the backup's id.
    pub job: JobId,
    /// Its cut.
    pub cut: Timestamp,
    /// Hash (and name) of the manifest root.
    pub root: Hash,
    /// Root of the parent; zero for none.
    pub parent: Hash,
}

/// A backup is no restore point any more.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Delete {
    /// The backup.
    pub job: JobId,
}

/// A backup job ended without a backup.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Failed {
    /// The job.
    pub job: JobId,
    /// When it began, milliseconds since 1970.
    pub started_millis: u64,
    /// Kind of the error, by code.
    pub code: u32,
    /// What happened: names node and cause.
    pub reason: String,
    /// 1: made by hand; 0: by a schedule.
    pub manual: u8,
}

/// Objects that no later backup may name: from here on they may be deleted by anyone at any time.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Condemn {
    /// Packs.
    pub packs: Vec<PackId>,
    /// Manifest roots and pages.
    pub roots: Vec<Hash>,
}

/// Somebody reads a backup: what it needs stays, also when it is deleted meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Hold {
    /// The job that reads.
    pub reader: JobId,
    /// The backup that it reads.
    pub backup: JobId,
    /// When the hold ends by itself, milliseconds since 1970.
    pub until_millis: u64,
}

/// A reader is done.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Leave {
    /// The job that has read.
    pub reader: JobId,
}

/// Whether and how the log of a cluster is kept; the newest counts.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogPolicy {
    /// [`LOG_OFF`], [`LOG_ON`] or [`LOG_PAUSED`].
    pub state: u8,
    /// Longest time from one segment to the next while there is news, in milliseconds.
    pub interval_millis: u64,
    /// Bytes at which a segment is closed before that.
    pub segment_bytes: u64,
    /// Longest time between segments when nothing changes, in milliseconds.
    pub idle_millis: u64,
}

/// Log segments that nobody needs: from here on those below may be deleted by anyone at any time.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Trim {
    /// The first segment that stays.
    pub below: u64,
}

/// A log segment cannot be read: nothing connects what follows it with what came before, whatever it holds.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Void {
    /// Its number.
    pub segment: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A coordinator took over.
    Fence(Fence),
    /// How the cluster is protected.
    Policy(Policy),
    /// A complete backup.
    Backup(Backup),
    /// A backup was deleted.
    Delete(Delete),
    /// A backup job failed.
    Failed(Failed),
    /// Objects may be deleted.
    Condemn(Condemn),
    /// A backup is being read.
    Hold(Hold),
    /// A reader is done.
    Leave(Leave),
    /// Whether and how the log is kept.
    LogPolicy(LogPolicy),
    /// Old segments of the log may be deleted.
    Trim(Trim),
    /// A log segment is lost.
    Void(Void),
    /// A kind that this build does not know (a newer one wrote it).
    Unknown(u16),
}

impl Body {
    /// Kind and archive.
    pub fn encode(&self) -> (u16, Vec<u8>) {
        match self {
            Self::Fence(b) => (KIND_FENCE, frame::to_archive(b).into_vec()),
            Self::Policy(b) => (KIND_POLICY, frame::to_archive(b).into_vec()),
            Self::Backup(b) => (KIND_BACKUP, frame::to_archive(b).into_vec()),
            Self::Delete(b) => (KIND_DELETE, frame::to_archive(b).into_vec()),
            Self::Failed(b) => (KIND_FAILED, frame::to_archive(b).into_vec()),
            Self::Condemn(b) => (KIND_CONDEMN, frame::to_archive(b).into_vec()),
            Self::Hold(b) => (KIND_HOLD, frame::to_archive(b).into_vec()),
            Self::Leave(b) => (KIND_LEAVE, frame::to_archive(b).into_vec()),
            Self::LogPolicy(b) => (KIND_LOG_POLICY, frame::to_archive(b).into_vec()),
            Self::Trim(b) => (KIND_TRIM, frame::to_archive(b).into_vec()),
            Self::Void(b) => (KIND_VOID, frame::to_archive(b).into_vec()),
            Self::Unknown(kind) => (*kind, Vec::new()),
        }
    }

    /// From kind and archive.
    pub fn decode(kind: u16, body: &[u8]) -> crate::Result<Self> {
        Ok(match kind {
            KIND_FENCE => Self::Fence(frame::from_archive(body)?),
            KIND_POLICY => Self::Policy(frame::from_archive(body)?),
            KIND_BACKUP => Self::Backup(frame::from_archive(body)?),
            KIND_DELETE => Self::Delete(frame::from_archive(body)?),
            KIND_FAILED => Self::Failed(frame::from_archive(body)?),
            KIND_CONDEMN => Self::Condemn(frame::from_archive(body)?),
            KIND_HOLD => Self::Hold(frame::from_archive(body)?),
            KIND_LEAVE => Self::Leave(frame::from_archive(body)?),
            KIND_LOG_POLICY => Self::LogPolicy(frame::from_archive(body)?),
            KIND_TRIM => Self::Trim(frame::from_archive(body)?),
            KIND_VOID => Self::Void(frame::from_archive(body)?),
            other => Self::Unknown(other),
        })
    }
}
