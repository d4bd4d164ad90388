//! Several outputs, each of its slots.

use tidemark_common::run::{Entry, LongValue};
use tidemark_proto::{Error, Result, SlotSet};

use super::Output;

/// Hands each record to the output of its slot.
pub struct Split {
    shares: Vec<(SlotSet, Box<dyn Output>)>,
    /// Whose the last record was: most follow one of the same.
    at: usize,
}

impl Split {
    /// Outputs with their slots, which do not overlap. A record of none of them is a defect.
    pub fn new(shares: Vec<(SlotSet, Box<dyn Output>)>) -> Self {
        Self { shares, at: 0 }
    }
}

impl Output for Split {
    fn write(&mut self, entry: &Entry<'_>, long: Option<&LongValue>) -> Result<bool> {
        let takes = |(slots, _): &(SlotSet, _)| slots.contains(entry.slot);
        if !self.shares.get(self.at).is_some_and(takes) {
            let at = self.shares.iter().position(takes);
            self.at = at.ok_or_else(|| Error::bug(format!("no output for slot {}", entry.slot)))?;
        }
        self.shares[self.at].1.write(entry, long)
    }

    fn finish(&mut self) -> Result<()> {
        self.shares.iter_mut().try_for_each(|(_, output)| output.finish())
    }
}
