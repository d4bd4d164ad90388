//! The manifest: the root of one backup and its pages of part entries, each an object named by its hash.

use rkyv::{Archive, Deserialize, Serialize};

use crate::frame;
use crate::hash::{Hash, SetDigest};
use crate::id::{ClusterName, Incarnation, JobId, NodeName, PackId, RepositoryId};
use crate::slot::SlotSet;
use crate::time::Timestamp;
use crate::wire::control::{Held, Ownership, Sealed};

/// Version of [`Root`] and [`Page`].
pub const VERSION: u8 = 1;
/// Version of [`RootWithKept`].
pub const VERSION_WITH_KEPT: u8 = 2;
/// Part entries of one page at most.
pub const PAGE_PARTS: usize = 1024;

/// A stretch of bytes in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Extent {
    /// The pack.
    pub pack: PackId,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// One run of a part.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RunEntry {
    /// State that it was read from.
    pub at: Timestamp,
    /// The data key its subkey is derived from; 0 for a repository without encryption.
    pub key_id: u32,
    /// Salt of the attempt.
    pub salt: [u8; 16],
    /// Blocks.
    pub blocks: u32,
    /// Records: puts and deletes.
    pub records: u64,
    /// Bytes of keys, meta and values.
    pub raw_bytes: u64,
    /// Where the sealed blocks lie, in order, each with its length in front.
    pub extents: Vec<Extent>,
    /// Where the sealed index lies.
    pub index: Extent,
}

impl RunEntry {
    /// Bytes that the run takes in packs.
    pub fn stored_bytes(&self) -> u64 {
        self.index.len + self.extents.iter().map(|e| e.len).sum::<u64>()
    }
}

/// One part: a region on one node.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PartEntry {
    /// Region.
    pub region: u16,
    /// Node that it came from, by its place in [`Root::nodes`].
    pub node: u16,
    /// Its slots.
    pub slots: SlotSet,
    /// First sort key (slot big-endian ++ key); empty = from the beginning.
    pub lower: Vec<u8>,
    /// First sort key past it; empty = to the end.
    pub upper: Vec<u8>,
    /// Digest of the live records at the cut.
    pub digest: SetDigest,
    /// Bytes of live keys, meta and values at the cut.
    pub live_bytes: u64,
    /// Runs, oldest first: a base and its deltas.
    pub runs: Vec<RunEntry>,
}

impl PartEntry {
    /// The hash by which a later backup names this part as a parent.
    pub fn hash(&self) -> Hash {
        Hash::of(&frame::to_archive(self))
    }

    /// [`Self::live_bytes`] as told, and 0 where they have come to less than nothing (wrapped): agents of earlier builds told what a
    /// record had taken when it was stored and what it took when it went, which are two things where a store encodes it anew meanwhile.
    pub fn live(&self) -> u64 {
        if i64::try_from(self.live_bytes).is_ok() { self.live_bytes } else { 0 }
    }
}

/// A page of part entries, ascending by (first slot, lower).
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Page {
    /// The entries.
    pub parts: Vec<PartEntry>,
    /// Live bytes of each pack that the entries name, so that collection opens no index.
    pub packs: Vec<(PackId, u64)>,
}

/// Names a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PageRef {
    /// Hash of the stored bytes, and name.
    pub hash: Hash,
    /// Number of part entries.
    pub parts: u32,
}

/// The evidence of one node, and what was taken from it.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Name.
    pub node: NodeName,
    /// Id of its data.
    pub incarnation: Incarnation,
    /// Version of its engine.
    pub engine_version: String,
    /// First reading.
    pub held: Held,
    /// Second reading.
    pub sealed: Sealed,
    /// Ownership after the release.
    pub released: Ownership,
    /// How long its writes were held, in microseconds.
    pub held_micros: u64,
    /// Slots taken from it.
    pub slots: SlotSet,
}

/// Sums over a backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize)]
pub struct Totals {
    /// Parts.
    pub parts: u64,
    /// Live records.
    pub records: u64,
    /// Bytes of live keys, meta and values.
    pub live_bytes: u64,
    /// Bytes read from the stores for this backup.
    pub read_bytes: u64,
    /// Bytes that this backup added to packs.
    pub new_bytes: u64,
    /// Bytes in packs that a restore of it reads.
    pub stored_bytes: u64,
    /// Parts written as full runs.
    pub full_parts: u64,
    /// Parts that got a delta run.
    pub delta_parts: u64,
    /// Parts in which nothing changed.
    pub same_parts: u64,
}

/// The root of one backup.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Root {
    /// The repository.
    pub repository: RepositoryId,
    /// The cluster.
    pub cluster: ClusterName,
    /// The job that made it; also the backup's id.
    pub job: JobId,
    /// Engine of the cluster.
    pub engine: String,
    /// The cut.
    pub cut: Timestamp,
    /// Attempt at the cut that held.
    pub cut_attempt: u32,
    /// When the job began, milliseconds since 1970.
    pub started_millis: u64,
    /// When the manifest was written, milliseconds since 1970.
    pub finished_millis: u64,
    /// 1: made by hand; 0: by a schedule.
    pub manual: u8,
    /// Root of the backup whose runs this one builds on; zero for none.
    pub parent: Hash,
    /// Slots of one region.
    pub slots_per_region: u16,
    /// The nodes with their evidence.
    pub nodes: Vec<NodeEntry>,
    /// The pages, in order.
    pub pages: Vec<PageRef>,
    /// Sums.
    pub totals: Totals,
}

/// Names the kept things of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct KeptRef {
    /// Hash of the stored bytes, and name.
    pub hash: Hash,
    /// Their number.
    pub bytes: u64,
}

/// The root of a backup whose nodes keep more than records: version 2 of the object.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RootWithKept {
    /// As in version 1.
    pub root: Root,
    /// What they keep.
    pub kept: KeptRef,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_bytes_below_nothing_are_none() {
        let part = |live_bytes: u64| PartEntry {
            region: 0,
            node: 0,
            slots: SlotSet::EMPTY,
            lower: Vec::new(),
            upper: Vec::new(),
            digest: SetDigest::default(),
            live_bytes,
            runs: Vec::new(),
        };
        assert_eq!([0, 5, u64::MAX, 7u64.wrapping_sub(8)].map(|told| part(told).live()), [0, 5, 0, 0]);
    }
}
