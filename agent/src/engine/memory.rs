//! The reference engine: everything in one sorted map behind one lock. It keeps no index of changes, forgets all at
//! the end of the process, and does nothing cleverly: other engines are measured against it.

mod load;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tidemark_common::clock::Hlc;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{Description, Held, Ownership, Position, Sealed};
use tidemark_proto::{Error, Incarnation, Result, SlotSet, Timestamp, slot_of};
use tokio::sync::oneshot;

use crate::engine::{Engine, Loader, Snapshot};
use crate::kv::{KvStore, ScanPage, Versioned, Write, check_batch, check_slot};
use load::MemoryLoader;
use view::{View, sort_key};

/// Most batches that wait while the store is held.
const MAX_PARKED: usize = 8192;
/// How long a sealed cut stays pinned when nobody settles its job.
const SEAL_LEASE: Duration = Duration::from_secs(24 * 3600);

/// Slot and key.
type Key = (u16, Vec<u8>);
/// Versions of one key, `None` for a delete.
type Versions = BTreeMap<Timestamp, Option<Vec<u8>>>;
type Data = BTreeMap<Key, Versions>;
type Parked = (Vec<Write>, Timestamp, oneshot::Sender<Result<Timestamp>>);

struct State {
    slots: SlotSet,
    incarnation: Incarnation,
    data: Arc<Data>,
    position: u64,
    highest: Timestamp,
    safe: Timestamp,
    /// Timestamp and end of the lease, wall clock in milliseconds.
    pins: BTreeMap<String, (Timestamp, u64)>,
    hold: Option<(JobId, Instant, Instant)>,
    reading: Option<(JobId, u64)>,
    ended: Option<(JobId, Duration)>,
    parked: Vec<Parked>,
    staging: Option<Staging>,
}

struct Staging {
    job: JobId,
    slots: SlotSet,
    parts: BTreeMap<u32, Part>,
    open: BTreeSet<u32>,
}

#[derive(Default)]
struct Part {
    records: BTreeMap<Key, Vec<u8>>,
    source: SetDigest,
    loaded: SetDigest,
}

struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    hlc: Hlc,
}

/// A store in memory.
#[derive(Clone)]
pub struct Memory(Arc<Inner>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl Memory {
    /// An empty store of `slots`, with `hlc` for its commit timestamps.
    pub fn new(slots: SlotSet, hlc: Hlc) -> Self {
        let state = State {
            slots,
            incarnation: Incarnation::from_u128(rand::random()),
            data: Arc::default(),
            position: 0,
            highest: Timestamp::ZERO,
            safe: Timestamp::ZERO,
            pins: BTreeMap::new(),
            hold: None,
            reading: None,
            ended: None,
            parked: Vec::new(),
            staging: None,
        };
        Self(Arc::new(Inner { state: Mutex::new(state), changed: Condvar::new(), hlc }))
    }

    /// Drops what nobody may read any more when old versions are kept for `retention`; answers the safe point.
    pub fn collect(&self, retention: Duration) -> Result<Timestamp> {
        let now = self.0.hlc.wall_millis();
        let mut state = self.lock();
        state.pins.retain(|_, (_, end)| *end > now);
        let wanted = Timestamp::new(now.saturating_sub(retention.as_millis() as u64), 0);
        let lowest = state.pins.values().map(|(at, _)| *at).min().unwrap_or(Timestamp::MAX);
        let safe = wanted.min(lowest).max(state.safe);
        self.0.hlc.advance(safe);
        state.safe = safe;
        for versions in Arc::make_mut(&mut state.data).values_mut() {
            let newest = versions.range(..=safe).next_back().map(|(at, value)| (*at, value.is_some()));
            if let Some((newest, live)) = newest {
                versions.retain(|at, _| *at > newest || (*at == newest && live));
            }
        }
        Arc::make_mut(&mut state.data).retain(|_, versions| !versions.is_empty());
        Ok(safe)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("memory engine")
    }

    fn view(&self, at: Option<Timestamp>) -> Result<View> {
        let state = self.lock();
        state.check_open()?;
        let at = at.unwrap_or(state.highest.max(state.safe));
        if at < state.safe {
            return Err(too_old(at, state.safe));
        }
        if at > state.highest {
            self.0.hlc.observe(at)?;
        }
        Ok(View { at, data: Arc::clone(&state.data) })
    }

    /// Waits for the end of a hold and lets the parked writes in.
    fn watch_hold(&self) {
        let mut state = self.lock();
        while let Some((_, _, deadline)) = state.hold {
            let now = Instant::now();
            if deadline <= now {
                state.end_hold(&self.0.hlc, now);
                return;
            }
            state = self.0.changed.wait_timeout(state, deadline - now).expect("memory engine").0;
        }
    }
}

impl State {
    fn check_open(&self) -> Result<()> {
        self.staging.as_ref().map_or(Ok(()), |s| {
            Err(Error::conflict(format!("the store is restoring (job {}): wait until that has ended", s.job)))
        })
    }

    fn end_hold(&mut self, hlc: &Hlc, now: Instant) {
        let Some((job, since, deadline)) = self.hold.take() else { return };
        self.ended = Some((job, now.min(deadline).duration_since(since)));
        for (writes, after, reply) in std::mem::take(&mut self.parked) {
            let _ = reply.send(self.apply(hlc, writes, after));
        }
    }

    fn apply(&mut self, hlc: &Hlc, writes: Vec<Write>, after: Timestamp) -> Result<Timestamp> {
        self.check_open()?;
        hlc.observe(after)?;
        let at = hlc.now();
        let data = Arc::make_mut(&mut self.data);
        for write in writes {
            let (key, value) = match write {
                Write::Put { key, value } => (key, Some(value)),
                Write::Delete { key } => (key, None),
            };
            let _ = data.entry((slot_of(&key), key)).or_default().insert(at, value);
        }
        self.position += 1;
        self.highest = at;
        Ok(at)
    }

    fn position(&self) -> Position {
        Position { history: self.incarnation.to_string(), offset: self.position }
    }

    fn ownership(&self) -> Ownership {
        Ownership { role: "primary".into(), slots: self.slots.clone(), moving: SlotSet::EMPTY, config_epoch: 0 }
    }
}

fn too_old(at: Timestamp, safe: Timestamp) -> Error {
    Error::not_found(format!("TooOld: timestamp {at} is below the safe point {safe}: take a later one"))
}

impl Engine for Memory {
    fn describe(&self) -> Result<Description> {
        let state = self.lock();
        let view = View { at: Timestamp::MAX, data: Arc::clone(&state.data) };
        let size = |(key, _, value): (&Key, _, &Vec<u8>)| (key.1.len() + value.len()) as u64;
        Ok(Description {
            engine: "memory".into(),
            engine_version: env!("CARGO_PKG_VERSION").into(),
            incarnation: state.incarnation,
            state: if state.staging.is_some() { "restoring" } else { "available" }.into(),
            position: state.position(),
            ownership: state.ownership(),
            clock_millis: self.0.hlc.wall_millis(),
            records: view.live(Bound::Unbounded).count() as u64,
            bytes: view.live(Bound::Unbounded).map(size).sum(),
            changes_since: false,
            data_address: String::new(),
            ledger_number: 0,
            ledger_hash: Default::default(),
        })
    }

    fn hold(&self, job: JobId, budget: Duration) -> Result<Held> {
        let mut state = self.lock();
        state.check_open()?;
        let now = Instant::now();
        if budget.is_zero() {
            state.end_hold(&self.0.hlc, now);
        } else {
            let since = state.hold.filter(|(_, _, deadline)| *deadline > now).map_or(now, |(_, since, _)| since);
            state.hold = Some((job, since, now + budget));
            let this = self.clone();
            let _ = std::thread::spawn(move || this.watch_hold());
        }
        state.reading = Some((job, state.position));
        self.0.changed.notify_all();
        Ok(Held {
            position: state.position(),
            max_timestamp: self.0.hlc.last().max(state.highest),
            ownership: state.ownership(),
            incarnation: state.incarnation,
            clock_millis: self.0.hlc.wall_millis(),
        })
    }

    fn seal(&self, job: JobId, at: Timestamp) -> Result<Sealed> {
        let mut state = self.lock();
        state.check_open()?;
        if state.reading != Some((job, state.position)) {
            return Err(Error::conflict("the store moved on, or was never held by this job: hold again"));
        }
        if at < state.highest {
            return Err(Error::request(format!("a cut at {at} is below the last commit at {}", state.highest)));
        }
        self.0.hlc.observe(at)?;
        let end = self.0.hlc.wall_millis() + SEAL_LEASE.as_millis() as u64;
        let _ = state.pins.insert(format!("job:{job}"), (at, end));
        Ok(Sealed { position: state.position() })
    }

    fn release(&self, job: JobId) -> Result<(Ownership, Duration)> {
        let mut state = self.lock();
        if state.hold.is_some_and(|(of, _, _)| of == job) {
            state.end_hold(&self.0.hlc, Instant::now());
        }
        self.0.changed.notify_all();
        let held = state.ended.filter(|(of, _)| *of == job).map_or(Duration::ZERO, |(_, held)| held);
        Ok((state.ownership(), held))
    }

    fn pin(&self, name: &str, at: Timestamp, lease: Duration) -> Result<()> {
        let mut state = self.lock();
        state.check_open()?;
        if at < state.safe {
            return Err(too_old(at, state.safe));
        }
        let end = self.0.hlc.wall_millis().saturating_add(lease.as_millis() as u64);
        let _ = state.pins.insert(name.to_owned(), (at, end));
        Ok(())
    }

    fn unpin(&self, name: &str) -> Result<()> {
        let _ = self.lock().pins.remove(name);
        Ok(())
    }

    fn pins(&self) -> Result<Vec<(String, Timestamp)>> {
        let now = self.0.hlc.wall_millis();
        let state = self.lock();
        Ok(state.pins.iter().filter(|(_, (_, end))| *end > now).map(|(n, (at, _))| (n.clone(), *at)).collect())
    }

    fn restoring(&self) -> Result<Option<JobId>> {
        Ok(self.lock().staging.as_ref().map(|s| s.job))
    }

    fn snapshot(&self, at: Timestamp) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(self.view(Some(at))?))
    }

    fn restore(&self, job: JobId, slots: SlotSet, in_place: bool) -> Result<Box<dyn Loader>> {
        let mut state = self.lock();
        match &state.staging {
            Some(s) if s.job == job && s.slots == slots => {}
            Some(_) => return Err(state.check_open().unwrap_err()),
            None => {
                let view = View { at: Timestamp::MAX, data: Arc::clone(&state.data) };
                if !in_place && view.live(Bound::Unbounded).next().is_some() {
                    return Err(Error::conflict("the store holds records: restore in place to replace them"));
                }
                let staging = Staging { job, slots, parts: BTreeMap::new(), open: BTreeSet::new() };
                state.staging = Some(staging);
                state.end_hold(&self.0.hlc, Instant::now());
                state.reading = None;
            }
        }
        Ok(Box::new(MemoryLoader { store: self.clone(), job }))
    }
}

impl KvStore for Memory {
    fn commit(&self, writes: Vec<Write>, after: Timestamp) -> oneshot::Receiver<Result<Timestamp>> {
        let (reply, answer) = oneshot::channel();
        let mut state = self.lock();
        let checked = state.check_open().and_then(|()| check_batch(&writes, &state.slots));
        match checked {
            Err(e) => drop(reply.send(Err(e))),
            Ok(_) if state.hold.is_some() && state.parked.len() < MAX_PARKED => {
                state.parked.push((writes, after, reply));
            }
            Ok(_) if state.hold.is_some() => {
                drop(reply.send(Err(Error::retry(format!("{MAX_PARKED} batches wait: send this one later")))));
            }
            Ok(_) => drop(reply.send(state.apply(&self.0.hlc, writes, after))),
        }
        answer
    }

    fn get(&self, key: &[u8], at: Option<Timestamp>) -> Result<Option<Versioned>> {
        let slot = check_slot(key, &self.lock().slots)?;
        let view = self.view(at)?;
        let versions = view.data.get(&(slot, key.to_vec()));
        let found = versions.and_then(|v| v.range(..=view.at).next_back());
        Ok(found.and_then(|(timestamp, value)| {
            Some(Versioned { key: key.to_vec(), value: value.clone()?, timestamp: *timestamp })
        }))
    }

    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        at: Option<Timestamp>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<ScanPage> {
        if limit == 0 || from.len() == 1 {
            return Err(Error::request("ask for 1 record or more, from a sort key of 2 bytes or more"));
        }
        let view = self.view(at)?;
        let mut page = ScanPage { records: Vec::new(), next: None, at: view.at };
        let mut bytes = 0;
        for ((slot, key), timestamp, value) in view.live(Bound::Unbounded) {
            if !key.starts_with(prefix) || (!from.is_empty() && sort_key(*slot, key).as_slice() <= from) {
                continue;
            }
            bytes += key.len() + value.len();
            page.records.push(Versioned { key: key.clone(), value: value.clone(), timestamp });
            if page.records.len() >= limit || bytes > max_bytes {
                page.next = Some(sort_key(*slot, key));
                break;
            }
        }
        Ok(page)
    }
}
