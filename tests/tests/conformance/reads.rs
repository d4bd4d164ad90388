//! Versions, order, pages, batches, limits.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tidemark_agent::engine::ScanRange;
use tidemark_agent::kv::{MAX_BATCH, MAX_KEY, MAX_VALUE};
use tidemark_proto::{ErrorKind, SlotSet, Timestamp, slot_of};

use crate::fixture::*;

pub(crate) fn versions_at_timestamps(f: &Fixture) {
    let s = f.store();
    assert_eq!(value(s, "a", None), None);
    let t1 = commit(s, vec![put("a", "1"), put("b", "1")]);
    let t2 = commit(s, vec![put("a", "2"), delete("b")]);
    let t3 = commit(s, vec![delete("a"), put("b", "")]);
    assert!(t1 < t2 && t2 < t3);
    assert_eq!(value(s, "a", Some(t1.prev())), None);
    assert_eq!(value(s, "a", Some(t1)), Some(b"1".to_vec()));
    assert_eq!(value(s, "a", Some(t2.prev())), Some(b"1".to_vec()));
    assert_eq!(value(s, "a", Some(t2)), Some(b"2".to_vec()));
    assert_eq!(value(s, "a", None), None);
    assert_eq!(s.get(b"b", None).unwrap().unwrap().timestamp, t3);
    assert_eq!(state_at(s, t1), state_of(&[(b"a", b"1"), (b"b", b"1")]));
    assert_eq!(state_at(s, t2), state_of(&[(b"a", b"2")]));
    assert_eq!(state_at(s, t3), state_of(&[(b"b", b"")]));
    // A view of the future is final: later commits get higher timestamps.
    let future = Timestamp(t3.0 + 1000);
    assert_eq!(state_at(s, future).len(), 1);
    assert!(commit(s, vec![put("c", "1")]) > future);
    let d = s.describe().unwrap();
    assert_eq!((d.state.as_str(), d.position.offset), ("available", 4));
    assert_eq!(d.position.history, d.incarnation.to_string());
}

pub(crate) fn scan_order_of_binary_keys(f: &Fixture) {
    let s = f.store();
    // One slot through a hash tag, and zeros and 0xFF wherever an encoding might trip.
    let tails: [&[u8]; 12] = [
        b"",
        b"\0",
        b"\0\0",
        b"\0\x01",
        b"\0\xff",
        b"\x01",
        b"a",
        b"a\0",
        b"a\0\0",
        b"a\0\xff",
        b"a\xff",
        b"\xff\xff",
    ];
    let keys: Vec<_> =
        tails.iter().map(|t| [b"{t}", *t].concat()).chain([Vec::new(), vec![0], vec![0xff; 3]]).collect();
    for key in &keys {
        let _ = commit(s, vec![put(key, "old")]);
        let _ = commit(s, vec![put(key, key)]);
    }
    let all = newest(s);
    assert_eq!(all.len(), keys.len());
    let at = s.describe().unwrap().position.offset;
    assert_eq!(at, 2 * keys.len() as u64);
    let now = commit(s, vec![delete("not there")]);
    assert_eq!(state_at(s, now), all, "dump checks the order");
    for (lower, upper) in [(3, 9), (0, 1), (5, 5), (0, 12)] {
        let slot = slot_of(b"{t}");
        let sort =
            |i: usize| tails.get(i).map_or(Vec::new(), |t| [&slot.to_be_bytes(), b"{t}".as_slice(), t].concat());
        let range = ScanRange { slots: SlotSet::range(slot, slot), lower: sort(lower), upper: sort(upper) };
        let got = dump(s.snapshot(now).unwrap().as_ref(), &range);
        let got: Vec<_> = got.into_keys().map(|(_, k)| k[3..].to_vec()).collect();
        assert_eq!(got, tails[lower..upper].iter().map(|t| t.to_vec()).collect::<Vec<_>>());
    }
}

pub(crate) fn pages_read_one_state(f: &Fixture) {
    let s = f.store();
    let writes = (0..500).map(|i| put(format!("user:{i}"), "x")).chain((0..20).map(|i| put(format!("u{i}"), "y")));
    let _ = commit(s, writes.collect());
    let (mut from, mut at, mut seen) = (Vec::new(), None, 0);
    loop {
        let page = s.scan(b"user:", &from, at, 64, 1 << 20).unwrap();
        assert!(page.records.iter().all(|r| r.key.starts_with(b"user:") && r.value == b"x"));
        seen += page.records.len();
        at = Some(page.at);
        // Writes between two pages do not show.
        let _ = commit(s, vec![put(format!("user:new{seen}"), "z"), delete("user:7")]);
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(seen, 500);
    assert_eq!(s.scan(b"{user}:", &[], None, 5, 1 << 20).unwrap().records, vec![]);
    assert_eq!(s.scan(b"user:", &[], None, 500, 10).unwrap().records.len(), 2, "cut when it passes 10 bytes");
    assert_eq!(s.scan(b"", &[], None, 0, 10).unwrap_err().kind(), ErrorKind::Request);
    assert_eq!(s.scan(b"", &[1], None, 1, 10).unwrap_err().kind(), ErrorKind::Request);
}

pub(crate) fn batches_are_atomic(f: &Fixture) {
    let s = f.store();
    let at = commit(s, vec![put("a", "1"), put("a", "2"), put("b", "1"), delete("b"), delete("c"), put("c", "1")]);
    assert_eq!(state_at(s, at), state_of(&[(b"a", b"2"), (b"c", b"1")]), "the last write to a key counts");
    assert!(state_at(s, at.prev()).is_empty());
    let long = vec![7; MAX_KEY + 1];
    let err = try_commit(s, vec![put("d", "1"), put(&long, "")]).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Request);
    assert_eq!(value(s, "d", None), None, "nothing of a refused batch");
}

pub(crate) fn wrong_slots_and_sizes_are_refused(f: &Fixture) {
    let s = f.store();
    for bad in [
        vec![],
        vec![put("a", vec![0; MAX_VALUE + 1])],
        vec![delete("x"); MAX_BATCH + 1],
        (0..3).map(|i| put(format!("{i}"), vec![0; MAX_VALUE])).collect(),
    ] {
        assert_eq!(try_commit(s, bad).unwrap_err().kind(), ErrorKind::Request);
    }
    let longest = vec![0; MAX_KEY];
    let _ = commit(s, vec![put(&longest, vec![1; MAX_VALUE]), put("", "empty")]);
    assert_eq!(value(s, &longest, None).map(|v| v.len()), Some(MAX_VALUE));
    assert_eq!(value(s, "", None), Some(b"empty".to_vec()));

    // A restore gives the node other slots.
    let slot = slot_of(b"a");
    let loader = s.restore(job(9), SlotSet::range(slot, slot), true).unwrap();
    let _ = loader.commit(Timestamp::new(START, 0)).unwrap();
    let err = try_commit(s, vec![put("b", "")]).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Request);
    for part in ["wrong node", &slot.to_string(), &slot_of(b"b").to_string()] {
        assert!(err.message().contains(part), "{err}");
    }
    assert_eq!(s.get(b"b", None).unwrap_err().kind(), ErrorKind::Request);
    let _ = commit(s, vec![put("a", "")]);
}

pub(crate) fn clients_ahead_of_the_clock(f: &Fixture) {
    let s = f.store();
    let ahead = Timestamp::new(START + 30_000, 5);
    let at = s.commit(vec![put("a", "")], ahead).blocking_recv().unwrap().unwrap();
    assert!(at > ahead);
    let far = Timestamp::new(START + 90_000, 0);
    let err = s.commit(vec![put("b", "")], far).blocking_recv().unwrap().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Request);
    assert_eq!(s.get(b"a", Some(far)).unwrap_err().kind(), ErrorKind::Request);
    assert_eq!(s.describe().unwrap().position.offset, 1, "refused writes do not count");
}

/// Random histories read back at every timestamp.
pub(crate) fn model(f: &Fixture) {
    let s = f.store();
    let step = proptest::collection::vec((0u8..12, proptest::option::of(0u8..4)), 1..6);
    let history = proptest::collection::vec(step, 1..25);
    let mut runner = TestRunner::new(Config::with_cases(12));
    runner
        .run(&history, |history| {
            let mut states = Vec::new();
            let mut now = newest(s);
            for batch in history {
                let writes = batch.iter().map(|(k, v)| {
                    let key = [b"k\0".as_slice(), &[*k]].concat();
                    v.map_or_else(|| delete(&key), |v| put(&key, [v]))
                });
                let writes: Vec<_> = writes.collect();
                for w in &writes {
                    let key = (slot_of(w.key()), w.key().to_vec());
                    match w {
                        tidemark_agent::kv::Write::Put { value, .. } => drop(now.insert(key, value.clone())),
                        tidemark_agent::kv::Write::Delete { .. } => drop(now.remove(&key)),
                    }
                }
                states.push((commit(s, writes), now.clone()));
            }
            for (at, want) in states {
                prop_assert_eq!(state_at(s, at), want);
            }
            Ok(())
        })
        .unwrap();
}
