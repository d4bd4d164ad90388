//! Clients: each writes one record after another, on whatever node owns its slot, and sends the next write only when the
//! last one was acknowledged or given up. Half of them carry the highest timestamp they know of. And the nodes' side of it.

use rand::RngExt;
use tidemark_proto::slot::SLOT_COUNT;
use tidemark_proto::{SlotSet, Timestamp};

use super::node::Pending;
use super::plan::{MS, SEC};
use super::world::{Ev, World, tell};

/// A client gives a write up after so long.
const CLIENT_PATIENCE: u64 = 2 * SEC;
/// Outside of cuts a client thinks so many times longer, and at least [`LEAST_IDLE`].
const IDLE_FACTOR: u64 = 20;
const LEAST_IDLE: u64 = 100 * MS;
/// Writes of one run at most, but the last ones.
const MAX_WRITES: usize = 1500;

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    carries: bool,
    /// Highest timestamp that it was told.
    seen: Timestamp,
    /// The write that is out.
    open: Option<u32>,
}

impl Client {
    pub(super) fn new(carries: bool) -> Self {
        Self { carries, seen: Timestamp::ZERO, open: None }
    }
}

/// A write as its client saw it, in true time.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) sent: u64,
    pub(super) acknowledged: Option<u64>,
    /// One that must be acknowledged: everything is in order again.
    pub(super) last: bool,
}

impl World<'_> {
    pub(super) fn think(&mut self, client: usize) {
        if self.calming || self.clients[client].open.is_some() || self.is_over() || self.writes.len() > MAX_WRITES {
            return;
        }
        let slot = self.plan.rng.random_range(0..SLOT_COUNT);
        if !self.send_write(client, slot, false) {
            self.think_again(client);
        }
    }

    fn think_again(&mut self, client: usize) {
        let mut pause = self.between(self.plan.think);
        if !self.is_cutting() {
            pause = (pause * IDLE_FACTOR).max(LEAST_IDLE);
        }
        self.after(pause, Ev::Think(client));
    }

    fn send_write(&mut self, client: usize, slot: u16, last: bool) -> bool {
        let Some(node) = self.nodes.iter().position(|n| n.slots.contains(slot)) else { return false };
        let id = self.writes.len() as u32;
        self.writes.push(Written { sent: self.now, acknowledged: None, last });
        let from = &mut self.clients[client];
        from.open = Some(id);
        let after = if from.carries { from.seen } else { Timestamp::ZERO };
        let delay = self.latency();
        self.after(delay, Ev::WriteArrives { node, client, id, slot, after });
        self.after(CLIENT_PATIENCE, Ev::GivesUp { client, id });
        true
    }

    /// When all is in order again every node takes a write.
    pub(super) fn last_writes(&mut self) {
        for node in 0..self.nodes.len() {
            let slots = &self.nodes[node].slots;
            if let Some((first, _)) = slots.ranges().first().copied() {
                let (id, after) = (self.writes.len() as u32, Timestamp::ZERO);
                self.writes.push(Written { sent: self.now, acknowledged: None, last: true });
                self.after(SEC, Ev::WriteArrives { node, client: 0, id, slot: first, after });
            }
        }
    }

    pub(super) fn write_arrives(&mut self, node: usize, client: usize, id: u32, slot: u16, after: Timestamp) {
        let store = self.turn(node);
        if !store.up {
            return;
        }
        if store.restoring || !store.slots.contains(slot) {
            let delay = self.latency();
            return self.after(delay, Ev::AckArrives { client, id, at: None });
        }
        store.queue.push_back(Pending { ids: vec![(slot, id)], after, client: Some((client, id)) });
        self.go_on(node);
    }

    pub(super) fn ack_arrives(&mut self, client: usize, id: u32, at: Option<Timestamp>) {
        if let Some(at) = at {
            self.writes[id as usize].acknowledged = Some(self.now);
            // Who carries timestamps hears of others' as well.
            for other in 0..self.clients.len() {
                if other == client || self.chance(300) {
                    let seen = &mut self.clients[other].seen;
                    *seen = at.max(*seen);
                }
            }
        } else {
            self.clients[client].seen = Timestamp::ZERO;
        }
        self.gives_up(client, id);
    }

    pub(super) fn gives_up(&mut self, client: usize, id: u32) {
        if self.clients[client].open == Some(id) {
            self.clients[client].open = None;
            self.think_again(client);
        }
    }

    /// The committer takes what it may.
    pub(super) fn go_on(&mut self, node: usize) {
        let now = self.now;
        let store = self.turn(node);
        if store.busy.is_some() {
            return;
        }
        let ran_out = store.hold.as_ref().is_some_and(|h| h.deadline <= now);
        let (opens, life) = (store.next_group(now), store.life);
        let begun = store.busy.is_some();
        if ran_out {
            self.stats.note("holds that ran out");
        }
        if let Some(opens) = opens {
            self.at(opens, Ev::GateOpens { node, life });
        } else if begun {
            let takes = self.between(self.plan.fsync);
            self.after(takes, Ev::Synced { node, life });
        }
    }

    pub(super) fn synced(&mut self, node: usize) {
        let now = self.now;
        let Some(group) = self.turn(node).publish(now) else { return };
        tell!(self, "{} committed {:?}", self.nodes[node].name, group.records);
        for (client, at) in group.answers {
            let Some((client, id)) = client else { continue };
            let delay = self.latency();
            self.after(delay, Ev::AckArrives { client, id, at: at.ok() });
        }
        for call in std::mem::take(&mut self.waiting[node]) {
            let held = self.turn(node).hold_waited(call.job);
            self.held(node, &call, held);
        }
        self.go_on(node);
    }

    /// A node gives the upper half of its slots away, and another one takes them over after a gap.
    pub(super) fn gives(&mut self, from: usize, to: usize, gap: u64) {
        let now = self.now;
        let store = self.turn(from);
        if !store.up || store.busy.is_some() || store.restoring {
            return self.after(MS, Ev::Gives { from, to, gap });
        }
        let all: Vec<u16> = store.slots.iter().collect();
        let Some(middle) = all.get(all.len() / 2) else { return };
        let slots = store.slots.intersect(&SlotSet::range(*middle, SLOT_COUNT - 1));
        store.slots = store.slots.minus(&slots);
        store.config_epoch += 1;
        store.owners_changed.push(now);
        let refused: Vec<_> =
            store.queue.iter().filter(|p| slots.contains(p.ids[0].0)).filter_map(|p| p.client).collect();
        store.queue.retain(|p| !slots.contains(p.ids[0].0));
        let records = store.records.iter().filter(|r| slots.contains(r.slot));
        let ids: Vec<_> = records.map(|r| (r.slot, r.id)).collect();
        for (client, id) in refused {
            self.after(MS, Ev::AckArrives { client, id, at: None });
        }
        tell!(self, "{} gives {slots} to {}", self.nodes[from].name, self.nodes[to].name);
        self.stats.note("moves of slots");
        self.moves += 1;
        self.after(gap, Ev::Adopts { to, slots, ids });
    }

    pub(super) fn adopts(&mut self, to: usize, slots: SlotSet, ids: Vec<(u16, u32)>) {
        let now = self.now;
        let store = self.turn(to);
        if !store.up || store.busy.is_some() || store.restoring || store.hold.is_some() {
            return self.after(MS, Ev::Adopts { to, slots, ids });
        }
        // All at once: a commit of its own, with its sync.
        if !ids.is_empty() {
            let waiting = std::mem::take(&mut store.queue);
            store.queue.push_back(Pending { ids, after: Timestamp::ZERO, client: None });
            let _ = store.next_group(now);
            let _ = store.publish(now);
            store.queue = waiting;
        }
        store.slots = store.slots.union(&slots);
        store.config_epoch += 1;
        store.owners_changed.push(now);
        tell!(self, "{} takes over {slots}", self.nodes[to].name);
        self.moves -= 1;
        self.go_on(to);
    }
}
