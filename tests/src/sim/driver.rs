//! The driver of a job in virtual time: does what the real core wants, as `coordinator/src/job/backup/driver.rs` does. The
//! deadlines and attempts are the driver's own constants. Settling is sent and not waited for; the part of it that counts
//! here is the end of the pin.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;
use tidemark_coordinator::fleet::DESCRIBE_DEADLINE;
use tidemark_coordinator::job::backup::core::{Action, Core, Cut, Event};
use tidemark_coordinator::job::backup::{
    BASE_DEADLINE, CUT_DEADLINE, UPLOAD_ATTEMPTS, UPLOAD_DEADLINE, UPLOAD_RETRY_WAIT,
};
use tidemark_proto::{Error, ErrorKind, Result};

use super::durable::{Done, Op};
use super::judge::Ended;
use super::net::{Answer, Call, What};
use super::plan::SEC;
use super::process::{Open, Run, ToProcess};
use super::world::{Ev, World, tell};

/// A dead agent counts as connected for so long: the transport's idle time-out.
const IDLE: u64 = 20 * SEC;
/// A job waits so long for a node that is away (`backup.node_patience_seconds`).
pub(super) const PATIENCE: u64 = 60 * SEC;
/// The job record is written when so many parts have come.
const FLUSH_PARTS: usize = 3;

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

impl World<'_> {
    pub(super) fn is_connected(&self, node: usize) -> bool {
        self.nodes[node].up || self.now.saturating_sub(self.down_since[node]) < IDLE
    }

    pub(super) fn connected(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.is_connected(*n)).collect()
    }

    fn run_of(&mut self, number: usize) -> Option<&mut Run> {
        self.processes[number].run.as_mut()
    }

    pub(super) fn heard(&mut self, number: usize, event: ToProcess) {
        match event {
            ToProcess::Asked => {}
            ToProcess::Reply(id, answer) => {
                let open = self.run_of(number).and_then(|r| r.open.remove(&id));
                match open {
                    Some(open) => self.answered(number, open, answer),
                    None => self.stats.note("answers that came too late"),
                }
            }
            ToProcess::Again { job, attempt, node, answer } => self.again(number, (job, attempt, node), answer),
            ToProcess::Deadline(id) => self.failed(number, id, "no word"),
            ToProcess::ConnectedAgain(id) => self.failed(number, id, "the agent connected again"),
            ToProcess::Part(id, part) => {
                let Some(run) = self.run_of(number).filter(|r| r.open.contains_key(&id)) else { return };
                let place = (part.node, part.region);
                if run.received.insert(place, part).is_none() {
                    run.unstored.push(place);
                }
                if run.unstored.len() == FLUSH_PARTS {
                    self.request(number, Op::Flush);
                }
            }
            ToProcess::Waited(serial) => {
                if self.run_of(number).is_some_and(|r| r.serial == serial) {
                    self.feed(number, Event::Waited);
                }
            }
            ToProcess::Gathered { run, waited } => {
                if self.run_of(number).is_some_and(|r| r.serial == run && r.outcome.is_none()) {
                    self.gather(number, waited);
                }
            }
            ToProcess::NextUpload { run, n, attempt, waited } => {
                if self.run_of(number).is_some_and(|r| r.serial == run && r.outcome.is_none()) {
                    self.upload_to(number, n, attempt, waited);
                }
            }
            ToProcess::IoDone { run, done } => match done {
                Done::TookOver(taken) => self.took_over(number, taken),
                done if self.run_of(number).is_some_and(|r| r.serial == run) => self.io_done(number, done),
                _ => {}
            },
        }
    }

    fn failed(&mut self, number: usize, id: u64, why: &str) {
        let Some(open) = self.run_of(number).and_then(|r| r.open.remove(&id)) else { return };
        self.stats.note("commands without an answer");
        let error = Error::retry(why).context(format!("node {}", self.nodes[open.call.node].name));
        if let Some(answer) = Answer::failed(&open.call.what, error) {
            self.answered(number, open, answer);
        }
    }

    fn again(
        &mut self,
        number: usize,
        (job, attempt, node): (tidemark_proto::id::JobId, u32, usize),
        answer: Answer,
    ) {
        let Some(run) = self.run_of(number).filter(|r| r.job == job && r.core.is_some()) else { return };
        let Some(n) = run.nodes.iter().position(|i| *i == node) else { return };
        let event = match answer {
            // A driver hears only of its own round.
            Answer::Described(_) if run.used.rounds > 0 => return,
            Answer::Described(a) => Event::Described(n, a),
            Answer::Held(a) => Event::Held(n, attempt, a),
            Answer::Sealed(a) => Event::Sealed(n, attempt, a),
            Answer::Released(a) => Event::Released(n, attempt, a),
            Answer::Prepared(_) | Answer::Uploaded(_) => return,
        };
        self.stats.note("answers that came twice");
        self.feed(number, event);
    }

    fn answered(&mut self, number: usize, open: Open, answer: Answer) {
        let (n, attempt) = (open.n, open.call.attempt);
        let event = match answer {
            Answer::Described(a) => Event::Described(n, a),
            Answer::Prepared(a) => Event::Prepared(n, a),
            Answer::Held(a) => Event::Held(n, attempt, a),
            Answer::Sealed(a) => Event::Sealed(n, attempt, a),
            Answer::Released(a) => Event::Released(n, attempt, a),
            Answer::Uploaded(Err(e)) if e.kind() == ErrorKind::Retry && open.upload < UPLOAD_ATTEMPTS => {
                self.stats.note("uploads that broke");
                let run = self.run_of(number).expect("it has the call").serial;
                let next = ToProcess::NextUpload { run, n, attempt: open.upload + 1, waited: 0 };
                return self.after(micros(UPLOAD_RETRY_WAIT), Ev::To(number, next));
            }
            Answer::Uploaded(a) => Event::Uploaded(n, a),
        };
        self.feed(number, event);
    }

    /// Gives the core an event, and does what it wants.
    pub(super) fn feed(&mut self, number: usize, event: Event) {
        let process = &mut self.processes[number];
        let Some(run) = process.run.as_mut() else { return };
        if run.outcome.is_some() {
            return;
        }
        if run.parked.is_some() {
            return run.backlog.push_back(event);
        }
        let Some(core) = run.core.as_mut() else { return };
        if self.trace {
            tell!(self, "coordinator {number} hears {}", shown(&event));
        }
        let actions = core.step(event, process.hlc.now());
        self.act(number, actions);
    }

    fn act(&mut self, number: usize, actions: Vec<Action>) {
        let mut actions = actions.into_iter();
        while let Some(action) = actions.next() {
            match action {
                Action::CutDone(cut) => {
                    self.cut_accepted(number, &cut);
                    let run = self.run_of(number).expect("a job acts");
                    run.cutting = false;
                    run.parked = Some(actions.collect());
                    return self.request(number, Op::RecordCut(cut));
                }
                Action::Settle(committed) => return self.settle(number, committed),
                Action::Again => return self.again_with_others(number),
                other => self.act_one(number, other),
            }
        }
    }

    fn act_one(&mut self, number: usize, action: Action) {
        let run = self.run_of(number).expect("a job acts");
        let (serial, core) = (run.serial, run.core.as_ref().expect("it acts"));
        match action {
            Action::Describe(n) => self.call(number, (n, 0, 0), What::Describe, micros(DESCRIBE_DEADLINE)),
            // The transport misses a node long before the deadline of a base that says nothing.
            Action::Prepare(n) => {
                self.call(number, (n, 0, 0), What::Prepare, micros(BASE_DEADLINE).min(IDLE));
            }
            // Nodes of the model have nothing to wait for before their base.
            Action::PrepareEarly(_) | Action::UploadEarly(..) => {}
            Action::Hold(n, attempt, budget) => {
                run.cutting = true;
                self.held_for(number, attempt, micros(budget));
                let deadline = micros(budget + CUT_DEADLINE);
                self.call(number, (n, attempt, 0), What::Hold(micros(budget)), deadline);
            }
            Action::Seal(n, attempt, at) => {
                self.call(number, (n, attempt, 0), What::Seal(at), micros(CUT_DEADLINE));
            }
            Action::Release(n, attempt) => {
                self.call(number, (n, attempt, 0), What::Release, micros(CUT_DEADLINE));
            }
            Action::Wait(least) => {
                let why = core.void_cut().to_owned();
                self.void(&why);
                let wait = least.mul_f64(1.0 + self.plan.rng.random::<f64>());
                self.after(micros(wait), Ev::To(number, ToProcess::Waited(serial)));
            }
            // Slots move at once here; the core looks again until they have stayed for a while.
            Action::WaitForSlots(least) => {
                let wait = least.mul_f64(1.0 + self.plan.rng.random::<f64>());
                self.after(micros(wait), Ev::To(number, ToProcess::Waited(serial)));
            }
            Action::Upload(n) => self.upload_to(number, n, 1, 0),
            Action::Store => self.request(number, Op::Store),
            Action::Commit => self.request(number, Op::Policy),
            Action::CutDone(_) | Action::Settle(_) | Action::Again => unreachable!("done above"),
        }
    }

    pub(super) fn call(
        &mut self,
        number: usize,
        (n, attempt, upload): (usize, u32, u32),
        what: What,
        deadline: u64,
    ) {
        let id = self.next_serial();
        let process = &mut self.processes[number];
        let (epoch, run) = (process.epoch, process.run.as_mut().expect("a job calls"));
        let call = Call { id, process: number, job: run.job, node: run.nodes[n], epoch, attempt, what };
        if !matches!(call.what, What::Settle) {
            let _ = run.open.insert(id, Open { call: call.clone(), n, upload });
            let at = if self.is_connected(call.node) { deadline } else { 0 };
            self.after(at, Ev::To(number, ToProcess::Deadline(id)));
        }
        self.send(call);
    }

    fn upload_to(&mut self, number: usize, n: usize, attempt: u32, waited: u64) {
        let run = self.run_of(number).expect("a job uploads");
        let (serial, node) = (run.serial, run.nodes[n]);
        if !self.is_connected(node) {
            if waited >= PATIENCE {
                return self.feed(number, Event::Uploaded(n, Err(Error::retry("a node has not connected"))));
            }
            let next = ToProcess::NextUpload { run: serial, n, attempt, waited: waited + SEC };
            return self.after(SEC, Ev::To(number, next));
        }
        let run = self.run_of(number).expect("still there");
        let cut = run.core.as_ref().and_then(|c| c.cut()).expect("after the cut");
        let own = |(node, _): &&(u16, u16)| usize::from(*node) == run.nodes[n];
        let stored: BTreeSet<u16> = run.received.keys().filter(own).map(|(_, region)| *region).collect();
        let what = What::Upload { at: cut.at, slots: cut.nodes[n].held.ownership.slots.clone(), stored };
        self.call(number, (n, attempt, attempt), what, micros(UPLOAD_DEADLINE));
    }

    /// A new core begins; a cancel that came before it counts.
    pub(super) fn begin_core(&mut self, number: usize, core: Core, cancelled: bool) {
        self.run_of(number).expect("it begins").core = Some(core);
        self.feed(number, if cancelled { Event::Cancel } else { Event::Start });
    }

    pub(super) fn io_done(&mut self, number: usize, done: Done) {
        match done {
            Done::TookOver(_) => {}
            Done::Began(Ok(core)) => {
                self.begin_core(number, *core, false);
            }
            Done::Began(Err(e)) => self.over(number, Err(e)),
            Done::CutRecorded(result) => {
                let run = self.run_of(number).expect("it has a cut");
                let (parked, backlog) = (run.parked.take(), std::mem::take(&mut run.backlog));
                if let Err(e) = result {
                    self.feed(number, Event::Uploaded(0, Err(e)));
                } else {
                    self.act(number, parked.unwrap_or_default());
                }
                backlog.into_iter().for_each(|event| self.feed(number, event));
            }
            Done::Stored(result) => self.feed(number, Event::Stored(result)),
            Done::PolicyWritten => self.request(number, Op::Append),
            Done::Committed(result) => self.feed(number, Event::Committed(result)),
            Done::FailureWritten => {
                let outcome = self.run_of(number).and_then(|r| r.outcome.take());
                self.over(number, outcome.expect("it failed"));
            }
        }
    }

    fn settle(&mut self, number: usize, committed: bool) {
        let run = self.run_of(number).expect("it ends");
        let core = run.core.as_mut().expect("it ends");
        let outcome = core.take_outcome().unwrap_or_else(|| Err(Error::bug("a job without outcome")));
        run.open.clear();
        let nodes = run.nodes.len();
        if outcome.is_ok() != committed {
            self.broken(|| format!("settled with committed = {committed}, but the outcome is {outcome:?}"));
        }
        for n in 0..nodes {
            self.call(number, (n, 0, 0), What::Settle, 0);
        }
        match outcome {
            Ok(()) => self.over(number, Ok(())),
            Err(e) => {
                let (code, reason) = (e.kind().code(), e.report());
                let run = self.run_of(number).expect("it ends");
                (run.cutting, run.outcome) = (false, Some(Err(e)));
                self.request(number, Op::Fail(code, reason));
            }
        }
    }

    /// The job has ended for its coordinator.
    fn over(&mut self, number: usize, outcome: Result<()>) {
        let process = &mut self.processes[number];
        let run = process.run.take().expect("a job ends");
        process.rounds = run.used.rounds;
        let told = outcome.as_ref().err().map(Error::report);
        tell!(self, "coordinator {number} ended job {}: {told:?}", run.job);
        if outcome.as_ref().is_err_and(|e| e.kind() == ErrorKind::Fenced) {
            process.fenced = true;
            self.stats.note("coordinators that found themselves fenced");
        }
        let ended = Ended { job: run.job, epoch: process.epoch, told, resumed: run.resumed };
        self.job_ended(number, &ended, outcome.as_ref().err());
        self.ended.push(ended);
    }

    /// The policy of the nodes of a cut.
    pub(super) fn names_of(&self, nodes: &[usize]) -> Vec<String> {
        nodes.iter().map(|n| self.nodes[*n].name.clone()).collect()
    }

    pub(super) fn cut_of_run(&self, number: usize) -> Option<Cut> {
        self.processes[number].run.as_ref()?.core.as_ref()?.cut().cloned()
    }
}

fn shown(event: &Event) -> String {
    let mut text = format!("{event:?}");
    text.truncate(text.floor_char_boundary(160));
    text
}
