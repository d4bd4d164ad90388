//! The core under an honest fleet, and under one that is off in exactly one way. The bench answers every action at
//! once and in order; [`random`] does it in any order, with any mixture of faults.

use std::collections::VecDeque;

use tidemark_proto::hash::Hash;
use tidemark_proto::slot::even_share;
use tidemark_proto::wire::control::{Ownership, Position};
use tidemark_proto::{Incarnation, SlotSet};

use super::*;

mod bases;
mod random;
mod refusals;

const NOW: Timestamp = Timestamp::new(1_000_000, 7);
const LAST_CUT: Timestamp = Timestamp::new(900_000, 0);

fn ownership(slots: &SlotSet) -> Ownership {
    Ownership { role: "primary".into(), slots: slots.clone(), moving: SlotSet::EMPTY, config_epoch: 1 }
}

/// Another place for each node and attempt, so that readings of two attempts cannot be mistaken for each other.
fn position(n: usize, attempt: u32) -> Position {
    Position { history: format!("history-{n}"), offset: u64::from(attempt) * 1000 + n as u64 }
}

fn description(n: usize, slots: &SlotSet) -> Description {
    Description {
        engine: "memory".into(),
        engine_version: "1".into(),
        incarnation: Incarnation::from_u128(n as u128 + 1),
        state: "available".into(),
        position: position(n, 0),
        ownership: ownership(slots),
        clock_millis: NOW.millis(),
        records: 0,
        bytes: 0,
        changes_since: true,
        data_address: String::new(),
        ledger_number: 0,
        ledger_hash: Hash::ZERO,
    }
}

fn held(n: usize, attempt: u32, slots: &SlotSet) -> Held {
    Held {
        position: position(n, attempt),
        max_timestamp: Timestamp::new(999_000, n as u64),
        ownership: ownership(slots),
        incarnation: Incarnation::from_u128(n as u128 + 1),
        clock_millis: NOW.millis(),
    }
}

fn sealed(n: usize, attempt: u32) -> Sealed {
    Sealed { position: position(n, attempt) }
}

fn released(slots: &SlotSet) -> Released {
    Released { ownership: ownership(slots), held_micros: 10 }
}

fn settings(nodes: u16) -> Settings {
    Settings {
        nodes: (0..nodes).map(|n| format!("node-{n}")).collect(),
        hosts: (0..nodes).map(|n| format!("host-{n}")).collect(),
        max_parallel_bases: 1,
        others: Vec::new(),
        required: (0..nodes).map(|n| format!("node-{n}")).collect(),
        budget: Duration::from_millis(200),
        first_without_pause: true,
        max_clock_offset: Duration::from_secs(60),
        last_cut: LAST_CUT,
        used: Used::default(),
    }
}

/// What an honest fleet answers; `None` where nothing is to be answered.
fn honest(action: &Action, slots: &[SlotSet]) -> Option<Event> {
    Some(match *action {
        Action::Describe(n) => Event::Described(n, Ok(description(n, &slots[n]))),
        Action::Hold(n, a, _) => Event::Held(n, a, Ok(held(n, a, &slots[n]))),
        Action::Seal(n, a, _) => Event::Sealed(n, a, Ok(sealed(n, a))),
        Action::Release(n, a) => Event::Released(n, a, Ok(released(&slots[n]))),
        Action::Prepare(n) => Event::Prepared(n, Ok(())),
        Action::Wait(_) | Action::WaitForSlots(_) => Event::Waited,
        Action::Upload(n) => Event::Uploaded(n, Ok(())),
        Action::Store => Event::Stored(Ok(())),
        Action::Commit => Event::Committed(Ok(())),
        Action::PrepareEarly(_)
        | Action::UploadEarly(..)
        | Action::CutDone(_)
        | Action::Settle(_)
        | Action::Again => return None,
    })
}

struct Bench {
    core: Core,
    slots: Vec<SlotSet>,
    sent: Vec<Action>,
    todo: VecDeque<Action>,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let n = settings.nodes.len() as u16;
        let slots = (0..n).map(|i| even_share(i, n)).collect();
        Self { core: Core::new(settings), slots, sent: Vec::new(), todo: VecDeque::new() }
    }

    fn step(&mut self, event: Event) {
        assert!(self.sent.len() < 10_000, "the job does not end");
        let actions = self.core.step(event, NOW);
        self.sent.extend(actions.iter().cloned());
        self.todo.extend(actions);
    }

    /// Answers the next action; `twist` may answer something else than an honest node. `false` when none is left.
    fn answer(&mut self, twist: &mut impl FnMut(&Action) -> Option<Event>) -> bool {
        let Some(action) = self.todo.pop_front() else { return false };
        if let Some(event) = twist(&action).or_else(|| honest(&action, &self.slots)) {
            self.step(event);
        }
        true
    }

    /// Runs to the end.
    fn run(&mut self, mut twist: impl FnMut(&Action) -> Option<Event>) -> Result<()> {
        self.step(Event::Start);
        while self.answer(&mut twist) {}
        self.end()
    }

    /// The outcome, after a look at what must hold of every job.
    fn end(&mut self) -> Result<()> {
        for (i, action) in self.sent.iter().enumerate() {
            if let Action::Hold(n, a, _) = action {
                assert!(self.sent[i..].contains(&Action::Release(*n, *a)), "node {n}, attempt {a}: not released");
            }
        }
        let settles = self.sent.iter().filter(|a| matches!(a, Action::Settle(_))).count();
        assert_eq!(settles, 1, "{:?}", self.sent);
        let outcome = self.core.take_outcome().expect("an outcome");
        assert_eq!(self.sent.last(), Some(&Action::Settle(outcome.is_ok())));
        outcome
    }

    /// Milliseconds of each attempt's budget.
    fn budgets(&self) -> Vec<u128> {
        let first = |a: &Action| match a {
            Action::Hold(0, _, budget) => Some(budget.as_millis()),
            _ => None,
        };
        self.sent.iter().filter_map(first).collect()
    }

    fn count(&self, is: impl Fn(&Action) -> bool) -> usize {
        self.sent.iter().filter(|a| is(a)).count()
    }
}

fn moved(n: usize, attempt: u32) -> Event {
    Event::Sealed(n, attempt, Ok(Sealed { position: position(n, attempt + 50) }))
}

/// Node 1 moves in the first `attempts` attempts.
fn moving(attempts: u32) -> impl FnMut(&Action) -> Option<Event> {
    move |action| match *action {
        Action::Seal(1, a, _) if a <= attempts => Some(moved(1, a)),
        _ => None,
    }
}

#[test]
fn a_quiet_fleet_needs_no_pause() {
    let mut bench = Bench::new(settings(3));
    bench.run(|_| None).unwrap();
    assert_eq!(bench.budgets(), [0]);
    let cut = bench.core.cut().unwrap();
    assert_eq!((cut.attempt, cut.nodes.len()), (1, 3));
    assert!(cut.nodes.iter().all(|n| n.held.position == n.sealed.position));
    assert_eq!(bench.count(|a| matches!(a, Action::Upload(_))), 3);
}

#[test]
fn one_moved_position_voids_the_cut_and_the_next_attempt_pauses() {
    let mut bench = Bench::new(settings(3));
    bench.run(moving(1)).unwrap();
    assert_eq!(bench.budgets(), [0, 50]);
    assert_eq!(bench.core.cut().unwrap().attempt, 2);
    assert_eq!(bench.count(|a| matches!(a, Action::CutDone(_))), 1);
    assert_eq!(bench.count(|a| matches!(a, Action::Release(_, 1))), 3);
}

#[test]
fn a_node_that_does_not_hold_lets_all_others_go() {
    let mut bench = Bench::new(settings(3));
    let mut no = |action: &Action| match *action {
        Action::Hold(2, 1, _) => Some(Event::Held(2, 1, Err(Error::retry("slow disk")))),
        _ => None,
    };
    bench.run(&mut no).unwrap();
    assert_eq!(bench.count(|a| matches!(a, Action::Seal(_, 1, _))), 0, "no seal of an attempt that a node missed");
    assert_eq!(bench.count(|a| matches!(a, Action::Release(_, 1))), 3);
}

#[test]
fn budgets_double_and_never_pass_the_whole() {
    let tried = |budget: u64, first_without_pause: bool| {
        let budget = Duration::from_millis(budget);
        let mut bench = Bench::new(Settings { budget, first_without_pause, ..settings(2) });
        let error = bench.run(moving(u32::MAX)).unwrap_err();
        (bench.budgets(), error)
    };
    let (budgets, error) = tried(200, true);
    assert_eq!(budgets, [0, 50, 100, 50]);
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(
        error.message().contains("after 4 attempts and 200 ms") && error.message().contains("node-1"),
        "{error}"
    );
    assert_eq!(tried(200, false).0, [50, 100, 50]);
    assert_eq!(tried(55, true).0, [0, 50], "a rest of 5 ms is not worth an attempt");
    assert_eq!(tried(30, false).0, [30]);
    assert_eq!(tried(0, true).0, [0]);
    assert_eq!(tried(10_000, true).0.iter().sum::<u128>(), 10_000);
    let (none, error) = tried(5, false);
    assert!(none.is_empty() && error.kind() == ErrorKind::Config, "{error}");
}

#[test]
fn the_cut_is_above_clock_reports_and_ledger() {
    let high = Timestamp::new(1_030_000, 3);
    let cut_of = |last_cut: Timestamp, reported: Timestamp| {
        let mut bench = Bench::new(Settings { last_cut, ..settings(3) });
        let slots = bench.slots.clone();
        let report = |action: &Action| match *action {
            Action::Hold(1, a, _) => {
                Some(Event::Held(1, a, Ok(Held { max_timestamp: reported, ..held(1, a, &slots[1]) })))
            }
            _ => None,
        };
        bench.run(report).unwrap();
        bench.core.cut().unwrap().at
    };
    assert_eq!(cut_of(LAST_CUT, LAST_CUT), NOW.next());
    assert_eq!(cut_of(LAST_CUT, high), high.next());
    assert_eq!(cut_of(high, LAST_CUT), high.next());
}

#[test]
fn late_and_double_answers_change_nothing() {
    let mut bench = Bench::new(settings(2));
    let slots = bench.slots.clone();
    bench.step(Event::Start);
    let mut twist = moving(1);
    while !bench.sent.iter().any(|a| matches!(a, Action::Hold(_, 2, _))) {
        assert!(bench.answer(&mut twist));
    }
    let before = bench.sent.len();
    for (n, own) in slots.iter().enumerate() {
        bench.step(Event::Held(n, 1, Ok(held(n, 1, own))));
        bench.step(Event::Sealed(n, 1, Ok(sealed(n, 1))));
        bench.step(Event::Released(n, 1, Ok(released(own))));
        bench.step(Event::Sealed(n, 2, Ok(sealed(n, 2))));
    }
    bench.step(Event::Held(0, 2, Ok(held(0, 2, &slots[0]))));
    bench.step(Event::Held(0, 2, Ok(held(0, 2, &slots[0]))));
    bench.step(Event::Waited);
    assert_eq!(bench.sent.len(), before, "{:?}", &bench.sent[before..]);
    while bench.answer(&mut twist) {}
    bench.end().unwrap();
    let cut = bench.core.cut().unwrap();
    assert_eq!((cut.attempt, &cut.nodes[1].held.position), (2, &position(1, 2)));
}

#[test]
fn cancel_at_any_moment_ends_with_every_node_released() {
    for moment in 0.. {
        let mut bench = Bench::new(settings(3));
        bench.step(Event::Start);
        let mut twist = moving(1);
        let reached = (0..moment).all(|_| bench.answer(&mut twist));
        let committing = bench.sent.contains(&Action::Commit);
        bench.step(Event::Cancel);
        bench.step(Event::Cancel);
        while bench.answer(&mut twist) {}
        match bench.end() {
            Ok(()) => assert!(committing, "moment {moment}: a cancelled job committed"),
            Err(e) => assert!(!committing && e.kind() == ErrorKind::Cancelled, "moment {moment}: {e}"),
        }
        if !reached {
            return;
        }
    }
}

#[test]
fn what_fails_after_the_cut_ends_the_job() {
    let full = || Err(Error::full("the disk is full"));
    let mut bench = Bench::new(settings(3));
    bench.step(Event::Start);
    while !bench.sent.contains(&Action::Upload(2)) {
        assert!(bench.answer(&mut |_| None));
    }
    bench.step(Event::Uploaded(1, full()));
    assert_eq!(bench.sent.last(), Some(&Action::Settle(false)), "the other uploads are not waited for");
    while bench.answer(&mut |_| None) {}
    assert_eq!(bench.end().unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(bench.count(|a| *a == Action::Store), 0);
    let mut bench = Bench::new(settings(3));
    let error = bench.run(|a| (*a == Action::Store).then(|| Event::Stored(full()))).unwrap_err();
    assert_eq!((error.kind(), bench.count(|a| *a == Action::Commit)), (ErrorKind::Full, 0));
    let mut bench = Bench::new(settings(3));
    let error = bench.run(|a| (*a == Action::Commit).then(|| Event::Committed(full()))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
}

#[test]
fn no_node_is_no_backup() {
    assert_eq!(Bench::new(settings(0)).run(|_| None).unwrap_err().kind(), ErrorKind::Conflict);
}
