//! What can be restored: intervals in which the log of all nodes is whole, and the backups they begin from. Computed from
//! what is durable alone.

use std::collections::BTreeMap;

use tidemark_proto::id::JobId;
use tidemark_proto::{Incarnation, NodeName, SlotSet, Timestamp};

use super::index::{Found, LogIndex, NodeSpan, SegmentInfo};

/// A stretch of time in which the log of every node is whole and the nodes own all slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interval {
    /// It holds every change after this.
    pub start: Timestamp,
    /// It holds every change up to and including this.
    pub end: Timestamp,
    /// The first segment with changes in it.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// Why it goes no further; `None` while it may.
    pub ended: Option<String>,
    /// The times in it that can be restored, ascending; `None` where all can.
    pub points: Option<Vec<Timestamp>>,
}

impl Interval {
    /// The latest time up to and including `wanted` that can be restored.
    pub fn latest(&self, wanted: Timestamp) -> Option<Timestamp> {
        match &self.points {
            None => Some(self.end.min(wanted)),
            Some(points) => points[..points.partition_point(|p| *p <= wanted)].last().copied(),
        }
    }

    /// Whether a time can be restored.
    fn has(&self, at: Timestamp) -> bool {
        let point = self.points.as_ref().is_none_or(|points| points.binary_search(&at).is_ok());
        point && at >= self.start && at <= self.end
    }
}

/// A stretch of time any point of which can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Its begin: the cut of a backup.
    pub earliest: Timestamp,
    /// Its end.
    pub latest: Timestamp,
    /// The log that it rests on.
    pub interval: Interval,
    /// Backups in it, by ascending cut.
    pub bases: Vec<(Timestamp, JobId)>,
}

/// All of a cluster's log, as far as it is durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows {
    /// Oldest first.
    pub intervals: Vec<Interval>,
}

/// The chain of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Id of its data.
    pub incarnation: Incarnation,
    /// Slots it owns.
    pub slots: SlotSet,
    /// Time at which the chain begins.
    pub start: Timestamp,
    /// Position up to which it goes.
    pub to: u64,
    /// Time up to which it goes.
    pub closed: Timestamp,
}

/// Follows the chains of all nodes from segment to segment.
#[derive(Debug, Clone, Default)]
pub struct Chains {
    chains: BTreeMap<NodeName, Chain>,
    epoch: u64,
    open: Option<Interval>,
    done: Vec<Interval>,
}

impl Chains {
    /// Those of everything in `index`.
    pub fn of(index: &LogIndex) -> Self {
        let mut chains = Self::default();
        for found in index.entries() {
            match found {
                Found::Segment(segment) => chains.push(segment),
                Found::Lost { number, why } => chains.lose(&format!("segment {number}: {why}")),
            }
        }
        chains
    }

    /// The chain of each node.
    pub fn chains(&self) -> &BTreeMap<NodeName, Chain> {
        &self.chains
    }

    /// A segment is not there or cannot be read: nothing connects what follows with what came before.
    pub fn lose(&mut self, why: &str) {
        self.end(why.to_owned());
        self.chains.clear();
    }

    fn end(&mut self, why: String) {
        if let Some(mut interval) = self.open.take() {
            interval.ended = Some(why);
            self.done.push(interval);
        }
    }

    /// Takes the next segment.
    pub fn push(&mut self, segment: &SegmentInfo) {
        if segment.epoch < self.epoch {
            return;
        }
        self.epoch = segment.epoch;
        let mut broken = None;
        for node in &segment.nodes {
            let goes_on = self.chains.get_mut(&node.node).filter(|chain| {
                !node.begins
                    && chain.incarnation == node.incarnation
                    && chain.to == node.from
                    && chain.slots == node.slots
            });
            if let Some(chain) = goes_on {
                (chain.to, chain.closed) = (node.to, node.closed);
                continue;
            }
            if self.branch(node) {
                continue;
            }
            let fresh = Chain {
                incarnation: node.incarnation,
                slots: node.slots.clone(),
                start: node.closed,
                to: node.to,
                closed: node.closed,
            };
            // A node that owns nothing yet takes nothing from the window: what it will get, its log tells.
            if segment.points.is_some() && fresh.slots.is_empty() && !self.chains.contains_key(&node.node) {
                let _ = self.chains.insert(node.node.clone(), Chain { start: Timestamp::ZERO, ..fresh });
                continue;
            }
            // A node that took over slots makes the log of their old owner end.
            self.chains.retain(|name, chain| *name == node.node || chain.slots.intersect(&fresh.slots).is_empty());
            broken = Some(format!("the log of node {} began anew", node.node));
            let _ = self.chains.insert(node.node.clone(), fresh);
        }
        if let Some(why) = broken {
            self.end(why);
        }
        self.extend(segment);
    }

    /// A log that goes on from where its own or another node's chain ends: after a failover, or with other slots.
    fn branch(&mut self, node: &NodeSpan) -> bool {
        if !node.branches {
            return false;
        }
        let joins = |chain: &Chain| chain.to == node.from;
        let name = match self.chains.get(&node.node) {
            Some(chain) if joins(chain) => Some(node.node.clone()),
            Some(_) => None,
            None => {
                let same = |(_, chain): &(&NodeName, &Chain)| {
                    joins(chain) && (chain.slots == node.slots || !chain.slots.intersect(&node.slots).is_empty())
                };
                self.chains.iter().find(same).map(|(name, _)| name.clone())
            }
        };
        let Some(chain) = name.and_then(|name| self.chains.remove(&name)) else { return false };
        let (incarnation, slots) = (node.incarnation, node.slots.clone());
        let chain = Chain { incarnation, slots, to: node.to, closed: node.closed, ..chain };
        let _ = self.chains.insert(node.node.clone(), chain);
        true
    }

    /// The interval goes up to what all nodes have closed, if they own all slots.
    fn extend(&mut self, segment: &SegmentInfo) {
        let owned = self.chains.values().fold(SlotSet::EMPTY, |all, chain| all.union(&chain.slots));
        if owned != SlotSet::all() {
            return;
        }
        let range = segment.range;
        let owners = || self.chains.values().filter(|c| !c.slots.is_empty());
        let start = owners().map(|c| c.start).max().unwrap_or_default();
        let end = owners().map(|c| c.closed).min().unwrap_or_default().max(start);
        let points = segment.points.is_some().then(Vec::new);
        let fresh = Interval { start, end, first: range.first, last: range.last, ended: None, points };
        let open = self.open.get_or_insert(fresh);
        (open.end, open.last) = (end, range.last);
        if let Some(points) = &segment.points {
            let all = open.points.get_or_insert_default();
            // The cut of a backup may be told a moment after a later one.
            let ordered = points.first().is_none_or(|first| all.last().is_none_or(|last| last < first));
            all.extend(points.iter().filter(|p| **p >= open.start && **p <= end));
            if !ordered {
                all.sort_unstable();
                all.dedup();
            }
        }
    }

    /// The interval that goes on, if there is one.
    pub fn open(&self) -> Option<&Interval> {
        self.open.as_ref()
    }

    /// All intervals, the one that goes on last.
    pub fn windows(&self) -> Windows {
        Windows { intervals: self.done.iter().chain(&self.open).cloned().collect() }
    }
}

impl Windows {
    /// What can be restored, given the cuts of the backups that stand, ascending.
    pub fn restorable(&self, cuts: &[(Timestamp, JobId)]) -> Vec<Window> {
        let window = |interval: &Interval| {
            let bases: Vec<_> = cuts.iter().filter(|(cut, _)| interval.has(*cut)).copied().collect();
            let earliest = bases.first()?.0;
            let latest = interval.latest(interval.end)?;
            Some(Window { earliest, latest, interval: interval.clone(), bases })
        };
        self.intervals.iter().filter_map(window).collect()
    }
}

#[cfg(test)]
mod tests {
    use tidemark_proto::stored::log::SegmentRange;

    use super::*;

    fn node(name: &str, slots: (u16, u16), incarnation: u128, from: u64, to: u64, begins: bool) -> NodeSpan {
        NodeSpan {
            node: NodeName::new(name).unwrap(),
            incarnation: Incarnation::from_u128(incarnation),
            slots: SlotSet::range(slots.0, slots.1),
            from,
            to,
            closed: Timestamp(to),
            begins,
            branches: false,
        }
    }

    const LOW: (u16, u16) = (0, 8191);
    const HIGH: (u16, u16) = (8192, 16383);

    fn of(segments: Vec<Vec<NodeSpan>>) -> Windows {
        let mut chains = Chains::default();
        for (i, nodes) in segments.into_iter().enumerate() {
            let (range, epoch) = (SegmentRange::one(i as u64 + 1), 1);
            chains.push(&SegmentInfo { range, epoch, nodes, ..SegmentInfo::default() });
        }
        chains.windows()
    }

    fn spans(windows: &Windows) -> Vec<(u64, u64)> {
        windows.intervals.iter().map(|i| (i.start.0, i.end.0)).collect()
    }

    #[test]
    fn the_end_is_what_all_have_closed() {
        let windows = of(vec![
            vec![node("a", LOW, 1, 10, 10, true)],
            vec![node("b", HIGH, 2, 12, 12, true), node("a", LOW, 1, 10, 20, false)],
            vec![node("a", LOW, 1, 20, 30, false)],
            vec![node("b", HIGH, 2, 12, 25, false)],
        ]);
        assert_eq!(spans(&windows), [(12, 25)]);
        assert_eq!(windows.intervals[0].ended, None);
        let at = |n| JobId::from_u128(n);
        let cuts = [(Timestamp(11), at(1)), (Timestamp(15), at(2)), (Timestamp(24), at(3)), (Timestamp(26), at(4))];
        let restorable = windows.restorable(&cuts);
        assert_eq!((restorable[0].earliest.0, restorable[0].latest.0, restorable[0].bases.len()), (15, 25, 2));
        assert!(windows.restorable(&cuts[..1]).is_empty(), "a backup before the log");
    }

    #[test]
    fn gaps_new_data_and_lost_segments_end_an_interval() {
        let whole = |from, to, begins| vec![node("a", (0, 16383), 1, from, to, begins)];
        assert_eq!(
            spans(&of(vec![whole(5, 5, true), whole(5, 9, false), whole(10, 20, false)])),
            [(5, 9), (20, 20)]
        );
        let other = vec![node("a", (0, 16383), 2, 9, 20, false)];
        assert_eq!(spans(&of(vec![whole(5, 9, true), other])), [(9, 9), (20, 20)]);

        let mut chains = Chains::default();
        chains.push(&SegmentInfo {
            range: SegmentRange::one(1),
            epoch: 2,
            nodes: whole(5, 5, true),
            ..SegmentInfo::default()
        });
        chains.push(&SegmentInfo {
            range: SegmentRange::one(2),
            epoch: 1,
            nodes: whole(5, 50, false),
            ..SegmentInfo::default()
        });
        assert_eq!(spans(&chains.windows()), [(5, 5)], "the late write of a fenced coordinator");
        chains.lose("segment 3: gone");
        assert_eq!(chains.windows().intervals[0].ended.as_deref(), Some("segment 3: gone"));
        assert!(chains.open().is_none() && chains.chains().is_empty());
    }

    #[test]
    fn who_takes_slots_over_ends_the_log_of_their_old_owner() {
        let windows = of(vec![
            vec![node("a", (0, 16383), 1, 5, 5, true)],
            vec![node("b", HIGH, 2, 7, 7, true)],
            vec![node("a", LOW, 1, 9, 9, true)],
            vec![node("a", LOW, 1, 9, 15, false), node("b", HIGH, 2, 7, 13, false)],
        ]);
        assert_eq!(spans(&windows), [(5, 5), (9, 13)]);
    }
}
