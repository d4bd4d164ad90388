//! Carrying out a restore plan: begin everywhere, load in parallel, compare with the manifest, switch everywhere.
//!
//! Before any node switches, every node has loaded all its parts, the digests of all nodes together equal those of the
//! manifest, part by part, and every node has read back what it loaded. A failure before the first switch puts every
//! node back as it was.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemark_common::crash;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::job::{RestoreBegun, RestoreSwitching, RestoreWithUsers, SwitchTarget};
use tidemark_proto::stored::ledger::{Body, Policy};
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::wire::control::{
    RestoreBegin, RestoreFinished, RestorePart, RestoreParts, RestorePartsDone, RestoreReady, RestoreVerified,
    RestoreVerify,
};
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, SlotSet, Timestamp};

use tracing::Instrument;

use super::begun::{begun_of, request_of};
use super::kept::Takers;
use super::plan::{PlanNode, RestorePlan, Sources, plan};
use super::ready::ready;
use super::share::{Batch, runs};
use super::sums::{Loaded, Sums};
use super::switch::{BEGIN_DEADLINE, FINISH_DEADLINE, abort_all, called_off, end, switch_all};
use crate::context::Shared;
use crate::fleet::Member;
use crate::job::backup::{self, BackupRequest};
use crate::job::damage::Damage;
use crate::job::{Job, JobKind};
use crate::repository::{JobRecorder, Ledger, Record};
use crate::serve::ServeJob;

/// Time without a word while parts are loaded before the node counts as silent.
const LOAD_DEADLINE: Duration = Duration::from_secs(120);
/// Attempts at a node's load; each loads only what is missing.
const LOAD_ATTEMPTS: u32 = 5;
/// Wait before the next attempt: an agent that restarts needs a moment.
const RETRY_WAIT: Duration = Duration::from_secs(2);

struct Driver {
    context: Shared,
    job: Arc<Job>,
    id: JobId,
    plan: RestorePlan,
    sources: Sources,
    /// What is left out because it is damaged.
    missing: Damage,
    sums: Mutex<Sums>,
    source: ClusterName,
    target: ClusterName,
    recorder: tokio::sync::Mutex<JobRecorder>,
    /// What is not as it was.
    warnings: Mutex<Vec<String>>,
}

/// Runs a restore job to its end.
pub async fn run(context: Shared, job: Arc<Job>, plan: RestorePlan) -> Result<serde_json::Value> {
    let target = plan.request.target.clone().unwrap_or_else(|| plan.request.cluster.clone());
    let recorder = JobRecorder::new(&context.repository, &target, job.id(), context.epoch, 0);
    carry_out(context, job, plan, recorder).await
}

/// Goes on with a restore that another coordinator began: what its nodes have loaded stays.
pub async fn resume(
    context: Shared,
    job: Arc<Job>,
    (begun, with_users): (RestoreBegun, bool),
    mut recorder: JobRecorder,
) -> Result<serde_json::Value> {
    let target = job.info().cluster;
    let members: Vec<_> =
        begun.targets.iter().map(|node| Member { cluster: target.clone(), node: node.clone() }).collect();
    job.phase("waiting for the nodes");
    let planned = async {
        context.fleet.wait_for(&members, context.config.backup.patience()).await?;
        plan(&context, request_of(&begun, with_users, &target)).await
    };
    match planned.await {
        Ok(plan) => carry_out(context, job, plan, recorder).await,
        Err(e) => {
            let stuck = abort_all(&context, &target, job.id(), &begun.targets).await;
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
    mut recorder: JobRecorder,
) -> Result<serde_json::Value> {
    if !plan.problems.is_empty() {
        return Err(Error::conflict(format!("the restore cannot run: {}", plan.problems.join("; "))));
    }
    let mut sources = plan.sources.take().ok_or_else(|| Error::bug("a plan without its sources"))?;
    let source = plan.request.cluster.clone();
    let target = plan.request.target.clone().unwrap_or_else(|| source.clone());
    let id = job.id();
    let missing = match ready(&job, &plan, &mut sources).await {
        Err(e) if recorder.revision() > 0 => {
            // Another coordinator had begun it, when the backup was still whole.
            let nodes: Vec<_> = plan.targets.iter().map(|t| t.node.clone()).collect();
            let e = called_off(e, &abort_all(&context, &target, id, &nodes).await);
            end(&context, &mut recorder, id, Some(&e)).await;
            return Err(e);
        }
        missing => missing?,
    };
    let (sums, recorder) = (Mutex::default(), tokio::sync::Mutex::new(recorder));
    let warnings = Mutex::new(plan.warnings.clone());
    let driver = Driver { context, job, id, plan, sources, missing, sums, source, target, recorder, warnings };
    let serve = ServeJob::new(driver.source.clone(), driver.target.clone());
    driver.context.serve.open(id, serve);
    let result = Box::pin(driver.guarded_restore()).await;
    driver.context.serve.close(&id);
    result
}

impl Driver {
    fn member(&self, node: usize) -> Member {
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
            if with_users {
                self.takers().probe().await?;
                recorder.write(&Record::RestoreWithUsers(RestoreWithUsers { job: self.id })).await?;
            }
            recorder.write(&Record::RestoreBegun(begun_of(&self.plan, &self.job, self.context.epoch))).await?;
            crash::point("restore.begun");
        }
        let ready = self.load_and_verify().await;
        let ready = match ready {
            Ok((loaded, switching)) => {
                let noted = recorder.write(&Record::RestoreSwitching(switching.clone())).await;
                noted.map(|()| (loaded, switching))
            }
            Err(e) => Err(e),
        };
        let (loaded, switching) = match ready {
            Ok(ready) => ready,
            Err(e) => {
                let nodes: Vec<_> = self.plan.targets.iter().map(|t| t.node.clone()).collect();
                let e = called_off(e, &abort_all(&self.context, &self.target, self.id, &nodes).await);
                end(&self.context, &mut recorder, self.id, Some(&e)).await;
                return Err(e);
            }
        };
        self.job.phase("switching");
        crash::point("restore.switching");
        let finished = switch_all(&self.context, &self.target, &switching).await?;
        crash::point("restore.switched");
        if with_users {
            self.job.phase("setting users");
            let told = self.takers().set_users(&self.sources.takes).await;
            self.warn(told);
        }
        end(&self.context, &mut recorder, self.id, None).await;
        Ok(self.summary(&loaded, &finished))
    }

    fn takers(&self) -> Takers<'_> {
        let nodes = self.plan.targets.iter().map(|t| t.node.clone()).collect();
        Takers { context: &self.context, cluster: &self.target, job: self.id, nodes }
    }

    /// Notes what is not as it was.
    fn warn(&self, told: Vec<String>) {
        for warning in &told {
            tracing::warn!("{warning}");
            self.job.log.note("kept", "", warning.clone());
        }
        self.warnings.lock().expect("warnings").extend(told);
    }

    /// Up to here the restore can be called off; answers what each node will hold.
    async fn load_and_verify(&self) -> Result<(Vec<Loaded>, RestoreSwitching)> {
        let loaded = tokio::select! {
            loaded = self.load_everywhere() => loaded?,
            () = self.job.cancel.cancelled() => return Err(Error::cancelled("the restore was cancelled")),
        };
        crash::point("restore.loaded");
        self.compared()?;
        self.verify_everywhere(&loaded).await?;
        crash::point("restore.verified");
        let told = self.takers().load_libraries(&self.sources.takes, self.plan.request.in_place).await?;
        self.warn(told);
        let target = |(t, l): (&PlanNode, &Loaded)| SwitchTarget {
            node: t.node.clone(),
            slots: t.slots.clone(),
            expect: l.digest,
        };
        let targets = self.plan.targets.iter().zip(&loaded).map(target).collect();
        Ok((loaded, RestoreSwitching { job: self.id, at: Timestamp(self.plan.cut), targets }))
    }

    async fn load_everywhere(&self) -> Result<Vec<Loaded>> {
        self.job.phase("opening staging areas");
        let _: Vec<()> = futures::future::try_join_all((0..self.plan.targets.len()).map(|n| self.begin(n))).await?;
        self.job.phase("loading parts");
        futures::future::try_join_all((0..self.plan.targets.len()).map(|n| self.load(n))).await
    }

    async fn begin(&self, node: usize) -> Result<()> {
        let begin = RestoreBegin {
            at: Timestamp(self.plan.cut),
            slots: self.plan.targets[node].slots.clone(),
            in_place: u8::from(self.plan.request.in_place),
            serve: self.context.bulk_address.clone(),
        };
        let head = self.context.head(self.id, 1);
        let _: RestoreReady =
            self.context.fleet.command(&self.member(node), head, &begin, BEGIN_DEADLINE, |_| ()).await?;
        Ok(())
    }

    /// Hands the node its parts, batch by batch.
    async fn load(&self, node: usize) -> Result<Loaded> {
        let (name, slots) = (&self.plan.targets[node].node, &self.plan.targets[node].slots);
        let mut share = self.sources.share(node, slots);
        let mut loaded = Loaded::default();
        while let Some(batch) = share.next().await? {
            self.context.serve.hand_out(&self.id, name, batch.iter().cloned().collect());
            let command = self.command(slots, &batch)?;
            let done = self.load_persistently(node, &command).await?;
            let taken = self.sums.lock().expect("sums").take(&batch, slots, done.parts)?;
            loaded.parts += taken.parts;
            loaded.digest = loaded.digest.plus(taken.digest);
        }
        Ok(loaded)
    }

    async fn load_persistently(&self, node: usize, batch: &RestoreParts) -> Result<RestorePartsDone> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.load_batch(node, batch, attempt).await {
                // `Conflict`: the agent was started anew and has not opened its staging area again.
                Err(e) if matches!(e.kind(), ErrorKind::Retry | ErrorKind::Conflict) && attempt < LOAD_ATTEMPTS => {
                    tracing::warn!(attempt, error = %e.report(), "load broke: going on with what is missing");
                    let told = format!("load broke, going on with what is missing: {}", e.report());
                    self.job.log.note("retry", self.plan.targets[node].node.as_str(), told);
                    tokio::time::sleep(RETRY_WAIT).await;
                    let member = self.member(node);
                    self.context.fleet.wait_for(&[member], self.context.config.backup.patience()).await?;
                    // An agent that has restarted must reopen its staging area first.
                    if let Err(e) = self.begin(node).await {
                        tracing::warn!(error = %e.report(), "the node does not take up the restore yet");
                    }
                }
                done => return done,
            }
        }
    }

    async fn load_batch(&self, node: usize, batch: &RestoreParts, attempt: u32) -> Result<RestorePartsDone> {
        let (member, head) = (self.member(node), self.context.head(self.id, attempt));
        let report = |p| self.job.progress_of(&member.node, p);
        self.context.fleet.command(&member, head, batch, LOAD_DEADLINE, report).await
    }

    fn command(&self, slots: &SlotSet, batch: &Batch) -> Result<RestoreParts> {
        let part = |(number, part): &(u32, Arc<PartEntry>)| {
            let runs = runs(self.context.repository.keys(), &self.source, part)?;
            let slots = part.slots.intersect(slots);
            Ok(RestorePart { number: *number, slots, runs, bytes: part.live_bytes })
        };
        let parts = batch.iter().map(part).collect::<Result<_>>()?;
        Ok(RestoreParts { parts, keys: self.plan.request.keys.clone(), concurrency: 0 })
    }

    /// Every part was read as the manifest says, over all nodes that took a share of it.
    fn compared(&self) -> Result<()> {
        let healthy = u64::from(self.sources.manifest.parts()) - self.sources.bad.len();
        self.sums.lock().expect("sums").whole(healthy)
    }

    /// Every node reads back what it has loaded.
    async fn verify_everywhere(&self, loaded: &[Loaded]) -> Result<()> {
        self.job.phase("reading back");
        let verify = |(node, loaded): (usize, &Loaded)| {
            let (member, head, expect) = (self.member(node), self.context.head(self.id, 1), loaded.digest);
            async move {
                let verify = RestoreVerify { expect };
                self.context.fleet.command(&member, head, &verify, FINISH_DEADLINE, |_| ()).await
            }
        };
        let all = futures::future::try_join_all(loaded.iter().enumerate().map(verify));
        let _: Vec<RestoreVerified> = tokio::select! {
            all = all => all?,
            () = self.job.cancel.cancelled() => return Err(Error::cancelled("the restore was cancelled")),
        };
        Ok(())
    }

    fn summary(&self, loaded: &[Loaded], finished: &[RestoreFinished]) -> serde_json::Value {
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
            "parts": loaded.iter().map(|l| l.parts).sum::<u64>(),
            "records": finished.iter().map(|f| f.digest.count).sum::<u64>(),
            "nodes": nodes,
            "complete": self.missing.is_none(),
            "missing": self.missing,
            "warnings": *self.warnings.lock().expect("warnings"),
        })
    }
}
