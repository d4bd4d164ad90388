//! The store of one node, after the contract of `tidemark_agent::engine::Engine` and as the embedded engine keeps it
//! (`agent/src/engine/embedded/{commit,cut}.rs`): one committer, groups of writes with one sync, a gate that a hold
//! shuts, two readings of the position. The clock is the real [`Hlc`] over a wall clock of virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tidemark_common::clock::Hlc;
use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{Description, Held, Ownership, Position};
use tidemark_proto::{Error, Incarnation, Result, SlotSet, Timestamp};

use super::base::Bases;
use super::wall::Wall;

/// A client by its number, and its write.
pub(super) type Waiting = (usize, u32);

/// A write of a client, or a batch of records that moved here.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    /// Ids of the writes, each of which is a record.
    pub(super) ids: Vec<(u16, u32)>,
    pub(super) after: Timestamp,
    /// Whom to tell; `None` for records that moved.
    pub(super) client: Option<Waiting>,
}

/// A record that is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) at: Timestamp,
    pub(super) slot: u16,
    pub(super) id: u32,
    /// When it became visible, in true time.
    pub(super) published: u64,
}

#[derive(Debug)]
pub(super) struct Hold {
    pub(super) job: JobId,
    pub(super) since: u64,
    pub(super) deadline: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Reading {
    job: JobId,
    incarnation: Incarnation,
    position: u64,
}

/// A group under way.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) records: Vec<(Timestamp, u16, u32)>,
    pub(super) answers: Vec<(Option<Waiting>, Result<Timestamp>)>,
    highest: Timestamp,
    commits: u64,
}

/// What a hold came to at once.
pub(super) enum Holding {
    Done(Result<Held>),
    /// A group is being written: asked again when it is done, at the latest at this time.
    Until(u64),
}

pub(super) struct Node {
    pub(super) name: String,
    pub(super) wall: Arc<Wall>,
    pub(super) hlc: Hlc,
    pub(super) up: bool,
    /// Counts starts: what belongs to an earlier life is void.
    pub(super) life: u32,
    pub(super) restoring: bool,
    /// Only tells of its position.
    plain: bool,
    /// What it keeps for jobs, where it takes bases.
    pub(super) bases: Option<Bases>,
    // Durable.
    pub(super) incarnation: Incarnation,
    position: u64,
    highest: Timestamp,
    pub(super) safe: Timestamp,
    pub(super) pins: BTreeMap<JobId, Timestamp>,
    pub(super) records: Vec<Stored>,
    pub(super) epoch: u64,
    pub(super) slots: SlotSet,
    pub(super) config_epoch: u64,
    // Gone with the process.
    pub(super) queue: VecDeque<Pending>,
    pub(super) busy: Option<Group>,
    pub(super) hold: Option<Hold>,
    reading: Option<Reading>,
    ended: Option<(JobId, u64)>,
    // What the judge looks at.
    pub(super) published: Vec<u64>,
    pub(super) replaced: Vec<u64>,
    pub(super) owners_changed: Vec<u64>,
    /// When a hold ended by its budget.
    pub(super) ran_out: Vec<u64>,
    /// Time that writes were held, by job.
    pub(super) held: BTreeMap<JobId, u64>,
}

impl Node {
    pub(super) fn new(
        number: u16,
        slots: SlotSet,
        (offset, drift): (i64, i64),
        (plain, bases): (bool, bool),
    ) -> Self {
        let wall = Wall::new(offset, drift);
        Self {
            name: format!("n{number:03}"),
            hlc: Hlc::new(wall.clone()),
            wall,
            up: true,
            life: 0,
            restoring: false,
            plain,
            bases: bases.then(Bases::default),
            incarnation: Incarnation::from_u128(1 + u128::from(number)),
            position: 0,
            highest: Timestamp::ZERO,
            safe: Timestamp::ZERO,
            pins: BTreeMap::new(),
            records: Vec::new(),
            epoch: 0,
            slots,
            config_epoch: 1,
            queue: VecDeque::new(),
            busy: None,
            hold: None,
            reading: None,
            ended: None,
            published: Vec::new(),
            replaced: Vec::new(),
            owners_changed: Vec::new(),
            ran_out: Vec::new(),
            held: BTreeMap::new(),
        }
    }

    /// As `AgentState::see_epoch`.
    pub(super) fn see_epoch(&mut self, epoch: u64) -> Result<()> {
        if epoch < self.epoch {
            return Err(Error::fenced(format!("command of epoch {epoch} refused: {} has taken over", self.epoch)));
        }
        self.epoch = epoch;
        Ok(())
    }

    fn check_open(&self) -> Result<()> {
        if self.restoring { Err(Error::conflict("the store is restoring")) } else { Ok(()) }
    }

    fn place(&self) -> Position {
        Position { history: self.incarnation.to_string(), offset: self.position }
    }

    pub(super) fn ownership(&self) -> Ownership {
        let slots = self.slots.clone();
        Ownership { role: "primary".into(), slots, moving: SlotSet::EMPTY, config_epoch: self.config_epoch }
    }

    pub(super) fn describe(&self) -> Description {
        Description {
            engine: if self.bases.is_some() { "redis" } else { "embedded" }.into(),
            engine_version: "1".into(),
            incarnation: self.incarnation,
            state: if self.restoring { "restoring" } else { "available" }.into(),
            position: self.place(),
            ownership: self.ownership(),
            clock_millis: self.hlc.wall_millis(),
            records: 0,
            bytes: 0,
            changes_since: true,
            data_address: String::new(),
            ledger_number: 0,
            ledger_hash: Hash::ZERO,
        }
    }

    pub(super) fn end_hold(&mut self, now: u64) {
        if let Some(hold) = self.hold.take() {
            let told = now.min(hold.deadline) - hold.since;
            self.ended = Some((hold.job, told));
            // The judge does not take the store's word for it: as long as writes wait they are held.
            let held = if self.queue.is_empty() { told } else { now - hold.since };
            *self.held.entry(hold.job).or_default() += held;
        }
    }

    /// Parks the committer; see `cut::hold`.
    pub(super) fn hold(&mut self, job: JobId, budget: u64, now: u64) -> Holding {
        if let Err(e) = self.check_open().and_then(|()| self.check_base(job)) {
            return Holding::Done(Err(e));
        }
        if budget == 0 {
            self.end_hold(now);
            return Holding::Done(Ok(self.read(job)));
        }
        let deadline = now + budget;
        let standing = self.hold.take_if(|h| h.deadline > now && h.job == job);
        let since = standing.map_or(now, |h| h.since);
        // The store counts on from a hold of another job that still stands; here time is counted by job.
        self.end_hold(now);
        self.hold = Some(Hold { job, since, deadline });
        if self.busy.is_some() { Holding::Until(deadline) } else { Holding::Done(Ok(self.read(job))) }
    }

    /// The group that a hold waited for is done.
    pub(super) fn hold_waited(&mut self, job: JobId) -> Result<Held> {
        self.check_open()?;
        self.check_base(job)?;
        Ok(self.read(job))
    }

    /// It was not done in time.
    pub(super) fn hold_too_late(&mut self, job: JobId, now: u64) -> Error {
        if self.hold.as_ref().is_some_and(|h| h.job == job) {
            self.end_hold(now);
        }
        Error::retry("the commit under way did not end within the budget")
    }

    fn read(&mut self, job: JobId) -> Held {
        self.reading = Some(Reading { job, incarnation: self.incarnation, position: self.position });
        Held {
            position: self.place(),
            max_timestamp: self.hlc.last().max(self.highest),
            ownership: self.ownership(),
            incarnation: self.incarnation,
            clock_millis: self.hlc.wall_millis(),
        }
    }

    /// The second reading up to the pin; see `cut::seal`. A plain store only binds its clock and reads, a commit under way
    /// included: it may have drawn a timestamp below `at`.
    pub(super) fn seal(&mut self, job: JobId, at: Timestamp) -> Result<Position> {
        self.check_open()?;
        self.check_base(job)?;
        if self.plain {
            self.hlc.observe(at)?;
            let offset = self.position + self.busy.as_ref().map_or(0, |group| group.commits);
            return Ok(Position { offset, ..self.place() });
        }
        let now = Reading { job, incarnation: self.incarnation, position: self.position };
        match &self.reading {
            Some(r) if r.job == job => {
                if *r != now || self.busy.is_some() {
                    return Err(Error::conflict("the store moved on since it was held: the cut is void"));
                }
            }
            _ => return Err(Error::conflict("the job holds no reading of this store: hold first")),
        }
        if at < self.highest {
            return Err(Error::request(
                "a cut below the last commit: draw its timestamp after all nodes have held",
            ));
        }
        self.hlc.observe(at)?;
        if at < self.safe {
            return Err(Error::not_found("too old"));
        }
        Ok(self.place())
    }

    /// The pin of a seal is durable.
    pub(super) fn pinned(&mut self, job: JobId, (incarnation, read): (Incarnation, Position)) -> Result<Position> {
        if self.plain {
            return Ok(read);
        }
        let reading = self.reading.as_ref().filter(|r| r.job == job).map(|r| r.position);
        let offset = reading.ok_or_else(|| Error::conflict("another hold replaced this one: the cut is void"))?;
        Ok(Position { history: incarnation.to_string(), offset })
    }

    /// Ends the hold of `job`; answers how long it was.
    pub(super) fn release(&mut self, job: JobId, now: u64) -> (Ownership, u64) {
        if self.hold.as_ref().is_some_and(|h| h.job == job) {
            self.end_hold(now);
        }
        (self.ownership(), self.ended.filter(|(of, _)| *of == job).map_or(0, |(_, held)| held))
    }

    /// Takes the next group, if the gate is open and something waits; answers when the gate opens otherwise.
    pub(super) fn next_group(&mut self, now: u64) -> Option<u64> {
        if self.busy.is_some() || !self.up {
            return None;
        }
        if self.hold.as_ref().is_some_and(|h| h.deadline <= now) {
            self.ran_out.push(now);
            self.end_hold(now);
        }
        if let Some(hold) = &self.hold {
            return Some(hold.deadline);
        }
        if self.queue.is_empty() {
            return None;
        }
        let mut group = Group { records: Vec::new(), answers: Vec::new(), highest: self.highest, commits: 0 };
        for pending in self.queue.drain(..) {
            let drawn = self.hlc.observe(pending.after).map(|()| self.hlc.now());
            if let Ok(at) = &drawn {
                group.records.extend(pending.ids.iter().map(|(slot, id)| (*at, *slot, *id)));
                group.highest = *at;
                group.commits += 1;
            }
            group.answers.push((pending.client, drawn));
        }
        self.busy = Some(group);
        None
    }

    /// The group is on disk: it becomes visible.
    pub(super) fn publish(&mut self, now: u64) -> Option<Group> {
        let group = self.busy.take()?;
        let stored =
            |(at, slot, id): &(Timestamp, u16, u32)| Stored { at: *at, slot: *slot, id: *id, published: now };
        self.records.extend(group.records.iter().map(stored));
        if group.commits > 0 {
            self.published.push(now);
            (self.position, self.highest) = (self.position + group.commits, group.highest);
        }
        Some(group)
    }

    /// The process dies; the group under way may be on disk or not.
    pub(super) fn crash(&mut self, now: u64, group_is_durable: bool) {
        self.end_hold(now);
        if group_is_durable {
            let _ = self.publish(now);
        }
        (self.up, self.busy, self.reading, self.ended) = (false, None, None, None);
        self.queue.clear();
        let _ = self.lose_base(now);
    }

    /// It starts again: the clock goes on from what is durable.
    pub(super) fn start(&mut self) {
        (self.up, self.life, self.restoring) = (true, self.life + 1, false);
        self.hlc = Hlc::new(self.wall.clone());
        self.hlc.advance(self.pins.values().copied().max().unwrap_or_default().max(self.highest).max(self.safe));
    }

    /// A restore has put its data in place: the same records, a new incarnation, no past.
    pub(super) fn replace(&mut self, incarnation: u128, now: u64) {
        self.incarnation = Incarnation::from_u128(incarnation);
        (self.position, self.safe, self.restoring) = (0, self.hlc.now(), false);
        self.pins.clear();
        let _ = self.lose_base(now);
        self.replaced.push(now);
    }

    /// Collection: versions above the oldest pin stay, others for `retention` milliseconds.
    pub(super) fn collect(&mut self, retention: u64) {
        let recent = Timestamp::new(self.hlc.wall_millis() - retention, 0);
        let pinned = self.pins.values().copied().min().unwrap_or(Timestamp::MAX);
        self.safe = self.safe.max(recent.min(pinned));
    }

    /// The records of `slots` at `at`, ascending; `NotFound` when their versions were collected.
    pub(super) fn snapshot(&self, job: JobId, at: Timestamp, slots: &SlotSet) -> Result<Vec<u32>> {
        self.check_base(job)?;
        if at < self.safe {
            return Err(Error::not_found(format!("versions of {at} have been collected")));
        }
        Ok(self.state(at, slots))
    }

    /// The same for the judge, who sees the past.
    pub(super) fn state(&self, at: Timestamp, slots: &SlotSet) -> Vec<u32> {
        let mut ids: Vec<u32> =
            self.records.iter().filter(|r| r.at <= at && slots.contains(r.slot)).map(|r| r.id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
