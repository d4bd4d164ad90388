//! The files of a spool: where in them reads begin, and those that nobody needs any more, which are written over.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::super::frames::FILE_HEAD;

/// Bytes of the stream between two borders at which a read may begin.
pub(super) const BORDER_EVERY: u64 = 128 << 10;
/// Most files that are kept to be written over.
const SPARES: usize = 4;
/// Names of such files begin so.
const SPARE: &str = "spare-";

/// One file.
#[derive(Debug, Clone)]
pub(in super::super) struct SpoolFile {
    pub(in super::super) path: PathBuf,
    /// Offset of its first byte of the stream.
    pub(in super::super) start: u64,
    /// Offset behind its last byte.
    pub(in super::super) end: u64,
    /// Borders of commands in it, where reads begin.
    borders: Vec<Border>,
}

/// The border of two commands.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Border {
    /// Its offset.
    pub(in super::super) offset: u64,
    /// Database behind it.
    pub(in super::super) db: u64,
    /// Where in the file the frame begins in which it lies.
    pub(in super::super) at: u64,
}

impl SpoolFile {
    pub(super) fn new(path: PathBuf, start: u64, db: u64) -> Self {
        let first = Border { offset: start, db, at: FILE_HEAD as u64 };
        Self { path, start, end: start, borders: vec![first] }
    }

    /// Remembers a border now and then.
    pub(super) fn note(&mut self, border: Border) {
        if self.borders.last().is_none_or(|last| border.offset >= last.offset + BORDER_EVERY) {
            self.borders.push(border);
        }
    }

    /// The last border at or before `from` that is remembered.
    pub(in super::super) fn border_before(&self, from: u64) -> Border {
        self.borders[self.borders.partition_point(|b| b.offset <= from).max(1) - 1]
    }
}

/// Files that nobody needs any more. To write over what the system has at hand costs a fraction of what a new file does. What is
/// behind the new frames is of a former use then: no offset there is at or behind the file's first.
#[derive(Debug, Default)]
pub(super) struct Spares {
    paths: Vec<PathBuf>,
    /// Names are never used twice.
    names: u64,
}

impl Spares {
    /// Whether a path is that of one.
    pub(super) fn is(path: &Path) -> bool {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(SPARE))
    }

    /// Keeps a file to be written over, or removes it.
    pub(super) fn keep(&mut self, path: &Path) {
        self.names += 1;
        let spare = path.with_file_name(format!("{SPARE}{}", self.names));
        if self.paths.len() < SPARES && std::fs::rename(path, &spare).is_ok() {
            self.paths.push(spare);
        } else {
            let _ = std::fs::remove_file(path);
        }
    }

    /// A file at `path` that is written from its begin on.
    pub(super) fn create(&mut self, path: &Path) -> io::Result<File> {
        match self.paths.pop().filter(|spare| std::fs::rename(spare, path).is_ok()) {
            Some(_) => OpenOptions::new().write(true).open(path),
            None => File::create(path),
        }
    }

    /// Removes all of them.
    pub(super) fn clear(&mut self) {
        for path in self.paths.drain(..) {
            let _ = std::fs::remove_file(path);
        }
    }
}
