//! Merging segments: a stretch of small ones becomes one object, region by region, so that replaying a long time is no long
//! walk over small objects. Nothing is left out: the same times can be restored.
//!
//! Segments are merged by tiers (`lines.rs`), some of one tier at a time, so that each is written anew a few times only. The merged
//! one is put beside those that it stands for; these are garbage from then on.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidemark_common::segment::ChunkWriter;
use tidemark_proto::hash::Hash;
use tidemark_proto::stored::log::{LogEntry, Segment, SegmentChunk, SegmentNode, take_entry};
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result, Timestamp};
use tokio::runtime::Handle;

use super::index::{SegmentInfo, hash_of};
use super::listing::Place;
use super::session::placed;
use crate::repository::Repository;

/// Merges `stretch` and puts the result. To be called on a thread that may block, within the runtime.
pub(super) fn merge(
    repository: &Repository,
    cluster: &ClusterName,
    stretch: &[Place],
    now_millis: u64,
) -> Result<SegmentInfo> {
    let io = Handle::current();
    let mut segments = Vec::with_capacity(stretch.len());
    let (mut points, mut stands_for): (Option<Vec<Timestamp>>, Hash) = (None, Hash::ZERO);
    for (range, size) in stretch {
        let read = io.block_on(repository.read_segment(cluster, *range, *size))?;
        if let Some(more) = read.points {
            points.get_or_insert_default().extend(more);
        }
        stands_for = hash_of(&read.segment, read.hash);
        segments.push(read.segment);
    }
    let nodes = nodes_of(repository, cluster, &segments)?;
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
        return Err(Error::bug("no segment to merge"));
    };
    let slots_per_region = first.slots_per_region;
    if segments.iter().any(|s| s.slots_per_region != slots_per_region) {
        return Err(Error::conflict("the segments have other regions"));
    }
    let (chunks, sealed) = rewrite(repository, cluster, &segments, &nodes)?;
    let mut merged = Segment {
        number: last.number,
        first: first.first,
        stands_for,
        previous: first.previous,
        epoch: last.epoch,
        put_id: rand::random(),
        at_millis: now_millis,
        slots_per_region,
        nodes: nodes.into_values().collect(),
        chunks,
    };
    let built = repository.build_segment(cluster, &mut merged, points.as_deref(), &sealed)?;
    let path = merged.range().path(cluster);
    match io.block_on(repository.store().create(&path, built.bytes.clone())) {
        Ok(()) => Ok(SegmentInfo::of(&merged, built.hash, built.bytes.len() as u64).with_points(points)),
        // Another coordinator has merged the same ones: its is as good.
        Err(e) if e.kind() == ErrorKind::Conflict => {
            let size = io.block_on(repository.store().size(&path))?;
            let read = io.block_on(repository.read_segment(cluster, merged.range(), size))?;
            Ok(SegmentInfo::of(&read.segment, read.hash, read.size).with_points(read.points))
        }
        Err(e) => Err(e),
    }
}

/// What each node gave to all of them together, with a batch key of its own.
fn nodes_of(
    repository: &Repository,
    cluster: &ClusterName,
    segments: &[Segment],
) -> Result<BTreeMap<NodeName, SegmentNode>> {
    let mut nodes: BTreeMap<NodeName, SegmentNode> = BTreeMap::new();
    for node in segments.iter().flat_map(|s| &s.nodes) {
        match nodes.get_mut(&node.node) {
            None => {
                let key = repository.draw_batch(cluster, &node.node);
                let (key_id, salt) = (key.key_id, key.salt);
                let _ = nodes.insert(node.node.clone(), SegmentNode { key_id, salt, ..node.clone() });
            }
            Some(sum) if sum.to == node.from && sum.incarnation == node.incarnation && sum.slots == node.slots => {
                (sum.to, sum.closed) = (node.to, node.closed);
            }
            Some(_) => return Err(Error::conflict(format!("the log of node {} is not one chain", node.node))),
        }
    }
    Ok(nodes)
}

type Chunks = (Vec<SegmentChunk>, Vec<Bytes>);

/// All entries, by region and node, sorted anew.
fn rewrite(
    repository: &Repository,
    cluster: &ClusterName,
    segments: &[Segment],
    nodes: &BTreeMap<NodeName, SegmentNode>,
) -> Result<Chunks> {
    let mut all = Vec::new();
    for (place, (name, node)) in nodes.iter().enumerate() {
        let sealer = repository.batch_sealer(cluster, node)?;
        let mut writer = ChunkWriter::new(&sealer, segments.first().map_or(1, |s| s.slots_per_region))?;
        let regions: BTreeSet<u16> = chunks_of(segments, name).map(|(_, c)| c.region).collect();
        for region in regions {
            let mut raw = Vec::new();
            for (segment, chunk) in chunks_of(segments, name).filter(|(_, c)| c.region == region) {
                let path = segment.range().path(cluster);
                let read = repository.store().get_range(&path, chunk.offset, u64::from(chunk.len));
                let sealed = Handle::current().block_on(read)?;
                raw.push(repository.open_segment_chunk(cluster, segment, chunk, sealed.to_vec())?);
            }
            let mut entries: Vec<LogEntry<'_>> = Vec::new();
            for mut rest in raw.iter().map(Vec::as_slice) {
                while let Some(entry) = take_entry(&mut rest)? {
                    entries.push(entry);
                }
            }
            // Pieces of one command stay behind each other.
            entries.sort_by(|a, b| (a.slot, a.key, a.at).cmp(&(b.slot, b.key, b.at)));
            entries.iter().try_for_each(|entry| writer.push(entry))?;
        }
        for (number, (c, sealed)) in writer.finish()?.into_iter().enumerate() {
            all.push((placed(place as u16, number as u32, c), Bytes::from(sealed)));
        }
    }
    all.sort_by_key(|(c, _)| (c.region, c.node, c.number));
    Ok(all.into_iter().unzip())
}

/// The chunks of a node, in the order of the segments.
fn chunks_of<'s>(
    segments: &'s [Segment],
    name: &'s NodeName,
) -> impl Iterator<Item = (&'s Segment, &'s SegmentChunk)> {
    segments.iter().flat_map(move |segment| {
        let place = segment.nodes.iter().position(|n| n.node == *name);
        segment.chunks.iter().filter(move |c| Some(usize::from(c.node)) == place).map(move |c| (segment, c))
    })
}
