//! Nodes that take a base before the cut and keep the log from it, as the engine `redis` does: the state at the cut is base
//! and log together, so that a cut is worth something only where both stand from before it until the parts are sent.
//! And the rounds of a job that such nodes may need.

use tidemark_coordinator::job::backup::core::Cut;
use tidemark_proto::id::JobId;
use tidemark_proto::{Error, Result};

use super::driver::PATIENCE;
use super::durable::PartData;
use super::net::What;
use super::node::Node;
use super::plan::SEC;
use super::process::ToProcess;
use super::world::{Ev, World, tell};

/// A base with its log, in true time.
#[derive(Debug, Clone, Copy)]
struct Base {
    job: JobId,
    /// When it was whole; `None` while it is taken.
    from: Option<u64>,
    lost: Option<u64>,
}

/// All that a node ever had; the last one may stand.
#[derive(Debug, Default)]
pub(super) struct Bases(Vec<Base>);

impl Node {
    fn last_base(&mut self) -> Option<&mut Base> {
        self.bases.as_mut()?.0.last_mut().filter(|b| b.lost.is_none())
    }

    /// Since when the base of `job` stands.
    pub(super) fn base_of(&self, job: JobId) -> Option<u64> {
        self.bases.as_ref()?.0.last().filter(|b| b.lost.is_none() && b.job == job)?.from
    }

    /// Begins a base; one of another job is dropped.
    pub(super) fn begin_base(&mut self, job: JobId, now: u64) -> Result<()> {
        if self.restoring {
            return Err(Error::conflict("the store is restoring"));
        }
        let _ = self.lose_base(now);
        if let Some(bases) = &mut self.bases {
            bases.0.push(Base { job, from: None, lost: None });
        }
        Ok(())
    }

    /// The base that was begun is whole.
    pub(super) fn take_base(&mut self, job: JobId, now: u64) -> Result<()> {
        match self.last_base() {
            Some(base) if base.job == job => {
                let _ = base.from.get_or_insert(now);
                Ok(())
            }
            _ => Err(Error::retry("the base was lost while it was taken")),
        }
    }

    /// Base and log are gone; answers whether there was one.
    pub(super) fn lose_base(&mut self, now: u64) -> bool {
        let base = self.last_base();
        base.map(|b| b.lost = Some(now)).is_some()
    }

    /// The job has ended.
    pub(super) fn drop_base(&mut self, job: JobId, now: u64) {
        if let Some(base) = self.last_base().filter(|b| b.job == job) {
            base.lost = Some(now);
        }
    }

    /// Nodes without bases need none.
    pub(super) fn check_base(&self, job: JobId) -> Result<()> {
        match self.bases.is_none() || self.base_of(job).is_some() {
            true => Ok(()),
            false => Err(Error::conflict("no base of this job: prepare first")),
        }
    }

    /// For the judge: whether one base of `job` stood from one moment to the other.
    fn had_base(&self, job: JobId, from: u64, to: u64) -> bool {
        let Some(bases) = &self.bases else { return true };
        let covers = |b: &Base| b.from.is_some_and(|t| t <= from) && b.lost.is_none_or(|t| t > to);
        bases.0.iter().any(|b| b.job == job && covers(b))
    }
}

impl World<'_> {
    /// As `Driver::next_round`: the run goes on with the nodes that are there, when all are, or after the patience of a job.
    pub(super) fn again_with_others(&mut self, number: usize) {
        self.stats.note("rounds that began again");
        let run = self.processes[number].run.as_mut().expect("it begins again");
        let core = run.core.take().expect("it acts");
        tell!(self, "coordinator {number} begins again: {}", core.void_cut());
        run.used = core.used();
        run.cutting = false;
        run.open.clear();
        self.gather(number, 0);
    }

    pub(super) fn gather(&mut self, number: usize, waited: u64) {
        let run = self.processes[number].run.as_ref().expect("it gathers");
        let (serial, cancelled) = (run.serial, run.cancelled);
        if self.connected().len() < self.nodes.len() && waited < PATIENCE && !cancelled {
            return self.after(SEC, Ev::To(number, ToProcess::Gathered { run: serial, waited: waited + SEC }));
        }
        let there = self.connected();
        let run = self.processes[number].run.as_ref().expect("still there");
        let gone: Vec<usize> = (0..run.nodes.len()).filter(|n| !there.contains(&run.nodes[*n])).collect();
        for n in gone {
            self.call(number, (n, 0, 0), What::Settle, 0);
        }
        self.processes[number].run.as_mut().expect("still there").nodes = there;
        let core = self.next_core(number);
        self.begin_core(number, core, cancelled);
    }

    /// The judge: a cut is of nodes whose base stood from before the first reading until after the second.
    pub(super) fn why_without_base(&self, job: JobId, cut: &Cut, nodes: &[usize]) -> Option<String> {
        let without = nodes.iter().find(|n| {
            let readings = self.readings.get(&(job, cut.attempt, **n)).copied().unwrap_or_default();
            let (from, to) = (readings.held.unwrap_or(0), readings.sealed.unwrap_or(u64::MAX));
            !self.nodes[**n].had_base(job, from, to)
        });
        without.map(|n| format!("{} had no base that covers it", self.nodes[*n].name))
    }

    /// The judge: a part was read from the base and log that were there at the cut.
    pub(super) fn part_has_base(&self, part: &PartData, cut: &Cut) -> bool {
        let node = usize::from(part.node);
        let readings = self.readings.get(&(part.job, cut.attempt, node)).copied().unwrap_or_default();
        self.nodes[node].had_base(part.job, readings.held.unwrap_or(0), part.read)
    }
}
