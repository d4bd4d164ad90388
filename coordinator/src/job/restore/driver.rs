//! Carrying out a restore plan: begin everywhere, load in parallel, compare with the manifest, switch everywhere.
//!
//! Before any node switches, every node has loaded all its parts, the digests of all nodes together equal those of the
//! manifest, part by part, and every node has read back what it loaded. A failure before the first switch puts every
//! node back as it was.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemark_proto::id::JobId;
use tidemark_proto::stored::ledger::{Body, Policy};
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::wire::control::{
    Done, RestoreAbort, RestoreBegin, RestoreFinish, RestoreFinished, RestorePart, RestoreParts, RestorePartsDone,
    RestoreReady, RestoreVerified, RestoreVerify, RunSource,
};
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, SlotSet, Timestamp};

use super::plan::{RestorePlan, Sources};
use super::ready::ready;
use super::share::Batch;
use super::sums::{Loaded, Sums};
use crate::context::Shared;
use crate::fleet::Member;
use crate::job::backup::{self, BackupRequest};
use crate::job::damage::Damage;
use crate::job::{Job, JobKind};
use crate::repository::Ledger;
use crate::serve::ServeJob;

/// Time for a node to open or drop its staging area.
const BEGIN_DEADLINE: Duration = Duration::from_secs(60);
/// Time without a word while parts are loaded before the node counts as silent.
const LOAD_DEADLINE: Duration = Duration::from_secs(120);
/// Time for a node to read everything back and switch.
const FINISH_DEADLINE: Duration = Duration::from_secs(4 * 3600);
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
}

/// Runs a restore job to its end.
pub async fn run(context: Shared, job: Arc<Job>, mut plan: RestorePlan) -> Result<serde_json::Value> {
    if !plan.problems.is_empty() {
        return Err(Error::conflict(format!("the restore cannot run: {}", plan.problems.join("; "))));
    }
    let mut sources = plan.sources.take().ok_or_else(|| Error::bug("a plan without its sources"))?;
    let missing = ready(&job, &plan, &mut sources).await?;
    let source = plan.request.cluster.clone();
    let target = plan.request.target.clone().unwrap_or_else(|| source.clone());
    let id = job.id();
    let driver = Driver { context, job, id, plan, sources, missing, sums: Mutex::default(), source, target };
    let serve = ServeJob::new(driver.source.clone(), driver.target.clone());
    driver.context.serve.open(id, serve);
    let result = driver.guarded_restore().await;
    driver.context.serve.close(&id);
    result
}

impl Driver {
    fn member(&self, node: usize) -> Member {
        Member { cluster: self.target.clone(), node: self.plan.targets[node].node.clone() }
    }

    /// Where present data is replaced it is backed up before any node is touched.
    async fn guarded_restore(&self) -> Result<serde_json::Value> {
        let replaces = self.plan.targets.iter().any(|t| t.present_records > 0);
        let safety = if self.plan.request.in_place && replaces { self.make_safe().await? } else { None };
        self.job.reset_progress();
        let mut summary = self.restore().await?;
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
            done = backup::run(self.context.clone(), job.clone(), request) => done,
            () = self.job.cancel.cancelled() => {
                job.cancel.cancel();
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
        let loaded = tokio::select! {
            loaded = self.load_everywhere() => loaded,
            () = self.job.cancel.cancelled() => Err(Error::cancelled("the restore was cancelled")),
        };
        let verified = match loaded.and_then(|l| self.compared().map(|()| l)) {
            Ok(loaded) => self.verify_everywhere(&loaded).await.map(|()| loaded),
            Err(e) => Err(e),
        };
        let loaded = match verified {
            Ok(loaded) => loaded,
            Err(e) => {
                self.abort_everywhere().await;
                return Err(e);
            }
        };
        self.job.phase("switching");
        let finish = loaded.iter().enumerate().map(|(n, loaded)| self.finish(n, loaded));
        let finished = futures::future::join_all(finish).await.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(self.summary(&loaded, &finished))
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
                Err(e) if e.kind() == ErrorKind::Retry && attempt < LOAD_ATTEMPTS => {
                    tracing::warn!(attempt, error = %e.report(), "load broke: going on with what is missing");
                    tokio::time::sleep(RETRY_WAIT).await;
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
            let (slots, runs) = (part.slots.intersect(slots), self.runs(part)?);
            Ok(RestorePart { number: *number, slots, runs, bytes: part.live_bytes })
        };
        let parts = batch.iter().map(part).collect::<Result<_>>()?;
        Ok(RestoreParts { parts, keys: self.plan.request.keys.clone(), concurrency: 0 })
    }

    fn runs(&self, part: &PartEntry) -> Result<Vec<RunSource>> {
        let keys = self.context.repository.keys();
        let source = |(number, run): (usize, &tidemark_proto::stored::manifest::RunEntry)| {
            Ok(RunSource {
                number: number as u32,
                blocks: run.blocks,
                run_tag: keys.run_tag(&self.source, part.region, &part.lower, &run.salt),
                key: keys.subkey(run.key_id, &run.salt)?,
                encrypt: u8::from(run.key_id != 0),
            })
        };
        part.runs.iter().enumerate().map(source).collect()
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

    async fn finish(&self, node: usize, loaded: &Loaded) -> Result<RestoreFinished> {
        let expect = loaded.digest;
        let head = self.context.head(self.id, 1);
        self.context
            .fleet
            .command(&self.member(node), head, &RestoreFinish { expect }, FINISH_DEADLINE, |_| ())
            .await
    }

    async fn abort_everywhere(&self) {
        let abort = |n: usize| async move {
            let (member, head) = (self.member(n), self.context.head(self.id, 1));
            let done = self
                .context
                .fleet
                .command::<_, Done>(&member, head, &RestoreAbort {}, BEGIN_DEADLINE, |_| ())
                .await;
            if let Err(e) = done {
                tracing::error!(error = %e.report(), "a node still holds a staging area and is `restoring`");
            }
        };
        let _ = futures::future::join_all((0..self.plan.targets.len()).map(abort)).await;
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
        })
    }
}
