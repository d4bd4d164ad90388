//! What happened in a job, for people: `clusters/<cluster>/events/<job>/<rev>`, one revision after the other, sealed like
//! job records. Hints that may be lost: no decision is taken from them.

use rkyv::{Archive, Deserialize, Serialize};

use crate::id::{ClusterName, JobId};

/// Version of [`JobEvents`].
pub const VERSION: u8 = 1;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Event {
    /// When, milliseconds since 1970 by the coordinator's clock.
    pub at_millis: u64,
    /// What, in a word: `began`, `phase`, `retry`, `failed`, ...
    pub what: String,
    /// The node that it is about; empty for none.
    pub node: String,
    /// The words.
    pub message: String,
}

/// The events of a job since the revision before.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct JobEvents {
    /// The job.
    pub job: JobId,
    /// The cluster.
    pub cluster: ClusterName,
    /// What the job does: `backup`, `restore`, `verify`, `check`.
    pub kind: String,
    /// Epoch of the coordinator that runs it.
    pub epoch: u64,
    /// The events, oldest first.
    pub events: Vec<Event>,
    /// Events before these that were not kept.
    pub lost: u32,
}
