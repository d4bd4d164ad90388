//! The chunks of a log of commands in the order in which they are worked off.
//!
//! Within a segment the chunks of one node make a group, whose commands are in order when they are in the order of their times: those
//! of its regions together with those of no single region. Of several nodes those come first that owned the slots before the
//! segment, because a slot that moved is written by its old node first and begins anew on the other; [`moves`] holds that over all
//! segments. Before all of them come nodes
//! that a slot only passed through: what they did to its keys came with these to the node that owns it since, and is void.

use std::collections::{BTreeSet, HashMap};

use tidemark_proto::stored::log::{ALL_REGIONS, Segment};
use tidemark_proto::stored::manifest::NodeEntry;
use tidemark_proto::{Error, NodeName, Result, SlotSet};

use super::point::{LogParts, Piece};

mod moves;

/// Chunks of one node and one stretch of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its chunks.
    pub pieces: Vec<Piece>,
    /// The slots that the node owned before, or owns since: those that its `FLUSHALL` empties.
    pub slots: SlotSet,
}

/// What a node of a segment owned before it, and what it owned before or owns since.
#[derive(Debug, Clone)]
struct Owned {
    before: SlotSet,
    ever: SlotSet,
}

/// Slots that a segment finds with another node than the one before: from, to, which.
type Move = (NodeName, NodeName, SlotSet);

/// Slots of the nodes of each segment, and which of them moved.
#[derive(Debug)]
pub(super) struct Owners(Vec<Vec<Owned>>, Vec<Move>);

impl Owners {
    /// Follows who owns which slots, from the nodes of the backup on.
    pub(super) fn new(segments: &[Segment], base: &[NodeEntry]) -> Self {
        let mut owned: HashMap<NodeName, SlotSet> =
            base.iter().map(|n| (n.node.clone(), n.slots.clone())).collect();
        let mut moves = Vec::new();
        let of_segment = |segment: &Segment| {
            let of_node = |owned: &HashMap<NodeName, SlotSet>, node: &NodeName, now: &SlotSet| {
                let before = owned.get(node).cloned().unwrap_or(SlotSet::EMPTY);
                Owned { ever: before.union(now), before }
            };
            let nodes = segment.nodes.iter().map(|n| of_node(&owned, &n.node, &n.slots)).collect();
            for node in &segment.nodes {
                let others = owned.iter().filter(|(other, _)| **other != node.node);
                let came =
                    others.map(|(other, slots)| (other.clone(), node.node.clone(), slots.intersect(&node.slots)));
                moves.extend(came.filter(|(.., slots)| !slots.is_empty()));
            }
            for node in &segment.nodes {
                owned.values_mut().for_each(|slots| *slots = slots.minus(&node.slots));
                let _ = owned.insert(node.node.clone(), node.slots.clone());
            }
            nodes
        };
        let owned = segments.iter().map(of_segment).collect();
        Self(owned, moves)
    }
}

/// What is chosen of one segment: chunks by node, with their regions.
type Chosen = Vec<Vec<(u16, Piece)>>;

impl LogParts {
    /// The groups with commands for some of `slots`, in order; `base` are the nodes of the backup under the log. `Unsupported` where
    /// slots went to and fro between nodes within one segment while these emptied their databases.
    pub fn groups(&self, slots: &SlotSet, base: &[NodeEntry]) -> Result<Vec<Group>> {
        let owners = self.owners.get_or_init(|| Owners::new(&self.segments, base));
        let (candidates, mut out) = (self.candidates(slots), Vec::new());
        for pieces in candidates.chunk_by(|a, b| a.segment == b.segment) {
            let place = pieces[0].segment as usize;
            let (segment, owned) = (&self.segments[place], &owners.0[place]);
            let each = segment.slots_per_region.max(1);
            let mut chosen: Chosen = vec![Vec::new(); segment.nodes.len()];
            for piece in pieces {
                let chunk = self.chunk(*piece).1;
                let node = usize::from(chunk.node);
                let of_node = owned.get(node).ok_or_else(|| {
                    Error::damaged(format!("log segment {}: a chunk of a node that is not in it", segment.number))
                })?;
                let wanted = match chunk.region {
                    ALL_REGIONS => !of_node.ever.intersect(slots).is_empty(),
                    region => !region_slots(region, each).intersect(slots).is_empty(),
                };
                if wanted {
                    chosen[node].push((chunk.region, *piece));
                }
            }
            order(segment, owned, chosen, &mut out)?;
        }
        let moved = owners.1.iter().filter(|(.., which)| !which.intersect(slots).is_empty());
        let moved: BTreeSet<(NodeName, NodeName)> = moved.map(|(from, to, _)| (from.clone(), to.clone())).collect();
        if moved.is_empty() {
            return Ok(out);
        }
        let places = moves::after_moves(&out.iter().map(|group| self.node(group)).collect::<Vec<_>>(), &moved);
        let mut out: Vec<Option<Group>> = out.into_iter().map(Some).collect();
        Ok(places.into_iter().filter_map(|place| out[place].take()).collect())
    }

    /// The node of a group.
    fn node(&self, group: &Group) -> &NodeName {
        let (segment, chunk) = self.chunk(group.pieces[0]);
        &segment.nodes[usize::from(chunk.node)].node
    }

    /// Chunks that may hold commands for some of `slots`, by segment.
    fn candidates(&self, slots: &SlotSet) -> Vec<Piece> {
        let mut pieces = self.everywhere().to_vec();
        for region in self.regions() {
            if !region_slots(region, self.slots_per_region.max(1)).intersect(slots).is_empty() {
                pieces.extend(self.pieces(region));
            }
        }
        pieces.sort_unstable_by_key(|p| (p.segment, p.chunk));
        pieces.dedup();
        pieces
    }

    /// The slots that the node of a chunk owned before its segment, or owns since.
    pub fn owner(&self, piece: Piece, base: &[NodeEntry]) -> SlotSet {
        let owners = self.owners.get_or_init(|| Owners::new(&self.segments, base));
        let node = usize::from(self.chunk(piece).1.node);
        let of_segment = owners.0.get(piece.segment as usize);
        of_segment.and_then(|nodes| nodes.get(node)).map_or(SlotSet::EMPTY, |owned| owned.ever.clone())
    }
}

fn region_slots(region: u16, each: u16) -> SlotSet {
    let first = u32::from(region) * u32::from(each);
    let last = (first + u32::from(each) - 1).min(u32::from(tidemark_proto::slot::SLOT_COUNT - 1));
    if first > last { SlotSet::EMPTY } else { SlotSet::range(first as u16, last as u16) }
}

/// The slots of regions that a node has commands for and owns nothing of, neither before nor since.
fn passed_through<'c>(
    segment: &Segment,
    owned: &'c Owned,
    chosen: &'c [(u16, Piece)],
) -> impl Iterator<Item = SlotSet> + use<'c> {
    let each = segment.slots_per_region.max(1);
    let regions = chosen.iter().filter(|(region, _)| *region != ALL_REGIONS);
    regions
        .map(move |(region, _)| region_slots(*region, each))
        .filter(|slots| slots.intersect(&owned.ever).is_empty())
}

/// Orders the nodes of one segment and appends a group for each, or one for each of its regions where no order fits all regions.
fn order(segment: &Segment, owned: &[Owned], chosen: Chosen, out: &mut Vec<Group>) -> Result<()> {
    let mut left: Vec<usize> = (0..chosen.len()).filter(|n| !chosen[*n].is_empty()).collect();
    let mut sorted = Vec::new();
    while !left.is_empty() {
        // Whose slots came from none of the others that are left.
        let free = left.iter().position(|&n| {
            let now = &segment.nodes[n].slots;
            let came = now.minus(&owned[n].before);
            let passed = |other: usize| {
                let mut passed = passed_through(segment, &owned[other], &chosen[other]);
                passed.any(|slots| !slots.intersect(now).is_empty())
            };
            left.iter()
                .all(|&other| other == n || came.intersect(&owned[other].before).is_empty() && !passed(other))
        });
        match free {
            Some(i) => sorted.push(left.remove(i)),
            None => return by_region(segment, owned, &chosen, out),
        }
    }
    for node in sorted {
        let pieces = chosen[node].iter().map(|(_, piece)| *piece).collect();
        out.push(Group { pieces, slots: owned[node].ever.clone() });
    }
    Ok(())
}

/// Nodes gave slots to each other: region by region.
fn by_region(segment: &Segment, owned: &[Owned], chosen: &Chosen, out: &mut Vec<Group>) -> Result<()> {
    let mut regions: Vec<u16> = chosen.iter().flatten().map(|(region, _)| *region).collect();
    regions.sort_unstable();
    regions.dedup();
    if regions.len() > 1 && regions.contains(&ALL_REGIONS) {
        return Err(Error::unsupported(format!(
            "log segment {}: nodes gave slots to each other while they ran commands on several slots: choose a time before {}",
            segment.number,
            segment.chunks.iter().map(|c| c.first).min().unwrap_or_default(),
        )));
    }
    for region in regions {
        let slots = region_slots(region, segment.slots_per_region.max(1));
        let mut nodes: Vec<usize> = (0..chosen.len()).collect();
        let owns = |slots: &SlotSet, part: &SlotSet| !slots.intersect(part).is_empty();
        nodes.sort_by_key(|&n| (owns(&owned[n].ever, &slots), !owns(&owned[n].before, &slots)));
        for node in nodes {
            let pieces: Vec<Piece> =
                chosen[node].iter().filter(|(r, _)| *r == region).map(|(_, piece)| *piece).collect();
            if !pieces.is_empty() {
                out.push(Group { pieces, slots: owned[node].ever.clone() });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidemark_proto::stored::log::{SegmentChunk, SegmentNode};
    use tidemark_proto::{Incarnation, Timestamp};

    use super::*;

    const EACH: u16 = 100;

    fn slots(ranges: &[(u16, u16)]) -> SlotSet {
        SlotSet::from_ranges(ranges.iter().copied())
    }

    /// A segment of nodes with their slots, and of chunks by node and region.
    fn segment(nodes: &[(&str, SlotSet)], chunks: &[(u16, u16)]) -> Segment {
        let node = |(name, slots): &(&str, SlotSet)| SegmentNode {
            node: name.parse().unwrap(),
            incarnation: Incarnation::from_u128(1),
            slots: slots.clone(),
            from: 0,
            to: 0,
            closed: Timestamp(1),
            key_id: 0,
            salt: [0; 16],
            begins: 0,
        };
        let chunk = |(node, region): &(u16, u16)| SegmentChunk {
            node: *node,
            region: *region,
            number: 0,
            offset: 0,
            len: 1,
            raw_len: 1,
            entries: 1,
            first: Timestamp(5),
            last: Timestamp(5),
        };
        Segment {
            number: 1,
            first: 1,
            stands_for: Default::default(),
            previous: Default::default(),
            epoch: 1,
            put_id: [0; 16],
            at_millis: 0,
            slots_per_region: EACH,
            nodes: nodes.iter().map(node).collect(),
            chunks: chunks.iter().map(chunk).collect(),
        }
    }

    /// For each group the name of its node, and its regions.
    fn groups(segments: Vec<Segment>, slots: &SlotSet) -> Result<Vec<(String, Vec<u16>)>> {
        let log = LogParts::of_segments(segments, EACH);
        let name = |group: Group| {
            let (segment, chunk) = log.chunk(group.pieces[0]);
            let regions = group.pieces.iter().map(|p| log.chunk(*p).1.region).collect();
            (segment.nodes[usize::from(chunk.node)].node.to_string(), regions)
        };
        Ok(log.groups(slots, &[])?.into_iter().map(name).collect())
    }

    fn shown(groups: &[(String, Vec<u16>)]) -> Vec<(&str, &[u16])> {
        groups.iter().map(|(name, regions)| (name.as_str(), &regions[..])).collect()
    }

    #[test]
    fn who_owned_the_slots_before_comes_first() {
        let (low, high) = (slots(&[(0, 199)]), slots(&[(200, 399)]));
        let whole = || segment(&[("b", low.clone()), ("c", high.clone())], &[(0, 0), (1, 2)]);
        // `b` gives its second region to `a`, whose name and place come before its.
        let moved = segment(
            &[("a", slots(&[(100, 199)])), ("b", slots(&[(0, 99)]))],
            &[(0, 1), (1, 0), (1, 1), (0, ALL_REGIONS), (1, ALL_REGIONS)],
        );
        let found = groups(vec![whole(), moved.clone()], &SlotSet::all()).unwrap();
        let all = ALL_REGIONS;
        assert_eq!(shown(&found), [("b", &[0][..]), ("c", &[2]), ("b", &[0, 1, all]), ("a", &[1, all])]);
        // Of one region: the chunks of it, and what its nodes, old and new, did to several.
        let found = groups(vec![whole(), moved], &slots(&[(120, 130)])).unwrap();
        assert_eq!(shown(&found), [("b", &[1, all][..]), ("a", &[1, all])]);
    }

    #[test]
    fn nodes_that_gave_slots_to_each_other_are_taken_region_by_region() {
        let (low, high) = (slots(&[(0, 99)]), slots(&[(100, 199)]));
        let before = || segment(&[("a", low.clone()), ("b", high.clone())], &[]);
        let swapped = |chunks: &[(u16, u16)]| segment(&[("a", high.clone()), ("b", low.clone())], chunks);
        let chunks = [(0, 0), (1, 0), (0, 1), (1, 1)];
        let found = groups(vec![before(), swapped(&chunks)], &SlotSet::all()).unwrap();
        assert_eq!(shown(&found), [("a", &[0][..]), ("b", &[0]), ("b", &[1]), ("a", &[1])]);
        let with_all = [&chunks[..], &[(0, ALL_REGIONS)]].concat();
        let e = groups(vec![before(), swapped(&with_all)], &SlotSet::all()).unwrap_err();
        assert!(e.message().contains("gave slots to each other"), "{e}");
    }

    #[test]
    fn a_slot_that_went_and_came_back_is_as_its_owner_left_it() {
        let (low, high) = (slots(&[(0, 99)]), slots(&[(100, 199)]));
        let nodes = [("a", low.clone()), ("b", high.clone())];
        // Slots of `a` were at `b` meanwhile; both have run commands on several slots.
        let all = ALL_REGIONS;
        let chunks = [(0, 0), (1, 0), (1, 1), (0, all), (1, all)];
        let log = vec![segment(&nodes, &[]), segment(&nodes, &chunks)];
        let found = groups(log.clone(), &SlotSet::all()).unwrap();
        assert_eq!(shown(&found), [("b", &[0, 1, all][..]), ("a", &[0, all])]);
        assert_eq!(shown(&groups(log, &low).unwrap()), [("b", &[0][..]), ("a", &[0, all])]);
        // Through `c`, from `a` to `b`.
        let three = |a: &SlotSet, b: &SlotSet| [("a", a.clone()), ("b", b.clone()), ("c", slots(&[(900, 999)]))];
        let (none, both) = (SlotSet::EMPTY, low.union(&high));
        let passed = segment(&three(&none, &both), &[(0, 0), (1, 0), (2, 0)]);
        let found = groups(vec![segment(&three(&low, &high), &[]), passed], &SlotSet::all()).unwrap();
        assert_eq!(shown(&found), [("a", &[0][..]), ("c", &[0]), ("b", &[0])]);
        // Both had some of the other's: region by region.
        let swapped = segment(&nodes, &[(0, 0), (0, 1), (1, 0), (1, 1)]);
        let found = groups(vec![segment(&nodes, &[]), swapped], &SlotSet::all()).unwrap();
        assert_eq!(shown(&found), [("b", &[0][..]), ("a", &[0]), ("a", &[1]), ("b", &[1])]);
    }

    #[test]
    fn who_has_given_its_slots_away_empties_nothing_more() {
        let (low, high) = (slots(&[(0, 99)]), slots(&[(100, 199)]));
        let first = segment(&[("a", low.union(&high)), ("b", SlotSet::EMPTY)], &[]);
        let moved = segment(&[("a", low.clone()), ("b", high.clone())], &[(1, 1)]);
        let flush = segment(&[("a", low.clone())], &[(0, ALL_REGIONS)]);
        let found = groups(vec![first, moved, flush], &high).unwrap();
        assert_eq!(shown(&found), [("b", &[1][..])]);
    }
}
