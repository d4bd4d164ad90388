//! Making a base ready while nobody waits for it: from when it stands until its state at the cut is asked for.
//!
//! What is ready of the chunks is given back to the file system, so that the disk holds little more than before. So the order is:
//! records of a group of slots, all of them, into the file; only then their place in the chunks. Where it ends (nobody has
//! time any more, or the disk is full) all lower slots are ready and all others still lie in the chunks.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::fcntl::{FallocateFlags, fallocate};
use tidemark_proto::slot::{RegionMap, SLOT_COUNT};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::chunk::{Chunk, sort_key};
use super::heap::{Heap, read_step};
use super::jobs::free_space;
use super::ready::{Ready, ReadyWriter};
use super::spill::{Sorted, Sorting};

/// Slots whose records are made ready together, and in blocks of their own: the regions of most clusters, or whole parts of them.
const GROUP: u16 = RegionMap::DEFAULT_SLOTS_PER_REGION;
/// How far the thread stands back behind all others: what the server and its child need comes first.
const NICE: i32 = 19;
/// The file system gives back whole pages.
const PAGE: u64 = 4096;
/// Records between two looks whether to end.
const LOOK_EVERY: u32 = 256;

/// A base that is being made ready. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Settling {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Ready>>>,
}

impl Settling {
    /// Begins with the records of `sorting`; the file goes to `path`.
    pub(super) fn start(sorting: Arc<Sorting>, path: PathBuf) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, span) = (stop.clone(), tracing::Span::current());
        let run = move || {
            let _in = span.enter();
            settle(&sorting, &path, &|| stopped.load(Ordering::Relaxed))
        };
        let thread = std::thread::Builder::new().name("redis-settle".into()).spawn(run);
        Ok(Self { stop, thread: Some(thread.or_kind(ErrorKind::Full, "starting a thread")?) })
    }

    /// Ends the work, wherever it is; answers what is ready.
    pub(super) fn end(mut self) -> Result<Ready> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| Error::bug("nobody makes the base ready"))?;
        thread.join().map_err(|_| Error::bug("making a base ready panicked"))?
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

fn settle(sorting: &Sorting, path: &Path, stop: &dyn Fn() -> bool) -> Result<Ready> {
    let sorted = sorting.sorted()?;
    // Where this is not allowed, the thread takes its turn as others do.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
    let mut writer = ReadyWriter::create(path)?;
    let free = free_space(path)?;
    if free <= sorted.bytes {
        tracing::info!(free, "no room to make the base ready before the cut");
        return Ok(writer.finish());
    }
    // What is whole counts, however this ends.
    match fill(&sorted, &mut writer, stop) {
        Ok(()) => {}
        Err(e) => tracing::warn!(error = %e.report(), "the base is made ready in part only"),
    }
    let ready = writer.finish();
    tracing::debug!(below = ready.below(), "base made ready");
    Ok(ready)
}

fn fill(sorted: &Sorted, writer: &mut ReadyWriter, stop: &dyn Fn() -> bool) -> Result<()> {
    let mut heap = Heap::new(sorted, 0, read_step(sorted.chunks.len()))?;
    let (mut group, mut seen) = (0, 0u32);
    while let Some(record) = heap.peek() {
        let (slot, _) = sort_key(record);
        if slot / GROUP != group {
            group = slot / GROUP;
            writer.whole(group * GROUP)?;
            give_back(sorted, group * GROUP);
        }
        seen = seen.wrapping_add(1);
        if seen.is_multiple_of(LOOK_EVERY) && stop() {
            return Ok(());
        }
        writer.put(record)?;
        heap.advance()?;
    }
    writer.whole(SLOT_COUNT)?;
    give_back(sorted, SLOT_COUNT);
    Ok(())
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
