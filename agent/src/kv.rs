//! The data side of stores that Tidemark serves itself (embedded, memory): what the data listener asks of them.

use std::sync::Arc;

use tidemark_proto::{CloneName, Error, Result, SlotSet, Timestamp, slot_of};
use tokio::sync::oneshot;

/// Longest key that clients may write, in bytes: its worst escaped form still fits the embedded store's key.
pub const MAX_KEY: usize = 31 << 10;
/// Longest value, in bytes.
pub const MAX_VALUE: usize = 8 << 20;
/// Most operations of one atomic batch.
pub const MAX_BATCH: usize = 4096;
/// Most bytes of keys and values in one atomic batch.
pub const MAX_BATCH_BYTES: usize = 16 << 20;

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

impl Write {
    /// The key.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    /// Bytes of key and value.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

/// Whether a node of `slots` may commit `writes`: sizes within the limits, every key in its slots. Answers the bytes
/// of the batch.
pub fn check_batch(writes: &[Write], slots: &SlotSet) -> Result<usize> {
    if writes.is_empty() || writes.len() > MAX_BATCH {
        return Err(Error::request(format!(
            "a batch of {} operations: send 1 to {MAX_BATCH} operations",
            writes.len()
        )));
    }
    let mut bytes = 0;
    for write in writes {
        let key = write.key();
        if key.len() > MAX_KEY {
            return Err(Error::request(format!("a key of {} bytes: use at most {MAX_KEY}", key.len())));
        }
        if let Write::Put { value, .. } = write
            && value.len() > MAX_VALUE
        {
            return Err(Error::request(format!("a value of {} bytes: use at most {MAX_VALUE}", value.len())));
        }
        let _ = check_slot(key, slots)?;
        bytes += write.bytes();
    }
    if bytes > MAX_BATCH_BYTES {
        return Err(Error::request(format!(
            "a batch of {bytes} bytes: use at most {MAX_BATCH_BYTES}, send several"
        )));
    }
    Ok(bytes)
}

/// The slot of `key`, if a node of `slots` serves it.
pub fn check_slot(key: &[u8], slots: &SlotSet) -> Result<u16> {
    let slot = slot_of(key);
    if slots.contains(slot) {
        return Ok(slot);
    }
    Err(Error::request(format!(
        "wrong node: the key is of slot {slot}, this node serves {slots}; send it to the node that owns the slot"
    )))
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

    /// A clone of the store, for its clients. `NotFound` when none of that name stands. What is opened answers `NotFound`
    /// from when the clone is dropped.
    fn open_clone(&self, name: &CloneName) -> Result<OpenedClone> {
        Err(Error::unsupported(format!("clone {name}: this store has no clones")))
    }
}

/// A clone that clients may read and write.
pub struct OpenedClone {
    /// The state of the parent that it began with: the earliest that can be read.
    pub at: Timestamp,
    /// Its data.
    pub store: Arc<dyn KvStore>,
}

impl std::fmt::Debug for OpenedClone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenedClone").field("at", &self.at).finish_non_exhaustive()
    }
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
