//! Carrying out a restore plan: begin everywhere, load in parallel, compare with the manifest, switch everywhere.
//!
//! Before any node switches, every node has loaded all its parts, the digests of all nodes together equal those of the
//! manifest, part by part, and every node has read back what it loaded. A failure before the first switch puts every
//! node back as it was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tidemark_common::crash;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::job::{RestoreAt, RestoreWithUsers};
use tidemark_proto::stored::ledger::{Body, Policy};
use tidemark_proto::wire::control::RestoreFinished;
use tidemark_proto::{ClusterName, Error, Result};

use tracing::Instrument;

use super::begun::{LeftRestore, begun_of, request_of};
use super::kept::Takers;
use super::load::Ready;
use super::moving::MOST_MOVES;
use super::options::Options;
use super::plan::{RestorePlan, Sources, plan_again};
use super::ready::ready;
use super::sums::Sums;
use super::switch::{abort_all, called_off, end, switch_all};
use crate::context::Shared;
use crate::fleet::Member;
use crate::job::backup::{self, BackupRequest};
use crate::job::damage::Damage;
use crate::job::{Job, JobKind};
use crate::repository::{JobRecorder, Ledger, Record};
use crate::serve::ServeJob;

/// A restore at work.
pub(super) struct Driver {
    pub(super) context: Shared,
    pub(super) job: Arc<Job>,
    pub(super) id: JobId,
    pub(super) plan: RestorePlan,
    /// How records are loaded.
    pub(super) options: Options,
    pub(super) sources: Sources,
    /// What is left out because it is damaged.
    missing: Damage,
    pub(super) sums: Mutex<Sums>,
    pub(super) source: ClusterName,
    pub(super) target: ClusterName,
    recorder: tokio::sync::Mutex<JobRecorder>,
    /// What is not as it was.
    warnings: Mutex<Vec<String>>,
    /// Whether it may begin anew when slots have moved.
    may_begin_anew: bool,
    /// It ended with all nodes as they were, because slots had moved: it is to begin anew.
    begins_anew: AtomicBool,
}

/// Runs a restore job to its end.
pub async fn run(context: Shared, job: Arc<Job>, plan: RestorePlan) -> Result<serde_json::Value> {
    let target = plan.request.target.clone().unwrap_or_else(|| plan.request.cluster.clone());
    let recorder = JobRecorder::new(&context.repository, &target, job.id(), context.epoch, 0);
    let options = Options::new(&plan.request, plan.state(), job.info().started_millis);
    carry_out(context, job, plan, options, recorder).await
}

/// Goes on with a restore that another coordinator began: what its nodes have loaded stays.
pub async fn resume(
    context: Shared,
    job: Arc<Job>,
    left: LeftRestore,
    mut recorder: JobRecorder,
) -> Result<serde_json::Value> {
    let target = job.info().cluster;
    let members: Vec<_> =
        left.begun.targets.iter().map(|node| Member { cluster: target.clone(), node: node.clone() }).collect();
    job.phase("waiting for the nodes");
    let planned = async {
        context.fleet.wait_for(&members, context.config.backup.patience()).await?;
        let (request, now) = request_of(&left, &target)?;
        let plan = plan_again(&context, request).await?;
        let options = Options::new(&plan.request, plan.state(), now);
        Ok::<_, Error>((plan, options))
    };
    match planned.await {
        Ok((plan, options)) => carry_out(context, job, plan, options, recorder).await,
        Err(e) => {
            let stuck = abort_all(&context, &target, job.id(), &left.begun.targets).await;
            let e = called_off(e.context("the restore could not be taken up again and was called off"), &stuck);
            end(&context, &mut recorder, job.id(), Some(&e)).await;
            Err(e)
        }
    }
}

async fn carry_out(
    context: Shared,
    job: Arc<Job>,
    mut plan: RestorePlan,
    options: Options,
    mut recorder: JobRecorder,
) -> Result<serde_json::Value> {
    can_run(&plan)?;
    let id = job.id();
    for moves in 0.. {
        let request = plan.pinned();
        let mut driver = prepared(&context, &job, plan, options.clone(), recorder).await?;
        driver.may_begin_anew = moves < MOST_MOVES;
        let serve = ServeJob::new(driver.source.clone(), driver.target.clone(), driver.sources.served.clone());
        context.serve.open(id, serve);
        let result = Box::pin(driver.guarded_restore()).await;
        context.serve.close(&id);
        if !driver.begins_anew.load(Ordering::Relaxed) {
            return result;
        }
        recorder = driver.recorder.into_inner();
        match plan_again(&context, request).await.and_then(|plan| can_run(&plan).map(|()| plan)) {
            Ok(again) => plan = again,
            Err(e) => {
                let e = e.context("slots have moved since the restore was planned, and it was called off");
                end(&context, &mut recorder, id, Some(&e)).await;
                return Err(e);
            }
        }
    }
    unreachable!("the last one may not begin anew")
}

fn can_run(plan: &RestorePlan) -> Result<()> {
    match plan.problems.is_empty() {
        true => Ok(()),
        false => Err(Error::conflict(format!("the restore cannot run: {}", plan.problems.join("; ")))),
    }
}

/// Looks at all that the restore will read, before any node is touched.
async fn prepared(
    context: &Shared,
    job: &Arc<Job>,
    mut plan: RestorePlan,
    options: Options,
    mut recorder: JobRecorder,
) -> Result<Driver> {
    let mut sources = plan.sources.take().ok_or_else(|| Error::bug("a plan without its sources"))?;
    let source = plan.request.cluster.clone();
    let target = plan.request.target.clone().unwrap_or_else(|| source.clone());
    let id = job.id();
    let missing = match ready(job, &plan, &mut sources, context.config.pitr.work_off_mib << 20).await {
        Err(e) if recorder.revision() > 0 => {
            // Another coordinator had begun it, when the backup was still whole.
            let nodes: Vec<_> = plan.targets.iter().map(|t| t.node.clone()).collect();
            let e = called_off(e, &abort_all(context, &target, id, &nodes).await);
            end(context, &mut recorder, id, Some(&e)).await;
            return Err(e);
        }
        missing => missing?,
    };
    let (sums, recorder) = (Mutex::default(), tokio::sync::Mutex::new(recorder));
    let warnings = Mutex::new([&plan.warnings[..], &sources.told].concat());
    let (context, job) = (context.clone(), job.clone());
    Ok(Driver {
        context,
        job,
        id,
        plan,
        options,
        sources,
        missing,
        sums,
        source,
        target,
        recorder,
        warnings,
        may_begin_anew: false,
        begins_anew: AtomicBool::new(false),
    })
}

impl Driver {
    pub(super) fn member(&self, node: usize) -> Member {
        Member { cluster: self.target.clone(), node: self.plan.targets[node].node.clone() }
    }

    /// Where present data is replaced it is backed up before any node is touched.
    async fn guarded_restore(&self) -> Result<serde_json::Value> {
        let replaces = self.plan.request.in_place && self.plan.targets.iter().any(|t| t.present_records > 0);
        let begun = self.recorder.lock().await.revision() > 0;
        let safety = if replaces && !begun { self.make_safe().await? } else { None };
        self.job.reset_progress();
        let mut summary = self.restore().await.map_err(|e| match &safety {
            None => e,
            Some(id) => {
                let id = id.as_str().unwrap_or_default();
                Error::new(e.kind(), format!("{}; what was there before is backup {id}", e.report()))
            }
        })?;
        if let Err(e) = self.renew_policy().await {
            // The data is there and open; the next backup writes the policy as well.
            tracing::warn!(error = %e.report(), "the cluster's new nodes could not be noted");
        }
        if let (Some(backup), Some(fields)) = (safety, summary.as_object_mut()) {
            let _ = fields.insert("safety_backup".into(), backup);
        }
        Ok(summary)
    }

    /// A protected cluster consists of the nodes that hold its data now: those of before are not missed any more.
    async fn renew_policy(&self) -> Result<()> {
        let known = Ledger::load(&self.context.repository, &self.target).await?;
        let nodes: Vec<String> = self.plan.targets.iter().map(|t| t.node.to_string()).collect();
        let Some(policy) = known.policy().filter(|p| p.nodes != nodes).cloned() else { return Ok(()) };
        let (epoch, now) = (self.context.epoch, self.context.now_millis());
        let body = Body::Policy(Policy { nodes, ..policy });
        let mut ledger = self.context.ledger(&self.target).await?;
        let _ = ledger.append(epoch, now, &body, |_| Ok(())).await?;
        Ok(())
    }

    /// Backs up the present state unless told not to and answers that backup's id.
    async fn make_safe(&self) -> Result<Option<serde_json::Value>> {
        if self.plan.request.no_safety_backup {
            return Ok(None);
        }
        self.job.phase("backing up the present state");
        let jobs = &self.context.jobs;
        // Not exclusive: the restore holds the cluster already.
        let job = jobs.begin(JobKind::Backup, &self.target, false, self.context.now_millis())?;
        let request = BackupRequest { cluster: self.target.clone(), full: false, manual: false };
        let backup = tokio::select! {
            done = backup::run(self.context.clone(), job.clone(), request).instrument(job.span()) => done,
            () = self.job.cancel.cancelled() => {
                job.cancel();
                Err(Error::cancelled("the restore was cancelled"))
            }
        };
        let id = job.id();
        let outcome = backup.as_ref().map(Clone::clone).map_err(|e| Error::new(e.kind(), e.report()));
        jobs.end(&job, self.context.now_millis(), outcome);
        let told = "the present state cannot be backed up (--no-safety-backup goes on without)";
        backup.map(|_| Some(serde_json::json!(id))).map_err(|e| e.context(told))
    }

    async fn restore(&self) -> Result<serde_json::Value> {
        let total: u64 = self.plan.targets.iter().map(|t| t.parts).sum();
        self.job.update(|i| {
            i.progress.total_parts = total;
            i.progress.total_bytes = self.plan.bytes;
        });
        let mut recorder = self.recorder.lock().await;
        let with_users = self.plan.request.with_users;
        if recorder.revision() == 0 {
            if !self.options.are_usual() {
                recorder.write(&Record::RestoreOptions(self.options.to_record(self.id, None))).await?;
            }
            if with_users {
                self.takers().probe().await?;
                recorder.write(&Record::RestoreWithUsers(RestoreWithUsers { job: self.id })).await?;
            }
            if self.plan.at > 0 {
                recorder.write(&Record::RestoreAt(RestoreAt { job: self.id, at: self.plan.state() })).await?;
            }
            recorder.write(&Record::RestoreBegun(begun_of(&self.plan, &self.job, self.context.epoch))).await?;
            crash::point("restore.begun");
        }
        let ready = match self.load_and_verify().await {
            Ok(ready) => self.note_ready(&mut recorder, &ready).await.map(|()| ready),
            Err(e) => Err(e),
        };
        let ready = match ready {
            Ok(ready) => ready,
            Err(e) => {
                let again = self.may_begin_anew && self.slots_have_moved(&e).await;
                let nodes: Vec<_> = self.plan.targets.iter().map(|t| t.node.clone()).collect();
                let stuck = abort_all(&self.context, &self.target, self.id, &nodes).await;
                if again && stuck.is_empty() {
                    self.begins_anew.store(true, Ordering::Relaxed);
                    return Err(e);
                }
                let e = called_off(e, &stuck);
                end(&self.context, &mut recorder, self.id, Some(&e)).await;
                return Err(e);
            }
        };
        self.job.phase("switching");
        crash::point("restore.switching");
        let finished = switch_all(&self.context, &self.target, &ready.switching).await?;
        crash::point("restore.switched");
        if with_users {
            self.job.phase("setting users");
            let told = self.takers().set_users(&self.sources.takes).await;
            self.warn(told);
        }
        end(&self.context, &mut recorder, self.id, None).await;
        Ok(self.summary(&ready, &finished))
    }

    /// From here on the restore only goes forward.
    async fn note_ready(&self, recorder: &mut JobRecorder, ready: &Ready) -> Result<()> {
        if !self.options.are_usual() || ready.expired != Some(0) {
            recorder.write(&Record::RestoreOptions(self.options.to_record(self.id, ready.expired))).await?;
        }
        recorder.write(&Record::RestoreSwitching(ready.switching.clone())).await
    }

    pub(super) fn takers(&self) -> Takers<'_> {
        let nodes = self.plan.targets.iter().map(|t| t.node.clone()).collect();
        Takers { context: &self.context, cluster: &self.target, job: self.id, nodes }
    }

    /// Notes what is not as it was.
    pub(super) fn warn(&self, told: Vec<String>) {
        for warning in &told {
            tracing::warn!("{warning}");
            self.job.log.note("kept", "", warning.clone());
        }
        self.warnings.lock().expect("warnings").extend(told);
    }

    fn summary(&self, ready: &Ready, finished: &[RestoreFinished]) -> serde_json::Value {
        let nodes: Vec<_> = self
            .plan
            .targets
            .iter()
            .zip(finished)
            .map(|(t, f)| {
                serde_json::json!({"node": t.node, "records": f.digest.count, "incarnation": f.incarnation, "slots": t.slots})
            })
            .collect();
        serde_json::json!({
            "backup": self.plan.backup,
            "cut": self.plan.cut,
            "at": self.plan.state(),
            "parts": ready.loaded.iter().map(|l| l.parts).sum::<u64>(),
            "records": finished.iter().map(|f| f.digest.count).sum::<u64>(),
            // Apart from the records: left out because they had expired.
            "expired": ready.expired,
            "expiry": self.options.expiry,
            "shift_millis": self.options.shift_millis,
            "nodes": nodes,
            "complete": self.missing.is_none(),
            "missing": self.missing,
            "warnings": *self.warnings.lock().expect("warnings"),
        })
    }
}
