//! The chunks of a log of commands in the order in which they are worked off.
//!
//! Within a segment the chunks of one node make a group, whose commands are in order when they are in the order of their times: those
//! of its regions together with those of no single region. Groups of one chain ([`owners`]) come in the order of the segments; between
//! chains the last owner of a slot comes last. Where nodes exchanged slots there is no such order of whole groups: then the slots are
//! taken in several [sets](mod@sets), each with groups of its own, and what lies in a chunk for slots of two sets is read twice.

use std::collections::{BTreeSet, HashSet};

use tidemark_common::redis::log::GroupSlots;
use tidemark_proto::stored::log::ALL_REGIONS;
use tidemark_proto::stored::manifest::NodeEntry;
use tidemark_proto::{Error, Result, SlotSet};

use super::point::{LogParts, Piece};

mod owners;
mod sets;

pub(super) use owners::Owners;
use owners::{History, OfNode};
use sets::{Set, sets};

/// Chunks of one node and one stretch of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its chunks.
    pub pieces: Vec<Piece>,
    /// The slots whose commands count here, and those of them that the node's `FLUSHALL` empties.
    pub slots: GroupSlots,
}

impl LogParts {
    /// The groups with commands for some of `slots`, in order; `base` are the nodes of the backup under the log.
    pub fn groups(&self, slots: &SlotSet, base: &[NodeEntry]) -> Result<Vec<Group>> {
        let (owners, pieces) = (self.owners(base), self.candidates(slots));
        let mut out = Vec::new();
        for set in self.sets(owners, &pieces, slots)? {
            out.extend(self.groups_of(owners, &pieces, &set)?);
        }
        Ok(out)
    }

    /// Whether there is no one order for all groups with commands for some of `slots`: nodes exchanged some of them.
    pub fn were_exchanged(&self, slots: &SlotSet, base: &[NodeEntry]) -> Result<bool> {
        Ok(self.sets(self.owners(base), &self.candidates(slots), slots)?.len() > 1)
    }

    /// The slots that the node of a chunk owned before its segment, or owns since, or in the end.
    pub fn owner(&self, piece: Piece, base: &[NodeEntry]) -> SlotSet {
        self.of_piece(self.owners(base), piece).map_or(SlotSet::EMPTY, |of| of.owned.clone())
    }

    fn owners(&self, base: &[NodeEntry]) -> &Owners {
        let base = base.iter().map(|n| (&n.node, &n.slots));
        self.owners.get_or_init(|| Owners::new(&self.segments, base, self.span))
    }

    fn of_piece<'o>(&self, owners: &'o Owners, piece: Piece) -> Result<&'o OfNode> {
        let (segment, chunk) = self.chunk(piece);
        let of_segment = owners.nodes.get(piece.segment as usize);
        of_segment.and_then(|nodes| nodes.get(usize::from(chunk.node))).ok_or_else(|| {
            Error::damaged(format!("log segment {}: a chunk of a node that is not in it", segment.number))
        })
    }

    /// The slots of a chunk's region; `None` for commands of several.
    fn slots_of(&self, piece: Piece) -> Option<SlotSet> {
        let (segment, chunk) = self.chunk(piece);
        (chunk.region != ALL_REGIONS).then(|| region_slots(chunk.region, segment.slots_per_region.max(1)))
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

    /// `slots` in sets, each with one order for all chunks of it.
    fn sets(&self, owners: &Owners, pieces: &[Piece], slots: &SlotSet) -> Result<Vec<Set>> {
        // Chains with commands for regions of which they never owned any slot.
        let (mut passed, mut seen) = (Vec::new(), HashSet::new());
        for piece in pieces {
            let (of, Some(region)) = (self.of_piece(owners, *piece)?, self.slots_of(*piece)) else { continue };
            let (segment, chunk) = self.chunk(*piece);
            let fresh = seen.insert((of.chain, chunk.region, segment.slots_per_region));
            if fresh && !owners.has_owned(of.chain, &region) {
                passed.push((of.chain, region));
            }
        }
        let mut of_slots = Vec::with_capacity(owners.histories.len());
        for History { slots: all, chains, is_owned } in &owners.histories {
            let slots = all.intersect(slots);
            if slots.is_empty() {
                continue;
            }
            let here = passed.iter().filter(|(_, region): &&(usize, SlotSet)| !region.intersect(&slots).is_empty());
            let by: BTreeSet<usize> = here.map(|(chain, _)| *chain).collect();
            of_slots.push((History { slots, chains: chains.clone(), is_owned: *is_owned }, by));
        }
        Ok(sets(of_slots))
    }

    /// The groups of a set of slots, in order.
    fn groups_of(&self, owners: &Owners, pieces: &[Piece], set: &Set) -> Result<Vec<Group>> {
        let (mut groups, mut chains) = (Vec::new(), Vec::new());
        for of_segment in pieces.chunk_by(|a, b| a.segment == b.segment) {
            let segment = &self.segments[of_segment[0].segment as usize];
            let mut nodes: Vec<usize> = (0..segment.nodes.len()).collect();
            // Two of one chain: what begins later comes later.
            nodes.sort_by_key(|node| segment.nodes[*node].from);
            for node in nodes {
                let of_node = of_segment.iter().filter(|p| usize::from(self.chunk(**p).1.node) == node).copied();
                let of_node: Vec<Piece> = of_node.collect();
                let Some(first) = of_node.first() else { continue };
                let of = self.of_piece(owners, *first)?;
                let emptied = of.owned.intersect(&set.slots);
                let counts = |piece: &Piece| match self.slots_of(*piece) {
                    Some(slots) => !slots.intersect(&set.slots).is_empty(),
                    None => !emptied.is_empty(),
                };
                let pieces: Vec<Piece> = of_node.into_iter().filter(counts).collect();
                if !pieces.is_empty() {
                    groups.push(Some(Group { pieces, slots: GroupSlots { counted: set.slots.clone(), emptied } }));
                    chains.push(of.chain);
                }
            }
        }
        Ok(set.order(&chains).into_iter().filter_map(|place| groups[place].take()).collect())
    }
}

fn region_slots(region: u16, each: u16) -> SlotSet {
    let first = u32::from(region) * u32::from(each);
    let last = (first + u32::from(each) - 1).min(u32::from(tidemark_proto::slot::SLOT_COUNT - 1));
    if first > last { SlotSet::EMPTY } else { SlotSet::range(first as u16, last as u16) }
}

#[cfg(test)]
mod tests;
