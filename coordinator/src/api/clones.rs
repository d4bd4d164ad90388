//! Clones.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use tidemark_proto::{CloneName, ClusterName};

use super::problem::{ApiError, Json, Path, Problem};
use crate::clones::{self, CloneItem, CloneRequest, DroppedClone};
use crate::context::Shared;

/// Make a clone: a writable branch of a cluster on its own nodes
#[utoipa::path(post, path = "/clusters/{cluster}/clones", params(("cluster" = String, Path)), request_body = CloneRequest,
    responses((status = 201, body = CloneItem), (status = 200, body = CloneItem, description = "it stood already"),
        (status = "default", body = Problem)))]
pub(super) async fn create(
    State(context): State<Shared>,
    Path(cluster): Path<ClusterName>,
    Json(request): Json<CloneRequest>,
) -> Result<(StatusCode, Reply<CloneItem>), ApiError> {
    let (item, fresh) = clones::create(&context, &cluster, &request).await?;
    Ok((if fresh { StatusCode::CREATED } else { StatusCode::OK }, Reply(item)))
}

/// Clones of a cluster, by name
#[utoipa::path(get, path = "/clusters/{cluster}/clones", params(("cluster" = String, Path)),
    responses((status = 200, body = Vec<CloneItem>), (status = "default", body = Problem)))]
pub(super) async fn list(
    State(context): State<Shared>,
    Path(cluster): Path<ClusterName>,
) -> Result<Reply<Vec<CloneItem>>, ApiError> {
    Ok(Reply(clones::list(&context, &cluster).await?))
}

/// Drop a clone with all that was written in it
#[utoipa::path(delete, path = "/clusters/{cluster}/clones/{clone}",
    params(("cluster" = String, Path), ("clone" = String, Path, description = "its name")),
    responses((status = 200, body = DroppedClone), (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(context): State<Shared>,
    Path((cluster, clone)): Path<(ClusterName, CloneName)>,
) -> Result<Reply<DroppedClone>, ApiError> {
    Ok(Reply(clones::drop_clone(&context, &cluster, &clone).await?))
}
