//! Commands of the log, version 1. Frozen.

use rkyv::{Archive, Deserialize, Serialize};

#[cfg(doc)]
use super::Done;
use crate::id::JobId;

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
