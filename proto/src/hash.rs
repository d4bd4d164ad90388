//! Hashes: BLAKE3, 256 bits where content is named, 128 bits where records are compared.

use std::fmt;

/// A BLAKE3 hash, 32 bytes; prints as lower-case hex.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
    /// All zero: the hash before the first link of a chain.
    pub const ZERO: Hash = Hash([0; 32]);
    /// Parses 64 hex digits.
    pub fn parse(s: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(s.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl serde::Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An order-free digest of a set of records: the wrapping sum of their 128-bit hashes, with their count.
///
/// Adding and removing single records is cheap, so a delta carries the digest of the whole state forward.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize,
)]
pub struct SetDigest {
    /// Number of records.
    pub count: u64,
    /// Low half of the sum.
    pub low: u64,
    /// High half of the sum.
    pub high: u64,
}

impl SetDigest {
    fn sum(self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }

    fn from_parts(count: u64, sum: u128) -> Self {
        Self { count, low: sum as u64, high: (sum >> 64) as u64 }
    }

    /// With one record more.
    pub fn add(&mut self, record: u128) {
        *self = Self::from_parts(self.count.wrapping_add(1), self.sum().wrapping_add(record));
    }

    /// With one record less.
    pub fn remove(&mut self, record: u128) {
        *self = Self::from_parts(self.count.wrapping_sub(1), self.sum().wrapping_sub(record));
    }

    /// The digest of both sets together (counts wrap, so a difference can be carried as well).
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self::from_parts(self.count.wrapping_add(other.count), self.sum().wrapping_add(other.sum()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_free_of_order_and_reversible() {
        let (mut a, mut b) = (SetDigest::default(), SetDigest::default());
        for r in [u128::MAX, 5, 1 << 90] {
            a.add(r);
        }
        for r in [1 << 90, 7, 5, u128::MAX] {
            b.add(r);
        }
        assert_ne!(a, b);
        b.remove(7);
        assert_eq!(a, b);
        let mut diff = SetDigest::default();
        diff.remove(5);
        let mut c = SetDigest::default();
        c.add(u128::MAX);
        c.add(1 << 90);
        assert_eq!(a.plus(diff), c);
    }

    #[test]
    fn hash_prints_and_parses() {
        let h = Hash::of(b"x");
        assert_eq!(Hash::parse(&h.to_string()), Some(h));
        assert_eq!(Hash::parse("zz"), None);
    }
}
