//! Clones of the embedded engine, against a model that keeps every state of parent and clone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tidemark_agent::engine::Engine;
use tidemark_agent::engine::embedded::{Embedded, MAX_CLONES, Options};
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
    for (info, _) in
        [s.clones().unwrap()].into_iter().flat_map(|(all, highest)| all.into_iter().map(move |i| (i, highest)))
    {
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

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    /// Writes to the parent (`None`) or to a clone.
    Write(Option<usize>, Vec<(u8, Option<u8>)>),
    /// Makes a clone of the parent as of that many commits ago.
    Create(usize),
    Drop(usize),
    Collect(u8),
    Reopen,
}

/// Every state by the time it began.
#[derive(Debug, Clone, Default)]
struct Line(BTreeMap<Timestamp, State>);

impl Line {
    fn at(&self, at: Timestamp) -> State {
        self.0.range(..=at).next_back().map(|(_, state)| state.clone()).unwrap_or_default()
    }

    fn write(&mut self, at: Timestamp, writes: &[Write]) {
        let mut state = self.at(at);
        for write in writes {
            let key = (slot_of(write.key()), write.key().to_vec());
            match write {
                Write::Put { value, .. } => drop(state.insert(key, value.clone())),
                Write::Delete { .. } => drop(state.remove(&key)),
            }
        }
        let _ = self.0.insert(at, state);
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let writes = || proptest::collection::vec((0u8..10, proptest::option::of(0u8..4)), 1..6);
    let step = prop_oneof![
        5 => writes().prop_map(|w| Step::Write(None, w)),
        6 => (0usize..3, writes()).prop_map(|(n, w)| Step::Write(Some(n), w)),
        3 => (0usize..4).prop_map(Step::Create),
        1 => (0usize..3).prop_map(Step::Drop),
        2 => (0u8..20).prop_map(Step::Collect),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..30)
}

struct World {
    dir: tempfile::TempDir,
    clock: Arc<TestClock>,
    store: Option<Arc<Embedded>>,
    parent: Line,
    clones: BTreeMap<String, (Timestamp, Line)>,
    made: usize,
    /// Times at which something happened.
    times: Vec<Timestamp>,
}

impl World {
    fn new() -> Self {
        let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
        let mut world = Self {
            dir,
            clock,
            store: None,
            parent: Line::default(),
            clones: BTreeMap::new(),
            made: 0,
            times: Vec::new(),
        };
        world.reopen();
        world
    }

    fn reopen(&mut self) {
        drop(self.store.take());
        let options = Options::new(SlotSet::all(), Hlc::new(self.clock.clone()));
        self.store = Some(Embedded::open(self.dir.path(), options).unwrap());
    }

    fn store(&self) -> &Embedded {
        self.store.as_deref().unwrap()
    }

    fn step(&mut self, step: Step) {
        self.clock.turn(Duration::from_secs(60));
        match step {
            Step::Write(to, writes) => {
                let key = |k: u8| [format!("{{h{}}}", k % 3).as_bytes(), b"\0", &[k]].concat();
                let writes: Vec<_> = writes
                    .into_iter()
                    .map(|(k, v)| v.map_or_else(|| delete(key(k)), |v| put(key(k), [v])))
                    .collect();
                let clone = to.and_then(|n| self.clones.keys().nth(n).cloned());
                let at = match &clone {
                    Some(name) => write(clone_of(self.store(), name).as_ref(), writes.clone()),
                    None => commit(self.store(), writes.clone()),
                };
                match clone {
                    Some(name) => self.clones.get_mut(&name).unwrap().1.write(at, &writes),
                    None => self.parent.write(at, &writes),
                }
                self.times.push(at);
            }
            Step::Create(ago) => {
                let Some(at) = self.parent.0.keys().rev().nth(ago).copied() else { return };
                let text = format!("c{}", self.made);
                self.made += 1;
                match self.store().create_clone(&name(&text), at) {
                    Ok(_) => drop(self.clones.insert(text, (at, Line([(at, self.parent.at(at))].into())))),
                    Err(e) => assert!(e.kind() == ErrorKind::NotFound && self.store().snapshot(at).is_err(), "{e}"),
                }
            }
            Step::Drop(n) => {
                let Some(text) = self.clones.keys().nth(n).cloned() else { return };
                assert!(self.store().drop_clone(&name(&text), None).unwrap());
                let _ = self.clones.remove(&text);
            }
            Step::Collect(minutes) => {
                self.clock.turn(Duration::from_secs(60) * u32::from(minutes));
                let _ = self.store().collect().unwrap();
            }
            Step::Reopen => self.reopen(),
        }
    }

    /// Parent and clones at every time that can still be read; what cannot is old.
    fn check(&self) {
        let oldest = Timestamp::new(self.clock.now() - 600_000, 0);
        let stand: Vec<_> = self.store().clones().unwrap().0.into_iter().map(|i| (i.name, i.at)).collect();
        let expected: Vec<_> = self.clones.iter().map(|(name, (at, _))| (name.clone(), *at)).collect();
        assert_eq!(stand, expected);
        for (text, (began, line)) in &self.clones {
            let clone = clone_of(self.store(), text);
            for at in self.times.iter().filter(|t| *t >= began) {
                match clone.scan(b"", &[], Some(*at), 1, 1) {
                    Ok(_) => {
                        let want = line.at(*at);
                        assert_eq!(pages(clone.as_ref(), b"", Some(*at), 3), want, "{text} at {at}");
                        let tagged = want.into_iter().filter(|((_, k), _)| k.starts_with(b"{h1}")).collect();
                        assert_eq!(pages(clone.as_ref(), b"{h1}", Some(*at), 2), tagged, "{text} at {at}");
                        for ((_, key), value) in line.at(*at) {
                            assert_eq!(clone.get(&key, Some(*at)).unwrap().map(|v| v.value), Some(value));
                        }
                    }
                    Err(e) => assert!(e.kind() == ErrorKind::NotFound && *at < oldest, "{text} at {at}: {e}"),
                }
            }
            assert_eq!(pages(clone.as_ref(), b"", None, 100), line.at(Timestamp::MAX), "{text}");
        }
        for at in &self.times {
            match self.store().snapshot(*at) {
                Ok(_) => assert_eq!(state_at(self.store(), *at), self.parent.at(*at), "parent at {at}"),
                Err(e) => assert_eq!(e.kind(), ErrorKind::NotFound),
            }
        }
    }
}

#[test]
fn parent_and_clones_are_what_the_model_says() {
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(24) });
    let ran = runner.run(&steps(), |steps| {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.check();
        world.reopen();
        world.check();
        // Once all is collected, the newest of all is still what it was.
        world.clock.turn(HOUR);
        let _ = world.store().collect().unwrap();
        world.check();
        Ok(())
    });
    ran.unwrap();
}
