//! What a restore is told beside what to load, version 1. Frozen.

use rkyv::{Archive, Deserialize, Serialize};

use super::{RestoreBegin, RestoreParts};
use crate::slot::SlotSet;
use crate::time::Timestamp;

/// As [`RestoreBegin`], with options; answered the same. A coordinator sends it only where an option is not the usual one.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreBeginAs {
    /// What to begin.
    pub begin: RestoreBegin,
    /// How records are loaded.
    pub options: LoadOptions,
}

/// How records are loaded: the same for all nodes of a restore and all attempts.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LoadOptions {
    /// Slots whose records are loaded, whatever else the node takes.
    pub slots: SlotSet,
    /// Databases whose records are loaded; empty takes all.
    pub dbs: Vec<u64>,
    /// 0: keys expire when they did; 1: so much later; 2: never.
    pub expiry: u8,
    /// How much later keys expire, in milliseconds.
    pub shift_millis: u64,
}

/// How many records were not loaded, and why? Answered with [`RestoreCounted`], from the begin of a restore to its end.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreCount {}

/// Counts over all parts that the node has loaded.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreCounted {
    /// Records that were wanted and had expired.
    pub expired: u64,
}

/// As [`RestoreParts`], with the log of each part laid over its records; answered the same.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestorePartsLogged {
    /// What to load.
    pub parts: RestoreParts,
    /// State of the parts' records: entries of the log up to here are in them.
    pub after: Timestamp,
    /// Timestamp of the state to load.
    pub at: Timestamp,
    /// Bounds of each part, in the order of the parts.
    pub bounds: Vec<PartBounds>,
}

/// Which keys a part has.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PartBounds {
    /// First sort key (slot big-endian ++ key); empty = from the beginning.
    pub lower: Vec<u8>,
    /// First sort key past it; empty = to the end.
    pub upper: Vec<u8>,
}
