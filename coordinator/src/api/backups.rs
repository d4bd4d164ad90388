//! Backups and their verification.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use tidemark_proto::ClusterName;

use super::problem::{ApiError, Json, Path, Problem};
use crate::catalog::{self, BackupDetail, BackupItem};
use crate::context::Shared;
use crate::job::restore::find_backup;
use crate::job::verify::{self, VerifyRequest};
use crate::job::{JobInfo, JobKind, backup, hold};

/// A backup as it is asked for.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateBackup {
    /// Every part as a full run, also where a delta would do.
    #[serde(default)]
    pub full: bool,
    /// Started by a schedule, not by hand.
    #[serde(default)]
    pub automatic: bool,
}

/// Take a backup
#[utoipa::path(post, path = "/clusters/{cluster}/backups", params(("cluster" = String, Path)), request_body = CreateBackup,
    responses((status = 202, body = JobInfo), (status = "default", body = Problem)))]
pub(super) async fn create(
    State(context): State<Shared>,
    Path(cluster): Path<ClusterName>,
    Json(wanted): Json<CreateBackup>,
) -> Result<(StatusCode, Reply<JobInfo>), ApiError> {
    let request = backup::BackupRequest { cluster: cluster.clone(), full: wanted.full, manual: !wanted.automatic };
    let run = context.clone();
    let info =
        super::jobs::start(&context, JobKind::Backup, &cluster, true, move |job| backup::run(run, job, request))?;
    Ok((StatusCode::ACCEPTED, Reply(info)))
}

/// Backups of a cluster, newest first
#[utoipa::path(get, path = "/clusters/{cluster}/backups", params(("cluster" = String, Path)),
    responses((status = 200, body = Vec<BackupItem>), (status = "default", body = Problem)))]
pub(super) async fn list(
    State(context): State<Shared>,
    Path(cluster): Path<ClusterName>,
) -> Result<Reply<Vec<BackupItem>>, ApiError> {
    Ok(Reply(catalog::list(&context, &cluster).await?))
}

/// One backup in full, with the evidence of its cut
#[utoipa::path(get, path = "/clusters/{cluster}/backups/{backup}",
    params(("cluster" = String, Path), ("backup" = String, Path, description = "id, a unique beginning of it, or `latest`")),
    responses((status = 200, body = BackupDetail), (status = "default", body = Problem)))]
pub(super) async fn show(
    State(context): State<Shared>,
    Path((cluster, backup)): Path<(ClusterName, String)>,
) -> Result<Reply<BackupDetail>, ApiError> {
    Ok(Reply(catalog::show(&context.repository, &cluster, &backup).await?))
}

/// Delete a backup: it is no restore point any more
#[utoipa::path(delete, path = "/clusters/{cluster}/backups/{backup}",
    params(("cluster" = String, Path), ("backup" = String, Path, description = "id or a unique beginning of it")),
    responses((status = 200, body = BackupItem), (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(context): State<Shared>,
    Path((cluster, backup)): Path<(ClusterName, String)>,
) -> Result<Reply<BackupItem>, ApiError> {
    Ok(Reply(catalog::delete(&context, &cluster, &backup).await?))
}

/// Read a backup back and check every block, or a sample of the parts
#[utoipa::path(post, path = "/verifications", request_body = VerifyRequest,
    responses((status = 202, body = JobInfo), (status = "default", body = Problem)))]
pub(super) async fn verify(
    State(context): State<Shared>,
    Json(mut request): Json<VerifyRequest>,
) -> Result<(StatusCode, Reply<JobInfo>), ApiError> {
    let (run, cluster, source) = (context.clone(), request.cluster.clone(), request.cluster.clone());
    let ledger = catalog::known(&context.repository, &cluster).await?;
    let backup = find_backup(&ledger, &request.backup)?.backup.job;
    request.backup = backup.to_string();
    let info = super::jobs::start(&context, JobKind::Verify, &cluster, false, move |job| async move {
        let reader = job.id();
        let verify = verify::run(run.repository.clone(), job, request);
        hold::reading(&run, &source, backup, reader, verify).await
    })?;
    Ok((StatusCode::ACCEPTED, Reply(info)))
}
