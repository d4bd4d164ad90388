//! Before the holds: what the nodes are, that no slot is moving, and the bases of those that need one.
//!
//! A core knows the nodes that it began with. Where a failover or a move of slots makes others of them, it ends with
//! [`Action::Again`]; the driver asks who takes part now and goes on with a new core, the same job and what is left.

use std::time::Duration;

use tidemark_proto::{Error, ErrorKind, Timestamp};

use super::checks::check_settled;
use super::{Action, Back, Core, Phase, Used};

/// How often a job begins again because a base was lost or the nodes' roles or slots changed.
pub const MAX_REPEATS: u32 = 3;
/// Slots that are moving are waited for so long before a hold; then the job fails and names them.
pub const SLOTS_PATIENCE: Duration = Duration::from_secs(300);
/// So many looks in a row must find all slots where they were, once some have moved.
const CALM_LOOKS: u32 = 3;
/// Wait before looking again at slots that are moving.
const SLOTS_LOOK: Duration = Duration::from_secs(1);

/// Whether nodes of this engine take a base before the cut, because a snapshot at the cut would be too costly; their
/// slots move between the nodes by themselves.
pub fn needs_base(engine: &str) -> bool {
    engine == "redis"
}

impl Core {
    pub(super) fn needs_base_of(&self, n: usize) -> bool {
        self.nodes[n].description.as_ref().is_some_and(|d| needs_base(&d.engine))
    }

    pub(super) fn needs_base(&self) -> bool {
        (0..self.nodes.len()).any(|n| self.needs_base_of(n))
    }

    /// What the job has used up, this round included.
    pub fn used(&self) -> Used {
        Used { attempts: self.attempt, pause: self.spent, rounds: self.settings.used.rounds + 1 }
    }

    /// Notes where the trouble of an attempt leads.
    pub(super) fn leads(&mut self, when: bool, back: Back) {
        if when {
            self.back = self.back.max(back);
        }
    }

    pub(super) fn may_begin_again(&self) -> bool {
        self.needs_base() && self.settings.used.rounds < MAX_REPEATS && !self.cancelled
    }

    pub(super) fn again(&mut self) -> Vec<Action> {
        self.phase = Phase::Over;
        vec![Action::Again]
    }

    /// Before any hold of this description.
    pub(super) fn again_or_fail(&mut self, error: Error) -> Vec<Action> {
        if is_passing(&error) && self.may_begin_again() {
            self.void = error.report();
            return self.again();
        }
        self.finish(Err(error))
    }

    pub(super) fn describe(&mut self, now: Timestamp) -> Vec<Action> {
        self.asked = now;
        self.everyone(Phase::Describing, Action::Describe)
    }

    pub(super) fn all_described(&mut self, now: Timestamp) -> Vec<Action> {
        let first = !std::mem::replace(&mut self.described, true);
        if let Some(e) = self.trouble.take() {
            // What is wrong at the very beginning is told at once.
            return if first { self.finish(Err(e)) } else { self.again_or_fail(e) };
        }
        if let Some(e) = self.restless() {
            return self.wait_for_slots(e, now);
        }
        self.moving_since = None;
        match self.check_owners(|n| n.description.as_ref().map(|d| &d.ownership)) {
            Ok(()) => {
                self.in_doubt = false;
                self.prepare(now)
            }
            // The nodes answer one after the other: a slot that was handed over meanwhile is nobody's, or of two. Who is
            // missing is missing still when they are asked again.
            Err(e) if first && self.needs_base() => {
                self.in_doubt = true;
                self.wait_for_slots(e, now)
            }
            Err(e) if first || self.in_doubt => self.finish(Err(e)),
            Err(e) => self.again_or_fail(e),
        }
    }

    /// Why the slots are not quiet: one is moving, or not enough looks have found them where they were since one was. Tools
    /// that move many of them do it one after the other, with short rests.
    fn restless(&mut self) -> Option<Error> {
        let names = self.settings.nodes.iter().zip(&self.nodes);
        let mut moving =
            names.filter_map(|(name, node)| check_settled(name, &node.description.as_ref()?.ownership).err());
        if let Some(e) = moving.next() {
            self.calm = 0;
            return Some(e);
        }
        self.calm = if std::mem::take(&mut self.moved) { 0 } else { self.calm + 1 };
        let quiet = self.moving_since.is_none() && self.calm > 0 || self.calm >= CALM_LOOKS;
        (!quiet).then(|| Error::conflict("slots or roles of nodes have just changed"))
    }

    fn wait_for_slots(&mut self, moving: Error, now: Timestamp) -> Vec<Action> {
        let since = *self.moving_since.get_or_insert(now);
        if u128::from(now.millis().saturating_sub(since.millis())) >= SLOTS_PATIENCE.as_millis() {
            let patience = SLOTS_PATIENCE.as_secs();
            return self.finish(Err(moving.context(format!(
                "no cut is taken while slots move, and they have for {patience} s: end or repair the migration, then \
                 take the backup again"
            ))));
        }
        self.void = moving.report();
        self.phase = Phase::SlotsMoving;
        vec![Action::WaitForSlots(SLOTS_LOOK)]
    }

    fn prepare(&mut self, now: Timestamp) -> Vec<Action> {
        for n in 0..self.nodes.len() {
            self.nodes[n].open = self.needs_base_of(n);
            (self.nodes[n].asked, self.nodes[n].told) = (false, false);
        }
        if !self.needs_base() {
            return self.hold(now);
        }
        self.phase = Phase::Preparing;
        self.next_bases()
    }

    /// A base takes memory and disk of its host: no more than so many there at once.
    fn next_bases(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for n in 0..self.nodes.len() {
            let host = &self.settings.hosts[n];
            let taken =
                self.nodes.iter().zip(&self.settings.hosts).filter(|(o, h)| o.open && o.asked && *h == host);
            if self.nodes[n].open && !self.nodes[n].asked && taken.count() < self.settings.max_parallel_bases.max(1)
            {
                self.nodes[n].asked = true;
                actions.push(Action::Prepare(n));
            }
        }
        actions.extend(self.come_next());
        actions
    }

    /// As many as may take their bases at once on a host are told there that they come next: servers wait before they fork,
    /// and that may pass meanwhile.
    fn come_next(&mut self) -> Vec<Action> {
        let most = self.settings.max_parallel_bases.max(1);
        let mut actions = Vec::new();
        for n in 0..self.nodes.len() {
            let host = &self.settings.hosts[n];
            let before = self.nodes[..n].iter().zip(&self.settings.hosts);
            let waiting = before.filter(|(o, h)| o.open && !o.asked && *h == host).count();
            let node = &mut self.nodes[n];
            if node.open && !node.asked && !node.told && waiting < most {
                node.told = true;
                actions.push(Action::PrepareEarly(n));
            }
        }
        actions
    }

    /// Bases of other nodes go on when one failed in a way that may pass: they count in the next round.
    pub(super) fn go_on_preparing(&mut self) -> Vec<Action> {
        match self.trouble.take() {
            Some(e) if !is_passing(&e) || !self.may_begin_again() => self.finish(Err(e)),
            trouble => {
                self.trouble = trouble;
                self.next_bases()
            }
        }
    }
}

fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Retry)
}
