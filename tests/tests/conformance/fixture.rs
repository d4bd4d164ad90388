//! Stores to test, with a clock that the tests turn.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tidemark_agent::engine::embedded::{DEFAULT_RETENTION, Embedded, Options};
use tidemark_agent::engine::memory::Memory;
use tidemark_agent::engine::{Engine, PartLoader, RecordRef, ScanRange, Snapshot, record_hash};
use tidemark_agent::kv::{KvStore, Write};
use tidemark_common::clock::{Hlc, WallClock};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::id::JobId;
use tidemark_proto::{Error, Result, SlotSet, Timestamp, slot_of};

/// What the suite tests.
pub(crate) trait Store: Engine + KvStore {}
impl<T: Engine + KvStore> Store for T {}

/// A wall clock that stands until it is turned.
pub(crate) struct TestClock(AtomicU64);

impl WallClock for TestClock {
    fn millis(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl TestClock {
    /// Milliseconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        self.millis()
    }

    /// Turns it forward.
    pub(crate) fn turn(&self, time: Duration) {
        let _ = self.0.fetch_add(time.as_millis() as u64, Ordering::SeqCst);
    }
}

enum Kind {
    Memory(Memory),
    Embedded { store: Arc<Embedded>, _dir: TempDir },
}

/// One store.
pub(crate) struct Fixture {
    kind: Kind,
    clock: Arc<TestClock>,
}

pub(crate) const START: u64 = 1_700_000_000_000;
pub(crate) const BUDGET: Duration = Duration::from_secs(20);

pub(crate) fn clock() -> Arc<TestClock> {
    Arc::new(TestClock(AtomicU64::new(START)))
}

pub(crate) fn open(dir: &Path, slots: SlotSet) -> Result<Arc<Embedded>> {
    Embedded::open(dir, Options::new(slots, Hlc::new(clock())))
}

impl Fixture {
    pub(crate) fn memory() -> Self {
        let clock = clock();
        Self { kind: Kind::Memory(Memory::new(SlotSet::all(), Hlc::new(clock.clone()))), clock }
    }

    pub(crate) fn embedded() -> Self {
        let (clock, dir) = (clock(), tempfile::tempdir().unwrap());
        let store = Embedded::open(dir.path(), Options::new(SlotSet::all(), Hlc::new(clock.clone()))).unwrap();
        Self { kind: Kind::Embedded { store, _dir: dir }, clock }
    }

    pub(crate) fn store(&self) -> &dyn Store {
        match &self.kind {
            Kind::Memory(m) => m,
            Kind::Embedded { store, .. } => store.as_ref(),
        }
    }

    /// Turns the clock forward.
    pub(crate) fn pass(&self, time: Duration) {
        self.clock.turn(time);
    }

    /// The store, where it is an embedded one.
    pub(crate) fn as_embedded(&self) -> Option<&Embedded> {
        match &self.kind {
            Kind::Memory(_) => None,
            Kind::Embedded { store, .. } => Some(store),
        }
    }

    /// Collects what the default retention lets go.
    pub(crate) fn collect(&self) {
        match &self.kind {
            Kind::Memory(m) => drop(m.collect(DEFAULT_RETENTION).unwrap()),
            Kind::Embedded { store, .. } => drop(store.collect().unwrap()),
        }
    }
}

pub(crate) fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Write {
    Write::Put { key: key.as_ref().to_vec(), value: value.as_ref().to_vec() }
}

pub(crate) fn delete(key: impl AsRef<[u8]>) -> Write {
    Write::Delete { key: key.as_ref().to_vec() }
}

pub(crate) fn try_commit(store: &dyn Store, writes: Vec<Write>) -> Result<Timestamp> {
    store.commit(writes, Timestamp::ZERO).blocking_recv().unwrap_or_else(|_| Err(Error::bug("no answer")))
}

pub(crate) fn commit(store: &dyn Store, writes: Vec<Write>) -> Timestamp {
    try_commit(store, writes).unwrap()
}

pub(crate) fn value(store: &dyn Store, key: impl AsRef<[u8]>, at: Option<Timestamp>) -> Option<Vec<u8>> {
    store.get(key.as_ref(), at).unwrap().map(|v| v.value)
}

pub(crate) fn job(n: u128) -> JobId {
    JobId::from_u128(n)
}

/// Slot and key to value.
pub(crate) type State = BTreeMap<(u16, Vec<u8>), Vec<u8>>;

/// Everything a snapshot shows; fails unless it ascends strictly.
pub(crate) fn dump(snapshot: &dyn Snapshot, range: &ScanRange) -> State {
    let mut out = State::new();
    snapshot
        .scan(range, &mut |r| {
            let key = (r.slot, r.key.to_vec());
            assert!(out.last_key_value().is_none_or(|(last, _)| *last < key), "out of order: {key:?}");
            assert_eq!(r.slot, slot_of(r.key));
            let _ = out.insert(key, r.value.to_vec());
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    out
}

pub(crate) fn state_at(store: &dyn Store, at: Timestamp) -> State {
    dump(store.snapshot(at).unwrap().as_ref(), &ScanRange::slots(SlotSet::all()))
}

/// The newest state, through the pages that clients read.
pub(crate) fn newest(store: &dyn Store) -> State {
    let (mut out, mut from) = (State::new(), Vec::new());
    loop {
        let page = store.scan(b"", &from, None, 7, 1 << 20).unwrap();
        out.extend(page.records.into_iter().map(|r| ((slot_of(&r.key), r.key), r.value)));
        match page.next {
            Some(next) => from = next,
            None => return out,
        }
    }
}

pub(crate) fn state_of(records: &[(&[u8], &[u8])]) -> State {
    records.iter().map(|(k, v)| ((slot_of(k), k.to_vec()), v.to_vec())).collect()
}

pub(crate) fn digest(state: &State) -> SetDigest {
    let mut digest = SetDigest::default();
    for ((slot, key), value) in state {
        digest.add(record_hash(RecordRef { slot: *slot, key, meta: &[], value }));
    }
    digest
}

/// Puts a record into a part with its hash, as a restore does.
pub(crate) fn put_record(part: &mut dyn PartLoader, record: RecordRef<'_>) -> Result<()> {
    part.put(record, record_hash(record))
}
