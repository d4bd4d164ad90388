//! What can be restored: intervals in which the log of all nodes is whole, and the backups they begin from. Computed from
//! what is durable alone.

use std::collections::BTreeMap;

use tidemark_proto::id::JobId;
use tidemark_proto::{Incarnation, NodeName, SlotSet, Timestamp};

use super::index::{Found, NodeSpan, SegmentInfo};

mod restore_points;

pub use restore_points::RestorePoints;
use restore_points::{Asked, RECENT, RECENT_OF_ENDED};

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
    /// The times in it that can be restored; `None` where all can.
    pub points: Option<RestorePoints>,
}

impl Interval {
    /// The latest time up to and including `wanted` that can be restored. Of a log that has not any time, `wanted` is the interval's
    /// end, or what the chains were told to seek.
    pub fn latest(&self, wanted: Timestamp) -> Option<Timestamp> {
        match &self.points {
            None => Some(self.end.min(wanted)),
            Some(points) => points.latest(wanted),
        }
    }

    /// Whether the cut of a backup can be restored with the log behind it.
    fn has(&self, cut: Timestamp) -> bool {
        self.points.as_ref().is_none_or(|points| points.has(cut)) && cut >= self.start && cut <= self.end
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
    asked: Asked,
}

impl Chains {
    /// None yet. What is asked of their restore points later: whether those are among them at which backups were `cut`, and which
    /// is the newest one at or before `wanted`.
    pub fn seeking(cuts: impl IntoIterator<Item = Timestamp>, wanted: Option<Timestamp>) -> Self {
        Self { asked: Asked { cuts: cuts.into_iter().collect(), wanted }, ..Self::default() }
    }

    /// A backup was cut.
    pub fn was_cut(&mut self, at: Timestamp) {
        let _ = self.asked.cuts.insert(at);
    }

    /// Takes what stands at the next number.
    pub fn take(&mut self, found: &Found) {
        match found {
            Found::Segment(segment) => self.push(segment),
            Found::Lost { number, why } => self.lose(&format!("segment {number}: {why}")),
        }
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
            if let Some(points) = &mut interval.points {
                points.thin(RECENT_OF_ENDED, &self.asked);
            }
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
        let points = segment.points.is_some().then(RestorePoints::default);
        let fresh = Interval { start, end, first: range.first, last: range.last, ended: None, points };
        let open = self.open.get_or_insert(fresh);
        (open.end, open.last) = (end, range.last);
        if let Some(points) = &segment.points {
            let all = open.points.get_or_insert_default();
            points.iter().filter(|p| **p >= open.start && **p <= end).for_each(|p| all.insert(*p));
            if all.kept() >= 2 * RECENT {
                all.thin(RECENT, &self.asked);
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
mod tests;
