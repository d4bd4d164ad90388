//! The judge: knows what happened on every node in true time, and says which promise was broken.

use std::collections::HashSet;

use tidemark_coordinator::job::backup::core::Cut;
use tidemark_coordinator::repository::Ledger;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::ledger::Body;
use tidemark_proto::{Error, SlotSet, Timestamp};

use super::durable::Manifest;
use super::net::Call;
use super::plan::{LARGE, MS};
use super::world::World;

/// How far two clocks may drift from each other in a run, in milliseconds.
const DRIFT: u64 = 500;
/// An answer to a hold is awaited for so long at most, in milliseconds: its clock may have been read at any time of that.
const LONGEST_ANSWER: u64 = 6_500;

/// When a node answered in an attempt, in true time; of an attempt that is asked twice, the last time.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Readings {
    pub(super) held: Option<u64>,
    pub(super) sealed: Option<u64>,
    pub(super) released: Option<u64>,
}

/// A job as it ended for one coordinator.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) job: JobId,
    pub(super) epoch: u64,
    /// The error; `None` for a backup.
    pub(super) told: Option<String>,
    pub(super) resumed: bool,
}

impl World<'_> {
    pub(super) fn reading(&mut self, call: &Call) -> &mut Readings {
        self.readings.entry((call.job, call.attempt, call.node)).or_default()
    }

    /// A cut was accepted: nobody moved, nobody changed, and all had held before the first was sealed.
    pub(super) fn cut_accepted(&mut self, number: usize, cut: &Cut) {
        let run = self.processes[number].run.as_ref().expect("it has a cut");
        let (job, resumed, nodes) = (run.job, run.resumed, run.nodes.clone());
        if resumed {
            return match self.accepted.iter().any(|(of, c)| *of == job && c == cut) {
                true => (),
                false => self.broken(|| format!("job {job} was resumed with a cut that nobody took: {cut:?}")),
            };
        }
        self.stats.note("cuts that hold");
        if let Some(why) = self.why_void(job, cut, &nodes) {
            self.broken(|| format!("the cut of job {job} at {} was accepted, but {why}", cut.at));
        }
        if let Some((name, offset)) = self.clock_off(number, &nodes) {
            self.broken(|| format!("job {job} took a cut with {name}, whose clock is {offset} ms off"));
        }
        let ran_out = |n: &usize| {
            let readings = self.readings[&(job, cut.attempt, *n)];
            self.nodes[*n].ran_out.iter().any(|t| Some(*t) > readings.held && Some(*t) <= readings.released)
        };
        if nodes.iter().any(ran_out) {
            self.stats.note("cuts that hold although a hold ran out");
        }
        self.accepted.push((job, cut.clone()));
    }

    /// A node that a coordinator which never slept had to refuse.
    fn clock_off(&self, number: usize, nodes: &[usize]) -> Option<(String, u64)> {
        if self.processes[number].slept {
            return None;
        }
        let most = self.plan.max_clock_offset + DRIFT + LONGEST_ANSWER;
        let mut offsets =
            nodes.iter().map(|n| &self.nodes[*n].name).map(|name| (name, self.offset_of(number, name)));
        offsets.find(|(_, offset)| *offset > most).map(|(name, offset)| (name.clone(), offset))
    }

    fn why_void(&self, job: JobId, cut: &Cut, nodes: &[usize]) -> Option<String> {
        let (mut last_held, mut first_sealed) = (0, u64::MAX);
        for n in nodes {
            let (node, name) = (&self.nodes[*n], &self.nodes[*n].name);
            let readings = self.readings.get(&(job, cut.attempt, *n)).copied().unwrap_or_default();
            let (Some(held), Some(sealed), Some(released)) = (readings.held, readings.sealed, readings.released)
            else {
                return Some(format!("{name} has not answered all: {readings:?}"));
            };
            (last_held, first_sealed) = (last_held.max(held), first_sealed.min(sealed));
            let between = |times: &[u64], to: u64| times.iter().any(|t| *t > held && *t <= to);
            if between(&node.published, sealed) {
                return Some(format!("{name} moved between {held} and {sealed}"));
            }
            if between(&node.replaced, sealed) {
                return Some(format!("the data of {name} was replaced"));
            }
            if between(&node.owners_changed, released) {
                return Some(format!("the slots of {name} changed between {held} and {released}"));
            }
            // The rule of clocks: the cut is above what was there, and below what came later.
            let wrong = node.records.iter().find(|r| (r.at <= cut.at) != (r.published <= sealed));
            if let Some(r) = wrong {
                return Some(format!("{name} has record {} at {} published at {}", r.id, r.at, r.published));
            }
        }
        if let Some(why) = self.why_without_base(job, cut, nodes) {
            return Some(why);
        }
        (last_held > first_sealed).then(|| format!("one was sealed at {first_sealed}, another held at {last_held}"))
    }

    /// Budgets of a job never pass the configured one together.
    pub(super) fn held_for(&mut self, number: usize, attempt: u32, budget: u64) {
        let run = self.processes[number].run.as_mut().expect("it holds");
        if attempt <= run.attempt {
            return;
        }
        run.attempt = attempt;
        let job = run.job;
        let sum = self.begun.entry(job).or_default();
        *sum += budget;
        let (sum, most) = (*sum, self.plan.budget);
        self.stats.note("attempts at a cut");
        if sum > most {
            self.broken(|| format!("job {job} asked for {sum} us of pauses, {most} are allowed"));
        }
    }

    /// Counts why an attempt did not hold.
    pub(super) fn void(&mut self, why: &str) {
        let causes = [
            ("moved between", "void: moved between the readings"),
            ("moved on since", "void: moved before the seal"),
            ("slots or the role", "void: an owner changed"),
            ("was replaced", "void: the data was replaced"),
            ("no node owns", "void: slots without an owner"),
            ("are owned by both", "void: slots with two owners"),
            ("no base of this job", "void: a base was lost"),
            ("holds no reading", "void: the reading was lost"),
            ("another hold replaced", "void: another hold"),
            ("did not end within", "void: a commit took too long"),
            ("connected again", "void: a node restarted"),
            ("no word", "void: no word of a node"),
            ("behind the cut, which", "void: two clocks are too far apart"),
            ("has taken over", "void: another coordinator has taken over"),
            ("restoring", "void: a node was restoring"),
        ];
        let cause = causes.iter().find(|(words, _)| why.contains(words));
        self.stats.note(cause.map_or("void: another cause", |(_, name)| name));
    }

    pub(super) fn job_ended(&mut self, number: usize, ended: &Ended, error: Option<&Error>) {
        let Some(error) = error else { return self.judge_success(number, ended) };
        self.stats.note("jobs that failed");
        let told = error.report();
        if told.trim().is_empty() {
            self.broken(|| format!("job {} failed without a reason", ended.job));
        }
        if told.contains("no cut after") {
            self.stats.note("failed: no cut within the budget");
            self.void(&told);
        }
        if let Some((_, rest)) = told.split_once("the clock of node ") {
            self.stats.note("failed: a clock is off");
            let name = rest.split(' ').next().unwrap_or_default();
            let offset = self.offset_of(number, name);
            if offset + DRIFT < self.plan.max_clock_offset {
                self.broken(|| format!("{name} was refused for its clock, which is only {offset} ms off"));
            }
        }
    }

    fn offset_of(&self, number: usize, name: &str) -> u64 {
        let place = self.nodes.iter().position(|n| n.name == name).unwrap_or(0);
        let coordinator = self.plan.coordinators[number % self.plan.coordinators.len()];
        self.plan.clocks[place].0.abs_diff(coordinator)
    }

    /// A coordinator says that a backup stands: so says the ledger, and no node was there whose clock is off.
    fn judge_success(&mut self, number: usize, ended: &Ended) {
        self.stats.note("jobs that made a backup");
        if self.nodes.len() == usize::from(LARGE) {
            self.stats.note("backups of a hundred nodes");
        }
        if self.plan.bases {
            self.stats.note("backups of nodes with bases");
        }
        if self.processes[number].rounds > 0 {
            self.stats.note("backups after another round");
        }
        if ended.resumed {
            self.stats.note("resumed jobs that made a backup");
        }
        let ledger = self.load();
        let entry = ledger.entries().iter().find(|r| matches!(&r.body, Body::Backup(b) if b.job == ended.job));
        if entry.is_none_or(|r| !r.counts || r.entry.epoch > ended.epoch) {
            let (job, epoch) = (ended.job, ended.epoch);
            self.broken(|| format!("epoch {epoch} told of backup {job}, which does not count: {entry:?}"));
        }
    }

    fn load(&self) -> Ledger {
        self.runtime.block_on(Ledger::load(&self.repository, &self.cluster)).expect("the ledger is whole")
    }

    pub(super) fn judge_the_end(&mut self) {
        let ledger = self.load();
        let mut epoch = 0;
        let (mut made, mut failed) = (HashSet::new(), HashSet::new());
        let mut last_cut = Timestamp::ZERO;
        let mut verdict = Vec::new();
        for recorded in ledger.entries() {
            if recorded.counts != (recorded.entry.epoch >= epoch) {
                verdict.push(format!("entry {} counts: {}", recorded.entry.number, recorded.counts));
            }
            if !recorded.counts {
                self.stats.note("entries that do not count");
                continue;
            }
            epoch = recorded.entry.epoch;
            match &recorded.body {
                Body::Backup(b) => {
                    if b.cut <= last_cut || !made.insert(b.job) {
                        verdict.push(format!("backup {} at {} comes after a cut at {last_cut}", b.job, b.cut));
                    }
                    last_cut = b.cut;
                    verdict.extend(self.why_not_whole(&self.manifests[&b.root], b.job, b.cut));
                }
                Body::Failed(f) => {
                    let twice = !failed.insert(f.job);
                    if twice || f.reason.is_empty() {
                        verdict.push(format!("the failure of {} is told twice or without a reason", f.job));
                    }
                }
                _ => {}
            }
        }
        for job in self.begun.keys() {
            if made.contains(job) == failed.contains(job) {
                verdict.push(format!("job {job} made a backup: {0}, and failed: {0}", made.contains(job)));
            }
        }
        for ended in &self.ended {
            if ended.told.is_none() && !made.contains(&ended.job) {
                verdict.push(format!("job {} was told to be a backup and is none", ended.job));
            }
        }
        verdict.extend(self.why_holds_are_wrong());
        if let Some(first) = verdict.into_iter().next() {
            self.broken(|| first);
        }
        self.stats.add("backups", made.len() as u64);
        self.stats.add("writes", self.writes.len() as u64);
    }

    /// A backup covers all slots once at one cut, holds what the nodes held then, and every cause of what it holds.
    fn why_not_whole(&self, manifest: &Manifest, job: JobId, cut: Timestamp) -> Option<String> {
        let mut covered = SlotSet::EMPTY;
        let mut held = HashSet::new();
        if manifest.job != job || manifest.cut.at != cut {
            return Some(format!("the manifest of {job} is of {}", manifest.job));
        }
        for part in &manifest.parts {
            let name = &self.nodes[usize::from(part.node)].name;
            if part.at != cut || part.job != job || !covered.intersect(&part.slots).is_empty() {
                return Some(format!(
                    "part {} of {name} is of {}, or its slots are there twice",
                    part.region, part.at
                ));
            }
            if !self.part_has_base(part, &manifest.cut) {
                return Some(format!("part {} of {name} was read without the base of its cut", part.region));
            }
            covered = covered.union(&part.slots);
            let state = self.nodes[usize::from(part.node)].state(cut, &part.slots);
            if state != part.ids {
                return Some(format!("part {} of {name} holds {:?}, not {state:?}", part.region, part.ids));
            }
            held.extend(part.ids.iter().copied());
        }
        if covered != SlotSet::all() {
            return Some(format!("backup {job} lacks slots {}", SlotSet::all().minus(&covered)));
        }
        // Whatever was acknowledged before the last write that is in it was sent, is in it.
        let last_sent = held.iter().map(|id| self.writes[*id as usize].sent).max()?;
        let acknowledged = |w: &super::client::Written| w.acknowledged.is_some_and(|at| at < last_sent);
        let lost = (0..).zip(&self.writes).find(|(id, w): &(u32, _)| acknowledged(w) && !held.contains(id));
        lost.map(|(id, w)| {
            format!(
                "backup {job} at {cut} lacks write {id} ({w:?}), but holds one sent at {last_sent} ({} nodes)",
                manifest.nodes.len()
            )
        })
    }

    fn why_holds_are_wrong(&self) -> Option<String> {
        for node in &self.nodes {
            let over = node.held.iter().find(|(_, held)| **held > self.plan.budget + MS);
            if let Some((job, held)) = over {
                return Some(format!("job {job} held writes of {} for {held} us", node.name));
            }
            if node.hold.as_ref().is_some_and(|h| h.deadline + MS < self.now) {
                return Some(format!("{} is still held", node.name));
            }
        }
        let waits = self.writes.iter().find(|w| w.last && w.acknowledged.is_none());
        waits.map(|w| format!("a write after all the faults was not acknowledged: {w:?}"))
    }
}
