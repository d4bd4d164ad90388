//! What coordinators do to the repository: the real one, on a store in memory. Each request is carried out as a whole at
//! its time; what its coordinator knew when it was sent is stale by then, and the coordinator may be dead.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tidemark_coordinator::job::backup::core::{Core, Cut, Settings};
use tidemark_coordinator::job::backup::entry::{FailureEntry, append_backup, append_failure};
use tidemark_coordinator::job::backup::{cut_of, node_entries, tiling};
use tidemark_coordinator::repository::{JobRecorder, Ledger, Record, read_job};
use tidemark_proto::hash::{Hash, SetDigest};
use tidemark_proto::id::JobId;
use tidemark_proto::stored::job::{BackupBegun, BackupCut};
use tidemark_proto::stored::ledger::{Backup, Body, Failed, Policy};
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::stored::paths;
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, Timestamp};

use super::plan::MS;
use super::process::ToProcess;
use super::world::{Ev, World, tell};

/// A part as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartData {
    pub(super) job: JobId,
    pub(super) node: u16,
    pub(super) region: u16,
    pub(super) at: Timestamp,
    pub(super) slots: SlotSet,
    pub(super) ids: Vec<u32>,
    pub(super) digest: SetDigest,
    /// When it was read, in true time.
    pub(super) read: u64,
}

impl PartData {
    /// Whether both are the same part, read at any time.
    fn is(&self, other: &Self) -> bool {
        *self == Self { read: self.read, ..other.clone() }
    }
}

/// What the root of a backup names.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) job: JobId,
    pub(super) cut: Cut,
    pub(super) nodes: Vec<usize>,
    pub(super) parts: Vec<Arc<PartData>>,
}

/// A job that another coordinator left.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) job: JobId,
    pub(super) cut: Option<BackupCut>,
    pub(super) stored: Vec<PartEntry>,
    pub(super) revision: u64,
}

/// A request.
#[derive(Debug)]
pub(super) enum Op {
    TakeOver,
    Begin,
    Resume(Box<Left>),
    RecordCut(Box<Cut>),
    /// Parts so far become durable.
    Flush,
    /// All of them.
    Store,
    Policy,
    Append,
    Fail(u32, String),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Done {
    TookOver(Result<(u64, Vec<Left>)>),
    Began(Result<Box<Core>>),
    CutRecorded(Result<()>),
    Stored(Result<()>),
    /// The policy stands; the backup itself comes next.
    PolicyWritten,
    Committed(Result<()>),
    FailureWritten,
}

impl World<'_> {
    /// A request reaches the store.
    pub(super) fn io(&mut self, number: usize, run: u64, op: Op) {
        // What a dead coordinator had sent may still arrive.
        if !self.processes[number].alive && (matches!(op, Op::TakeOver) || self.chance(500)) {
            return;
        }
        if run != 0 && self.processes[number].run.as_ref().is_none_or(|r| r.serial != run) {
            return;
        }
        let done = match op {
            Op::TakeOver => Done::TookOver(self.take_over(number)),
            Op::Begin => Done::Began(self.begin(number).map(Box::new)),
            Op::Resume(left) => Done::Began(self.resume(number, *left).map(Box::new)),
            Op::RecordCut(cut) => Done::CutRecorded(self.record_cut(number, &cut)),
            Op::Flush => return drop(self.flush(number)),
            Op::Store => Done::Stored(self.flush(number)),
            Op::Policy => match self.policy(number) {
                Ok(()) => Done::PolicyWritten,
                Err(e) => Done::Committed(Err(e)),
            },
            Op::Append => Done::Committed(self.append(number)),
            Op::Fail(code, reason) => {
                let _ = self.fail(number, code, reason);
                Done::FailureWritten
            }
        };
        let delay = self.latency();
        self.after(delay, Ev::To(number, ToProcess::IoDone { run, done }));
    }

    pub(super) fn true_millis(&self) -> u64 {
        self.now / MS
    }

    /// As `Context::ledger`.
    fn fenced_ledger(&mut self, epoch: u64) -> Result<Ledger> {
        let (repository, cluster) = (&self.repository, &self.cluster);
        let now = self.true_millis();
        self.runtime.block_on(async {
            let highest = repository.highest_epoch().await?;
            if highest > epoch {
                return Err(Error::fenced(format!("epoch {epoch} is over: epoch {highest} has been taken")));
            }
            let mut ledger = Ledger::load(repository, cluster).await?;
            ledger.take_over(epoch, now, "sim").await?;
            Ok(ledger)
        })
    }

    /// As `recover::take_over`.
    fn take_over(&mut self, number: usize) -> Result<(u64, Vec<Left>)> {
        let epoch = self.runtime.block_on(self.repository.take_epoch(&number.to_string(), self.true_millis()))?;
        let ledger = self.fenced_ledger(epoch)?;
        let (repository, cluster) = (&self.repository, &self.cluster);
        let left = self.runtime.block_on(async {
            let listed = repository.store().list(&paths::jobs_dir(cluster)).await?;
            let mut ids: Vec<JobId> = listed.iter().filter_map(|(path, _)| paths::job_of(path)).collect();
            ids.dedup();
            let mut left = Vec::new();
            for job in ids.into_iter().filter(|id| !ledger.is_settled(*id)) {
                let (records, revision) = read_job(repository, cluster, &job).await?;
                let mut found = Left { job, cut: None, stored: Vec::new(), revision };
                for record in records {
                    match record {
                        Record::BackupCut(cut) => found.cut = Some(cut),
                        Record::Parts(parts) => found.stored.extend(parts.parts),
                        _ => {}
                    }
                }
                left.push(found);
            }
            Ok::<_, Error>(left)
        })?;
        tell!(self, "coordinator {number} finds {} open jobs", left.len());
        Ok((epoch, left))
    }

    fn settings(&self, number: usize, ledger: &Ledger) -> Settings {
        let run = self.processes[number].run.as_ref().expect("a job has settings");
        Settings {
            nodes: self.names_of(&run.nodes),
            hosts: run.nodes.iter().map(|n| (n % self.plan.hosts).to_string()).collect(),
            max_parallel_bases: self.plan.parallel_bases,
            others: Vec::new(),
            required: ledger.policy().map(|p| p.nodes.clone()).unwrap_or_default(),
            budget: Duration::from_micros(self.plan.budget),
            first_without_pause: self.plan.first_without_pause,
            max_clock_offset: Duration::from_millis(self.plan.max_clock_offset),
            last_cut: ledger.last_cut(),
            used: run.used,
        }
    }

    /// As `Driver::next_round`: the core of another round, with the nodes that are there.
    pub(super) fn next_core(&self, number: usize) -> Core {
        let ledger = self.processes[number].run.as_ref().and_then(|r| r.ledger.as_ref()).expect("with its job");
        Core::new(self.settings(number, ledger))
    }

    fn begin(&mut self, number: usize) -> Result<Core> {
        let epoch = self.processes[number].epoch;
        let ledger = self.fenced_ledger(epoch)?;
        let settings = self.settings(number, &ledger);
        let job = self.processes[number].run.as_ref().expect("it begins").job;
        let mut recorder = JobRecorder::new(&self.repository, &self.cluster, job, epoch, 0);
        let begun = BackupBegun { job, epoch, started_millis: self.true_millis(), manual: 1 };
        self.runtime.block_on(recorder.write(&Record::BackupBegun(begun)))?;
        let _ = self.begun.insert(job, 0);
        let run = self.processes[number].run.as_mut().expect("it begins");
        (run.ledger, run.recorder) = (Some(ledger), Some(recorder));
        Ok(Core::new(settings))
    }

    /// As `recover::run` and `backup::resume`.
    fn resume(&mut self, number: usize, left: Left) -> Result<Core> {
        let epoch = self.processes[number].epoch;
        let ledger = self.fenced_ledger(epoch)?;
        if ledger.is_settled(left.job) {
            return Err(Error::conflict("the ledger knows how this job ended"));
        }
        let run = self.processes[number].run.as_mut().expect("it resumes");
        run.ledger = Some(ledger);
        let Some(record) = left.cut else {
            let error = Error::cancelled("the coordinator stopped before the cut of this backup: take it again");
            self.stats.note("jobs found before their cut");
            let _ = self.fail(number, error.kind().code(), error.report());
            return Err(error);
        };
        self.stats.note("jobs resumed after their cut");
        let cut = cut_of(&record);
        let index = |name: &str| self.nodes.iter().position(|n| n.name == name).expect("a node of the world");
        run.nodes = record.nodes.iter().map(|n| index(n.node.as_str())).collect();
        run.recorder = Some(JobRecorder::new(&self.repository, &self.cluster, left.job, epoch, left.revision));
        for entry in &left.stored {
            let place = (entry.node, entry.region);
            let part = self.packs.get(&(left.job, place.0, place.1)).expect("recorded parts are durable").clone();
            if part.digest != entry.digest {
                return Err(Error::bug("a stored part is not what its record says"));
            }
            let _ = run.received.insert(place, part);
        }
        self.stats.add("parts that need not be sent again", left.stored.len() as u64);
        let ledger = self.processes[number].run.as_ref().and_then(|r| r.ledger.as_ref()).expect("just put");
        Ok(Core::resumed(self.settings(number, ledger), cut))
    }

    /// As `Driver::begin_ingest`.
    fn record_cut(&mut self, number: usize, cut: &Cut) -> Result<()> {
        let run = self.processes[number].run.as_mut().expect("it has a cut");
        let recorder = run.recorder.as_mut().expect("with its job");
        if recorder.revision() > 1 {
            return Ok(());
        }
        let names: Vec<_> = run.nodes.iter().map(|n| self.names[*n].clone()).collect();
        let versions = vec![String::from("1"); names.len()];
        let record = BackupCut {
            job: run.job,
            engine: "embedded".into(),
            slots_per_region: self.plan.slots_per_region,
            cut: cut.at,
            attempt: cut.attempt,
            parent: Hash::ZERO,
            nodes: node_entries(&names, &versions, cut),
        };
        self.runtime.block_on(recorder.write(&Record::BackupCut(record)))
    }

    /// Packs first, then the job record.
    fn flush(&mut self, number: usize) -> Result<()> {
        let Some(cut) = self.cut_of_run(number) else { return Ok(()) };
        let run = self.processes[number].run.as_mut().expect("it has a cut");
        let mut entries = Vec::new();
        for place in std::mem::take(&mut run.unstored) {
            let part = &run.received[&place];
            let old = self.packs.insert((run.job, place.0, place.1), part.clone());
            if let Some(old) = old.filter(|old| !old.is(part)) {
                self.broken = Some(format!("a part was sent again with another content: {old:?}, {part:?}"));
                return Ok(());
            }
            entries.push(entry_of(part));
        }
        let recorder = run.recorder.as_mut().expect("with its job");
        if entries.is_empty() {
            return Ok(());
        }
        self.runtime.block_on(recorder.parts(cut.at, Hash::ZERO, entries))
    }

    /// The first step of `Driver::commit`.
    fn policy(&mut self, number: usize) -> Result<()> {
        let (epoch, now) = (self.processes[number].epoch, self.true_millis());
        let nodes = self.names_of(&self.processes[number].run.as_ref().expect("it commits").nodes);
        let policy = Policy { engine: "embedded".into(), slots_per_region: self.plan.slots_per_region, nodes };
        let ledger = self.processes[number].run.as_mut().and_then(|r| r.ledger.as_mut()).expect("with its job");
        if ledger.policy().is_none_or(|p| *p != policy) {
            let body = Body::Policy(policy);
            let _ = self.runtime.block_on(ledger.append(epoch, now, &body, |_| Ok(())))?;
        }
        Ok(())
    }

    /// The second one, `Draft::commit`.
    fn append(&mut self, number: usize) -> Result<()> {
        let cut = self.cut_of_run(number).ok_or_else(|| Error::bug("committing before the cut"))?;
        let (epoch, now) = (self.processes[number].epoch, self.true_millis());
        let run = self.processes[number].run.as_mut().expect("it commits");
        let mut parts: Vec<Arc<PartData>> = run.received.values().cloned().collect();
        parts.sort_by_key(|p| p.slots.ranges().first().map_or(0, |r| r.0));
        let places: Vec<u16> = run.nodes.iter().map(|n| *n as u16).collect();
        let entries: Vec<PartEntry> = parts
            .iter()
            .map(|p| {
                let node = places.iter().position(|n| *n == p.node).expect("of this job") as u16;
                PartEntry { node, ..entry_of(p) }
            })
            .collect();
        let taken: Vec<SlotSet> = cut.nodes.iter().map(|n| n.held.ownership.slots.clone()).collect();
        tiling::parts(&entries, &taken).map_err(|e| e.context("the backup is not whole"))?;
        let root = Hash::of(&[&run.job.0[..], &epoch.to_le_bytes(), &run.serial.to_le_bytes()].concat());
        let manifest = Manifest { job: run.job, cut: cut.clone(), nodes: run.nodes.clone(), parts };
        let _ = self.manifests.insert(root, manifest);
        let (job, ledger) = (run.job, run.ledger.as_mut().expect("with its job"));
        let backup = Backup { job, cut: cut.at, root, parent: Hash::ZERO };
        let done = self.runtime.block_on(append_backup(ledger, (epoch, now), backup, &HashSet::new()));
        let Err(e) = done else { return Ok(()) };
        if e.kind() == ErrorKind::Fenced {
            self.stats.note("commits refused to a fenced coordinator");
        }
        match self.fail(number, e.kind().code(), e.report()) {
            Some(FailureEntry::Settled(Some(stands))) if stands == root => Ok(()),
            _ => Err(e),
        }
    }

    /// As `record_failure`.
    fn fail(&mut self, number: usize, code: u32, reason: String) -> Option<FailureEntry> {
        let (epoch, now) = (self.processes[number].epoch, self.true_millis());
        let run = self.processes[number].run.as_mut()?;
        let failed = Failed { job: run.job, started_millis: 0, code, reason, manual: 1 };
        let ledger = run.ledger.as_mut()?;
        Some(self.runtime.block_on(append_failure(ledger, (epoch, now), failed)))
    }
}

fn entry_of(part: &PartData) -> PartEntry {
    PartEntry {
        region: part.region,
        node: part.node,
        slots: part.slots.clone(),
        lower: Vec::new(),
        upper: Vec::new(),
        digest: part.digest,
        live_bytes: 0,
        runs: Vec::new(),
    }
}
