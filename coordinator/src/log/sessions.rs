//! The sessions of all clusters whose log is on, and the streams that their nodes open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemark_common::transport::{FrameReader, FrameWriter};
use tidemark_proto::id::JobId;
use tidemark_proto::stored::ledger::{LOG_OFF, LOG_ON, LogPolicy};
use tidemark_proto::wire::bulk::LogOpen;
use tidemark_proto::wire::control::{Done, LogStop};
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::node::{self, Ask};
use super::session::Session;
use super::state::{Published, SessionState};
use crate::context::Shared;
use crate::fleet::Member;
use crate::ingest::Pace;
use crate::repository::Ledger;

/// A session that failed begins anew after this.
const AGAIN: Duration = Duration::from_secs(5);
/// Time for an agent to let go of its log.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A stream that an agent was told to open.
#[derive(Debug)]
struct Expected {
    member: Member,
    asks: mpsc::Receiver<Ask>,
    arrived: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Running {
    cancel: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
    published: Arc<Published>,
}

/// The logs of all clusters.
#[derive(Debug, Default)]
pub struct Logs {
    expected: Mutex<HashMap<JobId, Expected>>,
    running: Mutex<HashMap<ClusterName, Running>>,
    /// One change of a cluster's log at a time.
    changing: tokio::sync::Mutex<()>,
    cuts: Mutex<HashMap<ClusterName, Arc<tokio::sync::Mutex<()>>>>,
}

impl Logs {
    /// A stream of `member` is about to be opened under this session. Asks go there by the first of what is answered; the
    /// second tells that it is open.
    pub(super) fn expect_stream(
        &self,
        session: JobId,
        member: Member,
    ) -> (mpsc::Sender<Ask>, oneshot::Receiver<()>) {
        let (send, asks) = mpsc::channel(1);
        let (arrived, open) = oneshot::channel();
        let _ = self.expected.lock().expect("expected").insert(session, Expected { member, asks, arrived });
        (send, open)
    }

    /// It will not be opened.
    pub(super) fn forget_stream(&self, session: &JobId) {
        let _ = self.expected.lock().expect("expected").remove(session);
    }

    /// Serves a stream that `member` has opened, until its session ends it.
    pub(crate) async fn serve(
        &self,
        context: &Shared,
        member: &Member,
        open: LogOpen,
        reader: &mut FrameReader,
        writer: &mut FrameWriter,
    ) -> Result<()> {
        let expected = self.expected.lock().expect("expected").remove(&open.session);
        let expected = expected.filter(|e| e.member == *member);
        let Expected { mut asks, arrived, .. } =
            expected.ok_or_else(|| Error::conflict(format!("no session {} of the log is open", open.session)))?;
        let _ = arrived.send(());
        let pace = Pace { limits: &context.limits, member: member.clone() };
        node::serve(&mut asks, reader, writer, &pace).await
    }

    /// How the session of a cluster stands, if it has read what is durable, and why segments cannot be stored; `None` when it has
    /// no session.
    pub fn state(&self, cluster: &ClusterName, now_millis: u64) -> Option<(Option<SessionState>, Option<String>)> {
        let running = self.running.lock().expect("running");
        running.get(cluster).map(|r| (r.published.state(now_millis), r.published.what_troubles()))
    }

    /// Held by whoever takes a cut of a cluster.
    pub fn cut_lock(&self, cluster: &ClusterName) -> Arc<tokio::sync::Mutex<()>> {
        self.cuts.lock().expect("cuts").entry(cluster.clone()).or_default().clone()
    }

    /// Nodes whose streams of commands the log of a cluster is made of; none for a log that is not.
    pub fn lanes(&self, cluster: &ClusterName) -> Vec<NodeName> {
        self.running.lock().expect("running").get(cluster).map(|r| r.published.lanes()).unwrap_or_default()
    }

    /// A backup has cut the cluster at `at`, by these nodes.
    pub fn was_cut(&self, cluster: &ClusterName, at: Timestamp, nodes: &[NodeName]) {
        if let Some(running) = self.running.lock().expect("running").get(cluster) {
            running.published.was_cut(at, nodes);
        }
    }

    /// Whether a cluster has a session.
    pub fn is_running(&self, cluster: &ClusterName) -> bool {
        self.running.lock().expect("running").contains_key(cluster)
    }

    /// Tells how far all logs are behind, for the metrics.
    pub fn observe(&self, now_millis: u64) {
        for (cluster, running) in self.running.lock().expect("running").iter() {
            running.published.observe(cluster, now_millis);
        }
    }

    /// Brings the session of a cluster in line with its ledger: begins, ends or replaces it.
    pub async fn apply(&self, context: &Shared, cluster: &ClusterName, shutdown: &CancellationToken) -> Result<()> {
        let _one = self.changing.lock().await;
        let ledger = Ledger::load(&context.repository, cluster).await?;
        let policy = ledger.log_policy().cloned();
        self.end(cluster).await;
        match policy {
            Some(policy) if policy.state == LOG_ON => self.begin(context, cluster, policy, &ledger, shutdown),
            Some(policy) if policy.state == LOG_OFF => self.let_go(context, cluster).await,
            _ => {}
        }
        Ok(())
    }

    fn begin(
        &self,
        context: &Shared,
        cluster: &ClusterName,
        policy: LogPolicy,
        ledger: &Ledger,
        shutdown: &CancellationToken,
    ) {
        let (cancel, published) = (shutdown.child_token(), Arc::new(Published::default()));
        if let Some(protection) = ledger.policy() {
            published.set_slots_per_region(protection.slots_per_region);
        }
        published.cuts(cluster, ledger.backups().iter().map(|b| (b.backup.cut, b.backup.job)).collect());
        let (run, name, shared, token) = (context.clone(), cluster.clone(), published.clone(), cancel.clone());
        let ended = tokio::spawn(async move { keep(run, name, policy, shared, token).await });
        let running = Running { cancel, ended, published };
        let _ = self.running.lock().expect("running").insert(cluster.clone(), running);
    }

    async fn end(&self, cluster: &ClusterName) {
        let running = self.running.lock().expect("running").remove(cluster);
        if let Some(running) = running {
            running.cancel.cancel();
            let _ = running.ended.await;
            running.published.ended(cluster);
        }
    }

    /// Tells every connected node that nothing needs to be kept.
    async fn let_go(&self, context: &Shared, cluster: &ClusterName) {
        for (member, _) in context.fleet.members(Some(cluster)) {
            let head = context.head(JobId::default(), 1);
            let told = context.fleet.command::<_, Done>(&member, head, &LogStop {}, STOP_DEADLINE, |_| ()).await;
            if let Err(e) = told {
                tracing::warn!(%member, error = %e.report(), "the node keeps its log until its lease ends");
            }
        }
    }

    /// Begins the sessions of all clusters whose log is on.
    pub async fn begin_all(context: Shared, shutdown: CancellationToken) {
        let mut failed = true;
        while failed && !shutdown.is_cancelled() {
            failed = false;
            let clusters = context.repository.protected_clusters().await.unwrap_or_else(|e| {
                tracing::warn!(error = %e.report(), "clusters with a log are not known yet; trying again");
                failed = true;
                Vec::new()
            });
            for cluster in clusters {
                if !context.logs.is_running(&cluster)
                    && let Err(e) = context.logs.apply(&context, &cluster, &shutdown).await
                {
                    tracing::warn!(%cluster, error = %e.report(), "the log cannot be taken up yet; trying again");
                    failed = true;
                }
            }
            if failed {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(AGAIN) => {}
                }
            }
        }
    }
}

/// Keeps a session until it is cancelled or another coordinator has taken over.
async fn keep(
    context: Shared,
    cluster: ClusterName,
    policy: LogPolicy,
    published: Arc<Published>,
    cancel: CancellationToken,
) {
    while !cancel.is_cancelled() {
        let opened = Session::open(
            context.clone(),
            cluster.clone(),
            policy.clone(),
            published.clone(),
            cancel.child_token(),
        );
        let run = async {
            let mut session = opened.await?;
            session.run().await
        };
        let Err(e) = run.await else { return };
        context.note(&e);
        published.trouble(Some(e.report()));
        if e.kind() == ErrorKind::Fenced {
            return;
        }
        tracing::warn!(%cluster, error = %e.report(), "the log's session failed; it begins anew");
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}
