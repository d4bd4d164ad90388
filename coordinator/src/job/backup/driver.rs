//! The driver of a backup job: does what the core decides, and tells it what happened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tidemark_common::crash;
use tidemark_proto::frame::Message;
use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::job::{BackupBegun, BackupCut};
use tidemark_proto::stored::ledger::Policy;
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::wire::control::{Hold, Kept, Release, Seal};
use tidemark_proto::{ClusterName, Error, NodeName, Result};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tracing::Instrument;

use super::core::{Action, Core, Cut, Event, Settings, Used, needs_base};
use super::manifest::Committed;
use super::parents::Parent;
use super::prepare::{Prepared, prepare, record_failure};
use crate::context::Shared;
use crate::fleet::Member;
use crate::ingest::{IngestJob, IngestNode};
use crate::job::Job;
use crate::repository::{JobRecorder, Ledger, Record};
use crate::telemetry;

/// Time for a step of the cut beside its budget.
pub const CUT_DEADLINE: Duration = Duration::from_secs(5);

/// A backup as it is asked for.
#[derive(Debug, Clone)]
pub struct BackupRequest {
    /// The cluster.
    pub cluster: ClusterName,
    /// Every part as a full run, also where a delta would do.
    pub full: bool,
    /// Made by hand, not by a schedule.
    pub manual: bool,
}

pub(super) struct Driver {
    pub(super) context: Shared,
    pub(super) job: Arc<Job>,
    pub(super) id: JobId,
    pub(super) request: BackupRequest,
    pub(super) nodes: Vec<NodeName>,
    pub(super) hosts: Vec<String>,
    pub(super) others: Vec<String>,
    pub(super) stand_ins: HashSet<NodeName>,
    pub(super) policy: Policy,
    pub(super) parent: Option<Parent>,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) ingest: std::sync::OnceLock<Arc<IngestJob>>,
    pub(super) read_bytes: std::sync::atomic::AtomicU64,
    pub(super) committed: std::sync::OnceLock<Committed>,
    /// Taken when the ingest begins.
    pub(super) recorder: Mutex<Option<JobRecorder>>,
    /// Parts that an earlier coordinator stored for this job.
    pub(super) stored: std::sync::Mutex<Vec<PartEntry>>,
    /// What each node keeps beside its records.
    pub(super) kept: std::sync::Mutex<BTreeMap<usize, Kept>>,
}

/// How a core ended.
enum Round {
    Over(Result<serde_json::Value>),
    /// Another one goes on, with what is left.
    Again(Used),
}

/// Runs a backup job to its end; the answer is what the job came to.
pub async fn run(context: Shared, job: Arc<Job>, request: BackupRequest) -> Result<serde_json::Value> {
    let started = job.info().started_millis;
    // Before the ledger is fenced: a name that no node has must not get one.
    if context.fleet.members(Some(&request.cluster)).is_empty() {
        return Err(Error::conflict(format!(
            "no node of cluster {} is connected: start its agents, or see `tidemark cluster list`",
            request.cluster
        )));
    }
    let mut ledger = context.ledger(&request.cluster).await?;
    let id = job.id();
    let prepared = match prepare(&context, &job, &request, &ledger).await {
        Ok(prepared) => prepared,
        Err(e) => {
            let _ = record_failure(&context, &mut ledger, (id, started), request.manual, &e).await;
            return Err(e);
        }
    };
    let mut recorder = JobRecorder::new(&context.repository, &request.cluster, id, context.epoch, 0);
    let manual = u8::from(request.manual);
    let begun = BackupBegun { job: id, epoch: context.epoch, started_millis: started, manual };
    if let Err(e) = recorder.write(&Record::BackupBegun(begun)).await {
        let _ = record_failure(&context, &mut ledger, (id, started), request.manual, &e).await;
        return Err(e);
    }
    crash::point("backup.begun");
    let driver = Driver::new(context, job, request, prepared, ledger, recorder, Vec::new());
    driver.to_its_end(Core::new).await
}

impl Driver {
    pub(super) fn new(
        context: Shared,
        job: Arc<Job>,
        request: BackupRequest,
        prepared: Prepared,
        ledger: Ledger,
        recorder: JobRecorder,
        stored: Vec<PartEntry>,
    ) -> Arc<Self> {
        Arc::new(Self {
            context,
            id: job.id(),
            job,
            request,
            nodes: prepared.nodes,
            hosts: prepared.hosts,
            others: prepared.others,
            stand_ins: prepared.stand_ins,
            policy: prepared.policy,
            parent: prepared.parent,
            ledger: Mutex::new(ledger),
            ingest: Default::default(),
            read_bytes: Default::default(),
            committed: Default::default(),
            recorder: Mutex::new(Some(recorder)),
            stored: std::sync::Mutex::new(stored),
            kept: Default::default(),
        })
    }

    /// Runs the job with the core that `core` makes.
    pub(super) async fn to_its_end(
        self: Arc<Self>,
        core: impl FnOnce(Settings) -> Core,
    ) -> Result<serde_json::Value> {
        let mut driver = self;
        let mut core = core(driver.settings(&*driver.ledger.lock().await));
        let result = loop {
            let used = match driver.clone().drive(core).await {
                Round::Over(result) => break result,
                Round::Again(used) => used,
            };
            match driver.next_round(used).await {
                Ok((next, with)) => (driver, core) = (next, with),
                Err((last, e)) => {
                    driver = last;
                    driver.settle(false, None).await;
                    break Err(e);
                }
            }
        };
        driver.context.ingest.close(&driver.id);
        if let Err(e) = &result {
            let (job, manual) = ((driver.id, driver.job.info().started_millis), driver.request.manual);
            let _ = record_failure(&driver.context, &mut *driver.ledger.lock().await, job, manual, e).await;
        }
        result
    }

    pub(super) fn settings(&self, ledger: &Ledger) -> Settings {
        let config = &self.context.config.backup;
        // Where slots move by themselves, only the slots tell who is missing.
        let required = ledger.policy().filter(|p| !needs_base(&p.engine));
        let required = required.map(|p| p.nodes.clone()).unwrap_or_default();
        Settings {
            nodes: self.policy.nodes.clone(),
            hosts: self.hosts.clone(),
            max_parallel_bases: config.max_parallel_bases as usize,
            others: self.others.clone(),
            required,
            budget: Duration::from_millis(config.pause_budget_ms),
            first_without_pause: config.first_attempt_without_pause,
            max_clock_offset: Duration::from_secs(config.max_clock_offset_seconds),
            last_cut: ledger.last_cut(),
            used: Used::default(),
        }
    }

    async fn drive(self: Arc<Self>, mut core: Core) -> Round {
        let (send, mut events) = mpsc::channel::<Event>(self.nodes.len() * 2 + 8);
        let mut tasks = JoinSet::new();
        let mut todo = core.step(Event::Start, self.context.clock.now());
        // One cut of a cluster at a time: a hold that ends takes another one's with it.
        let mut cutting = None;
        loop {
            self.job.phase(core.phase_name());
            for action in std::mem::take(&mut todo) {
                match &action {
                    Action::Hold(..) if cutting.is_none() => {
                        cutting = Some(self.context.logs.cut_lock(&self.request.cluster).lock_owned().await);
                    }
                    Action::Describe(_) | Action::Hold(..) | Action::Seal(..) | Action::Release(..) => {}
                    // The log hears of the cut before it takes another one.
                    Action::CutDone(cut) => {
                        self.context.logs.was_cut(&self.request.cluster, cut.at, &self.nodes);
                        cutting = None;
                    }
                    _ => cutting = None,
                }
                if let Action::Wait(_) = action {
                    self.cut_is_void(core.void_cut());
                }
                match action {
                    Action::CutDone(cut) => {
                        self.cut_holds(&cut);
                        if let Err(e) = self.begin_ingest(&cut).await {
                            // As if the first node could not send: the core ends the job by its rules.
                            let _ = send.send(Event::Uploaded(0, Err(e))).await;
                        }
                    }
                    Action::Settle(committed) => {
                        // Uploads that still run end with their tasks; the nodes are told after that.
                        tasks.shutdown().await;
                        self.settle(committed, core.cut()).await;
                        let outcome =
                            core.take_outcome().unwrap_or_else(|| Err(Error::bug("a job without outcome")));
                        return Round::Over(outcome.map(|()| self.summary()));
                    }
                    Action::Again => {
                        tasks.shutdown().await;
                        self.begins_again(core.void_cut());
                        return Round::Again(core.used());
                    }
                    other => {
                        let (driver, send, cut) = (self.clone(), send.clone(), core.cut().cloned());
                        let work = async move {
                            if let Some(event) = driver.act(other, cut).await {
                                // The receiver lives as long as the job.
                                let _ = send.send(event).await;
                            }
                        };
                        let _ = tasks.spawn(work.in_current_span());
                    }
                }
            }
            let event = tokio::select! {
                biased;
                Some(event) = events.recv() => event,
                () = self.job.cancel.cancelled(), if !core.is_cancelled() => Event::Cancel,
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Err(e) = ended && e.is_panic() {
                        return Round::Over(Err(Error::bug("a task of the backup panicked").with_source(e)));
                    }
                    continue;
                }
            };
            todo = core.step(event, self.context.clock.now());
        }
    }

    async fn act(&self, action: Action, cut: Option<Cut>) -> Option<Event> {
        Some(match action {
            Action::Describe(n) => Event::Described(n, self.describe(n).await),
            Action::Prepare(n) => Event::Prepared(n, self.prepare(n).await),
            Action::PrepareEarly(n) => {
                self.prepare_early(n).await;
                return None;
            }
            Action::UploadEarly(n, slots) => {
                self.upload_early(n, slots).await;
                return None;
            }
            Action::Hold(n, attempt, budget) => {
                let hold = Hold { budget_micros: budget.as_micros() as u64 };
                let held = self.ask(n, attempt, &hold, budget + CUT_DEADLINE).await;
                crash::point("backup.held");
                Event::Held(n, attempt, held)
            }
            Action::Seal(n, attempt, at) => {
                let sealed = self.ask(n, attempt, &Seal { at }, CUT_DEADLINE).await;
                crash::point("backup.sealed");
                Event::Sealed(n, attempt, sealed)
            }
            Action::Release(n, attempt) => {
                Event::Released(n, attempt, self.ask(n, attempt, &Release {}, CUT_DEADLINE).await)
            }
            Action::Wait(least) | Action::WaitForSlots(least) => {
                tokio::time::sleep(least.mul_f64(1.0 + rand::random::<f64>())).await;
                Event::Waited
            }
            Action::Upload(n) => Event::Uploaded(n, self.upload(n, &cut?).await),
            Action::Store => Event::Stored(match self.ingest.get() {
                Some(ingest) => ingest.flush().await,
                None => Err(Error::bug("storing before the cut")),
            }),
            Action::Commit => Event::Committed(self.commit(&cut?).await),
            Action::CutDone(_) | Action::Settle(_) | Action::Again => return None,
        })
    }

    fn cut_holds(&self, cut: &Cut) {
        let (cluster, held) = (&self.request.cluster, cut.nodes.iter().map(|n| n.released.held_micros));
        telemetry::cut_attempted(cluster, true);
        held.clone().for_each(|micros| telemetry::writes_held(cluster, micros));
        let longest = held.max().unwrap_or(0) as f64 / 1e3;
        let told = format!("at {}, attempt {}, writes held for at most {longest:.1} ms", cut.at, cut.attempt);
        self.job.log.note("cut", "", told);
    }

    fn cut_is_void(&self, why: &str) {
        telemetry::cut_attempted(&self.request.cluster, false);
        tracing::info!(reason = why, "the cut does not hold: trying again");
        self.job.log.note("retry", "", format!("the cut does not hold, trying again: {why}"));
    }

    fn begins_again(&self, why: &str) {
        tracing::info!(reason = why, "nodes changed before the cut: beginning again with those that are there");
        self.job.log.note("retry", "", format!("nodes changed before the cut, beginning again: {why}"));
    }

    pub(super) fn member(&self, n: usize) -> Member {
        Member { cluster: self.request.cluster.clone(), node: self.nodes[n].clone() }
    }

    pub(super) async fn ask<Q: Message, R: Message>(
        &self,
        n: usize,
        attempt: u32,
        request: &Q,
        deadline: Duration,
    ) -> Result<R> {
        self.context
            .fleet
            .command(&self.member(n), self.context.head(self.id, attempt), request, deadline, |_| ())
            .await
    }

    pub(super) fn parent_hash(&self) -> Hash {
        self.parent.as_ref().map_or(Hash::ZERO, |p| p.hash)
    }

    /// Makes the cut durable, so that another coordinator can go on from it, and opens the ingest.
    async fn begin_ingest(&self, cut: &Cut) -> Result<()> {
        let mut recorder =
            self.recorder.lock().await.take().ok_or_else(|| Error::bug("a second cut in one backup"))?;
        let stored = std::mem::take(&mut *self.stored.lock().expect("stored"));
        let resumed = recorder.revision() > 1;
        if !resumed {
            let nodes = super::manifest::node_entries(&self.nodes, &self.engine_versions(), cut);
            recorder
                .write(&Record::BackupCut(BackupCut {
                    job: self.id,
                    engine: self.policy.engine.clone(),
                    slots_per_region: self.policy.slots_per_region,
                    cut: cut.at,
                    attempt: cut.attempt,
                    parent: self.parent_hash(),
                    nodes,
                }))
                .await?;
            crash::point("backup.cut");
        }
        let node = |n: usize| {
            let parents = self.parent.as_ref().and_then(|p| Some((p, p.node(self.nodes[n].as_str())?)));
            let parents = parents.map(|(parent, number)| {
                let own = parent.parts.range((number, (0, Vec::new()))..).take_while(|((i, _), _)| *i == number);
                own.map(|((_, key), (part, _))| (key.clone(), part.clone())).collect::<BTreeMap<_, _>>()
            });
            let slots = cut.nodes[n].held.ownership.slots.clone();
            IngestNode { number: n as u16, slots, parents: parents.unwrap_or_default() }
        };
        self.tell_what_came_early();
        let nodes: HashMap<_, _> = self.nodes.iter().enumerate().map(|(n, name)| (name.clone(), node(n))).collect();
        let (context, cluster) = (&self.context, &self.request.cluster);
        let of = (cut.at, self.parent_hash());
        let job = context.ingest.open(self.id, cluster, of, nodes, recorder, stored);
        let _ = self.ingest.set(job);
        let total = self.parent.as_ref().map_or(0, |p| p.root.totals.parts);
        self.job.update(|i| i.progress.total_parts = total);
        Ok(())
    }
}
