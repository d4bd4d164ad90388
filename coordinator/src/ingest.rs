//! Ingest: receives parts, writes packs and job records, acknowledges what is durable.
//!
//! A part is offered; it is granted when the memory budget has room for one more; its sealed blocks go to packs as they
//! arrive. `Stored` follows when its packs are closed and a revision of the job record lists it. A stream that breaks
//! leaves dead bytes in a pack and nothing else.
//!
//! Parts of bases may come before the cut of their job. They land in the same packs, and count only through what their node says of
//! them after it: what differs, or nothing.

mod grants;
mod job;
mod landing;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use metrics::histogram;
use tidemark_common::transport::{FrameReader, FrameWriter, limits};
use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::manifest::{Extent, PartEntry, RunEntry};
use tidemark_proto::wire::bulk::{EarlyKept, EarlyOffer, Grant, PartDone, PartOffer, Stored};
use tidemark_proto::{ClusterName, Error, NodeName, Result, SlotSet, Timestamp};
use tokio::sync::OwnedSemaphorePermit;

use crate::fleet::Member;
use crate::job::backup::{PartKey, most_runs};
use crate::limits::Limits;
use crate::metric_names::PART_SECONDS;
use crate::repository::{JobRecorder, PackKind, Repository};

use grants::Grants;
pub use grants::IngestLoad;
pub(crate) use grants::Pace;
pub use job::IngestJob;
use job::Parts;
use landing::RunTag;
pub use landing::{CameEarly, Landing};

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
    jobs: Mutex<HashMap<JobId, Stage>>,
    grants: Grants,
    limits: Arc<Limits>,
}

/// How far a job is.
#[derive(Debug, Clone)]
enum Stage {
    /// Before its cut.
    Early(Arc<Landing>),
    /// From its cut on.
    Open(Arc<IngestJob>),
}

impl Stage {
    fn landing(&self) -> &Arc<Landing> {
        match self {
            Self::Early(landing) => landing,
            Self::Open(job) => &job.landing,
        }
    }

    fn open(&self) -> Option<&Arc<IngestJob>> {
        match self {
            Self::Early(_) => None,
            Self::Open(job) => Some(job),
        }
    }
}

impl Ingest {
    /// An ingest whose parts under way take at most `budget` bytes (at least one is always granted).
    pub fn new(repository: Repository, budget: u64, limits: Arc<Limits>) -> Self {
        Self { repository, jobs: Mutex::default(), grants: Grants::within(budget), limits }
    }

    /// How much there is to do now.
    pub fn load(&self) -> IngestLoad {
        let jobs = self.jobs.lock().expect("jobs");
        self.grants
            .load(jobs.values().filter_map(Stage::open).map(|j| j.state.lock().expect("parts").waiting.len()).sum())
    }

    /// Where parts of a job land before its cut; made when nobody has asked for it yet.
    pub fn open_early(&self, job: JobId, cluster: &ClusterName) -> Arc<Landing> {
        let new = || Stage::Early(Arc::new(Landing::new(&self.repository, cluster)));
        let mut jobs = self.jobs.lock().expect("jobs");
        let stage = jobs.entry(job).or_insert_with(new);
        // What came before the cut is no loss: where a pack of it could not be stored, all begins anew.
        if matches!(stage, Stage::Early(landing) if landing.check_broken().is_err()) {
            *stage = new();
        }
        stage.landing().clone()
    }

    /// Opens a job for its nodes, at its cut; parts of unknown jobs are refused. `stored` are parts that an earlier coordinator has
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
        let mut jobs = self.jobs.lock().expect("jobs");
        let before = jobs.remove(&job);
        let landing = match before.as_ref() {
            Some(Stage::Early(landing)) if landing.check_broken().is_ok() => landing.clone(),
            _ => Arc::new(Landing::new(&self.repository, cluster)),
        };
        if parent != Hash::ZERO {
            landing.scope.builds_on(parent);
        }
        let opened = Arc::new(IngestJob {
            landing,
            cut,
            parent,
            nodes,
            recorder: tokio::sync::Mutex::new(recorder),
            state: Mutex::new(Parts::stored(stored, cut)),
        });
        let _ = jobs.insert(job, Stage::Open(opened.clone()));
        drop(jobs);
        if let Some(Stage::Open(before)) = before {
            before.end();
        }
        opened
    }

    /// Forgets a job; parts that still come are refused, and streams that wait for it end.
    pub fn close(&self, job: &JobId) {
        let ended = self.jobs.lock().expect("jobs").remove(job);
        if let Some(job) = ended.as_ref().and_then(Stage::open) {
            job.end();
        }
    }

    fn stage(&self, id: &JobId) -> Result<Stage> {
        let stage = self.jobs.lock().expect("jobs").get(id).cloned();
        stage.ok_or_else(|| Error::conflict(format!("no backup job {id} takes parts")))
    }

    /// Serves one part stream of `member`; `early` names the part that came before the cut, where the offer is of what differs from it.
    pub async fn receive(
        &self,
        member: &Member,
        offer: PartOffer,
        early: Option<RunTag>,
        reader: &mut FrameReader,
        writer: &mut FrameWriter,
    ) -> Result<()> {
        let stage = self.stage(&offer.job)?;
        let job = stage.open().ok_or_else(|| Error::conflict("a part before the cut of its job"))?;
        job.landing.check_broken()?;
        let admitted = job.admit(&member.cluster, &member.node, (&offer, early))?;
        let (permit, began) = (self.grants.take().await?, Instant::now());
        let under_way = job.landing.enter();
        let (_, run, done) = self.take_part(&job.landing, member, (&offer, permit), reader, writer).await?;
        histogram!(PART_SECONDS, "kind" => "receive").record(began.elapsed());
        let received = job.assemble(admitted, offer, run, done)?;
        let (stored, crowded) = job.note(received);
        tidemark_common::crash::point("ingest.part");
        drop(under_way);
        if crowded {
            // Each waiting part holds a stream open: before a node runs out of streams, packs are closed early.
            job.landing.kept(job.landing.packs.flush().await)?;
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

    /// Serves one part stream of `member` before the cut of its job.
    pub async fn receive_early(
        &self,
        member: &Member,
        EarlyOffer { offer }: EarlyOffer,
        reader: &mut FrameReader,
        writer: &mut FrameWriter,
    ) -> Result<()> {
        let landing = self.stage(&offer.job)?.landing().clone();
        landing.check_broken()?;
        landing.admit_early(&member.cluster, &member.node, &offer)?;
        let (permit, began) = (self.grants.take().await?, Instant::now());
        let _under_way = landing.enter();
        let taken = self.take_part(&landing, member, (&offer, permit), reader, writer).await?;
        histogram!(PART_SECONDS, "kind" => "receive").record(began.elapsed());
        landing.keep_early(&member.node, offer, taken)?;
        tidemark_common::crash::point("ingest.early");
        writer.write_message(&EarlyKept {}).await
    }

    /// Grants a part and reads it into packs.
    async fn take_part(
        &self,
        landing: &Landing,
        member: &Member,
        (offer, permit): (&PartOffer, OwnedSemaphorePermit),
        reader: &mut FrameReader,
        writer: &mut FrameWriter,
    ) -> Result<(RunTag, RunEntry, PartDone)> {
        let keys = self.repository.keys();
        let (salt, key_id) = (rand::random::<[u8; 16]>(), keys.current());
        let run_tag = keys.run_tag(&member.cluster, offer.region, &offer.lower, &salt);
        let grant = Grant { run_tag, key: keys.subkey(key_id, &salt)?, encrypt: u8::from(keys.encrypts()) };
        writer.write_message(&grant).await?;
        let kind = match offer.delta {
            // Parts that are due at nearby ages share packs: two ages to a class.
            0 => PackKind::Base((most_runs(offer.region, &offer.lower) / 2) as usize),
            _ => PackKind::Delta,
        };
        let mut run = RunEntry {
            at: Timestamp::ZERO,
            key_id,
            salt,
            blocks: 0,
            records: 0,
            raw_bytes: 0,
            extents: Vec::new(),
            index: Extent { pack: Default::default(), offset: 0, len: 0 },
        };
        let pace = Pace { limits: &self.limits, member: member.clone() };
        let done = landing.read_part(kind, &mut run, reader, &pace).await?;
        drop(permit);
        tracing::debug!(records = done.records, blocks = run.blocks, "part received");
        Ok((run_tag, run, done))
    }
}
