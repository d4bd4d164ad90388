//! The embedded engine: a multi-version key-value store on the LSM library fjall.
//!
//! What holds, and where: encoding and order of keys in [`key`]; files and what a crash leaves in [`layout`]; an
//! incarnation's keyspaces and durable numbers in [`generation`]; commits and cuts in [`commit`]; reads in [`read`];
//! changes in [`changes`]; the log in [`log`] and [`trail`]; collection in [`collect`]; restores in [`load`] and [`restore`];
//! clones in [`clones`], what is written in them in [`overlay`].

mod changes;
mod clones;
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
mod open;
mod overlay;
mod read;
mod restore;
mod trail;
mod value;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidemark_common::clock::Hlc;
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{CloneInfo, Description, Held, Ownership, Position, Sealed};
use tidemark_proto::{CloneName, Error, Incarnation, Result, SlotSet, Timestamp};
use tokio::sync::oneshot;

pub use collect::CollectReport;
pub use overlay::MAX_CLONES;
pub use read::MAX_SCAN_LIMIT;

use crate::engine::{Engine, Loader, LogSource, Snapshot};
use crate::kv::{self, KvStore, OpenedClone, ScanPage, Versioned, Write};
use collect::{Collector, Stop};
use commit::{Gate, Mode, Pending};
use generation::Generation;
use layout::Layout;
use load::Staging;
use open::open_current;
use overlay::Overlay;
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
}

impl Shared {
    /// The live incarnation, if clients may write.
    fn writable(&self) -> Result<Arc<Generation>> {
        let state = self.gate.lock();
        state.check_open()?;
        Ok(Arc::clone(&state.generation))
    }

    /// The live incarnation, if clients may read.
    fn readable(&self) -> Result<Arc<Generation>> {
        let state = self.gate.lock();
        state.check_readable()?;
        Ok(Arc::clone(&state.generation))
    }

    /// See `KvStore::commit`; into a clone where one is given.
    fn commit(
        &self,
        overlay: Option<&Arc<Overlay>>,
        writes: Vec<Write>,
        after: Timestamp,
    ) -> oneshot::Receiver<Result<Timestamp>> {
        let (reply, answer) = oneshot::channel();
        let checked = self
            .writable()
            .and_then(|generation| kv::check_batch(&writes, &generation.slots).map(|bytes| (generation, bytes)));
        match checked {
            Ok((generation, bytes)) => {
                let overlay = overlay.cloned();
                self.gate.enqueue(&generation, Pending { overlay, writes, after, bytes, reply });
            }
            Err(e) => {
                let _ = reply.send(Err(e));
            }
        }
        answer
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
        self.shared.readable()?.unpin(name)
    }

    fn pins(&self) -> Result<Vec<(String, Timestamp)>> {
        Ok(self.shared.readable()?.pins(self.shared.hlc.wall_millis()))
    }

    fn create_clone(&self, name: &CloneName, at: Timestamp) -> Result<(CloneInfo, bool)> {
        clones::create(&self.shared, name, at)
    }

    fn clones(&self) -> Result<(Vec<CloneInfo>, Timestamp)> {
        let highest = self.shared.hlc.last().max(self.shared.gate.lock().commits.highest);
        Ok((clones::list(&self.shared)?, highest))
    }

    fn drop_clone(&self, name: &CloneName, at: Option<Timestamp>) -> Result<bool> {
        clones::drop_clone(&self.shared, name, at)
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
        self.shared.commit(None, writes, after)
    }

    fn open_clone(&self, name: &CloneName) -> Result<OpenedClone> {
        clones::open(&self.shared, name)
    }

    fn get(&self, key: &[u8], at: Option<Timestamp>) -> Result<Option<Versioned>> {
        self.view(at)?.get_own(key)
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
