//! Clones of the embedded engine.

#[path = "clones/model.rs"]
mod model;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidemark_agent::engine::embedded::{Embedded, MAX_CLONES, Options};
use tidemark_agent::engine::{Engine, LogSink, LogWanted};
use tidemark_agent::kv::{KvStore, Write};
use tidemark_common::clock::Hlc;
use tidemark_proto::{CloneName, Error, ErrorKind, Result, SlotSet, Timestamp, slot_of};

use crate::fixture::*;

const HOUR: Duration = Duration::from_secs(3600);

fn name(text: &str) -> CloneName {
    text.parse().unwrap()
}

/// Opens a clone for clients.
fn clone_of(store: &Embedded, text: &str) -> Arc<dyn KvStore> {
    store.open_clone(&name(text)).unwrap().store
}

fn try_write(store: &dyn KvStore, writes: Vec<Write>) -> Result<Timestamp> {
    store.commit(writes, Timestamp::ZERO).blocking_recv().unwrap_or_else(|_| Err(Error::bug("no answer")))
}

fn write(store: &dyn KvStore, writes: Vec<Write>) -> Timestamp {
    try_write(store, writes).unwrap()
}

/// All that pages of `limit` show at `at`, and that it ascends.
fn pages(store: &dyn KvStore, prefix: &[u8], at: Option<Timestamp>, limit: usize) -> State {
    let (mut out, mut from) = (State::new(), Vec::new());
    loop {
        let page = store.scan(prefix, &from, at, limit, 1 << 20).unwrap();
        for record in page.records {
            let key = (slot_of(&record.key), record.key);
            assert!(out.last_key_value().is_none_or(|(last, _)| *last < key), "out of order: {key:?}");
            let _ = out.insert(key, record.value);
        }
        match page.next {
            Some(next) => from = next,
            None => return out,
        }
    }
}

fn embedded(f: &Fixture) -> &Embedded {
    f.as_embedded().expect("embedded")
}

/// The folders of all keyspaces of a store's only incarnation.
fn keyspaces(dir: &Path) -> usize {
    let incarnation = std::fs::read_dir(dir.join("data")).unwrap().next().unwrap().unwrap().path();
    std::fs::read_dir(incarnation.join("keyspaces")).unwrap().count()
}

#[test]
fn a_clone_is_the_parent_at_its_time_and_goes_its_own_way() {
    let f = Fixture::embedded();
    let s = embedded(&f);
    let t1 = commit(s, vec![put("a", "1"), put("b", "1"), put("c", "1")]);
    let t2 = commit(s, vec![put("a", "2")]);
    let (info, fresh) = s.create_clone(&name("trial"), t1).unwrap();
    assert_eq!((info.name.as_str(), info.at, fresh), ("trial", t1, true));
    let c = clone_of(s, "trial");
    let get = |key: &str, at| c.get(key.as_bytes(), at).unwrap().map(|v| v.value);
    assert_eq!(get("a", None), Some(b"1".to_vec()), "not what came later");
    let t3 = write(c.as_ref(), vec![put("a", "mine"), delete("b"), put("d", "new")]);
    assert!(t3 > t2);
    assert_eq!(pages(c.as_ref(), b"", None, 2), state_of(&[(b"a", b"mine"), (b"c", b"1"), (b"d", b"new")]));
    assert_eq!(pages(c.as_ref(), b"", Some(t3.prev()), 2), state_of(&[(b"a", b"1"), (b"b", b"1"), (b"c", b"1")]));
    assert_eq!(pages(c.as_ref(), b"d", None, 2), state_of(&[(b"d", b"new")]), "where the parent has nothing");
    assert_eq!(newest(s), state_of(&[(b"a", b"2"), (b"b", b"1"), (b"c", b"1")]), "the parent has nothing of it");
    assert_eq!(s.describe().unwrap().position.offset, 2, "nor its history");
    assert_eq!((s.describe().unwrap().records, s.pins().unwrap()), (4, vec![("clone:trial".to_owned(), t1)]));
    // What the parent writes now does not show.
    let t4 = commit(s, vec![put("c", "later"), delete("a")]);
    assert_eq!(get("c", Some(t4)), Some(b"1".to_vec()));
    assert_eq!(get("a", Some(t4)), Some(b"mine".to_vec()));
    assert_eq!(c.get(b"a", None).unwrap().unwrap().timestamp, t3);
    // A deleted key can come back.
    let _ = write(c.as_ref(), vec![put("b", "again")]);
    assert_eq!(get("b", None), Some(b"again".to_vec()));
    // Before it began there is no clone.
    for err in [c.get(b"a", Some(t1.prev())).unwrap_err(), c.scan(b"", &[], Some(t1.prev()), 1, 1).unwrap_err()] {
        assert_eq!(err.kind(), ErrorKind::NotFound);
        assert!(err.message().contains("begins at"), "{err}");
    }
    for bad in [vec![], vec![put("a", vec![0; tidemark_agent::kv::MAX_VALUE + 1])]] {
        assert_eq!(try_write(c.as_ref(), bad).unwrap_err().kind(), ErrorKind::Request);
    }
}

#[test]
fn names_and_times_are_checked() {
    let f = Fixture::embedded();
    let s = embedded(&f);
    let t1 = commit(s, vec![put("a", "1")]);
    let (first, _) = s.create_clone(&name("x"), t1).unwrap();
    assert_eq!(s.create_clone(&name("x"), t1).unwrap(), (first, false), "the same clone");
    let other = s.create_clone(&name("x"), t1.next()).unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Conflict);
    assert!(other.message().contains(&t1.to_string()), "{other}");
    let ahead = Timestamp::new(START + 90_000, 0);
    assert_eq!(s.create_clone(&name("future"), ahead).unwrap_err().kind(), ErrorKind::Request);
    assert_eq!(s.open_clone(&name("nobody")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!s.drop_clone(&name("nobody"), None).unwrap());
    assert!(!s.drop_clone(&name("x"), Some(t1.next())).unwrap(), "a clone of another time stays");
    assert_eq!(s.clones().unwrap().0.len(), 1);
    for n in 1..MAX_CLONES {
        let _ = s.create_clone(&name(&format!("x{n}")), t1).unwrap();
    }
    assert_eq!(s.create_clone(&name("more"), t1).unwrap_err().kind(), ErrorKind::Full);
    assert!(s.drop_clone(&name("x1"), Some(t1)).unwrap());
    let _ = s.create_clone(&name("more"), t1).unwrap();
    // What was collected cannot be cloned.
    let _ = commit(s, vec![put("a", "2")]);
    for info in s.clones().unwrap().0 {
        assert!(s.drop_clone(&name(&info.name), None).unwrap());
    }
    f.pass(HOUR);
    f.collect();
    let err = s.create_clone(&name("late"), t1).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound);
    let oldest = s.collect().unwrap().safe_point;
    assert!(err.message().contains(&oldest.to_string()) && err.message().contains("restore"), "{err}");
    let _ = s.create_clone(&name("late"), oldest).unwrap();
}

#[test]
fn no_commit_comes_at_or_below_the_time_of_a_clone() {
    let (clock, dir) = (clock(), tempfile::tempdir().unwrap());
    let open = || Embedded::open(dir.path(), Options::new(SlotSet::all(), Hlc::new(clock.clone()))).unwrap();
    let s = open();
    let _ = commit(s.as_ref(), vec![put("a", "1")]);
    let ahead = Timestamp::new(START + 30_000, 9);
    let _ = s.create_clone(&name("x"), ahead).unwrap();
    assert!(commit(s.as_ref(), vec![put("a", "2")]) > ahead);
    assert_eq!(clone_of(&s, "x").get(b"a", None).unwrap().unwrap().value, b"1");
    assert!(s.drop_clone(&name("x"), None).unwrap());
    let later = Timestamp::new(START + 50_000, 9);
    let _ = s.create_clone(&name("x"), later).unwrap();
    drop(s);
    // The clock of the new process stands at START.
    let s = open();
    assert!(commit(s.as_ref(), vec![put("a", "3")]) > later);
    assert_eq!(clone_of(&s, "x").get(b"a", None).unwrap().unwrap().value, b"2");
    let at = write(clone_of(&s, "x").as_ref(), vec![put("b", "1")]);
    drop(s);
    let s = open();
    assert!(commit(s.as_ref(), vec![put("a", "4")]) > at, "nor below a write of a clone");
}

#[test]
fn dropping_frees_the_pin_and_the_data() {
    let (clock, dir) = (clock(), tempfile::tempdir().unwrap());
    let s = Embedded::open(dir.path(), Options::new(SlotSet::all(), Hlc::new(clock.clone()))).unwrap();
    let bare = keyspaces(dir.path());
    let t1 = commit(s.as_ref(), vec![put("a", "1")]);
    let _ = s.create_clone(&name("x"), t1).unwrap();
    assert_eq!(keyspaces(dir.path()), bare + 2);
    let c = clone_of(&s, "x");
    let _ = write(c.as_ref(), vec![put("big", vec![7; 1 << 20])]);
    let _ = commit(s.as_ref(), vec![put("a", "2")]);
    clock.turn(HOUR);
    assert_eq!(s.collect().unwrap().safe_point, t1, "collection stops at the clone");
    assert_eq!(c.get(b"a", None).unwrap().unwrap().value, b"1");
    // Held: the write waits, and what comes first is the drop.
    let _ = s.hold(job(1), BUDGET).unwrap();
    let waiting = c.commit(vec![put("b", "1")], Timestamp::ZERO);
    assert!(s.drop_clone(&name("x"), None).unwrap());
    assert!(!s.drop_clone(&name("x"), None).unwrap(), "once");
    let _ = s.release(job(1)).unwrap();
    assert_eq!(waiting.blocking_recv().unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    for err in [
        c.get(b"a", None).unwrap_err(),
        c.get(b"a", Some(t1)).unwrap_err(),
        c.scan(b"", &[], None, 1, 1).unwrap_err(),
        try_write(c.as_ref(), vec![put("b", "1")]).unwrap_err(),
    ] {
        assert_eq!(err.kind(), ErrorKind::NotFound);
        assert!(err.message().contains("dropped"), "{err}");
    }
    // One of the same name is another one.
    let now = commit(s.as_ref(), vec![put("a", "3")]);
    let _ = s.create_clone(&name("x"), now).unwrap();
    assert_eq!(c.get(b"a", None).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(pages(clone_of(&s, "x").as_ref(), b"", None, 10), state_of(&[(b"a", b"3")]));
    assert!(s.drop_clone(&name("x"), None).unwrap());
    drop(c);
    // Its files go with the last who holds them, which may be a thread in the background.
    let deadline = std::time::Instant::now() + BUDGET;
    while keyspaces(dir.path()) > bare {
        assert!(std::time::Instant::now() < deadline, "the files of dropped clones stay");
        std::thread::yield_now();
    }
    assert!(s.collect().unwrap().safe_point > t1);
    assert_eq!(s.snapshot(t1).map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
    drop(s);
    let s = Embedded::open(dir.path(), Options::new(SlotSet::all(), Hlc::new(clock.clone()))).unwrap();
    assert_eq!((s.clones().unwrap().0, keyspaces(dir.path())), (Vec::new(), bare));
    assert_eq!(newest(s.as_ref()), state_of(&[(b"a", b"3")]));
}

#[test]
fn a_restore_is_refused_while_clones_stand() {
    let f = Fixture::embedded();
    let s = embedded(&f);
    let t1 = commit(s, vec![put("a", "1")]);
    let _ = s.create_clone(&name("one"), t1).unwrap();
    let _ = s.create_clone(&name("two"), t1).unwrap();
    let err = s.restore(job(1), SlotSet::all(), true).map(|_| ()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict);
    assert!(err.message().contains("one, two") && err.message().contains("drop"), "{err}");
    // Nothing was changed: clients go on.
    assert_eq!(s.describe().unwrap().state, "available");
    let _ = commit(s, vec![put("a", "2")]);
    for clone in ["one", "two"] {
        assert!(s.drop_clone(&name(clone), None).unwrap());
    }
    let loader = s.restore(job(1), SlotSet::all(), true).unwrap();
    for err in [s.create_clone(&name("one"), t1).unwrap_err(), s.clones().unwrap_err()] {
        assert_eq!(err.kind(), ErrorKind::Conflict, "{err}");
    }
    let _ = loader.commit(Timestamp::new(START + 5000, 0)).unwrap();
    let base = Timestamp::new(START + 5000, 0);
    assert_eq!(s.create_clone(&name("early"), t1).unwrap_err().kind(), ErrorKind::NotFound);
    let _ = s.create_clone(&name("new"), base).unwrap();
    assert!(pages(clone_of(s, "new").as_ref(), b"", None, 10).is_empty());
}

/// Writes of clones do not make a cut void, and a cut holds them.
#[test]
fn cuts_hold_clones_and_know_nothing_of_them() {
    let f = Fixture::embedded();
    let s = embedded(&f);
    let t1 = commit(s, vec![put("a", "1")]);
    let _ = s.create_clone(&name("x"), t1).unwrap();
    let c = clone_of(s, "x");
    let held = s.hold(job(1), Duration::ZERO).unwrap();
    f.pass(Duration::from_millis(5));
    let above = write(c.as_ref(), vec![put("a", "mine")]);
    let cut = held.max_timestamp.next();
    assert!(cut < above, "the clone has gone past the cut");
    let _ = s.seal(job(1), cut).unwrap();
    assert!(commit(s, vec![put("b", "1")]) > cut);
    assert_eq!(state_at(s, cut), state_of(&[(b"a", b"1")]));
    let _ = s.hold(job(2), BUDGET).unwrap();
    let mut waiting = c.commit(vec![put("a", "held")], Timestamp::ZERO);
    assert_eq!(c.get(b"a", None).unwrap().unwrap().value, b"mine");
    assert!(waiting.try_recv().is_err());
    let _ = s.release(job(2)).unwrap();
    let _ = waiting.blocking_recv().unwrap().unwrap();
    assert_eq!(c.get(b"a", None).unwrap().unwrap().value, b"held");
}

/// Counts entries of a log.
#[derive(Default)]
struct Entries(Vec<Vec<u8>>);

impl LogSink for Entries {
    fn entry(&mut self, entry: tidemark_proto::stored::log::LogEntry<'_>) -> Result<()> {
        self.0.push(entry.key.to_vec());
        Ok(())
    }

    fn restart(&mut self) {
        self.0.clear();
    }
}

#[test]
fn the_log_knows_nothing_of_clones() {
    let (clock, dir) = (clock(), tempfile::tempdir().unwrap());
    let open = || Embedded::open(dir.path(), Options::new(SlotSet::all(), Hlc::new(clock.clone()))).unwrap();
    let s = open();
    let read = |s: &Embedded, from: u64, incarnation| {
        let now = Timestamp::new(clock.now(), 0);
        // A spool that a write of the parent fits into, and one of a clone does not.
        let wanted = LogWanted {
            incarnation,
            from,
            durable: from,
            now,
            most: 1 << 20,
            spool: 4 << 10,
            closed: Timestamp::ZERO,
            takes_over: false,
        };
        let mut found = Entries::default();
        s.log().unwrap().read_log(&wanted, &mut found).map(|reached| (reached, found.0)).unwrap()
    };
    let (begun, _) = read(&s, 0, tidemark_proto::Incarnation::default());
    let at = commit(s.as_ref(), vec![put("a", "1")]);
    let _ = s.create_clone(&name("x"), at).unwrap();
    let c = clone_of(&s, "x");
    let _ = write(c.as_ref(), vec![put("mine", vec![7; 8 << 20])]);
    let _ = commit(s.as_ref(), vec![put("b", "1")]);
    let (reached, found) = read(&s, begun.to, begun.incarnation);
    assert!(!reached.begins, "the spool is not full");
    assert_eq!(found.len(), 2);
    drop((c, s));
    // By the change index alone, in a new process.
    let (reached, found) = read(&open(), begun.to, begun.incarnation);
    assert!(!reached.begins && found.iter().all(|key| key != b"mine") && found.len() == 2, "{}", found.len());
}

/// A node that is told to serve fewer slots must hold nothing of others, also in its clones.
#[test]
fn slots_with_records_of_clones_are_not_given_away() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path(), SlotSet::all()).unwrap();
    let at = commit(s.as_ref(), vec![put("a", "1")]);
    let _ = s.create_clone(&name("x"), at).unwrap();
    let _ = write(clone_of(&s, "x").as_ref(), vec![put("b", "1")]);
    drop(s);
    let (a, b) = (slot_of(b"a"), slot_of(b"b"));
    let err = open(dir.path(), SlotSet::range(a, a)).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Config);
    assert!(err.message().contains(&format!("slot {b}")), "{err}");
}
