//! One function for each command of [`tidemark_proto::wire::control`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidemark_common::crash;
use tidemark_common::transport::FrameReader;
use tidemark_proto::Result;
use tidemark_proto::frame::{Header, Message};
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{
    CommandHead, Describe, DescribeSource, Description, Diagnose, Done, Hold, KEPT_LIBRARIES, KEPT_PROBE, Keep,
    ListJobs, LogHold, LogRelease, LogSeal, LogStart, LogStop, OpenJobs, Prepare, PrepareEarly, Prepared, Release,
    Released, RestoreAbort, RestoreBegin, RestoreBeginAs, RestoreCount, RestoreFinish, RestoreKept, RestoreParts,
    RestorePartsLogged, RestoreVerify, Seal, Settle, Upload, UploadEarly, UploadRest,
};
use tokio_util::sync::CancellationToken;

use super::{Reply, body};
use crate::agent::Agent;
use crate::config::DeltaMethod;
use crate::engine::job_of_pin;
use crate::indexes::IndexStore;
use crate::metric_names::stage;
use crate::snapshot::Counters;
use crate::{blocking, log, restore, telemetry, upload};

/// The span of a command; what belongs to no job has none.
pub(super) fn span(head: &CommandHead, header: &Header) -> tracing::Span {
    if head.job == JobId::default() {
        return tracing::Span::none();
    }
    let command = match header.kind {
        Describe::KIND | DescribeSource::KIND => "describe",
        Prepare::KIND => "prepare",
        PrepareEarly::KIND => "prepare-early",
        Hold::KIND => "hold",
        Seal::KIND => "seal",
        Release::KIND => "release",
        Upload::KIND | UploadRest::KIND => "upload",
        UploadEarly::KIND => "upload-early",
        Keep::KIND => "keep",
        Settle::KIND => "settle",
        RestoreBegin::KIND | RestoreBeginAs::KIND => "restore-begin",
        RestoreParts::KIND | RestorePartsLogged::KIND => "restore-parts",
        RestoreCount::KIND => "restore-count",
        RestoreVerify::KIND => "restore-verify",
        RestoreFinish::KIND => "restore-finish",
        RestoreAbort::KIND => "restore-abort",
        RestoreKept::KIND => "restore-kept",
        _ => "unknown",
    };
    tracing::info_span!("job", job = %head.job, attempt = head.attempt, command)
}

pub(super) async fn dispatch(
    agent: &Arc<Agent>,
    head: CommandHead,
    header: Header,
    reader: &mut FrameReader,
    reply: &mut Reply,
) -> Result<()> {
    let (engine, job) = (agent.engine.clone(), head.job);
    match header.kind {
        Describe::KIND => {
            let Describe {} = body(reader, header).await?;
            reply.finish(describe(agent.clone())).await
        }
        DescribeSource::KIND => {
            let DescribeSource {} = body(reader, header).await?;
            reply.finish(blocking(move || engine.describe_source())).await
        }
        Prepare::KIND => {
            let Prepare {} = body(reader, header).await?;
            let (counters, cancel) = (reply.counters_of(stage::BASE), reply.cancel());
            let agent = agent.clone();
            reply.finish(blocking(move || prepare(&agent, job, &counters, &cancel))).await
        }
        PrepareEarly::KIND => {
            let PrepareEarly {} = body(reader, header).await?;
            let cancel = reply.cancel();
            let wait = move || engine.prepare_early(job, &|| cancel.is_cancelled()).map(|()| Done {});
            reply.finish(blocking(wait)).await
        }
        UploadEarly::KIND => {
            let command: UploadEarly = body(reader, header).await?;
            let counters = reply.counters_of(stage::READ);
            reply.finish(upload::early::run(agent.clone(), head, command, counters)).await
        }
        Hold::KIND => {
            let Hold { budget_micros } = body(reader, header).await?;
            let budget = Duration::from_micros(budget_micros);
            agent.early.hold(job, true);
            let held = blocking(move || engine.hold(job, budget).inspect(|_| crash::point("agent.held")));
            reply.finish(held).await
        }
        Seal::KIND => {
            let seal: Seal = body(reader, header).await?;
            let sealed = blocking(move || engine.seal(job, seal.at).inspect(|_| crash::point("agent.sealed")));
            reply.finish(sealed).await
        }
        Release::KIND => {
            let Release {} = body(reader, header).await?;
            let release = blocking(move || {
                let (ownership, held) = engine.release(job)?;
                crash::point("agent.released");
                telemetry::held(held);
                Ok(Released { ownership, held_micros: held.as_micros() as u64 })
            });
            let released = release.await;
            agent.early.hold(job, false);
            reply.finish(std::future::ready(released)).await
        }
        Upload::KIND => {
            let upload: Upload = body(reader, header).await?;
            send(agent, head, UploadRest { upload, rest: Vec::new() }, reply).await
        }
        UploadRest::KIND => {
            let command: UploadRest = body(reader, header).await?;
            send(agent, head, command, reply).await
        }
        Keep::KIND => {
            let Keep { at, most_bytes } = body(reader, header).await?;
            reply.finish(blocking(move || engine.kept(job, at, most_bytes as usize))).await
        }
        ListJobs::KIND => {
            let ListJobs {} = body(reader, header).await?;
            let agent = agent.clone();
            reply.finish(blocking(move || open_jobs(&agent))).await
        }
        Settle::KIND => {
            let settle: Settle = body(reader, header).await?;
            reply.finish(settle_job(agent.clone(), head, settle)).await
        }
        Diagnose::KIND => {
            let Diagnose {} = body(reader, header).await?;
            reply.send(&telemetry::diagnosed(agent)).await
        }
        LogStart::KIND => {
            let start: LogStart = body(reader, header).await?;
            reply.finish(log::start(agent.clone(), start)).await
        }
        LogStop::KIND => {
            let LogStop {} = body(reader, header).await?;
            reply.finish(log::stop(agent.clone())).await
        }
        LogHold::KIND | LogSeal::KIND | LogRelease::KIND => log_cut(engine, header, reader, reply).await,
        _ => dispatch_restore(agent, head, header, reader, reply).await,
    }
}

/// The commands of a restore point of the log.
async fn log_cut(
    engine: Arc<dyn crate::engine::Engine>,
    header: Header,
    reader: &mut FrameReader,
    reply: &mut Reply,
) -> Result<()> {
    match header.kind {
        LogHold::KIND => {
            let LogHold { budget_millis } = body(reader, header).await?;
            let budget = Duration::from_millis(u64::from(budget_millis));
            reply.finish(blocking(move || log::of(&*engine)?.hold_log(budget))).await
        }
        LogSeal::KIND => {
            let LogSeal { at } = body(reader, header).await?;
            reply.finish(blocking(move || log::of(&*engine)?.seal_log(at))).await
        }
        _ => {
            let LogRelease {} = body(reader, header).await?;
            let release = blocking(move || {
                let (ownership, held) = log::of(&*engine)?.release_log()?;
                telemetry::held(held);
                Ok(Released { ownership, held_micros: held.as_micros() as u64 })
            });
            reply.finish(release).await
        }
    }
}

/// The commands of restores.
async fn dispatch_restore(
    agent: &Arc<Agent>,
    head: CommandHead,
    header: Header,
    reader: &mut FrameReader,
    reply: &mut Reply,
) -> Result<()> {
    match header.kind {
        RestoreBegin::KIND => {
            let begin: RestoreBegin = body(reader, header).await?;
            reply.finish(restore::begin(agent.clone(), head, begin)).await
        }
        RestoreBeginAs::KIND => {
            let begin: RestoreBeginAs = body(reader, header).await?;
            reply.finish(restore::begin_as(agent.clone(), head, begin)).await
        }
        RestoreCount::KIND => {
            let RestoreCount {} = body(reader, header).await?;
            reply.finish(restore::count(agent.clone(), head)).await
        }
        RestoreParts::KIND => {
            let parts: RestoreParts = body(reader, header).await?;
            let (counters, cancel) = (reply.counters_of(stage::LOADED), reply.cancel());
            reply.finish(restore::load(agent.clone(), head, parts, counters, cancel)).await
        }
        RestorePartsLogged::KIND => {
            let parts: RestorePartsLogged = body(reader, header).await?;
            let (counters, cancel) = (reply.counters_of(stage::LOADED), reply.cancel());
            reply.finish(restore::load_logged(agent.clone(), head, parts, counters, cancel)).await
        }
        RestoreVerify::KIND => {
            let verify: RestoreVerify = body(reader, header).await?;
            reply.finish(restore::verify(agent.clone(), head, verify)).await
        }
        RestoreFinish::KIND => {
            let finish: RestoreFinish = body(reader, header).await?;
            reply.finish(restore::finish(agent.clone(), head, finish)).await
        }
        RestoreKept::KIND => {
            let kept: RestoreKept = body(reader, header).await?;
            let (engine, job) = (agent.engine.clone(), head.job);
            let point = match kept.step {
                KEPT_PROBE => "agent.kept-probe",
                KEPT_LIBRARIES => "agent.kept-libraries",
                _ => "agent.kept-users",
            };
            let take = move || engine.restore_kept(job, &kept).inspect(|_| crash::point(point));
            reply.finish(blocking(take)).await
        }
        RestoreAbort::KIND => {
            let RestoreAbort {} = body(reader, header).await?;
            reply.finish(restore::abort(agent.clone(), head)).await
        }
        _ => super::clones::dispatch(agent, header, reader, reply).await,
    }
}

async fn send(agent: &Arc<Agent>, head: CommandHead, command: UploadRest, reply: &mut Reply) -> Result<()> {
    if let Some(indexes) = &agent.indexes {
        indexes.begin(head.job)?;
    }
    let (counters, cancel) = (reply.counters_of(stage::READ), reply.cancel());
    reply.finish(upload::run(agent.clone(), head, command, counters, cancel)).await
}

/// Takes the base; a command that its coordinator ended is given up at the engine's next look.
fn prepare(agent: &Agent, job: JobId, counters: &Counters, cancel: &CancellationToken) -> Result<Prepared> {
    let engine = &agent.engine;
    // Without an index there can be no delta.
    let whole = agent.config.delta == DeltaMethod::Full || agent.indexes.as_ref().is_none_or(IndexStore::is_empty);
    // Told anew from nothing where the engine begins anew: what counts is the most.
    let progress = |bytes| {
        let _ = counters.bytes.fetch_max(bytes, Ordering::Relaxed);
    };
    let base = engine.early_base(job).ok().flatten().map(|base| base.id());
    agent.early.keep(job, base);
    engine.prepare(job, whole, &|| cancel.is_cancelled(), &progress)?;
    crash::point("agent.prepared");
    Ok(Prepared { bytes: counters.bytes.load(Ordering::Relaxed) })
}

/// What jobs left here that only their end takes away.
fn open_jobs(agent: &Agent) -> Result<OpenJobs> {
    let restores: Vec<_> = agent.engine.restoring()?.into_iter().collect();
    // Pins of data that is about to be replaced are told of when the restore is over.
    let pins = if restores.is_empty() { agent.engine.pins()? } else { Vec::new() };
    let mut backups: Vec<_> = pins.iter().filter_map(|(name, _)| job_of_pin(name)).collect();
    backups.extend(agent.indexes.iter().flat_map(|i| i.jobs()));
    backups.sort_unstable();
    backups.dedup();
    Ok(OpenJobs { backups, restores })
}

/// States of a node as it describes itself.
const AVAILABLE: &str = "available";
const STATE_RESTORING: &str = "restoring";

async fn describe(agent: Arc<Agent>) -> Result<Description> {
    let engine = agent.engine.clone();
    let mut description = blocking(move || engine.describe()).await?;
    // The engine is done a moment before clients are let in.
    if description.state == AVAILABLE && agent.gate.is_shut() {
        description.state = STATE_RESTORING.to_owned();
    }
    let seen = agent.state.get();
    description.data_address = agent.data_address.clone();
    (description.ledger_number, description.ledger_hash) = (seen.ledger_number, seen.ledger_hash);
    Ok(description)
}

/// Name of the pin that keeps what the next delta is compared with.
const PARENT_PIN: &str = "parent";
/// How long that pin holds without a new backup; past it the next backup is full.
const PARENT_LEASE: Duration = Duration::from_secs(14 * 24 * 3600);

async fn settle_job(agent: Arc<Agent>, head: CommandHead, settle: Settle) -> Result<Done> {
    agent.early.forget(head.job);
    blocking(move || {
        let job_pin = crate::engine::job_pin(head.job);
        let committed = settle.committed != 0;
        crash::point("agent.settling");
        if committed && agent.engine.identity()?.1 {
            agent.engine.pin(PARENT_PIN, settle.at, PARENT_LEASE)?;
        }
        agent.engine.unpin(&job_pin)?;
        if let Some(indexes) = &agent.indexes {
            if committed { indexes.commit(head.job, &settle.parts)? } else { indexes.drop_waiting(head.job) }
        }
        agent.state.see_ledger(settle.ledger_number, settle.ledger_hash)?;
        Ok(Done {})
    })
    .await
}
