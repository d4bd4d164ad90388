//! Data protocol messages, version 1. Frozen: never edit a struct that a build has sent.

use rkyv::{Archive, Deserialize, Serialize};

use crate::time::Timestamp;

/// One write. The key decides the slot.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Write {
    /// Key.
    pub key: Vec<u8>,
    /// Value to set; `None` removes the key (one that is not there is no error).
    pub value: Option<Vec<u8>>,
}

/// A version of a key.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Record {
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
    /// Commit timestamp.
    pub timestamp: Timestamp,
}

/// Commits all writes atomically; answered by [`Committed`] when they are durable.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Commit {
    /// The writes, all of slots of the node.
    pub writes: Vec<Write>,
    /// The commit gets a timestamp above this: the highest that the client has seen.
    pub after: Timestamp,
}

/// The writes are durable.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Committed {
    /// Their timestamp.
    pub at: Timestamp,
}

/// Reads a key; answered by [`Value`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Get {
    /// Key.
    pub key: Vec<u8>,
    /// As of this timestamp; `None` reads the newest.
    pub at: Option<Timestamp>,
}

/// The version of a key.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Value {
    /// The version; `None` when the key does not exist.
    pub record: Option<Record>,
}

/// Reads a page of records in (slot, key) order; answered by [`Page`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Scan {
    /// Keys must begin with this; empty takes all.
    pub prefix: Vec<u8>,
    /// Goes on after this sort key (slot big-endian ++ key); empty = from the beginning.
    pub from: Vec<u8>,
    /// As of this timestamp; `None` reads the newest.
    pub at: Option<Timestamp>,
    /// Most records wanted.
    pub limit: u32,
}

/// A page of records.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Page {
    /// The records.
    pub records: Vec<Record>,
    /// Sort key to go on after; `None` at the end.
    pub next: Option<Vec<u8>>,
    /// The timestamp that was read: further pages at it read the same state.
    pub at: Timestamp,
}

/// The request failed; the stream goes on.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Failure {
    /// Code of the error kind.
    pub code: u32,
    /// What happened and what to do.
    pub message: String,
}

/// From here on the requests of this stream are for a clone; answered by [`CloneOpened`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct OpenClone {
    /// Name of the clone.
    pub name: String,
}

/// Requests that follow are for the clone.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct CloneOpened {
    /// The state of the parent that it began with: the earliest that can be read in it.
    pub at: Timestamp,
}
