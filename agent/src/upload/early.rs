//! Parts of a base that are sent before the cut of their job, while the bases of other nodes are being taken.
//!
//! The coordinator asks for it when a base stands ([`run`]). Whole regions are sent as the base becomes ready, until the
//! upload is asked for; then no part is begun any more, and the upload waits for those that are under way ([`EarlySends::close`]). It
//! sends, of each part that came whole, what differs at the cut. While writes are held for the cut nothing is sent.
//!
//! What was sent counts for its base alone: a base that is taken again begins with nothing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemark_common::crash;
use tidemark_proto::id::JobId;
use tidemark_proto::slot::RegionMap;
use tidemark_proto::wire::control::{CommandHead, Done, UploadEarly};
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, error::ResultExt};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::part::PartSender;
use super::plan::PlannedPart;
use super::{PARTS_ON_THEIR_WAY, UploadJob};
use crate::agent::Agent;
use crate::blocking;
use crate::engine::{EarlyBase, ScanRange, Snapshot};
use crate::metric_names::stage;
use crate::snapshot::Counters;
use crate::telemetry::{self, PartKind};

/// A part that the ingest has, as the base has it.
#[derive(Debug, Clone)]
pub struct EarlyPart {
    /// Its region.
    pub region: u16,
    /// Its range.
    pub range: ScanRange,
    /// What names the attempt under which it came.
    pub run_tag: [u8; 16],
    /// Its key index.
    pub index: PathBuf,
}

/// What was sent of a base.
#[derive(Debug, Clone, Default)]
pub struct SentEarly {
    /// The base ([`EarlyBase::id`]).
    pub base: u64,
    /// Its parts, those of a region one after the other.
    pub parts: Vec<EarlyPart>,
}

/// What is sent of the base of a node's job.
#[derive(Debug, Default)]
pub struct EarlySends(Mutex<Now>);

#[derive(Debug, Default)]
struct Now {
    session: Option<Arc<Session>>,
    /// The job whose upload was asked for: a session that comes late begins nothing.
    closed: Option<JobId>,
}

/// One base.
#[derive(Debug)]
struct Session {
    job: JobId,
    base: u64,
    parts: Mutex<Vec<EarlyPart>>,
    counters: Arc<Counters>,
    /// No region is begun any more.
    closing: CancellationToken,
    /// Everything ends.
    cancel: CancellationToken,
    /// Whether writes are held for a cut.
    held: watch::Sender<bool>,
    /// Locked while regions are sent.
    running: tokio::sync::Mutex<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl EarlySends {
    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, job: JobId) -> Option<Arc<Session>> {
        self.lock().session.clone().filter(|session| session.job == job)
    }

    /// The session of a base, a new one where that is another base than before.
    fn begin(&self, job: JobId, base: u64, shutdown: &CancellationToken) -> Arc<Session> {
        let mut now = self.lock();
        if let Some(session) = now.session.as_ref().filter(|s| s.job == job && s.base == base) {
            return session.clone();
        }
        let session = Arc::new(Session {
            job,
            base,
            parts: Mutex::default(),
            counters: Arc::default(),
            closing: CancellationToken::new(),
            cancel: shutdown.child_token(),
            held: watch::Sender::new(false),
            running: tokio::sync::Mutex::default(),
        });
        if now.closed == Some(job) {
            session.closing.cancel();
        }
        if let Some(before) = now.session.replace(session.clone()) {
            before.cancel.cancel();
        }
        session
    }

    /// What was read and sent for `job`, as it goes on; `None` where nothing is sent early.
    pub(super) fn counters(&self, job: JobId) -> Option<Arc<Counters>> {
        self.of(job).map(|session| session.counters.clone())
    }

    /// Writes are held for a cut of `job`, or are not any more.
    pub fn hold(&self, job: JobId, held: bool) {
        if let Some(session) = self.of(job) {
            let _ = session.held.send_replace(held);
        }
    }

    /// Begins no further part of `job`, waits for those that are under way, and answers what was sent. `None` where nothing is sent early.
    pub(super) async fn close(&self, job: JobId, cancel: &CancellationToken) -> Option<SentEarly> {
        self.lock().closed = Some(job);
        let session = self.of(job)?;
        session.closing.cancel();
        tokio::select! {
            _ended = session.running.lock() => {}
            () = cancel.cancelled() => {}
        }
        let parts = session.lock().clone();
        Some(SentEarly { base: session.base, parts })
    }

    /// Ends what is being sent for `job`, unless it is of this base: what one that is lost holds of the disk is given back.
    pub fn keep(&self, job: JobId, base: Option<u64>) {
        let mut now = self.lock();
        if let Some(session) = now.session.take_if(|s| s.job == job && Some(s.base) != base) {
            session.cancel.cancel();
        }
    }

    /// Forgets what was sent for `job`, and ends what is being sent.
    pub fn forget(&self, job: JobId) {
        self.keep(job, None);
        let _ = self.lock().closed.take_if(|closed| *closed == job);
    }
}

impl Session {
    fn lock(&self) -> MutexGuard<'_, Vec<EarlyPart>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the regions of one command share.
struct Sending {
    agent: Arc<Agent>,
    head: CommandHead,
    ingest: String,
    base: Arc<dyn EarlyBase>,
    session: Arc<Session>,
    /// As many parts as may be built at once.
    building: Arc<Semaphore>,
    /// Ends with the command.
    cancel: CancellationToken,
}

/// Runs the command; `counters` show how far it is. An error ends it, and is no more than a pity: what was not sent is sent after
/// the cut.
pub async fn run(
    agent: Arc<Agent>,
    head: CommandHead,
    command: UploadEarly,
    counters: Arc<Counters>,
) -> Result<Done> {
    let map = RegionMap::new(command.slots_per_region)?;
    if !command.slots.is_canonical() {
        return Err(Error::request("early upload: a slot set is not in order"));
    }
    let (engine, job) = (agent.engine.clone(), head.job);
    let base = blocking(move || engine.early_base(job)).await?;
    // Without an index nobody could tell what differs at the cut.
    let (Some(base), Some(indexes)) = (base, &agent.indexes) else { return Ok(Done {}) };
    indexes.begin(job)?;
    let session = agent.early.begin(job, base.id(), &agent.shutdown);
    let _ = counters.before.set(session.counters.clone());
    let _running = session.running.lock().await;
    // The word that a hold has ended may have been lost with its connection.
    let _ = session.held.send_replace(false);
    let cancel = session.cancel.child_token();
    let _stop = cancel.clone().drop_guard();
    // A region that was begun by a command before, and did not come whole, is left to the upload.
    let begun: Vec<u16> = session.lock().iter().map(|part| part.region).collect();
    let regions = (0..map.count()).filter(|r| !begun.contains(r));
    let regions = regions.map(|r| (r, map.slots(r).intersect(&command.slots))).filter(|(_, s)| !s.is_empty());
    let concurrency = agent.concurrency(command.concurrency);
    let building = Arc::new(Semaphore::new(concurrency));
    let ingest = command.ingest;
    let sending = Arc::new(Sending { agent, head, ingest, base, session: session.clone(), building, cancel });
    let mut sent = JoinSet::new();
    for (region, slots) in regions {
        let Some(region) = ready(sending.clone(), region, slots).await? else { break };
        if sent.len() == concurrency + PARTS_ON_THEIR_WAY {
            joined(sent.join_next().await)?;
        }
        let _ = sent.spawn(send_region(sending.clone(), region).in_current_span());
    }
    while !sent.is_empty() {
        joined(sent.join_next().await)?;
    }
    Ok(Done {})
}

/// How a region ended. One that broke is left to the upload; others may come.
fn joined(ended: Option<std::result::Result<Result<()>, JoinError>>) -> Result<()> {
    match ended.transpose().or_kind(ErrorKind::Bug, "sending a region")?.unwrap_or(Ok(())) {
        Err(e) if e.kind() == ErrorKind::Retry => {
            tracing::debug!(error = %e.report(), "a region was not sent before the cut");
            Ok(())
        }
        other => other,
    }
}

/// A region whose records are all ready.
type Region = (u16, SlotSet, Arc<dyn Snapshot>);

/// Waits for the next region; `None` when no more are begun.
async fn ready(sending: Arc<Sending>, region: u16, slots: SlotSet) -> Result<Option<Region>> {
    let Some(&(_, last)) = slots.ranges().last() else { return Ok(None) };
    let wait = move || {
        let is_over = || sending.session.closing.is_cancelled() || sending.cancel.is_cancelled();
        if is_over() { Ok(None) } else { sending.base.ready(last, &is_over) }
    };
    Ok(blocking(wait).await?.map(|snapshot| (region, slots, snapshot)))
}

/// Sends a region, in as many parts as it takes.
async fn send_region(sending: Arc<Sending>, (region, slots, snapshot): Region) -> Result<()> {
    let (job, session) = (sending.head.job, &sending.session);
    let upload = Arc::new(UploadJob {
        agent: sending.agent.clone(),
        head: sending.head.clone(),
        ingest: sending.ingest.clone(),
        held: Some(session.held.subscribe()),
        snapshot,
        building: sending.building.clone(),
        counters: session.counters.clone(),
        cancel: sending.cancel.clone(),
    });
    let indexes = sending.agent.indexes.as_ref().ok_or_else(|| Error::bug("key indexes are gone"))?;
    let mut range = ScanRange::slots(slots);
    loop {
        let building = upload.building().await?;
        // What waited until now is sent after the cut.
        if session.closing.is_cancelled() {
            return Ok(());
        }
        let index = indexes.early(job, session.base, region, &range.lower);
        let part = PlannedPart::early(region, range.clone(), index.clone());
        let span = tracing::info_span!("early", region);
        let sent = PartSender::new(upload.clone()).send(&part, building).instrument(span);
        let sent = telemetry::part(PartKind::Upload, sent).await?;
        crash::point("agent.early-sent");
        telemetry::passed(stage::READ, sent.bytes);
        let upper = sent.upper.clone();
        let done = ScanRange { upper: sent.upper, ..range.clone() };
        session.lock().push(EarlyPart { region, range: done, run_tag: sent.run_tag, index });
        // A part that was cut short by its size goes on where it ended.
        match upper.is_empty() {
            true => return Ok(()),
            false => range.lower = upper,
        }
    }
}
