//! What is sent of a base that was made ready, in part or whole, is what is sent of the same base as it came.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_common::rdb::Family;
use tidemark_common::record::{RedisMeta, redis_key, split_redis_key};
use tidemark_common::run::{RunReader, open_index};
use tidemark_common::seal::Sealer;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::run::MAX_INLINE;
use tidemark_proto::wire::control::SecretKey;
use tidemark_proto::{SlotSet, Timestamp, slot_of};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::engine::redis::merge::{Emptied, State};
use crate::engine::redis::spill::Spill;
use crate::engine::{RecordRef, ScanRange, Snapshot};
use crate::keyindex::{IndexEntry, IndexReader};
use crate::snapshot::{self, Counters, Method, PartInput};

mod over;

type Records = BTreeMap<(u16, Vec<u8>), (Vec<u8>, Vec<u8>)>;

/// Databases of the records.
const DBS: u64 = 3;

fn meta(meaning: u128) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (expire_at_millis, idle_seconds, frequency) = (None, None, None);
    RedisMeta { type_byte: 0, family: Family::Redis, meaning, expire_at_millis, idle_seconds, frequency }
        .encode(&mut bytes);
    bytes
}

fn sorted(dir: &Path, records: &Records, gone: &[(u16, Vec<u8>)]) -> Sorted {
    let mut spill = Spill::new(dir).unwrap();
    // Not in order.
    for ((slot, key), (meta, value)) in records.iter().rev() {
        spill.begin(*slot, key).unwrap();
        value.chunks(300_000).for_each(|piece| spill.value(piece).unwrap());
        spill.end(meta).unwrap();
    }
    gone.iter().for_each(|(slot, key)| spill.gone(*slot, key).unwrap());
    spill.finish().unwrap()
}

/// Records of many slots, some of which hold far more than a block; a few values are long ones.
fn some_records(rng: &mut StdRng) -> Records {
    let mut records = Records::new();
    for i in 0..rng.random_range(0..3000) {
        let name = match rng.random_range(0..3u32) {
            0 => format!("{{tag{}}}{i}", i % 3),
            _ => format!("key{i}"),
        };
        let mut key = Vec::new();
        redis_key(rng.random_range(0..DBS), name.as_bytes(), &mut key);
        let len = match rng.random_range(0..400u32) {
            0 => MAX_INLINE + rng.random_range(1..200_000usize),
            _ => rng.random_range(0..900),
        };
        let value = (0..len).map(|at| (at as u8).wrapping_mul(i as u8 | 1)).collect();
        let _ = records.insert((slot_of(name.as_bytes()), key), (meta(rng.random()), value));
    }
    records
}

/// The part of all slots: its records, the entries of its key index, digest, live bytes and upper bound.
fn built(state: &Arc<State>, part_bytes: u64, dir: &Path) -> (Records, Vec<IndexEntry>, SetDigest, u64, Vec<u8>) {
    let (run, entries, digest, live_bytes, upper) = run_of(state, part_bytes, (&Method::Full, &dir.join("index")));
    let records = run.into_iter().map(|(key, put)| (key, put.unwrap())).collect();
    (records, entries, digest, live_bytes, upper)
}

/// A run: records, `None` for deletes.
type Run = BTreeMap<(u16, Vec<u8>), Option<(Vec<u8>, Vec<u8>)>>;

fn run_of(
    state: &Arc<State>,
    part_bytes: u64,
    (method, index): (&Method, &Path),
) -> (Run, Vec<IndexEntry>, SetDigest, u64, Vec<u8>) {
    let sealer = Sealer::new(&SecretKey([3; 32]), [9; 16], true);
    let (counters, cancel) = (Counters::default(), CancellationToken::new());
    let range = ScanRange::slots(SlotSet::all());
    let input = PartInput {
        snapshot: state,
        range: &range,
        method,
        new_index: Some(index),
        part_bytes,
        counters: &counters,
        cancel: &cancel,
    };
    let mut blocks = Vec::new();
    let built = snapshot::build(&input, &sealer, |block| {
        blocks.push(block);
        Ok(())
    });
    let mut built = built.unwrap();
    let blocks_told = match built.run.blocks {
        0 => Vec::new(),
        _ => open_index(&sealer, &mut built.run.index).unwrap().blocks,
    };
    assert_eq!(blocks_told.len(), blocks.len());
    let (mut left, all) = (blocks.into_iter(), 0..blocks_told.len() as u32);
    let mut run = RunReader::new(sealer, vec![all], move || Ok(left.next()), 8 << 20).unwrap();
    let mut records = Run::new();
    while run.advance().unwrap() {
        let entry = run.current();
        let put = entry.put.map(|(meta, value)| (meta.to_vec(), value.to_vec()));
        assert!(records.insert((entry.slot, entry.key.to_vec()), put).is_none());
    }
    let told: u32 = blocks_told.iter().map(|b| b.records).sum();
    assert_eq!((told as usize, built.run.records as usize), (records.len(), records.len()));
    let (mut reader, mut entries) = (IndexReader::open(index).unwrap(), Vec::new());
    while let Some(entry) = reader.next().unwrap() {
        entries.push(entry.clone());
    }
    (records, entries, built.digest, built.live_bytes, built.upper)
}

fn scanned(state: &Arc<State>, range: &ScanRange) -> Records {
    let mut records = Records::new();
    let mut visit = |r: RecordRef<'_>| {
        let _ = records.insert((r.slot, r.key.to_vec()), (r.meta.to_vec(), r.value.to_vec()));
        Ok(ControlFlow::Continue(()))
    };
    Snapshot::scan(state, range, &mut visit).unwrap();
    records
}

/// A base and what a log made of it.
struct Case {
    dir: tempfile::TempDir,
    rng: StdRng,
    base: Records,
    over: Records,
    gone: Vec<(u16, Vec<u8>)>,
    emptied: Emptied,
}

impl Case {
    fn new(seed: u64) -> Self {
        let (dir, mut rng) = (tempfile::tempdir().unwrap(), StdRng::seed_from_u64(seed));
        let base = some_records(&mut rng);
        let touched = if rng.random_range(0..3u32) == 0 { 0 } else { rng.random_range(0..40) };
        let mut over: Records = some_records(&mut rng).into_iter().take(touched).collect();
        let keys: Vec<_> = base.keys().cloned().collect();
        let mut gone = Vec::new();
        for _ in 0..touched.min(keys.len()) {
            let key = keys[rng.random_range(0..keys.len())].clone();
            if gone.contains(&key) || over.contains_key(&key) {
                continue;
            }
            match rng.random_range(0..3u32) {
                0 => _ = over.insert(key, (meta(rng.random()), vec![7; rng.random_range(0..3000)])),
                // Written, and the same as before.
                1 => _ = over.insert(key.clone(), base[&key].clone()),
                _ => gone.push(key),
            }
        }
        let mut emptied = Emptied::default();
        match rng.random_range(0..6u32) {
            0 => _ = emptied.dbs.insert(rng.random_range(0..DBS)),
            1 => emptied.slots = SlotSet::range(rng.random_range(0..9000), rng.random_range(9000..SLOT_COUNT)),
            _ => {}
        }
        Self { dir, rng, base, over, gone, emptied }
    }

    /// Its state, of a base as it came, or made ready up to some record.
    fn state(&mut self, name: &str, ready: bool) -> State {
        let dir = self.dir.path().join(name);
        let base = Arc::new(sorted(&dir.join("base"), &self.base, &[]));
        let ready = ready.then(|| {
            let mut writer = ReadyWriter::create(&dir.join("ready")).unwrap();
            let looks = Cell::new(self.rng.random_range(0..16u32));
            let stop = || {
                looks.set(looks.get().saturating_sub(1));
                looks.get() == 0
            };
            let making = Making::default();
            fill(&base, &mut writer, &making, &stop).unwrap();
            Arc::new(making.update(|made| made.ready.take()).unwrap())
        });
        let mut state = State::of(Timestamp::ZERO, base);
        state.ready = ready;
        state.over = sorted(&dir.join("over"), &self.over, &self.gone);
        state.emptied = self.emptied.clone();
        state
    }
}

/// One base, as it came and made ready up to some record, under the same log; returns how many slots were ready.
fn check(seed: u64) -> u16 {
    let mut case = Case::new(seed);
    let (plain, ready) = (Arc::new(case.state("plain", false)), Arc::new(case.state("ready", true)));
    let Case { dir, mut rng, base, over, gone, emptied } = case;
    let keys: Vec<_> = base.keys().cloned().collect();
    let hidden = |key: &(u16, Vec<u8>)| {
        let db = split_redis_key(&key.1).unwrap().0;
        emptied.dbs.contains(&db) || emptied.slots.contains(key.0)
    };
    let stay = keys.iter().filter(|k| !gone.contains(k) && !over.contains_key(k) && !hidden(k)).count();
    assert_eq!(scanned(&plain, &ScanRange::slots(SlotSet::all())).len(), stay + over.len(), "seed {seed}");
    let below = ready.ready.as_ref().unwrap().below();
    let part_bytes = if rng.random_range(0..2u32) == 0 { 1 << 30 } else { rng.random_range(1..600_000) };
    assert_eq!(built(&ready, part_bytes, dir.path()), built(&plain, part_bytes, dir.path()), "seed {seed}");
    for _ in 0..8 {
        let (a, b) = (rng.random_range(0..SLOT_COUNT), rng.random_range(0..SLOT_COUNT));
        let mut range = ScanRange::slots(SlotSet::range(a.min(b), a.max(b)));
        if let Some(key) = keys.get(rng.random_range(0..keys.len().max(1))) {
            let key = tidemark_proto::stored::run::sort_key(key.0, &key.1);
            match rng.random_range(0..3u32) {
                0 => range.lower = key,
                1 => range.upper = key,
                _ => {}
            }
        }
        assert_eq!(scanned(&ready, &range), scanned(&plain, &range), "seed {seed}");
    }
    below
}

#[test]
fn what_is_ready_is_what_came() {
    let mut ready: Vec<u16> = (0..24).map(check).collect();
    ready.sort_unstable();
    // None of it, some, and all.
    assert_eq!((ready[0], ready[23]), (0, SLOT_COUNT));
    assert!(ready.iter().filter(|below| (1..SLOT_COUNT).contains(*below)).count() > 5, "{ready:?}");
}

/// Whenever it is ended, and while its thread still comes to its end: what was told as ready and what lies in the chunks are all.
#[test]
fn nobody_waits_for_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut below = Vec::new();
    for seed in 0..24 {
        let (dir, mut rng) = (dir.path().join(seed.to_string()), StdRng::seed_from_u64(seed));
        let base = some_records(&mut rng);
        let sorting = |name: &str| {
            let mut spill = Spill::new(&dir.join(name)).unwrap();
            for ((slot, key), (meta, value)) in &base {
                spill.begin(*slot, key).unwrap();
                spill.value(value).unwrap();
                spill.end(meta).unwrap();
            }
            Arc::new(spill.finish_behind().unwrap())
        };
        let plain = Arc::new(State::of(Timestamp::ZERO, sorting("plain").sorted().unwrap()));
        let sorting = sorting("ready");
        let mut settling = Settling::start(sorting.clone(), dir.join("file")).unwrap();
        let wanted = (seed as u16 % 8) * (SLOT_COUNT / 7);
        let ended = || settling.thread.as_ref().is_none_or(JoinHandle::is_finished);
        let told = || settling.making.lock().ready.as_ref().map_or(0, Ready::below);
        while told() < wanted.min(SLOT_COUNT) && !ended() {
            std::thread::yield_now();
        }
        let ready = settling.end();
        assert!(settling.end().is_none(), "it is told once");
        let mut state = State::of(Timestamp::ZERO, sorting.sorted().unwrap());
        state.ready = ready.map(Arc::new);
        below.push(state.ready.as_ref().map_or(0, |ready| ready.below()));
        let state = Arc::new(state);
        assert_eq!(built(&state, 1 << 30, &dir), built(&plain, 1 << 30, &dir), "seed {seed}");
        drop(settling);
        assert_eq!(
            built(&state, 1 << 30, &dir),
            built(&plain, 1 << 30, &dir),
            "seed {seed}, once the thread is gone"
        );
    }
    assert!(below.iter().any(|below| (1..SLOT_COUNT).contains(below)), "{below:?}");
}
