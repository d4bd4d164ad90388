//! Chunks of sorted records, and how a record stands in them.
//!
//! A record: `slot (u16 BE) | kind (u8) | key length (u32 LE) | meta length (u32 LE) | value length (u64 LE) | key | value |
//! meta`. Kind 0: the value stands here; 1: its offset in the file of long values (u64 LE); 2: the key does not exist.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tidemark_proto::{Error, ErrorKind, Result};

use crate::fsutil::write_strips;

/// At most one place in so many bytes of a chunk is remembered.
const INDEX_EVERY: u64 = 64 << 10;
/// Bytes of a chunk that are written at once.
const WRITE: usize = 256 << 10;
/// Bytes of a record before its key.
pub(super) const HEAD: usize = 19;

/// The value stands in the record.
pub(super) const INLINE: u8 = 0;
/// The value stands in the file of long values.
pub(super) const LONG: u8 = 1;
/// There is no such key.
pub(super) const GONE: u8 = 2;

/// A chunk: sorted records in a file.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) file: Arc<File>,
    /// Where it begins in the file.
    pub(super) start: u64,
    pub(super) len: u64,
    /// Slots with the offset of their first record, ascending; not every slot is there.
    pub(super) index: Vec<(u16, u64)>,
    /// Up to here its place in the file was given back: nothing before it may be read.
    pub(super) given_back: AtomicU64,
}

impl Chunk {
    /// Where records of slots from `slot` on may begin: nothing before it is read by those who look for them.
    pub(super) fn offset_of(&self, slot: u16) -> u64 {
        let before = self.index.partition_point(|(s, _)| *s <= slot);
        before.checked_sub(1).map_or(0, |i| self.index[i].1)
    }

    /// Where records of slots after `slot` stand, at the latest from here on.
    pub(super) fn offset_after(&self, slot: u16) -> u64 {
        let up_to = self.index.partition_point(|(s, _)| *s <= slot);
        self.index.get(up_to).map_or(self.len, |(_, at)| *at)
    }
}

/// A chunk that was written, with its arena and list of records, empty.
pub(super) type Written = (Chunk, Vec<u8>, Vec<u32>);

pub(super) fn full(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::new(ErrorKind::Full, format!("writing {}", path.display())).with_source(e)
}

pub(super) fn head_at(bytes: &[u8]) -> (u16, usize) {
    let len = u32::from_le_bytes([bytes[3], bytes[4], bytes[5], bytes[6]]);
    (u16::from_be_bytes([bytes[0], bytes[1]]), len as usize)
}

/// Sorts the records of an arena into a file, from `begin` on; gives arena and list back, empty.
pub(super) fn write_chunk(
    path: &Path,
    file: &Arc<File>,
    begin: u64,
    mut arena: Vec<u8>,
    mut starts: Vec<u32>,
) -> Result<Written> {
    let mut out = Out { file, buffer: Vec::with_capacity(WRITE), at: begin };
    let (mut index, mut len): (Vec<(u16, u64)>, u64) = (Vec::new(), 0);
    let mut last = None;
    for start in in_order(&arena, &mut starts) {
        let record = &arena[start as usize..][..record_len(&arena[start as usize..])];
        let (slot, _) = head_at(record);
        if last != Some(slot) && index.last().is_none_or(|(_, at)| len - at >= INDEX_EVERY) {
            index.push((slot, len));
        }
        last = Some(slot);
        out.put(record).map_err(full(path))?;
        len += record.len() as u64;
    }
    out.flush().map_err(full(path))?;
    arena.clear();
    starts.clear();
    let chunk = Chunk { file: file.clone(), start: begin, len, index, given_back: AtomicU64::new(0) };
    Ok((chunk, arena, starts))
}

/// The places in `starts`, by slot and key of their records; `starts` itself loses its order. Slots are sorted as numbers, and only
/// records of one slot by their keys: what the arena holds is looked at as little as possible, for it is in no cache.
fn in_order(arena: &[u8], starts: &mut [u32]) -> impl Iterator<Item = u32> {
    let slot = |start: u32| u16::from_be_bytes([arena[start as usize], arena[start as usize + 1]]);
    let mut places: Vec<u64> =
        starts.iter().map(|&start| u64::from(slot(start)) << 32 | u64::from(start)).collect();
    places.sort_unstable();
    let key = |place: &u64| {
        let record = &arena[*place as u32 as usize..];
        &record[HEAD..HEAD + head_at(record).1]
    };
    for same in places.chunk_by_mut(|a, b| a >> 32 == b >> 32) {
        same.sort_unstable_by(|a, b| key(a).cmp(key(b)));
    }
    places.into_iter().map(|place| place as u32)
}

/// Writes a file from some place on.
struct Out<'f> {
    file: &'f File,
    buffer: Vec<u8>,
    at: u64,
}

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        write_strips(self.file, &self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Length of the record at the start of `bytes`, of which at least the head must be there.
pub(super) fn record_len(bytes: &[u8]) -> usize {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
    let value = match bytes[2] {
        INLINE => word(11),
        LONG => 8,
        _ => 0,
    };
    HEAD + word(3) + word(7) + value
}

/// Place of the value of the record at the start of `bytes`, which is whole: `Ok` with its range in the record, or `Err` with
/// offset and length in the file of long values.
fn value_of(bytes: &[u8]) -> std::result::Result<std::ops::Range<usize>, (u64, u64)> {
    let (_, key) = head_at(bytes);
    let long = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let (from, len) = (HEAD + key, long(11));
    match bytes[2] {
        INLINE => Ok(from..from + len as usize),
        LONG => Err((long(from), len)),
        _ => Ok(from..from),
    }
}

/// A record that is visited.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here<'a> {
    pub(super) slot: u16,
    pub(super) key: &'a [u8],
    pub(super) meta: &'a [u8],
    pub(super) value: Value<'a>,
}

/// Where a value is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    /// Here.
    Bytes(&'a [u8]),
    /// In the file of long values: offset and length.
    Long(u64, u64),
    /// There is no such key.
    Gone,
}

/// The record that is all of `bytes`.
pub(super) fn here(bytes: &[u8]) -> Here<'_> {
    let (slot, key) = sort_key(bytes);
    let value = match value_of(bytes) {
        _ if bytes[2] == GONE => Value::Gone,
        Ok(place) => Value::Bytes(&bytes[place]),
        Err((offset, len)) => Value::Long(offset, len),
    };
    Here { slot, key, meta: meta_of(bytes), value }
}

/// Slot and key of the record at the start of `bytes`.
pub(super) fn sort_key(bytes: &[u8]) -> (u16, &[u8]) {
    let (slot, len) = head_at(bytes);
    (slot, &bytes[HEAD..HEAD + len])
}

/// Meta of the record, which is all of `bytes`.
fn meta_of(bytes: &[u8]) -> &[u8] {
    let len = u32::from_le_bytes([bytes[7], bytes[8], bytes[9], bytes[10]]) as usize;
    &bytes[bytes.len() - len..]
}
