//! Serve: gives out the sealed blocks of runs to the nodes that a restore assigned them to, and to nobody else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tidemark_common::transport::{FrameReader, FrameWriter};
use tidemark_proto::id::JobId;
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::wire::bulk::{FRAME_BLOCK, FRAME_INDEX, FRAME_VERSION, Fetch, FetchBlocks};
use tidemark_proto::{ClusterName, Error, NodeName, Result};
use tokio::sync::Semaphore;

use crate::blocks::{READ_SPAN, RunBlocks};
use crate::repository::Repository;

/// The parts that one command assigned to a node, by their number in the plan.
pub type Assigned = HashMap<u32, Arc<PartEntry>>;

/// The parts that a restore gives out: those of the commands that are at work, so that memory is bounded by these.
#[derive(Debug)]
pub struct ServeJob {
    source: ClusterName,
    target: ClusterName,
    assigned: Mutex<HashMap<NodeName, Assigned>>,
}

impl ServeJob {
    /// Parts of cluster `source` for nodes of cluster `target`; none is assigned yet.
    pub fn new(source: ClusterName, target: ClusterName) -> Self {
        Self { source, target, assigned: Mutex::default() }
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
}

impl Serve {
    /// A server whose spans take at most `budget` bytes (at least one is always served).
    pub fn new(repository: Repository, budget: u64) -> Self {
        let spans = (budget / READ_SPAN).max(1) as usize;
        Self { repository, jobs: Mutex::default(), memory: Arc::new(Semaphore::new(spans)) }
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
        writer.write_raw(FRAME_INDEX, FRAME_VERSION, blocks.sealed_index.clone()).await?;
        while let Some(header) = reader.read_header().await? {
            let wanted: FetchBlocks = reader.decode(header).await?;
            let end = wanted.first.checked_add(wanted.count).filter(|end| *end <= run.blocks);
            let end = end.ok_or_else(|| Error::request(format!("the run has {} blocks", run.blocks)))?;
            self.send_blocks(&blocks, wanted.first..end, writer).await?;
        }
        writer.finish()
    }

    async fn send_blocks(
        &self,
        blocks: &RunBlocks,
        range: std::ops::Range<u32>,
        writer: &mut FrameWriter,
    ) -> Result<()> {
        for span in blocks.spans(range) {
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
