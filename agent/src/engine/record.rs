//! Records and changes by reference, and the visitors that are shown them.

use std::ops::ControlFlow;

use tidemark_common::record::record_hash_of;
use tidemark_common::run::{LongValue, PackedBlock};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::{Result, SlotSet};

/// One record by reference. `meta` is the engine's own (embedded: empty; Redis: type, expiry, access data).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Hash slot of the key.
    pub slot: u16,
    /// Key.
    pub key: &'a [u8],
    /// What the engine keeps beside the value.
    pub meta: &'a [u8],
    /// Value.
    pub value: &'a [u8],
}

/// One record by reference whose value is too long for memory.
#[derive(Debug, Clone, Copy)]
pub struct LongRecord<'a> {
    /// Hash slot of the key.
    pub slot: u16,
    /// Key.
    pub key: &'a [u8],
    /// What the engine keeps beside the value.
    pub meta: &'a [u8],
    /// Value; it may be read until the next record is visited.
    pub value: &'a LongValue,
}

impl LongRecord<'_> {
    /// The hash of the record's meaning; see [`tidemark_common::run::record_hash`].
    pub fn hash(&self) -> Result<u128> {
        record_hash_of(self.key, self.meta, self.value)
    }

    /// Bytes of key, meta and value.
    pub fn bytes(&self) -> u64 {
        (self.key.len() + self.meta.len()) as u64 + self.value.len()
    }
}

/// One changed key by reference: its record before and after, `None` where it did not exist. Not both are `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeRef<'a> {
    /// The record at the earlier timestamp.
    pub old: Option<RecordRef<'a>>,
    /// The record at the later timestamp.
    pub new: Option<RecordRef<'a>>,
}

/// A range of a store in sort order (slot, key).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanRange {
    /// Slots to visit.
    pub slots: SlotSet,
    /// First sort key (slot big-endian ++ key), inclusive; empty = from the beginning.
    pub lower: Vec<u8>,
    /// Sort key to stop before; empty = to the end.
    pub upper: Vec<u8>,
}

impl ScanRange {
    /// All keys of `slots`.
    pub fn slots(slots: SlotSet) -> Self {
        Self { slots, lower: Vec::new(), upper: Vec::new() }
    }
}

/// Visits records; `Break` ends the scan early without an error.
pub type RecordVisitor<'v> = dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>> + 'v;
/// Visits changes; `Break` ends the scan early without an error.
pub type ChangeVisitor<'v> = dyn FnMut(ChangeRef<'_>) -> Result<ControlFlow<()>> + 'v;

/// Neighbouring records in the form in which a full run takes them: packed, with all that a part's digest and key index need.
#[derive(Debug, Clone, Copy)]
pub struct Packed<'a> {
    /// The block.
    pub block: PackedBlock<'a>,
    /// Digest of its records' hashes ([`super::record_hash`]).
    pub digest: SetDigest,
    /// Their entries for a key index ([`crate::keyindex::IndexWriter::push_entries`]).
    pub entries: &'a [u8],
}

/// What a scan comes upon.
#[derive(Debug, Clone, Copy)]
pub enum Scanned<'a> {
    /// One record.
    Record(RecordRef<'a>),
    /// One record with a long value.
    Long(LongRecord<'a>),
    /// Many, none of which was visited yet.
    Packed(Packed<'a>),
}

/// How a scan goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Behind what was visited.
    Go,
    /// Not at all.
    Stop,
    /// With the records of what is packed, one by one.
    Open,
}

/// Visits records, those with long values too, and packed ones together.
pub type PackedVisitor<'v> = dyn FnMut(Scanned<'_>) -> Result<Next> + 'v;
