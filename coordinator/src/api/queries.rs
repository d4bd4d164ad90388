//! Queries of the past.

use axum::Json as Reply;
use axum::extract::State;
use futures::FutureExt;

use super::problem::{ApiError, Json, Problem};
use crate::catalog::known;
use crate::context::Shared;
use crate::query::{self, DiffQuery, Difference, Found, GetQuery, History, HistoryQuery, Page, ScanQuery};

/// What a key held at a time
#[utoipa::path(post, path = "/queries/get", request_body = GetQuery,
    responses((status = 200, body = Found), (status = "default", body = Problem)))]
pub(super) async fn get(
    State(context): State<Shared>,
    Json(query): Json<GetQuery>,
) -> Result<Reply<Found>, ApiError> {
    let ledger = known(&context.repository, &query.place.cluster).await?;
    Ok(Reply(query::get(&context.repository, &ledger, &query).boxed().await?))
}

/// Keys that begin with a prefix, at a time
#[utoipa::path(post, path = "/queries/scan", request_body = ScanQuery,
    responses((status = 200, body = Page), (status = "default", body = Problem)))]
pub(super) async fn scan(
    State(context): State<Shared>,
    Json(query): Json<ScanQuery>,
) -> Result<Reply<Page>, ApiError> {
    let ledger = known(&context.repository, &query.place.cluster).await?;
    Ok(Reply(query::scan(&context.repository, &ledger, &query).boxed().await?))
}

/// What changed between two times
#[utoipa::path(post, path = "/queries/diff", request_body = DiffQuery,
    responses((status = 200, body = Difference), (status = "default", body = Problem)))]
pub(super) async fn diff(
    State(context): State<Shared>,
    Json(query): Json<DiffQuery>,
) -> Result<Reply<Difference>, ApiError> {
    let ledger = known(&context.repository, &query.place.cluster).await?;
    Ok(Reply(query::diff(&context.repository, &ledger, &query).boxed().await?))
}

/// Every version of a key that is known
#[utoipa::path(post, path = "/queries/history", request_body = HistoryQuery,
    responses((status = 200, body = History), (status = "default", body = Problem)))]
pub(super) async fn history(
    State(context): State<Shared>,
    Json(query): Json<HistoryQuery>,
) -> Result<Reply<History>, ApiError> {
    let ledger = known(&context.repository, &query.place.cluster).await?;
    Ok(Reply(query::history(&context.repository, &ledger, &query).boxed().await?))
}
