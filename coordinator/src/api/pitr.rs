//! The log of a cluster.

use axum::Json as Reply;
use axum::extract::State;
use tidemark_proto::ClusterName;

use super::problem::{ApiError, Json, Path, Problem};
use crate::context::Shared;
use crate::log::{self, EnablePitr, PitrChange, PitrStatus};

/// How the log stands, and what can be restored
#[utoipa::path(get, path = "/clusters/{cluster}/pitr", params(("cluster" = String, Path)),
    responses((status = 200, body = PitrStatus), (status = "default", body = Problem)))]
pub(super) async fn show(
    State(context): State<Shared>,
    Path(cluster): Path<ClusterName>,
) -> Result<Reply<PitrStatus>, ApiError> {
    Ok(Reply(log::status(&context, &cluster).await?))
}

/// Keep the log of a cluster from now on
#[utoipa::path(post, path = "/clusters/{cluster}/pitr/enable", params(("cluster" = String, Path)),
    request_body = EnablePitr,
    responses((status = 200, body = PitrStatus), (status = "default", body = Problem)))]
pub(super) async fn enable(
    State(context): State<Shared>,
    Path(cluster): Path<ClusterName>,
    Json(wanted): Json<EnablePitr>,
) -> Result<Reply<PitrStatus>, ApiError> {
    Ok(Reply(log::change(&context, &cluster, &PitrChange::Enable(wanted)).await?))
}

/// Keep no log any more
#[utoipa::path(post, path = "/clusters/{cluster}/pitr/disable", params(("cluster" = String, Path)),
    responses((status = 200, body = PitrStatus), (status = "default", body = Problem)))]
pub(super) async fn disable(
    State(context): State<Shared>,
    Path(cluster): Path<ClusterName>,
) -> Result<Reply<PitrStatus>, ApiError> {
    Ok(Reply(log::change(&context, &cluster, &PitrChange::Disable).await?))
}

/// Stream nothing for a while; nodes keep what is not stored
#[utoipa::path(post, path = "/clusters/{cluster}/pitr/pause", params(("cluster" = String, Path)),
    responses((status = 200, body = PitrStatus), (status = "default", body = Problem)))]
pub(super) async fn pause(
    State(context): State<Shared>,
    Path(cluster): Path<ClusterName>,
) -> Result<Reply<PitrStatus>, ApiError> {
    Ok(Reply(log::change(&context, &cluster, &PitrChange::Pause).await?))
}

/// Go on streaming
#[utoipa::path(post, path = "/clusters/{cluster}/pitr/resume", params(("cluster" = String, Path)),
    responses((status = 200, body = PitrStatus), (status = "default", body = Problem)))]
pub(super) async fn resume(
    State(context): State<Shared>,
    Path(cluster): Path<ClusterName>,
) -> Result<Reply<PitrStatus>, ApiError> {
    Ok(Reply(log::change(&context, &cluster, &PitrChange::Resume).await?))
}
