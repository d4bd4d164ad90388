//! Values of entries that are too long for memory: they lie in a file, and the entries name their places.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tidemark_proto::stored::log::{EntryKind, LogEntry};
use tidemark_proto::{Error, ErrorKind, Result, Timestamp, error::ResultExt};

/// Bytes by which an entry names a long value.
const PLACE_LEN: usize = 16;
/// Bytes that are written at once.
const STRIP: usize = 64 << 10;

/// The entry of a record whose value is `len` bytes at `at` of a file: what [`super::Overlay::long`] reads. In memory and temporary
/// files only.
pub(crate) fn long_entry(entry: &LogEntry<'_>, (at, len): (u64, u64), out: &mut Vec<u8>) {
    let mut place = [0; PLACE_LEN];
    place[..8].copy_from_slice(&at.to_le_bytes());
    place[8..].copy_from_slice(&len.to_le_bytes());
    let put = entry.put.map(|(meta, _)| (meta, &place[..]));
    LogEntry { put, kind: EntryKind::CommandPart, ..*entry }.encode(out);
}

/// The place that such an entry names.
pub(super) fn named(entry: &LogEntry<'_>) -> Option<(u64, u64)> {
    let (_, place) = entry.put.filter(|_| entry.kind == EntryKind::CommandPart)?;
    let place = <[u8; PLACE_LEN]>::try_from(place).ok()?;
    let number = |b: &[u8]| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    Some((number(&place[..8]), number(&place[8..])))
}

/// Puts values together that come in pieces.
#[derive(Debug, Default)]
pub(super) struct LongPieces {
    file: Option<Arc<File>>,
    end: u64,
    open: Option<Open>,
}

/// A value of which more comes.
#[derive(Debug, PartialEq, Eq)]
struct Open {
    slot: u16,
    key: Vec<u8>,
    at: Timestamp,
    start: u64,
}

impl LongPieces {
    /// Whether an entry is a piece.
    pub(super) fn takes(&self, entry: &LogEntry<'_>) -> bool {
        entry.kind == EntryKind::RecordPart || self.open.is_some()
    }

    /// Takes a piece; with the last one the bytes of the entry that names the value.
    pub(super) fn add(&mut self, entry: &LogEntry<'_>, dir: &Path) -> Result<Option<Vec<u8>>> {
        let failed = || (ErrorKind::Full, format!("a temporary file in {}", dir.display()));
        let (slot, at, start) = (entry.slot, entry.at, self.end);
        let open = self.open.get_or_insert_with(|| Open { slot, key: entry.key.to_vec(), at, start });
        let Some((_, piece)) = entry.put.filter(|_| (open.slot, &open.key[..], open.at) == (slot, entry.key, at))
        else {
            return Err(cut_short());
        };
        let file = match &self.file {
            Some(file) => file,
            None => {
                let made = tempfile::tempfile_in(dir).or_kind(failed().0, failed().1)?;
                self.file.insert(Arc::new(made))
            }
        };
        for strip in piece.chunks(STRIP) {
            file.write_all_at(strip, self.end).or_kind(failed().0, failed().1)?;
            self.end += strip.len() as u64;
        }
        if entry.kind == EntryKind::RecordPart {
            return Ok(None);
        }
        let (start, mut out) = (open.start, Vec::new());
        self.open = None;
        long_entry(entry, (start, self.end - start), &mut out);
        Ok(Some(out))
    }

    /// `Damaged` where more was to come.
    pub(super) fn check_whole(&self) -> Result<()> {
        if self.open.is_some() { Err(cut_short()) } else { Ok(()) }
    }

    /// The file, if there is any value in it.
    pub(super) fn file(&self) -> Option<Arc<File>> {
        self.file.clone()
    }
}

fn cut_short() -> Error {
    Error::damaged("the log: a value that comes in pieces ends before its last one")
}
