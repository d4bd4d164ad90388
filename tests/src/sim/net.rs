//! The network between coordinators and nodes, and what a node does with a command.

use std::collections::BTreeSet;
use std::sync::Arc;

use rand::RngExt;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::id::JobId;
use tidemark_proto::slot::RegionMap;
use tidemark_proto::wire::control::{Description, Held, Position, Released, Sealed};
use tidemark_proto::{Error, Incarnation, Result, SlotSet, Timestamp};

use super::durable::PartData;
use super::node::Holding;
use super::plan::{Fault, MS};
use super::process::ToProcess;
use super::world::{Ev, World, tell};

/// A message that is slow takes so many times longer.
const SLOW_FACTOR: u64 = 100;
/// Time that a pin takes to become durable.
const PIN: (u64, u64) = (100, 3 * MS);
/// Time that a base takes.
const BASE: (u64, u64) = (MS, 400 * MS);
/// Time that a part takes to be built.
const PART: (u64, u64) = (200, 8 * MS);

/// A command under way.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) id: u64,
    pub(super) process: usize,
    pub(super) job: JobId,
    pub(super) node: usize,
    pub(super) epoch: u64,
    pub(super) attempt: u32,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Describe,
    /// Take a base.
    Prepare,
    /// Budget in microseconds.
    Hold(u64),
    Seal(Timestamp),
    Release,
    Upload {
        at: Timestamp,
        slots: SlotSet,
        stored: BTreeSet<u16>,
    },
    Settle,
}

#[derive(Debug)]
pub(super) enum Answer {
    Described(Result<Description>),
    Prepared(Result<()>),
    Held(Result<Held>),
    Sealed(Result<Sealed>),
    Released(Result<Released>),
    Uploaded(Result<()>),
}

impl Answer {
    pub(super) fn failed(what: &What, error: Error) -> Option<Self> {
        Some(match what {
            What::Describe => Self::Described(Err(error)),
            What::Prepare => Self::Prepared(Err(error)),
            What::Hold(_) => Self::Held(Err(error)),
            What::Seal(_) => Self::Sealed(Err(error)),
            What::Release => Self::Released(Err(error)),
            What::Upload { .. } => Self::Uploaded(Err(error)),
            What::Settle => return None,
        })
    }

    /// A copy of one that may come twice.
    fn again(&self) -> Option<Self> {
        Some(match self {
            Self::Described(Ok(a)) => Self::Described(Ok(a.clone())),
            Self::Held(Ok(a)) => Self::Held(Ok(a.clone())),
            Self::Sealed(Ok(a)) => Self::Sealed(Ok(a.clone())),
            Self::Released(Ok(a)) => Self::Released(Ok(a.clone())),
            _ => return None,
        })
    }
}

impl World<'_> {
    pub(super) fn latency(&mut self) -> u64 {
        let delay = self.between(self.plan.latency);
        let one_in = self.plan.slow_one_in;
        if one_in > 0 && self.plan.rng.random_ratio(1, one_in) { delay * SLOW_FACTOR } else { delay }
    }

    pub(super) fn is_cut_off(&mut self, node: usize) -> bool {
        self.unreachable_until[node] > self.now || self.chance(self.plan.loss)
    }

    pub(super) fn send(&mut self, call: Call) {
        if self.is_cut_off(call.node) {
            return self.stats.note("messages lost");
        }
        let delay = self.latency();
        self.after(delay, Ev::Command(call));
    }

    /// A command reaches its node.
    pub(super) fn command(&mut self, call: Call) {
        let node = call.node;
        if !self.nodes[node].up || self.unreachable_until[node] > self.now {
            return;
        }
        tell!(self, "{} gets {:?} attempt {} epoch {}", self.nodes[node].name, call.what, call.attempt, call.epoch);
        self.commands[node] += 1;
        if self.node_faults(node) {
            return;
        }
        if let Err(e) = self.turn(node).see_epoch(call.epoch) {
            self.stats.note("commands of a fenced coordinator refused");
            if let Some(answer) = Answer::failed(&call.what, e) {
                self.reply(node, &call, answer);
            }
            return;
        }
        let now = self.now;
        match &call.what {
            What::Describe => {
                let description = self.turn(node).describe();
                self.reply(node, &call, Answer::Described(Ok(description)));
            }
            What::Prepare => self.prepare(node, call),
            What::Hold(budget) => match self.turn(node).hold(call.job, *budget, now) {
                Holding::Done(held) => {
                    self.held(node, &call, held);
                    self.go_on(node);
                }
                Holding::Until(deadline) => {
                    let life = self.nodes[node].life;
                    self.at(deadline, Ev::HoldLate { node, life, call: call.id });
                    self.waiting[node].push(call);
                }
            },
            What::Seal(at) => match self.turn(node).seal(call.job, *at) {
                Ok(position) => {
                    let (life, read) = (self.nodes[node].life, (self.nodes[node].incarnation, position));
                    self.reading(&call).sealed = Some(now);
                    let takes = self.between(PIN);
                    self.after(takes, Ev::Pinned { node, life, call, read });
                }
                Err(e) => self.reply(node, &call, Answer::Sealed(Err(e))),
            },
            What::Release => {
                let (ownership, held_micros) = self.turn(node).release(call.job, now);
                self.reading(&call).released = Some(now);
                self.reply(node, &call, Answer::Released(Ok(Released { ownership, held_micros })));
                self.go_on(node);
            }
            What::Upload { at, slots, stored } => {
                let (at, slots, stored) = (*at, slots.clone(), stored.clone());
                self.upload(node, call, at, &slots, &stored);
            }
            What::Settle => {
                let _ = self.turn(node).pins.remove(&call.job);
                self.turn(node).drop_base(call.job, now);
            }
        }
    }

    /// Whether the command was lost to a fault of the plan.
    fn node_faults(&mut self, node: usize) -> bool {
        let command = self.commands[node];
        let number = node as u16;
        let due: Vec<Fault> = self.plan.faults.clone();
        for fault in due {
            match fault {
                Fault::NodeCrash(n, c, back) if n == number && c == command => {
                    self.crash_node(node, back);
                    return true;
                }
                Fault::Partition(n, c, lasts) if n == number && c == command => {
                    self.unreachable_until[node] = self.now + lasts;
                    self.stats.note("partitions");
                    tell!(self, "{} cannot be reached", self.nodes[node].name);
                }
                Fault::Move(n, to, c, gap) if n == number && c == command => {
                    self.after(0, Ev::Gives { from: node, to: usize::from(to), gap });
                }
                Fault::LoseBase(n, c) if n == number && c == command => {
                    let now = self.now;
                    if self.turn(node).lose_base(now) {
                        self.stats.note("bases that were lost");
                    }
                }
                Fault::Replace(n, c, takes) if n == number && c == command && self.nodes[node].busy.is_none() => {
                    let life = self.nodes[node].life;
                    let refused: Vec<_> = self.nodes[node].queue.drain(..).filter_map(|p| p.client).collect();
                    refused.into_iter().for_each(|(client, id)| {
                        self.after(MS, Ev::AckArrives { client, id, at: None });
                    });
                    self.nodes[node].restoring = true;
                    self.stats.note("restores beside");
                    self.after(takes, Ev::Replaced { node, life });
                }
                _ => {}
            }
        }
        false
    }

    fn crash_node(&mut self, node: usize, back: u64) {
        let (durable, now) = (self.plan.rng.random(), self.now);
        tell!(self, "{} dies", self.nodes[node].name);
        self.turn(node).crash(now, durable);
        self.waiting[node].clear();
        self.down_since[node] = now;
        self.stats.note("crashes of nodes");
        self.after(back, Ev::NodeStarts(node));
    }

    pub(super) fn node_starts(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        tell!(self, "{} starts", self.nodes[node].name);
        self.turn(node).start();
        // Its connection takes the place of the old one: what was under way on that fails now.
        for process in 0..self.processes.len() {
            for call in self.processes[process].open_calls(node) {
                let delay = self.latency();
                self.after(delay, Ev::To(process, ToProcess::ConnectedAgain(call)));
            }
        }
    }

    fn prepare(&mut self, node: usize, call: Call) {
        let now = self.now;
        if self.nodes[node].base_of(call.job).is_some() {
            return self.reply(node, &call, Answer::Prepared(Ok(())));
        }
        if let Err(e) = self.turn(node).begin_base(call.job, now) {
            return self.reply(node, &call, Answer::Prepared(Err(e)));
        }
        let (life, takes) = (self.nodes[node].life, self.between(BASE));
        self.after(takes, Ev::BaseTaken { node, life, call });
    }

    pub(super) fn base_taken(&mut self, node: usize, call: &Call) {
        let now = self.now;
        let done = self.turn(node).take_base(call.job, now);
        if done.is_ok() {
            self.stats.note("bases");
        }
        self.reply(node, call, Answer::Prepared(done));
    }

    pub(super) fn held(&mut self, node: usize, call: &Call, held: Result<Held>) {
        if held.is_ok() {
            let now = self.now;
            self.reading(call).held = Some(now);
            if let What::Hold(budget @ 1..) = call.what {
                let (life, left) = (self.nodes[node].life, budget);
                self.after(left, Ev::GateOpens { node, life });
            }
        }
        self.reply(node, call, Answer::Held(held));
    }

    pub(super) fn hold_late(&mut self, node: usize, call: u64) {
        let Some(i) = self.waiting[node].iter().position(|c| c.id == call) else { return };
        let (call, now) = (self.waiting[node].swap_remove(i), self.now);
        let error = self.turn(node).hold_too_late(call.job, now);
        self.stats.note("holds that no commit let in");
        self.reply(node, &call, Answer::Held(Err(error)));
        self.go_on(node);
    }

    pub(super) fn pinned(&mut self, node: usize, call: &Call, read: (Incarnation, Position)) {
        let What::Seal(at) = call.what else { return };
        let store = self.turn(node);
        if store.incarnation == read.0 {
            let _ = store.pins.insert(call.job, at);
        }
        let sealed = store.pinned(call.job, read).map(|position| Sealed { position });
        self.reply(node, call, Answer::Sealed(sealed));
    }

    fn upload(&mut self, node: usize, call: Call, at: Timestamp, slots: &SlotSet, stored: &BTreeSet<u16>) {
        let (retention, spr) = (self.plan.retention, self.plan.slots_per_region);
        let store = self.turn(node);
        store.collect(retention);
        let life = store.life;
        let regions = RegionMap::new(spr).expect("a power of two");
        let mut time = 0;
        let mut whole = true;
        for region in (0..regions.count()).filter(|r| !stored.contains(r)) {
            let own = slots.intersect(&regions.slots(region));
            if own.is_empty() {
                continue;
            }
            let ids = match self.nodes[node].snapshot(call.job, at, &own) {
                Ok(ids) => ids,
                Err(e) => return self.reply(node, &call, Answer::Uploaded(Err(e))),
            };
            let mut digest = SetDigest::default();
            ids.iter().for_each(|id| digest.add(u128::from(*id)));
            let read = self.now;
            let part = PartData { job: call.job, node: node as u16, region, at, slots: own, ids, digest, read };
            time += self.between(PART);
            if self.chance(self.plan.loss) {
                whole = false;
                continue;
            }
            let (call, process) = (call.id, call.process);
            self.after(time, Ev::PartSent { node, life, call, part: Arc::new(part), process });
        }
        // The last word comes after every part was taken.
        let last = time + 2 * SLOW_FACTOR * self.plan.latency.1;
        self.after(last, Ev::UploadSent { node, life, call, whole });
    }

    pub(super) fn reply(&mut self, node: usize, call: &Call, answer: Answer) {
        if self.is_cut_off(node) {
            return self.stats.note("messages lost");
        }
        let (id, process) = (call.id, call.process);
        if self.chance(self.plan.again)
            && let Some(again) = answer.again()
        {
            let delay = self.latency() * self.between((1, 60));
            let (job, attempt) = (call.job, call.attempt);
            self.after(delay, Ev::To(process, ToProcess::Again { job, attempt, node, answer: again }));
        }
        let delay = self.latency();
        self.after(delay, Ev::To(process, ToProcess::Reply(id, answer)));
    }
}
