//! Commands of the log, version 1. Frozen.

use rkyv::{Archive, Deserialize, Serialize};

#[cfg(doc)]
use super::{Done, Held, Released, Sealed};
use crate::id::JobId;
use crate::time::Timestamp;

/// Open a stream for the log to the ingest process, and answer its pulls there until it ends. A stream that stands already is
/// ended. Answered with [`Done`] when the stream is open; a store that has no log answers `Unsupported`.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogStart {
    /// Names the session.
    pub session: JobId,
    /// Address of the ingest process (`host:port`).
    pub ingest: String,
}

/// No log is kept any more: drop what is kept for it, and end its stream. Answered with [`Done`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogStop {}

/// Hold writes for a restore point of the log: as the hold of a backup, but only positions are read and nothing is prepared. Answered
/// with [`Held`], whose `max_timestamp` is above every timestamp that any change up to the position can get.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogHold {
    /// Writes are held at most this long, in milliseconds; 0: they are not.
    pub budget_millis: u32,
}

/// The second reading of a restore point: every change up to the position of [`LogHold`] gets a timestamp at or below `at`, and every
/// later one a later one. Answered with [`Sealed`]; `Conflict` where the store moved on in between.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogSeal {
    /// The restore point.
    pub at: Timestamp,
}

/// Writes go on. Answered with [`Released`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LogRelease {}
