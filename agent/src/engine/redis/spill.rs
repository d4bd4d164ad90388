//! Sorting on disk: records come in any order, as an RDB stream gives them, and are visited by (slot, key).
//!
//! Records gather in an arena; a full one is sorted and written as a chunk by a thread of its own, so that the source is read on.
//! Visiting merges the chunks. Values over
//! [`MAX_IN_CHUNK`] bytes lie in a file of their own, so that an arena has a bound whatever the size of values. The files are
//! of this process alone and go with it; nothing of them is kept over a restart.
//!
//! A record: `slot (u16 BE) | kind (u8) | key length (u32 LE) | meta length (u32 LE) | value length (u64 LE) | key | value |
//! meta`. Kind 0: the value stands here; 1: its offset in the file of long values (u64 LE); 2: the key does not exist.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tidemark_proto::{Error, ErrorKind, Result};

/// Bytes of records that are sorted in memory at once; as many gather meanwhile.
pub const ARENA: usize = 32 << 20;
/// Longest value inside a chunk, in bytes.
pub const MAX_IN_CHUNK: usize = 1 << 20;
/// Longest key, in bytes, with what stands before it.
pub const MAX_KEY: usize = crate::engine::MAX_KEY;
/// At most one place in so many bytes of a chunk is remembered.
const INDEX_EVERY: u64 = 64 << 10;
/// Bytes of a record before its key.
pub(super) const HEAD: usize = 19;

/// The value stands in the record.
pub(super) const INLINE: u8 = 0;
/// The value stands in the file of long values.
pub(super) const LONG: u8 = 1;
/// There is no such key.
pub(super) const GONE: u8 = 2;

/// A chunk: sorted records in a file.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) file: File,
    pub(super) len: u64,
    /// Slots with the offset of their first record, ascending; not every slot is there.
    pub(super) index: Vec<(u16, u64)>,
}

/// Records on disk, whole and sorted: see [`super::merge`] for visiting them.
#[derive(Debug, Default)]
pub struct Sorted {
    pub(super) chunks: Vec<Chunk>,
    pub(super) long: Option<File>,
    /// Records.
    pub records: u64,
    /// Bytes of their keys, meta and values.
    pub bytes: u64,
}

/// Offset and length in the file of long values, of a value that is one.
type LongValue = Option<(u64, u64)>;

/// A chunk that was written, with its arena and list of records, empty.
type Written = (Chunk, Vec<u8>, Vec<u32>);

/// Takes records.
#[derive(Debug)]
pub struct Spill {
    dir: PathBuf,
    arena: Vec<u8>,
    /// Where records begin in the arena.
    starts: Vec<u32>,
    done: Sorted,
    long: Option<(BufWriter<File>, u64)>,
    /// The chunk that is being written.
    writing: Option<JoinHandle<Result<Written>>>,
    /// The record that is being written: where it begins, and its long value's place and length so far.
    open: Option<(usize, LongValue)>,
}

fn full(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let told = format!("writing {}", path.display());
    move |e| Error::new(ErrorKind::Full, told).with_source(e)
}

fn head_at(bytes: &[u8]) -> (u16, usize) {
    let len = u32::from_le_bytes([bytes[3], bytes[4], bytes[5], bytes[6]]);
    (u16::from_be_bytes([bytes[0], bytes[1]]), len as usize)
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
        if self.arena.len() >= ARENA {
            self.flush()?;
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
        let path = self.dir.join(format!("chunk-{}", self.done.chunks.len()));
        let work = move || write_chunk(&path, arena, starts);
        let thread = std::thread::Builder::new().name("redis-sort".into()).spawn(work);
        self.writing = Some(thread.map_err(full(&self.dir))?);
        Ok(())
    }

    /// Waits for the chunk that is being written; answers its arena and list, empty, for the next.
    fn wait(&mut self) -> Result<(Vec<u8>, Vec<u32>)> {
        let Some(thread) = self.writing.take() else { return Ok(Default::default()) };
        let written = thread.join().map_err(|_| Error::bug("sorting a chunk panicked"))?;
        let (chunk, arena, starts) = written?;
        self.done.chunks.push(chunk);
        Ok((arena, starts))
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
            self.done.long = Some(file.into_inner().map_err(|e| full(&path)(e.into_error()))?);
        }
        Ok(self.done)
    }
}

/// Sorts the records of an arena into a file; gives arena and list back, empty.
fn write_chunk(path: &Path, mut arena: Vec<u8>, mut starts: Vec<u32>) -> Result<Written> {
    let sort_key = |start: &u32| {
        let record = &arena[*start as usize..];
        let (slot, len) = head_at(record);
        (slot, &record[HEAD..HEAD + len])
    };
    starts.sort_unstable_by(|a, b| sort_key(a).cmp(&sort_key(b)));
    let file = File::options().read(true).write(true).create_new(true).open(path).map_err(full(path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let (mut index, mut len): (Vec<(u16, u64)>, u64) = (Vec::new(), 0);
    let mut last = None;
    for start in &starts {
        let record = &arena[*start as usize..][..record_len(&arena[*start as usize..])];
        let (slot, _) = head_at(record);
        if last != Some(slot) && index.last().is_none_or(|(_, at)| len - at >= INDEX_EVERY) {
            index.push((slot, len));
        }
        last = Some(slot);
        out.write_all(record).map_err(full(path))?;
        len += record.len() as u64;
    }
    let file = out.into_inner().map_err(|e| full(path)(e.into_error()))?;
    arena.clear();
    starts.clear();
    Ok((Chunk { file, len, index }, arena, starts))
}

/// Length of the record at the start of `bytes`, of which at least the head must be there.
pub(super) fn record_len(bytes: &[u8]) -> usize {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
    let value = match bytes[2] {
        INLINE => word(11),
        LONG => 8,
        _ => 0,
    };
    HEAD + word(3) + word(7) + value
}

/// Place of the value of the record at the start of `bytes`, which is whole: `Ok` with its range in the record, or `Err` with
/// offset and length in the file of long values.
pub(super) fn value_of(bytes: &[u8]) -> std::result::Result<std::ops::Range<usize>, (u64, u64)> {
    let (_, key) = head_at(bytes);
    let long = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let (from, len) = (HEAD + key, long(11));
    match bytes[2] {
        INLINE => Ok(from..from + len as usize),
        LONG => Err((long(from), len)),
        _ => Ok(from..from),
    }
}

/// Slot and key of the record at the start of `bytes`.
pub(super) fn sort_key(bytes: &[u8]) -> (u16, &[u8]) {
    let (slot, len) = head_at(bytes);
    (slot, &bytes[HEAD..HEAD + len])
}

/// Meta of the record, which is all of `bytes`.
pub(super) fn meta_of(bytes: &[u8]) -> &[u8] {
    let len = u32::from_le_bytes([bytes[7], bytes[8], bytes[9], bytes[10]]) as usize;
    &bytes[bytes.len() - len..]
}

/// Whether the record says that its key does not exist.
pub(super) fn is_gone(bytes: &[u8]) -> bool {
    bytes[2] == GONE
}
