//! One backup job's parts from its cut on: what they stand on, and from packs to durable.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use tidemark_proto::hash::Hash;
use tidemark_proto::stored::manifest::{PartEntry, RunEntry};
use tidemark_proto::wire::bulk::{PartDone, PartOffer};
use tidemark_proto::{ClusterName, Error, NodeName, Result, Timestamp};
use tokio::sync::oneshot;

use super::landing::{Landing, RunTag, check_slots};
use super::{IngestNode, MAX_WAITING, Received, ReceivedKind};
use crate::job::backup::PartKey;
use crate::repository::{JobRecorder, Repository, Scope};

/// One backup job's parts.
#[derive(Debug)]
pub struct IngestJob {
    /// Its packs, and what came before the cut.
    pub(super) landing: Arc<Landing>,
    pub(super) cut: Timestamp,
    pub(super) parent: Hash,
    pub(super) nodes: HashMap<NodeName, IngestNode>,
    pub(super) recorder: tokio::sync::Mutex<JobRecorder>,
    pub(super) state: Mutex<Parts>,
}

#[derive(Debug, Default)]
pub(super) struct Parts {
    /// All parts received, by node number and place.
    pub(super) received: BTreeMap<(u16, PartKey), Received>,
    /// Those that no job record lists yet.
    pub(super) waiting: Vec<(PartEntry, oneshot::Sender<()>)>,
    /// Nobody will list them any more.
    ended: bool,
}

impl Parts {
    /// Parts that job records list; all are durable.
    pub(super) fn stored(entries: Vec<PartEntry>, cut: Timestamp) -> Self {
        let received = entries.into_iter().map(|entry| {
            let added = entry.runs.iter().filter(|r| r.at == cut);
            // What differs from a part that came before the cut belongs to it.
            let whole = entry.runs.first().is_some_and(|r| r.at == cut);
            let kind = if whole { ReceivedKind::Full } else { ReceivedKind::Delta };
            let new_bytes = added.map(RunEntry::stored_bytes).sum();
            ((entry.node, (entry.region, entry.lower.clone())), Received { entry, new_bytes, kind })
        });
        Self { received: received.collect(), waiting: Vec::new(), ended: false }
    }
}

/// A part that may come.
#[derive(Debug)]
pub(super) struct Admitted {
    /// Number of its node.
    number: u16,
    /// What a delta stands on.
    on: Option<PartEntry>,
    /// Whether that came before the cut of this job.
    came_early: bool,
}

fn no_parent() -> Error {
    Error::conflict("a delta on a part that the parent backup does not hold")
}

impl IngestJob {
    /// Whether the part may come, and what it stands on.
    pub(super) fn admit(
        &self,
        cluster: &ClusterName,
        node: &NodeName,
        (offer, early): (&PartOffer, Option<RunTag>),
    ) -> Result<Admitted> {
        let source = self.nodes.get(node).filter(|_| *cluster == self.landing.cluster);
        let source = source.ok_or_else(|| Error::denied(format!("node {node} has no part in this backup")))?;
        check_slots(node, offer, &source.slots)?;
        let place = (offer.region, offer.lower.clone());
        let on = match early {
            Some(tag) => Some(self.landing.early_part(node, &place, tag, self.cut)?),
            None if offer.delta != 0 => Some(source.parents.get(&place).cloned().ok_or_else(no_parent)?),
            None => None,
        };
        if on.as_ref().is_some_and(|p| p.slots != offer.slots) {
            return Err(no_parent());
        }
        Ok(Admitted { number: source.number, on, came_early: early.is_some() })
    }

    pub(super) fn assemble(
        &self,
        admitted: Admitted,
        offer: PartOffer,
        mut run: RunEntry,
        done: PartDone,
    ) -> Result<Received> {
        (run.at, run.records, run.raw_bytes) = (self.cut, done.records, done.raw_bytes);
        let mut entry = PartEntry {
            region: offer.region,
            node: admitted.number,
            slots: offer.slots,
            lower: offer.lower,
            upper: done.upper,
            digest: done.digest,
            live_bytes: done.live_bytes,
            runs: Vec::new(),
        };
        let kind = match (&admitted.on, admitted.came_early) {
            (Some(_), false) if run.blocks > 0 => ReceivedKind::Delta,
            (Some(_), false) => ReceivedKind::Same,
            _ => ReceivedKind::Full,
        };
        match admitted.on {
            None if done.records != entry.digest.count => {
                return Err(Error::damaged("a full part counts other records than its digest"));
            }
            None => {}
            Some(before) if entry.upper != before.upper => {
                return Err(Error::damaged("a delta ends at another key than its parent"));
            }
            Some(before) => {
                entry.digest = before.digest.plus(entry.digest);
                entry.live_bytes = before.live().wrapping_add(entry.live_bytes);
                entry.live_bytes = entry.live();
                entry.runs = before.runs;
            }
        }
        // An empty part has no run at all.
        entry.runs.extend((run.blocks > 0).then_some(run));
        let new = entry.runs.iter().filter(|r| r.at == self.cut);
        let new_bytes = new.map(RunEntry::stored_bytes).sum();
        Ok(Received { entry, new_bytes, kind })
    }

    /// Keeps a part; answers what tells that it is stored, and whether too many parts of its node wait for that.
    pub(super) fn note(&self, received: Received) -> (oneshot::Receiver<()>, bool) {
        let (send, receive) = oneshot::channel();
        let mut state = self.state.lock().expect("parts");
        if !state.ended {
            state.waiting.push((received.entry.clone(), send));
        }
        let node = received.entry.node;
        let crowded = state.waiting.iter().filter(|(p, _)| p.node == node).count() >= MAX_WAITING;
        let key = (node, (received.entry.region, received.entry.lower.clone()));
        let _ = state.received.insert(key, received);
        (receive, crowded)
    }

    /// Writes a revision of the job record for the parts whose packs are closed, and acknowledges them.
    pub(super) async fn acknowledge_durable(&self) -> Result<()> {
        // One revision at a time: parts of a later one must not be acknowledged before an earlier one is durable.
        let mut recorder = self.recorder.lock().await;
        let packs = &self.landing.packs;
        let durable = |part: &PartEntry| {
            let mut new = part.runs.iter().filter(|run| run.at == self.cut);
            new.all(|run| run.extents.iter().chain([&run.index]).all(|e| packs.is_durable(&e.pack)))
        };
        let ready: Vec<_> = {
            let mut state = self.state.lock().expect("parts");
            let (ready, waiting) = std::mem::take(&mut state.waiting).into_iter().partition(|(p, _)| durable(p));
            state.waiting = waiting;
            ready
        };
        let with_runs: Vec<PartEntry> = ready
            .iter()
            .filter(|(p, _)| p.runs.last().is_some_and(|r| r.at == self.cut))
            .map(|(p, _)| p.clone())
            .collect();
        if !with_runs.is_empty() {
            recorder.parts(self.cut, self.parent, with_runs).await?;
            tidemark_common::crash::point("ingest.recorded");
        }
        for (_, ack) in ready {
            // An agent that went away learns from the next attempt.
            let _ = ack.send(());
        }
        Ok(())
    }

    /// Closes the packs and acknowledges every part. An agent is done when its bytes have arrived, which may be before
    /// they were read here: parts under way are waited for. Those of a lost agent end with its connection.
    pub async fn flush(&self) -> Result<()> {
        // The sender lives in this job.
        let landing = &self.landing;
        let _ = landing.under_way.subscribe().wait_for(|n| *n == 0).await;
        landing.kept(landing.packs.flush().await)?;
        self.acknowledge_durable().await?;
        landing.check_broken()?;
        let waiting = self.state.lock().expect("parts").waiting.len();
        if waiting > 0 {
            return Err(Error::bug(format!(
                "{waiting} parts were received, but no pack that holds them was stored"
            )));
        }
        Ok(())
    }

    /// The job is over: streams of parts that wait to be stored end. Each of them holds the job, so it does not end by itself; left open
    /// they would be missing to the next backup, as a connection may have so many.
    pub(super) fn end(&self) {
        let mut state = self.state.lock().expect("parts");
        state.ended = true;
        state.waiting.clear();
    }

    /// Parts of a node that have been received.
    pub fn received_of(&self, number: u16) -> Vec<PartKey> {
        let state = self.state.lock().expect("parts");
        state.received.keys().filter(|(n, _)| *n == number).map(|(_, key)| key.clone()).collect()
    }

    /// Where parts of a node end although nothing that was received begins there: their regions go on from there.
    pub fn rest_of(&self, number: u16) -> Vec<PartKey> {
        let state = self.state.lock().expect("parts");
        let own = state.received.iter().filter(|((n, _), _)| *n == number);
        own.filter(|(_, r)| !r.entry.upper.is_empty())
            .map(|((_, (region, _)), r)| (*region, r.entry.upper.clone()))
            .filter(|next| !state.received.contains_key(&(number, next.clone())))
            .collect()
    }

    /// Everything received, ascending by node and place.
    pub fn take_received(&self) -> Vec<Received> {
        std::mem::take(&mut self.state.lock().expect("parts").received).into_values().collect()
    }

    /// What the job writes, for collection to leave alone.
    pub fn scope(&self) -> &Scope {
        &self.landing.scope
    }

    /// The repository that the parts go to.
    pub fn repository(&self) -> &Repository {
        &self.landing.repository
    }
}
