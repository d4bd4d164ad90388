//! Log segments: the changes of a whole cluster over a short interval, grouped by region.
//!
//! Segments of a cluster are numbered from 1 without a hole and put by create-if-absent, so that the number alone says
//! what comes next; each names the hash of the footer before it.
//!
//! **Object**: `header (8, see [`super::envelope`]) | sealed chunks back to back | sealed footer | trailer (40) | checksum (16)`.
//! The trailer is `key id of the footer (u32 LE) | its salt (16) | offset of the footer (u64 LE) | its length (u32 LE) |
//! "LOGF" | version of the footer (u32 LE)`: the last bytes of the object lead to the footer, and the footer to every region, by
//! range reads. The checksum covers the whole object.
//!
//! A **merged** segment stands for a stretch of them, under a name of its own, so that a long time is few objects; its
//! chunks hold the same entries, of each region and node ascending by (slot, key, timestamp).
//!
//! **Footer**: the archive of [`Segment`], sealed like a small object under the object's key.
//! **Chunk**: entries of one region on one node, sealed like a block under the kind [`SEAL_CHUNK`] with the subkey that the
//! coordinator drew for the batch; its number is its place in the batch.
//! **Entry** (before compression): `tag (u8) | slot (u16 LE) | timestamp (u64 LE) | key length (varint) | key | rest`:
//! - tag 0, put: `meta length (varint) | meta | value length (varint) | value`
//! - tag 1, delete: nothing more
//! - tag 2, command: as a put, where `key` is the first key that the command names, `meta` is its database (varint) and `value` the
//!   command as a request of the Redis protocol (`*2\r\n$4\r\n…`)
//! - tag 3, command that goes on: the same, and the next entry of the node, with the same slot and timestamp, has the bytes behind it
//! - tag 4, put that goes on: as a put, and the next entry, with the same key and timestamp, has the value's bytes behind it. Only where
//!   a coordinator serves what it has worked off: no segment holds it
//!
//! Entries of one node and key are ascending by timestamp; entries of one atomic batch share its timestamp. A log of commands gives
//! each command of a node a timestamp of its own, in the order in which the node ran them. A command whose keys lie in one slot
//! stands under that slot; one whose keys lie in several, or in none (`FLUSHALL`), under [`ALL_SLOTS`] and in region
//! [`ALL_REGIONS`]. `SELECT`, `MULTI`, `EXEC` and what changes no data are left out.
//!
//! Not every time of a log of commands is a consistent state of the cluster: its footers are of version 2, the archive of
//! [`PointedSegment`], which lists those that are.

use rkyv::{Archive, Deserialize, Serialize};

use super::paths;
use super::run::{put_varint, take, take_varint};
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::id::{ClusterName, Incarnation, NodeName};
use crate::slot::SlotSet;
use crate::time::Timestamp;

/// Version of the object.
pub const VERSION: u8 = 1;
/// Version of a footer that is a [`Segment`], in the trailer.
pub const FOOTER_VERSION: u32 = 1;
/// Version of a footer that is a [`PointedSegment`].
pub const POINTED_FOOTER_VERSION: u32 = 2;
/// Slot of a command whose keys lie in several slots, or in none.
pub const ALL_SLOTS: u16 = u16::MAX;
/// Region of such commands.
pub const ALL_REGIONS: u16 = u16::MAX;
/// Longest piece of a command in one entry, in bytes.
pub const MAX_PIECE: usize = 8 << 20;
/// Kind of seal: a chunk.
pub const SEAL_CHUNK: u8 = 4;
/// A chunk is closed when it reaches this many raw bytes.
pub const CHUNK_TARGET: usize = 256 << 10;
/// Largest raw chunk: a full one and one more entry of the longest key, meta and value that any log takes.
pub const MAX_CHUNK: usize = CHUNK_TARGET + (9 << 20);
/// Bytes between the footer and the checksum.
pub const TRAILER_LEN: usize = 40;
/// Largest footer when opened, in bytes.
pub const MAX_FOOTER: usize = 64 << 20;

const TRAILER_MAGIC: [u8; 4] = *b"LOGF";
const TAG_PUT: u8 = 0;
const TAG_DELETE: u8 = 1;
const TAG_COMMAND: u8 = 2;
const TAG_COMMAND_PART: u8 = 3;
const TAG_PUT_PART: u8 = 4;
/// [`SegmentNode::begins`] of a log that goes on in another history, or on another node: only `from` connects it.
pub const BEGINS_BRANCH: u8 = 2;

/// What one node gave to a segment.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SegmentNode {
    /// Its name.
    pub node: NodeName,
    /// Id of its data.
    pub incarnation: Incarnation,
    /// Slots it owns.
    pub slots: SlotSet,
    /// Position after which this segment goes on: the `to` of the segment before, or a fresh one where a chain begins.
    /// Embedded: a timestamp.
    pub from: u64,
    /// Position up to which it goes, inclusive.
    pub to: u64,
    /// The node commits nothing more at or below this.
    pub closed: Timestamp,
    /// The data key of its chunks; 0 for a repository without encryption.
    pub key_id: u32,
    /// Salt of the batch.
    pub salt: [u8; 16],
    /// 1: nothing connects it with what came before: a log begins, or what lay between is lost. [`BEGINS_BRANCH`]: it goes on from
    /// `from`, which was counted in another history (the incarnation of before), maybe by another node.
    pub begins: u8,
}

/// One chunk.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SegmentChunk {
    /// Its node, by its place in [`Segment::nodes`].
    pub node: u16,
    /// Region.
    pub region: u16,
    /// Its number in the batch.
    pub number: u32,
    /// First byte in the object.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Raw bytes.
    pub raw_len: u32,
    /// Entries.
    pub entries: u32,
    /// Lowest timestamp.
    pub first: Timestamp,
    /// Highest timestamp.
    pub last: Timestamp,
}

/// The footer of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Segment {
    /// Its number, from 1; of a merged one the last number that it stands for.
    pub number: u64,
    /// The first number that it stands for: its own, but for a merged one.
    pub first: u64,
    /// Of a merged one the hash of the footer of the last segment that it stands for, which the next one names; else zero.
    pub stands_for: Hash,
    /// Hash of the sealed footer of the segment before; zero for the first.
    pub previous: Hash,
    /// Epoch of the coordinator that wrote it. A segment of an epoch below an earlier one's does not count.
    pub epoch: u64,
    /// Drawn for this put, so that one that timed out but won is recognised.
    pub put_id: [u8; 16],
    /// When, milliseconds since 1970.
    pub at_millis: u64,
    /// Slots of one region.
    pub slots_per_region: u16,
    /// Nodes with news; none in a fence.
    pub nodes: Vec<SegmentNode>,
    /// Chunks, ascending by (region, node, number).
    pub chunks: Vec<SegmentChunk>,
}

/// The footer of a segment of a log whose states are consistent at some times only.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PointedSegment {
    /// As of any log.
    pub segment: Segment,
    /// The restore points that are whole with this segment and were not before, ascending: all changes of all nodes at or below
    /// each are in it or in earlier ones, and the nodes stood still together there.
    pub points: Vec<Timestamp>,
}

/// Numbers that an object stands for: one of a segment, several of a merged one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentRange {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl SegmentRange {
    /// That of a segment that was not merged.
    pub const fn one(number: u64) -> Self {
        Self { first: number, last: number }
    }

    /// Whether it stands for several.
    pub const fn is_merged(&self) -> bool {
        self.first < self.last
    }

    /// Where it lies.
    pub fn path(&self, cluster: &ClusterName) -> String {
        match self.is_merged() {
            true => paths::merged_log(cluster, self.first, self.last),
            false => paths::log(cluster, self.last),
        }
    }
}

impl Segment {
    /// What it stands for.
    pub fn range(&self) -> SegmentRange {
        SegmentRange { first: self.first, last: self.number }
    }
}

/// Where the footer of a segment lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// The data key of the footer.
    pub key_id: u32,
    /// Salt of the footer.
    pub salt: [u8; 16],
    /// First byte of the footer in the object.
    pub offset: u64,
    /// Bytes of the footer.
    pub len: u32,
    /// Version of the footer.
    pub version: u32,
}

impl Trailer {
    /// Its bytes.
    pub fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut out = [0; TRAILER_LEN];
        out[..4].copy_from_slice(&self.key_id.to_le_bytes());
        out[4..20].copy_from_slice(&self.salt);
        out[20..28].copy_from_slice(&self.offset.to_le_bytes());
        out[28..32].copy_from_slice(&self.len.to_le_bytes());
        out[32..36].copy_from_slice(&TRAILER_MAGIC);
        out[36..].copy_from_slice(&self.version.to_le_bytes());
        out
    }

    /// Reads it. `Damaged` without its magic, `Unsupported` for a newer footer.
    pub fn decode(bytes: &[u8; TRAILER_LEN]) -> Result<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[32..36] != TRAILER_MAGIC {
            return Err(Error::damaged("log segment: its trailer is not where it must be"));
        }
        if !matches!(word(36), FOOTER_VERSION | POINTED_FOOTER_VERSION) {
            return Err(Error::unsupported(format!(
                "log segment: a footer of version {} is newer than this build knows",
                word(36)
            )));
        }
        let mut salt = [0; 16];
        salt.copy_from_slice(&bytes[4..20]);
        let offset = u64::from(word(20)) | u64::from(word(24)) << 32;
        Ok(Self { key_id: word(0), salt, offset, len: word(28), version: word(36) })
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EntryKind {
    /// The record of a key, or that it is gone.
    #[default]
    Record,
    /// A command, or the last piece of one.
    Command,
    /// A piece of a command; the next entry goes on.
    CommandPart,
    /// A record with a piece of its value; the next entry goes on.
    RecordPart,
}

/// One change by reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEntry<'a> {
    /// Hash slot of the key.
    pub slot: u16,
    /// When it was committed.
    pub at: Timestamp,
    /// Key; of a command the first that it names.
    pub key: &'a [u8],
    /// Meta and value; `None` for a delete. Of a command its database (see [`database`]) and its bytes.
    pub put: Option<(&'a [u8], &'a [u8])>,
    /// What it is.
    pub kind: EntryKind,
}

impl LogEntry<'_> {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(match (self.kind, self.put) {
            (EntryKind::Record, Some(_)) => TAG_PUT,
            (EntryKind::Record, None) => TAG_DELETE,
            (EntryKind::Command, _) => TAG_COMMAND,
            (EntryKind::CommandPart, _) => TAG_COMMAND_PART,
            (EntryKind::RecordPart, _) => TAG_PUT_PART,
        });
        out.extend_from_slice(&self.slot.to_le_bytes());
        out.extend_from_slice(&self.at.0.to_le_bytes());
        put_varint(out, self.key.len() as u64);
        out.extend_from_slice(self.key);
        if let Some((meta, value)) = self.put {
            put_varint(out, meta.len() as u64);
            out.extend_from_slice(meta);
            put_varint(out, value.len() as u64);
            out.extend_from_slice(value);
        }
    }
}

/// Takes the next entry off the front of a raw chunk; `None` at its end.
pub fn take_entry<'a>(bytes: &mut &'a [u8]) -> Result<Option<LogEntry<'a>>> {
    let Some((&tag, _)) = bytes.split_first() else { return Ok(None) };
    let head = take(bytes, 11)?;
    let slot = u16::from_le_bytes([head[1], head[2]]);
    let mut at = [0; 8];
    at.copy_from_slice(&head[3..]);
    let len = take_varint(bytes)?;
    let key = take(bytes, len)?;
    let put = match tag {
        TAG_DELETE => None,
        TAG_PUT | TAG_COMMAND | TAG_COMMAND_PART | TAG_PUT_PART => {
            let len = take_varint(bytes)?;
            let meta = take(bytes, len)?;
            let len = take_varint(bytes)?;
            Some((meta, take(bytes, len)?))
        }
        other => return Err(Error::unsupported(format!("log entry of kind {other} is newer than this build"))),
    };
    let kind = match tag {
        TAG_COMMAND => EntryKind::Command,
        TAG_COMMAND_PART => EntryKind::CommandPart,
        TAG_PUT_PART => EntryKind::RecordPart,
        _ => EntryKind::Record,
    };
    Ok(Some(LogEntry { slot, at: Timestamp(u64::from_le_bytes(at)), key, put, kind }))
}

/// The database of a command, from the meta of its entry.
pub fn database(mut meta: &[u8]) -> Result<u64> {
    take_varint(&mut meta)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = (u16, u64, Vec<u8>, Option<(Vec<u8>, Vec<u8>)>);

    fn entries() -> impl Strategy<Value = Vec<Owned>> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
        let entry = (0u16..16384, any::<u64>(), bytes(), proptest::option::of((bytes(), bytes())));
        proptest::collection::vec(entry, 0..20)
    }

    fn encode(entries: &[Owned]) -> Vec<u8> {
        let mut out = Vec::new();
        for (slot, at, key, put) in entries {
            let put = put.as_ref().map(|(m, v)| (&m[..], &v[..]));
            LogEntry { slot: *slot, at: Timestamp(*at), key, put, kind: EntryKind::Record }.encode(&mut out);
        }
        out
    }

    fn decode(mut bytes: &[u8]) -> Result<Vec<Owned>> {
        let mut out = Vec::new();
        while let Some(e) = take_entry(&mut bytes)? {
            out.push((e.slot, e.at.0, e.key.to_vec(), e.put.map(|(m, v)| (m.to_vec(), v.to_vec()))));
        }
        Ok(out)
    }

    proptest! {
        #[test]
        fn entries_come_back(entries in entries()) {
            prop_assert_eq!(decode(&encode(&entries)).unwrap(), entries);
        }

        #[test]
        fn all_kinds_come_back(key in proptest::collection::vec(any::<u8>(), 0..9), kind in 0usize..4) {
            let kinds = [EntryKind::Record, EntryKind::Command, EntryKind::CommandPart, EntryKind::RecordPart];
            let entry = LogEntry { slot: 7, at: Timestamp(9), key: &key, put: Some((b"m", b"v")), kind: kinds[kind] };
            let mut out = Vec::new();
            entry.encode(&mut out);
            prop_assert_eq!(take_entry(&mut &out[..]).unwrap(), Some(entry));
        }

        #[test]
        fn cut_entries_are_damage_or_fewer(entries in entries(), cut in any::<prop::sample::Index>()) {
            let bytes = encode(&entries);
            let cut = cut.index(bytes.len() + 1);
            if let Ok(read) = decode(&bytes[..cut]) {
                prop_assert!(entries.starts_with(&read));
                prop_assert_eq!(encode(&read).len(), cut, "what reads is whole entries");
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn trailers_come_back(key_id in any::<u32>(), salt in any::<[u8; 16]>(), offset in any::<u64>(), len in any::<u32>(), version in 1u32..3) {
            let trailer = Trailer { key_id, salt, offset, len, version };
            prop_assert_eq!(Trailer::decode(&trailer.encode()).unwrap(), trailer);
            let mut bad = trailer.encode();
            bad[33] ^= 1;
            prop_assert!(Trailer::decode(&bad).is_err());
        }
    }
}
