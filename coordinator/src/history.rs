//! The highest ledger entries that anybody was told of. Agents remember theirs for good, the coordinator while it runs: a
//! ledger that ends before, or holds another entry at that number, was rolled back, cut or swapped.

use std::collections::HashMap;
use std::sync::Mutex;

use tidemark_proto::hash::Hash;
use tidemark_proto::{ClusterName, Error, Result};

use crate::repository::Ledger;

/// An entry that somebody was told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: Hash,
    /// Who was told, for messages.
    pub by: String,
}

/// The highest entry of each cluster.
#[derive(Debug, Default)]
pub struct History {
    seen: Mutex<HashMap<ClusterName, Seen>>,
}

impl History {
    /// Takes note of an entry; a lower number than the one known is ignored.
    pub fn see(&self, cluster: &ClusterName, number: u64, hash: Hash, by: impl Into<String>) {
        if number == 0 || hash == Hash::ZERO {
            return;
        }
        let mut seen = self.seen.lock().expect("seen");
        if seen.get(cluster).is_none_or(|known| known.number < number) {
            let _ = seen.insert(cluster.clone(), Seen { number, hash, by: by.into() });
        }
    }

    /// The highest entry of a cluster that anybody was told of.
    pub fn of(&self, cluster: &ClusterName) -> Option<Seen> {
        self.seen.lock().expect("seen").get(cluster).cloned()
    }

    /// Compares a ledger that was just read, and takes note of its end. `Damaged` when it is not what was seen.
    pub fn check(&self, cluster: &ClusterName, ledger: &Ledger) -> Result<()> {
        if let Some(seen) = self.of(cluster) {
            seen.check(cluster, ledger)?;
        }
        let (number, hash) = ledger.tail();
        self.see(cluster, number, hash, "this coordinator");
        Ok(())
    }
}

impl Seen {
    /// `Damaged` when the entry is not in this ledger.
    pub fn check(&self, cluster: &ClusterName, ledger: &Ledger) -> Result<()> {
        let Seen { number, hash, by } = self;
        let here = ledger.entries().iter().find(|r| r.entry.number == *number).map(|r| r.hash);
        let wrong = match here {
            Some(here) if here == *hash => return Ok(()),
            Some(_) => format!("entry {number} of the ledger of {cluster} is another than {by} was told of"),
            None => format!(
                "the ledger of {cluster} ends at {}, but {by} was told of entry {number}: history is missing",
                ledger.tail().0
            ),
        };
        Err(Error::damaged(format!(
            "{wrong}; the repository was rolled back, cut or swapped: bring back its objects"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_entry_is_kept() {
        let (history, cluster) = (History::default(), ClusterName::new("c").unwrap());
        history.see(&cluster, 0, Hash::of(b"0"), "a");
        assert_eq!(history.of(&cluster), None);
        history.see(&cluster, 7, Hash::of(b"7"), "a");
        history.see(&cluster, 6, Hash::of(b"6"), "b");
        history.see(&cluster, 7, Hash::of(b"other"), "b");
        assert_eq!(history.of(&cluster), Some(Seen { number: 7, hash: Hash::of(b"7"), by: "a".into() }));
    }
}
