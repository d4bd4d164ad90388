//! Making a base ready while nobody waits for it: from when it stands until its state at the cut is asked for.
//!
//! What is ready of the chunks is given back to the file system, so that the disk holds little more than before. So the order is:
//! records of a group of slots, all of them, into the file; only then their place in the chunks. Where it ends (nobody has
//! time any more, or the disk is full) all lower slots are ready and all others still lie in the chunks. Who ends it does not wait
//! for the thread, which stands back behind all others and would be long in coming: what is whole by then counts.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::fcntl::{FallocateFlags, fallocate};
use tidemark_proto::slot::{RegionMap, SLOT_COUNT};
use tidemark_proto::{ErrorKind, Result, error::ResultExt};

use super::chunk::{Chunk, sort_key};
use super::heap::{Heap, read_step};
use super::jobs::free_space;
use super::ready::{Ready, ReadyWriter, Whole};
use super::spill::{Sorted, Sorting};

/// Slots whose records are made ready together, and in blocks of their own: the regions of most clusters, or whole parts of them.
const GROUP: u16 = RegionMap::DEFAULT_SLOTS_PER_REGION;
/// How far the thread stands back behind all others: what the server and its child need comes first.
const NICE: i32 = 19;
/// The file system gives back whole pages.
const PAGE: u64 = 4096;
/// Records between two looks whether to end.
const LOOK_EVERY: u32 = 256;

/// A base that is being made ready. Dropping it ends that, and waits for it.
#[derive(Debug)]
pub(super) struct Settling {
    stop: Arc<AtomicBool>,
    made: Arc<Mutex<Made>>,
    thread: Option<JoinHandle<()>>,
}

/// What was made ready so far.
#[derive(Debug, Default)]
struct Made {
    ready: Option<Ready>,
    /// Nothing is added any more.
    closed: bool,
}

fn locked(made: &Mutex<Made>) -> MutexGuard<'_, Made> {
    made.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Begins with the records of `sorting`; the file goes to `path`.
    pub(super) fn start(sorting: Arc<Sorting>, path: PathBuf) -> Result<Self> {
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Made>>::default());
        let (stopped, span, here) = (stop.clone(), tracing::Span::current(), made.clone());
        let run = move || {
            let _in = span.enter();
            // What is whole counts, however this ends.
            if let Err(e) = settle(&sorting, &path, &here, &|| stopped.load(Ordering::Relaxed)) {
                tracing::warn!(error = %e.report(), "the base is made ready in part only");
            }
        };
        let thread = std::thread::Builder::new().name("redis-settle".into()).spawn(run);
        Ok(Self { stop, made, thread: Some(thread.or_kind(ErrorKind::Full, "starting a thread")?) })
    }

    /// Ends the work, wherever it is; answers what is ready, once.
    pub(super) fn end(&mut self) -> Option<Ready> {
        self.stop.store(true, Ordering::Relaxed);
        let mut made = locked(&self.made);
        made.closed = true;
        let ready = made.ready.take();
        tracing::debug!(below = ready.as_ref().map_or(0, Ready::below), "base made ready");
        ready
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Nobody needs what it made.
            let _ = thread.join();
        }
    }
}

fn settle(sorting: &Sorting, path: &Path, made: &Mutex<Made>, stop: &dyn Fn() -> bool) -> Result<()> {
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

fn fill(sorted: &Sorted, writer: &mut ReadyWriter, made: &Mutex<Made>, stop: &dyn Fn() -> bool) -> Result<()> {
    if !locked(made).begin(writer) {
        return Ok(());
    }
    let mut heap = Heap::new(sorted, 0, read_step(sorted.chunks.len()))?;
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
fn whole(sorted: &Sorted, writer: &mut ReadyWriter, made: &Mutex<Made>, below: u16) -> Result<bool> {
    let whole = writer.whole(below)?;
    let counts = locked(made).grow(whole);
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
