//! Records of a base that are sent before the cut of their job, and what differs from them at the cut.

use std::sync::Arc;

use tidemark_proto::Result;

use super::{LongRecord, Next, RecordRef, Snapshot};

/// A base whose records become ready to be sent, slot by slot, before the cut of its job.
pub trait EarlyBase: Send + Sync {
    /// Tells the bases of this process apart. The state at the cut that was made of this base has the same
    /// [`Snapshot::base`].
    fn id(&self) -> u64;

    /// Waits until all records of the slots up to `last` are ready; answers a view of the base as it came, which holds them
    /// for as long as it lives. `None` once no more become ready, which is so from when the state at the cut is
    /// asked for. `cancel` is asked at least once a second: `true` ends the call with `None`.
    fn ready(&self, last: u16, cancel: &(dyn Fn() -> bool + Sync)) -> Result<Option<Arc<dyn Snapshot>>>;
}

/// What the state at a cut holds of a key that was written since its base.
#[derive(Debug, Clone, Copy)]
pub enum Over<'a> {
    /// This record.
    Record(RecordRef<'a>),
    /// This one, with a long value.
    Long(LongRecord<'a>),
    /// None.
    Gone {
        /// Hash slot of the key.
        slot: u16,
        /// The key.
        key: &'a [u8],
    },
}

impl Over<'_> {
    /// Slot and key.
    pub fn place(&self) -> (u16, &[u8]) {
        match self {
            Self::Record(record) => (record.slot, record.key),
            Self::Long(record) => (record.slot, record.key),
            Self::Gone { slot, key } => (*slot, key),
        }
    }
}

/// Visits what was written since a base; nothing is packed, so that [`Next::Open`] is a mistake.
pub type OverVisitor<'v> = dyn FnMut(Over<'_>) -> Result<Next> + 'v;
