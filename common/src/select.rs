//! Which records of a backup are wanted: by key, by slot, by database.

use tidemark_proto::{Result, SlotSet};

use crate::glob::KeyFilter;
use crate::record::{REDIS, split_redis_key, user_key};
use crate::run::Entry;

/// Which records are wanted.
#[derive(Debug, Clone)]
pub struct Selection {
    /// By the key, as users of the store know it.
    pub keys: KeyFilter,
    /// By slot. Parts without any of these are not read.
    pub slots: SlotSet,
    /// By number of the database, of Redis and Valkey; records of other stores are in none. Empty takes all.
    pub dbs: Vec<u64>,
}

impl Default for Selection {
    fn default() -> Self {
        Self { keys: KeyFilter::default(), slots: SlotSet::all(), dbs: Vec::new() }
    }
}

impl Selection {
    /// Whether a record is wanted.
    pub fn takes(&self, entry: &Entry<'_>) -> Result<bool> {
        let (key, (meta, _)) = (entry.key, entry.put.unwrap_or_default());
        if !self.dbs.is_empty() && (meta.first() != Some(&REDIS) || !self.dbs.contains(&split_redis_key(key)?.0)) {
            return Ok(false);
        }
        Ok(self.slots.contains(entry.slot) && self.keys.takes(user_key(key, meta)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_other_stores_are_in_no_database() {
        let takes = |selection: &Selection, key, meta| {
            selection.takes(&Entry { slot: 5, key, put: Some((meta, b"")) }).unwrap()
        };
        let some = Selection { dbs: vec![0, 3], ..Selection::default() };
        assert!(!takes(&some, b"\x03key", b""));
        assert!(takes(&some, b"\x03key", &[REDIS]) && !takes(&some, b"\x02key", &[REDIS]));
        assert!(takes(&Selection::default(), b"key", b""));
        for (slots, is) in [((6, 7), false), ((5, 5), true)] {
            let slots = Selection { slots: SlotSet::range(slots.0, slots.1), ..Selection::default() };
            assert_eq!(takes(&slots, b"key", b""), is);
        }
    }
}
