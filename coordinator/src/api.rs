//! The HTTP API: the one operator surface. JSON over TLS with operator certificates, under `/api/v1`; errors are
//! `application/problem+json` (RFC 9457); the OpenAPI document is at `/api/v1/openapi.json`.

mod backups;
mod clones;
mod clusters;
mod jobs;
mod operations;
mod pitr;
mod problem;
mod queries;
mod repository;
mod restores;
mod server;

use axum::Router;
use axum::routing::{get, post};
use utoipa::OpenApi;

use crate::context::Shared;

pub use backups::CreateBackup;
pub(crate) use clusters::items as clusters_of;
pub use clusters::{ClusterDetail, ClusterItem, NodeItem, NodeJobs, Status};
pub use problem::Problem;
pub use repository::RepositoryInfo;
pub use server::run;

/// Prefix of every path.
pub const PREFIX: &str = "/api/v1";
/// Largest request body, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// The document of the API.
#[derive(Debug, OpenApi)]
#[openapi(
    info(title = "Tidemark", description = "Backup and restore of sharded data stores"),
    servers((url = "/api/v1")),
    paths(
        clusters::status,
        repository::repository,
        repository::check_repository,
        repository::collect_garbage,
        clusters::list,
        clusters::show,
        clusters::open_jobs,
        backups::create,
        backups::list,
        backups::show,
        backups::delete,
        backups::verify,
        clones::create,
        clones::list,
        clones::delete,
        restores::plan,
        restores::create,
        jobs::list,
        jobs::show,
        jobs::cancel,
        jobs::events,
        operations::events,
        operations::limits,
        operations::set_limits,
        operations::diagnosis,
        pitr::show,
        pitr::enable,
        pitr::disable,
        pitr::pause,
        pitr::resume,
        queries::get,
        queries::scan,
        queries::diff,
        queries::history,
    )
)]
struct Document;

/// The OpenAPI document.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// All routes.
pub fn router(context: Shared) -> Router {
    let api = Router::new()
        .route("/openapi.json", get(|| async { axum::Json(document()) }))
        .route("/status", get(clusters::status))
        .route("/repository", get(repository::repository))
        .route("/repository/check", post(repository::check_repository))
        .route("/repository/collect", post(repository::collect_garbage))
        .route("/clusters", get(clusters::list))
        .route("/clusters/{cluster}", get(clusters::show))
        .route("/clusters/{cluster}/open-jobs", get(clusters::open_jobs))
        .route("/clusters/{cluster}/backups", get(backups::list).post(backups::create))
        .route("/clusters/{cluster}/backups/{backup}", get(backups::show).delete(backups::delete))
        .route("/clusters/{cluster}/clones", get(clones::list).post(clones::create))
        .route("/clusters/{cluster}/clones/{clone}", axum::routing::delete(clones::delete))
        .route("/clusters/{cluster}/pitr", get(pitr::show))
        .route("/clusters/{cluster}/pitr/enable", post(pitr::enable))
        .route("/clusters/{cluster}/pitr/disable", post(pitr::disable))
        .route("/clusters/{cluster}/pitr/pause", post(pitr::pause))
        .route("/clusters/{cluster}/pitr/resume", post(pitr::resume))
        .route("/queries/get", post(queries::get))
        .route("/queries/scan", post(queries::scan))
        .route("/queries/diff", post(queries::diff))
        .route("/queries/history", post(queries::history))
        .route("/verifications", post(backups::verify))
        .route("/restores/plan", post(restores::plan))
        .route("/restores", post(restores::create))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{id}", get(jobs::show).delete(jobs::cancel))
        .route("/jobs/{id}/events", get(jobs::events))
        .route("/events", get(operations::events))
        .route("/limits", get(operations::limits).put(operations::set_limits))
        .route("/diagnosis", get(operations::diagnosis))
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(context);
    Router::new().nest(PREFIX, api).fallback(problem::no_such_path)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_document_names_every_path_once() {
        let document = super::document();
        assert_eq!(document.paths.paths.len(), 29);
        let json = serde_json::to_string(&document).unwrap();
        for schema in ["RestorePlan", "BackupDetail", "KeptSummary", "CloneItem", "JobInfo", "Problem"] {
            assert!(json.contains(&format!("\"{schema}\"")), "{schema}");
        }
    }
}
