//! Errors of the API: `application/problem+json` (RFC 9457).

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tidemark_proto::{Error, ErrorKind};

/// An error as the API tells it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// Kind of the error as a URI reference.
    #[serde(rename = "type")]
    pub uri: String,
    /// Kind of the error: `retry`, `request`, `not-found`, `conflict`, `denied`, `config`, `damaged`, `fenced`, `full`,
    /// `cancelled`, `unsupported`, `bug`.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened and what to do.
    pub detail: String,
}

impl Problem {
    /// The kind of error.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::ALL.into_iter().find(|k| k.name() == self.title).unwrap_or(ErrorKind::Bug)
    }
}

/// Our error as a response.
#[derive(Debug)]
pub(super) struct ApiError(pub Error);

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let kind = self.0.kind();
        respond(
            kind,
            StatusCode::from_u16(kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            self.0.report(),
        )
    }
}

fn respond(kind: ErrorKind, status: StatusCode, detail: String) -> Response {
    let problem =
        Problem { uri: format!("about:blank#{kind}"), title: kind.name().into(), status: status.as_u16(), detail };
    (status, [(header::CONTENT_TYPE, "application/problem+json")], axum::Json(problem).0.to_json()).into_response()
}

impl Problem {
    fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Answers everything with a refusal.
pub(super) fn refusing(why: String) -> axum::Router {
    axum::Router::new().fallback(move || async move { ApiError(Error::denied(why)).into_response() })
}

/// Answer to paths that are not there.
pub(super) async fn no_such_path(uri: Uri) -> Response {
    ApiError(Error::not_found(format!("there is no {}: see {}/openapi.json", uri.path(), super::PREFIX)))
        .into_response()
}

/// Answer to methods that a path does not take.
pub(super) async fn no_such_method(uri: Uri) -> Response {
    let detail = format!("{} does not take this method: see {}/openapi.json", uri.path(), super::PREFIX);
    respond(ErrorKind::Request, StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// A JSON body; what is wrong with it is told as a problem.
#[derive(Debug, FromRequest)]
#[from_request(via(axum::Json), rejection(ApiError))]
pub(super) struct Json<T>(pub(super) T);

/// Path parameters; what is wrong with them is told as a problem.
#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(ApiError))]
pub(super) struct Path<T>(pub(super) T);

/// Query parameters; what is wrong with them is told as a problem.
#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiError))]
pub(super) struct Query<T>(pub(super) T);

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self(Error::request(rejection.body_text()))
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self(Error::request(rejection.body_text()))
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self(Error::request(rejection.body_text()))
    }
}
