use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Key = (u16, Vec<u8>);

fn model(entries: &[(u16, Vec<u8>, u64, bool)], wanted: &Wanted) -> BTreeMap<Key, (u64, bool)> {
    let mut model = BTreeMap::<Key, (u64, bool)>::new();
    for (slot, key, at, put) in entries {
        let sort = [&slot.to_be_bytes()[..], key].concat();
        let inside = sort >= wanted.lower && (wanted.upper.is_empty() || sort < wanted.upper);
        if inside && *at > wanted.after.0 && *at <= wanted.at.0 && wanted.slots.contains(*slot) {
            let found = model.entry((*slot, key.clone())).or_insert((*at, *put));
            if *at > found.0 {
                *found = (*at, *put);
            }
        }
    }
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_newest_of_each_key_lies_over_the_state(
        entries in proptest::collection::vec((0u16..4, proptest::collection::vec(0u8..3, 0..4), 0u64..60, any::<bool>()), 0..120),
        state in proptest::collection::btree_set((0u16..4, proptest::collection::vec(0u8..3, 0..4)), 0..40),
        (after, at, budget) in (0u64..30, 20u64..60, 1usize..4000),
        (lower, upper) in (proptest::collection::vec(0u8..3, 0..4), proptest::collection::vec(0u8..4, 0..4)),
    ) {
        let entries: Vec<_> = entries.into_iter().enumerate().map(|(i, (s, k, at, put))| (s, k, at * 1000 + i as u64, put)).collect();
        let wanted = Wanted {
            after: Timestamp(after * 1000), at: Timestamp(at * 1000), slots: SlotSet::range(0, 2),
            lower: if lower.len() < 2 { Vec::new() } else { lower }, upper: if upper.len() < 2 { Vec::new() } else { upper },
        };
        let dir = tempfile::tempdir().unwrap();
        let mut sorter = LogSorter::new(wanted.clone(), budget, dir.path());
        for (slot, key, at, put) in &entries {
            let mut raw = Vec::new();
            let value = at.to_le_bytes();
            LogEntry { slot: *slot, at: Timestamp(*at), key, put: put.then_some((&b"m"[..], &value[..])), kind: Default::default() }.encode(&mut raw);
            sorter.push_chunk(&raw).unwrap();
        }
        let model = model(&entries, &wanted);
        let mut expected: BTreeMap<Key, u64> = state.iter().map(|k| (k.clone(), 0)).collect();
        for (key, (at, put)) in &model {
            if *put { let _ = expected.insert(key.clone(), *at); } else { let _ = expected.remove(key); }
        }
        let mut found: Vec<(Key, u64)> = Vec::new();
        let mut over = Overlaid::new(sorter.finish().unwrap()).unwrap();
        let mut give = |e: Entry<'_>, _: Option<&LongValue>| {
            let value = e.put.unwrap().1;
            found.push(((e.slot, e.key.to_vec()), u64::from_le_bytes(value.try_into().unwrap())));
            Ok(())
        };
        for (slot, key) in &state {
            let zero = 0u64.to_le_bytes();
            let entry = Entry { slot: *slot, key, put: Some((b"", &zero)) };
            if !over.before(entry, &mut give).unwrap() {
                give(entry, None).unwrap();
            }
        }
        over.rest(&mut give).unwrap();
        prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
    }
}
