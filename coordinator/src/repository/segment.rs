//! Log segments as objects: building them from sealed chunks, and reading footers and chunks by ranges. The format is in
//! [`tidemark_proto::stored::log`].

use bytes::Bytes;
use tidemark_common::run::{open_bytes, seal_bytes};
use tidemark_common::seal::Sealer;
use tidemark_common::segment::open_chunk;
use tidemark_proto::frame;
use tidemark_proto::hash::Hash;
use tidemark_proto::stored::envelope::{self, CHECKSUM_LEN, FLAG_SEALED, HEADER_LEN, ObjectKind};
use tidemark_proto::stored::log::{
    FOOTER_VERSION, MAX_FOOTER, POINTED_FOOTER_VERSION, PointedSegment, Segment, SegmentChunk, SegmentNode,
    SegmentRange, TRAILER_LEN, Trailer, VERSION,
};
use tidemark_proto::stored::run::SEAL_OBJECT;
use tidemark_proto::{ClusterName, Error, NodeName, Result, Timestamp};

use super::Repository;

/// Bytes read from the end of a segment at first: most footers fit.
const TAIL: u64 = 64 << 10;
/// Smallest object that may be a segment.
const MIN: u64 = (HEADER_LEN + TRAILER_LEN + CHECKSUM_LEN) as u64;
/// Region in the tag of a batch: batches hold many.
const ALL_REGIONS: u16 = u16::MAX;

/// A segment, built.
#[derive(Debug, Clone)]
pub struct BuiltSegment {
    /// Its bytes.
    pub bytes: Bytes,
    /// Hash of its sealed footer, which the next one names.
    pub hash: Hash,
}

/// A segment's footer, read.
#[derive(Debug, Clone)]
pub struct ReadSegment {
    /// The footer.
    pub segment: Segment,
    /// Restore points that it makes whole, of a log whose states are consistent at some times only; `None` where all are.
    pub points: Option<Vec<Timestamp>>,
    /// Hash of its sealed bytes.
    pub hash: Hash,
    /// Bytes of the whole object.
    pub size: u64,
}

/// What opens the chunks of one batch, and what its sender seals them with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchKey {
    /// The data key.
    pub key_id: u32,
    /// Salt of the batch.
    pub salt: [u8; 16],
    /// What identifies the batch in its seals.
    pub tag: [u8; 16],
}

/// The end of an object: everything from the footer on.
struct Tail<'a> {
    trailer: Trailer,
    footer: &'a [u8],
}

impl Repository {
    /// Draws the key of a batch of `node`.
    pub fn draw_batch(&self, cluster: &ClusterName, node: &NodeName) -> BatchKey {
        let (key_id, salt) = (self.keys().current(), rand::random());
        BatchKey { key_id, salt, tag: self.batch_tag(cluster, node, &salt) }
    }

    /// What identifies a batch of `node` in the associated data of its seals.
    pub fn batch_tag(&self, cluster: &ClusterName, node: &NodeName, salt: &[u8; 16]) -> [u8; 16] {
        let name = [b"log/", node.as_str().as_bytes()].concat();
        self.keys().run_tag(cluster, ALL_REGIONS, &name, salt)
    }

    /// The sealer of a batch that is in a segment.
    pub fn batch_sealer(&self, cluster: &ClusterName, node: &SegmentNode) -> Result<Sealer> {
        let tag = self.batch_tag(cluster, &node.node, &node.salt);
        Ok(Sealer::new(&self.keys().subkey(node.key_id, &node.salt)?, tag, node.key_id != 0))
    }

    /// Puts a segment together: `chunks` are the sealed chunks in the order of `segment.chunks`, whose places are filled in; `points`
    /// as in [`ReadSegment`].
    pub fn build_segment(
        &self,
        cluster: &ClusterName,
        segment: &mut Segment,
        points: Option<&[Timestamp]>,
        chunks: &[Bytes],
    ) -> Result<BuiltSegment> {
        let bulk: usize = chunks.iter().map(Bytes::len).sum();
        let mut out = Vec::with_capacity(HEADER_LEN + bulk + (16 << 10));
        out.extend_from_slice(&envelope::header(ObjectKind::Segment, VERSION, FLAG_SEALED));
        for (entry, sealed) in segment.chunks.iter_mut().zip(chunks) {
            (entry.offset, entry.len) = (out.len() as u64, sealed.len() as u32);
            out.extend_from_slice(sealed);
        }
        let (key_id, salt) = (self.keys().current(), rand::random::<[u8; 16]>());
        let sealer = self.keys().object_sealer(cluster, &segment.range().path(cluster), key_id, &salt)?;
        let (version, archive) = match points {
            None => (FOOTER_VERSION, frame::to_archive(segment)),
            Some(points) => {
                let pointed = PointedSegment { segment: segment.clone(), points: points.to_vec() };
                (POINTED_FOOTER_VERSION, frame::to_archive(&pointed))
            }
        };
        let footer = seal_bytes(&sealer, SEAL_OBJECT, ObjectKind::Segment as u32, &archive)?;
        let trailer = Trailer { key_id, salt, offset: out.len() as u64, len: footer.len() as u32, version };
        let hash = Hash::of(&footer);
        out.extend_from_slice(&footer);
        out.extend_from_slice(&trailer.encode());
        let sum = envelope::checksum(&out);
        out.extend_from_slice(&sum);
        Ok(BuiltSegment { bytes: out.into(), hash })
    }

    /// Reads the footer of the segment of `range`, an object of `size` bytes, by one or two ranged reads. `Damaged` when it does
    /// not open or is not that segment's.
    pub async fn read_segment(&self, cluster: &ClusterName, range: SegmentRange, size: u64) -> Result<ReadSegment> {
        let path = range.path(cluster);
        let read = async {
            if size < MIN {
                return Err(Error::damaged(format!("log segment: cut short to {size} bytes")));
            }
            let mut at = size.saturating_sub(TAIL);
            let mut bytes = self.store().get_range(&path, at, size - at).await?;
            let trailer = trailer_of(&bytes)?;
            if trailer.offset < at {
                at = trailer.offset;
                bytes = self.store().get_range(&path, at, size - at).await?;
            }
            self.open_footer(cluster, range, tail_of(&bytes, at)?, size)
        };
        read.await.map_err(|e: Error| e.context(&path))
    }

    /// Checks a whole segment: its checksum, its footer, and that every chunk opens; answers the footer.
    pub fn check_segment(&self, cluster: &ClusterName, range: SegmentRange, bytes: &Bytes) -> Result<ReadSegment> {
        let _ = envelope::unwrap(ObjectKind::Segment, VERSION, bytes)?;
        let read = self.open_footer(cluster, range, tail_of(bytes, 0)?, bytes.len() as u64)?;
        for chunk in &read.segment.chunks {
            let (from, to) = (chunk.offset as usize, chunk.offset as usize + chunk.len as usize);
            let sealed =
                bytes.get(from..to).ok_or_else(|| Error::damaged("log segment: a chunk lies outside it"))?;
            let _ = self.open_segment_chunk(cluster, &read.segment, chunk, sealed.to_vec())?;
        }
        Ok(read)
    }

    /// Opens one chunk: its raw entries.
    pub fn open_segment_chunk(
        &self,
        cluster: &ClusterName,
        segment: &Segment,
        chunk: &SegmentChunk,
        mut sealed: Vec<u8>,
    ) -> Result<Vec<u8>> {
        let node = segment.nodes.get(usize::from(chunk.node));
        let node = node.ok_or_else(|| Error::damaged("log segment: a chunk of a node that is not in it"))?;
        open_chunk(&self.batch_sealer(cluster, node)?, chunk.number, &mut sealed)
            .map_err(|e| e.context(format_args!("{}, region {}", segment.range().path(cluster), chunk.region)))
    }

    fn open_footer(
        &self,
        cluster: &ClusterName,
        range: SegmentRange,
        tail: Tail<'_>,
        size: u64,
    ) -> Result<ReadSegment> {
        let Tail { trailer, footer } = tail;
        let path = range.path(cluster);
        let sealer = self.keys().object_sealer(cluster, &path, trailer.key_id, &trailer.salt)?;
        let hash = Hash::of(footer);
        let raw = open_bytes(&sealer, SEAL_OBJECT, ObjectKind::Segment as u32, &mut footer.to_vec(), MAX_FOOTER)?;
        let (segment, points) = match trailer.version {
            POINTED_FOOTER_VERSION => {
                let PointedSegment { segment, points } = frame::from_archive(&raw)?;
                (segment, Some(points))
            }
            _ => (frame::from_archive::<Segment>(&raw)?, None),
        };
        let inside = |c: &SegmentChunk| c.offset + u64::from(c.len) <= trailer.offset;
        if segment.range() != range || !segment.chunks.iter().all(inside) {
            return Err(Error::damaged("log segment: its footer is of another segment"));
        }
        if !segment.nodes.iter().all(|n| n.slots.is_canonical()) {
            return Err(Error::damaged("log segment: a slot set is not in order"));
        }
        Ok(ReadSegment { segment, points, hash, size })
    }
}

fn trailer_of(end: &[u8]) -> Result<Trailer> {
    let at = end.len().checked_sub(CHECKSUM_LEN + TRAILER_LEN);
    let bytes = at.and_then(|at| end[at..].first_chunk::<TRAILER_LEN>());
    Trailer::decode(bytes.ok_or_else(|| Error::damaged("log segment: too short for its trailer"))?)
}

/// The footer in `bytes`, which begin at `at` of the object and go to its end.
fn tail_of(bytes: &[u8], at: u64) -> Result<Tail<'_>> {
    let trailer = trailer_of(bytes)?;
    let end = bytes.len() - CHECKSUM_LEN - TRAILER_LEN;
    let from = trailer.offset.checked_sub(at).and_then(|o| usize::try_from(o).ok());
    let footer = from.filter(|f| f.checked_add(trailer.len as usize) == Some(end)).map(|f| &bytes[f..end]);
    let footer = footer.ok_or_else(|| Error::damaged("log segment: its trailer does not lead to its footer"))?;
    Ok(Tail { trailer, footer })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidemark_common::segment::{ChunkWriter, each_entry};
    use tidemark_proto::stored::log::LogEntry;
    use tidemark_proto::stored::paths;
    use tidemark_proto::{Incarnation, SlotSet};

    use super::super::{MasterKey, Store, StoreConfig};
    use super::*;

    async fn repository(encrypted: bool) -> Repository {
        let store = Store::open(&StoreConfig { url: "memory:///".into(), ..StoreConfig::default() }).unwrap();
        let master = encrypted.then(MasterKey::generate);
        Repository::init(store, master.as_ref(), 1).await.unwrap()
    }

    fn built(
        repository: &Repository,
        cluster: &ClusterName,
        entries: &[(u16, u64)],
        points: Option<&[Timestamp]>,
    ) -> (Segment, BuiltSegment) {
        let name = NodeName::new("n1").unwrap();
        let key = repository.draw_batch(cluster, &name);
        let node = SegmentNode {
            node: name,
            incarnation: Incarnation::from_u128(1),
            slots: SlotSet::all(),
            from: 1,
            to: 9,
            closed: Timestamp(9),
            key_id: key.key_id,
            salt: key.salt,
            begins: 0,
        };
        let sealer = repository.batch_sealer(cluster, &node).unwrap();
        let mut writer = ChunkWriter::new(&sealer, 64).unwrap();
        for (slot, at) in entries {
            writer
                .push(&LogEntry {
                    slot: *slot,
                    at: Timestamp(*at),
                    key: b"k",
                    put: Some((b"", b"v")),
                    kind: Default::default(),
                })
                .unwrap();
        }
        let (chunks, sealed): (Vec<_>, Vec<_>) = writer.finish().unwrap().into_iter().unzip();
        let place = |(i, c): (usize, tidemark_proto::wire::bulk::LogChunk)| SegmentChunk {
            node: 0,
            region: c.region,
            number: i as u32,
            offset: 0,
            len: 0,
            raw_len: c.raw_len,
            entries: c.entries,
            first: c.first,
            last: c.last,
        };
        let mut segment = Segment {
            number: 3,
            first: 3,
            stands_for: Hash::ZERO,
            previous: Hash::ZERO,
            epoch: 1,
            put_id: [1; 16],
            at_millis: 5,
            slots_per_region: 64,
            nodes: vec![node],
            chunks: chunks.into_iter().enumerate().map(place).collect(),
        };
        let sealed: Vec<Bytes> = sealed.into_iter().map(Bytes::from).collect();
        let built = repository.build_segment(cluster, &mut segment, points, &sealed).unwrap();
        (segment, built)
    }

    #[tokio::test]
    async fn segments_come_back_by_ranges_and_every_flipped_bit_is_found() {
        let cluster = ClusterName::new("c").unwrap();
        for (encrypted, points) in [(true, None), (false, None), (true, Some(vec![Timestamp(7), Timestamp(8)]))] {
            let repository = repository(encrypted).await;
            let entries = [(1, 5), (2, 6), (100, 7), (9000, 8)];
            let (segment, built) = built(&repository, &cluster, &entries, points.as_deref());
            let path = paths::log(&cluster, 3);
            repository.store().create(&path, built.bytes.clone()).await.unwrap();
            let read =
                repository.read_segment(&cluster, SegmentRange::one(3), built.bytes.len() as u64).await.unwrap();
            assert_eq!((&read.segment, read.hash, read.points), (&segment, built.hash, points.clone()));
            let mut seen = Vec::new();
            for chunk in &segment.chunks {
                let sealed = repository.store().get_range(&path, chunk.offset, u64::from(chunk.len)).await.unwrap();
                let raw = repository.open_segment_chunk(&cluster, &segment, chunk, sealed.to_vec()).unwrap();
                each_entry(&raw, |e| {
                    seen.push((e.slot, e.at.0));
                    Ok(())
                })
                .unwrap();
            }
            assert_eq!(seen, [(1, 5), (2, 6), (100, 7), (9000, 8)]);
            let _ = repository.check_segment(&cluster, SegmentRange::one(3), &built.bytes).unwrap();
            assert!(
                repository.check_segment(&cluster, SegmentRange::one(4), &built.bytes).is_err(),
                "under another number"
            );
            for bit in 0..built.bytes.len() * 8 {
                let mut bad = built.bytes.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(
                    repository.check_segment(&cluster, SegmentRange::one(3), &bad.into()).is_err(),
                    "bit {bit}"
                );
            }
            for len in 0..built.bytes.len() {
                assert!(tail_of(&built.bytes[..len], 0).is_err(), "length {len}");
            }
        }
    }

    proptest! {
        #[test]
        fn noise_is_no_segment(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in any::<u64>()) {
            let _ = tail_of(&bytes, at);
        }
    }
}
