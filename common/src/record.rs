//! What keys and meta of records hold, by the engine that they come from. The meta says which: empty in records of the
//! embedded store, beginning with [`REDIS`] in those of Redis and Valkey.
//!
//! **Redis**: the key in a run is `number of the database (varint) | key`; the slot is that of the key alone. The value is as
//! in an RDB file: with type byte and footer it is a `RESTORE` payload. The meta, version 1:
//! `1 | type byte | flags (u8) | meaning (16, LE) | expiry (i64 LE, ms since 1970; flag 1) | idle seconds (u64 LE; flag 2) |
//! use frequency (u8; flag 4)`; flag 8: the type's number is one of Valkey's own. Meaning is [`crate::rdb::meaning`].

use tidemark_proto::stored::run::{put_varint, take_varint};
use tidemark_proto::{Error, Result, slot_of};

use crate::rdb::{Family, RecordHead};
use crate::run::LongValue;

/// Longest value of Redis that is backed up and restored, in bytes as it is stored: nobody holds one in memory, but whoever loads
/// it needs as much room on disk.
pub const REDIS_MAX_VALUE: u64 = 1 << 40;
/// First byte of the meta of Redis' records: their layout, version 1.
pub const REDIS: u8 = 1;
/// Bytes of the meta before its optional fields.
const FIXED: usize = 19;

const EXPIRES: u8 = 1;
const IDLE: u8 = 2;
const FREQUENCY: u8 = 4;
const VALKEY: u8 = 8;

/// The meta of one record of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedisMeta {
    /// Layout of the value.
    pub type_byte: u8,
    /// Whose number that is.
    pub family: Family,
    /// Hash of what the value means.
    pub meaning: u128,
    /// When the key expires, milliseconds since 1970.
    pub expire_at_millis: Option<i64>,
    /// Seconds since the key was used.
    pub idle_seconds: Option<u64>,
    /// How often it is used, on the server's scale.
    pub frequency: Option<u8>,
}

impl RedisMeta {
    /// Of a record as it stands in an RDB file.
    pub fn of(head: &RecordHead<'_>, meaning: u128) -> Self {
        Self {
            type_byte: head.type_byte,
            family: head.family,
            meaning,
            expire_at_millis: head.expire_at_millis,
            idle_seconds: head.lru_idle_seconds,
            frequency: head.lfu_freq,
        }
    }

    /// Replaces `out` by the meta's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(self.expire_at_millis.is_some(), EXPIRES)
            | flag(self.idle_seconds.is_some(), IDLE)
            | flag(self.frequency.is_some(), FREQUENCY)
            | flag(self.family == Family::Valkey, VALKEY);
        out.clear();
        out.extend_from_slice(&[REDIS, self.type_byte, flags]);
        out.extend_from_slice(&self.meaning.to_le_bytes());
        self.expire_at_millis.iter().for_each(|at| out.extend_from_slice(&at.to_le_bytes()));
        self.idle_seconds.iter().for_each(|s| out.extend_from_slice(&s.to_le_bytes()));
        out.extend(self.frequency);
    }

    /// From its bytes.
    pub fn decode(meta: &[u8]) -> Result<Self> {
        let damaged = || Error::damaged("the meta of a record is not of Redis, or of a newer build");
        let (fixed, mut rest) = meta.split_at_checked(FIXED).ok_or_else(damaged)?;
        if fixed[0] != REDIS || fixed[2] & !(EXPIRES | IDLE | FREQUENCY | VALKEY) != 0 {
            return Err(damaged());
        }
        let mut long = |flag: u8| -> Result<Option<[u8; 8]>> {
            if fixed[2] & flag == 0 {
                return Ok(None);
            }
            let (field, after) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
            rest = after;
            Ok(Some(*field))
        };
        let (expires, idle) = (long(EXPIRES)?, long(IDLE)?);
        let frequency = match (fixed[2] & FREQUENCY != 0, rest) {
            (true, [frequency]) => Some(*frequency),
            (false, []) => None,
            _ => return Err(damaged()),
        };
        let mut meaning = [0; 16];
        meaning.copy_from_slice(&fixed[3..FIXED]);
        Ok(Self {
            type_byte: fixed[1],
            family: if fixed[2] & VALKEY != 0 { Family::Valkey } else { Family::Redis },
            meaning: u128::from_le_bytes(meaning),
            expire_at_millis: expires.map(i64::from_le_bytes),
            idle_seconds: idle.map(u64::from_le_bytes),
            frequency,
        })
    }
}

/// Replaces `out` by the key of a record of Redis.
pub fn redis_key(db: u64, key: &[u8], out: &mut Vec<u8>) {
    out.clear();
    put_varint(out, db);
    out.extend_from_slice(key);
}

/// Database and key behind the key of a record of Redis.
pub fn split_redis_key(mut key: &[u8]) -> Result<(u64, &[u8])> {
    let db = take_varint(&mut key).map_err(|e| e.context("the key of a record of Redis"))?;
    Ok((db, key))
}

/// The key as users of the store know it.
pub fn user_key<'k>(key: &'k [u8], meta: &[u8]) -> &'k [u8] {
    match meta.first() {
        Some(&REDIS) => split_redis_key(key).map_or(key, |(_, key)| key),
        _ => key,
    }
}

/// The slot that a record must lie in.
pub fn slot_of_record(key: &[u8], meta: &[u8]) -> u16 {
    slot_of(user_key(key, meta))
}

/// The 128-bit hash of a record's meaning: key, meta and value, each delimited; of a record of Redis: key, expiry and the
/// hash of what the value means, whatever its encoding. The first half of BLAKE3.
pub fn record_hash(key: &[u8], meta: &[u8], value: &[u8]) -> u128 {
    let mut hasher = RecordHasher::new(key, meta);
    hasher.value(value);
    hasher.finish()
}

/// As [`record_hash`], of a value that is read in pieces; not read at all where the meta says what it means.
pub fn record_hash_of(key: &[u8], meta: &[u8], value: &LongValue) -> Result<u128> {
    if redis_meaning(meta).is_some() {
        return Ok(record_hash(key, meta, &[]));
    }
    let mut hasher = RecordHasher::new(key, meta);
    value.pieces(|piece| {
        hasher.value(piece);
        Ok(())
    })?;
    Ok(hasher.finish())
}

/// Takes the [`record_hash`] of a record whose value comes in pieces.
#[derive(Debug)]
pub struct RecordHasher {
    hasher: blake3::Hasher,
    with_value: bool,
}

impl RecordHasher {
    /// Of a record with this key and meta; its value follows.
    pub fn new(key: &[u8], meta: &[u8]) -> Self {
        let mut h = blake3::Hasher::new();
        let _ = h.update(&(key.len() as u32).to_le_bytes()).update(key);
        let meaning = redis_meaning(meta);
        match meaning {
            // No other record has a meta of this length in its hash.
            Some((meaning, expires)) => _ = h.update(&u32::MAX.to_le_bytes()).update(meaning).update(expires),
            None => _ = h.update(&(meta.len() as u32).to_le_bytes()).update(meta),
        }
        Self { hasher: h, with_value: meaning.is_none() }
    }

    /// The next bytes of the value.
    pub fn value(&mut self, piece: &[u8]) {
        if self.with_value {
            let _ = self.hasher.update(piece);
        }
    }

    /// The hash.
    pub fn finish(&self) -> u128 {
        let mut out = [0; 16];
        out.copy_from_slice(&self.hasher.finalize().as_bytes()[..16]);
        u128::from_le_bytes(out)
    }
}

/// Meaning and expiry (empty for none) in the meta of a record of Redis.
fn redis_meaning(meta: &[u8]) -> Option<(&[u8], &[u8])> {
    let whole = meta.first() == Some(&REDIS) && meta.len() >= FIXED;
    let expires = if whole && meta[2] & EXPIRES != 0 { meta.get(FIXED..FIXED + 8)? } else { &[] };
    whole.then(|| (&meta[3..FIXED], expires))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_meta() -> impl Strategy<Value = RedisMeta> {
        let valkey = any::<bool>().prop_map(|v| if v { Family::Valkey } else { Family::Redis });
        (any::<u8>(), valkey, any::<u128>(), any::<Option<i64>>(), any::<Option<u64>>(), any::<Option<u8>>())
            .prop_map(|(type_byte, family, meaning, expire_at_millis, idle_seconds, frequency)| RedisMeta {
                type_byte,
                family,
                meaning,
                expire_at_millis,
                idle_seconds,
                frequency,
            })
    }

    #[test]
    fn golden() {
        let meta = RedisMeta {
            type_byte: 16,
            family: Family::Redis,
            meaning: 0x0102,
            expire_at_millis: Some(1_700_000_000_000),
            idle_seconds: None,
            frequency: Some(7),
        };
        let mut bytes = Vec::new();
        meta.encode(&mut bytes);
        let kept = "0110050201000000000000000000000000000000 68e5cf8b010000 07".replace(' ', "");
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), kept);
        let hash = record_hash(b"\0k", &bytes, b"whatever");
        assert_eq!(hash, record_hash(b"\0k", &bytes, b""), "another encoding of the same value");
        assert_eq!(format!("{hash:032x}"), HASH);
        assert_eq!(slot_of_record(b"\0foo", &bytes), slot_of(b"foo"));
        assert_eq!(slot_of_record(b"\0foo", b""), slot_of(b"\0foo"));
    }

    const HASH: &str = "6093645de30098a010e5c8a2c6418682";

    #[test]
    fn what_counts_as_a_change() {
        let base = RedisMeta {
            type_byte: 0,
            family: Family::Redis,
            meaning: 5,
            expire_at_millis: None,
            idle_seconds: None,
            frequency: None,
        };
        let hash = |meta: RedisMeta| {
            let mut bytes = Vec::new();
            meta.encode(&mut bytes);
            record_hash(b"k", &bytes, b"v")
        };
        let same = [RedisMeta { idle_seconds: Some(9), ..base }, RedisMeta { type_byte: 9, ..base }];
        same.into_iter().for_each(|other| assert_eq!(hash(other), hash(base)));
        let changed = [RedisMeta { expire_at_millis: Some(0), ..base }, RedisMeta { meaning: 6, ..base }];
        changed.into_iter().for_each(|other| assert_ne!(hash(other), hash(base)));
    }

    proptest! {
        #[test]
        fn comes_back(meta in any_meta(), db in any::<u64>(), key in proptest::collection::vec(any::<u8>(), 0..40)) {
            let (mut bytes, mut whole) = (Vec::new(), Vec::new());
            meta.encode(&mut bytes);
            prop_assert_eq!(RedisMeta::decode(&bytes).unwrap(), meta);
            redis_key(db, &key, &mut whole);
            prop_assert_eq!(split_redis_key(&whole).unwrap(), (db, &key[..]));
        }

        #[test]
        fn nonsense_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(meta) = RedisMeta::decode(&bytes) {
                let mut again = Vec::new();
                meta.encode(&mut again);
                prop_assert_eq!(again, &bytes[..]);
            }
            let _ = (user_key(&bytes, &bytes), record_hash(&bytes, &bytes, &bytes), split_redis_key(&bytes));
        }
    }
}
