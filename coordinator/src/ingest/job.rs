//! One backup job's parts: from their streams into packs, and from packs to durable.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use tidemark_common::transport::FrameReader;
use tidemark_proto::frame::Message;
use tidemark_proto::hash::Hash;
use tidemark_proto::stored::manifest::{PartEntry, RunEntry};
use tidemark_proto::wire::bulk::{FRAME_BLOCK, FRAME_INDEX, MAX_BLOCK_FRAME, MAX_INDEX_FRAME, PartDone, PartOffer};
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result, Timestamp};
use tokio::sync::{oneshot, watch};

use super::grants::{Pace, UnderWay};
use super::{GATHER, IngestNode, MAX_WAITING, Received, ReceivedKind};
use crate::job::backup::PartKey;
use crate::repository::{JobRecorder, PackKind, PackSet, Repository, Scope};

/// One backup job's parts.
#[derive(Debug)]
pub struct IngestJob {
    pub(super) repository: Repository,
    pub(super) cluster: ClusterName,
    pub(super) cut: Timestamp,
    pub(super) parent: Hash,
    pub(super) nodes: HashMap<NodeName, IngestNode>,
    pub(super) packs: PackSet,
    pub(super) scope: Arc<Scope>,
    /// Why a pack could not be stored. Parts in it were received, so this is the end of the job.
    pub(super) broken: OnceLock<(ErrorKind, String)>,
    pub(super) recorder: tokio::sync::Mutex<JobRecorder>,
    pub(super) state: Mutex<Parts>,
    /// Parts that were granted and are not noted yet.
    pub(super) under_way: watch::Sender<usize>,
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
            let added = entry.runs.last().filter(|r| r.at == cut);
            let kind = if entry.runs.len() == 1 { ReceivedKind::Full } else { ReceivedKind::Delta };
            let new_bytes = added.map_or(0, RunEntry::stored_bytes);
            ((entry.node, (entry.region, entry.lower.clone())), Received { entry, new_bytes, kind })
        });
        Self { received: received.collect(), waiting: Vec::new(), ended: false }
    }
}

impl IngestJob {
    pub(super) fn admit(&self, cluster: &ClusterName, node: &NodeName, offer: &PartOffer) -> Result<&IngestNode> {
        let source = self.nodes.get(node).filter(|_| *cluster == self.cluster);
        let source = source.ok_or_else(|| Error::denied(format!("node {node} has no part in this backup")))?;
        if !offer.slots.is_canonical() || offer.slots.is_empty() || !offer.slots.minus(&source.slots).is_empty() {
            return Err(Error::denied(format!("slots {} are not those of node {node} at the cut", offer.slots)));
        }
        if offer.delta != 0 {
            let parent = source.parents.get(&(offer.region, offer.lower.clone()));
            if parent.is_none_or(|p| p.slots != offer.slots) {
                return Err(Error::conflict("a delta on a part that the parent backup does not hold"));
            }
        }
        Ok(source)
    }

    /// Reads blocks and index into packs, up to the closing message.
    pub(super) async fn read_part(
        &self,
        kind: PackKind,
        run: &mut RunEntry,
        reader: &mut FrameReader,
        pace: &Pace<'_>,
    ) -> Result<PartDone> {
        let (mut gathered, mut bytes) = (Vec::new(), 0);
        loop {
            let header =
                reader.read_header().await?.ok_or_else(|| Error::retry("the part ended before its close"))?;
            match header.kind {
                FRAME_BLOCK => {
                    let block = reader.read_body(header, MAX_BLOCK_FRAME).await?;
                    pace.passed(block.len()).await;
                    bytes += 4 + block.len();
                    gathered.push(Bytes::copy_from_slice(&(block.len() as u32).to_le_bytes()));
                    gathered.push(block);
                    run.blocks += 1;
                    tidemark_common::crash::point("ingest.block");
                    if bytes >= GATHER {
                        self.append(kind, run, &mut gathered).await?;
                        bytes = 0;
                    }
                }
                FRAME_INDEX => {
                    let index = reader.read_body(header, MAX_INDEX_FRAME).await?;
                    pace.passed(index.len()).await;
                    self.append(kind, run, &mut gathered).await?;
                    run.index = self.kept(self.packs.append(kind, &[index]).await)?;
                    bytes = 0;
                }
                PartDone::KIND => {
                    let done: PartDone = reader.decode(header).await?;
                    if done.blocks != run.blocks || (run.blocks > 0 && run.index.len == 0) || !gathered.is_empty() {
                        return Err(Error::damaged("a part's close does not fit what was sent"));
                    }
                    // Up to the end of the stream: a reader dropped before it would tell the agent to stop sending.
                    reader.read_end().await?;
                    return Ok(done);
                }
                other => return Err(Error::damaged(format!("frame {other} inside a part"))),
            }
        }
    }

    pub(super) async fn append(&self, kind: PackKind, run: &mut RunEntry, gathered: &mut Vec<Bytes>) -> Result<()> {
        if gathered.is_empty() {
            return Ok(());
        }
        let extent = self.kept(self.packs.append(kind, gathered).await)?;
        gathered.clear();
        match run.extents.last_mut() {
            Some(last) if last.pack == extent.pack && last.offset + last.len == extent.offset => {
                last.len += extent.len
            }
            _ => run.extents.push(extent),
        }
        Ok(())
    }

    pub(super) fn assemble(
        &self,
        source: &IngestNode,
        offer: PartOffer,
        mut run: RunEntry,
        done: PartDone,
    ) -> Result<Received> {
        (run.records, run.raw_bytes) = (done.records, done.raw_bytes);
        let parent = source.parents.get(&(offer.region, offer.lower.clone())).filter(|_| offer.delta != 0);
        let new_bytes = run.stored_bytes();
        let mut entry = PartEntry {
            region: offer.region,
            node: source.number,
            slots: offer.slots,
            lower: offer.lower,
            upper: done.upper,
            digest: done.digest,
            live_bytes: done.live_bytes,
            runs: Vec::new(),
        };
        let Some(parent) = parent else {
            if done.records != entry.digest.count {
                return Err(Error::damaged("a full part counts other records than its digest"));
            }
            // An empty part has no run at all.
            entry.runs.extend((run.blocks > 0).then_some(run));
            return Ok(Received { entry, new_bytes, kind: ReceivedKind::Full });
        };
        if entry.upper != parent.upper {
            return Err(Error::damaged("a delta ends at another key than its parent"));
        }
        entry.digest = parent.digest.plus(entry.digest);
        entry.live_bytes = parent.live_bytes.wrapping_add(entry.live_bytes);
        entry.runs.clone_from(&parent.runs);
        let kind = if run.blocks > 0 { ReceivedKind::Delta } else { ReceivedKind::Same };
        entry.runs.extend((run.blocks > 0).then_some(run));
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
        let durable = |part: &PartEntry| {
            part.runs.last().is_none_or(|run| {
                run.at != self.cut || run.extents.iter().chain([&run.index]).all(|e| self.packs.is_durable(&e.pack))
            })
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

    pub(super) fn enter(&self) -> UnderWay<'_> {
        self.under_way.send_modify(|n| *n += 1);
        UnderWay(&self.under_way)
    }

    /// Closes the packs and acknowledges every part. An agent is done when its bytes have arrived, which may be before
    /// they were read here: parts under way are waited for. Those of a lost agent end with its connection.
    pub async fn flush(&self) -> Result<()> {
        // The sender lives in this job.
        let _ = self.under_way.subscribe().wait_for(|n| *n == 0).await;
        self.kept(self.packs.flush().await)?;
        self.acknowledge_durable().await?;
        self.check_broken()?;
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

    /// Takes note of a pack that could not be stored: other parts may lie in it, whose streams know nothing of it.
    pub(super) fn kept<T>(&self, stored: Result<T>) -> Result<T> {
        stored.inspect_err(|e| {
            let _ = self.broken.set((e.kind(), e.report()));
        })
    }

    /// Fails once a pack could not be stored.
    pub(super) fn check_broken(&self) -> Result<()> {
        let Some((kind, why)) = self.broken.get() else { return Ok(()) };
        // To send the part again would not help: the pack is gone with the parts of others.
        let kind = if *kind == ErrorKind::Retry { ErrorKind::Conflict } else { *kind };
        Err(Error::new(kind, format!("a pack of this backup could not be stored: {why}")))
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
        &self.scope
    }

    /// The repository that the parts go to.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }
}
