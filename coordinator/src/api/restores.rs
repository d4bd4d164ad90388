//! Restores: plan, then run.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use tidemark_proto::Error;

use super::problem::{ApiError, Json, Problem};
use crate::context::Shared;
use crate::job::restore::{self, RestorePlan, RestoreRequest};
use crate::job::{JobInfo, JobKind, hold};

/// Plan a restore; nothing changes
#[utoipa::path(post, path = "/restores/plan", request_body = RestoreRequest,
    responses((status = 200, body = RestorePlan), (status = "default", body = Problem)))]
pub(super) async fn plan(
    State(context): State<Shared>,
    Json(request): Json<RestoreRequest>,
) -> Result<Reply<RestorePlan>, ApiError> {
    Ok(Reply(restore::plan(&context, request).await?))
}

/// Run a restore
#[utoipa::path(post, path = "/restores", request_body = RestoreRequest,
    responses((status = 202, body = JobInfo), (status = "default", body = Problem)))]
pub(super) async fn create(
    State(context): State<Shared>,
    Json(request): Json<RestoreRequest>,
) -> Result<(StatusCode, Reply<JobInfo>), ApiError> {
    let target = request.target.clone().unwrap_or_else(|| request.cluster.clone());
    let plan = restore::plan(&context, request).await?;
    if !plan.problems.is_empty() {
        return Err(Error::conflict(format!("the restore cannot run: {}", plan.problems.join("; "))).into());
    }
    let run = context.clone();
    let info = super::jobs::start(&context, JobKind::Restore, &target, true, move |job| async move {
        let (source, backup, reader) = (plan.request.cluster.clone(), plan.backup, job.id());
        let restore = Box::pin(restore::run(run.clone(), job, plan));
        hold::reading(&run, &source, backup, reader, restore).await
    })?;
    Ok((StatusCode::ACCEPTED, Reply(info)))
}
