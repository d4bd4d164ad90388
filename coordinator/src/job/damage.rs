//! What is damaged: objects, and the parts, regions and slots that they hit. Of every damaged part a bit is kept, words
//! only of the first.

use tidemark_proto::{Error, Result, SlotSet};

/// Faults that are told in words.
pub const SHOWN: usize = 20;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Fault {
    /// The object: its key in the store.
    pub object: String,
    /// Regions that it hits, as ranges of numbers, e.g. `3,5-9`; empty where it hits none or a whole backup.
    pub regions: String,
    /// Parts that it hits.
    pub parts: u64,
    /// What is wrong.
    pub cause: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.regions.is_empty() {
            write!(f, "region {}: ", self.regions)?;
        }
        // Causes mostly begin with the object.
        match self.cause.contains(&self.object) {
            true => write!(f, "{}", self.cause),
            false => write!(f, "{}: {}", self.object, self.cause),
        }
    }
}

/// All that is damaged in one backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Damage {
    /// Damaged parts.
    pub parts: u64,
    /// Regions of these parts, as ranges of numbers.
    pub regions: String,
    /// Slots of these parts: of each of them some or all records are hit.
    #[schema(value_type = String)]
    pub slots: SlotSet,
    /// The first faults.
    pub faults: Vec<Fault>,
}

impl Damage {
    /// Whether nothing is damaged.
    pub fn is_none(&self) -> bool {
        self.parts == 0 && self.faults.is_empty()
    }

    /// Adds a fault that hits `slots`.
    pub(crate) fn add(
        &mut self,
        object: String,
        parts: u64,
        slots: &SlotSet,
        slots_per_region: u16,
        cause: String,
    ) {
        self.parts += parts;
        self.slots = self.slots.union(slots);
        self.regions = regions(&self.slots, slots_per_region);
        if self.faults.len() < SHOWN {
            self.faults.push(Fault { object, regions: regions(slots, slots_per_region), parts, cause });
        }
    }

    /// The faults in one line.
    pub fn words(&self) -> String {
        self.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    /// An error that lists what is damaged, if anything is.
    pub fn whole(&self, checked: u64) -> Result<()> {
        if self.is_none() {
            return Ok(());
        }
        let (parts, regions, words) = (self.parts, &self.regions, self.words());
        Err(Error::damaged(format!("{parts} of {checked} parts are damaged, in regions {regions}: {words}")))
    }
}

/// The regions of slots, as ranges of numbers.
fn regions(slots: &SlotSet, slots_per_region: u16) -> String {
    let each = slots_per_region.max(1);
    // A set of region numbers prints like one of slots, and there are no more of them.
    SlotSet::from_ranges(slots.ranges().iter().map(|(a, b)| (a / each, b / each))).to_string()
}

/// A set of part numbers: one bit each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartSet {
    words: Vec<u64>,
    count: u64,
}

impl PartSet {
    /// Puts a number in.
    pub fn insert(&mut self, number: u32) {
        let (word, bit) = (number as usize / 64, 1u64 << (number % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.count += u64::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    /// Whether a number is in it.
    pub fn contains(&self, number: u32) -> bool {
        self.words.get(number as usize / 64).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    /// How many are in it.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether none is in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_bits() {
        let mut set = PartSet::default();
        for n in [0, 63, 64, 1_000_000, 64] {
            set.insert(n);
        }
        assert!([0, 63, 64, 1_000_000].into_iter().all(|n| set.contains(n)));
        assert!([1, 65, 999_999, u32::MAX].into_iter().all(|n| !set.contains(n)));
        assert_eq!(set.len(), 4);
    }

    #[test]
    fn words_are_few_and_sums_are_whole() {
        let mut damage = Damage::default();
        assert!(damage.whole(9).is_ok());
        for n in 0..100u16 {
            damage.add(format!("pack{n}"), 1, &SlotSet::range(n * 8, n * 8 + 7), 4, format!("pack{n} is missing"));
        }
        assert_eq!((damage.parts, damage.faults.len(), &damage.regions[..]), (100, SHOWN, "0-199"));
        let text = damage.whole(200).unwrap_err();
        assert!(
            text.message().starts_with("100 of 200 parts are damaged, in regions 0-199: region 0-1: pack0 is"),
            "{text}"
        );
    }
}
