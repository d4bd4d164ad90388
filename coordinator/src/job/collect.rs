//! Collection: condemns what no backup needs any more, then deletes it. It runs beside backups and restores.
//!
//! The order makes it safe (design, section 6): objects are listed first; then running jobs of this process are asked
//! what they write; then the ledger is read to its end. What was listed and is in neither is garbage. It is condemned by
//! a ledger entry that only counts if nothing else came into the ledger meanwhile, and a backup entry may not name what
//! an earlier entry condemned. Only then it is deleted, so that a deletion by anyone at any later time is harmless.
//! Anything unreadable stops collection.

mod live;
mod report;
mod sweep;

use std::sync::Arc;

use futures::FutureExt;
use tidemark_proto::hash::Hash;
use tidemark_proto::id::PackId;
use tidemark_proto::stored::ledger::{Body, Condemn, MAX_CONDEMNED};
use tidemark_proto::{ClusterName, Error, ErrorKind, Result};

use super::Job;
use crate::context::Shared;
use crate::log;
use crate::repository::{Ledger, event_objects_older};

pub use report::CollectReport;

/// Looks at the ledger before collection gives way to other writers.
const CONDEMN_ATTEMPTS: u32 = 5;

/// A collection as it is asked for.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CollectRequest {
    /// Only this cluster.
    #[schema(value_type = Option<String>)]
    pub cluster: Option<ClusterName>,
    /// Tell what would go and touch nothing.
    pub dry_run: bool,
}

/// Runs collection for one cluster; the answer is a [`CollectReport`].
pub async fn run(context: Shared, job: Arc<Job>, cluster: ClusterName, dry_run: bool) -> Result<serde_json::Value> {
    let collected = tokio::select! {
        collected = collect(&context, &job, &cluster, dry_run) => collected?,
        // Whatever was condemned by then stays so; the next collection deletes it.
        () = job.cancel.cancelled() => return Err(Error::cancelled("the collection was cancelled")),
    };
    serde_json::to_value(collected).map_err(|e| Error::bug("collection report").with_source(e))
}

async fn collect(context: &Shared, job: &Job, cluster: &ClusterName, dry_run: bool) -> Result<CollectReport> {
    let mut ledger = Ledger::load(&context.repository, cluster).await?;
    // A dry run leaves no trace, not even a fence; and a cluster that was only restored to has nothing to condemn.
    if !dry_run && !ledger.entries().is_empty() {
        ledger = context.ledger(cluster).await?;
    }
    for attempt in 1.. {
        job.phase("listing objects");
        let listing = sweep::Listing::read(&context.repository, cluster).await?;
        // Names of running jobs before the ledger: a job that commits in between is in both, one that ended in neither
        // and is garbage or in the ledger.
        let drawn = context.repository.drawn();
        ledger.refresh().await?;
        // A history that lost its end would make garbage of the backups that stood there.
        context.history.check(cluster, &ledger).map_err(|e| e.context("nothing is collected"))?;
        job.phase("reading manifests");
        let live = live::Live::read(context, cluster, &ledger, &drawn, &listing).await?;
        let mut garbage = listing.garbage(&live, &drawn);
        let (days, now) = (context.config.events_keep_days, context.now_millis());
        let old = event_objects_older(&context.repository, cluster, days, now).await?;
        garbage.events = old.into_iter().map(|o| o.path).collect();
        let trim = log::trimmable(&context.repository, &ledger, now).boxed().await?;
        garbage.segments = trim.objects.iter().map(|(path, _)| path.clone()).collect();
        let mut report = CollectReport::of(cluster, dry_run, &listing, &live, &garbage);
        report.log_segments = trim.objects.len() as u64;
        report.log_bytes = trim.objects.iter().map(|(_, bytes)| bytes).sum();
        job.update(|i| i.progress.total_parts = garbage.objects());
        if dry_run {
            return Ok(report);
        }
        job.phase("condemning");
        match condemn(context, &mut ledger, &garbage).await {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Retry && attempt < CONDEMN_ATTEMPTS => {
                tracing::info!(%cluster, reason = %e.message(), "collection looks again");
                continue;
            }
            Err(e) => return Err(e),
        }
        log::enter_trim(context, &mut ledger, trim.below).await?;
        job.phase("deleting");
        report.staged_files = garbage.delete(context.repository.store(), cluster, &drawn, job).await?;
        return Ok(report);
    }
    unreachable!("the last attempt returns")
}

/// Enters into the ledger what may go and has not been entered yet. `Retry` when the ledger grew since it was looked at.
async fn condemn(context: &Shared, ledger: &mut Ledger, garbage: &sweep::Garbage) -> Result<()> {
    let before = ledger.condemned();
    let packs: Vec<PackId> = garbage.packs.keys().filter(|p| !before.packs.contains(p)).copied().collect();
    let roots: Vec<Hash> = garbage.roots.keys().filter(|r| !before.roots.contains(r)).copied().collect();
    let with_packs = packs.chunks(MAX_CONDEMNED).map(|c| Condemn { packs: c.to_vec(), roots: Vec::new() });
    let with_roots = roots.chunks(MAX_CONDEMNED).map(|c| Condemn { packs: Vec::new(), roots: c.to_vec() });
    for body in with_packs.chain(with_roots) {
        let looked_at = ledger.tail();
        let body = Body::Condemn(body);
        let unmoved = |seen: &Ledger| match seen.tail() == looked_at {
            true => Ok(()),
            false => Err(Error::retry("the ledger grew while it was looked at")),
        };
        let _ = ledger.append(context.epoch, context.now_millis(), &body, unmoved).await?;
    }
    Ok(())
}
