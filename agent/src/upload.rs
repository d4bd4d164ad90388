//! The upload command: every part of the node's slots, in parallel, each on a stream of its own.
//!
//! A part is offered, granted (with the subkey of this attempt), built and sent. A broken stream voids that attempt as
//! a whole; the part is offered again and gets another subkey. The command is done when every part has been received;
//! `Stored` comes later, when packs and job record are durable, and until the job is settled the pinned snapshot lets the
//! part be sent again. Of parts that were sent before the cut ([`early`]) only what differs from them is sent.

pub mod early;
mod part;
mod plan;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::{StreamExt, TryStreamExt};
use tidemark_common::crash;
use tidemark_proto::wire::control::{CommandHead, Progress, UploadRest, Uploaded};
use tidemark_proto::{ErrorKind, Result, error::ResultExt};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::agent::Agent;
use crate::blocking;
use crate::engine::Snapshot;
use crate::snapshot::Counters;
use crate::telemetry::{self, PartKind};

use part::{PartSender, Sent};
use plan::{PlannedPart, plan};

/// Attempts at one part within a command, each on a new stream.
const PART_ATTEMPTS: u32 = 4;

/// Parts beside those that are built which may be on their way: what waits for the word that a part has come costs nothing,
/// and that word takes its time, as a peer gathers acknowledgements.
const PARTS_ON_THEIR_WAY: usize = 32;

/// What the parts of one upload share.
struct UploadJob {
    agent: Arc<Agent>,
    head: CommandHead,
    /// Address of the ingest process.
    ingest: String,
    /// While `true`, nothing is sent.
    held: Option<watch::Receiver<bool>>,
    snapshot: Arc<dyn Snapshot>,
    /// As many parts as may be built at once.
    building: Arc<Semaphore>,
    counters: Arc<Counters>,
    cancel: CancellationToken,
}

impl UploadJob {
    /// Waits until one more part may be built.
    async fn building(&self) -> Result<SemaphorePermit<'_>> {
        self.building.acquire().await.or_kind(ErrorKind::Bug, "building parts")
    }

    /// Waits while writes are held for a cut of the job: nothing competes with it.
    async fn while_held(&self) {
        if let Some(mut held) = self.held.clone() {
            tokio::select! {
                // Nobody is left to hold: nothing is held.
                _released = held.wait_for(|held| !held) => {}
                () = self.cancel.cancelled() => {}
            }
        }
    }
}

impl Counters {
    /// As a progress message.
    pub fn progress(&self) -> Progress {
        let before = self.before.get().map(|before| before.progress()).unwrap_or_default();
        Progress {
            bytes: before.bytes + self.bytes.load(Ordering::Relaxed),
            wire_bytes: before.wire_bytes + self.wire_bytes.load(Ordering::Relaxed),
            records: before.records + self.records.load(Ordering::Relaxed),
            parts: before.parts + self.parts.load(Ordering::Relaxed) as u32,
        }
    }
}

/// Runs the command; `counters` show how far it is.
pub async fn run(
    agent: Arc<Agent>,
    head: CommandHead,
    command: UploadRest,
    counters: Arc<Counters>,
    cancel: CancellationToken,
) -> Result<Uploaded> {
    let UploadRest { upload: command, rest } = command;
    let (engine, at) = (agent.engine.clone(), command.at);
    // Parts of the base that are under way have the time that the state at the cut takes, and what more they need: who waits sees
    // them go on.
    if let Some(before) = agent.early.counters(head.job) {
        let _ = counters.before.set(before);
    }
    let (snapshot, early) =
        tokio::join!(blocking(move || engine.snapshot(at)), agent.early.close(head.job, &cancel));
    let snapshot: Arc<dyn Snapshot> = snapshot?.into();
    let early = early.filter(|sent| sent.base == snapshot.base()).unwrap_or_default();
    let parts = plan(&agent, &head, &command, (&rest, &early.parts))?;
    let concurrency = agent.concurrency(command.concurrency);
    // Parts still running when one fails are told to stop; they end at the next record.
    let cancel = cancel.child_token();
    let _stop = cancel.clone().drop_guard();
    let ingest = command.ingest;
    let building = Arc::new(Semaphore::new(concurrency));
    let job = Arc::new(UploadJob {
        agent,
        head,
        ingest,
        held: None,
        snapshot,
        building,
        counters: counters.clone(),
        cancel,
    });
    futures::stream::iter(parts.into_iter().map(|part| upload_region(job.clone(), part)))
        .buffer_unordered(concurrency + PARTS_ON_THEIR_WAY)
        .try_collect::<()>()
        .await?;
    let progress = counters.progress();
    Ok(Uploaded { parts: progress.parts, bytes_read: progress.bytes })
}

/// Sends a planned part, and further ones where a full run passes the size of a part.
async fn upload_region(job: Arc<UploadJob>, mut part: PlannedPart) -> Result<()> {
    loop {
        let next = send_with_retries(&job, &mut part).await?.upper;
        let _ = job.counters.parts.fetch_add(1, Ordering::Relaxed);
        crash::point("agent.part-sent");
        // A part that was cut short by its size goes on where it ended.
        if next == part.range.upper {
            return Ok(());
        }
        part = part.following(&job.agent, &job.head, next);
    }
}

async fn send_with_retries(job: &Arc<UploadJob>, part: &mut PlannedPart) -> Result<Sent> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let span = tracing::info_span!("part", region = part.region, attempt);
        let sent = async {
            let building = job.building().await?;
            PartSender::new(job.clone()).send(part, building).await
        };
        let sent = sent.instrument(span);
        match telemetry::part(PartKind::Upload, sent).await {
            Err(e) if part.falls_back_to_full(&e) => {
                tracing::info!(region = part.region, reason = %e.report(), "no delta possible: sending the whole part");
                part.make_full();
            }
            Err(e) if e.kind() == ErrorKind::Retry && attempt < PART_ATTEMPTS && !job.cancel.is_cancelled() => {
                tracing::warn!(region = part.region, attempt, error = %e.report(), "part not received: offering it again");
            }
            other => return other.map_err(|e| e.context(format_args!("region {}", part.region))),
        }
    }
}
