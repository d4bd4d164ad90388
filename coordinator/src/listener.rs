//! The QUIC listener: takes control and bulk connections of agents and hands their streams on.

use std::time::Duration;

use quinn::{Connection, Endpoint};
use tidemark_common::identity::Identity;
use tidemark_common::transport::{Accepted, Door, FrameReader, FrameWriter, accept_bi};
use tidemark_proto::frame::Message;
use tidemark_proto::id::JobId;
use tidemark_proto::wire::bulk::{EarlyOffer, Fetch, FetchLog, LogOpen, OverOffer, PartOffer};
use tidemark_proto::wire::control::Failure;
use tidemark_proto::wire::hello::Purpose;
use tidemark_proto::{Error, ErrorKind, Result};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::context::Shared;
use crate::fleet::Member;
use crate::job::JobState;
use crate::repository::Ledger;
use crate::settle;

/// A connected agent is asked this often how it stands.
const DESCRIBE_EVERY: Duration = Duration::from_secs(5);

/// Accepts connections until `shutdown`.
pub async fn run(context: Shared, endpoint: Endpoint, shutdown: CancellationToken) {
    let door = Door::coordinator(crate::BUILD, context.epoch);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                let (context, door, shutdown) = (context.clone(), door.clone(), shutdown.clone());
                let _ = connections.spawn(async move {
                    match door.accept(incoming).await {
                        Ok(accepted) => connected(context, accepted, shutdown).await,
                        // The door has said and counted why.
                        Err(e) => tracing::debug!(error = %e.report(), "connection refused"),
                    }
                });
            }
        }
    }
    endpoint.close(quinn::VarInt::from_u32(ErrorKind::Retry.code()), b"the coordinator shuts down");
    connections.shutdown().await;
}

async fn connected(context: Shared, accepted: Accepted, shutdown: CancellationToken) {
    let Identity::Agent { cluster, node } = accepted.identity.clone() else { return };
    let member = Member { cluster, node };
    match accepted.purpose {
        Purpose::Control => control(context, member, accepted, shutdown).await,
        Purpose::Bulk => bulk(context, member, accepted.connection).await,
        Purpose::Kv => {}
    }
}

async fn control(context: Shared, member: Member, accepted: Accepted, shutdown: CancellationToken) {
    let connection = accepted.connection;
    tracing::info!(node = %member, build = accepted.build, "agent connected");
    context.fleet.join(member.clone(), connection.clone(), accepted.build, context.now_millis());
    let mut first = true;
    loop {
        match context.fleet.describe(&member, context.head(JobId::default(), 0)).await {
            Ok(seen) => {
                let by = format!("node {}", member.node);
                context.history.see(&member.cluster, seen.ledger_number, seen.ledger_hash, by);
                let first = std::mem::take(&mut first);
                if first {
                    drop(tokio::spawn(settle::on_connect(context.clone(), member.clone())));
                }
                if first
                    && seen.ledger_number > 0
                    && let Err(e) = check_history(&context, &member).await
                {
                    tracing::error!(node = %member, error = %e.report(), "the repository is not what this node has seen");
                }
            }
            Err(e) => tracing::debug!(node = %member, error = %e.report(), "agent does not describe itself"),
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            why = connection.closed() => {
                tracing::info!(node = %member, reason = %why, "agent gone");
                break;
            }
            () = tokio::time::sleep(DESCRIBE_EVERY) => {}
        }
    }
    context.fleet.leave(&member, &connection);
}

/// The agent remembers the highest ledger entry that it was told of: a shorter or another history means that the
/// repository was rolled back or swapped.
async fn check_history(context: &Shared, member: &Member) -> Result<()> {
    let ledger = Ledger::load(&context.repository, &member.cluster).await?;
    context.history.check(&member.cluster, &ledger)
}

async fn bulk(context: Shared, member: Member, connection: Connection) {
    let mut streams = JoinSet::new();
    let _window = context.limits.link(&connection);
    loop {
        tokio::select! {
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            stream = accept_bi(&connection) => match stream {
                Ok((writer, reader)) => {
                    let _ = streams.spawn(bulk_stream(context.clone(), member.clone(), writer, reader));
                }
                Err(e) => {
                    tracing::debug!(node = %member, reason = %e.report(), "bulk connection ended");
                    return;
                }
            },
        }
    }
}

async fn bulk_stream(context: Shared, member: Member, mut writer: FrameWriter, mut reader: FrameReader) {
    if let Err(e) = serve_stream(&context, &member, &mut writer, &mut reader).await {
        match e.kind() {
            // Its job is over, which is told elsewhere; there may be many of them.
            ErrorKind::Cancelled => tracing::debug!(node = %member, reason = %e.report(), "a bulk stream ends"),
            _ => tracing::warn!(node = %member, error = %e.report(), "a bulk stream failed"),
        }
        reader.stop(e.kind());
        let failure = Failure { code: e.kind().code(), message: e.report() };
        if writer.write_message(&failure).await.is_err() || writer.finish().is_err() {
            writer.reset(e.kind());
        }
    }
}

/// An attempt at a part has failed; what comes of that is the job's business.
fn note_failure(context: &Shared, job: &JobId, member: &Member, error: &Error) {
    if let Some(job) = context.jobs.get(job).ok().filter(|j| j.info().state == JobState::Running) {
        job.log.note("part-failed", member.node.as_str(), error.report());
    }
}

async fn serve_stream(
    context: &Shared,
    member: &Member,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<()> {
    let header = reader.read_header().await?.ok_or_else(|| Error::damaged("an empty bulk stream"))?;
    match header.kind {
        PartOffer::KIND => {
            let offer: PartOffer = reader.decode(header).await?;
            let span = tracing::info_span!("part", job = %offer.job, node = %member, region = offer.region);
            let job = offer.job;
            let received = context.ingest.receive(member, offer, None, reader, writer);
            received.instrument(span).await.inspect_err(|e| note_failure(context, &job, member, e))?;
            writer.finish()
        }
        EarlyOffer::KIND => {
            let offer: EarlyOffer = reader.decode(header).await?;
            let (job, region) = (offer.offer.job, offer.offer.region);
            let span = tracing::info_span!("part", %job, node = %member, region, early = true);
            // What does not come now comes after the cut: no failure of the job.
            context.ingest.receive_early(member, offer, reader, writer).instrument(span).await?;
            writer.finish()
        }
        OverOffer::KIND => {
            let OverOffer { offer, early } = reader.decode(header).await?;
            let (job, region) = (offer.job, offer.region);
            let span = tracing::info_span!("part", %job, node = %member, region, over = true);
            let received =
                context.ingest.receive(member, offer, Some(early), reader, writer).instrument(span).await;
            received.inspect_err(|e| match e.kind() {
                // The part that came before the cut is not here, which its agent finds out by asking: it comes anew.
                ErrorKind::NotFound => {}
                _ => note_failure(context, &job, member, e),
            })?;
            writer.finish()
        }
        Fetch::KIND => {
            let fetch: Fetch = reader.decode(header).await?;
            let (job, part, run) = (fetch.job, fetch.part, fetch.run);
            let span = tracing::info_span!("part", %job, node = %member, part, run);
            let sent = context.serve.send(&member.cluster, &member.node, fetch, reader, writer);
            sent.instrument(span).await.inspect_err(|e| note_failure(context, &job, member, e))
        }
        FetchLog::KIND => {
            let fetch: FetchLog = reader.decode(header).await?;
            let (job, part) = (fetch.job, fetch.part);
            let span = tracing::info_span!("part", %job, node = %member, part, log = true);
            let sent = context.serve.send_log(&member.cluster, &member.node, fetch, writer);
            sent.instrument(span).await.inspect_err(|e| note_failure(context, &job, member, e))
        }
        LogOpen::KIND => {
            let open: LogOpen = reader.decode(header).await?;
            let span = tracing::info_span!("log", node = %member);
            context.logs.serve(context, member, open, reader, writer).instrument(span).await
        }
        other => Err(Error::unsupported(format!("bulk stream of kind {other}"))),
    }
}
