//! Coordinators as processes: they start, take over, get requests, die at any step, sleep and wake up with everything
//! stale.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use rand::RngExt;
use tidemark_common::clock::Hlc;
use tidemark_coordinator::job::backup::core::{Action, Core, Event, Used};
use tidemark_coordinator::repository::{JobRecorder, Ledger};
use tidemark_proto::id::JobId;

use super::durable::{Done, Left, Op, PartData};
use super::net::{Answer, Call};
use super::plan::{AT_COMMIT, Fault, MS};
use super::wall::Wall;
use super::world::{Ev, World, tell};

/// Somebody who finds no coordinator asks again after so long.
const ASK_AGAIN: u64 = 100 * MS;

/// Something that a coordinator hears of.
pub(super) enum ToProcess {
    Reply(u64, Answer),
    /// An answer once more, which may be of an earlier attempt.
    Again {
        job: JobId,
        attempt: u32,
        node: usize,
        answer: Answer,
    },
    /// A command got no answer in its time.
    Deadline(u64),
    /// The node of a command has connected anew.
    ConnectedAgain(u64),
    Part(u64, Arc<PartData>),
    Waited(u64),
    /// The driver of a run looks whether all nodes are there for another round.
    Gathered {
        run: u64,
        waited: u64,
    },
    NextUpload {
        run: u64,
        n: usize,
        attempt: u32,
        waited: u64,
    },
    IoDone {
        run: u64,
        done: Done,
    },
    Asked,
}

/// A command that is out, with its place in the job and the attempt at an upload.
pub(super) struct Open {
    pub(super) call: Call,
    pub(super) n: usize,
    pub(super) upload: u32,
}

/// A job that runs.
pub(super) struct Run {
    pub(super) serial: u64,
    pub(super) job: JobId,
    /// Who takes part, by their numbers in the world.
    pub(super) nodes: Vec<usize>,
    pub(super) core: Option<Core>,
    pub(super) ledger: Option<Ledger>,
    pub(super) recorder: Option<JobRecorder>,
    pub(super) open: HashMap<u64, Open>,
    pub(super) received: BTreeMap<(u16, u16), Arc<PartData>>,
    pub(super) unstored: Vec<(u16, u16)>,
    pub(super) resumed: bool,
    /// While the cut is being recorded: what the core wants after that, and what happened meanwhile.
    pub(super) parked: Option<Vec<Action>>,
    pub(super) backlog: VecDeque<Event>,
    pub(super) attempt: u32,
    /// What earlier rounds of the job used up.
    pub(super) used: Used,
    pub(super) cutting: bool,
    pub(super) cancelled: bool,
    pub(super) outcome: Option<Result<(), tidemark_proto::Error>>,
}

/// A coordinator.
pub(super) struct Process {
    pub(super) epoch: u64,
    wall: Arc<Wall>,
    pub(super) hlc: Hlc,
    pub(super) alive: bool,
    pub(super) fenced: bool,
    asleep_until: u64,
    pub(super) slept: bool,
    steps: u64,
    /// Rounds of its last job that others followed.
    pub(super) rounds: u32,
    pub(super) run: Option<Run>,
    pub(super) left: VecDeque<Left>,
    asked: u32,
    /// Calls by job and node survive the job: an answer may still come.
    started: bool,
}

impl Process {
    /// Commands to a node that have no answer yet.
    pub(super) fn open_calls(&self, node: usize) -> Vec<u64> {
        let open = self.run.iter().flat_map(|r| r.open.iter()).filter(|(_, o)| o.call.node == node);
        let mut calls: Vec<u64> = open.map(|(id, _)| *id).collect();
        calls.sort_unstable();
        calls
    }

    fn is_busy(&self) -> bool {
        self.alive && (self.run.is_some() || !self.left.is_empty() || self.asked > 0 || !self.started)
    }
}

impl World<'_> {
    pub(super) fn start_process(&mut self) {
        self.starting -= 1;
        let number = self.processes.len();
        let offset = self.plan.coordinators[number % self.plan.coordinators.len()];
        let wall = Wall::new(offset, 0);
        wall.turn(self.now);
        self.processes.push(Process {
            epoch: 0,
            hlc: Hlc::new(wall.clone()),
            wall,
            alive: true,
            fenced: false,
            asleep_until: 0,
            slept: false,
            steps: 0,
            rounds: 0,
            run: None,
            left: VecDeque::new(),
            asked: 0,
            started: false,
        });
        tell!(self, "coordinator {number} starts");
        let delay = self.latency();
        self.after(delay, Ev::Io { process: number, run: 0, op: Op::TakeOver });
    }

    /// Nothing is under way and nothing will be asked for.
    pub(super) fn is_over(&self) -> bool {
        self.asks == 0 && self.starting == 0 && !self.processes.iter().any(Process::is_busy)
    }

    /// Whether some coordinator takes a cut just now.
    pub(super) fn is_cutting(&self) -> bool {
        self.processes.iter().any(|p| p.alive && p.run.as_ref().is_some_and(|r| r.cutting))
    }

    /// Somebody asks the newest coordinator for a backup, or by mistake another one that still runs.
    pub(super) fn ask(&mut self) {
        let alive: Vec<usize> = (0..self.processes.len()).filter(|p| self.processes[*p].alive).collect();
        let mistaken = self.chance(150);
        let Some(newest) = alive.last().copied() else { return self.after(ASK_AGAIN, Ev::Ask) };
        let process = if mistaken { alive[self.plan.rng.random_range(0..alive.len())] } else { newest };
        self.asks -= 1;
        self.processes[process].asked += 1;
        self.after(0, Ev::To(process, ToProcess::Asked));
    }

    pub(super) fn reaches_process(&mut self, number: usize, event: ToProcess) {
        let now = self.now;
        let process = &mut self.processes[number];
        process.wall.turn(now);
        if !process.alive {
            return;
        }
        if process.asleep_until > now {
            let at = process.asleep_until;
            return self.at(at, Ev::To(number, event));
        }
        process.steps += 1;
        let step = process.steps;
        let commits = matches!(event, ToProcess::IoDone { done: Done::PolicyWritten, .. });
        let due = |f: &Fault| match f {
            Fault::Crash(s, _) | Fault::Suspend(s, ..) | Fault::Cancel(s) => {
                *s == step || *s == AT_COMMIT && commits
            }
            _ => false,
        };
        if let Some(i) = self.plan.faults.iter().position(due) {
            match self.plan.faults.swap_remove(i) {
                Fault::Crash(_, back) => return self.crash_process(number, back),
                Fault::Suspend(_, lasts, over) => {
                    tell!(self, "coordinator {number} sleeps for {} ms", lasts / MS);
                    self.stats.note("coordinators that slept");
                    let process = &mut self.processes[number];
                    (process.asleep_until, process.slept) = (now + lasts, true);
                    if let Some(delay) = over {
                        self.start_process_in(delay);
                    }
                    return self.at(now + lasts, Ev::To(number, event));
                }
                _ => {
                    if let Some(run) =
                        self.processes[number].run.as_mut().filter(|r| r.core.is_some() && !r.cancelled)
                    {
                        run.cancelled = true;
                        tell!(self, "somebody cancels the job of coordinator {number}");
                        self.stats.note("cancels");
                        self.feed(number, Event::Cancel);
                    }
                }
            }
        }
        self.heard(number, event);
        self.next_run(number);
    }

    fn crash_process(&mut self, number: usize, back: u64) {
        tell!(self, "coordinator {number} dies");
        self.stats.note("crashes of coordinators");
        self.processes[number].alive = false;
        // Who asked asks again.
        let lost = std::mem::take(&mut self.processes[number].asked);
        self.asks += lost;
        for _ in 0..lost {
            self.after(back + ASK_AGAIN, Ev::Ask);
        }
        self.start_process_in(back);
    }

    /// Begins what waits: first the jobs that were left, then those that were asked for.
    fn next_run(&mut self, number: usize) {
        let process = &mut self.processes[number];
        if process.fenced {
            process.left.clear();
            process.asked = 0;
            return;
        }
        if process.run.is_some() || !process.started {
            return;
        }
        let op = if let Some(left) = process.left.pop_front() {
            Op::Resume(Box::new(left))
        } else if process.asked > 0 {
            process.asked -= 1;
            Op::Begin
        } else {
            return;
        };
        let serial = self.next_serial();
        let job = match &op {
            Op::Resume(left) => left.job,
            _ => JobId::from_u128(self.plan.rng.random()),
        };
        let nodes = self.connected();
        tell!(self, "coordinator {number} begins job {job} (run {serial})");
        self.processes[number].run = Some(Run {
            serial,
            job,
            nodes,
            core: None,
            ledger: None,
            recorder: None,
            open: HashMap::new(),
            received: BTreeMap::new(),
            unstored: Vec::new(),
            resumed: matches!(op, Op::Resume(_)),
            parked: None,
            backlog: VecDeque::new(),
            attempt: 0,
            used: Used::default(),
            cutting: false,
            cancelled: false,
            outcome: None,
        });
        self.request(number, op);
    }

    /// Sends a request to the repository.
    pub(super) fn request(&mut self, number: usize, op: Op) {
        let delay = self.latency();
        let run = self.processes[number].run.as_ref().map_or(0, |r| r.serial);
        self.after(delay, Ev::Io { process: number, run, op });
    }

    pub(super) fn took_over(&mut self, number: usize, taken: tidemark_proto::Result<(u64, Vec<Left>)>) {
        let process = &mut self.processes[number];
        process.started = true;
        match taken {
            Ok((epoch, left)) => {
                process.epoch = epoch;
                process.left = left.into();
                tell!(self, "coordinator {number} has epoch {epoch}");
                if number > 0 {
                    self.stats.note("takeovers");
                }
            }
            Err(_) => process.fenced = true,
        }
    }
}
