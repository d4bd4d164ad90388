//! A model of all writes, and restores to its times.

use std::collections::BTreeMap;

use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_coordinator::kv::Router;
use tidemark_proto::Timestamp;
use tidemark_tests::fleet::{Records, restore_of, write};

/// All that was written, by time.
#[derive(Debug, Default)]
pub(crate) struct Model(BTreeMap<Timestamp, (Vec<u8>, Option<Vec<u8>>)>);

impl Model {
    /// Writes, and notes when.
    pub(crate) async fn write(&mut self, router: &Router, key: String, value: Option<Vec<u8>>) -> Timestamp {
        let at = write(router, key.as_bytes(), value.as_deref()).await.expect("a write");
        let _ = self.0.insert(at, (key.into_bytes(), value));
        at
    }

    /// What was written of a key after `since`.
    pub(crate) fn versions(&self, key: &[u8], since: Timestamp) -> BTreeMap<Timestamp, Option<Vec<u8>>> {
        let own = self.0.range(since.next()..).filter(|(_, (written, _))| written == key);
        own.map(|(at, (_, value))| (*at, value.clone())).collect()
    }

    /// The state at `at`.
    pub(crate) fn at(&self, at: Timestamp) -> Records {
        let mut records = Records::new();
        for (key, value) in self.0.range(..=at).map(|(_, change)| change) {
            match value {
                Some(value) => drop(records.insert(key.clone(), value.clone())),
                None => drop(records.remove(key)),
            }
        }
        records
    }
}

/// A restore of a time, in place.
pub(crate) fn at(target: &str, at: Timestamp) -> RestoreRequest {
    RestoreRequest { backup: String::new(), at: Some(at.0), in_place: true, ..restore_of("orders", target) }
}
