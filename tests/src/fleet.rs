//! A fleet of real processes: a coordinator and agents, the built binaries, in a temporary folder.
//!
//! What holds: every process is ended with the fleet, and only those; all ports are chosen by the operating system; a
//! wait is for a condition, with a deadline. When a test fails the folder with its configurations and logs stays.

mod agent;
mod api;
mod coordinator;
mod data;
mod process;
mod scrape;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tidemark_common::clock::SystemClock;
use tidemark_common::expiry::ExpiryMode;
use tidemark_common::identity::Identity;
use tidemark_common::pki::{Credentials, PkiPaths};
use tidemark_coordinator::api::ClusterDetail;
use tidemark_coordinator::catalog::{BackupDetail, BackupItem};
use tidemark_coordinator::job::restore::{RestorePlan, RestoreRequest};
use tidemark_coordinator::job::{JobInfo, JobState};
use tidemark_coordinator::pki::{Authority, CA_DAYS, Leaf};
use tidemark_proto::slot::even_share;
use tidemark_proto::{Error, Result};
use tokio::time::Instant;

pub use agent::{AgentProcess, AgentSpec, EngineKind};
pub use api::Api;
pub use coordinator::{Coordinator, CoordinatorSpec};
pub use data::{Records, load_options, records_at, write};
pub use process::{Process, binary};
pub use scrape::{Scrape, ask};

/// A condition that does not come true for this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Authorities of tests are this old, so that they can have issued certificates that have ended.
const AUTHORITY_AGE: Duration = Duration::from_secs(800 * 24 * 3600);

/// Asks `look` until it answers something; fails after [`PATIENCE`] with what was waited for.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {} s for {what}", PATIENCE.as_secs());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The fleet.
#[derive(Debug)]
pub struct Fleet {
    dir: Option<TempDir>,
    authority: Authority,
    coordinator: Option<Coordinator>,
    agents: BTreeMap<(String, String), AgentProcess>,
    api: Api,
    operator: Credentials,
    operator_tls: PkiPaths,
}

/// An authority in `dir` that has been there for a while.
pub fn authority(dir: &Path) -> Authority {
    let long_ago = SystemClock.time() - AUTHORITY_AGE;
    let _ = Authority::create(dir, "test", CA_DAYS, false, long_ago).expect("authority");
    Authority::open(dir).expect("authority")
}

/// Issues a certificate into `out`, good for `days` from `from`.
pub fn issue(authority: &Authority, uri: &str, out: &Path, days: u32, from: SystemTime) -> PkiPaths {
    let identity: Identity = uri.parse().expect("identity");
    let leaf = Leaf { identity, hosts: Vec::new(), days };
    let issued = authority.issue(&leaf, out, true, from).expect("certificate");
    PkiPaths { ca: issued.ca, cert: issued.cert, key: issued.key }
}

impl Fleet {
    /// A coordinator on an encrypted repository, and no agent yet.
    pub async fn start() -> Self {
        Self::start_with(CoordinatorSpec::default()).await
    }

    /// A coordinator as `spec` says, and no agent yet.
    pub async fn start_with(spec: CoordinatorSpec) -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let pki = dir.path().join("pki");
        let authority = authority(&pki);
        let issue = |uri: &str| issue(&authority, uri, &pki, 30, SystemClock.time());
        let operator_tls = issue("tidemark://operator/alice");
        let operator = Credentials::load(operator_tls.clone()).expect("operator");
        let coordinator = Coordinator::start(dir.path(), spec, issue("tidemark://coordinator/c1")).await;
        let api = Api::new(coordinator.api_address, &operator);
        let dir = Some(dir);
        Self {
            dir,
            authority,
            coordinator: Some(coordinator),
            agents: BTreeMap::new(),
            api,
            operator,
            operator_tls,
        }
    }

    /// The folder of everything.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("there until the end").path()
    }

    /// The folder of the repository.
    pub fn repository(&self) -> PathBuf {
        coordinator::repository_dir(self.dir())
    }

    /// The fleet's authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The API, as operator.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Credentials of the operator.
    pub fn operator(&self) -> &Credentials {
        &self.operator
    }

    /// Ends the coordinator in order, for good.
    pub async fn stop_coordinator(&mut self) {
        let mut coordinator = self.coordinator.take().expect("a coordinator");
        coordinator.process.stop().await;
    }

    /// Runs the command line as the operator; answers what it prints. It must end well.
    pub async fn tidemark(&self, args: &[&str]) -> String {
        self.try_tidemark(args).await.unwrap_or_else(|told| panic!("tidemark {args:?}: {told}"))
    }

    /// As [`Self::tidemark`]; when it does not end well, what it says of that.
    pub async fn try_tidemark(&self, args: &[&str]) -> std::result::Result<String, String> {
        let url = format!("https://{}", self.coordinator().api_address);
        let mut command = tokio::process::Command::new(binary("tidemark"));
        let _ = command
            .args(args)
            .env("TIDEMARK_COORDINATOR", url)
            .env("TIDEMARK_CA", &self.operator_tls.ca)
            .env("TIDEMARK_CERT", &self.operator_tls.cert)
            .env("TIDEMARK_KEY", &self.operator_tls.key)
            .env_remove("TIDEMARK_CLUSTER")
            .kill_on_drop(true);
        let done = command.output().await.expect("tidemark");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        if done.status.success() { Ok(text(done.stdout)) } else { Err(text(done.stderr)) }
    }

    /// The metrics of the coordinator.
    pub async fn scrape(&self) -> Scrape {
        Scrape::of(self.coordinator().telemetry).await
    }

    /// The metrics of an agent.
    pub async fn scrape_agent(&mut self, cluster: &str, node: &str) -> Scrape {
        Scrape::of(self.agent(cluster, node).telemetry().await).await
    }

    /// The coordinator.
    pub fn coordinator(&self) -> &Coordinator {
        self.coordinator.as_ref().expect("a coordinator")
    }

    /// Ends the coordinator in order and starts it again on the same ports and repository.
    pub async fn restart_coordinator(&mut self) {
        let old = self.coordinator.take().expect("a coordinator");
        let new = old.restart(self.dir()).await;
        self.api = Api::new(new.api_address, &self.operator);
        self.coordinator = Some(new);
    }

    /// Kills every process. The folder with the repository and the master key stays.
    pub fn kill_all(&mut self) {
        self.agents.clear();
        drop(self.coordinator.take());
    }

    /// A coordinator with nothing but configuration, master key and fresh certificates, on the repository that is there.
    /// `authority`: the folder of the authority, made when it is not there.
    pub async fn start_anew(&mut self, folder: &str) {
        let pki = self.dir().join(folder);
        self.authority = if pki.exists() { Authority::open(&pki).expect("authority") } else { authority(&pki) };
        let certificates = pki.join("anew");
        std::fs::create_dir_all(&certificates).expect("folder");
        let issue = |uri: &str| issue(&self.authority, uri, &certificates, 30, SystemClock.time());
        self.operator = Credentials::load(issue("tidemark://operator/bob")).expect("operator");
        let coordinator = Coordinator::on_repository(self.dir(), issue("tidemark://coordinator/c2")).await;
        self.api = Api::new(coordinator.api_address, &self.operator);
        self.coordinator = Some(coordinator);
    }

    /// Starts another coordinator on the repository; agents do not know it.
    pub async fn second_coordinator(&self) -> Coordinator {
        self.coordinator().second(self.dir()).await
    }

    /// Waits until the coordinator has died and starts it again, without what let it die.
    pub async fn revive_coordinator(&mut self) {
        let died = self.coordinator.take().expect("a coordinator");
        let new = died.revive(self.dir()).await;
        self.api = Api::new(new.api_address, &self.operator);
        self.coordinator = Some(new);
    }

    /// Starts `n` agents `n0`, `n1`, ... that share the slots of `cluster`, and waits for them.
    pub async fn add_cluster(&mut self, cluster: &str, n: u16) {
        self.add_cluster_with(cluster, n, |_| ()).await;
    }

    /// As [`Fleet::add_cluster`], with changes to each agent.
    pub async fn add_cluster_with(&mut self, cluster: &str, n: u16, change: impl Fn(&mut AgentSpec)) {
        for i in 0..n {
            let mut spec = AgentSpec::new(cluster, &format!("n{i}"), even_share(i, n));
            change(&mut spec);
            self.start_agent(spec);
        }
        let _ = self.ready(cluster, usize::from(n)).await;
    }

    /// Starts an agent and does not wait for it.
    pub fn start_agent(&mut self, spec: AgentSpec) {
        let name = (spec.cluster.clone(), spec.node.clone());
        let agent = AgentProcess::start(self.dir(), &self.authority, self.coordinator().agent_address, spec);
        let _ = self.agents.insert(name, agent);
    }

    /// An agent.
    pub fn agent(&mut self, cluster: &str, node: &str) -> &mut AgentProcess {
        self.agents.get_mut(&(cluster.to_owned(), node.to_owned())).expect("an agent of that name")
    }

    /// Ends an agent in order and waits until the coordinator knows.
    pub async fn stop_agent(&mut self, cluster: &str, node: &str) {
        self.agent(cluster, node).process.stop().await;
        let api = self.api.clone();
        eventually("the agent to be away", async || {
            let detail: ClusterDetail = api.get(&format!("clusters/{cluster}")).await.ok()?;
            detail.nodes.iter().all(|n| n.node != node || !n.connected).then_some(())
        })
        .await;
    }

    /// Starts an agent that has ended, on the data it left.
    pub fn restart_agent(&mut self, cluster: &str, node: &str) {
        let old = self.agents.remove(&(cluster.to_owned(), node.to_owned())).expect("an agent of that name");
        self.start_agent(old.spec.clone());
    }

    /// Waits until an agent has died and starts it again, without what let it die.
    pub async fn revive_agent(&mut self, cluster: &str, node: &str) {
        let agent = self.agent(cluster, node);
        let _ = agent.process.ended().await;
        agent.spec.env.clear();
        self.restart_agent(cluster, node);
    }

    /// Waits until an agent has died and starts it again, to die at another point (`TIDEMARK_CRASH_AT`).
    pub async fn revive_agent_with(&mut self, cluster: &str, node: &str, dies_at: &str) {
        let agent = self.agent(cluster, node);
        let _ = agent.process.ended().await;
        agent.spec.env.retain(|(name, _)| name != "TIDEMARK_CRASH_AT");
        agent.spec.env.push(("TIDEMARK_CRASH_AT".into(), dies_at.into()));
        self.restart_agent(cluster, node);
    }

    /// Waits until `n` nodes of the cluster are connected, described and available.
    pub async fn ready(&self, cluster: &str, n: usize) -> ClusterDetail {
        eventually(&format!("{n} nodes of {cluster}"), async || {
            let detail: ClusterDetail = self.api.get(&format!("clusters/{cluster}")).await.ok()?;
            let good = detail.nodes.iter().filter(|n| n.connected && n.state == "available").count();
            (good == n && detail.nodes.len() == n).then_some(detail)
        })
        .await
    }

    /// Takes a backup and waits for its end.
    pub async fn backup(&self, cluster: &str) -> Result<BackupDetail> {
        let job = self.start_backup(cluster).await?;
        let result = self.api.job_end(&job).await?;
        serde_json::from_value(result).map_err(|e| Error::bug("result of a backup").with_source(e))
    }

    /// Begins a backup.
    pub async fn start_backup(&self, cluster: &str) -> Result<JobInfo> {
        self.api.post(&format!("clusters/{cluster}/backups"), &serde_json::json!({})).await
    }

    /// Backups of a cluster, newest first.
    pub async fn backups(&self, cluster: &str) -> Vec<BackupItem> {
        self.api.get(&format!("clusters/{cluster}/backups")).await.expect("list of backups")
    }

    /// Restores and waits for the end.
    pub async fn restore(&self, request: &RestoreRequest) -> Result<serde_json::Value> {
        let job: JobInfo = self.api.post("restores", request).await?;
        self.api.job_end(&job).await
    }

    /// Plans a restore.
    pub async fn plan(&self, request: &RestoreRequest) -> Result<RestorePlan> {
        self.api.post("restores/plan", request).await
    }

    /// Verifies a backup and waits for the end.
    pub async fn verify(&self, cluster: &str, backup: &str) -> Result<serde_json::Value> {
        let request = serde_json::json!({"cluster": cluster, "backup": backup});
        let job: JobInfo = self.api.post("verifications", &request).await?;
        self.api.job_end(&job).await
    }

    /// Checks the repository; one answer for each cluster.
    pub async fn check_repository(&self) -> Vec<Result<serde_json::Value>> {
        let jobs: Vec<JobInfo> = self.api.post("repository/check", &serde_json::json!({})).await.expect("check");
        let mut out = Vec::new();
        for job in jobs {
            out.push(self.api.job_end(&job).await);
        }
        out
    }

    /// Packs of a cluster in the repository, largest first.
    pub fn packs(&self, cluster: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let root = self.repository().join("clusters").join(cluster).join("packs");
        let folders = std::fs::read_dir(root).expect("folder of packs");
        for folder in folders.map(|f| f.expect("entry").path()) {
            for file in std::fs::read_dir(folder).expect("folder of packs") {
                let file = file.expect("entry");
                found.push((file.metadata().expect("metadata").len(), file.path()));
            }
        }
        found.sort();
        found.into_iter().rev().map(|(_, path)| path).collect()
    }
}

/// A restore of the newest backup of `cluster` onto `target`.
pub fn restore_of(cluster: &str, target: &str) -> RestoreRequest {
    RestoreRequest {
        inexact: false,
        cluster: cluster.parse().expect("name"),
        backup: "latest".into(),
        target: Some(target.parse().expect("name")),
        in_place: false,
        keys: Vec::new(),
        slots: None,
        dbs: Vec::new(),
        expiry: ExpiryMode::Absolute,
        no_safety_backup: false,
        salvage: false,
        with_users: false,
        at: None,
    }
}

/// Whether a job is over.
pub fn ended(job: &JobInfo) -> bool {
    job.state != JobState::Running
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.agents.clear();
        drop(self.coordinator.take());
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("configurations and logs of the fleet: {}", dir.keep().display());
        }
    }
}
