//! Hash slots: the 16384 of Redis Cluster (CRC16/XMODEM, hash tags), for every engine.
//! Source: Redis Cluster specification, "Key distribution model" and "Hash tags".

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Number of hash slots.
pub const SLOT_COUNT: u16 = 16384;

/// Of each byte what it adds to the checksum when so many bytes stand behind it, up to three.
const CRC16: [[u16; 256]; 4] = crc16_tables();

const fn crc16_tables() -> [[u16; 256]; 4] {
    let mut tables = [[0u16; 256]; 4];
    let mut i = 0;
    while i < 256 {
        let mut crc = (i as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { crc << 1 ^ 0x1021 } else { crc << 1 };
            bit += 1;
        }
        tables[0][i] = crc;
        i += 1;
    }
    let mut behind = 1;
    while behind < 4 {
        let mut i = 0;
        while i < 256 {
            let crc = tables[behind - 1][i];
            tables[behind][i] = crc << 8 ^ tables[0][(crc >> 8) as usize];
            i += 1;
        }
        behind += 1;
    }
    tables
}

/// CRC16/XMODEM: polynomial 0x1021, start 0. Four bytes at a time: one after the other each waits for the last one's table.
pub fn crc16(bytes: &[u8]) -> u16 {
    let (fours, rest) = bytes.as_chunks::<4>();
    let at = |behind: usize, byte: u8| CRC16[behind][usize::from(byte)];
    let whole = fours.iter().fold(0u16, |crc, &[a, b, c, d]| {
        let [high, low] = crc.to_be_bytes();
        at(3, high ^ a) ^ at(2, low ^ b) ^ at(1, c) ^ at(0, d)
    });
    rest.iter().fold(whole, |crc, &b| crc << 8 ^ at(0, (crc >> 8) as u8 ^ b))
}

/// The slot of a key: CRC16 of the key, or of what stands between the first `{` and the next `}` if that is not empty.
pub fn slot_of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&b| b == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|&b| b == b'}').filter(|&len| len > 0).map(|len| &rest[..len])
    });
    crc16(tag.unwrap_or(key)) & (SLOT_COUNT - 1)
}

/// A set of slots as sorted, disjoint, non-adjacent inclusive ranges.
#[derive(Clone, PartialEq, Eq, Hash, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct SlotSet(Vec<(u16, u16)>);

impl SlotSet {
    /// No slot.
    pub const EMPTY: SlotSet = SlotSet(Vec::new());

    /// All 16384 slots.
    pub fn all() -> Self {
        Self(vec![(0, SLOT_COUNT - 1)])
    }

    /// The inclusive range `first..=last`; empty if `first > last`.
    pub fn range(first: u16, last: u16) -> Self {
        Self::from_ranges([(first, last)])
    }

    /// The union of inclusive ranges, in any order; slots past the last are cut off.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (u16, u16)>) -> Self {
        let mut sorted: Vec<_> =
            ranges.into_iter().map(|(a, b)| (a, b.min(SLOT_COUNT - 1))).filter(|(a, b)| a <= b).collect();
        sorted.sort_unstable();
        let mut out: Vec<(u16, u16)> = Vec::with_capacity(sorted.len());
        for (a, b) in sorted {
            match out.last_mut() {
                Some(last) if u32::from(a) <= u32::from(last.1) + 1 => last.1 = last.1.max(b),
                _ => out.push((a, b)),
            }
        }
        Self(out)
    }

    /// The ranges: sorted, inclusive, disjoint.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// Whether a received set has the form this type promises (sorted, disjoint, in range).
    pub fn is_canonical(&self) -> bool {
        *self == Self::from_ranges(self.0.iter().copied())
    }

    /// Whether no slot is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of slots.
    pub fn len(&self) -> u32 {
        // Received sets are checked by `is_canonical` where it matters; here nothing may overflow.
        self.0.iter().map(|&(a, b)| u32::from(b.saturating_sub(a)) + 1).fold(0, u32::saturating_add)
    }

    /// Whether `slot` is in it.
    pub fn contains(&self, slot: u16) -> bool {
        let i = self.0.partition_point(|&(_, b)| b < slot);
        self.0.get(i).is_some_and(|&(a, _)| a <= slot)
    }

    /// Every slot, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().flat_map(|&(a, b)| a..=b)
    }

    /// Slots in both.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let (mut i, mut j, mut out) = (0, 0, Vec::new());
        while let (Some(&(a, b)), Some(&(c, d))) = (self.0.get(i), other.0.get(j)) {
            if a.max(c) <= b.min(d) {
                out.push((a.max(c), b.min(d)));
            }
            if b < d { i += 1 } else { j += 1 }
        }
        Self(out)
    }

    /// Slots in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::from_ranges(self.0.iter().chain(&other.0).copied())
    }

    /// Slots here that are not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut out = Vec::new();
        for &(a, b) in &self.0 {
            let mut from = u32::from(a);
            for &(c, d) in other.0.iter().filter(|&&(c, d)| d >= a && c <= b) {
                if u32::from(c) > from {
                    out.push((from as u16, c - 1));
                }
                from = u32::from(d) + 1;
            }
            if from <= u32::from(b) {
                out.push((from as u16, b));
            }
        }
        Self(out)
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, &(a, b)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if a == b { write!(f, "{comma}{a}")? } else { write!(f, "{comma}{a}-{b}")? }
        }
        Ok(())
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotSet({self})")
    }
}

impl FromStr for SlotSet {
    type Err = Error;
    /// Parses `0-5460,10000,12000-12999`; `` (nothing) is the empty set.
    fn from_str(s: &str) -> Result<Self> {
        let bad =
            || Error::request(format!("`{s}` is no slot set: write e.g. `0-5460,10000` with slots 0 to 16383"));
        let mut ranges = Vec::new();
        for item in s.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            let (a, b) = item.split_once('-').unwrap_or((item, item));
            let (a, b): (u16, u16) = (a.trim().parse().map_err(|_| bad())?, b.trim().parse().map_err(|_| bad())?);
            if a > b || b >= SLOT_COUNT {
                return Err(bad());
            }
            ranges.push((a, b));
        }
        Ok(Self::from_ranges(ranges))
    }
}

impl serde::Serialize for SlotSet {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SlotSet {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Splits all slots evenly over `n` nodes: node `i` of `n` gets the returned set (the split of `redis-cli --cluster create`).
pub fn even_share(i: u16, n: u16) -> SlotSet {
    let n = u32::from(n.max(1));
    // Rounded to the nearest, as redis-cli does: 0-5460, 5461-10922, 10923-16383 for three.
    let edge = |k: u16| ((2 * u32::from(k) * u32::from(SLOT_COUNT) + n) / (2 * n)) as u16;
    let (from, to) = (edge(i), edge(i + 1));
    if from >= to { SlotSet::EMPTY } else { SlotSet::range(from, to - 1) }
}

/// How slots are grouped into regions: `slots_per_region` neighbours each, fixed when a cluster is first protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionMap {
    slots_per_region: u16,
}

impl RegionMap {
    /// Default group: 64 slots, so 256 regions.
    pub const DEFAULT_SLOTS_PER_REGION: u16 = 64;

    /// A map with regions of `slots_per_region` slots: a power of two from 1 to 16384.
    pub fn new(slots_per_region: u16) -> Result<Self> {
        if !slots_per_region.is_power_of_two() || slots_per_region > SLOT_COUNT {
            return Err(Error::request(format!(
                "{slots_per_region} slots per region: use a power of two from 1 to 16384"
            )));
        }
        Ok(Self { slots_per_region })
    }

    /// Slots of one region.
    pub fn slots_per_region(self) -> u16 {
        self.slots_per_region
    }

    /// Number of regions.
    pub fn count(self) -> u16 {
        SLOT_COUNT / self.slots_per_region
    }

    /// The region of a slot.
    pub fn region_of(self, slot: u16) -> u16 {
        slot / self.slots_per_region
    }

    /// The slots of a region.
    pub fn slots(self, region: u16) -> SlotSet {
        let first = region * self.slots_per_region;
        SlotSet::range(first, first + (self.slots_per_region - 1))
    }
}

#[cfg(test)]
mod tests;
