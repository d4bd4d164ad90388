//! Merging segments: a stretch of small ones becomes one object, region by region, so that replaying a long time is no long
//! walk over small objects. Nothing is left out: the same times can be restored.
//!
//! Segments are merged by tiers, [`FAN`] of one tier at a time, so that each is written anew a few times only. The merged
//! one is put beside those that it stands for; these are garbage from then on.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidemark_common::segment::ChunkWriter;
use tidemark_proto::hash::Hash;
use tidemark_proto::stored::log::{LogEntry, Segment, SegmentChunk, SegmentNode, SegmentRange, take_entry};
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result};
use tokio::runtime::Handle;

use super::index::{Found, LogIndex, SegmentInfo};
use super::session::placed;
use crate::repository::Repository;

/// Segments that are merged at a time.
pub(super) const FAN: usize = 16;
/// Largest merged segment, in bytes, about.
const MOST_BYTES: u64 = 32 << 20;
/// The newest segments are left alone: their window is still in motion.
const LEAVE: usize = 4;

/// How often a segment was merged: it stands for about `FAN` to the power of this many.
fn tier(range: SegmentRange) -> u32 {
    (range.last - range.first + 1).ilog(FAN as u64)
}

/// A stretch to merge, if there is one: of one tier, chained, and not too large.
pub(super) fn candidate(index: &LogIndex) -> Option<Vec<SegmentInfo>> {
    let entries = index.entries();
    let settled = &entries[..entries.len().saturating_sub(LEAVE)];
    let mut run: Vec<&SegmentInfo> = Vec::new();
    for found in settled {
        let Found::Segment(segment) = found else {
            run.clear();
            continue;
        };
        let fits = |last: &SegmentInfo| {
            tier(last.range) == tier(segment.range)
                && last.epoch <= segment.epoch
                && last.range.last + 1 == segment.range.first
        };
        if !run.last().is_none_or(|last| fits(last)) || segment.nodes.iter().any(|n| n.begins || n.branches) {
            run.clear();
        }
        if segment.nodes.iter().any(|n| n.begins || n.branches) || segment.size > MOST_BYTES / 2 {
            continue;
        }
        run.push(segment);
        while run.iter().map(|s| s.size).sum::<u64>() > MOST_BYTES {
            let _ = run.remove(0);
        }
        if run.len() == FAN {
            return Some(run.into_iter().cloned().collect());
        }
    }
    None
}

/// Merges `stretch` and puts the result. To be called on a thread that may block, within the runtime.
pub(super) fn merge(
    repository: &Repository,
    cluster: &ClusterName,
    stretch: &[SegmentInfo],
    now_millis: u64,
) -> Result<SegmentInfo> {
    let io = Handle::current();
    let mut segments = Vec::with_capacity(stretch.len());
    for info in stretch {
        segments.push(io.block_on(repository.read_segment(cluster, info.range, info.size))?.segment);
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
        stands_for: stretch.last().map_or(Hash::ZERO, |s| s.hash),
        previous: first.previous,
        epoch: last.epoch,
        put_id: rand::random(),
        at_millis: now_millis,
        slots_per_region,
        nodes: nodes.into_values().collect(),
        chunks,
    };
    let pointed = stretch.iter().any(|s| s.points.is_some());
    let points =
        pointed.then(|| stretch.iter().flat_map(|s| s.points.iter().flatten().copied()).collect::<Vec<_>>());
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

#[cfg(test)]
mod tests {
    use tidemark_proto::{Incarnation, SlotSet, Timestamp};

    use super::super::index::NodeSpan;
    use super::*;

    fn info(first: u64, last: u64, size: u64, begins: bool) -> SegmentInfo {
        let node = NodeSpan {
            node: NodeName::new("n").unwrap(),
            incarnation: Incarnation::from_u128(1),
            slots: SlotSet::all(),
            from: first,
            to: last,
            closed: Timestamp(last),
            begins,
            branches: false,
        };
        SegmentInfo { range: SegmentRange { first, last }, size, epoch: 1, nodes: vec![node], ..Default::default() }
    }

    fn ranges(infos: &[SegmentInfo]) -> Option<(u64, u64)> {
        let index = infos.iter().cloned().fold(LogIndex::default(), |mut index, info| {
            index.push(info);
            index
        });
        let stretch = candidate(&index)?;
        assert_eq!(stretch.len(), FAN);
        Some((stretch[0].range.first, stretch[FAN - 1].range.last))
    }

    #[test]
    fn stretches_are_of_one_tier_and_the_newest_are_left_alone() {
        let plain = |from: u64, to: u64| (from..=to).map(|n| info(n, n, 1000, false)).collect::<Vec<_>>();
        assert_eq!(ranges(&plain(1, 19)), None);
        assert_eq!(ranges(&plain(1, 20)), Some((1, 16)));
        let merged = [vec![info(1, 16, 9000, false)], plain(17, 36)].concat();
        assert_eq!(ranges(&merged), Some((17, 32)));
        let tiers: Vec<_> = (0..16).map(|i| info(i * 16 + 1, i * 16 + 16, 9000, false)).collect();
        assert_eq!(ranges(&[tiers, plain(257, 260)].concat()), Some((1, 256)));
    }

    #[test]
    fn breaks_and_large_ones_are_not_merged() {
        let mut infos: Vec<_> = (1..=40u64).map(|n| info(n, n, 1000, n == 10)).collect();
        assert_eq!(ranges(&infos), Some((11, 26)), "behind a break");
        infos[14].size = MOST_BYTES;
        assert_eq!(ranges(&infos), Some((16, 31)), "behind a large one");
        infos.iter_mut().for_each(|i| i.size = MOST_BYTES / 8);
        assert_eq!(ranges(&infos), None, "sixteen are too much");
    }
}
