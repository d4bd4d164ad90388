//! The session of one cluster: asks all nodes for what is new, puts it together into a segment, and tells the nodes what is
//! durable with the next question.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemark_common::crash;
use tidemark_proto::hash::Hash;
use tidemark_proto::stored::ledger::LogPolicy;
use tidemark_proto::stored::log::{BEGINS_BRANCH, Segment, SegmentChunk, SegmentNode};
use tidemark_proto::stored::paths;
use tidemark_proto::wire::bulk::LogChunk;
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result};
use tokio_util::sync::CancellationToken;

use super::index::{SegmentInfo, Tip};
use super::lines::Lines;
use super::member::Tail;
use super::node::Batch;
use super::operate::is_of_commands;
use super::points::Points;
use super::state::{NodeLag, Published, SessionState};
use super::window::Chains;
use crate::context::Shared;
use crate::fleet::Member;
use crate::repository::{BuiltSegment, Ledger};

/// Bytes by which one batch may pass what was asked for: its last entry.
pub(super) const SLACK: u64 = 32 << 20;
/// Nodes that do not answer within this are left out of the round.
const ROUND_PATIENCE: Duration = Duration::from_secs(1);
/// Least bytes asked of one node.
const LEAST_PULL: u64 = 1 << 20;
/// A segment that is not stored after this is told of.
const PUT_SLOW: Duration = Duration::from_secs(5);
/// Waits between attempts to put a segment.
const PUT_RETRY: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(10)];

/// A segment that is being put.
pub(super) struct Put {
    task: tokio::task::JoinHandle<Result<()>>,
    info: SegmentInfo,
}

/// The session of one cluster.
pub(super) struct Session {
    pub(super) context: Shared,
    pub(super) cluster: ClusterName,
    pub(super) policy: LogPolicy,
    pub(super) tip: Tip,
    pub(super) lines: Lines,
    pub(super) chains: Chains,
    pub(super) nodes: BTreeMap<NodeName, Tail>,
    /// Of a log of commands.
    pub(super) points: Option<Points>,
    pub(super) put: Option<Put>,
    pub(super) merging: Option<tokio::task::JoinHandle<Result<SegmentInfo>>>,
    pub(super) merge_at: Instant,
    pub(super) last_put: Option<Instant>,
    pub(super) base_at: Instant,
    pub(super) published: Arc<Published>,
    pub(super) cancel: CancellationToken,
}

impl Session {
    /// Reads what is durable, and fences the log under this coordinator's epoch.
    pub(super) async fn open(
        context: Shared,
        cluster: ClusterName,
        policy: LogPolicy,
        published: Arc<Published>,
        cancel: CancellationToken,
    ) -> Result<Self> {
        let ledger = Ledger::load(&context.repository, &cluster).await?;
        let cuts = super::operate::cuts(&ledger).into_iter().map(|(cut, _)| cut);
        let engine = super::operate::engine(&context, &cluster, ledger.policy().map(|p| p.engine.as_str())).await?;
        let points = is_of_commands(&engine).then(Points::default);
        let mut session = Self {
            points,
            context,
            cluster,
            policy,
            tip: Tip::new(&ledger),
            lines: Lines::default(),
            chains: Chains::seeking(cuts, None),
            nodes: BTreeMap::new(),
            put: None,
            merging: None,
            merge_at: Instant::now(),
            last_put: None,
            base_at: Instant::now(),
            published,
            cancel,
        };
        session.catch_up().await?;
        let chains = session.chains.chains().iter();
        session.nodes = chains.map(|(name, chain)| (name.clone(), Tail::of(chain))).collect();
        session.take_over().await?;
        session.publish();
        Ok(session)
    }

    /// Runs until it is cancelled or fenced. What is received and not yet put is given up: the nodes have it still.
    pub(super) async fn run(&mut self) -> Result<()> {
        let interval = Duration::from_millis(self.policy.interval_millis);
        let cancel = self.cancel.clone();
        loop {
            let began = Instant::now();
            let round = async {
                self.choose_lanes().await;
                self.start_streams().await;
                self.light_cut().await;
                self.pull().await;
                let busy = self.write().await?;
                self.look_after_base();
                self.look_after_size().await;
                self.publish();
                Ok::<_, Error>(busy)
            };
            let busy = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                busy = round => busy?,
            };
            if !busy {
                let rest = interval.saturating_sub(began.elapsed());
                tokio::select! {
                    () = cancel.cancelled() => return Ok(()),
                    () = tokio::time::sleep(rest) => {}
                }
            }
        }
    }

    /// Opens a stream to every connected node that has none.
    async fn start_streams(&mut self) {
        // The nodes of a log of commands are chosen.
        let all = if self.points.is_some() { Vec::new() } else { self.context.fleet.members(Some(&self.cluster)) };
        for (member, _) in all {
            let tail = self.nodes.entry(member.node.clone()).or_default();
            tail.connected = true;
        }
        let context = &self.context;
        let starts = self.nodes.iter_mut().map(|(name, tail)| {
            let member = Member { cluster: self.cluster.clone(), node: name.clone() };
            tail.connected = context.fleet.is_connected(&member);
            if tail.connected && tail.wants_stream() {
                tail.open_stream(context, member);
            }
            tokio::time::timeout(ROUND_PATIENCE, tail.opened())
        });
        let _ = futures::future::join_all(starts).await;
    }

    /// Asks every node that has a stream and no batch waiting, and collects what comes in time.
    async fn pull(&mut self) {
        let open = self.nodes.values().filter(|t| t.is_open()).count().max(1) as u64;
        let most = (self.policy.segment_bytes / open).max(LEAST_PULL);
        let region = self.slots_per_region();
        let (context, commands) = (&self.context, self.points.is_some());
        let pulls = self.nodes.iter_mut().map(|(name, tail)| {
            let member = Member { cluster: self.cluster.clone(), node: name.clone() };
            async move {
                tail.ask(context, &member, (most, region), commands).await;
                let _ = tokio::time::timeout(ROUND_PATIENCE, tail.collect()).await;
            }
        });
        let _ = futures::future::join_all(pulls).await;
    }

    fn slots_per_region(&self) -> u16 {
        self.published.slots_per_region(&self.context)
    }

    /// Puts what was collected, behind the segment before it; answers whether there is more to ask for at once.
    async fn write(&mut self) -> Result<bool> {
        let news = self.nodes.iter().filter_map(|(name, t)| Some((name, t.batch.as_ref()?)));
        let (mut any, mut busy) = (false, false);
        for (name, batch) in news {
            // Of a log of commands who owned a slot last is news too.
            let chain = self.chains.chains().get(name).filter(|_| self.points.is_some());
            any |= batch.header.begins == 1 || !batch.chunks.is_empty();
            any |= chain.is_some_and(|chain| chain.slots != batch.header.slots);
            busy |= batch.header.behind_bytes > 0;
        }
        let idle = Duration::from_millis(self.policy.idle_millis);
        // A backup whose cut lies behind the window's end is no base before that is passed.
        let waits = self.chains.open().is_some_and(|open| self.published.newest_cut() > open.end);
        let reached = self.reached();
        let waits = waits || self.points.as_ref().is_some_and(|points| points.waits(reached));
        let due = (waits || self.last_put.is_none_or(|at| at.elapsed() >= idle))
            && self.nodes.values().any(|t| t.batch.is_some());
        if !any && !due {
            // What is closed without a change costs nothing: the next question begins where this one did.
            let more = self.nodes.values_mut().fold(false, |more, tail| tail.dropped() | more);
            if self.put.as_ref().is_some_and(|p| p.task.is_finished()) {
                self.finish_put().await?;
            }
            return Ok(more);
        }
        self.finish_put().await?;
        self.begin_put()?;
        Ok(busy)
    }

    pub(super) fn segment(&self, nodes: Vec<SegmentNode>, chunks: Vec<SegmentChunk>) -> Segment {
        Segment {
            number: self.tip.next(),
            first: self.tip.next(),
            stands_for: Hash::ZERO,
            previous: self.tip.hash().unwrap_or(Hash::ZERO),
            epoch: self.context.epoch,
            put_id: rand::random(),
            at_millis: self.context.now_millis(),
            slots_per_region: self.slots_per_region(),
            nodes,
            chunks,
        }
    }

    fn begin_put(&mut self) -> Result<()> {
        let (mut nodes, mut chunks): (Vec<SegmentNode>, Vec<(SegmentChunk, Bytes)>) = Default::default();
        let reached = self.reached();
        let points = self.points.as_mut().map(|points| points.whole(reached));
        for (name, tail) in &mut self.nodes {
            let Some(mut batch) = tail.batch.take() else { continue };
            let chain = self.chains.chains().get(name);
            if self.points.is_some()
                && batch.header.begins == 0
                && chain.is_none_or(|c| c.slots != batch.header.slots)
            {
                batch.header.begins = BEGINS_BRANCH;
            }
            tail.sent(&batch.header);
            gather(name, batch, &mut nodes, &mut chunks);
        }
        if let (Some(points), Some(last)) = (&mut self.points, chunks.iter().map(|(c, _)| c.last).max()) {
            points.has_news(last);
        }
        chunks.sort_by_key(|(c, _)| (c.region, c.node, c.number));
        let (places, sealed): (Vec<_>, Vec<_>) = chunks.into_iter().unzip();
        let mut segment = self.segment(nodes, places);
        let BuiltSegment { bytes, hash } =
            self.context.repository.build_segment(&self.cluster, &mut segment, points.as_deref(), &sealed)?;
        let info = SegmentInfo::of(&segment, hash, bytes.len() as u64).with_points(points);
        let (repository, published) = (self.context.repository.clone(), self.published.clone());
        let (path, cancel) = (paths::log(&self.cluster, segment.number), self.cancel.clone());
        let task = tokio::spawn(async move {
            let mut attempt = 0;
            loop {
                crash::point("log.put");
                let put = repository.store().create(&path, bytes.clone());
                let e = match told_when_slow(put, &path, &published).await {
                    Ok(()) => {
                        published.trouble(None);
                        return Ok(());
                    }
                    Err(e) => e,
                };
                if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::Denied | ErrorKind::Config) {
                    return Err(e);
                }
                tracing::warn!(%path, error = %e.report(), "a segment of the log cannot be stored; trying again");
                published.trouble(Some(e.report()));
                let wait = PUT_RETRY[attempt.min(PUT_RETRY.len() - 1)];
                attempt += 1;
                tokio::select! {
                    () = cancel.cancelled() => return Err(Error::cancelled("the log's session ends")),
                    () = tokio::time::sleep(wait) => {}
                }
            }
        });
        self.put = Some(Put { task, info });
        Ok(())
    }

    /// Waits until the segment under way is durable.
    async fn finish_put(&mut self) -> Result<()> {
        let Some(put) = &mut self.put else { return Ok(()) };
        let done =
            (&mut put.task).await.unwrap_or_else(|e| Err(Error::bug("putting a segment panicked").with_source(e)));
        let info = self.put.take().map(|p| p.info);
        match done {
            Ok(()) => info.into_iter().for_each(|info| self.durable(info)),
            Err(e) if e.kind() == ErrorKind::Conflict => {
                // Somebody else has won the number: only a later coordinator may.
                self.catch_up().await?;
                return Err(match self.tip.epoch() {
                    epoch if epoch > self.context.epoch => self.fenced(epoch),
                    _ => e.context("another writer has put a segment of the log under this epoch"),
                });
            }
            Err(e) => return Err(e),
        }
        crash::point("log.durable");
        Ok(())
    }

    pub(super) fn durable(&mut self, info: SegmentInfo) {
        for node in &info.nodes {
            if let Some(tail) = self.nodes.get_mut(&node.node) {
                tail.durable(node.to, node.closed);
            }
        }
        self.published.stored(&self.cluster, info.size);
        let before = self.chains.open().map(|i| i.start);
        self.chains.push(&info);
        if self.chains.open().map(|i| i.start) != before {
            // Another interval: it needs a base of its own, at once.
            self.base_at = Instant::now();
        }
        self.tip.written(&info);
        self.lines.push(&info);
        self.last_put = Some(Instant::now());
    }

    fn publish(&self) {
        let nodes = self.nodes.iter().map(|(name, tail)| tail.lag(name, self.context.now_millis()));
        let (segments, bytes) = self.lines.extent();
        let state = SessionState {
            windows: self.chains.windows(),
            open: self.chains.open().cloned(),
            nodes: nodes.collect::<Vec<NodeLag>>(),
            segments,
            bytes,
        };
        self.published.publish(&self.cluster, state);
    }
}

/// Waits for a put; one that takes long is told of meanwhile: the store's client tries again by itself for minutes.
async fn told_when_slow(put: impl Future<Output = Result<()>>, path: &str, published: &Published) -> Result<()> {
    let (mut put, began) = (std::pin::pin!(put), Instant::now());
    loop {
        tokio::select! {
            done = &mut put => return done,
            () = tokio::time::sleep(PUT_SLOW) => {
                let seconds = began.elapsed().as_secs();
                published.trouble(Some(format!("the object store has not taken {path} for {seconds} s")));
            }
        }
    }
}

/// A chunk's entry in a footer; its place comes when the segment is built.
pub(super) fn placed(node: u16, number: u32, c: LogChunk) -> SegmentChunk {
    let LogChunk { region, raw_len, entries, first, last } = c;
    SegmentChunk { node, region, number, offset: 0, len: 0, raw_len, entries, first, last }
}

/// Adds a node's batch to a segment.
fn gather(name: &NodeName, batch: Batch, nodes: &mut Vec<SegmentNode>, chunks: &mut Vec<(SegmentChunk, Bytes)>) {
    let Batch { header, key, chunks: sealed } = batch;
    let node = nodes.len() as u16;
    nodes.push(SegmentNode {
        node: name.clone(),
        incarnation: header.incarnation,
        slots: header.slots,
        from: header.from,
        to: header.to,
        closed: header.closed,
        key_id: key.key_id,
        salt: key.salt,
        begins: header.begins,
    });
    for (number, (c, sealed)) in header.chunks.into_iter().zip(sealed).enumerate() {
        chunks.push((placed(node, number as u32, c), sealed));
    }
}
