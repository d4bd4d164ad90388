//! What the coordinator tells of itself, beside what is counted where it happens: gauges that are read when somebody
//! looks, what the ledgers say, and whether it is ready.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use tidemark_common::telemetry::{Observed, Pending};
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Result};
use tokio_util::sync::CancellationToken;

use crate::context::Shared;
use crate::job::{JobInfo, JobKind, JobState};
use crate::metric_names::{
    AGENTS, BACKUPS, BUDGET, BUDGET_USED, CLOCK_OFFSET, CUT_ATTEMPTS, EPOCH, EVENTS_LOST, HOLD_SECONDS,
    JOB_SECONDS, JOBS_ENDED, JOBS_RUNNING, LAST_CUT, LAST_FAILURE, LAST_SUCCESS, LIMITED_SECONDS, NETWORK_BYTES,
    PARTS, STAGE_BYTES, STORE_ATTEMPTS, outcome, stage,
};
use crate::repository::Ledger;

/// A request that failed for good makes the coordinator unready for this long, unless others go well.
const TROUBLE_LASTS: Duration = Duration::from_secs(60);
/// The store is asked at most this often whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Time for the store to say so.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// Wait before ledgers that could not be read are tried again.
const LEDGERS_RETRY: Duration = Duration::from_secs(30);

/// A coordinator that is looked at.
#[derive(Debug)]
pub struct Telemetry {
    context: Shared,
    /// Clusters that had agents: they are told as 0 when none is left.
    seen: Mutex<BTreeSet<ClusterName>>,
    asked: tokio::sync::Mutex<Option<(Instant, std::result::Result<(), String>)>>,
}

impl Telemetry {
    /// Of this coordinator.
    pub fn new(context: Shared) -> Self {
        // There from the start, so that a rate over them is one.
        outcome::ALL.iter().for_each(|o| counter!(STORE_ATTEMPTS, "outcome" => *o).increment(0));
        for stage in [stage::RECEIVED, stage::STORED, stage::SERVED] {
            counter!(STAGE_BYTES, "stage" => stage).increment(0);
        }
        for kind in JobKind::ALL {
            for state in [JobState::Succeeded, JobState::Failed, JobState::Cancelled] {
                counter!(JOBS_ENDED, "kind" => kind.name(), "state" => state.name()).increment(0);
            }
        }
        counter!(LIMITED_SECONDS).increment(0);
        counter!(EVENTS_LOST).increment(0);
        gauge!(EPOCH).set(context.epoch as f64);
        Self { context, seen: Mutex::default(), asked: tokio::sync::Mutex::default() }
    }

    fn observe_agents(&self) {
        let mut clusters: BTreeMap<ClusterName, (u64, u64)> = BTreeMap::new();
        for (member, agent) in self.context.fleet.members(None) {
            let (count, offset) = clusters.entry(member.cluster).or_default();
            *count += 1;
            *offset = (*offset).max(agent.clock_offset_millis);
        }
        let mut seen = self.seen.lock().expect("no panic while held");
        seen.extend(clusters.keys().cloned());
        for cluster in seen.iter() {
            let (count, offset) = clusters.get(cluster).copied().unwrap_or_default();
            gauge!(AGENTS, "cluster" => cluster.to_string()).set(count as f64);
            gauge!(CLOCK_OFFSET, "cluster" => cluster.to_string()).set(offset as f64 / 1e3);
        }
    }

    fn observe_queues(&self) {
        let (ingest, serve) = (self.context.ingest.load(), self.context.serve.load());
        let (received, sent) = self.context.limits.network_bytes();
        for (direction, bytes) in [("received", received), ("sent", sent)] {
            counter!(NETWORK_BYTES, "direction" => direction).absolute(bytes);
        }
        let parts = [("waiting", ingest.waiting), ("granted", ingest.granted), ("unflushed", ingest.unflushed)];
        for (state, count) in parts {
            gauge!(PARTS, "state" => state).set(count as f64);
        }
        for (budget, bytes, used) in
            [("ingest", ingest.budget_bytes, ingest.used_bytes), ("serve", serve.budget_bytes, serve.used_bytes)]
        {
            gauge!(BUDGET, "budget" => budget).set(bytes as f64);
            gauge!(BUDGET_USED, "budget" => budget).set(used as f64);
        }
    }

    /// Asks the store whether the repository is there and whether a later epoch was taken.
    async fn ask_store(&self) -> std::result::Result<(), String> {
        let store = self.context.repository.store();
        let later = paths::epoch(self.context.epoch + 1);
        let (there, fenced) =
            tokio::join!(store.is_there(paths::REPOSITORY, ASK_LIMIT), store.is_there(&later, ASK_LIMIT));
        match there.and_then(|there| fenced.map(|fenced| (there, fenced))) {
            Err(e) => Err(format!("the object store does not answer: {}", e.report())),
            Ok((false, _)) => Err("the repository is gone from the object store".into()),
            Ok((true, true)) => {
                Err(format!("epoch {} is over: another coordinator has taken over", self.context.epoch))
            }
            Ok((true, false)) => Ok(()),
        }
    }
}

impl Observed for Telemetry {
    fn observe(&self) {
        self.observe_agents();
        self.observe_queues();
        self.context.logs.observe(self.context.now_millis());
        let jobs = self.context.jobs.list();
        for kind in JobKind::ALL {
            let running = jobs.iter().filter(|j| j.kind == kind && j.state == JobState::Running).count();
            gauge!(JOBS_RUNNING, "kind" => kind.name()).set(running as f64);
        }
    }

    fn ready(&self) -> Pending<'_, std::result::Result<(), String>> {
        Box::pin(async move {
            if let Some(why) = self.context.repository.store().health().trouble(TROUBLE_LASTS) {
                return Err(format!("a request to the object store failed: {why}"));
            }
            let mut asked = self.asked.lock().await;
            match asked.as_ref() {
                Some((at, answer)) if at.elapsed() < ASK_EVERY => answer.clone(),
                _ => {
                    let answer = self.ask_store().await;
                    *asked = Some((Instant::now(), answer.clone()));
                    answer
                }
            }
        })
    }
}

/// Counts a job that has ended.
pub(crate) fn job_ended(info: &JobInfo) {
    let (kind, state) = (info.kind.name(), info.state.name());
    counter!(JOBS_ENDED, "kind" => kind, "state" => state).increment(1);
    if let (JobState::Succeeded, Some(finished)) = (info.state, info.finished_millis) {
        histogram!(JOB_SECONDS, "kind" => kind).record(finished.saturating_sub(info.started_millis) as f64 / 1e3);
    }
}

/// Counts an attempt at a cut.
pub(crate) fn cut_attempted(cluster: &ClusterName, held: bool) {
    let outcome = if held { "held" } else { "void" };
    counter!(CUT_ATTEMPTS, "cluster" => cluster.to_string(), "outcome" => outcome).increment(1);
}

/// Notes how long the writes of a node were held.
pub(crate) fn writes_held(cluster: &ClusterName, micros: u64) {
    histogram!(HOLD_SECONDS, "cluster" => cluster.to_string()).record(micros as f64 / 1e6);
}

/// Tells what a ledger says of backups. To be called when it was read at the start, and when it has changed.
pub(crate) fn note_ledger(cluster: &ClusterName, ledger: &Ledger) {
    let label = cluster.to_string();
    let backups = ledger.backups();
    let last = backups.last();
    gauge!(BACKUPS, "cluster" => label.clone()).set(backups.len() as f64);
    gauge!(LAST_SUCCESS, "cluster" => label.clone()).set(last.map_or(0, |b| b.at_millis) as f64 / 1e3);
    gauge!(LAST_CUT, "cluster" => label.clone()).set(last.map_or(0, |b| b.backup.cut.millis()) as f64 / 1e3);
    let failed = ledger.failures().last().map_or(0, |(at, _)| *at);
    gauge!(LAST_FAILURE, "cluster" => label).set(failed as f64 / 1e3);
}

/// Reads every ledger once, so that what they say is told from the start; tries again until `shutdown`.
pub(crate) async fn read_ledgers(context: Shared, shutdown: CancellationToken) {
    let read = async {
        let mut done = BTreeSet::new();
        while let Err(e) = read_missing(&context, &mut done).await {
            tracing::warn!(error = %e.report(), "ledgers cannot be read for the metrics; trying again");
            tokio::time::sleep(LEDGERS_RETRY).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = read => {}
    }
}

async fn read_missing(context: &Shared, done: &mut BTreeSet<ClusterName>) -> Result<()> {
    let mut failed = None;
    for cluster in context.repository.clusters().await? {
        if done.contains(&cluster) {
            continue;
        }
        match Ledger::load(&context.repository, &cluster).await {
            Ok(ledger) => {
                if !ledger.entries().is_empty() {
                    note_ledger(&cluster, &ledger);
                }
                let _ = done.insert(cluster);
            }
            // One that does not open must not hide the others.
            Err(e) => failed = Some(e),
        }
    }
    failed.map_or(Ok(()), Err)
}
