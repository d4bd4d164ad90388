//! Timestamps: the layout of TiDB's timestamp oracle, physical milliseconds << 18 or-ed with an 18-bit counter.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// Bits of the logical counter.
pub const LOGICAL_BITS: u32 = 18;
/// Highest logical counter.
pub const LOGICAL_MAX: u64 = (1 << LOGICAL_BITS) - 1;

/// A point in hybrid logical time. Unit: milliseconds since 1970 UTC << 18 | counter.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Before everything.
    pub const ZERO: Timestamp = Timestamp(0);
    /// After everything.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// From milliseconds since 1970 UTC and a counter (cut to 18 bits).
    pub const fn new(millis: u64, logical: u64) -> Self {
        Self(millis << LOGICAL_BITS | (logical & LOGICAL_MAX))
    }

    /// Milliseconds since 1970 UTC.
    pub const fn millis(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The counter within the millisecond.
    pub const fn logical(self) -> u64 {
        self.0 & LOGICAL_MAX
    }

    /// The next timestamp; a full counter carries into the milliseconds.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The timestamp just before.
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for Timestamp {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        s.parse().map(Self).map_err(|_| Error::request(format!("`{s}` is not a raw timestamp (a whole number)")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_tso() {
        let t = Timestamp::new(1_700_000_000_123, 5);
        assert_eq!(t.0, (1_700_000_000_123 << 18) | 5);
        assert_eq!((t.millis(), t.logical()), (1_700_000_000_123, 5));
        assert_eq!(Timestamp::new(7, LOGICAL_MAX).next(), Timestamp::new(8, 0));
    }
}
