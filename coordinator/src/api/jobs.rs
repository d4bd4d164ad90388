//! Jobs: list, show, cancel, follow.

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use tidemark_proto::Result;
use tidemark_proto::id::JobId;

use super::problem::{ApiError, Path, Problem};
use crate::context::Shared;
use crate::job::{JobInfo, JobState};

pub(super) use crate::job::start;

/// Jobs that run or ended lately, newest first
#[utoipa::path(get, path = "/jobs", responses((status = 200, body = Vec<JobInfo>), (status = "default", body = Problem)))]
pub(super) async fn list(State(context): State<Shared>) -> Json<Vec<JobInfo>> {
    Json(context.jobs.list())
}

/// One job
#[utoipa::path(get, path = "/jobs/{id}", params(("id" = String, Path)),
    responses((status = 200, body = JobInfo), (status = "default", body = Problem)))]
pub(super) async fn show(State(context): State<Shared>, Path(id): Path<JobId>) -> Result<Json<JobInfo>, ApiError> {
    Ok(Json(context.jobs.get(&id)?.info()))
}

/// Cancel a job; one that has ended is left as it is
#[utoipa::path(delete, path = "/jobs/{id}", params(("id" = String, Path)),
    responses((status = 200, body = JobInfo), (status = "default", body = Problem)))]
pub(super) async fn cancel(
    State(context): State<Shared>,
    Path(id): Path<JobId>,
) -> Result<Json<JobInfo>, ApiError> {
    let job = context.jobs.get(&id)?;
    job.cancel();
    Ok(Json(job.info()))
}

/// Follow a job by server-sent events: each is the job as it stands, the last one with its end
#[utoipa::path(get, path = "/jobs/{id}/events", params(("id" = String, Path)),
    responses((status = 200, content_type = "text/event-stream", body = JobInfo), (status = "default", body = Problem)))]
pub(super) async fn events(
    State(context): State<Shared>,
    Path(id): Path<JobId>,
) -> Result<Sse<impl Stream<Item = Result<Event, axum::Error>>>, ApiError> {
    let job = context.jobs.get(&id)?;
    let state = (job.watch(), true, false);
    let stream = futures::stream::unfold(state, |(mut watch, first, ended)| async move {
        if ended || (!first && watch.changed().await.is_err()) {
            return None;
        }
        let info = watch.borrow_and_update().clone();
        let ended = info.state != JobState::Running;
        Some((Event::default().json_data(&info), (watch, false, ended)))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}
