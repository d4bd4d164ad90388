//! The HTTPS API as an operator's program uses it.

use std::net::SocketAddr;

use reqwest::{Client, Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemark_common::pki::Credentials;
use tidemark_common::tls;
use tidemark_coordinator::api::{PREFIX, Problem};
use tidemark_coordinator::job::{JobInfo, JobState};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::PATIENCE;

/// A client of a coordinator's API.
#[derive(Debug, Clone)]
pub struct Api {
    client: Client,
    base: String,
}

impl Api {
    /// A client with the certificate of `credentials`.
    pub fn new(address: SocketAddr, credentials: &Credentials) -> Self {
        let tls = tls::https_client(credentials).expect("TLS");
        let client = Client::builder().tls_backend_preconfigured(tls).timeout(PATIENCE * 2).build();
        Self { client: client.expect("HTTP client"), base: format!("https://{address}{PREFIX}") }
    }

    async fn call(&self, method: Method, path: &str, body: Option<&serde_json::Value>) -> Result<Response> {
        let mut request = self.client.request(method, format!("{}/{path}", self.base));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.or_kind(ErrorKind::Retry, "the API does not answer")?;
        if response.status().is_success() {
            return Ok(response);
        }
        let problem: Problem = response.json().await.or_kind(ErrorKind::Bug, "a refusal that is no problem")?;
        Err(Error::new(problem.kind(), problem.detail))
    }

    /// Asks for a value.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let response = self.call(Method::GET, path, None).await?;
        response.json().await.or_kind(ErrorKind::Bug, format_args!("answer to {path}"))
    }

    /// Posts a value.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_value(body).or_kind(ErrorKind::Bug, "a body")?;
        let response = self.call(Method::POST, path, Some(&body)).await?;
        response.json().await.or_kind(ErrorKind::Bug, format_args!("answer to {path}"))
    }

    /// Puts a value.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_value(body).or_kind(ErrorKind::Bug, "a body")?;
        let response = self.call(Method::PUT, path, Some(&body)).await?;
        response.json().await.or_kind(ErrorKind::Bug, format_args!("answer to {path}"))
    }

    /// Deletes.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let response = self.call(Method::DELETE, path, None).await?;
        response.json().await.or_kind(ErrorKind::Bug, format_args!("answer to {path}"))
    }

    /// A job as it stands.
    pub async fn job(&self, job: &JobInfo) -> JobInfo {
        self.get(&format!("jobs/{}", job.id)).await.expect("a job")
    }

    /// Follows a job by its events to its end; answers what it came to.
    pub async fn job_end(&self, job: &JobInfo) -> Result<serde_json::Value> {
        let events = self.call(Method::GET, &format!("jobs/{}/events", job.id), None).await?;
        let text = events.text().await.or_kind(ErrorKind::Retry, format_args!("events of job {}", job.id))?;
        let last = text.lines().filter_map(|l| l.strip_prefix("data:")).next_back();
        let last = last.ok_or_else(|| Error::bug("a job without an event"))?;
        let info: JobInfo = serde_json::from_str(last).or_kind(ErrorKind::Bug, "event of a job")?;
        match (info.state, info.error) {
            (JobState::Succeeded, None) => Ok(info.result.unwrap_or_default()),
            (JobState::Failed | JobState::Cancelled, Some(e)) => {
                let kind = ErrorKind::ALL.into_iter().find(|k| k.name() == e.kind).unwrap_or(ErrorKind::Bug);
                Err(Error::new(kind, e.message))
            }
            (state, error) => Err(Error::bug(format!("a job ended as {state:?} with {error:?}"))),
        }
    }
}
