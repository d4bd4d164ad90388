//! Keys of the data keyspace: `slot (u16 BE) ++ escaped key ++ 00 00 ++ !timestamp (u64 BE)`.
//!
//! In the escaped key, 00 stands as 00 FF. So the encoding keeps the order of (slot, key bytes, newest first), and no
//! encoded key is a prefix of another: the terminator 00 00 sorts below every continuation (00 FF or a higher byte).
//! A change index key is `slot ++ timestamp (u64 BE) ++ raw key`.

use tidemark_proto::{Error, Result, Timestamp};

/// Bytes of the timestamp at the end of an encoded key.
const TIME: usize = 8;
/// Bytes of the slot at its beginning.
const SLOT: usize = 2;
const TERMINATOR: [u8; 2] = [0, 0];
const ESCAPED_ZERO: [u8; 2] = [0, 0xFF];
/// Sorts behind every version of a key when it follows the key's prefix.
const PAST_VERSIONS: [u8; TIME + 1] = [0xFF; TIME + 1];

/// Writes `slot ++ escaped` without a terminator: what all keys beginning with `start` begin with.
pub(super) fn encode_start(out: &mut Vec<u8>, slot: u16, start: &[u8]) {
    out.clear();
    out.extend_from_slice(&slot.to_be_bytes());
    let mut rest = start;
    while let Some(zero) = rest.iter().position(|&b| b == 0) {
        out.extend_from_slice(&rest[..zero]);
        out.extend_from_slice(&ESCAPED_ZERO);
        rest = &rest[zero + 1..];
    }
    out.extend_from_slice(rest);
}

/// Writes the prefix that all versions of a key share.
pub(super) fn encode_prefix(out: &mut Vec<u8>, slot: u16, key: &[u8]) {
    encode_start(out, slot, key);
    out.extend_from_slice(&TERMINATOR);
}

/// Writes the encoded key of one version.
pub(super) fn encode(out: &mut Vec<u8>, slot: u16, key: &[u8], at: Timestamp) {
    encode_prefix(out, slot, key);
    push_time(out, at);
}

/// Appends a version's timestamp to a prefix.
pub(super) fn push_time(out: &mut Vec<u8>, at: Timestamp) {
    out.extend_from_slice(&(!at.0).to_be_bytes());
}

/// Splits an encoded key into prefix and timestamp.
pub(super) fn split(encoded: &[u8]) -> Result<(&[u8], Timestamp)> {
    let (prefix, time) = encoded.split_last_chunk::<TIME>().ok_or_else(damaged)?;
    if prefix.len() < SLOT + TERMINATOR.len() {
        return Err(damaged());
    }
    Ok((prefix, Timestamp(!u64::from_be_bytes(*time))))
}

/// Slot and raw key of a prefix. The key borrows the prefix if nothing was escaped, else `scratch`.
pub(super) fn decode<'a>(prefix: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<(u16, &'a [u8])> {
    let (slot, rest) = prefix.split_first_chunk::<SLOT>().ok_or_else(damaged)?;
    let escaped = rest.strip_suffix(&TERMINATOR).ok_or_else(damaged)?;
    let slot = u16::from_be_bytes(*slot);
    if !escaped.contains(&0) {
        return Ok((slot, escaped));
    }
    scratch.clear();
    let mut rest = escaped;
    while let Some(zero) = rest.iter().position(|&b| b == 0) {
        if rest.get(zero + 1) != Some(&ESCAPED_ZERO[1]) {
            return Err(damaged());
        }
        scratch.extend_from_slice(&rest[..=zero]);
        rest = &rest[zero + 2..];
    }
    scratch.extend_from_slice(rest);
    Ok((slot, scratch))
}

/// The slot of an encoded key.
pub(super) fn slot(encoded: &[u8]) -> Result<u16> {
    encoded.first_chunk::<SLOT>().map(|s| u16::from_be_bytes(*s)).ok_or_else(damaged)
}

/// First encoded key at or above a sort key (slot BE ++ raw key).
pub(super) fn bound(sort_key: &[u8]) -> Result<Vec<u8>> {
    let Some((slot, key)) = sort_key.split_first_chunk::<SLOT>() else {
        return Err(Error::request("a sort key of fewer than 2 bytes: it begins with the slot (u16, big-endian)"));
    };
    let mut out = Vec::with_capacity(sort_key.len() + TERMINATOR.len());
    encode_prefix(&mut out, u16::from_be_bytes(*slot), key);
    Ok(out)
}

/// First encoded key above every version of a sort key.
pub(super) fn bound_after(sort_key: &[u8]) -> Result<Vec<u8>> {
    let mut out = bound(sort_key)?;
    out.extend_from_slice(&PAST_VERSIONS);
    Ok(out)
}

/// The end (exclusive) of a prefix's versions.
pub(super) fn end_of_versions(prefix: &[u8]) -> Vec<u8> {
    [prefix, &PAST_VERSIONS].concat()
}

/// First encoded key of a slot; also of 16384, the end of all.
pub(super) fn slot_start(slot: u16) -> [u8; SLOT] {
    slot.to_be_bytes()
}

/// Key of the change index.
pub(super) fn change(out: &mut Vec<u8>, slot: u16, at: Timestamp, key: &[u8]) {
    out.clear();
    out.extend_from_slice(&change_start(slot, at));
    out.extend_from_slice(key);
}

/// First key of the change index in `slot` at or above `at`.
pub(super) fn change_start(slot: u16, at: Timestamp) -> [u8; SLOT + TIME] {
    let mut out = [0; SLOT + TIME];
    out[..SLOT].copy_from_slice(&slot.to_be_bytes());
    out[SLOT..].copy_from_slice(&at.0.to_be_bytes());
    out
}

/// Slot, timestamp and raw key of a change index key.
pub(super) fn split_change(entry: &[u8]) -> Result<(u16, Timestamp, &[u8])> {
    let (slot, rest) = entry.split_first_chunk::<SLOT>().ok_or_else(damaged)?;
    let (time, key) = rest.split_first_chunk::<TIME>().ok_or_else(damaged)?;
    Ok((u16::from_be_bytes(*slot), Timestamp(u64::from_be_bytes(*time)), key))
}

fn damaged() -> Error {
    Error::damaged("a key of the embedded store has no valid form: restore this node from a backup")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kv::MAX_KEY;

    /// Longest key that the storage library takes.
    const MAX_ENCODED: usize = 65_535;

    fn encoded(slot: u16, key: &[u8], at: u64) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, slot, key, Timestamp(at));
        out
    }

    /// Bytes that lean towards what escapes break on.
    fn nasty() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(
            prop_oneof![3 => Just(0u8), 2 => Just(0xFF), 1 => Just(1), 1 => Just(0xFE), 2 => any::<u8>()],
            0..8,
        )
    }

    #[test]
    fn the_longest_key_fits_in_its_worst_form() {
        assert!(encoded(16383, &vec![0; MAX_KEY], 1).len() <= MAX_ENCODED);
    }

    #[test]
    fn damage_is_an_error() {
        let mut scratch = Vec::new();
        assert!(split(&[0; 11]).is_err());
        assert!(decode(&[0, 1, b'a', 0, 7, 0, 0], &mut scratch).is_err());
        assert!(decode(&[0, 1, b'a', 0, 7], &mut scratch).is_err());
        assert!(bound(&[1]).is_err() && split_change(&[0; 9]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn order_is_slot_key_newest_first(
            a in (0u16..3, nasty(), any::<u64>()),
            b in (0u16..3, nasty(), any::<u64>()),
        ) {
            let (ea, eb) = (encoded(a.0, &a.1, a.2), encoded(b.0, &b.1, b.2));
            let want = (a.0, &a.1, std::cmp::Reverse(a.2)).cmp(&(b.0, &b.1, std::cmp::Reverse(b.2)));
            prop_assert_eq!(ea.cmp(&eb), want);
            let (pa, pb) = (split(&ea).unwrap().0, split(&eb).unwrap().0);
            prop_assert!(pa == pb || !pa.starts_with(pb), "a prefix within another");
        }

        #[test]
        fn comes_back(slot in 0u16..16384, key in nasty(), at in any::<u64>()) {
            let e = encoded(slot, &key, at);
            let (prefix, time) = split(&e).unwrap();
            let mut scratch = Vec::new();
            prop_assert_eq!(decode(prefix, &mut scratch).unwrap(), (slot, &key[..]));
            prop_assert_eq!(time, Timestamp(at));
            let mut c = Vec::new();
            change(&mut c, slot, Timestamp(at), &key);
            prop_assert_eq!(split_change(&c).unwrap(), (slot, Timestamp(at), &key[..]));
        }

        #[test]
        fn bounds_lie_around_all_versions(key in nasty(), other in nasty(), at in any::<u64>()) {
            let sort = |k: &[u8]| [&7u16.to_be_bytes()[..], k].concat();
            let e = encoded(7, &other, at);
            prop_assert_eq!(e >= bound(&sort(&key)).unwrap(), other >= key);
            prop_assert_eq!(e >= bound_after(&sort(&key)).unwrap(), other > key);
            let mut start = Vec::new();
            encode_start(&mut start, 7, &key);
            prop_assert_eq!(e.starts_with(&start), other.starts_with(&key));
        }
    }
}
