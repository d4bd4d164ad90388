//! Runs: sorted records of one part in blocks, and the index of the blocks.
//!
//! **Block** (before compression): records back to back, ascending by (slot, key).
//! A record is `tag (u8) | slot (u16 LE) | key length (varint) | key | rest`:
//! - tag 0, put: `meta length (varint) | meta | value length (varint) | value`
//! - tag 1, delete: nothing more
//! - tag 2, put of a long value (over [`MAX_INLINE`] bytes): `meta length | meta | value length`; it ends its block, and
//!   the value follows in continuation blocks, which hold nothing else and fill up to the length.
//!
//! **Plaintext of a seal**: `codec (u8: 0 raw, 1 zstd) | raw length (u32 LE) | bytes`.
//! **Sealed block in a pack**: `length (u32 LE) | nonce (12) | ciphertext | tag (16)`.
//! **Index**: the archive of [`Index`], sealed like a block under its own kind.

use rkyv::{Archive, Deserialize, Serialize};

use crate::error::{Error, Result};

/// A block is closed when it reaches this many raw bytes.
pub const BLOCK_TARGET: usize = 128 << 10;
/// Longest value inside a record, in bytes; longer ones go to continuation blocks.
pub const MAX_INLINE: usize = 1 << 20;
/// Largest raw block: a full block and one more record of the longest key, meta and inline value.
pub const MAX_BLOCK: usize = BLOCK_TARGET + MAX_INLINE + (256 << 10);
/// Raw bytes of a continuation block, except the last of a value.
pub const CONTINUATION: usize = BLOCK_TARGET;
/// A part is closed when its run reaches about this many raw bytes.
pub const PART_TARGET: u64 = 1 << 30;

/// Kind of seal: a block.
pub const SEAL_BLOCK: u8 = 1;
/// Kind of seal: an index.
pub const SEAL_INDEX: u8 = 2;
/// Kind of seal: a whole object.
pub const SEAL_OBJECT: u8 = 3;

/// Version of [`Index`].
pub const VERSION: u8 = 1;

/// One block in the index.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct BlockEntry {
    /// Sort key of its first record; empty for a continuation block.
    pub first: Vec<u8>,
    /// Records that begin in it.
    pub records: u32,
    /// Raw bytes.
    pub raw_len: u32,
    /// Bytes in the pack, without the length in front.
    pub sealed_len: u32,
}

/// The index of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Index {
    /// The blocks in order.
    pub blocks: Vec<BlockEntry>,
}

/// The sort key of a record: slot big-endian, then the key.
pub fn sort_key(slot: u16, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + key.len());
    out.extend_from_slice(&slot.to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// Appends `v` as a varint (LEB128).
pub fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Takes a varint off the front of `bytes`.
pub fn take_varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut v = 0u64;
    for shift in (0..64).step_by(7) {
        let (&b, rest) = bytes.split_first().ok_or_else(|| Error::damaged("block: ends inside a number"))?;
        *bytes = rest;
        v |= u64::from(b & 0x7f).checked_shl(shift).unwrap_or(0);
        if b & 0x80 == 0 {
            return Ok(v);
        }
    }
    Err(Error::damaged("block: a number is too long"))
}

/// Takes `len` bytes off the front of `bytes`.
pub fn take<'a>(bytes: &mut &'a [u8], len: u64) -> Result<&'a [u8]> {
    let len = usize::try_from(len).ok().filter(|&l| l <= bytes.len());
    let (head, rest) = bytes.split_at(len.ok_or_else(|| Error::damaged("block: a record is cut short"))?);
    *bytes = rest;
    Ok(head)
}
