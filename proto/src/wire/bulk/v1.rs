//! Bulk messages, version 1. Frozen: never edit a struct that a build has sent.

use rkyv::{Archive, Deserialize, Serialize};

use crate::hash::SetDigest;
use crate::id::JobId;
use crate::slot::SlotSet;
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
