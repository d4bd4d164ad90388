//! Loading: every node takes its parts, all that was read is compared with the manifest, every node reads back.

use std::sync::Arc;
use std::time::Duration;

use tidemark_common::crash;
use tidemark_proto::stored::job::{RestoreSwitching, SwitchTarget};
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::wire::control::{
    PartBounds, RestoreBegin, RestoreBeginAs, RestoreCount, RestoreCounted, RestorePart, RestoreParts,
    RestorePartsDone, RestorePartsLogged, RestoreReady, RestoreVerified, RestoreVerify,
};
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, Timestamp};

use super::driver::Driver;
use super::plan::PlanNode;
use super::share::{Batch, runs};
use super::sums::Loaded;
use super::switch::{BEGIN_DEADLINE, FINISH_DEADLINE};

/// Time without a word while parts are loaded before the node counts as silent.
const LOAD_DEADLINE: Duration = Duration::from_secs(120);
/// Attempts at a node's load; each loads only what is missing.
const LOAD_ATTEMPTS: u32 = 5;
/// Wait before the next attempt: an agent that restarts needs a moment.
const RETRY_WAIT: Duration = Duration::from_secs(2);

/// What a node is told to load.
enum Command {
    /// The parts as they are.
    Plain(RestoreParts),
    /// With the log over them.
    Logged(RestorePartsLogged),
}

/// All is loaded, compared and read back: nothing is left but the switch.
pub(super) struct Ready {
    /// What each node has loaded.
    pub(super) loaded: Vec<Loaded>,
    /// Records that had expired, over all nodes; `None` where a node cannot tell.
    pub(super) expired: Option<u64>,
    /// What each node will hold.
    pub(super) switching: RestoreSwitching,
}

impl Driver {
    /// Up to here the restore can be called off; answers what each node will hold.
    pub(super) async fn load_and_verify(&self) -> Result<Ready> {
        let loaded = tokio::select! {
            loaded = self.load_everywhere() => loaded?,
            () = self.job.cancel.cancelled() => return Err(Error::cancelled("the restore was cancelled")),
        };
        crash::point("restore.loaded");
        self.compared()?;
        self.verify_everywhere(&loaded).await?;
        let expired = self.expired().await?;
        crash::point("restore.verified");
        let told = self.takers().load_libraries(&self.sources.takes, self.plan.request.in_place).await?;
        self.warn(told);
        let target = |(t, l): (&PlanNode, &Loaded)| SwitchTarget {
            node: t.node.clone(),
            slots: t.slots.clone(),
            expect: l.digest,
        };
        let targets = self.plan.targets.iter().zip(&loaded).map(target).collect();
        let switching = RestoreSwitching { job: self.id, at: self.plan.state(), targets };
        Ok(Ready { loaded, expired, switching })
    }

    async fn load_everywhere(&self) -> Result<Vec<Loaded>> {
        self.job.phase("opening staging areas");
        let _: Vec<()> = futures::future::try_join_all((0..self.plan.targets.len()).map(|n| self.begin(n))).await?;
        self.job.phase("loading parts");
        futures::future::try_join_all((0..self.plan.targets.len()).map(|n| self.load(n))).await
    }

    async fn begin(&self, node: usize) -> Result<()> {
        let begin = RestoreBegin {
            at: self.plan.state(),
            slots: self.plan.targets[node].slots.clone(),
            in_place: u8::from(self.plan.request.in_place),
            serve: self.context.bulk_address.clone(),
        };
        let (fleet, member, head) = (&self.context.fleet, self.member(node), self.context.head(self.id, 1));
        // An agent of an earlier build does without options where none is wanted.
        let _: RestoreReady = match self.options.are_usual() {
            true => fleet.command(&member, head, &begin, BEGIN_DEADLINE, |_| ()).await?,
            false => {
                let begin = RestoreBeginAs { begin, options: self.options.to_load() };
                fleet.command(&member, head, &begin, BEGIN_DEADLINE, |_| ()).await?
            }
        };
        Ok(())
    }

    /// Records that were not loaded because they had expired, over all nodes. Agents of an earlier build do not count.
    async fn expired(&self) -> Result<Option<u64>> {
        let mut sum = 0;
        for node in 0..self.plan.targets.len() {
            let counted = match self.count(node).await {
                // The agent was started anew: it must open its staging area again.
                Err(e) if matches!(e.kind(), ErrorKind::Retry | ErrorKind::Conflict) => {
                    self.context
                        .fleet
                        .wait_for(&[self.member(node)], self.context.config.backup.patience())
                        .await?;
                    self.begin(node).await?;
                    self.count(node).await
                }
                counted => counted,
            };
            match counted {
                Err(e) if e.kind() == ErrorKind::Unsupported => return Ok(None),
                counted => sum += counted?.expired,
            }
        }
        Ok(Some(sum))
    }

    async fn count(&self, node: usize) -> Result<RestoreCounted> {
        let (member, head) = (self.member(node), self.context.head(self.id, 1));
        self.context.fleet.command(&member, head, &RestoreCount {}, BEGIN_DEADLINE, |_| ()).await
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

    async fn load_persistently(&self, node: usize, batch: &Command) -> Result<RestorePartsDone> {
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
                        if !matches!(e.kind(), ErrorKind::Retry | ErrorKind::Conflict) {
                            return Err(e);
                        }
                        tracing::warn!(error = %e.report(), "the node does not take up the restore yet");
                    }
                }
                done => return done,
            }
        }
    }

    async fn load_batch(&self, node: usize, batch: &Command, attempt: u32) -> Result<RestorePartsDone> {
        let (fleet, member, head) = (&self.context.fleet, self.member(node), self.context.head(self.id, attempt));
        let report = |p| self.job.progress_of(&member.node, p);
        match batch {
            Command::Plain(parts) => fleet.command(&member, head, parts, LOAD_DEADLINE, report).await,
            Command::Logged(parts) => fleet.command(&member, head, parts, LOAD_DEADLINE, report).await,
        }
    }

    fn command(&self, slots: &SlotSet, batch: &Batch) -> Result<Command> {
        let part = |(number, part): &(u32, Arc<PartEntry>)| {
            let runs = runs(self.context.repository.keys(), &self.source, part)?;
            let slots = part.slots.intersect(slots);
            Ok(RestorePart { number: *number, slots, runs, bytes: part.live() })
        };
        let parts = batch.iter().map(part).collect::<Result<_>>()?;
        let parts = RestoreParts { parts, keys: self.plan.request.keys.clone(), concurrency: 0 };
        if self.sources.log.is_none() {
            return Ok(Command::Plain(parts));
        }
        let bounds =
            |(_, part): &(u32, Arc<PartEntry>)| PartBounds { lower: part.lower.clone(), upper: part.upper.clone() };
        let (after, at, bounds) = (Timestamp(self.plan.cut), self.plan.state(), batch.iter().map(bounds).collect());
        Ok(Command::Logged(RestorePartsLogged { parts, after, at, bounds }))
    }

    /// Every part was read as the manifest says, over all nodes that took a share of it.
    fn compared(&self) -> Result<()> {
        self.sums.lock().expect("sums").whole(self.sources.parts())
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
}
