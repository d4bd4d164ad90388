//! Restore points of a log of commands: who streams it, and the light cuts at which all nodes stand still together.
//!
//! Not any time is a consistent state of such a cluster: its nodes have no common clock. So every few seconds writes are held on
//! all nodes at once, positions are read twice as for a backup, and the nodes are told a timestamp: every command before its
//! node's position gets one at or below it, every later one a later one. Cuts of backups count as well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{Held, LogHold, LogRelease, LogSeal, Released, Sealed};
use tidemark_proto::{Error, NodeName, Result, SlotSet, Timestamp};

use super::member::Tail;
use super::session::Session;
use crate::config::LightCuts;
use crate::fleet::Member;
use crate::job::backup::members::{Preference, gather};

/// Who streams is looked at this often.
const LANES_EVERY: Duration = Duration::from_secs(5);
/// Time for a step of a light cut beside its budget.
const CUT_DEADLINE: Duration = Duration::from_secs(2);
/// Cuts that wait to become restore points, at most: of those between two segments.
const MOST_PENDING: usize = 1000;

/// What a session of a log of commands knows beside its tails.
#[derive(Debug, Default)]
pub(super) struct Points {
    /// Versions of the servers of those that stream.
    versions: BTreeMap<NodeName, String>,
    /// Those of them that own no slots.
    empty: BTreeSet<NodeName>,
    looked_at: Option<Instant>,
    cut_at: Option<Instant>,
    /// Cuts up to which not all nodes have been read, ascending.
    pending: Vec<Timestamp>,
    last: Timestamp,
    /// The latest change that is in a segment, and the latest restore point that a segment tells of.
    news: Timestamp,
    told: Timestamp,
}

impl Session {
    /// Finds out whose streams the log is made of: one node of each shard.
    pub(super) async fn choose_lanes(&mut self) {
        let Some(points) = &self.points else { return };
        let broken = self.nodes.values().any(|t| !t.is_open());
        let every = if broken { Duration::from_secs(1) } else { LANES_EVERY };
        if points.looked_at.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        let preference = Preference {
            before: self.nodes.keys().cloned().collect(),
            parent: Vec::new(),
            replicas: self.context.config.backup.prefer_replicas,
        };
        let team = gather(&self.context, JobId::default(), &self.cluster, &preference).await;
        if let Some(points) = &mut self.points {
            points.looked_at = Some(Instant::now());
        }
        let team = match team {
            Ok(team) if team.whole => team,
            Ok(_) => return tracing::debug!(cluster = %self.cluster, "the nodes do not own all slots now"),
            Err(e) => return tracing::debug!(error = %e.report(), "who streams the log is not known now"),
        };
        // Slots may move to those that own none: their logs begin before that.
        let empty: BTreeSet<NodeName> = team.empty.iter().map(|(node, _)| node.clone()).collect();
        let named = team.nodes.iter().cloned().zip(team.versions.iter().cloned());
        let versions: BTreeMap<NodeName, String> = named.chain(team.empty.iter().cloned()).collect();
        let gone: Vec<NodeName> = self.nodes.keys().filter(|n| !versions.contains_key(*n)).cloned().collect();
        let ends: Vec<_> = gone.iter().filter_map(|name| self.nodes.get(name).and_then(Tail::end)).collect();
        for name in &gone {
            tracing::info!(node = %name, "the log is not taken from this node any more");
            let _ = self.nodes.remove(name);
        }
        for name in versions.keys() {
            let tail = self.nodes.entry(name.clone()).or_default();
            if tail.is_fresh() {
                tail.may_take_over(ends.clone());
            }
        }
        self.published.set_lanes(versions.keys().cloned().collect());
        if let Some(points) = &mut self.points {
            (points.versions, points.empty) = (versions, empty);
        }
    }

    /// Takes a light cut, when it is time for one.
    pub(super) async fn light_cut(&mut self) {
        let config = &self.context.config.pitr;
        let every = Duration::from_millis(config.point_interval_ms);
        let Some(points) = &mut self.points else { return };
        let lanes = self.published.lanes();
        for (at, nodes) in self.published.take_cuts() {
            self.chains.was_cut(at);
            // Where another node took part, its stream has no mark. One without slots needs none: what comes gets a later time.
            let marked = |lane: &NodeName| match self.nodes.get_mut(lane) {
                _ if nodes.contains(lane) => true,
                Some(tail) if points.empty.contains(lane) => tail.begins_above(at),
                _ => false,
            };
            if lanes.iter().all(marked) {
                points.add(at);
            }
        }
        let due = points.cut_at.is_none_or(|at| at.elapsed() >= every);
        let open = !lanes.is_empty() && lanes.iter().all(|lane| self.nodes.get(lane).is_some_and(Tail::streams));
        if !due || !open || config.points == LightCuts::Never {
            return;
        }
        let lock = self.context.logs.cut_lock(&self.cluster);
        let Ok(_cutting) = lock.try_lock() else { return };
        points.cut_at = Some(Instant::now());
        let hangs = points.versions.values().any(|version| pauses_hang(version));
        let pauses = config.points == LightCuts::Always || !hangs;
        let budgets = [Some(0), pauses.then_some(config.point_budget_ms)];
        for budget in budgets.into_iter().flatten() {
            match self.cut_once(&lanes, budget).await {
                Ok(at) => {
                    if let Some(points) = &mut self.points {
                        points.add(at);
                    }
                    return;
                }
                Err(e) => tracing::debug!(budget, error = %e.report(), "no restore point now"),
            }
        }
    }

    /// Time up to which all nodes have been read.
    pub(super) fn reached(&self) -> Timestamp {
        self.nodes.values().map(Tail::reaches).min().unwrap_or_default()
    }

    async fn cut_once(&self, lanes: &[NodeName], budget_millis: u32) -> Result<Timestamp> {
        let deadline = CUT_DEADLINE + Duration::from_millis(u64::from(budget_millis));
        let held: Result<Vec<Held>> =
            all(lanes, |node| self.ask(node, LogHold { budget_millis }, deadline)).await.into_iter().collect();
        let sealed = match &held {
            Ok(held) => self.seal(lanes, held).await,
            Err(e) => Err(Error::new(e.kind(), e.report())),
        };
        let released: Vec<Result<Released>> = all(lanes, |node| self.ask(node, LogRelease {}, deadline)).await;
        let (at, held) = (sealed?, held?);
        for (held, released) in held.iter().zip(released) {
            if released?.ownership != held.ownership {
                return Err(Error::conflict("slots or roles changed in the cut"));
            }
        }
        Ok(at)
    }

    async fn seal(&self, lanes: &[NodeName], held: &[Held]) -> Result<Timestamp> {
        let mut owned = SlotSet::EMPTY;
        for held in held {
            if !owned.intersect(&held.ownership.slots).is_empty() {
                return Err(Error::conflict("two nodes own the same slots"));
            }
            owned = owned.union(&held.ownership.slots);
        }
        if owned != SlotSet::all() {
            return Err(Error::conflict("the nodes do not own all slots"));
        }
        let told = held.iter().map(|h| h.max_timestamp).max().unwrap_or_default();
        // Above everything that was received, too: an agent that was started anew may not know what it gave out.
        let reached = self.nodes.values().map(Tail::reaches).max().unwrap_or_default();
        let last = self.points.as_ref().map_or(Timestamp::ZERO, |p| p.last).max(reached);
        let at = self.context.clock.now().max(told).max(last).next();
        let sealed: Vec<Result<Sealed>> = all(lanes, |node| self.ask(node, LogSeal { at }, CUT_DEADLINE)).await;
        for (held, sealed) in held.iter().zip(sealed) {
            if sealed?.position != held.position {
                return Err(Error::conflict("a node moved on since it was held"));
            }
        }
        Ok(at)
    }

    async fn ask<Q, R>(&self, node: &NodeName, question: Q, deadline: Duration) -> Result<R>
    where
        Q: tidemark_proto::frame::Message,
        R: tidemark_proto::frame::Message,
    {
        let member = Member { cluster: self.cluster.clone(), node: node.clone() };
        let head = self.context.head(JobId::default(), 1);
        self.context.fleet.command(&member, head, &question, deadline, |_| ()).await
    }
}

/// Asks all nodes at once.
async fn all<'n, T, F: Future<Output = Result<T>>>(
    lanes: &'n [NodeName],
    ask: impl FnMut(&'n NodeName) -> F,
) -> Vec<Result<T>> {
    futures::future::join_all(lanes.iter().map(ask)).await
}

impl Points {
    fn add(&mut self, at: Timestamp) {
        self.last = self.last.max(at);
        self.pending.push(at);
        self.pending.sort_unstable();
        if self.pending.len() > MOST_PENDING {
            let _ = self.pending.remove(0);
        }
    }

    /// The cuts up to which all nodes were read by now: `closed` is the least of what they have closed.
    pub(super) fn whole(&mut self, closed: Timestamp) -> Vec<Timestamp> {
        let count = self.pending.partition_point(|at| *at <= closed);
        let whole: Vec<Timestamp> = self.pending.drain(..count).collect();
        self.told = self.told.max(whole.last().copied().unwrap_or_default());
        whole
    }

    /// A segment has changes up to `last`.
    pub(super) fn has_news(&mut self, last: Timestamp) {
        self.news = self.news.max(last);
    }

    /// Whether changes are stored that no restore point covers yet, and one that does only waits for a segment: without one
    /// they could not be restored before the log rests.
    pub(super) fn waits(&self, closed: Timestamp) -> bool {
        self.news > self.told && self.pending.iter().any(|at| *at >= self.news && *at <= closed)
    }
}

/// Whether blocking commands that arrive while this server is paused never time out: then it is not paused every few seconds.
/// Redis from 7.2.5 on and Valkey from 7.2.6 on have the fault until their releases of the summer of 2025.
fn pauses_hang(version: &str) -> bool {
    let (name, numbers) = version.split_once(' ').unwrap_or((version, ""));
    let mut numbers = numbers.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let release = (next(), next(), next());
    match name {
        "redis" => ((7, 2, 5)..(8, 2, 0)).contains(&release),
        "valkey" => ((7, 2, 6)..(8, 1, 3)).contains(&release),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_whose_blocking_commands_hang_are_known() {
        let hang = [
            "redis 7.2.5",
            "redis 7.4.1",
            "redis 8.0.2",
            "valkey 7.2.7",
            "valkey 8.0.1",
            "valkey 8.1.2",
            "other 1.0",
        ];
        let well = ["redis 6.2.14", "redis 7.0.15", "redis 7.2.4", "redis 8.2.0", "valkey 7.2.5", "valkey 9.0.0"];
        assert!(hang.iter().all(|v| pauses_hang(v)) && !well.iter().any(|v| pauses_hang(v)));
    }

    #[test]
    fn a_cut_is_a_point_when_all_were_read_up_to_it() {
        let mut points = Points::default();
        [30, 10, 20].into_iter().for_each(|at| points.add(Timestamp(at)));
        assert_eq!(points.whole(Timestamp(9)), []);
        points.has_news(Timestamp(18));
        assert!(points.waits(Timestamp(20)) && !points.waits(Timestamp(19)), "20 covers it, 10 does not");
        assert_eq!(points.whole(Timestamp(20)), [Timestamp(10), Timestamp(20)]);
        assert!(!points.waits(Timestamp(99)), "nothing is new since");
        assert_eq!(points.whole(Timestamp(99)), [Timestamp(30)]);
    }
}
