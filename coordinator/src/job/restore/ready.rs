//! Looking at all that a restore needs before any node is touched.

use std::sync::Arc;

use futures::FutureExt;
use tidemark_proto::{Error, Result};

use super::plan::{RestorePlan, Sources, note_lost, refused};
use crate::job::Job;
use crate::job::damage::Damage;
use crate::job::inspect::{Depth, Packs, RecordCheck, Scope, inspect};

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
    sources.bad = Arc::new(found.bad);
    let mut missing = found.damage;
    note_lost(&mut missing, &sources.takes);
    Ok(missing)
}
