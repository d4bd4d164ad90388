//! Looking at all that a restore needs before any node is touched.

use std::sync::Arc;

use futures::FutureExt;
use tidemark_proto::{Error, Result};
use tokio_util::sync::CancellationToken;

use super::plan::{RestorePlan, Sources, note_lost, refused};
use crate::fold::{CommandFold, REDIS_ENGINE, ties};
use crate::job::Job;
use crate::job::damage::Damage;
use crate::job::inspect::{Depth, Packs, RecordCheck, Scope, inspect};
use crate::serve::{ServedLog, WorkedOff};

/// Inspects the backup: every block where present data is replaced, damage is to be left out, or the targets' versions
/// leave it in doubt whether they load every value; else every object and every index, because a block that does not open
/// later leaves empty nodes empty. A damaged backup is refused, unless it is salvaged: then the damaged parts are noted in
/// `sources`, and what will be missing is answered. Values that a target does not load are refused.
pub(super) async fn ready(job: &Arc<Job>, plan: &RestorePlan, sources: &mut Sources) -> Result<Damage> {
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
    sources.served = tokio::select! {
        served = served(job, plan, sources).boxed() => served?,
        () = job.cancel.cancelled() => return Err(Error::cancelled("the restore was cancelled")),
    };
    sources.bad = Arc::new(found.bad);
    let mut missing = found.damage;
    note_lost(&mut missing, &sources.takes);
    Ok(missing)
}

/// How the log is given out: as it is, or, where its commands tie keys of several parts together, as the records that come of it. They
/// are worked off here, before any node is touched.
async fn served(job: &Arc<Job>, plan: &RestorePlan, sources: &Sources) -> Result<Option<ServedLog>> {
    let Some(log) = sources.log.clone() else { return Ok(None) };
    let (manifest, at) = (&sources.manifest, plan.state());
    if manifest.root().engine != REDIS_ENGINE {
        return Ok(Some(ServedLog::Records(log)));
    }
    job.phase("looking through the log");
    let Some(tie) = ties(manifest, &log, at).await? else {
        let nodes = Arc::new(manifest.root().nodes.clone());
        return Ok(Some(ServedLog::Commands { log, nodes }));
    };
    let told = format!("`{}` at {} ties keys of several parts together", tie.command, crate::cli::exact(tie.at));
    tracing::info!("{told}: the log is worked off here");
    job.log.note("log", "", format!("{told}: the log is worked off by the coordinator"));
    job.phase("working the log off");
    let dir = std::env::temp_dir();
    let work = async {
        let fold = CommandFold::new(manifest, log, at, &dir, None).await?;
        let records = WorkedOff::new(fold.records(&CancellationToken::new()).await?, at, &dir);
        let check = tokio::task::spawn_blocking(move || records.check().map(|()| records)).await;
        check.map_err(|e| Error::bug("looking at the records of a log").with_source(e))?
    };
    let records =
        work.await.map_err(|e| e.context(format_args!("{told}, and the log cannot be worked off here")))?;
    Ok(Some(ServedLog::WorkedOff(Arc::new(records))))
}
