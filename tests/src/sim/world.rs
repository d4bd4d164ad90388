//! Virtual time and the queue of what comes next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use rand::RngExt;
use tidemark_coordinator::job::backup::core::Cut;
use tidemark_coordinator::repository::{Repository, Store, StoreConfig};
use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::slot::even_share;
use tidemark_proto::wire::control::Position;
use tidemark_proto::{ClusterName, Incarnation, NodeName, SlotSet, Timestamp};
use tokio::runtime::Runtime;

use super::client::{Client, Written};
use super::durable::{Manifest, Op, PartData};
use super::judge::{Ended, Readings};
use super::net::{Answer, Call};
use super::node::Node;
use super::plan::{LARGE, MICRO, MS, Plan, SEC};
use super::process::{Process, ToProcess};
use super::stats::Stats;

/// A run that is not over after so much virtual time hangs.
const LONGEST: u64 = 3600 * SEC;
/// Nor one of so many events.
const MOST_EVENTS: u64 = 2_000_000;

/// Something that happens at its time.
pub(super) enum Ev {
    /// A client goes on.
    Think(usize),
    WriteArrives {
        node: usize,
        client: usize,
        id: u32,
        slot: u16,
        after: Timestamp,
    },
    AckArrives {
        client: usize,
        id: u32,
        at: Option<Timestamp>,
    },
    GivesUp {
        client: usize,
        id: u32,
    },
    /// A group of writes is on disk.
    Synced {
        node: usize,
        life: u32,
    },
    /// A hold may have run out.
    GateOpens {
        node: usize,
        life: u32,
    },
    /// A hold waited for a group until now.
    HoldLate {
        node: usize,
        life: u32,
        call: u64,
    },
    /// A base is whole.
    BaseTaken {
        node: usize,
        life: u32,
        call: Call,
    },
    /// The pin of a seal is on disk.
    Pinned {
        node: usize,
        life: u32,
        call: Call,
        read: (Incarnation, Position),
    },
    PartSent {
        node: usize,
        life: u32,
        call: u64,
        part: Arc<PartData>,
        process: usize,
    },
    UploadSent {
        node: usize,
        life: u32,
        call: Call,
        whole: bool,
    },
    NodeStarts(usize),
    Replaced {
        node: usize,
        life: u32,
    },
    /// A node gives slots away.
    Gives {
        from: usize,
        to: usize,
        gap: u64,
    },
    /// A node takes over slots with their records.
    Adopts {
        to: usize,
        slots: SlotSet,
        ids: Vec<(u16, u32)>,
    },
    Command(Call),
    To(usize, ToProcess),
    /// A request to the repository is carried out.
    Io {
        process: usize,
        run: u64,
        op: Op,
    },
    StartProcess,
    /// Somebody asks for a backup.
    Ask,
}

pub(super) struct World<'r> {
    pub(super) plan: Plan,
    pub(super) now: u64,
    serial: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: HashMap<u64, Ev>,
    pub(super) nodes: Vec<Node>,
    pub(super) names: Vec<NodeName>,
    pub(super) commands: Vec<u32>,
    pub(super) unreachable_until: Vec<u64>,
    pub(super) down_since: Vec<u64>,
    /// Holds that wait for a group, by node.
    pub(super) waiting: Vec<Vec<Call>>,
    pub(super) clients: Vec<Client>,
    pub(super) writes: Vec<Written>,
    pub(super) processes: Vec<Process>,
    pub(super) starting: u32,
    /// Backups that will still be asked for.
    pub(super) asks: u32,
    /// Cuts that were accepted.
    pub(super) accepted: Vec<(JobId, Cut)>,
    pub(super) runtime: &'r Runtime,
    pub(super) repository: Repository,
    pub(super) cluster: ClusterName,
    pub(super) packs: HashMap<(JobId, u16, u16), Arc<PartData>>,
    pub(super) manifests: HashMap<Hash, Manifest>,
    pub(super) readings: HashMap<(JobId, u32, usize), Readings>,
    pub(super) ended: Vec<Ended>,
    /// Jobs that began, with the sum of their budgets.
    pub(super) begun: BTreeMap<JobId, u64>,
    pub(super) broken: Option<String>,
    pub(super) stats: Stats,
    pub(super) calming: bool,
    pub(super) trace: bool,
    pub(super) moves: u32,
}

/// Tells of an event when one seed is replayed.
macro_rules! tell {
    ($world:expr, $($arg:tt)*) => {
        if $world.trace {
            eprintln!("{:>14.3} ms  {}", $world.now as f64 / 1e3, format_args!($($arg)*));
        }
    };
}
pub(super) use tell;

impl<'r> World<'r> {
    pub(super) fn new(seed: u64, runtime: &'r Runtime, trace: bool) -> Self {
        let plan = Plan::draw(seed);
        let store = Store::open(&StoreConfig { url: "memory:///".into(), ..StoreConfig::default() });
        let repository = runtime.block_on(Repository::init(store.expect("memory"), None, 1)).expect("repository");
        let nodes: Vec<Node> = (0..plan.nodes)
            .map(|i| Node::new(i, even_share(i, plan.nodes), plan.clocks[usize::from(i)], (plan.plain, plan.bases)))
            .collect();
        let n = nodes.len();
        let mut world = Self {
            now: 0,
            serial: 0,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            names: nodes.iter().map(|n| NodeName::new(&n.name).expect("name")).collect(),
            nodes,
            commands: vec![0; n],
            unreachable_until: vec![0; n],
            down_since: vec![0; n],
            waiting: (0..n).map(|_| Vec::new()).collect(),
            clients: (0..plan.clients).map(|i| Client::new(i % 2 == 0)).collect(),
            writes: Vec::new(),
            processes: Vec::new(),
            starting: 0,
            asks: plan.jobs.len() as u32,
            accepted: Vec::new(),
            runtime,
            repository,
            cluster: ClusterName::new("sim").expect("name"),
            packs: HashMap::new(),
            manifests: HashMap::new(),
            readings: HashMap::new(),
            ended: Vec::new(),
            begun: BTreeMap::new(),
            broken: None,
            stats: Stats::default(),
            calming: false,
            trace,
            moves: 0,
            plan,
        };
        tell!(world, "seed {seed}: {:?}", world.plan);
        if world.plan.nodes == LARGE {
            world.stats.note("fleets of a hundred nodes");
        }
        world.start_process_in(0);
        for at in world.plan.jobs.clone() {
            world.at(at, Ev::Ask);
        }
        for client in 0..world.clients.len() {
            let first = world.between((0, 20 * MS));
            world.at(first, Ev::Think(client));
        }
        world
    }

    pub(super) fn start_process_in(&mut self, delay: u64) {
        self.starting += 1;
        self.after(delay, Ev::StartProcess);
    }

    pub(super) fn at(&mut self, at: u64, event: Ev) {
        self.serial += 1;
        self.queue.push(Reverse((at.max(self.now), self.serial)));
        let _ = self.events.insert(self.serial, event);
    }

    pub(super) fn after(&mut self, delay: u64, event: Ev) {
        self.at(self.now + delay, event);
    }

    pub(super) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(super) fn between(&mut self, (least, most): (u64, u64)) -> u64 {
        self.plan.rng.random_range(least..=most)
    }

    /// One in so many thousand.
    pub(super) fn chance(&mut self, thousandths: u32) -> bool {
        thousandths > 0 && self.plan.rng.random_range(0..1000) < thousandths
    }

    /// Notes that a promise was broken; the first one counts.
    pub(super) fn broken(&mut self, what: impl FnOnce() -> String) {
        if self.broken.is_none() {
            let what = what();
            tell!(self, "BROKEN: {what}");
            self.broken = Some(what);
        }
    }

    /// Runs to the end: first with all faults, then in calm until every job is settled.
    pub(super) fn run(mut self) -> Result<Stats, String> {
        self.drain()?;
        self.calm_down();
        self.drain()?;
        self.judge_the_end();
        self.stats.add("events", self.serial);
        self.stats.add("seconds of virtual time", self.now / SEC);
        match self.broken {
            Some(what) => Err(what),
            None => Ok(self.stats),
        }
    }

    fn drain(&mut self) -> Result<(), String> {
        while let Some(Reverse((at, serial))) = self.queue.pop() {
            // No two events at one time: the judge asks what came first.
            self.now = at.max(self.now + MICRO);
            let event = self.events.remove(&serial).expect("queued with its event");
            self.dispatch(event);
            if let Some(what) = self.broken.take() {
                return Err(what);
            }
            if self.now > LONGEST || serial > MOST_EVENTS {
                return Err(format!("the run hangs: {serial} events, {} s of virtual time", self.now / SEC));
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, event: Ev) {
        match event {
            Ev::Think(client) => self.think(client),
            Ev::WriteArrives { node, client, id, slot, after } => self.write_arrives(node, client, id, slot, after),
            Ev::AckArrives { client, id, at } => self.ack_arrives(client, id, at),
            Ev::GivesUp { client, id } => self.gives_up(client, id),
            Ev::Synced { node, life } if self.lives(node, life) => self.synced(node),
            Ev::GateOpens { node, life } if self.lives(node, life) => self.go_on(node),
            Ev::HoldLate { node, life, call } if self.lives(node, life) => self.hold_late(node, call),
            Ev::BaseTaken { node, life, call } if self.lives(node, life) => self.base_taken(node, &call),
            Ev::Pinned { node, life, call, read } if self.lives(node, life) => {
                self.pinned(node, &call, read);
            }
            // One that is lost on its way is lost without a word: that the backup has a hole is for the tiling to find.
            Ev::PartSent { node, life, call, part, process }
                if self.lives(node, life) && !self.is_cut_off(node) =>
            {
                let delay = self.latency();
                self.after(delay, Ev::To(process, ToProcess::Part(call, part)));
            }
            Ev::UploadSent { node, life, call, whole } if self.lives(node, life) => {
                let silent = || tidemark_proto::Error::retry("the stream of a part broke");
                let answer = Answer::Uploaded(if whole { Ok(()) } else { Err(silent()) });
                self.reply(node, &call, answer);
            }
            Ev::NodeStarts(node) => self.node_starts(node),
            Ev::Replaced { node, life } if self.lives(node, life) => {
                let (incarnation, now) = (self.plan.rng.random(), self.now);
                self.turn(node).replace(incarnation, now);
            }
            Ev::Gives { from, to, gap } => self.gives(from, to, gap),
            Ev::Adopts { to, slots, ids } => self.adopts(to, slots, ids),
            Ev::Command(call) => self.command(call),
            Ev::To(process, event) => self.reaches_process(process, event),
            Ev::Io { process, run, op } => self.io(process, run, op),
            Ev::StartProcess => self.start_process(),
            Ev::Ask => self.ask(),
            // Of an earlier life of its node.
            _ => {}
        }
    }

    fn lives(&mut self, node: usize, life: u32) -> bool {
        let node = self.turn(node);
        node.up && node.life == life
    }

    /// A node, its clock set to now.
    pub(super) fn turn(&mut self, node: usize) -> &mut Node {
        let node = &mut self.nodes[node];
        node.wall.turn(self.now);
        node
    }

    /// The faults are over: everybody comes back, and a last coordinator settles what is open.
    fn calm_down(&mut self) {
        tell!(self, "calm");
        self.calming = true;
        (self.plan.loss, self.plan.again, self.plan.slow_one_in) = (0, 0, 0);
        self.plan.faults.clear();
        self.unreachable_until.fill(0);
        for node in 0..self.nodes.len() {
            if !self.nodes[node].up {
                self.node_starts(node);
            }
        }
        self.start_process_in(0);
        self.last_writes();
    }
}
