//! What another coordinator left: a coordinator that starts takes over every cluster's ledger and goes on with the jobs
//! whose end the repository does not know.
//!
//! | left by the last one | becomes |
//! |---|---|
//! | a backup before its cut | `failed`: the next one begins anew |
//! | a backup after its cut | goes on with what is not stored yet; the agents keep the cut pinned |
//! | a restore that was loading | goes on with what is not loaded yet |
//! | a restore that was switching | every node switches |

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemark_proto::id::JobId;
use tidemark_proto::stored::job::{BackupBegun, RestoreSwitching};
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Error, Result};

use crate::context::{Context, Shared};
use crate::job::backup::{self, BackupRequest, LeftBackup, record_failure};
use crate::job::restore::LeftRestore;
use crate::job::{Job, JobKind, hold, restore};
use crate::repository::{JobRecorder, Ledger, Record, read_job};

/// A job that another coordinator left, adopted here.
#[derive(Debug)]
pub struct Left {
    job: Arc<Job>,
    what: What,
}

#[derive(Debug)]
enum What {
    Backup(LeftBackup),
    BeforeCut(BackupBegun),
    Restore(LeftRestore, JobRecorder),
    Switch(LeftRestore, RestoreSwitching, JobRecorder),
}

/// Takes over every cluster: fences its ledger, and adopts the jobs that are open. A cluster whose history cannot be read
/// is told of in the log; the others are served.
pub async fn take_over(context: &Shared) -> Result<Vec<Left>> {
    let mut left = Vec::new();
    for cluster in context.repository.clusters().await? {
        match open_jobs(context, &cluster).await {
            Ok(found) => left.extend(found),
            Err(e) => tracing::error!(%cluster, error = %e.report(), "the cluster cannot be taken over as it is"),
        }
    }
    Ok(left)
}

async fn open_jobs(context: &Shared, cluster: &ClusterName) -> Result<Vec<Left>> {
    // Only a history that is there is fenced: a cluster that was restored to, and never backed up, gets none by this.
    let ledger = match Ledger::load(&context.repository, cluster).await? {
        ledger if ledger.entries().is_empty() => ledger,
        _ => context.ledger(cluster).await?,
    };
    let listed = context.repository.store().list(&paths::jobs_dir(cluster)).await?;
    let mut ids: Vec<JobId> = listed.iter().filter_map(|(path, _)| paths::job_of(path)).collect();
    ids.dedup();
    let mut left = Vec::new();
    for id in ids.into_iter().filter(|id| !ledger.is_settled(*id)) {
        match read_job(&context.repository, cluster, &id).await {
            Ok((records, revision)) => left.extend(adopt(context, cluster, id, records, revision)),
            // A record is a hint: without it the job is void.
            Err(e) => tracing::warn!(job = %id, error = %e.report(), "an open job cannot be taken up"),
        }
    }
    Ok(left)
}

fn adopt(context: &Shared, cluster: &ClusterName, id: JobId, records: Vec<Record>, revision: u64) -> Option<Left> {
    let (mut begun, mut cut, mut stored) = (None, None, BTreeMap::new());
    let (mut restore, mut switching, mut options, mut with_users, mut at) = (None, None, None, false, None);
    for record in records {
        match record {
            Record::BackupBegun(b) => begun = Some(b),
            Record::BackupCut(c) => cut = Some(c),
            Record::Parts(r) => {
                // Without a word of its begin: a build wrote it that knew none.
                let started_millis = r.at_millis;
                let _ = begun.get_or_insert(BackupBegun { job: id, epoch: r.epoch, started_millis, manual: 1 });
                stored.extend(r.parts.into_iter().map(|p| ((p.node, p.region, p.lower.clone()), p)));
            }
            Record::RestoreBegun(b) => restore = Some(b),
            Record::RestoreOptions(o) => options = Some(o),
            Record::RestoreWithUsers(_) => with_users = true,
            Record::RestoreAt(point) => at = Some(point.at),
            Record::RestoreSwitching(s) => switching = Some(s),
            Record::RestoreEnded(_) => return None,
        }
    }
    let recorder = || JobRecorder::new(&context.repository, cluster, id, context.epoch, revision);
    let left = |begun| LeftRestore { begun, options: options.clone(), with_users, at };
    let (kind, started, what) = match (begun, cut, restore, switching) {
        (_, _, Some(r), Some(s)) => (JobKind::Restore, r.started_millis, What::Switch(left(r), s, recorder())),
        (_, _, Some(r), None) => (JobKind::Restore, r.started_millis, What::Restore(left(r), recorder())),
        (Some(b), Some(cut), ..) => {
            let request = BackupRequest { cluster: cluster.clone(), full: false, manual: b.manual != 0 };
            let left = LeftBackup { request, cut, stored: stored.into_values().collect(), revision };
            (JobKind::Backup, b.started_millis, What::Backup(left))
        }
        (Some(b), None, ..) => (JobKind::Backup, b.started_millis, What::BeforeCut(b)),
        _ => return None,
    };
    tracing::info!(job = %id, %cluster, ?kind, "taking up a job that another coordinator left");
    Some(Left { job: context.jobs.adopt(id, kind, cluster, started), what })
}

/// Goes on with what was left, in the background.
pub fn go_on(context: &Shared, left: Vec<Left>) {
    for Left { job, what } in left {
        let (context, running) = (context.clone(), job.clone());
        let work = tokio::spawn(run(context.clone(), job, what));
        drop(tokio::spawn(async move {
            let result = work.await.unwrap_or_else(|e| Err(Error::bug("the job panicked").with_source(e)));
            let _ = result.as_ref().inspect_err(|e| context.note(e));
            context.jobs.end(&running, context.now_millis(), result);
            crate::settle::after_job(context.clone(), running.info().cluster).await;
        }));
    }
}

async fn run(context: Shared, job: Arc<Job>, what: What) -> Result<serde_json::Value> {
    match what {
        What::Backup(left) => backup::resume(context, job, left).await,
        What::BeforeCut(begun) => Err(fail(&context, &job, &begun).await),
        What::Restore(left, recorder) => {
            let (source, backup, reader) = (left.begun.source.clone(), left.begun.backup, job.id());
            let restore = Box::pin(restore::resume(context.clone(), job, left, recorder));
            hold::reading(&context, &source, backup, reader, restore).await
        }
        What::Switch(left, switching, recorder) => {
            restore::resume_switch(context, job, (left, switching), recorder).await
        }
    }
}

async fn fail(context: &Context, job: &Job, begun: &BackupBegun) -> Error {
    let error = Error::cancelled(format!(
        "the coordinator of epoch {} stopped before the cut of this backup: take it again",
        begun.epoch
    ));
    let cluster = job.info().cluster;
    match context.ledger(&cluster).await {
        Ok(mut ledger) => {
            let of = (begun.job, begun.started_millis);
            let _ = record_failure(context, &mut ledger, of, begun.manual != 0, &error).await;
        }
        Err(e) => tracing::warn!(error = %e.report(), "the end of a backup could not be recorded"),
    }
    error
}

/// Whether the ledger's newest backup is the one that `job` made.
pub fn is_newest(ledger: &Ledger, job: JobId) -> bool {
    ledger.backups().last().is_some_and(|b| b.backup.job == job)
}
