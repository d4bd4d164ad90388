//! The commit path: one gate, one committer thread.
//!
//! What holds: timestamps are drawn only by the committer, only while the gate says `busy`; a group becomes visible
//! and is acknowledged only after its fsync; the gate's numbers (`commits`) always describe whole groups. So whoever
//! holds the gate's lock and sees `busy` false stands between two commits, and what he does to the clock binds every
//! later one. A hold keeps the committer from taking the next group; its deadline is the committer's own wait, so it
//! ends with nobody's help.
//!
//! A failed write leaves open whether the group will be there after a restart. The store then takes no commits and
//! no cuts until it is opened again.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fjall::OwnedWriteBatch;
use tidemark_common::clock::Hlc;
use tidemark_proto::id::JobId;
use tidemark_proto::{Error, ErrorKind, Incarnation, Result, Timestamp};
use tokio::sync::oneshot;

use super::generation::{Commits, Generation};
use super::overlay::Overlay;
use super::trail::{Group, Trail};
use super::{fault, key, log, value};
use crate::kv::Write;

/// Most batches that wait for the committer.
pub(super) const QUEUE_BATCHES: usize = 8192;
/// Most bytes that wait for the committer.
pub(super) const QUEUE_BYTES: usize = 32 << 20;
/// Most batches of one group.
const GROUP_BATCHES: usize = 2048;
/// Bytes at which a group is closed.
const GROUP_BYTES: usize = 4 << 20;

type Reply = oneshot::Sender<Result<Timestamp>>;

/// A batch that waits.
pub(super) struct Pending {
    /// The clone that it is for; `None` for the parent.
    pub(super) overlay: Option<Arc<Overlay>>,
    pub(super) writes: Vec<Write>,
    pub(super) after: Timestamp,
    pub(super) bytes: usize,
    pub(super) reply: Reply,
}

/// Whom the store serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    /// Everybody.
    Open,
    /// The restore of a job, nobody else.
    Restoring(JobId),
    /// Readers, until it is opened again: a write failed.
    Failed(String),
    /// Nobody.
    Closed,
}

#[derive(Debug)]
pub(super) struct Hold {
    pub(super) job: JobId,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
}

/// The first reading of a cut.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) job: JobId,
    pub(super) incarnation: Incarnation,
    pub(super) position: u64,
    /// Highest commit timestamp, that of clones included.
    pub(super) highest: Timestamp,
}

pub(super) struct State {
    pub(super) mode: Mode,
    pub(super) generation: Arc<Generation>,
    pub(super) commits: Commits,
    pub(super) busy: bool,
    /// Whether the group under way (the last one, where none is) writes to the parent, not to clones alone.
    pub(super) moving: bool,
    /// Groups begun so far.
    pub(super) groups: u64,
    pub(super) hold: Option<Hold>,
    pub(super) reading: Option<Reading>,
    /// The last hold that ended: whose, and how long writes were held.
    pub(super) ended: Option<(JobId, Duration)>,
    queue: VecDeque<Pending>,
    queued_bytes: usize,
}

impl State {
    /// Ends the hold, if one stands, and notes how long it was.
    pub(super) fn end_hold(&mut self, now: Instant) {
        if let Some(hold) = self.hold.take() {
            self.ended = Some((hold.job, now.min(hold.deadline).duration_since(hold.since)));
        }
    }

    /// `Conflict` or worse unless clients and cuts are served.
    pub(super) fn check_open(&self) -> Result<()> {
        match &self.mode {
            Mode::Open => Ok(()),
            Mode::Failed(why) => Err(Error::retry(format!(
                "the store takes no writes since one failed ({why}): check the disk, then restart the agent"
            ))),
            _ => self.check_readable(),
        }
    }

    /// `Conflict` or worse unless readers are served.
    pub(super) fn check_readable(&self) -> Result<()> {
        match &self.mode {
            Mode::Open | Mode::Failed(_) => Ok(()),
            Mode::Restoring(job) => Err(restoring(*job)),
            Mode::Closed => Err(Error::cancelled("the store is closed: open it again")),
        }
    }
}

/// What clients hear while a restore is under way.
pub(super) fn restoring(job: JobId) -> Error {
    Error::conflict(format!("the store is restoring (job {job}): wait until the restore is finished or aborted"))
}

/// Where commits, cuts and restores meet.
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// For the reader of the log. Never held together with the state.
    trail: Mutex<Trail>,
}

impl Gate {
    pub(super) fn new(mode: Mode, generation: Arc<Generation>, commits: Commits) -> Self {
        let mut trail = Trail::new(generation.incarnation, commits.highest);
        if let Some((from, spool)) = log::kept(&generation) {
            trail.keep(from, spool);
        }
        let trail = Mutex::new(trail);
        let state = State {
            mode,
            generation,
            commits,
            busy: false,
            moving: false,
            groups: 0,
            hold: None,
            reading: None,
            ended: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), trail }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("gate")
    }

    /// The trail of `generation`; one of other data is replaced by one that begins after `settled`, up to which all
    /// commits are visible and after which none has been noted.
    pub(super) fn trail<T>(
        &self,
        generation: &Generation,
        settled: Timestamp,
        use_it: impl FnOnce(&mut Trail) -> T,
    ) -> T {
        let mut trail = self.trail.lock().expect("trail");
        if !trail.is_of(generation.incarnation) {
            *trail = Trail::new(generation.incarnation, settled);
        }
        use_it(&mut trail)
    }

    /// Wakes all who wait for a change of the state.
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits until the group that is being written is done.
    pub(super) fn wait_idle<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let group = state.groups;
        while state.busy && state.groups == group {
            state = self.changed.wait(state).expect("gate");
        }
        state
    }

    /// Waits for the same until `deadline`; `None` when that came first.
    pub(super) fn wait_idle_until<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Instant,
    ) -> Option<MutexGuard<'a, State>> {
        while state.busy {
            let left = deadline.checked_duration_since(Instant::now())?;
            state = self.changed.wait_timeout(state, left).expect("gate").0;
        }
        Some(state)
    }

    /// Takes a batch that was checked against `generation`, or answers it with an error.
    pub(super) fn enqueue(&self, generation: &Arc<Generation>, pending: Pending) {
        let mut state = self.lock();
        let refused = if let Err(e) = state.check_open() {
            e
        } else if !Arc::ptr_eq(generation, &state.generation) {
            Error::conflict("the store was restored just now: read again, then write")
        } else if state.queue.len() >= QUEUE_BATCHES || state.queued_bytes + pending.bytes > QUEUE_BYTES {
            Error::retry(format!(
                "{} batches ({} bytes) wait to be committed: slow down, then send this one again",
                state.queue.len(),
                state.queued_bytes
            ))
        } else {
            state.queued_bytes += pending.bytes;
            state.queue.push_back(pending);
            drop(state);
            return self.notify();
        };
        drop(state);
        let _ = pending.reply.send(Err(refused));
    }

    /// Answers all that waits with what `why` makes.
    pub(super) fn refuse_queue(&self, state: &mut State, why: impl Fn() -> Error) {
        state.queued_bytes = 0;
        for pending in state.queue.drain(..) {
            let _ = pending.reply.send(Err(why()));
        }
    }

    /// The state between two commits, for a reader at `at`: all commits at or below `at` are visible, and no later
    /// one will be at or below it.
    pub(super) fn settle(&self, hlc: &Hlc, at: Timestamp) -> Result<Arc<Generation>> {
        let mut state = self.lock();
        state.check_readable()?;
        if at > state.commits.highest {
            hlc.observe(at)?;
            state = self.wait_idle(state);
            state.check_readable()?;
        }
        Ok(Arc::clone(&state.generation))
    }

    /// The next group, `None` when the store closes and nothing waits any more.
    fn next_group(&self) -> Option<(Arc<Generation>, Commits, Vec<Pending>)> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if state.hold.as_ref().is_some_and(|h| h.deadline <= now) {
                state.end_hold(now);
            }
            if let Some(hold) = &state.hold {
                let left = hold.deadline.duration_since(now);
                state = self.changed.wait_timeout(state, left).expect("gate").0;
            } else if !state.queue.is_empty() {
                break;
            } else if state.mode == Mode::Closed {
                return None;
            } else {
                state = self.changed.wait(state).expect("gate");
            }
        }
        let (mut group, mut bytes) = (Vec::new(), 0);
        while group.len() < GROUP_BATCHES && bytes < GROUP_BYTES {
            let Some(pending) = state.queue.pop_front() else { break };
            bytes += pending.bytes;
            group.push(pending);
        }
        state.queued_bytes -= bytes;
        state.busy = true;
        state.moving = group.iter().any(|p| p.overlay.is_none());
        state.groups += 1;
        Some((Arc::clone(&state.generation), state.commits, group))
    }

    /// Makes a written group visible; `Err` closes the store for writes.
    fn publish(&self, outcome: &Result<Commits>) {
        let mut state = self.lock();
        match outcome {
            Ok(commits) => state.commits = *commits,
            Err(e) => {
                if state.mode == Mode::Open {
                    state.mode = Mode::Failed(e.report());
                }
                state.reading = None;
                self.refuse_queue(&mut state, || failed(e));
            }
        }
    }
}

fn failed(e: &Error) -> Error {
    let kind = if e.kind() == ErrorKind::Full { ErrorKind::Full } else { ErrorKind::Retry };
    Error::new(kind, format!("the commit may be lost or kept: {}; restart the agent, then read to see", e.report()))
}

/// The committer thread: runs until the gate is closed and its queue is empty.
pub(super) fn run(gate: &Gate, hlc: &Hlc) {
    while let Some((generation, before, group)) = gate.next_group() {
        let mut answers = Vec::with_capacity(group.len());
        let mut written = Group::default();
        let outcome = write_group(&generation, hlc, before, &group, &mut answers, &mut written);
        if let Ok(commits) = &outcome {
            // Before it is visible: a reader of the log that has seen it finds it in the trail.
            gate.trail(&generation, before.highest, |trail| trail.note(&written, commits.highest));
        }
        gate.publish(&outcome);
        for (pending, answer) in group.into_iter().zip(answers) {
            let answer = match &outcome {
                Err(e) if answer.is_ok() => Err(failed(e)),
                _ => answer,
            };
            let _ = pending.reply.send(answer);
        }
        // Only now: whoever waits for the group may rely on its acknowledgements being out.
        gate.lock().busy = false;
        gate.notify();
    }
}

/// Gives each batch a timestamp and writes them all with one fsync. `answers` gets one item for each batch, `written` what
/// the trail wants to know.
fn write_group(
    generation: &Generation,
    hlc: &Hlc,
    before: Commits,
    group: &[Pending],
    answers: &mut Vec<Result<Timestamp>>,
    written: &mut Group,
) -> Result<Commits> {
    let (mut batch, mut commits, mut scratch) = (generation.durable_batch(), before, Vec::new());
    for pending in group {
        let standing = pending.overlay.as_ref().map_or(Ok(()), |overlay| overlay.check_standing());
        answers.push(standing.and_then(|()| hlc.observe(pending.after)).map(|()| {
            let at = hlc.now();
            add(generation, &mut batch, &mut commits, (&mut scratch, written), pending, at);
            // What is written in a clone is no part of the parent's history, but no later commit may come below it.
            if pending.overlay.is_none() {
                written.bytes += pending.bytes as u64;
                commits.position += 1;
            }
            commits.highest = at;
            at
        }));
    }
    if commits.highest > before.highest {
        generation.put_commits(&mut batch, commits);
        batch.commit().map_err(fault::fjall("commit a group of writes"))?;
    }
    Ok(commits)
}

/// Adds one batch's writes at `at`; of several writes to one key the last counts.
fn add(
    generation: &Generation,
    batch: &mut OwnedWriteBatch,
    commits: &mut Commits,
    (scratch, written): (&mut Vec<u8>, &mut Group),
    pending: &Pending,
    at: Timestamp,
) {
    let writes = &pending.writes;
    let (data, changes) = match &pending.overlay {
        None => (&generation.data, &generation.changes),
        Some(overlay) => (&overlay.data, &overlay.changes),
    };
    let mut seen = HashSet::with_capacity(if writes.len() > 1 { writes.len() } else { 0 });
    for write in writes.iter().rev() {
        if writes.len() > 1 && !seen.insert(write.key()) {
            continue;
        }
        let slot = tidemark_proto::slot_of(write.key());
        if pending.overlay.is_none() {
            written.slots.push(slot);
        }
        key::encode(scratch, slot, write.key(), at);
        let data_key = fjall::UserKey::from(&scratch[..]);
        key::change(scratch, slot, at, write.key());
        batch.insert(changes, &scratch[..], []);
        match write {
            Write::Put { value, .. } => {
                if pending.overlay.is_none() {
                    commits.records += 1;
                    commits.bytes += write.bytes() as u64;
                }
                value::put(scratch, value);
            }
            Write::Delete { .. } => value::delete(scratch),
        }
        batch.insert(data, data_key, &scratch[..]);
    }
}
