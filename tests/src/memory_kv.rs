//! A key-value store in memory, for tests of what stands in front of one. Keeps every version.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tidemark_agent::kv::{KvStore, OpenedClone, ScanPage, Versioned, Write};
use tidemark_common::clock::Hlc;
use tidemark_proto::{CloneName, Error, Result, SlotSet, Timestamp, slot_of};
use tokio::sync::oneshot;

type Versions = BTreeMap<Timestamp, Option<Vec<u8>>>;

/// A commit that a held store has not done yet.
type Waiting = (Vec<Write>, Timestamp, oneshot::Sender<Result<Timestamp>>);

#[derive(Default)]
struct State {
    records: BTreeMap<Vec<u8>, Versions>,
    held: bool,
    waiting: Vec<Waiting>,
}

/// The store of one node.
pub struct MemoryKv {
    slots: SlotSet,
    clock: Hlc,
    state: Mutex<State>,
    clones: Mutex<BTreeMap<CloneName, Arc<MemoryKv>>>,
}

/// The sort key (slot big-endian ++ key) of a key.
fn sort_key(key: &[u8]) -> Vec<u8> {
    let mut out = slot_of(key).to_be_bytes().to_vec();
    out.extend_from_slice(key);
    out
}

impl MemoryKv {
    /// An empty store that owns `slots`.
    pub fn new(slots: SlotSet) -> Self {
        Self { slots, clock: Hlc::system(), state: Mutex::default(), clones: Mutex::default() }
    }

    /// What is opened under this name from now on: a store that begins empty, as no real clone does.
    pub fn add_clone(&self, name: &CloneName) -> Arc<Self> {
        let store = Arc::new(Self { clock: self.clock.clone(), ..Self::new(self.slots.clone()) });
        let _ = self.clones.lock().expect("clones").insert(name.clone(), store.clone());
        store
    }

    /// Holds commits back until [`Self::release`].
    pub fn hold(&self) {
        self.state.lock().expect("state").held = true;
    }

    /// Commits held back so far.
    pub fn waiting(&self) -> usize {
        self.state.lock().expect("state").waiting.len()
    }

    /// Does what was held back, in order.
    pub fn release(&self) {
        let mut state = self.state.lock().expect("state");
        state.held = false;
        for (writes, after, answer) in std::mem::take(&mut state.waiting) {
            let _ = answer.send(self.apply(&mut state, writes, after));
        }
    }

    /// Removes a key with all its versions, as no client could: a hole for checkers to find.
    pub fn forget(&self, key: &[u8]) -> bool {
        self.state.lock().expect("state").records.remove(&sort_key(key)).is_some()
    }

    /// All live keys.
    pub fn keys(&self) -> Vec<Vec<u8>> {
        self.state.lock().expect("state").records.keys().map(|k| k[2..].to_vec()).collect()
    }

    /// Overwrites a value behind the protocol's back.
    pub fn damage(&self, key: &[u8], value: &[u8]) {
        let mut state = self.state.lock().expect("state");
        let versions = state.records.get_mut(&sort_key(key)).expect("key");
        *versions.last_entry().expect("version").get_mut() = Some(value.to_vec());
    }

    fn apply(&self, state: &mut State, writes: Vec<Write>, after: Timestamp) -> Result<Timestamp> {
        self.clock.observe(after)?;
        let at = self.clock.now();
        for write in writes {
            let (key, value) = match write {
                Write::Put { key, value } => (key, Some(value)),
                Write::Delete { key } => (key, None),
            };
            let _ = state.records.entry(sort_key(&key)).or_default().insert(at, value);
        }
        Ok(at)
    }
}

fn version(key: &[u8], versions: &Versions, at: Timestamp) -> Option<Versioned> {
    let (timestamp, value) = versions.range(..=at).next_back()?;
    Some(Versioned { key: key.to_vec(), value: value.clone()?, timestamp: *timestamp })
}

impl KvStore for MemoryKv {
    fn commit(&self, writes: Vec<Write>, after: Timestamp) -> oneshot::Receiver<Result<Timestamp>> {
        let (answer, answered) = oneshot::channel();
        let mut state = self.state.lock().expect("state");
        let foreign = writes.iter().map(|w| match w {
            Write::Put { key, .. } | Write::Delete { key } => slot_of(key),
        });
        if let Some(slot) = foreign.into_iter().find(|s| !self.slots.contains(*s)) {
            let _ = answer.send(Err(Error::conflict(format!("slot {slot} is not this node's"))));
        } else if state.held {
            state.waiting.push((writes, after, answer));
        } else {
            let _ = answer.send(self.apply(&mut state, writes, after));
        }
        answered
    }

    fn get(&self, key: &[u8], at: Option<Timestamp>) -> Result<Option<Versioned>> {
        let state = self.state.lock().expect("state");
        let versions = state.records.get(&sort_key(key));
        Ok(versions.and_then(|v| version(key, v, at.unwrap_or(Timestamp::MAX))))
    }

    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        at: Option<Timestamp>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<ScanPage> {
        let at = at.unwrap_or_else(|| self.clock.now());
        self.clock.observe(at)?;
        let state = self.state.lock().expect("state");
        let (mut records, mut bytes) = (Vec::new(), 0);
        for (sort, versions) in state.records.iter().filter(|(k, _)| from.is_empty() || k.as_slice() > from) {
            let Some(record) = version(&sort[2..], versions, at).filter(|r| r.key.starts_with(prefix)) else {
                continue;
            };
            if records.len() == limit || bytes > max_bytes {
                let next = records.last().map(|r: &Versioned| sort_key(&r.key));
                return Ok(ScanPage { records, next, at });
            }
            bytes += record.key.len() + record.value.len();
            records.push(record);
        }
        Ok(ScanPage { records, next: None, at })
    }

    fn open_clone(&self, name: &CloneName) -> Result<OpenedClone> {
        let clone = self.clones.lock().expect("clones").get(name).cloned();
        let store = clone.ok_or_else(|| Error::not_found(format!("no clone {name} stands here")))?;
        Ok(OpenedClone { at: Timestamp(7), store })
    }
}
