//! Client of a coordinator's HTTP API, with an operator's certificate. The command line is built on it.

mod events;
mod fault;
mod follow;

use std::time::Duration;

use reqwest::{Method, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemark_common::identity::Identity;
use tidemark_common::pki::Credentials;
use tidemark_common::tls;
use tidemark_proto::id::JobId;
use tidemark_proto::{CloneName, ClusterName, Error, ErrorKind, Result, error::ResultExt};

use crate::api::{ClusterDetail, ClusterItem, CreateBackup, PREFIX, RepositoryInfo, Status};
use crate::catalog::{BackupDetail, BackupItem};
use crate::clones::{CloneItem, CloneRequest, DroppedClone};
use crate::diagnose::DiagnosisFile;
use crate::events::{EventItem, EventsQuery};
use crate::job::JobInfo;
use crate::job::collect::CollectRequest;
use crate::job::restore::{RestorePlan, RestoreRequest};
use crate::job::verify::VerifyRequest;
use crate::limits::{LimitsInfo, SetLimits};
use crate::log::{EnablePitr, PitrStatus};
use crate::query::{DiffQuery, Difference, Found, GetQuery, History, HistoryQuery, Page, ScanQuery};

/// Time for the TCP and TLS handshakes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for an answer. Planning a restore reads every page of a manifest first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// Largest answer that is taken, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// A client of one coordinator. Clones share connections.
#[derive(Debug, Clone)]
pub struct ApiClient {
    http: reqwest::Client,
    base: Url,
}

impl ApiClient {
    /// A client of the coordinator at `url` (`https://host:port`); it connects at the first request.
    pub fn new(url: &str, credentials: &Credentials) -> Result<Self> {
        let base = base_of(url)?;
        if let agent @ Identity::Agent { .. } = credentials.identity() {
            return Err(Error::config(format!(
                "the certificate is {agent}: the API takes operators alone, issue one with `tidemark pki issue operator`"
            )));
        }
        let mut config = tls::https_client(credentials)?;
        // One request at a time needs no more; the client library is built without HTTP/2.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            // The fleet is its own network: a proxy for the rest of the world does not lead there.
            .no_proxy()
            .build()
            .or_kind(ErrorKind::Bug, "HTTPS client")?;
        Ok(Self { http, base })
    }

    /// The coordinator's URL.
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// How the coordinator stands.
    pub async fn status(&self) -> Result<Status> {
        self.get(&["status"]).await
    }

    /// The repository.
    pub async fn repository(&self) -> Result<RepositoryInfo> {
        self.get(&["repository"]).await
    }

    /// Begins a check of the repository: a job for each cluster.
    pub async fn check_repository(&self) -> Result<Vec<JobInfo>> {
        self.send(Method::POST, &["repository", "check"], None::<&()>).await
    }

    /// Begins a collection: a job for each cluster.
    pub async fn collect(&self, request: &CollectRequest) -> Result<Vec<JobInfo>> {
        self.send(Method::POST, &["repository", "collect"], Some(request)).await
    }

    /// All clusters.
    pub async fn clusters(&self) -> Result<Vec<ClusterItem>> {
        self.get(&["clusters"]).await
    }

    /// One cluster in full.
    pub async fn cluster(&self, cluster: &ClusterName) -> Result<ClusterDetail> {
        self.get(&["clusters", cluster.as_str()]).await
    }

    /// Begins a backup.
    pub async fn create_backup(&self, cluster: &ClusterName, wanted: &CreateBackup) -> Result<JobInfo> {
        self.send(Method::POST, &["clusters", cluster.as_str(), "backups"], Some(wanted)).await
    }

    /// Backups of a cluster, newest first.
    pub async fn backups(&self, cluster: &ClusterName) -> Result<Vec<BackupItem>> {
        self.get(&["clusters", cluster.as_str(), "backups"]).await
    }

    /// One backup in full, by id, a unique beginning of it, or `latest`.
    pub async fn backup(&self, cluster: &ClusterName, backup: &str) -> Result<BackupDetail> {
        self.get(&["clusters", cluster.as_str(), "backups", backup]).await
    }

    /// Deletes a backup.
    pub async fn delete_backup(&self, cluster: &ClusterName, backup: &str) -> Result<BackupItem> {
        self.send(Method::DELETE, &["clusters", cluster.as_str(), "backups", backup], None::<&()>).await
    }

    /// Makes a clone of a cluster.
    pub async fn create_clone(&self, cluster: &ClusterName, wanted: &CloneRequest) -> Result<CloneItem> {
        self.send(Method::POST, &["clusters", cluster.as_str(), "clones"], Some(wanted)).await
    }

    /// Clones of a cluster, by name.
    pub async fn clones(&self, cluster: &ClusterName) -> Result<Vec<CloneItem>> {
        self.get(&["clusters", cluster.as_str(), "clones"]).await
    }

    /// Drops a clone.
    pub async fn drop_clone(&self, cluster: &ClusterName, clone: &CloneName) -> Result<DroppedClone> {
        self.send(Method::DELETE, &["clusters", cluster.as_str(), "clones", clone.as_str()], None::<&()>).await
    }

    /// Begins a verification.
    pub async fn verify(&self, wanted: &VerifyRequest) -> Result<JobInfo> {
        self.send(Method::POST, &["verifications"], Some(wanted)).await
    }

    /// Plans a restore; nothing changes.
    pub async fn plan_restore(&self, wanted: &RestoreRequest) -> Result<RestorePlan> {
        self.send(Method::POST, &["restores", "plan"], Some(wanted)).await
    }

    /// Begins a restore.
    pub async fn create_restore(&self, wanted: &RestoreRequest) -> Result<JobInfo> {
        self.send(Method::POST, &["restores"], Some(wanted)).await
    }

    /// Jobs that run or ended lately, newest first.
    pub async fn jobs(&self) -> Result<Vec<JobInfo>> {
        self.get(&["jobs"]).await
    }

    /// One job.
    pub async fn job(&self, id: &JobId) -> Result<JobInfo> {
        self.get(&["jobs", &id.to_string()]).await
    }

    /// Cancels a job.
    pub async fn cancel_job(&self, id: &JobId) -> Result<JobInfo> {
        self.send(Method::DELETE, &["jobs", &id.to_string()], None::<&()>).await
    }

    /// What happened, oldest first.
    pub async fn events(&self, query: &EventsQuery) -> Result<Vec<EventItem>> {
        let mut url = self.path(&["events"])?;
        let cluster = query.cluster.as_ref().map(ToString::to_string);
        let limit = query.limit.map(|n| n.to_string());
        for (name, value) in [("cluster", &cluster), ("job", &query.job), ("limit", &limit)] {
            if let Some(value) = value {
                let _ = url.query_pairs_mut().append_pair(name, value);
            }
        }
        self.ask(Method::GET, url, None::<&()>).await
    }

    /// How the log of a cluster stands.
    pub async fn pitr(&self, cluster: &ClusterName) -> Result<PitrStatus> {
        self.get(&["clusters", cluster.as_str(), "pitr"]).await
    }

    /// Keeps the log of a cluster from now on.
    pub async fn enable_pitr(&self, cluster: &ClusterName, wanted: &EnablePitr) -> Result<PitrStatus> {
        self.send(Method::POST, &["clusters", cluster.as_str(), "pitr", "enable"], Some(wanted)).await
    }

    /// `disable`, `pause` or `resume`.
    pub async fn change_pitr(&self, cluster: &ClusterName, change: &str) -> Result<PitrStatus> {
        self.send(Method::POST, &["clusters", cluster.as_str(), "pitr", change], None::<&()>).await
    }

    /// What a key held at a time.
    pub async fn query_get(&self, query: &GetQuery) -> Result<Found> {
        self.send(Method::POST, &["queries", "get"], Some(query)).await
    }

    /// Keys that begin with a prefix, at a time.
    pub async fn query_scan(&self, query: &ScanQuery) -> Result<Page> {
        self.send(Method::POST, &["queries", "scan"], Some(query)).await
    }

    /// What changed between two times.
    pub async fn query_diff(&self, query: &DiffQuery) -> Result<Difference> {
        self.send(Method::POST, &["queries", "diff"], Some(query)).await
    }

    /// Every version of a key.
    pub async fn query_history(&self, query: &HistoryQuery) -> Result<History> {
        self.send(Method::POST, &["queries", "history"], Some(query)).await
    }

    /// Limits of rates.
    pub async fn limits(&self) -> Result<LimitsInfo> {
        self.get(&["limits"]).await
    }

    /// Changes limits of rates.
    pub async fn set_limits(&self, change: &SetLimits) -> Result<LimitsInfo> {
        self.send(Method::PUT, &["limits"], Some(change)).await
    }

    /// What the report of a fault needs to know.
    pub async fn diagnosis(&self) -> Result<Vec<DiagnosisFile>> {
        self.get(&["diagnosis"]).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T> {
        self.send(Method::GET, path, None::<&()>).await
    }

    async fn send<Q: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&Q>,
    ) -> Result<T> {
        self.ask(method, self.path(path)?, body).await
    }

    async fn ask<Q: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: Option<&Q>,
    ) -> Result<T> {
        let mut request = self.http.request(method, url).timeout(ANSWER_TIMEOUT);
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut response = request.send().await.map_err(|e| fault::of_transport(self.url(), e))?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| fault::of_transport(self.url(), e))? {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                return Err(Error::unsupported(format!("{} answers more than {MAX_ANSWER} bytes", self.url())));
            }
            bytes.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            return Err(fault::of_answer(self.url(), status, &bytes));
        }
        serde_json::from_slice(&bytes).map_err(|e| fault::of_content(self.url(), e))
    }

    fn path(&self, segments: &[&str]) -> Result<Url> {
        let mut url = self.base.clone();
        let no_base = |()| Error::request(format!("{}: no URL of a coordinator", self.base));
        let _ = url
            .path_segments_mut()
            .map_err(no_base)?
            .pop_if_empty()
            .extend(PREFIX.split('/').filter(|s| !s.is_empty()))
            .extend(segments);
        Ok(url)
    }
}

fn base_of(text: &str) -> Result<Url> {
    let wrong = || Error::config(format!("`{text}` is no URL of a coordinator: write https://host:port"));
    let url = Url::parse(text).map_err(|e| wrong().with_source(e))?;
    if url.scheme() != "https" || url.host_str().is_none() || url.cannot_be_a_base() {
        return Err(wrong());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::config(
            "the URL of a coordinator carries no user or password: certificates say who you are",
        ));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_https_with_a_host() {
        assert_eq!(base_of("https://127.0.0.1:7401").unwrap().port(), Some(7401));
        for bad in ["127.0.0.1:7401", "http://127.0.0.1:7401", "https://", "", "https://me:secret@host"] {
            let e = base_of(bad).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Config, "{bad}");
            assert!(!e.report().contains("secret"), "{e}");
        }
    }
}
