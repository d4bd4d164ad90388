//! The state of a fleet, small enough to keep: a hash of each key with a hash of its value.

use std::collections::HashMap;

use tidemark_proto::wire::kv::MAX_PAGE;
use tidemark_proto::{Result, Timestamp};

use crate::kv::Router;

type Digest = [u8; 16];

/// Every record of a fleet at one timestamp.
#[derive(Debug, Default)]
pub(super) struct State(HashMap<Digest, Digest>);

/// How two states differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Difference {
    /// Records of the first that the second lacks.
    pub(super) missing: u64,
    /// Records of the second that the first lacks.
    pub(super) extra: u64,
    /// Records with another value.
    pub(super) different: u64,
}

fn digest(bytes: &[u8]) -> Digest {
    let mut out = Digest::default();
    out.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    out
}

impl State {
    /// Reads all records of all nodes at `at`, or now.
    pub(super) async fn read(router: &Router, at: Option<Timestamp>) -> Result<Self> {
        let mut state = Self::default();
        let _ = router
            .scan(b"", at, MAX_PAGE, |record| {
                state.add(&record.key, &record.value);
                Ok(true)
            })
            .await?;
        Ok(state)
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        let _ = self.0.insert(digest(key), digest(value));
    }

    /// Number of records.
    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Compares record by record.
    pub(super) fn compare(&self, other: &Self) -> Difference {
        let found = |key: &Digest| other.0.get(key);
        let missing = self.0.keys().filter(|k| found(k).is_none()).count() as u64;
        let different = self.0.iter().filter(|(k, v)| found(k).is_some_and(|f| f != *v)).count() as u64;
        Difference { missing, different, extra: (other.len() + missing) - self.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(records: &[(&str, &str)]) -> State {
        let mut state = State::default();
        records.iter().for_each(|(k, v)| state.add(k.as_bytes(), v.as_bytes()));
        state
    }

    #[test]
    fn every_kind_of_difference_is_counted() {
        let before = state(&[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]);
        assert_eq!(before.compare(&before), Difference { missing: 0, extra: 0, different: 0 });
        let after = state(&[("a", "1"), ("b", "x"), ("e", "5"), ("f", "6"), ("g", "7")]);
        assert_eq!(before.compare(&after), Difference { missing: 2, extra: 3, different: 1 });
    }
}
