//! Random histories of a parent and its clones, against a model that keeps every state of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tidemark_agent::engine::Engine;
use tidemark_agent::engine::embedded::{Embedded, Options};
use tidemark_agent::kv::Write;
use tidemark_common::clock::Hlc;
use tidemark_proto::{ErrorKind, SlotSet, Timestamp, slot_of};

use super::{HOUR, clone_of, name, pages, write};
use crate::fixture::*;

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
