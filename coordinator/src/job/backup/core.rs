//! The core of a backup job: (state, event, now) -> (state, actions), with no IO and no clock.
//!
//! Invariants:
//! - `Seal` is sent to any node only after the last `Held` of the same attempt has arrived; T is chosen then, above every
//!   timestamp that any node reported, above the coordinator's clock and above the last cut in the ledger.
//! - A cut holds only if every node answered both readings of the same attempt, sat on the same data, and owns after the
//!   release what it owned in the hold; the owners tile all slots exactly once.
//! - Every node that was asked to hold is released, whatever happens.
//! - The budgets of all attempts together never pass the backup's budget, over all rounds.
//! - A node that needs a base is held only after it has answered, in this round, that its base stands ([`bases`]).
//! - No cut stands that met a slot in move.

use std::time::Duration;

use tidemark_proto::wire::control::{Description, Held, Released, Sealed};
use tidemark_proto::{Error, ErrorKind, Result, Timestamp};

mod bases;
mod checks;
mod types;

pub use bases::{MAX_REPEATS, SLOTS_PATIENCE, needs_base};
pub use types::{Action, Cut, Event, NodeCut, Settings, Used};

/// Budget of the first attempt with a pause.
const FIRST_BUDGET: Duration = Duration::from_millis(50);
/// A rest of budget smaller than this is not worth an attempt.
const LEAST_BUDGET: Duration = Duration::from_millis(10);
/// Wait between attempts at the cut, beside the jitter that the driver adds.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Describing,
    SlotsMoving,
    Preparing,
    Holding,
    Sealing,
    Releasing,
    Waiting,
    Uploading,
    Storing,
    Committing,
    Over,
}

#[derive(Debug, Default)]
struct Node {
    description: Option<Description>,
    held: Option<Held>,
    sealed: Option<Sealed>,
    released: Option<Released>,
    /// Whether the answer of the present phase is still out.
    open: bool,
    /// Whether it has been asked for its base.
    asked: bool,
    /// Whether it has been told that it is asked for its base next.
    told: bool,
}

/// Where a void cut leads to, by how much it may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Back {
    Hold,
    Describe,
    Again,
}

/// The state of a backup job.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    phase: Phase,
    nodes: Vec<Node>,
    attempt: u32,
    spent: Duration,
    /// Since when slots are moving.
    moving_since: Option<Timestamp>,
    /// Whether the last look found other owners than the one before.
    moved: bool,
    /// Looks in a row that found the slots where they were.
    calm: u32,
    /// Whether the nodes were asked before what they are.
    described: bool,
    /// The first look found slots without an owner, or with two.
    in_doubt: bool,
    back: Back,
    /// When the nodes were asked what the present phase asks: an answer's clock was read after that.
    asked: Timestamp,
    at: Timestamp,
    cut: Option<Cut>,
    /// Why the present attempt (or the job) does not stand; the first cause wins.
    trouble: Option<Error>,
    /// Why the last attempt at a cut did not hold.
    void: String,
    cancelled: bool,
    outcome: Option<Result<()>>,
}

impl Core {
    /// A job that waits for [`Event::Start`].
    pub fn new(settings: Settings) -> Self {
        let nodes = settings.nodes.iter().map(|_| Node::default()).collect();
        Self {
            attempt: settings.used.attempts,
            spent: settings.used.pause,
            described: settings.used.rounds > 0,
            in_doubt: false,
            settings,
            phase: Phase::Idle,
            nodes,
            moving_since: None,
            moved: false,
            calm: 0,
            back: Back::Hold,
            asked: Timestamp::ZERO,
            at: Timestamp::ZERO,
            cut: None,
            trouble: None,
            void: String::new(),
            cancelled: false,
            outcome: None,
        }
    }

    /// A job whose cut holds already: another coordinator took it. [`Event::Start`] goes on with the uploads.
    pub fn resumed(settings: Settings, cut: Cut) -> Self {
        let mut core = Self::new(settings);
        (core.at, core.attempt) = (cut.at, cut.attempt);
        core.cut = Some(cut);
        core
    }

    /// The cut, once it holds.
    pub fn cut(&self) -> Option<&Cut> {
        self.cut.as_ref()
    }

    /// Why the last attempt at a cut did not hold; empty for none.
    pub fn void_cut(&self) -> &str {
        &self.void
    }

    /// Whether somebody wanted the job to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    /// How the job ended; `None` while it has not.
    pub fn take_outcome(&mut self) -> Option<Result<()>> {
        self.outcome.take()
    }

    /// What is being waited for, for people.
    pub fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Idle | Phase::Describing => "asking the nodes",
            Phase::SlotsMoving => "waiting for slots that move",
            Phase::Preparing => "taking bases",
            Phase::Holding | Phase::Sealing | Phase::Releasing | Phase::Waiting => "taking the cut",
            Phase::Uploading => "sending parts",
            Phase::Storing => "storing",
            Phase::Committing => "committing",
            Phase::Over => "telling the nodes how it ended",
        }
    }

    /// Takes an event; `now` is a fresh timestamp of the coordinator's clock.
    pub fn step(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        match (self.phase, event) {
            (_, Event::Cancel) => return self.cancel(),
            (Phase::Idle, Event::Start) => return self.begin(now),
            (Phase::Describing, Event::Described(n, result)) => {
                let result = result.and_then(|d| self.admit(n, d, now));
                self.take(n, result);
            }
            (Phase::SlotsMoving, Event::Waited) => return self.describe(now),
            (Phase::Preparing, Event::Prepared(n, result)) if self.nodes[n].asked => {
                let stands = result.is_ok();
                self.take(n, result);
                return self.prepared(n, stands, now);
            }
            (Phase::Holding, Event::Held(n, attempt, result)) if attempt == self.attempt => {
                self.leads(result.is_err(), Back::Again);
                let result = result.and_then(|h| self.check_held(n, &h, now).map(|()| h));
                let result = result.map(|h| self.nodes[n].held = Some(h));
                self.take(n, result);
            }
            (Phase::Sealing, Event::Sealed(n, attempt, result)) if attempt == self.attempt => {
                self.leads(result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Retry), Back::Again);
                // Whether the server moved on or its slots did, the next look tells.
                self.leads(result.is_err() && self.needs_base_of(n), Back::Describe);
                let result = result.and_then(|s| self.check_sealed(n, s));
                self.take(n, result);
            }
            (Phase::Releasing, Event::Released(n, attempt, result)) if attempt == self.attempt => {
                self.leads(result.is_err(), Back::Again);
                let result = result.and_then(|r| self.check_released(n, r));
                self.take(n, result);
            }
            (Phase::Waiting, Event::Waited) if self.back == Back::Describe => return self.describe(now),
            (Phase::Waiting, Event::Waited) => return self.hold(now),
            (Phase::Uploading, Event::Uploaded(n, result)) => self.take(n, result),
            (Phase::Storing, Event::Stored(result)) => return self.then(result, Phase::Committing, Action::Commit),
            (Phase::Committing, Event::Committed(result)) => return self.finish(result),
            // Late answers of an earlier attempt or phase change nothing.
            _ => return Vec::new(),
        }
        if self.nodes.iter().any(|n| n.open) { self.early_failure() } else { self.all_in(now) }
    }

    /// A node's base stands, or does not. While others are waited for, it may send of it.
    fn prepared(&mut self, n: usize, stands: bool, now: Timestamp) -> Vec<Action> {
        if !self.nodes.iter().any(|n| n.open) {
            return self.all_in(now);
        }
        let mut actions = self.go_on_preparing();
        let goes_on = stands && self.phase == Phase::Preparing && self.trouble.is_none();
        if let Some(description) = self.nodes[n].description.as_ref().filter(|_| goes_on) {
            actions.push(Action::UploadEarly(n, description.ownership.slots.clone()));
        }
        actions
    }

    fn take(&mut self, n: usize, result: Result<()>) {
        self.nodes[n].open = false;
        if let Err(e) = result
            && self.trouble.is_none()
        {
            self.trouble = Some(e);
        }
    }

    fn everyone(&mut self, phase: Phase, action: impl Fn(usize) -> Action) -> Vec<Action> {
        self.phase = phase;
        self.nodes.iter_mut().for_each(|n| n.open = true);
        (0..self.nodes.len()).map(action).collect()
    }

    fn begin(&mut self, now: Timestamp) -> Vec<Action> {
        if self.nodes.is_empty() {
            return self.finish(Err(Error::conflict("no node of the cluster is connected")));
        }
        match self.cut.clone() {
            None => self.describe(now),
            Some(cut) => self.upload(cut),
        }
    }

    fn upload(&mut self, cut: Cut) -> Vec<Action> {
        let mut actions = vec![Action::CutDone(Box::new(cut))];
        actions.extend(self.everyone(Phase::Uploading, Action::Upload));
        actions
    }

    fn cancel(&mut self) -> Vec<Action> {
        self.cancelled = true;
        match self.phase {
            // The answers that are out decide; a commit cannot be called back.
            Phase::Holding | Phase::Sealing | Phase::Releasing | Phase::Committing | Phase::Over => Vec::new(),
            _ => self.finish(Err(Error::cancelled("the backup was cancelled"))),
        }
    }

    /// One failed upload ends the job without waiting for the others; in a cut all answers are awaited.
    fn early_failure(&mut self) -> Vec<Action> {
        if self.phase == Phase::Uploading && self.trouble.is_some() {
            let error = self.trouble.take().expect("just seen");
            return self.finish(Err(error));
        }
        Vec::new()
    }

    fn all_in(&mut self, now: Timestamp) -> Vec<Action> {
        match self.phase {
            Phase::Describing => self.all_described(now),
            Phase::Preparing => match self.trouble.take() {
                Some(e) => self.again_or_fail(e),
                None => self.hold(now),
            },
            Phase::Holding if self.trouble.is_none() && !self.cancelled => {
                let reported = self.nodes.iter().filter_map(|n| n.held.as_ref()).map(|h| h.max_timestamp);
                self.at = reported.chain([now, self.settings.last_cut]).max().unwrap_or(now).next();
                let (attempt, at) = (self.attempt, self.at);
                if let Err(e) = self.check_spread() {
                    self.trouble = Some(e);
                    return self.everyone(Phase::Releasing, |n| Action::Release(n, attempt));
                }
                self.everyone(Phase::Sealing, |n| Action::Seal(n, attempt, at))
            }
            Phase::Holding | Phase::Sealing => {
                let attempt = self.attempt;
                self.everyone(Phase::Releasing, |n| Action::Release(n, attempt))
            }
            Phase::Releasing => self.judge(),
            Phase::Uploading => match self.trouble.take() {
                Some(e) => self.finish(Err(e)),
                None => self.then(Ok(()), Phase::Storing, Action::Store),
            },
            _ => Vec::new(),
        }
    }

    /// After the release: does the cut hold?
    fn judge(&mut self) -> Vec<Action> {
        if self.cancelled {
            return self.finish(Err(Error::cancelled("the backup was cancelled")));
        }
        let trouble = self.trouble.take().or_else(|| {
            let error = self.check_owners(|n| n.held.as_ref().map(|h| &h.ownership)).err();
            self.leads(error.is_some(), Back::Again);
            error
        });
        match trouble {
            None => self.accept(),
            Some(e)
                if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::Retry) && self.next_budget().is_some() =>
            {
                self.void = e.report();
                if self.back == Back::Again && self.may_begin_again() {
                    return self.again();
                }
                self.phase = Phase::Waiting;
                vec![Action::Wait(BETWEEN_ATTEMPTS)]
            }
            Some(e) => {
                let spent = self.spent.as_millis();
                let told = format!("no cut after {} attempts and {spent} ms of pause", self.attempt);
                self.finish(Err(e.context(told)))
            }
        }
    }

    fn accept(&mut self) -> Vec<Action> {
        let evidence = |n: &mut Node| {
            Some(NodeCut { held: n.held.take()?, sealed: n.sealed.take()?, released: n.released.take()? })
        };
        let nodes: Option<Vec<NodeCut>> = self.nodes.iter_mut().map(evidence).collect();
        let Some(nodes) = nodes else {
            return self.finish(Err(Error::bug("a cut without all its readings")));
        };
        let cut = Cut { at: self.at, attempt: self.attempt, nodes };
        self.cut = Some(cut.clone());
        self.upload(cut)
    }

    fn then(&mut self, result: Result<()>, phase: Phase, action: Action) -> Vec<Action> {
        match result {
            Ok(()) => {
                self.phase = phase;
                vec![action]
            }
            Err(e) => self.finish(Err(e)),
        }
    }

    fn finish(&mut self, result: Result<()>) -> Vec<Action> {
        let committed = result.is_ok();
        self.phase = Phase::Over;
        self.outcome = Some(result);
        vec![Action::Settle(committed)]
    }

    /// The budget of the next attempt, `None` when what is left is not worth one.
    fn next_budget(&self) -> Option<Duration> {
        if self.attempt == 0 && self.settings.first_without_pause {
            return Some(Duration::ZERO);
        }
        let doublings = self.attempt - u32::from(self.settings.first_without_pause && self.attempt > 0);
        let wanted = FIRST_BUDGET.saturating_mul(1 << doublings.min(16));
        let left = self.settings.budget.saturating_sub(self.spent);
        Some(wanted.min(left)).filter(|b| *b >= LEAST_BUDGET)
    }

    fn hold(&mut self, now: Timestamp) -> Vec<Action> {
        let Some(budget) = self.next_budget() else {
            let budget = self.settings.budget.as_millis();
            return self
                .finish(Err(Error::config(format!("a pause budget of {budget} ms allows no attempt at a cut"))));
        };
        self.attempt += 1;
        self.back = Back::Hold;
        self.asked = now;
        self.spent += budget;
        for node in &mut self.nodes {
            (node.held, node.sealed, node.released) = (None, None, None);
        }
        let attempt = self.attempt;
        self.everyone(Phase::Holding, |n| Action::Hold(n, attempt, budget))
    }
}

#[cfg(test)]
mod tests;
