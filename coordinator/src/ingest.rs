//! Ingest: receives parts, writes packs and job records, acknowledges what is durable.
//!
//! A part is offered; it is granted when the memory budget has room for one more; its sealed blocks go to packs as they
//! arrive. `Stored` follows when its packs are closed and a revision of the job record lists it. A stream that breaks
//! leaves dead bytes in a pack and nothing else.

mod grants;
mod job;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use metrics::histogram;
use tidemark_common::transport::{FrameReader, FrameWriter, limits};
use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::manifest::{Extent, PartEntry, RunEntry};
use tidemark_proto::wire::bulk::{Grant, PartOffer, Stored};
use tidemark_proto::{ClusterName, Error, NodeName, Result, SlotSet, Timestamp};
use tokio::sync::watch;

use crate::fleet::Member;
use crate::job::backup::{PartKey, most_runs};
use crate::limits::Limits;
use crate::metric_names::PART_SECONDS;
use crate::repository::{JobRecorder, PackKind, PackSet, Repository};

use grants::Grants;
pub use grants::IngestLoad;
pub(crate) use grants::Pace;
pub use job::IngestJob;
use job::Parts;

/// Bytes of a part gathered before they go to a pack as one extent.
const GATHER: usize = 1 << 20;
/// Parts of one node that may wait for their packs to close: half the streams that its connection may have open.
const MAX_WAITING: usize = limits::MAX_STREAMS as usize / 2;
/// Memory of one granted part: what it gathers, what its stream may hold unread, and a block or two between.
pub const GRANT_COST: u64 = 6 << 20;

/// A node that takes part in a backup.
#[derive(Debug, Clone)]
pub struct IngestNode {
    /// Its number in the manifest.
    pub number: u16,
    /// Slots taken from it.
    pub slots: SlotSet,
    /// Its parts in the parent backup.
    pub parents: BTreeMap<PartKey, PartEntry>,
}

/// A part as it was received.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its entry for the manifest.
    pub entry: PartEntry,
    /// Bytes it added to packs.
    pub new_bytes: u64,
    /// What it is.
    pub kind: ReceivedKind,
}

/// What a received part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceivedKind {
    /// A full run.
    Full,
    /// A delta run on its parent.
    Delta,
    /// Nothing changed.
    Same,
}

/// The backup jobs that receive parts.
#[derive(Debug)]
pub struct Ingest {
    repository: Repository,
    jobs: Mutex<HashMap<JobId, Arc<IngestJob>>>,
    grants: Grants,
    limits: Arc<Limits>,
}

impl Ingest {
    /// An ingest whose parts under way take at most `budget` bytes (at least one is always granted).
    pub fn new(repository: Repository, budget: u64, limits: Arc<Limits>) -> Self {
        Self { repository, jobs: Mutex::default(), grants: Grants::within(budget), limits }
    }

    /// How much there is to do now.
    pub fn load(&self) -> IngestLoad {
        let jobs = self.jobs.lock().expect("jobs");
        self.grants.load(jobs.values().map(|j| j.state.lock().expect("parts").waiting.len()).sum())
    }

    /// Opens a job for its nodes; parts of unknown jobs are refused. `stored` are parts that an earlier coordinator has
    /// stored for it.
    pub fn open(
        &self,
        job: JobId,
        cluster: &ClusterName,
        (cut, parent): (Timestamp, Hash),
        nodes: HashMap<NodeName, IngestNode>,
        recorder: JobRecorder,
        stored: Vec<PartEntry>,
    ) -> Arc<IngestJob> {
        let scope = self.repository.draw();
        if parent != Hash::ZERO {
            scope.builds_on(parent);
        }
        let opened = Arc::new(IngestJob {
            repository: self.repository.clone(),
            cluster: cluster.clone(),
            cut,
            parent,
            nodes,
            packs: PackSet::new(self.repository.store(), cluster, &scope),
            scope,
            broken: OnceLock::new(),
            recorder: tokio::sync::Mutex::new(recorder),
            state: Mutex::new(Parts::stored(stored, cut)),
            under_way: watch::Sender::new(0),
        });
        let before = self.jobs.lock().expect("jobs").insert(job, opened.clone());
        if let Some(before) = before {
            before.end();
        }
        opened
    }

    /// Forgets a job; parts that still come are refused, and streams that wait for it end.
    pub fn close(&self, job: &JobId) {
        let ended = self.jobs.lock().expect("jobs").remove(job);
        if let Some(job) = ended {
            job.end();
        }
    }

    fn job(&self, id: &JobId) -> Result<Arc<IngestJob>> {
        let job = self.jobs.lock().expect("jobs").get(id).cloned();
        job.ok_or_else(|| Error::conflict(format!("no backup job {id} takes parts")))
    }

    /// Serves one part stream of `node`.
    pub async fn receive(
        &self,
        cluster: &ClusterName,
        node: &NodeName,
        offer: PartOffer,
        reader: &mut FrameReader,
        writer: &mut FrameWriter,
    ) -> Result<()> {
        let job = self.job(&offer.job)?;
        job.check_broken()?;
        let source = job.admit(cluster, node, &offer)?;
        let permit = self.grants.take().await?;
        let began = Instant::now();
        let under_way = job.enter();
        let (salt, key_id) = (rand::random::<[u8; 16]>(), self.repository.keys().current());
        let grant = Grant {
            run_tag: self.repository.keys().run_tag(cluster, offer.region, &offer.lower, &salt),
            key: self.repository.keys().subkey(key_id, &salt)?,
            encrypt: u8::from(self.repository.keys().encrypts()),
        };
        writer.write_message(&grant).await?;
        let kind = match offer.delta {
            // Parts that are due at nearby ages share packs: two ages to a class.
            0 => PackKind::Base((most_runs(offer.region, &offer.lower) / 2) as usize),
            _ => PackKind::Delta,
        };
        let mut run = RunEntry {
            at: job.cut,
            key_id,
            salt,
            blocks: 0,
            records: 0,
            raw_bytes: 0,
            extents: Vec::new(),
            index: Extent { pack: Default::default(), offset: 0, len: 0 },
        };
        let pace = Pace { limits: &self.limits, member: Member { cluster: cluster.clone(), node: node.clone() } };
        let done = job.read_part(kind, &mut run, reader, &pace).await?;
        drop(permit);
        histogram!(PART_SECONDS, "kind" => "receive").record(began.elapsed());
        tracing::debug!(records = run.records, blocks = run.blocks, "part received");
        let received = job.assemble(source, offer, run, done)?;
        let (stored, crowded) = job.note(received);
        tidemark_common::crash::point("ingest.part");
        drop(under_way);
        if crowded {
            // Each waiting part holds a stream open: before a node runs out of streams, packs are closed early.
            job.kept(job.packs.flush().await)?;
        }
        job.acknowledge_durable().await?;
        let gone = writer.stopped();
        tokio::select! {
            stored = stored => {
                stored.map_err(|_| Error::cancelled("the backup ended before the part was stored"))?;
                writer.write_message(&Stored {}).await
            }
            // The agent does not wait for it any more; whether the part is stored shows in the job's end.
            _ = gone => Ok(()),
        }
    }
}
