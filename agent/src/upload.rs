//! The upload command: every part of the node's slots, in parallel, each on a stream of its own.
//!
//! A part is offered, granted (with the subkey of this attempt), built and sent. A broken stream voids that attempt as
//! a whole; the part is offered again and gets another subkey. The command is done when every part has been received;
//! `Stored` comes later, when packs and job record are durable, and until the job is settled the pinned snapshot lets the
//! part be sent again.

mod part;
mod plan;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::{StreamExt, TryStreamExt};
use tidemark_common::crash;
use tidemark_proto::wire::control::{CommandHead, Progress, Upload, UploadRest, Uploaded};
use tidemark_proto::{ErrorKind, Result};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::agent::Agent;
use crate::blocking;
use crate::engine::Snapshot;
use crate::snapshot::Counters;
use crate::telemetry::{self, PartKind};

use part::PartSender;
use plan::{PlannedPart, plan};

/// Attempts at one part within a command, each on a new stream.
const PART_ATTEMPTS: u32 = 4;

/// What the parts of one upload share.
struct UploadJob {
    agent: Arc<Agent>,
    head: CommandHead,
    command: Upload,
    snapshot: Arc<dyn Snapshot>,
    counters: Arc<Counters>,
    cancel: CancellationToken,
}

impl Counters {
    /// As a progress message.
    pub fn progress(&self) -> Progress {
        Progress {
            bytes: self.bytes.load(Ordering::Relaxed),
            wire_bytes: self.wire_bytes.load(Ordering::Relaxed),
            records: self.records.load(Ordering::Relaxed),
            parts: self.parts.load(Ordering::Relaxed) as u32,
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
    let snapshot: Arc<dyn Snapshot> = blocking(move || engine.snapshot(at)).await?.into();
    let parts = plan(&agent, &head, &command, &rest)?;
    let concurrency =
        if command.concurrency == 0 { agent.config.concurrency() } else { command.concurrency as usize };
    // Parts still running when one fails are told to stop; they end at the next record.
    let cancel = cancel.child_token();
    let _stop = cancel.clone().drop_guard();
    let job = Arc::new(UploadJob { agent, head, command, snapshot, counters: counters.clone(), cancel });
    futures::stream::iter(parts.into_iter().map(|part| upload_region(job.clone(), part)))
        .buffer_unordered(concurrency)
        .try_collect::<()>()
        .await?;
    let progress = counters.progress();
    Ok(Uploaded { parts: progress.parts, bytes_read: progress.bytes })
}

/// Sends a planned part, and further ones where a full run passes the size of a part.
async fn upload_region(job: Arc<UploadJob>, mut part: PlannedPart) -> Result<()> {
    loop {
        let next = send_with_retries(&job, &mut part).await?;
        let _ = job.counters.parts.fetch_add(1, Ordering::Relaxed);
        crash::point("agent.part-sent");
        // A part that was cut short by its size goes on where it ended.
        if next == part.range.upper {
            return Ok(());
        }
        part = part.following(&job.agent, &job.head, next);
    }
}

async fn send_with_retries(job: &Arc<UploadJob>, part: &mut PlannedPart) -> Result<Vec<u8>> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let span = tracing::info_span!("part", region = part.region, attempt);
        let sent = PartSender::new(job.clone()).send(part).instrument(span);
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
