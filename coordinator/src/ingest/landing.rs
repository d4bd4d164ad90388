//! Where the parts of a backup job land: from their streams into its packs, those too that come before its cut.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use tidemark_common::transport::FrameReader;
use tidemark_proto::frame::Message;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::manifest::{PartEntry, RunEntry};
use tidemark_proto::wire::bulk::{FRAME_BLOCK, FRAME_INDEX, MAX_BLOCK_FRAME, MAX_INDEX_FRAME, PartDone, PartOffer};
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result, SlotSet, Timestamp};
use tokio::sync::watch;

use super::GATHER;
use super::grants::{Pace, UnderWay};
use crate::job::backup::PartKey;
use crate::repository::{PackKind, PackSet, Repository, Scope};

/// What names an attempt at a part.
pub(super) type RunTag = [u8; 16];

/// What one backup job writes.
#[derive(Debug)]
pub struct Landing {
    pub(super) repository: Repository,
    pub(super) cluster: ClusterName,
    pub(super) packs: PackSet,
    pub(super) scope: Arc<Scope>,
    /// Why a pack could not be stored. Parts in it were received, so this is the end of the job.
    broken: OnceLock<(ErrorKind, String)>,
    /// Parts that were granted and are not noted yet.
    pub(super) under_way: watch::Sender<usize>,
    early: Mutex<Early>,
}

/// What comes before the cut.
#[derive(Debug, Default)]
struct Early {
    /// Slots of the nodes that may send.
    nodes: HashMap<NodeName, SlotSet>,
    parts: HashMap<(NodeName, PartKey), EarlyPart>,
}

/// A part as the base of its node has it. Nothing of it counts unless the node says after the cut what differs.
#[derive(Debug, Clone)]
struct EarlyPart {
    tag: RunTag,
    slots: SlotSet,
    upper: Vec<u8>,
    digest: SetDigest,
    live_bytes: u64,
    /// Not one of an empty part.
    run: Option<RunEntry>,
}

/// What came of a node before the cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CameEarly {
    /// Parts.
    pub parts: u64,
    /// Bytes of them in packs.
    pub bytes: u64,
}

/// Refuses a part of slots that are not the node's.
pub(super) fn check_slots(node: &NodeName, offer: &PartOffer, own: &SlotSet) -> Result<()> {
    if !offer.slots.is_canonical() || offer.slots.is_empty() || !offer.slots.minus(own).is_empty() {
        return Err(Error::denied(format!("slots {} are not those of node {node}", offer.slots)));
    }
    Ok(())
}

impl Landing {
    /// Of a job of `cluster`.
    pub(super) fn new(repository: &Repository, cluster: &ClusterName) -> Self {
        let scope = repository.draw();
        Self {
            repository: repository.clone(),
            cluster: cluster.clone(),
            packs: PackSet::new(repository.store(), cluster, &scope),
            scope,
            broken: OnceLock::new(),
            under_way: watch::Sender::new(0),
            early: Mutex::default(),
        }
    }

    fn early(&self) -> MutexGuard<'_, Early> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `node` may send parts of these slots before the cut.
    pub fn expect_early(&self, node: NodeName, slots: SlotSet) {
        let _ = self.early().nodes.insert(node, slots);
    }

    /// What has come of `node` before the cut.
    pub fn came_early(&self, node: &NodeName) -> CameEarly {
        let early = self.early();
        let own = early.parts.iter().filter(|((n, _), _)| n == node);
        own.fold(CameEarly::default(), |sum, (_, part)| CameEarly {
            parts: sum.parts + 1,
            bytes: sum.bytes + part.run.as_ref().map_or(0, RunEntry::stored_bytes),
        })
    }

    /// Whether the part may come before the cut.
    pub(super) fn admit_early(&self, cluster: &ClusterName, node: &NodeName, offer: &PartOffer) -> Result<()> {
        let slots = self.early().nodes.get(node).filter(|_| *cluster == self.cluster).cloned();
        let slots =
            slots.ok_or_else(|| Error::denied(format!("node {node} was not asked to send anything yet")))?;
        if offer.delta != 0 {
            return Err(Error::denied("a delta before the cut"));
        }
        check_slots(node, offer, &slots)
    }

    /// Keeps a part that came before the cut. One of an earlier attempt is dead bytes in a pack.
    pub(super) fn keep_early(
        &self,
        node: &NodeName,
        offer: PartOffer,
        (tag, mut run, done): (RunTag, RunEntry, PartDone),
    ) -> Result<()> {
        if done.records != done.digest.count {
            return Err(Error::damaged("a full part counts other records than its digest"));
        }
        (run.records, run.raw_bytes) = (done.records, done.raw_bytes);
        let PartDone { upper, digest, live_bytes, .. } = done;
        let run = (run.blocks > 0).then_some(run);
        let part = EarlyPart { tag, slots: offer.slots, upper, digest, live_bytes, run };
        let _ = self.early().parts.insert((node.clone(), (offer.region, offer.lower)), part);
        Ok(())
    }

    /// The part of a node that came before the cut under `tag`, as one of the backup of `cut`. `NotFound` when there is none.
    pub(super) fn early_part(
        &self,
        node: &NodeName,
        place: &PartKey,
        tag: RunTag,
        cut: Timestamp,
    ) -> Result<PartEntry> {
        let part = self.early().parts.get(&(node.clone(), place.clone())).filter(|p| p.tag == tag).cloned();
        let part = part.ok_or_else(|| Error::not_found("no such part came before the cut"))?;
        let EarlyPart { slots, upper, digest, live_bytes, run, .. } = part;
        let runs = run.into_iter().map(|run| RunEntry { at: cut, ..run }).collect();
        let (region, lower) = place.clone();
        Ok(PartEntry { region, node: 0, slots, lower, upper, digest, live_bytes, runs })
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

    async fn append(&self, kind: PackKind, run: &mut RunEntry, gathered: &mut Vec<Bytes>) -> Result<()> {
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

    pub(super) fn enter(&self) -> UnderWay<'_> {
        self.under_way.send_modify(|n| *n += 1);
        UnderWay(&self.under_way)
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
}
