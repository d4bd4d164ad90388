//! Serve: gives out the sealed blocks of runs to the nodes that a restore assigned them to, and to nobody else.

mod log;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use metrics::{counter, histogram};
use tidemark_common::transport::{FrameReader, FrameWriter};
use tidemark_proto::id::JobId;
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::wire::bulk::{
    FRAME_BLOCK, FRAME_CHUNK, FRAME_INDEX, FRAME_VERSION, Fetch, FetchBlocks, FetchLog, LogGroup,
};
use tidemark_proto::{ClusterName, Error, NodeName, Result};
use tokio::sync::Semaphore;

use crate::blocks::{READ_SPAN, RunBlocks};
use crate::fleet::Member;
use crate::limits::Limits;
use crate::log::{LogParts, Piece};
use crate::metric_names::{PART_SECONDS, STAGE_BYTES, stage};
use crate::repository::Repository;

pub use log::{ServedLog, WorkedOff};

/// The parts that one command assigned to a node, by their number in the plan.
pub type Assigned = HashMap<u32, Arc<PartEntry>>;

/// The parts that a restore gives out: those of the commands that are at work, so that memory is bounded by these.
#[derive(Debug)]
pub struct ServeJob {
    source: ClusterName,
    target: ClusterName,
    log: Option<ServedLog>,
    assigned: Mutex<HashMap<NodeName, Assigned>>,
}

impl ServeJob {
    /// Parts of cluster `source` for nodes of cluster `target`, with the log that is laid over them; none is assigned yet.
    pub fn new(source: ClusterName, target: ClusterName, log: Option<ServedLog>) -> Self {
        Self { source, target, log, assigned: Mutex::default() }
    }

    /// A part that is assigned to the node now; `Denied` for any other.
    fn part(&self, cluster: &ClusterName, node: &NodeName, number: u32) -> Result<Arc<PartEntry>> {
        let assigned = self.assigned.lock().expect("assigned");
        let part = assigned.get(node).and_then(|parts| parts.get(&number)).filter(|_| self.target == *cluster);
        part.cloned().ok_or_else(|| Error::denied(format!("part {number} is not assigned to node {node}")))
    }
}

/// The restore jobs that give parts out.
#[derive(Debug)]
pub struct Serve {
    repository: Repository,
    jobs: Mutex<HashMap<JobId, Arc<ServeJob>>>,
    memory: Arc<Semaphore>,
    spans: usize,
    limits: Arc<Limits>,
}

/// How much serve has to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServeLoad {
    /// Memory for spans that are being given out.
    pub budget_bytes: u64,
    /// What of it is taken.
    pub used_bytes: u64,
}

impl Serve {
    /// A server whose spans take at most `budget` bytes (at least one is always served).
    pub fn new(repository: Repository, budget: u64, limits: Arc<Limits>) -> Self {
        let spans = (budget / READ_SPAN).max(1) as usize;
        Self { repository, jobs: Mutex::default(), memory: Arc::new(Semaphore::new(spans)), spans, limits }
    }

    /// How much there is to do now.
    pub fn load(&self) -> ServeLoad {
        let used = self.spans.saturating_sub(self.memory.available_permits());
        ServeLoad { budget_bytes: self.spans as u64 * READ_SPAN, used_bytes: used as u64 * READ_SPAN }
    }

    /// Begins to give out the parts of a job.
    pub fn open(&self, id: JobId, job: ServeJob) {
        let _ = self.jobs.lock().expect("jobs").insert(id, Arc::new(job));
    }

    /// Assigns `parts` to a node of an open job, instead of those that it was assigned before.
    pub fn hand_out(&self, id: &JobId, node: &NodeName, parts: Assigned) {
        if let Some(job) = self.jobs.lock().expect("jobs").get(id) {
            let _ = job.assigned.lock().expect("assigned").insert(node.clone(), parts);
        }
    }

    /// Gives out nothing more of a job.
    pub fn close(&self, id: &JobId) {
        let _ = self.jobs.lock().expect("jobs").remove(id);
    }

    /// Serves one run to `node`, as long as the stream asks for blocks.
    pub async fn send(
        &self,
        cluster: &ClusterName,
        node: &NodeName,
        fetch: Fetch,
        reader: &mut FrameReader,
        writer: &mut FrameWriter,
    ) -> Result<()> {
        let job = self.jobs.lock().expect("jobs").get(&fetch.job).cloned();
        let job = job.ok_or_else(|| Error::conflict(format!("no restore job {} gives parts out", fetch.job)))?;
        let part = job.part(cluster, node, fetch.part)?;
        let run = part.runs.get(fetch.run as usize);
        let run = run.ok_or_else(|| Error::request(format!("part {} has no run {}", fetch.part, fetch.run)))?;
        tidemark_common::crash::point("serve.part");
        let blocks = RunBlocks::open(&self.repository, &job.source, &part, run).await?;
        let (began, member) = (Instant::now(), Member { cluster: cluster.clone(), node: node.clone() });
        self.pace(&member, blocks.sealed_index.len() as u64).await;
        writer.write_raw(FRAME_INDEX, FRAME_VERSION, blocks.sealed_index.clone()).await?;
        while let Some(header) = reader.read_header().await? {
            let wanted: FetchBlocks = reader.decode(header).await?;
            let end = wanted.first.checked_add(wanted.count).filter(|end| *end <= run.blocks);
            let end = end.ok_or_else(|| Error::request(format!("the run has {} blocks", run.blocks)))?;
            self.send_blocks(&member, &blocks, wanted.first..end, writer).await?;
        }
        histogram!(PART_SECONDS, "kind" => "serve").record(began.elapsed());
        writer.finish()
    }

    /// Serves the log of one part to `node`.
    pub async fn send_log(
        &self,
        cluster: &ClusterName,
        node: &NodeName,
        fetch: FetchLog,
        writer: &mut FrameWriter,
    ) -> Result<()> {
        let job = self.jobs.lock().expect("jobs").get(&fetch.job).cloned();
        let job = job.ok_or_else(|| Error::conflict(format!("no restore job {} gives parts out", fetch.job)))?;
        let part = job.part(cluster, node, fetch.part)?;
        let log = job.log.as_ref().ok_or_else(|| Error::request(format!("job {} needs no log", fetch.job)))?;
        tidemark_common::crash::point("serve.log");
        let member = Member { cluster: cluster.clone(), node: node.clone() };
        match log {
            ServedLog::Records(log) => self.send_chunks(&member, log, log.pieces(part.region), writer).await?,
            ServedLog::Commands { log, nodes } => {
                for group in log.groups(&part.slots, nodes)? {
                    if !part.slots.minus(&group.slots.counted).is_empty() {
                        return Err(Error::bug("a log whose groups have no one order is not for agents"));
                    }
                    let pieces = group.pieces.len() as u32;
                    writer.write_message(&LogGroup { pieces }).await?;
                    self.send_chunks(&member, log, &group.pieces, writer).await?;
                }
            }
            ServedLog::WorkedOff(records) => self.send_records(&member, records, &part, writer).await?,
        }
        writer.finish()
    }

    async fn send_chunks(
        &self,
        member: &Member,
        log: &LogParts,
        pieces: &[Piece],
        writer: &mut FrameWriter,
    ) -> Result<()> {
        for pieces in log.spans_of(pieces, READ_SPAN) {
            let bytes = pieces.iter().map(|p| u64::from(log.chunk(*p).1.len)).sum();
            self.pace(member, bytes).await;
            let _permit = self.memory.acquire().await.map_err(|_| Error::cancelled("serve is closed"))?;
            for (piece, sealed) in pieces.iter().zip(log.read(&self.repository, pieces).await?) {
                writer.write_message(&log.opener(&self.repository, *piece)?).await?;
                writer.write_raw(FRAME_CHUNK, FRAME_VERSION, sealed).await?;
            }
        }
        Ok(())
    }

    /// Sends records that came of a log, each chunk under a key of its own.
    async fn send_records(
        &self,
        member: &Member,
        records: &WorkedOff,
        part: &PartEntry,
        writer: &mut FrameWriter,
    ) -> Result<()> {
        let mut chunks = records.chunks(part);
        while let Some(chunk) = chunks.recv().await {
            let (piece, sealed) = chunk?;
            self.pace(member, sealed.len() as u64).await;
            writer.write_message(&piece).await?;
            writer.write_raw(FRAME_CHUNK, FRAME_VERSION, sealed.into()).await?;
        }
        Ok(())
    }

    /// Waits until `bytes` may go to an agent, and counts them.
    async fn pace(&self, member: &Member, bytes: u64) {
        self.limits.pass(member, bytes).await;
        counter!(STAGE_BYTES, "stage" => stage::SERVED).increment(bytes);
    }

    async fn send_blocks(
        &self,
        member: &Member,
        blocks: &RunBlocks,
        range: std::ops::Range<u32>,
        writer: &mut FrameWriter,
    ) -> Result<()> {
        for span in blocks.spans_within(range, READ_SPAN.min(self.limits.moment())) {
            // Before the memory is taken: who waits for a limit must not keep it from others.
            self.pace(member, blocks.bytes(span.clone())).await;
            // Held while the span is read and handed to the transport. Agents ask for no more than they can take, so that
            // a span never waits for a reader who in turn waits for another span.
            let _permit = self.memory.acquire().await.map_err(|_| Error::cancelled("serve is closed"))?;
            for block in blocks.read(span).await? {
                writer.write_raw(FRAME_BLOCK, FRAME_VERSION, block).await?;
            }
        }
        Ok(())
    }
}
