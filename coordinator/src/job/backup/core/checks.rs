//! What a node's answer must be for the cut to stand.

use tidemark_proto::wire::control::{Description, Held, Ownership, Released, Sealed};
use tidemark_proto::{Error, Result, SlotSet, Timestamp};

use super::super::members::AVAILABLE;
use super::super::tiling;
use super::{Back, Core, Node};

impl Core {
    pub(super) fn admit(&mut self, n: usize, description: Description, now: Timestamp) -> Result<()> {
        let name = &self.settings.nodes[n];
        if description.state != AVAILABLE {
            return Err(Error::conflict(format!(
                "node {name} is {}: back up when it is available",
                description.state
            )));
        }
        self.check_clock(n, description.clock_millis, now)?;
        let before = self.nodes[n].description.replace(description);
        let now = self.nodes[n].description.as_ref();
        self.moved |= before.is_some_and(|b| now.is_some_and(|d| d.ownership != b.ownership));
        Ok(())
    }

    /// A clock that was read between the question and now. The answer may have lain here for long, when the network or
    /// this process stood still: only what lies outside of the two is the node's fault.
    pub(super) fn check_clock(&self, n: usize, clock_millis: u64, now: Timestamp) -> Result<()> {
        let behind = self.asked.millis().saturating_sub(clock_millis);
        let offset = behind.max(clock_millis.saturating_sub(now.millis()));
        if u128::from(offset) > self.settings.max_clock_offset.as_millis() {
            let most = self.settings.max_clock_offset.as_millis();
            return Err(Error::config(format!(
                "the clock of node {} is {offset} ms away from the coordinator's (at most {most}): set its clock",
                self.settings.nodes[n]
            )));
        }
        Ok(())
    }

    pub(super) fn check_held(&mut self, n: usize, held: &Held, now: Timestamp) -> Result<()> {
        let name = self.settings.nodes[n].as_str();
        if !held.ownership.is_canonical() {
            return Err(Error::damaged(format!("node {name}: a slot set is not in order")));
        }
        self.check_clock(n, held.clock_millis, now)?;
        let settled = check_settled(name, &held.ownership);
        self.leads(settled.is_err(), Back::Describe);
        settled?;
        let name = &self.settings.nodes[n];
        if self.needs_base_of(n) {
            // What its base is of is for the engine to know: it holds only while that stands.
            return Ok(());
        }
        let known = self.nodes[n].description.as_ref();
        if known.is_none_or(|d| d.incarnation != held.incarnation) {
            return Err(Error::conflict(format!("the data of node {name} was replaced while the backup began")));
        }
        Ok(())
    }

    /// Two clocks may each be near the coordinator's and far from each other: the slower one's node would refuse the cut.
    pub(super) fn check_spread(&self) -> Result<()> {
        let most = self.settings.max_clock_offset.as_millis() as u64;
        for (name, node) in self.settings.nodes.iter().zip(&self.nodes) {
            let clock = node.held.as_ref().map_or(self.at.millis(), |h| h.clock_millis);
            let behind = self.at.millis().saturating_sub(clock);
            if behind > most {
                return Err(Error::config(format!(
                    "node {name} is {behind} ms behind the cut, which is above every timestamp that any node \
                     issued (at most {most}): set the clocks of the nodes"
                )));
            }
        }
        Ok(())
    }

    pub(super) fn check_sealed(&mut self, n: usize, sealed: Sealed) -> Result<()> {
        let name = &self.settings.nodes[n];
        if self.nodes[n].held.as_ref().is_none_or(|h| h.position != sealed.position) {
            return Err(Error::conflict(format!("node {name} moved between the two readings")));
        }
        self.nodes[n].sealed = Some(sealed);
        Ok(())
    }

    pub(super) fn check_released(&mut self, n: usize, released: Released) -> Result<()> {
        let name = &self.settings.nodes[n];
        if self.nodes[n].held.as_ref().is_some_and(|h| h.ownership != released.ownership) {
            let changed =
                || Error::conflict(format!("the slots or the role of node {name} changed during the cut"));
            let moving = check_settled(name, &released.ownership).err();
            let (back, error) = match moving {
                Some(moving) => (Back::Describe, moving),
                None => (Back::Again, changed()),
            };
            self.leads(true, back);
            return Err(error);
        }
        self.nodes[n].released = Some(released);
        Ok(())
    }

    /// The nodes own every slot once.
    pub(super) fn check_owners<'s>(&'s self, of: impl Fn(&'s Node) -> Option<&'s Ownership>) -> Result<()> {
        let shown = |name: &String, o: &Ownership| match self.needs_base() {
            true => format!("{name} (config epoch {})", o.config_epoch),
            false => name.clone(),
        };
        let all = self.settings.nodes.iter().zip(&self.nodes);
        let owners: Vec<_> = all.filter_map(|(name, node)| of(node).map(|o| (shown(name, o), &o.slots))).collect();
        tiling::slots(owners.iter().map(|(name, slots)| (name.as_str(), *slots))).map_err(|e| {
            let covered = owners.iter().fold(SlotSet::EMPTY, |all, (_, slots)| all.union(slots));
            let away: Vec<_> = self.settings.required.iter().filter(|r| !self.settings.nodes.contains(r)).collect();
            match () {
                () if !away.is_empty() => e.context(format!("not connected: {away:?}")),
                () if self.needs_base() && covered != SlotSet::all() => e.context(self.who_is_missing()),
                () => e,
            }
        })
    }

    fn who_is_missing(&self) -> String {
        let others = match &self.settings.others[..] {
            [] => String::new(),
            others => format!("; connected, but no owner of slots: {}", others.join(", ")),
        };
        format!("an agent beside a primary is missing, start one (a shard may have failed over to it){others}")
    }
}

/// No slot is moving: its keys are on two nodes, and which one answers for a key changes from key to key.
pub(super) fn check_settled(name: &str, ownership: &Ownership) -> Result<()> {
    match ownership.moving.is_empty() {
        true => Ok(()),
        false => Err(Error::conflict(format!("slots {} of node {name} are moving", ownership.moving))),
    }
}
