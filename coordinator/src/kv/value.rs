//! Values of load records: `<version> <words>`, all of it following from seed, key and version.

use std::fmt::Write as _;

/// Prefix of load records' keys.
pub(super) const LOAD: &str = "load:";

const WORDS: [&str; 32] = [
    "amber", "basin", "cliff", "delta", "ebb", "fjord", "gull", "harbour", "inlet", "jetty", "kelp", "lagoon",
    "mast", "neap", "oar", "pier", "quay", "reef", "shoal", "tide", "undertow", "vessel", "wharf", "yawl",
    "anchor", "buoy", "current", "drift", "estuary", "flood", "gale", "horizon",
];

/// Bits of a hash that choose one word.
const WORD_BITS: u32 = 5;

/// The key of record `n`.
pub(super) fn key(seed: u64, n: u64) -> String {
    format!("{LOAD}{seed}:{n}")
}

/// The seed in a load record's key.
pub(super) fn seed_of(key: &[u8]) -> Option<u64> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(LOAD)?;
    rest.split_once(':')?.0.parse().ok()
}

/// The value of `version`, about `size` bytes: exactly, unless the version alone is longer.
pub(super) fn value(seed: u64, key: &[u8], version: u64, size: usize) -> Vec<u8> {
    let mut out = String::with_capacity(size + 16);
    // Writing to a string cannot fail.
    let _ = write!(out, "{version} ");
    let head = out.len();
    let mut hasher = blake3::Hasher::new();
    let _ = hasher.update(&seed.to_le_bytes()).update(&version.to_le_bytes()).update(key);
    let mut stream = hasher.finalize_xof();
    while out.len() < size {
        let mut chunk = [0; 8];
        stream.fill(&mut chunk);
        let mut bits = u64::from_le_bytes(chunk);
        for _ in 0..u64::BITS / WORD_BITS {
            out.push_str(WORDS[(bits % WORDS.len() as u64) as usize]);
            out.push(' ');
            bits >>= WORD_BITS;
        }
    }
    out.truncate(size.max(head));
    out.into_bytes()
}

/// Whether a record's value is what the load would have written for it.
pub(super) fn is_right(key: &[u8], found: &[u8]) -> bool {
    let version = || std::str::from_utf8(found).ok()?.split_once(' ')?.0.parse().ok();
    match (seed_of(key), version()) {
        (Some(seed), Some(version)) => value(seed, key, version, found.len()) == found,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_from_seed_key_and_version() {
        let key = key(7, 12);
        for size in [0, 1, 10, 128, 100_000] {
            let v = value(7, key.as_bytes(), 3, size);
            assert_eq!(v.len(), size.max(2));
            assert!(is_right(key.as_bytes(), &v), "{size}");
        }
        let v = value(7, key.as_bytes(), 3, 128);
        assert_ne!(v, value(8, key.as_bytes(), 3, 128));
        assert!(!is_right(b"load:7:13", &v));
        let mut flipped = v;
        flipped[100] ^= 1;
        assert!(!is_right(key.as_bytes(), &flipped));
    }
}
