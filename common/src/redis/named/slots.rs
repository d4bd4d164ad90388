//! Slots that commands name.

use tidemark_proto::SlotSet;
use tidemark_proto::slot::SLOT_COUNT;

/// A set of slots that grows by single ones: a bit for each.
#[derive(Debug, Default)]
pub(super) struct Slots(Vec<u64>);

impl Slots {
    /// Adds a slot.
    pub(super) fn insert(&mut self, slot: u16) {
        self.0.resize(usize::from(SLOT_COUNT / 64), 0);
        self.0[usize::from(slot / 64)] |= 1 << (slot % 64);
    }

    /// Whether one of `slots` is in it.
    pub(super) fn any_of(&self, slots: &SlotSet) -> bool {
        let holds = |slot: u16| self.0.get(usize::from(slot / 64)).is_some_and(|word| word >> (slot % 64) & 1 == 1);
        slots.ranges().iter().any(|&(first, last)| (first..=last).any(holds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_found_in_ranges() {
        let mut slots = Slots::default();
        assert!(!slots.any_of(&SlotSet::all()), "none yet");
        [0, 63, 64, 16383].into_iter().for_each(|slot| slots.insert(slot));
        for (range, found) in
            [((0, 0), true), ((1, 62), false), ((60, 70), true), ((65, 16382), false), ((100, 16383), true)]
        {
            assert_eq!(slots.any_of(&SlotSet::range(range.0, range.1)), found, "{range:?}");
        }
        assert!(!slots.any_of(&SlotSet::EMPTY));
    }
}
