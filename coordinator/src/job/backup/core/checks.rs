//! What a node's answer must be for the cut to stand.

use tidemark_proto::wire::control::{Description, Held, Released, Sealed};
use tidemark_proto::{Error, Result, SlotSet, Timestamp};

use super::super::tiling;
use super::{Core, Node};

impl Core {
    pub(super) fn admit(&mut self, n: usize, description: Description, now: Timestamp) -> Result<()> {
        let name = &self.settings.nodes[n];
        if description.state != "available" {
            return Err(Error::conflict(format!(
                "node {name} is {}: back up when it is available",
                description.state
            )));
        }
        self.check_clock(n, description.clock_millis, now)?;
        self.nodes[n].description = Some(description);
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

    pub(super) fn check_held(&self, n: usize, held: &Held, now: Timestamp) -> Result<()> {
        let name = &self.settings.nodes[n];
        if !held.ownership.is_canonical() {
            return Err(Error::damaged(format!("node {name}: a slot set is not in order")));
        }
        self.check_clock(n, held.clock_millis, now)?;
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
            return Err(Error::conflict(format!("the slots or the role of node {name} changed during the cut")));
        }
        self.nodes[n].released = Some(released);
        Ok(())
    }

    pub(super) fn check_owners<'s>(&'s self, slots: impl Fn(&'s Node) -> Option<&'s SlotSet>) -> Result<()> {
        let names = self.settings.nodes.iter().map(String::as_str);
        let owners = names.zip(&self.nodes).filter_map(|(name, node)| Some((name, slots(node)?)));
        tiling::slots(owners).map_err(|e| {
            let away: Vec<_> = self.settings.required.iter().filter(|r| !self.settings.nodes.contains(r)).collect();
            if away.is_empty() { e } else { e.context(format!("not connected: {away:?}")) }
        })
    }
}
