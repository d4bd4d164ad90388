//! The repository: what it is, its check, its collection.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use futures::FutureExt;

use super::problem::{ApiError, Json, Problem};
use crate::context::Shared;
use crate::job::collect::{self, CollectRequest};
use crate::job::{JobInfo, JobKind, check};
use crate::log;

/// The repository.
#[derive(Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct RepositoryInfo {
    /// URL.
    pub url: String,
    /// Id.
    pub id: String,
    /// When it was made, milliseconds since 1970.
    pub created_millis: u64,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Id of the data key for new data.
    pub key_id: u32,
    /// Clusters with a ledger.
    pub clusters: Vec<String>,
}

/// The repository
#[utoipa::path(get, path = "/repository", responses((status = 200, body = RepositoryInfo), (status = "default", body = Problem)))]
pub(super) async fn repository(State(context): State<Shared>) -> Result<Reply<RepositoryInfo>, ApiError> {
    let repository = &context.repository;
    Ok(Reply(RepositoryInfo {
        url: repository.store().url().into(),
        id: repository.id().to_string(),
        created_millis: repository.created_millis(),
        encrypted: repository.keys().encrypts(),
        key_id: repository.keys().current(),
        clusters: repository.protected_clusters().await?.iter().map(ToString::to_string).collect(),
    }))
}

/// Check that everything the ledgers name is there: a job for each cluster with a ledger
#[utoipa::path(post, path = "/repository/check", responses((status = 202, body = Vec<JobInfo>), (status = "default", body = Problem)))]
pub(super) async fn check_repository(
    State(context): State<Shared>,
) -> Result<(StatusCode, Reply<Vec<JobInfo>>), ApiError> {
    let mut started = Vec::new();
    for cluster in context.repository.protected_clusters().await? {
        let (run, name) = (context.clone(), cluster.clone());
        let seen = context.history.of(&cluster);
        started.push(super::jobs::start(&context, JobKind::Check, &cluster, false, move |job| async move {
            job.phase("reading the log");
            let lost = log::check_segments(&run.repository, &name).boxed().await?;
            log::give_up(&run, &name, &lost).await?;
            check::run(run.repository.clone(), job, name, seen, lost).await
        })?);
    }
    Ok((StatusCode::ACCEPTED, Reply(started)))
}

/// Condemn and delete what no backup needs: a job for each cluster with a ledger
#[utoipa::path(post, path = "/repository/collect", request_body = CollectRequest,
    responses((status = 202, body = Vec<JobInfo>), (status = "default", body = Problem)))]
pub(super) async fn collect_garbage(
    State(context): State<Shared>,
    Json(request): Json<CollectRequest>,
) -> Result<(StatusCode, Reply<Vec<JobInfo>>), ApiError> {
    let clusters = match request.cluster {
        // Before its ledger is fenced: a name without a ledger must not get one.
        Some(cluster) => crate::catalog::known(&context.repository, &cluster).await.map(|_| vec![cluster])?,
        None => context.repository.clusters().await?,
    };
    let mut started = Vec::new();
    for cluster in clusters {
        let (run, name, dry_run) = (context.clone(), cluster.clone(), request.dry_run);
        started.push(super::jobs::start(&context, JobKind::Collect, &cluster, false, move |job| async move {
            collect::run(run, job, name, dry_run).await
        })?);
    }
    Ok((StatusCode::ACCEPTED, Reply(started)))
}
