//! Sorting on disk: records come in any order, as an RDB stream gives them, and are visited by (slot, key).
//!
//! Records gather in an arena; a full one is sorted and written as a chunk by a thread of its own, so that the source is read on.
//! Arenas grow with what has come, so that little data takes little memory and much data does not become many chunks. Visiting
//! merges the chunks, which lie in one file behind each other. Values over [`MAX_IN_CHUNK`] bytes lie in a file of their own, so
//! that an arena has a bound whatever the size of values. The files are of this process alone and go with it; nothing of them is
//! kept over a restart.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tidemark_proto::{Error, ErrorKind, Result};

use super::chunk::{Chunk, GONE, HEAD, INLINE, LONG, Written, full, head_at, write_chunk};

/// Least and most bytes of records that are sorted in memory at once; as many gather meanwhile.
pub const ARENA: (usize, usize) = (8 << 20, 32 << 20);
/// Between them: what has come so far, divided by this. Chunks of up to 2 GiB of data are few, and later ones as large as may be.
const ARENA_SHARE: u64 = 8;
/// Longest value inside a chunk, in bytes.
pub const MAX_IN_CHUNK: usize = 1 << 20;
/// Longest key, in bytes, with what stands before it.
pub const MAX_KEY: usize = crate::engine::MAX_KEY;
/// Records on disk, whole and sorted: see [`super::merge`] for visiting them.
#[derive(Debug, Default)]
pub struct Sorted {
    pub(super) chunks: Vec<Chunk>,
    pub(super) long: Option<Arc<File>>,
    /// Records.
    pub records: u64,
    /// Bytes of their keys, meta and values.
    pub bytes: u64,
}

/// Offset and length in the file of long values, of a value that is one.
type LongValue = Option<(u64, u64)>;

/// Takes records.
#[derive(Debug)]
pub struct Spill {
    dir: PathBuf,
    arena: Vec<u8>,
    /// Where records begin in the arena.
    starts: Vec<u32>,
    done: Sorted,
    /// The file of chunks, and where the next one begins.
    file: Option<(Arc<File>, u64)>,
    long: Option<(BufWriter<File>, u64)>,
    /// The chunk that is being written.
    writing: Option<JoinHandle<Result<Written>>>,
    /// The record that is being written: where it begins, and its long value's place and length so far.
    open: Option<(usize, LongValue)>,
}

impl Spill {
    /// Sorts in `dir`, which is made.
    pub fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(full(dir))?;
        Ok(Self {
            dir: dir.to_owned(),
            arena: Vec::new(),
            starts: Vec::new(),
            done: Sorted::default(),
            file: None,
            long: None,
            writing: None,
            open: None,
        })
    }

    /// Begins a record; pieces of its value follow, then [`Self::end`].
    pub fn begin(&mut self, slot: u16, key: &[u8]) -> Result<()> {
        if key.len() > MAX_KEY {
            return Err(Error::unsupported(format!(
                "a key of {} bytes cannot be backed up: the longest has {MAX_KEY}",
                key.len()
            )));
        }
        if self.arena.len() >= ARENA.0 {
            let share = (self.done.bytes / ARENA_SHARE) as usize;
            if self.arena.len() >= share.clamp(ARENA.0, ARENA.1) {
                self.flush()?;
            }
        }
        let start = self.arena.len();
        self.arena.extend_from_slice(&slot.to_be_bytes());
        self.arena.push(INLINE);
        self.arena.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.arena.extend_from_slice(&[0; HEAD - 7]);
        self.arena.extend_from_slice(key);
        self.open = Some((start, None));
        Ok(())
    }

    /// Where the record that is being written begins, where its value does, and place and length of a long one.
    fn opened(&self) -> Result<(usize, usize, LongValue)> {
        let (start, long) = self.open.ok_or_else(|| Error::bug("a value without a record"))?;
        let (_, key) = head_at(&self.arena[start..]);
        Ok((start, start + HEAD + key, long))
    }

    /// The next bytes of the value.
    pub fn value(&mut self, piece: &[u8]) -> Result<()> {
        let (start, value, long) = self.opened()?;
        if let Some((at, len)) = long {
            self.put_long(piece)?;
            self.open = Some((start, Some((at, len + piece.len() as u64))));
            return Ok(());
        }
        self.arena.extend_from_slice(piece);
        if self.arena.len() - value > MAX_IN_CHUNK {
            let begun = self.arena.split_off(value);
            let at = self.long.as_ref().map_or(0, |(_, end)| *end);
            self.put_long(&begun)?;
            self.open = Some((start, Some((at, begun.len() as u64))));
        }
        Ok(())
    }

    fn put_long(&mut self, piece: &[u8]) -> Result<()> {
        let path = self.dir.join("long");
        if self.long.is_none() {
            let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(full(&path))?;
            self.long = Some((BufWriter::new(file), 0));
        }
        let (file, end) = self.long.as_mut().ok_or_else(|| Error::bug("just made"))?;
        file.write_all(piece).map_err(full(&path))?;
        *end += piece.len() as u64;
        Ok(())
    }

    /// Ends the record with its meta.
    pub fn end(&mut self, meta: &[u8]) -> Result<()> {
        let (start, value, long) = self.opened()?;
        let len = match long {
            Some((at, len)) => {
                self.arena[start + 2] = LONG;
                self.arena.extend_from_slice(&at.to_le_bytes());
                len
            }
            None => (self.arena.len() - value) as u64,
        };
        self.arena[start + 7..start + 11].copy_from_slice(&(meta.len() as u32).to_le_bytes());
        self.arena[start + 11..start + 19].copy_from_slice(&len.to_le_bytes());
        self.arena.extend_from_slice(meta);
        self.done.bytes += (value - start - HEAD + meta.len()) as u64 + len;
        self.close(start);
        Ok(())
    }

    /// A whole record that says: there is no such key.
    pub fn gone(&mut self, slot: u16, key: &[u8]) -> Result<()> {
        self.begin(slot, key)?;
        let (start, ..) = self.opened()?;
        self.arena[start + 2] = GONE;
        self.close(start);
        Ok(())
    }

    fn close(&mut self, start: usize) {
        self.open = None;
        self.starts.push(start as u32);
        self.done.records += 1;
    }

    /// Hands the arena to a thread that sorts and writes it; records go on into another one meanwhile.
    fn flush(&mut self) -> Result<()> {
        let (spare, starts) = self.wait()?;
        let arena = std::mem::replace(&mut self.arena, spare);
        let starts = std::mem::replace(&mut self.starts, starts);
        let path = self.dir.join("chunks");
        if self.file.is_none() {
            let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(full(&path))?;
            self.file = Some((Arc::new(file), 0));
        }
        let (file, begin) = self.file.clone().ok_or_else(|| Error::bug("just made"))?;
        let work = move || write_chunk(&path, &file, begin, arena, starts);
        let thread = std::thread::Builder::new().name("redis-sort".into()).spawn(work);
        self.writing = Some(thread.map_err(full(&self.dir))?);
        Ok(())
    }

    /// Waits for the chunk that is being written; answers its arena and list, empty, for the next.
    fn wait(&mut self) -> Result<(Vec<u8>, Vec<u32>)> {
        let Some(thread) = self.writing.take() else { return Ok(Default::default()) };
        let written = thread.join().map_err(|_| Error::bug("sorting a chunk panicked"))?;
        let (chunk, arena, starts) = written?;
        if let Some((_, next)) = &mut self.file {
            *next = chunk.start + chunk.len;
        }
        self.done.chunks.push(chunk);
        Ok((arena, starts))
    }

    /// As [`Self::finish`], but a thread of its own sorts the rest, and nobody waits for it yet.
    pub fn finish_behind(self) -> Result<Sorting> {
        let dir = self.dir.clone();
        let thread = std::thread::Builder::new().name("redis-sort".into()).spawn(move || self.finish());
        let stage = Mutex::new(Stage::Running(Some(thread.map_err(full(&dir))?)));
        Ok(Sorting { stage, id: NEXT_ID.fetch_add(1, Ordering::Relaxed) })
    }

    /// Records that were taken so far, and their bytes.
    pub fn taken(&self) -> (u64, u64) {
        (self.done.records, self.done.bytes)
    }

    /// Sorts the rest. A record that was begun and not ended is an error of the caller.
    pub fn finish(mut self) -> Result<Sorted> {
        if self.open.is_some() {
            return Err(Error::bug("the last record was not ended"));
        }
        if !self.starts.is_empty() {
            self.flush()?;
        }
        let _ = self.wait()?;
        let path = self.dir.join("long");
        if let Some((file, _)) = self.long.take() {
            let file = file.into_inner().map_err(|e| full(&path)(e.into_error()))?;
            self.done.long = Some(Arc::new(file));
        }
        Ok(self.done)
    }
}

/// Records that have all come, whose last chunk may still be on its way to the disk.
#[derive(Debug)]
pub struct Sorting {
    stage: Mutex<Stage>,
    id: u64,
}

/// Number of the next [`Sorting`].
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

#[derive(Debug)]
enum Stage {
    Running(Option<JoinHandle<Result<Sorted>>>),
    Done(Arc<Sorted>),
    Failed(ErrorKind, String),
}

impl Sorting {
    /// Tells these records from all others that this process sorts so; never 0.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits for the last chunk. An error is told to everybody who asks.
    pub fn sorted(&self) -> Result<Arc<Sorted>> {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Stage::Running(thread) = &mut *stage {
            let done = thread.take().map_or_else(
                || Err(Error::bug("nobody sorts")),
                |t| t.join().unwrap_or_else(|_| Err(Error::bug("sorting a chunk panicked"))),
            );
            *stage = match done {
                Ok(sorted) => Stage::Done(Arc::new(sorted)),
                Err(e) => Stage::Failed(e.kind(), e.report()),
            };
        }
        match &*stage {
            Stage::Done(sorted) => Ok(sorted.clone()),
            Stage::Failed(kind, why) => Err(Error::new(*kind, why.clone())),
            Stage::Running(_) => Err(Error::bug("nobody sorts")),
        }
    }
}
