//! Restores: beside, in parallel, all or nothing.

use tidemark_agent::engine::{Loader, RecordRef};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::{ErrorKind, SlotSet, Timestamp, slot_of};

use crate::fixture::*;

/// Loads a state as one part; answers its digest.
pub(crate) fn load(loader: &dyn Loader, number: u32, state: &State) -> SetDigest {
    let mut part = loader.part(number).unwrap();
    for ((slot, key), value) in state {
        put_record(part.as_mut(), RecordRef { slot: *slot, key, meta: &[], value }).unwrap();
    }
    part.finish(digest(state)).unwrap()
}

pub(crate) fn sample(n: u32, tag: &str) -> State {
    (0..n).map(|i| format!("{tag}\0{i}").into_bytes()).map(|k| ((slot_of(&k), k.clone()), k)).collect()
}

pub(crate) fn non_empty_needs_in_place(f: &Fixture) {
    let s = f.store();
    let _ = commit(s, vec![put("a", "1")]);
    assert_eq!(s.restore(job(1), SlotSet::all(), false).map(|_| ()).unwrap_err().kind(), ErrorKind::Conflict);
    let _ = commit(s, vec![delete("a")]);
    let loader = s.restore(job(1), SlotSet::all(), false).unwrap();
    loader.abort().unwrap();
}

pub(crate) fn abort_leaves_the_old_data(f: &Fixture) {
    let s = f.store();
    let at = commit(s, vec![put("a", "1"), put("b", "2")]);
    let before = s.describe().unwrap();
    let loader = s.restore(job(1), SlotSet::range(0, 9), true).unwrap();
    drop(loader.part(0).unwrap());
    loader.abort().unwrap();
    assert_eq!(loader.part(1).map(|_| ()).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(loader.commit(at.next()).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(s.describe().unwrap(), before);
    assert_eq!(newest(s), state_of(&[(b"a", b"1"), (b"b", b"2")]));
    assert!(commit(s, vec![put("c", "3")]) > at);
}

pub(crate) fn commit_switches_to_a_new_incarnation(f: &Fixture) {
    let s = f.store();
    let old = commit(s, vec![put("old", "1")]);
    s.pin("old", old, BUDGET).unwrap();
    let before = s.describe().unwrap().incarnation;
    let state = sample(300, "new");
    let loader = s.restore(job(1), SlotSet::all(), true).unwrap();
    assert_eq!(load(loader.as_ref(), 7, &state), digest(&state));
    assert_eq!(loader.loaded().unwrap(), vec![(7, digest(&state), digest(&state))]);
    assert_eq!(loader.verify().unwrap(), digest(&state));
    let open = loader.part(8).unwrap();
    let at = Timestamp::new(START + 1000, 9);
    assert_eq!(loader.commit(at).unwrap_err().kind(), ErrorKind::Conflict, "a part is open");
    drop(open);
    let incarnation = loader.commit(at).unwrap();
    assert_ne!(incarnation, before);
    let d = s.describe().unwrap();
    assert_eq!((d.incarnation, d.position.offset, d.records), (incarnation, 0, 300));
    assert_eq!(newest(s), state);
    assert_eq!(state_at(s, at), state);
    let ((_, key), _) = state.first_key_value().unwrap();
    assert_eq!(s.get(key, None).unwrap().unwrap().timestamp, at);
    assert_eq!(s.snapshot(at.prev()).map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(s.pins().unwrap(), vec![], "pins do not cross incarnations");
    // The restored records are versions like others: overwritten, deleted, collected.
    let next = commit(s, vec![put(key, "2"), put("more", "")]);
    assert!(next > at);
    assert_eq!(state_at(s, at), state);
    f.pass(std::time::Duration::from_secs(3600));
    let now = newest(s);
    f.collect();
    assert_eq!(newest(s), now);
    assert_eq!(s.describe().unwrap().records, 301);
}

pub(crate) fn clients_are_refused_while_restoring(f: &Fixture) {
    let s = f.store();
    let at = commit(s, vec![put("a", "1")]);
    let _ = s.hold(job(2), BUDGET).unwrap();
    let mut parked = s.commit(vec![put("a", "2")], Timestamp::ZERO);
    assert!(parked.try_recv().is_err());
    let loader = s.restore(job(1), SlotSet::all(), true).unwrap();
    assert_eq!(s.describe().unwrap().state, "restoring");
    let refused = [
        parked.blocking_recv().unwrap().unwrap_err(),
        try_commit(s, vec![put("a", "2")]).unwrap_err(),
        s.get(b"a", None).unwrap_err(),
        s.scan(b"", &[], None, 1, 1).unwrap_err(),
        s.snapshot(at).map(|_| ()).unwrap_err(),
        s.hold(job(2), BUDGET).map(|_| ()).unwrap_err(),
        s.seal(job(2), at.next()).map(|_| ()).unwrap_err(),
        s.restore(job(3), SlotSet::all(), true).map(|_| ()).unwrap_err(),
        s.restore(job(1), SlotSet::range(0, 1), true).map(|_| ()).unwrap_err(),
    ];
    for err in refused {
        assert_eq!(err.kind(), ErrorKind::Conflict, "{err}");
    }
    let again = s.restore(job(1), SlotSet::all(), true).unwrap();
    again.abort().unwrap();
    assert_eq!(loader.abort().unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(value(s, "a", None), Some(b"1".to_vec()));
}

pub(crate) fn an_unfinished_part_leaves_nothing(f: &Fixture) {
    let s = f.store();
    let (one, two) = (sample(50, "one"), sample(2000, "two"));
    let loader = s.restore(job(1), SlotSet::all(), false).unwrap();
    let _ = load(loader.as_ref(), 1, &one);
    let mut part = loader.part(2).unwrap();
    assert_eq!(loader.part(2).map(|_| ()).unwrap_err().kind(), ErrorKind::Conflict);
    for ((slot, key), value) in &two {
        put_record(part.as_mut(), RecordRef { slot: *slot, key, meta: &[], value }).unwrap();
    }
    drop(part);
    assert_eq!(loader.part(1).map(|_| ()).unwrap_err().kind(), ErrorKind::Conflict);
    let half: State = two.clone().into_iter().step_by(2).collect();
    let _ = load(loader.as_ref(), 2, &half);
    let _ = load(loader.as_ref(), 3, &State::new());
    assert_eq!(loader.verify().unwrap(), digest(&one).plus(digest(&half)));
    assert_eq!(loader.loaded().unwrap().len(), 3);
    let _ = loader.commit(Timestamp::new(START, 0)).unwrap();
    assert_eq!(newest(s), one.into_iter().chain(half).collect());
}

pub(crate) fn bad_records_are_refused(f: &Fixture) {
    let s = f.store();
    let slot = slot_of(b"a");
    let loader = s.restore(job(1), SlotSet::range(slot, slot), false).unwrap();
    let mut part = loader.part(0).unwrap();
    let mut kind = |slot, key: &'static [u8], meta: &'static [u8]| {
        put_record(part.as_mut(), RecordRef { slot, key, meta, value: b"" }).map_err(|e| e.kind())
    };
    assert_eq!(kind(slot, b"a", b""), Ok(()));
    assert_eq!(kind(slot, b"a", b""), Err(ErrorKind::Request), "twice");
    assert_eq!(kind(slot_of(b"b"), b"b", b""), Err(ErrorKind::Request), "not this node's");
    assert_eq!(kind(slot, b"b", b""), Err(ErrorKind::Request), "not the key's slot");
    assert_eq!(kind(slot, b"x{a}", b"meta"), Err(ErrorKind::Unsupported));
    assert_eq!(kind(slot, b"x{a}", b""), Ok(()));
}

pub(crate) fn parts_in_any_order_in_parallel(f: &Fixture) {
    let s = f.store();
    let all = sample(20_000, "p");
    let part_of = |slot: u16| u32::from(slot / 512);
    let mut parts = vec![State::new(); 32];
    for (k, v) in &all {
        let _ = parts[part_of(k.0) as usize].insert(k.clone(), v.clone());
    }
    let loader = s.restore(job(1), SlotSet::all(), false).unwrap();
    std::thread::scope(|scope| {
        for t in 0..4usize {
            let (loader, parts) = (loader.as_ref(), &parts);
            let _ = scope.spawn(move || {
                // 13 is coprime to 32: every part once, far from sorted.
                for i in (0..32).filter(|i| i % 4 == t).map(|i| i * 13 % 32) {
                    let _ = load(loader, i as u32, &parts[i]);
                }
            });
        }
    });
    assert_eq!(loader.verify().unwrap(), digest(&all));
    let _ = loader.commit(Timestamp::new(START, 0)).unwrap();
    assert_eq!(newest(s), all);
}
