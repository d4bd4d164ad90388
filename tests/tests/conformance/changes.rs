//! Changes are what two scans differ in.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tidemark_agent::engine::ScanRange;
use tidemark_proto::{ErrorKind, SlotSet, Timestamp};

use crate::fixture::*;

type Pair = (Option<Vec<u8>>, Option<Vec<u8>>);

fn changes(s: &dyn Store, since: Timestamp, at: Timestamp, range: &ScanRange) -> BTreeMap<(u16, Vec<u8>), Pair> {
    let mut out = BTreeMap::new();
    let snapshot = s.snapshot(at).unwrap();
    snapshot
        .changes(since, range, &mut |c| {
            let r = c.new.or(c.old).unwrap();
            let key = (r.slot, r.key.to_vec());
            assert!(out.last_key_value().is_none_or(|(last, _)| *last < key), "out of order");
            let _ = out.insert(key, (c.old.map(|r| r.value.to_vec()), c.new.map(|r| r.value.to_vec())));
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    out
}

fn difference(s: &dyn Store, since: Timestamp, at: Timestamp, range: &ScanRange) -> BTreeMap<(u16, Vec<u8>), Pair> {
    let old = dump(s.snapshot(since).unwrap().as_ref(), range);
    let new = dump(s.snapshot(at).unwrap().as_ref(), range);
    let keys = old.keys().chain(new.keys()).cloned();
    keys.map(|k| (k.clone(), (old.get(&k).cloned(), new.get(&k).cloned()))).filter(|(_, (o, n))| o != n).collect()
}

pub(crate) fn changes_equal_the_difference_of_scans(f: &Fixture) {
    let s = f.store();
    let first = commit(s, vec![put("a", "1")]);
    if !s.describe().unwrap().changes_since {
        let view = s.snapshot(first).unwrap();
        let all = ScanRange::slots(SlotSet::all());
        let err = view.changes(Timestamp::ZERO, &all, &mut |_| Ok(ControlFlow::Continue(()))).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Unsupported);
        return;
    }
    // Keys of one slot and of many, few values, so that keys often come back to what they were.
    let op = (0u8..10, any::<bool>(), proptest::option::weighted(0.7, 0u8..2));
    let batches = proptest::collection::vec(proptest::collection::vec(op, 1..5), 2..30);
    let pick = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u16..16384, 0u16..16384);
    TestRunner::new(Config::with_cases(24))
        .run(&(batches, pick), |(batches, (a, b, from, to))| {
            let mut times = vec![first];
            for batch in batches {
                let write = |(k, tagged, v): (u8, bool, Option<u8>)| {
                    let key = [if tagged { b"{x}".as_slice() } else { b"" }, &[k, 0, k]].concat();
                    v.map_or_else(|| delete(&key), |v| put(&key, [v]))
                };
                times.push(commit(s, batch.into_iter().map(write).collect()));
            }
            let (a, b) = (times[a.index(times.len())], times[b.index(times.len())]);
            let (since, at) = (a.min(b), a.max(b));
            let lower = [&from.to_be_bytes(), b"{x}\x05".as_slice()].concat();
            for range in [
                ScanRange::slots(SlotSet::all()),
                ScanRange::slots(SlotSet::range(from.min(to), from.max(to))),
                ScanRange { slots: SlotSet::all(), lower: lower.clone(), upper: Vec::new() },
                ScanRange { slots: SlotSet::all(), lower: Vec::new(), upper: lower },
            ] {
                prop_assert_eq!(changes(s, since, at, &range), difference(s, since, at, &range));
            }
            Ok(())
        })
        .unwrap();
}

/// More changed keys in one slot than are gathered in memory: the slot is compared as a whole.
pub(crate) fn many_changes_in_one_slot(f: &Fixture) {
    let s = f.store();
    if !s.describe().unwrap().changes_since {
        return;
    }
    let key = |i: u32| format!("{{x}}{i:040}");
    let each = |value: &'static str| {
        (0..12u32)
            .map(|b| commit(s, (b * 4000..(b + 1) * 4000).map(|i| put(key(i), value)).collect()))
            .last()
            .unwrap()
    };
    let _ = commit(s, vec![put("elsewhere", "1")]);
    let since = each("old");
    let _ = each("new");
    let at = commit(s, vec![put(key(7), "old"), delete(key(8)), put("elsewhere", "1"), put("{x}", "")]);
    let slot = tidemark_proto::slot_of(b"x");
    let lower = [&slot.to_be_bytes(), key(5).as_bytes()].concat();
    for range in [ScanRange::slots(SlotSet::all()), ScanRange { slots: SlotSet::all(), lower, upper: Vec::new() }] {
        let got = changes(s, since, at, &range);
        assert!(got.len() > 47_000);
        assert!(got == difference(s, since, at, &range));
    }
}
