//! Running a coordinator: what happened, limits of rates, a diagnosis.

use axum::Json as Reply;
use axum::extract::State;

use super::problem::{ApiError, Json, Problem, Query};
use crate::context::Shared;
use crate::diagnose::{self, DiagnosisFile};
use crate::events::{self, EventItem, EventsQuery};
use crate::limits::{LimitsInfo, SetLimits};

/// What happened, oldest first: events of jobs and entries of ledgers, also of earlier coordinators
#[utoipa::path(get, path = "/events", params(EventsQuery),
    responses((status = 200, body = Vec<EventItem>), (status = "default", body = Problem)))]
pub(super) async fn events(
    State(context): State<Shared>,
    Query(query): Query<EventsQuery>,
) -> Result<Reply<Vec<EventItem>>, ApiError> {
    Ok(Reply(events::list(&context.repository, &query).await?))
}

/// Limits of rates
#[utoipa::path(get, path = "/limits", responses((status = 200, body = LimitsInfo), (status = "default", body = Problem)))]
pub(super) async fn limits(State(context): State<Shared>) -> Reply<LimitsInfo> {
    Reply(context.limits.info())
}

/// Change limits of rates, at once and for good
#[utoipa::path(put, path = "/limits", request_body = SetLimits,
    responses((status = 200, body = LimitsInfo), (status = "default", body = Problem)))]
pub(super) async fn set_limits(
    State(context): State<Shared>,
    Json(change): Json<SetLimits>,
) -> Result<Reply<LimitsInfo>, ApiError> {
    Ok(Reply(context.limits.set(&context.repository, &change, context.now_millis()).await?))
}

/// What the report of a fault needs to know; no secrets are in it
#[utoipa::path(get, path = "/diagnosis",
    responses((status = 200, body = Vec<DiagnosisFile>), (status = "default", body = Problem)))]
pub(super) async fn diagnosis(State(context): State<Shared>) -> Reply<Vec<DiagnosisFile>> {
    Reply(diagnose::gather(&context).await)
}
