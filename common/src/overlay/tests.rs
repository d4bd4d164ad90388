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

/// A value that comes in pieces, over chunks; memory holds all of it, or next to nothing.
#[test]
fn values_in_pieces_come_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = Wanted {
        after: Timestamp(0),
        at: Timestamp(9),
        slots: SlotSet::range(0, 9),
        lower: Vec::new(),
        upper: Vec::new(),
    };
    let piece = |n: u8| vec![n; 100_000];
    let raw = |slot: u16, key: &[u8], at: u64, value: &[u8], kind| {
        let mut raw = Vec::new();
        LogEntry { slot, at: Timestamp(at), key, put: Some((b"m", value)), kind }.encode(&mut raw);
        raw
    };
    let part = |slot, key: &[u8], at, n| raw(slot, key, at, &piece(n), EntryKind::RecordPart);
    let chunks = [
        [part(1, b"a", 5, 1), part(1, b"a", 5, 2)].concat(),
        [raw(1, b"a", 5, b"end", EntryKind::Record), raw(1, b"b", 5, b"short", EntryKind::Record)].concat(),
        // Of a slot that is not wanted; an older value of a key that is.
        [part(20, b"x", 5, 3), raw(20, b"x", 5, b"end", EntryKind::Record)].concat(),
        [part(1, b"a", 3, 4), raw(1, b"a", 3, b"old", EntryKind::Record)].concat(),
        [part(2, b"c", 6, 5), raw(2, b"c", 6, b"", EntryKind::Record)].concat(),
    ];
    for budget in [1, 1 << 20] {
        let mut sorter = LogSorter::new(wanted.clone(), budget, dir.path());
        chunks.iter().for_each(|chunk| sorter.push_chunk(chunk).unwrap());
        let (mut overlay, mut found) = (sorter.finish().unwrap(), Vec::new());
        while overlay.advance().unwrap() {
            let (entry, long) = (overlay.current().unwrap(), overlay.long().unwrap());
            assert_eq!(entry.put.unwrap().0, b"m");
            let value = long.map_or(entry.put.unwrap().1.to_vec(), |long| long.whole(1 << 20).unwrap());
            found.push((entry.key.to_vec(), value));
        }
        let a = [piece(1), piece(2), b"end".to_vec()].concat();
        assert!(found == [(b"a".to_vec(), a), (b"b".to_vec(), b"short".to_vec()), (b"c".to_vec(), piece(5))]);
    }
    let mut sorter = LogSorter::new(wanted.clone(), 1, dir.path());
    sorter.push_chunk(&part(1, b"a", 5, 1)).unwrap();
    assert_eq!(sorter.push_chunk(&part(1, b"a", 6, 1)).unwrap_err().kind(), ErrorKind::Damaged, "of another");
    assert_eq!(sorter.finish().unwrap_err().kind(), ErrorKind::Damaged, "its end is missing");
}
