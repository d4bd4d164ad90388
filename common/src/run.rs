//! Runs: immutable sorted files of records of one part. The format is in [`tidemark_proto::stored::run`].
//!
//! Writing and reading are CPU work: call them from threads that may block.

mod block;
mod merge;
mod reader;
mod writer;

pub use block::{open_bytes, open_index, seal_bytes, seal_index};
pub use merge::Merge;
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

/// The 128-bit hash of a record's meaning: key, meta and value, each delimited. The first half of BLAKE3.
pub fn record_hash(key: &[u8], meta: &[u8], value: &[u8]) -> u128 {
    let mut h = blake3::Hasher::new();
    for field in [key, meta] {
        let _ = h.update(&(field.len() as u32).to_le_bytes()).update(field);
    }
    let _ = h.update(value);
    let mut out = [0; 16];
    out.copy_from_slice(&h.finalize().as_bytes()[..16]);
    u128::from_le_bytes(out)
}

#[cfg(test)]
mod tests;
