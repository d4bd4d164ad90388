//! Looking at all that a restore needs before any node is touched.

use std::sync::Arc;

use futures::FutureExt;
use tidemark_proto::{Error, Result};
use tokio_util::sync::CancellationToken;

use super::kept::Takes;
use super::plan::{RestorePlan, Sources, note_lost, refused};
use crate::fold::{CommandFold, REDIS_ENGINE, ties};
use crate::job::Job;
use crate::job::damage::Damage;
use crate::job::inspect::{Depth, Packs, RecordCheck, Scope, inspect};
use crate::serve::{ServedLog, WorkedOff};

/// Inspects the backup: every block where present data is replaced, damage is to be left out, or the targets' versions
/// leave it in doubt whether they load every value; else every object and every index, because a block that does not open
/// later leaves empty nodes empty. A damaged backup is refused, unless it is salvaged: then the damaged parts are noted in
/// `sources`, and what will be missing is answered. Values that a target does not load are refused. A log of commands is worked off
/// here where it and the backup's records are at most `small` bytes.
pub(super) async fn ready(job: &Arc<Job>, plan: &RestorePlan, sources: &mut Sources, small: u64) -> Result<Damage> {
    let replaces = plan.request.in_place && plan.targets.iter().any(|t| t.present_records > 0);
    let every = replaces || plan.request.salvage || sources.types.in_doubt();
    let depth = if every { Depth::Blocks } else { Depth::Indexes };
    job.phase(if depth == Depth::Blocks { "checking every block" } else { "checking every object" });
    let manifest = &sources.manifest;
    let look = async {
        let packs = Packs::list(manifest.repository(), manifest.cluster()).await?;
        let check: Arc<dyn RecordCheck> = sources.types.clone();
        let scope = Scope { slots: sources.selection.slots.clone(), check: Some(check), ..Scope::default() };
        inspect(manifest, &packs, depth, scope, Some(job)).await
    }
    .boxed();
    let found = tokio::select! {
        found = look => found?,
        () = job.cancel.cancelled() => return Err(Error::cancelled("the restore was cancelled")),
    };
    if !plan.request.salvage {
        found.whole().map_err(|e| refused(manifest, e))?;
    } else if found.bad.len() == u64::from(manifest.parts()) && !found.bad.is_empty() {
        return Err(found.whole().err().unwrap_or_else(|| Error::bug("no healthy part and no fault")))
            .map_err(|e| e.context("nothing of the backup is healthy: nothing was touched"));
    }
    if let Some(log) = sources.log.as_ref().filter(|_| every) {
        job.phase("checking the log");
        log.check(manifest.repository(), &sources.selection.slots).boxed().await.map_err(|e| {
            e.context("the log up to that time is damaged: nothing was touched; choose an earlier time")
        })?;
    }
    sources.types.verdict()?;
    let (served, functions) = tokio::select! {
        looked = log_of(job, plan, sources, small).boxed() => looked?,
        () = job.cancel.cancelled() => return Err(Error::cancelled("the restore was cancelled")),
    };
    sources.served = served;
    if let Some(functions) = functions {
        let mut takes = Takes::clone(&sources.takes);
        match functions {
            Ok(libraries) => (takes.libraries, takes.knows_libraries) = (libraries, true),
            Err(told) => {
                job.log.note("kept", "", told.clone());
                sources.told.push(told);
            }
        }
        sources.takes = Arc::new(takes);
    }
    sources.bad = Arc::new(found.bad);
    let mut missing = found.damage;
    note_lost(&mut missing, &sources.takes);
    Ok(missing)
}

/// Libraries of functions at the time, where the log changed them; in words, why they cannot be told.
type Functions = Option<std::result::Result<Vec<Vec<u8>>, String>>;

/// How the log is given out, and what it makes of the functions.
async fn log_of(
    job: &Arc<Job>,
    plan: &RestorePlan,
    sources: &Sources,
    small: u64,
) -> Result<(Option<ServedLog>, Functions)> {
    let Some(log) = sources.log.clone() else { return Ok((None, None)) };
    let (manifest, at) = (&sources.manifest, plan.state());
    if manifest.root().engine != REDIS_ENGINE {
        return Ok((Some(ServedLog::Records(log)), None));
    }
    job.phase("looking through the log");
    let (dir, cancel) = (std::env::temp_dir(), CancellationToken::new());
    let _stop = cancel.clone().drop_guard();
    let fold = CommandFold::whole_log(manifest, log.clone(), at, &dir, None);
    let functions = fold.functions(&cancel).await.transpose().map(|found| {
        found.map_err(|e| {
            let told =
                format!("libraries of functions stay those of the backup, the log changes them: {}", e.report());
            tracing::warn!("{told}");
            told
        })
    });
    let tie = ties(manifest, &log, at).await?;
    let by_agents = || {
        let nodes = Arc::new(manifest.root().nodes.clone());
        ServedLog::Commands { log: log.clone(), nodes }
    };
    // What is small is read twice sooner than a server is started for each of its parts.
    let small = manifest.root().totals.live_bytes + log.bytes <= small && crate::fold::has_server();
    if tie.is_none() && !small {
        return Ok((Some(by_agents()), functions));
    }
    // It is worked off here, before any node is touched.
    let told = match &tie {
        Some(tie) => tie.to_string(),
        None => "the log and its backup are small".to_owned(),
    };
    tracing::info!("{told}: the log is worked off here");
    job.log.note("log", "", format!("{told}: the log is worked off by the coordinator"));
    job.phase("working the log off");
    match fold.records(&cancel).await {
        Ok(records) => Ok((Some(ServedLog::WorkedOff(Arc::new(WorkedOff::new(records, at)))), functions)),
        Err(e) if tie.is_none() => {
            tracing::info!(error = %e.report(), "the log cannot be worked off here: the agents do it");
            Ok((Some(by_agents()), functions))
        }
        Err(e) => Err(e.context(format_args!("{told}, and the log cannot be worked off here"))),
    }
}
