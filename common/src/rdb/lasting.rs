//! Hashes whose fields expire: what of one is left at a time, for who compares it with what a server holds by then.

use tidemark_proto::Result;
use tidemark_proto::hash::SetDigest;

use super::decode::RawValue;
use super::meaning::Meaning;
use super::types::{Class, Family};
use super::visitor::{Role, ValueVisitor};

/// The fields of a hash, by their hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lasting {
    /// All of them.
    pub all: SetDigest,
    /// Those that expire: when, in milliseconds since 1970, and the hash of each.
    pub expiring: Vec<(i64, u128)>,
}

impl Lasting {
    /// Those of a value.
    pub fn of<V: RawValue + ?Sized>(type_byte: u8, family: Family, raw: &V) -> Result<Self> {
        let mut fields = Fields { meaning: Meaning::new(), found: Self::default() };
        raw.show(type_byte, family, &mut fields)?;
        fields.found.all = fields.meaning.members();
        Ok(fields.found)
    }

    /// Those that do not expire at or before `millis`.
    pub fn left(&self, millis: i64) -> SetDigest {
        let mut left = self.all;
        self.expiring.iter().filter(|(at, _)| *at <= millis).for_each(|(_, hash)| left.remove(*hash));
        left
    }

    /// When the last of them expires, and the hash with it; `None` where one stays.
    pub fn ends(&self) -> Option<i64> {
        let every = self.expiring.len() as u64 == self.all.count;
        self.expiring.iter().map(|(at, _)| *at).max().filter(|_| every)
    }
}

struct Fields {
    meaning: Meaning,
    found: Lasting,
}

impl ValueVisitor for Fields {
    fn class(&mut self, class: Class) -> Result<()> {
        self.meaning.class(class)
    }

    fn begin(&mut self, role: Role, len: u64) -> Result<()> {
        self.meaning.begin(role, len)
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        self.meaning.piece(bytes)
    }

    fn end(&mut self, role: Role) -> Result<()> {
        self.meaning.end(role)
    }

    fn field_end(&mut self, expire_at_millis: Option<i64>) -> Result<()> {
        let sum = |digest: SetDigest| u128::from(digest.high) << 64 | u128::from(digest.low);
        let before = sum(self.meaning.members());
        self.meaning.field_end(expire_at_millis)?;
        let hash = sum(self.meaning.members()).wrapping_sub(before);
        self.found.expiring.extend(expire_at_millis.map(|at| (at, hash)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fields::move_fields;
    use super::super::types::number as n;
    use super::*;
    use crate::expiry::{Expiry, ExpiryMode};
    use tidemark_proto::Timestamp;

    /// A hash of Valkey: fields `a` to `c`, of which the first ones expire then.
    fn hash(times: [i64; 3]) -> Vec<u8> {
        let mut raw = vec![3];
        for (name, at) in [b'a', b'b', b'c'].into_iter().zip(times) {
            raw.extend([1, name, 1, b'v']);
            raw.extend(at.to_le_bytes());
        }
        raw
    }

    #[test]
    fn what_is_left_is_what_a_server_has_left() {
        let of = |raw: &[u8]| Lasting::of(n::VALKEY_HASH_2, Family::Valkey, raw).unwrap();
        let whole = hash([1000, 2000, -1]);
        let fields = of(&whole);
        assert_eq!((fields.all.count, fields.expiring.len(), fields.ends()), (3, 2, None));
        assert_eq!(fields.left(999), fields.all);
        // Of a server that has dropped the first one, and of one that drops both later than it may.
        let rule = Expiry::new(ExpiryMode::Shift, Timestamp::new(1500, 0), 0);
        let (type_byte, later) = move_fields(n::VALKEY_HASH_2, Family::Valkey, &whole, &rule).unwrap().unwrap();
        let later = Lasting::of(type_byte, Family::Valkey, &later[..]).unwrap();
        assert_eq!((later.all.count, later.left(1500)), (2, fields.left(1500)));
        assert_eq!(later.left(2500), fields.left(2500));
        assert_ne!(later.all, fields.all);
        assert_eq!(of(&hash([1000, 3000, 2000])).ends(), Some(3000));
    }
}
