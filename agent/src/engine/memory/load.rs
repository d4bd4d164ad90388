//! Restores of the reference engine.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    Data, Error, Incarnation, JobId, Key, Memory, Part, Result, SetDigest, SlotSet, Staging, State, Timestamp,
    slot_of,
};
use crate::engine::{Loader, PartLoader, RecordRef, record_hash};

pub(super) struct MemoryLoader {
    pub(super) store: Memory,
    pub(super) job: JobId,
}

impl MemoryLoader {
    fn with<T>(&self, work: impl FnOnce(&mut Staging) -> Result<T>) -> Result<T> {
        work(staging(&mut self.store.lock(), self.job)?)
    }
}

fn staging(state: &mut State, job: JobId) -> Result<&mut Staging> {
    let ended = || Error::conflict(format!("the restore of job {job} was committed or aborted: begin a new one"));
    state.staging.as_mut().filter(|s| s.job == job).ok_or_else(ended)
}

fn no_open_part(staging: &Staging) -> Result<()> {
    let open = staging.open.first();
    open.map_or(Ok(()), |n| Err(Error::conflict(format!("part {n} is being loaded: finish or drop it first"))))
}

impl Loader for MemoryLoader {
    fn loaded(&self) -> Result<Vec<(u32, SetDigest, SetDigest)>> {
        self.with(|s| Ok(s.parts.iter().map(|(n, p)| (*n, p.source, p.loaded)).collect()))
    }

    fn part(&self, number: u32) -> Result<Box<dyn PartLoader>> {
        self.with(|s| {
            if s.parts.contains_key(&number) || !s.open.insert(number) {
                return Err(Error::conflict(format!("part {number} is loaded already, or being loaded")));
            }
            Ok(())
        })?;
        let store = self.store.clone();
        Ok(Box::new(MemoryPart { store, job: self.job, number, last: None, part: Part::default() }))
    }

    fn verify(&self) -> Result<SetDigest> {
        self.with(|s| {
            let mut digest = SetDigest::default();
            for ((slot, key), value) in s.parts.values().flat_map(|p| &p.records) {
                digest.add(record_hash(RecordRef { slot: *slot, key, meta: &[], value }));
            }
            Ok(digest)
        })
    }

    fn commit(&self, at: Timestamp) -> Result<Incarnation> {
        let mut state = self.store.lock();
        let staging = staging(&mut state, self.job)?;
        no_open_part(staging)?;
        self.store.0.hlc.observe(at)?;
        let records = std::mem::take(&mut staging.parts).into_values().flat_map(|p| p.records);
        let data: Data = records.map(|(key, value)| (key, BTreeMap::from([(at, Some(value))]))).collect();
        state.slots = staging_slots(&mut state);
        state.data = Arc::new(data);
        state.incarnation = Incarnation::from_u128(rand::random());
        (state.position, state.highest, state.safe) = (0, at, at);
        state.pins.clear();
        Ok(state.incarnation)
    }

    fn abort(&self) -> Result<()> {
        let mut state = self.store.lock();
        no_open_part(staging(&mut state, self.job)?)?;
        state.staging = None;
        Ok(())
    }
}

fn staging_slots(state: &mut State) -> SlotSet {
    state.staging.take().map(|s| s.slots).unwrap_or_default()
}

struct MemoryPart {
    store: Memory,
    job: JobId,
    number: u32,
    last: Option<Key>,
    part: Part,
}

impl PartLoader for MemoryPart {
    fn put(&mut self, record: RecordRef<'_>, hash: u128) -> Result<()> {
        let mut state = self.store.lock();
        let slots = &staging(&mut state, self.job)?.slots;
        if !record.meta.is_empty() {
            return Err(Error::unsupported("the memory engine keeps no meta: restore into another kind of store"));
        }
        if record.slot != slot_of(record.key) || !slots.contains(record.slot) {
            return Err(Error::request(format!("a record of slot {} does not belong here: {slots}", record.slot)));
        }
        let key = (record.slot, record.key.to_vec());
        if self.last.as_ref().is_some_and(|last| *last >= key) {
            return Err(Error::request("records must ascend by (slot, key): sort the source"));
        }
        self.part.loaded.add(hash);
        let _ = self.part.records.insert(key.clone(), record.value.to_vec());
        self.last = Some(key);
        Ok(())
    }

    fn finish(mut self: Box<Self>, source: SetDigest) -> Result<SetDigest> {
        let mut part = std::mem::take(&mut self.part);
        part.source = source;
        let loaded = part.loaded;
        let _ = staging(&mut self.store.lock(), self.job)?.parts.insert(self.number, part);
        Ok(loaded)
    }
}

impl Drop for MemoryPart {
    fn drop(&mut self) {
        if let Ok(staging) = staging(&mut self.store.lock(), self.job) {
            let _ = staging.open.remove(&self.number);
        }
    }
}
