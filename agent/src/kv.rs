//! The data side of stores that Tidemark serves itself (embedded, memory): what the data listener asks of them.

use tidemark_proto::{Result, Timestamp};
use tokio::sync::oneshot;

/// Longest value, in bytes.
pub const MAX_VALUE: usize = 8 << 20;
/// Most operations of one atomic batch.
pub const MAX_BATCH: usize = 4096;

/// One write. The key decides the slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// Key.
        key: Vec<u8>,
        /// Value.
        value: Vec<u8>,
    },
    /// Removes a key; one that is not there is no error.
    Delete {
        /// Key.
        key: Vec<u8>,
    },
}

/// A version of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
    /// Commit timestamp.
    pub timestamp: Timestamp,
}

/// A multi-version key-value store of one node.
pub trait KvStore: Send + Sync + 'static {
    /// Commits all writes atomically at one new timestamp above `after` (the highest the client has seen). The answer
    /// comes when they are durable. While the store is held the answer waits; while it is `restoring`, or for a
    /// key of a slot that is not this node's, it is an error and nothing is written.
    fn commit(&self, writes: Vec<Write>, after: Timestamp) -> oneshot::Receiver<Result<Timestamp>>;

    /// The version of `key` at `at` (the newest for `None`). Blocks for IO. `NotFound` below the safe point.
    fn get(&self, key: &[u8], at: Option<Timestamp>) -> Result<Option<Versioned>>;

    /// Up to `limit` live records whose key begins with `prefix` (empty: all), in (slot, key) order, after the sort
    /// key `from` (slot big-endian ++ key; empty: from the beginning), as of `at` (the newest for `None`). The answer
    /// is cut early when it passes `max_bytes`. Answers with the sort key to go on from, `None` at the end, and the
    /// timestamp that was read, so that further pages read the same state.
    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        at: Option<Timestamp>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<ScanPage>;
}

/// A page of [`KvStore::scan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanPage {
    /// The records.
    pub records: Vec<Versioned>,
    /// Sort key to go on after.
    pub next: Option<Vec<u8>>,
    /// The timestamp that was read.
    pub at: Timestamp,
}
