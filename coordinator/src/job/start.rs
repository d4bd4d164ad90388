//! Beginning a job in the background.

use std::sync::Arc;

use tidemark_proto::{ClusterName, Error, Result};
use tracing::Instrument;

use super::{Job, JobInfo, JobKind};
use crate::context::Shared;

/// Begins a job and runs `work` for it in the background.
pub fn start<F>(
    context: &Shared,
    kind: JobKind,
    cluster: &ClusterName,
    exclusive: bool,
    work: impl FnOnce(Arc<Job>) -> F,
) -> Result<JobInfo>
where
    F: Future<Output = Result<serde_json::Value>> + Send + 'static,
{
    context.check_fenced()?;
    let job = context.jobs.begin(kind, cluster, exclusive, context.now_millis())?;
    let info = job.info();
    let span = job.span();
    let running = tokio::spawn(span.in_scope(|| work(job.clone())).instrument(span.clone()));
    let context = context.clone();
    drop(tokio::spawn(async move {
        let result = running.await.unwrap_or_else(|e| Err(Error::bug("the job panicked").with_source(e)));
        let _ = result.as_ref().inspect_err(|e| context.note(e));
        span.in_scope(|| context.jobs.end(&job, context.now_millis(), result));
        if matches!(kind, JobKind::Backup | JobKind::Restore) {
            crate::settle::after_job(context.clone(), job.info().cluster).await;
        }
    }));
    Ok(info)
}
