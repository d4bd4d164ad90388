//! Who owned which slots, and when: told by what the nodes say of themselves in the segments.
//!
//! What counts is not the node but the stream of commands that makes a state of the data: a *chain*. After a failover another node
//! goes on with it, and may give it back.

use std::collections::BTreeMap;

use tidemark_proto::stored::log::{BEGINS_BRANCH, Segment, SegmentNode};
use tidemark_proto::{NodeName, SlotSet, Timestamp};

/// What a node is in a segment.
#[derive(Debug, Clone)]
pub(super) struct OfNode {
    /// The chain that it goes on with.
    pub(super) chain: usize,
    /// Slots that the chain owned before the segment, or owns since, and those that it owns in the end: its `FLUSHALL` empties these.
    pub(super) owned: SlotSet,
}

/// Slots with the same owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct History {
    pub(super) slots: SlotSet,
    /// The chains that owned them, each once, by when it got them last; those that own them in the end come last.
    pub(super) chains: Vec<usize>,
    /// Whether any owns them in the end.
    pub(super) is_owned: bool,
}

/// Owners of slots from a backup to a time.
#[derive(Debug)]
pub(in crate::log) struct Owners {
    /// The nodes of each segment.
    pub(super) nodes: Vec<Vec<OfNode>>,
    /// Of all slots.
    pub(super) histories: Vec<History>,
}

impl Owners {
    /// Follows the chains from the nodes of the backup on: what they own after the first time, which is not before the backup's cut, and
    /// up to the second.
    pub(in crate::log) fn new<'n>(
        segments: &[Segment],
        base: impl IntoIterator<Item = (&'n NodeName, &'n SlotSet)>,
        (after, at): (Timestamp, Timestamp),
    ) -> Self {
        let mut chains = Chains::default();
        base.into_iter().for_each(|(node, slots)| chains.begin(node, slots));
        let mut nodes: Vec<Vec<OfNode>> = Vec::with_capacity(segments.len());
        for segment in segments {
            let of_segment = segment.nodes.iter().enumerate().map(|(place, node)| {
                let chain = chains.of(node);
                let before = chains.owned[chain].clone();
                // What a node owned before the backup or owns behind the time is not asked for. Batches end at restore points, so that
                // none lies on both sides.
                let has_news = || segment.chunks.iter().any(|c| usize::from(c.node) == place && c.first <= at);
                if node.closed > after && (node.closed <= at || has_news()) {
                    chains.owns(chain, &node.slots);
                }
                OfNode { chain, owned: before.union(&chains.owned[chain]) }
            });
            nodes.push(of_segment.collect());
        }
        let (histories, mut lasting) = (chains.histories(), vec![SlotSet::EMPTY; chains.owned.len()]);
        for history in histories.iter().filter(|h| h.is_owned) {
            history
                .chains
                .last()
                .into_iter()
                .for_each(|last| lasting[*last] = lasting[*last].union(&history.slots));
        }
        nodes.iter_mut().flatten().for_each(|node| node.owned = node.owned.union(&lasting[node.chain]));
        Self { nodes, histories }
    }

    /// Whether a chain owned any of these slots ever.
    pub(super) fn has_owned(&self, chain: usize, slots: &SlotSet) -> bool {
        let mut of_chain = self.histories.iter().filter(|h| h.chains.contains(&chain));
        of_chain.any(|h| !h.slots.intersect(slots).is_empty())
    }
}

/// Chains up to some segment, by number.
#[derive(Debug, Default)]
struct Chains {
    /// The node that goes on with each.
    names: BTreeMap<NodeName, usize>,
    /// Where each ends, if anything of it is in the segments.
    ends: Vec<Option<u64>>,
    /// Slots that each says it owns.
    owned: Vec<SlotSet>,
    /// Slots, and the chains that got them, the last one last.
    got: Vec<(SlotSet, Vec<usize>)>,
}

impl Chains {
    fn begin(&mut self, name: &NodeName, slots: &SlotSet) {
        let chain = self.fresh(name);
        self.owns(chain, slots);
    }

    fn fresh(&mut self, name: &NodeName) -> usize {
        let chain = self.owned.len();
        let _ = self.names.insert(name.clone(), chain);
        self.ends.push(None);
        self.owned.push(SlotSet::EMPTY);
        chain
    }

    /// The chain that a node goes on with, as `window.rs` follows it.
    fn of(&mut self, node: &SegmentNode) -> usize {
        let own = self.names.get(&node.node).copied();
        let goes_on = |chain: &usize| node.begins != BEGINS_BRANCH || self.ends[*chain] == Some(node.from);
        let chain = match own.filter(goes_on) {
            Some(chain) => chain,
            None => match self.taken_over(node, own) {
                Some(chain) => {
                    self.names.retain(|_, of| *of != chain);
                    if let Some(given_up) = self.names.insert(node.node.clone(), chain) {
                        self.owned[given_up] = SlotSet::EMPTY;
                    }
                    chain
                }
                None => own.unwrap_or_else(|| self.fresh(&node.node)),
            },
        };
        self.ends[chain] = Some(node.to);
        chain
    }

    /// The chain of another node that ends where this one begins; where this one is not known and the other had nothing to tell
    /// since the backup, nothing but its slots is known.
    fn taken_over(&self, node: &SegmentNode, own: Option<usize>) -> Option<usize> {
        if node.begins != BEGINS_BRANCH {
            return None;
        }
        let same = |chain: usize| self.owned[chain] == node.slots;
        let shares = |chain: usize| !self.owned[chain].intersect(&node.slots).is_empty();
        let joins = |chain: usize| self.ends[chain] == Some(node.from) && (same(chain) || shares(chain));
        let may = |chain: usize| own.is_none() && self.ends[chain].is_none() && shares(chain);
        let find = |fits: &dyn Fn(usize) -> bool| {
            self.names.values().copied().find(|chain| Some(*chain) != own && fits(*chain))
        };
        find(&joins).or_else(|| find(&|chain| may(chain) && same(chain))).or_else(|| find(&may))
    }

    /// A chain says what it owns. Others that say the same of a slot may not have heard yet.
    fn owns(&mut self, chain: usize, slots: &SlotSet) {
        let mut came = slots.minus(&self.owned[chain]);
        self.owned[chain] = slots.clone();
        let mut got = Vec::with_capacity(self.got.len());
        for (slots, chains) in std::mem::take(&mut self.got) {
            let (some, rest) = (slots.intersect(&came), slots.minus(&came));
            came = came.minus(&some);
            if !some.is_empty() {
                let before = chains.iter().copied().filter(|other| *other != chain);
                got.push((some, before.chain([chain]).collect()));
            }
            if !rest.is_empty() {
                got.push((rest, chains));
            }
        }
        if !came.is_empty() {
            got.push((came, vec![chain]));
        }
        self.got = got;
    }

    /// Who owned which slots, all of them; those that own them by now come last.
    fn histories(&self) -> Vec<History> {
        let mut out: Vec<History> = Vec::new();
        let known = self.got.iter().fold(SlotSet::EMPTY, |all, (slots, _)| all.union(slots));
        for (slots, chains) in self.got.iter().chain([&(SlotSet::all().minus(&known), Vec::new())]) {
            for (slots, owners) in self.divided(slots, chains) {
                let before = chains.iter().copied().filter(|chain| !owners.contains(chain));
                let (chains, is_owned) = (before.chain(owners.iter().copied()).collect(), !owners.is_empty());
                match out.iter_mut().find(|h| h.chains == chains && h.is_owned == is_owned) {
                    Some(history) => history.slots = history.slots.union(&slots),
                    None => out.push(History { slots, chains, is_owned }),
                }
            }
        }
        out
    }

    /// Slots by which of these chains own them by now.
    fn divided(&self, slots: &SlotSet, chains: &[usize]) -> Vec<(SlotSet, Vec<usize>)> {
        let mut stretches = vec![(slots.clone(), Vec::new())];
        for &chain in chains {
            let owned = &self.owned[chain];
            let divide = |(slots, owners): (SlotSet, Vec<usize>)| {
                let more = owners.iter().copied().chain([chain]).collect();
                [(slots.intersect(owned), more), (slots.minus(owned), owners)]
            };
            stretches = stretches.into_iter().flat_map(divide).collect();
        }
        stretches.retain(|(slots, _)| !slots.is_empty());
        stretches
    }
}
