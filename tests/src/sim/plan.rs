//! What a seed means: size of the fleet, clocks, network, load, and which faults come when. Everything is drawn from the
//! seed's own generator.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// One microsecond of virtual time.
pub(super) const MICRO: u64 = 1;
/// One millisecond.
pub(super) const MS: u64 = 1000 * MICRO;
/// One second.
pub(super) const SEC: u64 = 1000 * MS;

/// Seeds with this remainder by [`LARGE_EVERY`] run a hundred nodes.
const LARGE_EVERY: u64 = 25;
/// Seeds with the remainder 1 by this run nodes that take bases.
const BASES_EVERY: u64 = 4;
/// Nodes of a large fleet.
pub(super) const LARGE: u16 = 100;
/// Backups asked for in one run.
const MAX_JOBS: u64 = 3;

/// Instead of the number of a step: the step at which a backup is about to enter the ledger.
pub(super) const AT_COMMIT: u64 = 0;

/// A fault that a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The coordinator dies at its step of this number, and another one starts after so long.
    Crash(u64, u64),
    /// The coordinator sleeps from its step of this number for so long; another one may take over meanwhile.
    Suspend(u64, u64, Option<u64>),
    /// A node dies when it gets its command of this number, and comes back after so long.
    NodeCrash(u16, u32, u64),
    /// A node cannot be reached from its command of this number, for so long.
    Partition(u16, u32, u64),
    /// A node's slots move to another one when it gets its command of this number; between the two nobody owns them.
    Move(u16, u16, u32, u64),
    /// The base of a node, and the log with it, is lost when it gets its command of this number.
    LoseBase(u16, u32),
    /// A node's data is restored when it gets its command of this number, which takes so long.
    Replace(u16, u32, u64),
    /// Somebody cancels the job at this step of the coordinator.
    Cancel(u64),
}

/// The run of a seed.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) rng: StdRng,
    pub(super) nodes: u16,
    pub(super) slots_per_region: u16,
    /// Offset of each node's clock from true time in milliseconds, and its drift in millionths.
    pub(super) clocks: Vec<(i64, i64)>,
    /// The same of each coordinator that may start.
    pub(super) coordinators: Vec<i64>,
    pub(super) max_clock_offset: u64,
    pub(super) budget: u64,
    /// Nodes whose store only tells of its position: whether it moved is for the core to see.
    pub(super) plain: bool,
    pub(super) first_without_pause: bool,
    /// Nodes take a base before the cut.
    pub(super) bases: bool,
    /// Hosts that the nodes share, and bases taken at once on one.
    pub(super) hosts: usize,
    pub(super) parallel_bases: usize,
    /// Latency of a message: at least and at most, and one in so many takes a hundred times longer.
    pub(super) latency: (u64, u64),
    pub(super) slow_one_in: u32,
    /// Messages lost, in thousandths.
    pub(super) loss: u32,
    /// Late answers that the core gets to see again, in thousandths of all answers.
    pub(super) again: u32,
    /// Time that a commit takes on disk.
    pub(super) fsync: (u64, u64),
    /// Clients, and the time that one thinks between two writes.
    pub(super) clients: usize,
    pub(super) think: (u64, u64),
    /// Versions are kept this long without a pin, milliseconds.
    pub(super) retention: u64,
    /// When backups are asked for.
    pub(super) jobs: Vec<u64>,
    pub(super) faults: Vec<Fault>,
}

impl Plan {
    pub(super) fn draw(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let large = seed % LARGE_EVERY == 7;
        let nodes = if large { LARGE } else { rng.random_range(1..=12).max(rng.random_range(1..=4)) };
        let max_clock_offset = 60_000;
        // Kinds of clocks: good ones, bad ones below the limit, one that is off.
        let spread = [5, 500, 29_000, 58_000][rng.random_range(0..4usize)];
        let mut clocks: Vec<(i64, i64)> =
            (0..nodes).map(|_| (rng.random_range(-spread..=spread), rng.random_range(-200..=200))).collect();
        if rng.random_ratio(1, 20) {
            let off = rng.random_range(60_500..200_000) * if rng.random() { 1 } else { -1 };
            clocks[usize::from(rng.random_range(0..nodes))].0 = off;
        }
        let coordinators = (0..8).map(|_| rng.random_range(-spread / 8..=spread / 8)).collect();
        let latency = [(100, 300), (200, 5 * MS), (MS, 60 * MS)][rng.random_range(0..3usize)];
        let think =
            [(200, 2 * MS), (MS, 20 * MS), (20 * MS, 200 * MS), (SEC, 5 * SEC)][rng.random_range(0..4usize)];
        let mut plan = Self {
            nodes,
            slots_per_region: if large { 1024 } else { [512, 2048, 4096][rng.random_range(0..3usize)] },
            clocks,
            coordinators,
            max_clock_offset,
            budget: [0, 5, 50, 200, 200, 400, 1000][rng.random_range(0..7usize)] * MS,
            plain: rng.random(),
            first_without_pause: rng.random(),
            bases: seed % BASES_EVERY == 1,
            hosts: 1 + (seed / BASES_EVERY % 8) as usize * 4,
            parallel_bases: 1 + (seed / BASES_EVERY % 3) as usize,
            latency,
            slow_one_in: [0, 0, 200, 30][rng.random_range(0..4usize)],
            loss: [0, 0, 0, 3, 20][rng.random_range(0..5usize)] / if large { 3 } else { 1 },
            again: [0, 30, 200][rng.random_range(0..3usize)],
            fsync: [(50, 200), (MS, 8 * MS), (5 * MS, 80 * MS)][rng.random_range(0..3usize)],
            clients: rng.random_range(1..=if large { 8 } else { 6 }),
            think,
            retention: [2_000, 600_000][rng.random_range(0..2usize)],
            jobs: Vec::new(),
            faults: Vec::new(),
            rng,
        };
        let mut at = 0;
        for _ in 0..plan.rng.random_range(1..=MAX_JOBS) {
            at += plan.rng.random_range(50 * MS..3 * SEC);
            plan.jobs.push(at);
        }
        plan.draw_faults();
        plan
    }

    fn draw_faults(&mut self) {
        let n = u64::from(self.nodes);
        for _ in 0..[0, 0, 1, 1, 2, 4][self.rng.random_range(0..6usize)] {
            let rng = &mut self.rng;
            let node = rng.random_range(0..self.nodes);
            let (command, step) = (rng.random_range(1..12), rng.random_range(1..12 + 6 * n));
            let step = if rng.random_ratio(1, 5) { AT_COMMIT } else { step };
            if self.bases && rng.random_ratio(1, 3) {
                self.faults.push(Fault::LoseBase(node, command));
                continue;
            }
            let brief = rng.random_range(MS..3 * SEC);
            let long = if rng.random_ratio(1, 4) { rng.random_range(SEC..90 * SEC) } else { brief };
            let over = rng.random::<bool>().then(|| rng.random_range(0..long));
            self.faults.push(match rng.random_range(0..14) {
                0..=3 => Fault::Crash(step, brief),
                4..=6 => Fault::Suspend(step, long, over),
                7 | 8 => Fault::NodeCrash(node, command, long),
                9 => Fault::Partition(node, command, long),
                10 | 11 if n > 1 => {
                    let to = (node + rng.random_range(1..self.nodes)) % self.nodes;
                    Fault::Move(node, to, command, rng.random_range(0..20 * MS))
                }
                12 => Fault::Replace(node, command, rng.random_range(0..50 * MS)),
                _ => Fault::Cancel(step),
            });
        }
    }
}
