//! Jobs: backups, restores, verifications. The registry holds what is running and what ended lately; what must last
//! stands in the repository.

pub mod backup;
pub mod check;
pub mod collect;
pub mod damage;
pub mod hold;
pub mod inspect;
pub mod restore;
mod start;
pub mod verify;

pub use start::start;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::Progress;
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::events::{EventSink, JobLog};
use crate::telemetry;

/// Ended jobs kept for a look.
pub const KEEP_ENDED: usize = 200;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// Takes a backup.
    Backup,
    /// Restores one.
    Restore,
    /// Reads one back and checks it.
    Verify,
    /// Checks that all that a ledger names is there.
    Check,
    /// Deletes what no backup needs.
    Collect,
}

impl JobKind {
    /// All kinds.
    pub const ALL: [JobKind; 5] = [Self::Backup, Self::Restore, Self::Verify, Self::Check, Self::Collect];

    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Verify => "verify",
            Self::Check => "check",
            Self::Collect => "collect",
        }
    }
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// At work.
    Running,
    /// Done.
    Succeeded,
    /// Ended with an error.
    Failed,
    /// Ended on request.
    Cancelled,
}

impl JobState {
    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Counts of a job; bytes are of keys, meta and values unless said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct JobProgress {
    /// Bytes handled.
    pub bytes: u64,
    /// Bytes to handle, as far as known.
    pub total_bytes: u64,
    /// Bytes sent over the network.
    pub wire_bytes: u64,
    /// Records handled.
    pub records: u64,
    /// Parts done.
    pub parts: u64,
    /// Parts to do, as far as known.
    pub total_parts: u64,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct JobError {
    /// Kind of the error.
    pub kind: String,
    /// What happened and what to do.
    pub message: String,
}

/// A job for people and programs.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct JobInfo {
    /// Its id.
    #[schema(value_type = String)]
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// For which cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// How it stands.
    pub state: JobState,
    /// What it is at.
    pub phase: String,
    /// When it began, milliseconds since 1970.
    pub started_millis: u64,
    /// When it ended, milliseconds since 1970.
    pub finished_millis: Option<u64>,
    /// Counts.
    pub progress: JobProgress,
    /// Why it failed.
    pub error: Option<JobError>,
    /// What it came to; its form depends on the kind.
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
}

/// All jobs of this coordinator.
#[derive(Debug, Default)]
pub struct Jobs {
    inner: Mutex<Inner>,
    events: EventSink,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: BTreeMap<(u64, JobId), Arc<Job>>,
    busy: HashMap<ClusterName, JobId>,
    closed: bool,
}

/// One job.
#[derive(Debug)]
pub struct Job {
    info: watch::Sender<JobInfo>,
    counts: Mutex<BTreeMap<NodeName, Progress>>,
    /// Ends the job.
    pub cancel: CancellationToken,
    /// What happens in it, for those who ask later.
    pub log: JobLog,
}

impl Job {
    /// As it stands now.
    pub fn info(&self) -> JobInfo {
        self.info.borrow().clone()
    }

    /// Follows its changes.
    pub fn watch(&self) -> watch::Receiver<JobInfo> {
        self.info.subscribe()
    }

    /// Its id.
    pub fn id(&self) -> JobId {
        self.info.borrow().id
    }

    /// Changes what is told of it.
    pub fn update(&self, change: impl FnOnce(&mut JobInfo)) {
        self.info.send_modify(change);
    }

    /// Says what it is at.
    pub fn phase(&self, phase: &str) {
        if self.info.borrow().phase == phase {
            return;
        }
        tracing::info!(job = %self.id(), phase, "job");
        self.log.note("phase", "", phase);
        self.update(|i| phase.clone_into(&mut i.phase));
    }

    /// Tells it to end, as somebody asked.
    pub fn cancel(&self) {
        if !self.cancel.is_cancelled() && self.info.borrow().state == JobState::Running {
            self.log.note("cancel", "", "told to end");
        }
        self.cancel.cancel();
    }

    /// The span of all that is done for it.
    pub fn span(&self) -> tracing::Span {
        let info = self.info.borrow();
        tracing::info_span!("job", job = %info.id, kind = info.kind.name(), cluster = %info.cluster)
    }

    /// Takes a node's counts and adds them up.
    pub fn progress_of(&self, node: &NodeName, progress: Progress) {
        let mut counts = self.counts.lock().expect("counts");
        let _ = counts.insert(node.clone(), progress);
        let mut sum = Progress::default();
        for p in counts.values() {
            sum.bytes += p.bytes;
            sum.wire_bytes += p.wire_bytes;
            sum.records += p.records;
            sum.parts += p.parts;
        }
        drop(counts);
        self.update(|i| {
            i.progress.bytes = sum.bytes;
            i.progress.wire_bytes = sum.wire_bytes;
            i.progress.records = sum.records;
            i.progress.parts = u64::from(sum.parts);
        });
    }

    /// Begins to count anew: a job that reads twice tells of one reading at a time.
    pub fn reset_progress(&self) {
        self.counts.lock().expect("counts").clear();
        self.update(|i| i.progress = JobProgress::default());
    }

    fn end(&self, now_millis: u64, result: Result<serde_json::Value>) {
        self.update(|i| {
            i.finished_millis = Some(now_millis);
            match result {
                Ok(value) => (i.state, i.result) = (JobState::Succeeded, Some(value)),
                Err(e) => {
                    i.state = if e.kind() == ErrorKind::Cancelled { JobState::Cancelled } else { JobState::Failed };
                    i.error = Some(JobError { kind: e.kind().name().into(), message: e.report() });
                }
            }
        });
        let info = self.info.borrow();
        let why = info.error.as_ref().map(|e| format!("{} ({})", e.message, e.kind)).unwrap_or_default();
        self.log.end(info.state.name(), why);
        telemetry::job_ended(&info);
    }
}

impl Jobs {
    /// No jobs yet; what happens in them goes to `events`.
    pub fn new(events: EventSink) -> Self {
        Self { inner: Mutex::default(), events }
    }

    /// Begins a job. With `exclusive` it is refused (`Conflict`) while another exclusive one runs for the cluster.
    pub fn begin(
        &self,
        kind: JobKind,
        cluster: &ClusterName,
        exclusive: bool,
        now_millis: u64,
    ) -> Result<Arc<Job>> {
        let mut inner = self.inner.lock().expect("jobs");
        if inner.closed {
            return Err(Error::retry("the coordinator shuts down and takes no new jobs"));
        }
        if exclusive && let Some(other) = inner.busy.get(cluster) {
            return Err(Error::conflict(format!(
                "cluster {cluster} is busy with job {other}: wait for it or cancel it"
            )));
        }
        Ok(inner.enter(&self.events, JobId(rand::random()), kind, cluster, exclusive, now_millis))
    }

    /// Goes on with a job that another coordinator began at `started_millis`; it is exclusive.
    pub fn adopt(&self, id: JobId, kind: JobKind, cluster: &ClusterName, started_millis: u64) -> Arc<Job> {
        self.inner.lock().expect("jobs").enter(&self.events, id, kind, cluster, true, started_millis)
    }

    /// Whether the job runs here.
    pub fn is_running(&self, id: &JobId) -> bool {
        self.get(id).is_ok_and(|j| j.info().state == JobState::Running)
    }

    /// Ends a job with what it came to.
    pub fn end(&self, job: &Job, now_millis: u64, result: Result<serde_json::Value>) {
        match &result {
            Ok(_) => tracing::info!(job = %job.id(), "job succeeded"),
            Err(e) => tracing::error!(job = %job.id(), error = %e.report(), "job failed"),
        }
        let mut inner = self.inner.lock().expect("jobs");
        inner.busy.retain(|_, id| *id != job.id());
        job.end(now_millis, result);
    }

    /// A job by its id.
    pub fn get(&self, id: &JobId) -> Result<Arc<Job>> {
        let inner = self.inner.lock().expect("jobs");
        let found = inner.jobs.iter().find(|((_, i), _)| i == id).map(|(_, j)| j.clone());
        found.ok_or_else(|| Error::not_found(format!("no job {id} is running or ended lately")))
    }

    /// Jobs, newest first.
    pub fn list(&self) -> Vec<JobInfo> {
        self.inner.lock().expect("jobs").jobs.values().rev().map(|j| j.info()).collect()
    }

    /// Cancels every running job.
    pub fn cancel_all(&self) {
        self.inner.lock().expect("jobs").jobs.values().for_each(|j| j.cancel.cancel());
    }

    /// Takes no more jobs.
    pub fn refuse_new(&self) {
        self.inner.lock().expect("jobs").closed = true;
    }

    /// Waits until no job runs.
    pub async fn all_ended(&self) {
        let running: Vec<Arc<Job>> = self.inner.lock().expect("jobs").jobs.values().cloned().collect();
        for job in running {
            let mut info = job.watch();
            // The sender lives in the job, which is held here.
            let _ = info.wait_for(|i| i.state != JobState::Running).await;
        }
    }
}

impl Inner {
    fn enter(
        &mut self,
        events: &EventSink,
        id: JobId,
        kind: JobKind,
        cluster: &ClusterName,
        exclusive: bool,
        started_millis: u64,
    ) -> Arc<Job> {
        let info = JobInfo {
            id,
            kind,
            cluster: cluster.clone(),
            state: JobState::Running,
            phase: "starting".into(),
            started_millis,
            finished_millis: None,
            progress: JobProgress::default(),
            error: None,
            result: None,
        };
        let (sender, _) = watch::channel(info);
        let log = events.of(cluster, id, kind.name());
        log.note("began", "", kind.name());
        let job = Arc::new(Job { info: sender, counts: Mutex::default(), cancel: CancellationToken::new(), log });
        if exclusive {
            let _ = self.busy.insert(cluster.clone(), id);
        }
        let _ = self.jobs.insert((started_millis, id), job.clone());
        self.forget_old();
        job
    }

    fn forget_old(&mut self) {
        let ended: Vec<_> =
            self.jobs.iter().filter(|(_, j)| j.info.borrow().state != JobState::Running).map(|(k, _)| *k).collect();
        for key in ended.iter().take(ended.len().saturating_sub(KEEP_ENDED)) {
            let _ = self.jobs.remove(key);
        }
    }
}
