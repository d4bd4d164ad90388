//! The embedded engine: a multi-version key-value store on the LSM library fjall.
//!
//! What holds, and where: encoding and order of keys in [`key`]; files and what a crash leaves in [`layout`]; an
//! incarnation's keyspaces and durable numbers in [`generation`]; commits and cuts in [`commit`]; reads in [`read`];
//! changes in [`changes`]; the log in [`log`] and [`trail`]; collection in [`collect`]; restores in [`load`] and [`restore`].

mod changes;
mod collect;
mod commit;
mod cut;
mod fault;
mod generation;
mod ingest;
mod key;
mod layout;
mod load;
mod log;
mod read;
mod restore;
mod trail;
mod value;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidemark_common::clock::Hlc;
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{Description, Held, Ownership, Position, Sealed};
use tidemark_proto::{Error, Incarnation, Result, SlotSet, Timestamp};
use tokio::sync::oneshot;

pub use collect::CollectReport;
pub use read::MAX_SCAN_LIMIT;

use crate::engine::{Engine, Loader, LogSource, ScanRange, Snapshot};
use crate::kv::{self, KvStore, ScanPage, Versioned, Write};
use collect::{Collector, Stop};
use commit::{Gate, Mode, Pending};
use generation::{Commits, Generation};
use layout::{Current, Layout};
use load::Staging;
use read::View;

/// Name of the engine.
pub const NAME: &str = "embedded";
/// How long old versions stay readable by default.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(600);
/// Default size of the block cache, in bytes.
pub const DEFAULT_CACHE: u64 = 32 << 20;
/// How long a sealed cut stays pinned when nobody settles its job.
pub const SEAL_LEASE: Duration = Duration::from_secs(24 * 3600);

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Slots that the node serves.
    pub slots: SlotSet,
    /// How long old versions stay readable without a pin.
    pub retention: Duration,
    /// Size of the block cache, in bytes.
    pub cache_bytes: u64,
    /// The clock that issues commit timestamps.
    pub hlc: Hlc,
}

impl Options {
    /// Defaults for a node of `slots`.
    pub fn new(slots: SlotSet, hlc: Hlc) -> Self {
        Self { slots, retention: DEFAULT_RETENTION, cache_bytes: DEFAULT_CACHE, hlc }
    }
}

/// What the handles on one open store share.
struct Shared {
    gate: Arc<Gate>,
    hlc: Hlc,
    cache_bytes: u64,
    layout: Layout,
    staging: Mutex<Option<Arc<Staging>>>,
}

/// An open embedded store.
pub struct Embedded {
    shared: Arc<Shared>,
    collector: Arc<Collector>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("layout", &self.shared.layout).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the store in `dir`, or makes it. `Conflict` while another process has it open; `Config` when it holds
    /// records outside `options.slots`.
    pub fn open(dir: impl Into<PathBuf>, options: Options) -> Result<Arc<Self>> {
        if options.slots.is_empty() {
            return Err(Error::config("the node has no slots: give it some, `0-16383` for a single node"));
        }
        let layout = Layout::open(&dir.into())?;
        let (generation, commits) = open_current(&layout, &options)?;
        options.hlc.advance(commits.highest.max(generation.highest_promised()));
        let mode = match layout.restoring()? {
            Some(r) => Mode::Restoring(r.job),
            None => Mode::Open,
        };
        let gate = Arc::new(Gate::new(mode, generation, commits));
        let collector = Arc::new(Collector {
            gate: Arc::clone(&gate),
            hlc: options.hlc.clone(),
            retention: options.retention,
            stop: Stop::default(),
            passing: Mutex::default(),
        });
        let (committing, hlc) = (Arc::clone(&gate), options.hlc.clone());
        let collecting = Arc::clone(&collector);
        let threads = vec![
            spawn("tidemark-commit", move || commit::run(&committing, &hlc))?,
            spawn("tidemark-collect", move || collecting.run())?,
        ];
        let shared =
            Shared { gate, hlc: options.hlc, cache_bytes: options.cache_bytes, layout, staging: Mutex::default() };
        Ok(Arc::new(Self { shared: Arc::new(shared), collector, threads: Mutex::new(threads) }))
    }

    /// Takes no more writes, commits those that wait, and ends the threads. Files are let go with the last snapshot
    /// or loader. Closing again does nothing.
    pub fn close(&self) {
        {
            let mut state = self.shared.gate.lock();
            state.end_hold(Instant::now());
            state.reading = None;
            state.mode = Mode::Closed;
        }
        self.shared.gate.notify();
        self.collector.stop.stop();
        for thread in self.threads.lock().expect("threads").drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the embedded store panicked: report this");
            }
        }
    }

    /// One pass of collection now, beside those that run in the background.
    pub fn collect(&self) -> Result<CollectReport> {
        self.collector.pass().map(|(report, _)| report)
    }

    /// The state at `at`, the newest for `None`.
    fn view(&self, at: Option<Timestamp>) -> Result<View> {
        if let Some(at) = at {
            return View::new(self.shared.gate.settle(&self.shared.hlc, at)?, at);
        }
        loop {
            let (generation, newest) = {
                let state = self.shared.gate.lock();
                state.check_readable()?;
                (Arc::clone(&state.generation), state.commits.highest)
            };
            // An idle store's safe point passes its last commit. If it moves just now, look again.
            let at = newest.max(generation.safe_point());
            match View::new(generation, at) {
                Err(e) if e.kind() == tidemark_proto::ErrorKind::NotFound => {}
                other => return other,
            }
        }
    }

    fn writable(&self) -> Result<Arc<Generation>> {
        let state = self.shared.gate.lock();
        state.check_open()?;
        Ok(Arc::clone(&state.generation))
    }

    fn generation(&self) -> Result<Arc<Generation>> {
        let state = self.shared.gate.lock();
        state.check_readable()?;
        Ok(Arc::clone(&state.generation))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    thread.map_err(fault::io(format!("start the thread {name}")))
}

/// Opens the live incarnation, makes the first one in a new directory, and removes what crashes left.
fn open_current(layout: &Layout, options: &Options) -> Result<(Arc<Generation>, Commits)> {
    let mut current = match layout.current()? {
        Some(current) => current,
        None => {
            let fresh = Current { incarnation: new_incarnation(), slots: options.slots.clone() };
            layout.set_current(&fresh)?;
            fresh
        }
    };
    let mut keep = vec![current.incarnation];
    match layout.restoring()? {
        Some(r) if r.staged == current.incarnation => layout.clear_restoring()?,
        Some(r) => keep.push(r.staged),
        None => {}
    }
    layout.clean(&keep)?;
    let dir = layout.data(current.incarnation);
    let open = |slots: SlotSet| Generation::open(&dir, current.incarnation, slots, options.cache_bytes);
    let generation = Arc::new(open(options.slots.clone())?);
    let commits = generation.commits()?;
    if current.slots != options.slots {
        refuse_outside(&generation, commits, &current.slots, &options.slots)?;
        current.slots = options.slots.clone();
        layout.set_current(&current)?;
    }
    Ok((generation, commits))
}

/// `Config` when live records lie outside the slots that the node is told to serve.
fn refuse_outside(g: &Arc<Generation>, commits: Commits, was: &SlotSet, now: &SlotSet) -> Result<()> {
    let view = View::new(Arc::clone(g), commits.highest.max(g.safe_point()))?;
    let mut found = None;
    view.scan(&ScanRange::slots(SlotSet::all().minus(now)), &mut |record| {
        found = Some(record.slot);
        Ok(ControlFlow::Break(()))
    })?;
    found.map_or(Ok(()), |slot| {
        Err(Error::config(format!(
            "the store holds records of slot {slot}, but the configuration gives this node the slots {now}: \
             set them back to {was}, or restore a backup into the new ones"
        )))
    })
}

/// Whether `generation` holds no live record.
fn is_empty(generation: &Arc<Generation>, commits: Commits) -> Result<bool> {
    let view = View::new(Arc::clone(generation), commits.highest.max(generation.safe_point()))?;
    let mut empty = true;
    view.scan(&ScanRange::slots(SlotSet::all()), &mut |_| {
        empty = false;
        Ok(ControlFlow::Break(()))
    })?;
    Ok(empty)
}

fn new_incarnation() -> Incarnation {
    Incarnation::from_u128(rand::random())
}

fn ownership(slots: &SlotSet) -> Ownership {
    Ownership { role: "primary".into(), slots: slots.clone(), moving: SlotSet::EMPTY, config_epoch: 0 }
}

fn position(incarnation: Incarnation, offset: u64) -> Position {
    Position { history: incarnation.to_string(), offset }
}

impl Engine for Embedded {
    fn describe(&self) -> Result<Description> {
        let state = self.shared.gate.lock();
        let (generation, commits) = (Arc::clone(&state.generation), state.commits);
        let restoring = matches!(state.mode, Mode::Restoring(_));
        drop(state);
        let collected = generation.collected();
        Ok(Description {
            engine: NAME.into(),
            engine_version: env!("CARGO_PKG_VERSION").into(),
            incarnation: generation.incarnation,
            state: if restoring { "restoring" } else { "available" }.into(),
            position: position(generation.incarnation, commits.position),
            ownership: ownership(&generation.slots),
            clock_millis: self.shared.hlc.wall_millis(),
            // Old versions count until they are collected.
            records: commits.records.saturating_sub(collected.records),
            bytes: commits.bytes.saturating_sub(collected.bytes),
            changes_since: true,
            data_address: String::new(),
            ledger_number: 0,
            ledger_hash: Default::default(),
        })
    }

    fn hold(&self, job: JobId, budget: Duration) -> Result<Held> {
        cut::hold(&self.shared.gate, &self.shared.hlc, job, budget)
    }

    fn seal(&self, job: JobId, at: Timestamp) -> Result<Sealed> {
        cut::seal(&self.shared.gate, &self.shared.hlc, job, at)
    }

    fn release(&self, job: JobId) -> Result<(Ownership, Duration)> {
        cut::release(&self.shared.gate, job)
    }

    fn pin(&self, name: &str, at: Timestamp, lease: Duration) -> Result<()> {
        let generation = self.shared.gate.settle(&self.shared.hlc, at)?;
        generation.pin(name, at, lease, self.shared.hlc.wall_millis())
    }

    fn unpin(&self, name: &str) -> Result<()> {
        self.generation()?.unpin(name)
    }

    fn pins(&self) -> Result<Vec<(String, Timestamp)>> {
        Ok(self.generation()?.pins(self.shared.hlc.wall_millis()))
    }

    fn log(&self) -> Option<&dyn LogSource> {
        Some(self)
    }

    fn restoring(&self) -> Result<Option<JobId>> {
        Ok(match self.shared.gate.lock().mode {
            Mode::Restoring(job) => Some(job),
            _ => None,
        })
    }

    fn snapshot(&self, at: Timestamp) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(self.view(Some(at))?))
    }

    fn restore(&self, job: JobId, slots: SlotSet, in_place: bool) -> Result<Box<dyn Loader>> {
        restore::begin(&self.shared, job, slots, in_place)
    }
}

impl KvStore for Embedded {
    fn commit(&self, writes: Vec<Write>, after: Timestamp) -> oneshot::Receiver<Result<Timestamp>> {
        let (reply, answer) = oneshot::channel();
        let checked = self
            .writable()
            .and_then(|generation| kv::check_batch(&writes, &generation.slots).map(|bytes| (generation, bytes)));
        match checked {
            Ok((generation, bytes)) => {
                self.shared.gate.enqueue(&generation, Pending { writes, after, bytes, reply });
            }
            Err(e) => {
                let _ = reply.send(Err(e));
            }
        }
        answer
    }

    fn get(&self, key: &[u8], at: Option<Timestamp>) -> Result<Option<Versioned>> {
        let view = self.view(at)?;
        let _ = kv::check_slot(key, &view.generation.slots)?;
        view.get(key)
    }

    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        at: Option<Timestamp>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<ScanPage> {
        self.view(at)?.page(prefix, from, limit, max_bytes)
    }
}
