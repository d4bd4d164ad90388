//! What the benches share.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_proto::slot_of;

/// One record of bench data.
#[derive(Debug, Clone)]
pub struct BenchRecord {
    /// Hash slot.
    pub slot: u16,
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

/// Bytes of a bench value.
pub const VALUE: usize = 1000;

/// About `bytes` of text-like records, ascending by (slot, key): the same for the same seed.
pub fn text_records(seed: u64, bytes: u64) -> Vec<BenchRecord> {
    let mut rng = StdRng::seed_from_u64(seed);
    let words: Vec<String> = (0..2000)
        .map(|_| (0..rng.random_range(3..10)).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect())
        .collect();
    let mut records: Vec<BenchRecord> = (0..bytes / VALUE as u64)
        .map(|i| {
            let mut value = Vec::with_capacity(VALUE + 16);
            while value.len() < VALUE {
                // Squared, so that some words are frequent, as in text.
                let at: f64 = rng.random::<f64>();
                value.extend_from_slice(words[(at * at * words.len() as f64) as usize].as_bytes());
                value.push(b' ');
            }
            value.truncate(VALUE);
            let key = format!("record:{i:010}").into_bytes();
            BenchRecord { slot: slot_of(&key), key, value }
        })
        .collect();
    records.sort_by(|a, b| (a.slot, &a.key).cmp(&(b.slot, &b.key)));
    records
}

/// Millions of bytes a second since `start`.
pub fn mb_per_second(bytes: u64, start: Instant) -> f64 {
    bytes as f64 / 1e6 / start.elapsed().as_secs_f64()
}
