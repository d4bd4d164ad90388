//! Runs: immutable sorted files of records of one part. The format is in [`tidemark_proto::stored::run`].
//!
//! Writing and reading are CPU work: call them from threads that may block.

mod block;
mod long;
mod merge;
mod packed;
mod reader;
mod writer;

pub(crate) use block::Unpacker;
pub use block::{Packer, open_bytes, open_index, seal_bytes, seal_index};
pub use long::{LONG_PIECE, LongReader, LongValue, Spool};
pub use merge::Merge;
pub use packed::{BlockPacker, PackedBlock, PackedReader};
pub use reader::{BlockSource, RunReader, blocks_for};
pub use writer::{RunSummary, RunWriter};

/// Default compression: zstd level 1.
pub const ZSTD_LEVEL: i32 = 1;

/// An entry of a run, by reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Hash slot.
    pub slot: u16,
    /// Key.
    pub key: &'a [u8],
    /// Meta and value, `None` for a delete.
    pub put: Option<(&'a [u8], &'a [u8])>,
}

pub use crate::record::record_hash;

#[cfg(test)]
mod tests;
