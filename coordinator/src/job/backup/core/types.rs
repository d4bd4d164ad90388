//! What goes into the core and what comes out of it.

use std::time::Duration;

use tidemark_proto::wire::control::{Description, Held, Released, Sealed};
use tidemark_proto::{Result, SlotSet, Timestamp};

/// What a job's core is told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names of the nodes, in the order of their numbers.
    pub nodes: Vec<String>,
    /// Where each node's agent runs: bases of one host are staggered.
    pub hosts: Vec<String>,
    /// Bases that are taken at once on one host; at least 1.
    pub max_parallel_bases: usize,
    /// Connected nodes that take no part, with the reason, for errors.
    pub others: Vec<String>,
    /// Names of nodes that the policy asks for; none where the nodes themselves move slots between them.
    pub required: Vec<String>,
    /// Writes are held at most this long in all.
    pub budget: Duration,
    /// Whether the first attempt goes without a pause: a quiet fleet needs none.
    pub first_without_pause: bool,
    /// A node whose clock is further away is refused.
    pub max_clock_offset: Duration,
    /// The last cut in the ledger.
    pub last_cut: Timestamp,
    /// What earlier rounds of the job have used up.
    pub used: Used,
}

/// What a job has used up of what it may, over its rounds: each begins with the nodes as they are then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Attempts at a cut.
    pub attempts: u32,
    /// Budgets of those together.
    pub pause: Duration,
    /// Rounds that ended in [`Action::Again`].
    pub rounds: u32,
}

/// The evidence of a cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Its timestamp.
    pub at: Timestamp,
    /// The attempt that held.
    pub attempt: u32,
    /// The readings of each node.
    pub nodes: Vec<NodeCut>,
}

/// The evidence of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCut {
    /// First reading.
    pub held: Held,
    /// Second reading.
    pub sealed: Sealed,
    /// After the release.
    pub released: Released,
}

/// Something happened. Numbers are those of nodes and of the attempt that the answer belongs to.
#[derive(Debug)]
pub enum Event {
    /// The job begins.
    Start,
    /// A node described itself.
    Described(usize, Result<Description>),
    /// The base of a node stands, and its log goes on from it.
    Prepared(usize, Result<()>),
    /// The first reading.
    Held(usize, u32, Result<Held>),
    /// The second reading.
    Sealed(usize, u32, Result<Sealed>),
    /// A node goes on.
    Released(usize, u32, Result<Released>),
    /// The wait between attempts is over.
    Waited,
    /// A node has sent all its parts.
    Uploaded(usize, Result<()>),
    /// Packs and job records are durable.
    Stored(Result<()>),
    /// The ledger holds the backup.
    Committed(Result<()>),
    /// Somebody wants the job to end.
    Cancel,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask a node what it is.
    Describe(usize),
    /// Let a node take its base.
    Prepare(usize),
    /// Tell a node that it takes its base next: a hint, which no event answers.
    PrepareEarly(usize),
    /// Let a node send parts of its base, of these slots, while the bases of others are taken: a hint, which no event answers.
    UploadEarly(usize, SlotSet),
    /// Ask a node to hold, for at most the budget.
    Hold(usize, u32, Duration),
    /// Tell a node the cut.
    Seal(usize, u32, Timestamp),
    /// Let a node go on.
    Release(usize, u32),
    /// Come back with [`Event::Waited`] after this long.
    Wait(Duration),
    /// Come back with [`Event::Waited`] after this long: slots are moving, and no cut is taken meanwhile.
    WaitForSlots(Duration),
    /// This core is done: ask who takes part now, and go on with a new core and what [`super::Core::used`] tells.
    Again,
    /// The cut holds.
    CutDone(Box<Cut>),
    /// Let a node send its parts.
    Upload(usize),
    /// Make everything durable.
    Store,
    /// Write manifest and ledger entry.
    Commit,
    /// The job has ended: settle with the nodes. `true`: committed.
    Settle(bool),
}
