//! Making a base ready while nobody waits for it: from when it stands until its state at the cut is asked for.
//!
//! What is ready of the chunks is given back to the file system, so that the disk holds little more than before. So the order is:
//! records of a group of slots, all of them, into the file; only then their place in the chunks. Where it ends (nobody has
//! time any more, or the disk is full) all lower slots are ready and all others still lie in the chunks. Who ends it does not wait
//! for the thread, which stands back behind all others and would be long in coming: what is whole by then counts.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use tidemark_proto::slot::{RegionMap, SLOT_COUNT};
use tidemark_proto::{ErrorKind, Result, Timestamp, error::ResultExt};

use super::chunk::{Chunk, sort_key};
use super::heap::{Heap, read_step};
use super::jobs::free_space;
use super::merge::State;
use super::ready::{Ready, ReadyWriter, Whole};
use super::spill::{Sorted, Sorting};
use crate::engine::{EarlyBase, Snapshot};

/// Slots whose records are made ready together, and in blocks of their own: the regions of most clusters, or whole parts of them.
const GROUP: u16 = RegionMap::DEFAULT_SLOTS_PER_REGION;
/// How far the thread stands back behind all others: what the server and its child need comes first.
const NICE: i32 = 19;
/// The file system gives back whole pages.
const PAGE: u64 = 4096;
/// Records between two looks whether to end.
const LOOK_EVERY: u32 = 256;
/// Those who wait for more look so often whether they are still to.
const WAIT_LOOK: Duration = Duration::from_millis(200);

/// A base that is being made ready. Dropping it ends that, and waits for it.
#[derive(Debug)]
pub(super) struct Settling {
    stop: Arc<AtomicBool>,
    records: Arc<Sorting>,
    making: Arc<Making>,
    thread: Option<JoinHandle<()>>,
}

/// What was made ready so far.
#[derive(Debug, Default)]
struct Made {
    ready: Option<Ready>,
    /// Nothing is added any more.
    closed: bool,
    /// The thread has ended.
    ended: bool,
}

/// What is being made ready, and who waits for it.
#[derive(Debug, Default)]
struct Making {
    made: Mutex<Made>,
    changed: Condvar,
}

impl Making {
    fn lock(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update<T>(&self, change: impl FnOnce(&mut Made) -> T) -> T {
        let done = change(&mut self.lock());
        self.changed.notify_all();
        done
    }

    /// What is ready, once the slots up to `last` are; `None` when they will not be, or `cancel` says so.
    fn up_to(&self, last: u16, cancel: &dyn Fn() -> bool) -> Option<Ready> {
        let mut made = self.lock();
        loop {
            if let Some(ready) = made.ready.as_ref().filter(|ready| ready.below() > last) {
                return Some(ready.clone());
            }
            if made.closed || made.ended || cancel() {
                return None;
            }
            made = self.changed.wait_timeout(made, WAIT_LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A base as it becomes ready.
#[derive(Debug)]
struct Settled {
    records: Arc<Sorting>,
    making: Arc<Making>,
}

impl EarlyBase for Settled {
    fn id(&self) -> u64 {
        self.records.id()
    }

    fn ready(&self, last: u16, cancel: &(dyn Fn() -> bool + Sync)) -> Result<Option<Arc<dyn Snapshot>>> {
        let Some(ready) = self.making.up_to(last, &|| cancel()) else { return Ok(None) };
        let mut state = State::of(Timestamp::ZERO, self.records.sorted()?);
        (state.ready, state.base_id) = (Some(Arc::new(ready)), self.id());
        Ok(Some(Arc::new(Arc::new(state))))
    }
}

impl Made {
    /// Nothing is ready yet; `false` when it need not be.
    fn begin(&mut self, writer: &ReadyWriter) -> bool {
        self.ready = (!self.closed).then(|| writer.ready());
        !self.closed
    }

    /// Adds what is whole now; `false` when it came too late.
    fn grow(&mut self, whole: Whole) -> bool {
        let ready = self.ready.as_mut().filter(|_| !self.closed);
        ready.map(|ready| ready.grow(whole)).is_some()
    }
}

impl Settling {
    /// Begins with the records of `records`; the file goes to `path`.
    pub(super) fn start(records: Arc<Sorting>, path: PathBuf) -> Result<Self> {
        let (stop, making) = (Arc::<AtomicBool>::default(), Arc::<Making>::default());
        let (stopped, span, here) = (stop.clone(), tracing::Span::current(), making.clone());
        let sorting = records.clone();
        let run = move || {
            let _in = span.enter();
            // What is whole counts, however this ends.
            if let Err(e) = settle(&sorting, &path, &here, &|| stopped.load(Ordering::Relaxed)) {
                tracing::warn!(error = %e.report(), "the base is made ready in part only");
            }
            here.update(|made| made.ended = true);
        };
        let thread = std::thread::Builder::new().name("redis-settle".into()).spawn(run);
        let thread = Some(thread.or_kind(ErrorKind::Full, "starting a thread")?);
        Ok(Self { stop, records, making, thread })
    }

    /// The base as it becomes ready, for those who send it before the cut.
    pub(super) fn early(&self) -> Arc<dyn EarlyBase> {
        Arc::new(Settled { records: self.records.clone(), making: self.making.clone() })
    }

    /// Ends the work, wherever it is; answers what is ready, once.
    pub(super) fn end(&mut self) -> Option<Ready> {
        self.stop.store(true, Ordering::Relaxed);
        let ready = self.making.update(|made| {
            made.closed = true;
            made.ready.take()
        });
        tracing::debug!(below = ready.as_ref().map_or(0, Ready::below), "base made ready");
        ready
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        let _ = self.end();
        if let Some(thread) = self.thread.take() {
            // Nobody needs what it made.
            let _ = thread.join();
        }
    }
}

fn settle(sorting: &Sorting, path: &Path, made: &Making, stop: &dyn Fn() -> bool) -> Result<()> {
    let sorted = sorting.sorted()?;
    // Where this is not allowed, the thread takes its turn as others do.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
    let free = free_space(path)?;
    if free <= sorted.bytes {
        tracing::info!(free, "no room to make the base ready before the cut");
        return Ok(());
    }
    fill(&sorted, &mut ReadyWriter::create(path)?, made, stop)
}

fn fill(sorted: &Sorted, writer: &mut ReadyWriter, made: &Making, stop: &dyn Fn() -> bool) -> Result<()> {
    if !made.lock().begin(writer) {
        return Ok(());
    }
    let mut heap = Heap::new(sorted, (0, SLOT_COUNT - 1), read_step(sorted.chunks.len()))?;
    let (mut group, mut seen) = (0, 0u32);
    while let Some(record) = heap.peek() {
        let (slot, _) = sort_key(record);
        if slot / GROUP != group {
            group = slot / GROUP;
            if !whole(sorted, writer, made, group * GROUP)? {
                return Ok(());
            }
        }
        seen = seen.wrapping_add(1);
        if seen.is_multiple_of(LOOK_EVERY) && stop() {
            return Ok(());
        }
        writer.put(record)?;
        heap.advance()?;
    }
    let _ = whole(sorted, writer, made, SLOT_COUNT)?;
    Ok(())
}

/// All slots below `below` are ready: first everybody knows, then their place is given back. `false` when nobody asks any more.
fn whole(sorted: &Sorted, writer: &mut ReadyWriter, made: &Making, below: u16) -> Result<bool> {
    let whole = writer.whole(below)?;
    let counts = made.update(|made| made.grow(whole));
    if counts {
        give_back(sorted, below);
    }
    Ok(counts)
}

/// Gives back what no reader of slots from `below` on will ask for. Where the file system cannot, it stays until the end.
fn give_back(sorted: &Sorted, below: u16) {
    for chunk in &sorted.chunks {
        let until = if below == SLOT_COUNT { chunk.len } else { chunk.offset_of(below) };
        let (from, until) = (chunk.start.next_multiple_of(PAGE), (chunk.start + until) / PAGE * PAGE);
        let fresh = chunk.given_back.swap(until, Ordering::Relaxed).max(from);
        if until > fresh {
            punch(chunk, fresh, until);
        }
    }
}

fn punch(chunk: &Chunk, from: u64, until: u64) {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let _ = fallocate(chunk.file.as_fd(), flags, from as i64, (until - from) as i64);
}

#[cfg(test)]
mod tests;
