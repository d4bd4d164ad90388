//! Values that are too long to be held in memory: they lie in files, and are read in pieces.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

/// Bytes of a long value that are read at once by those who copy it.
pub const LONG_PIECE: usize = 256 << 10;

/// A value that lies in a file.
#[derive(Debug, Clone)]
pub struct LongValue {
    file: Arc<File>,
    at: u64,
    len: u64,
}

impl LongValue {
    /// The `len` bytes at `at`.
    pub fn new(file: Arc<File>, at: u64, len: u64) -> Self {
        Self { file, at, len }
    }

    /// The file that it lies in.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Its length, in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a long value is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reads it from its beginning. A file that ends before it is an error of the kind `UnexpectedEof`.
    pub fn reader(&self) -> LongReader<'_> {
        self.reader_at(0)
    }

    /// Reads it from its byte `at` on.
    pub fn reader_at(&self, at: u64) -> LongReader<'_> {
        LongReader { value: self, read: at.min(self.len) }
    }

    /// Hands it on piece by piece.
    pub fn pieces(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (mut reader, mut piece) = (self.reader(), vec![0; LONG_PIECE]);
        loop {
            match reader.read(&mut piece).or_kind(ErrorKind::Retry, "reading back a long value")? {
                0 => return Ok(()),
                len => take(&piece[..len])?,
            }
        }
    }

    /// All of it, in memory; `Unsupported` when it has more than `most` bytes.
    pub fn whole(&self, most: usize) -> Result<Vec<u8>> {
        if self.len > most as u64 {
            return Err(Error::unsupported(format!(
                "a value of {} bytes would have to be held in memory, and at most {most} can",
                self.len
            )));
        }
        let mut bytes = Vec::with_capacity(self.len as usize);
        let _ = self.reader().read_to_end(&mut bytes).or_kind(ErrorKind::Retry, "reading back a long value")?;
        Ok(bytes)
    }
}

/// Reads a long value.
#[derive(Debug)]
pub struct LongReader<'v> {
    value: &'v LongValue,
    read: u64,
}

impl Read for LongReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.value.len - self.read).unwrap_or(usize::MAX);
        let most = buf.len().min(left);
        if most == 0 {
            return Ok(0);
        }
        let len = self.value.file.read_at(&mut buf[..most], self.value.at + self.read)?;
        if len == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.read += len as u64;
        Ok(len)
    }
}

/// Room on disk for one long value at a time: a file without a name, which goes with its last user.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    file: Option<Arc<File>>,
    len: u64,
}

impl Spool {
    /// In `dir`, which is made when the first value comes.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file: None, len: 0 }
    }

    /// Begins a value; the one before is gone.
    pub fn begin(&mut self) -> Result<()> {
        self.len = 0;
        let full = || format!("a file for long values in {}", self.dir.display());
        if let Some(file) = &self.file {
            return file.set_len(0).or_kind(ErrorKind::Full, full());
        }
        std::fs::create_dir_all(&self.dir).or_kind(ErrorKind::Full, full())?;
        let path = self.dir.join(format!("long-{:032x}", rand::random::<u128>()));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.or_kind(ErrorKind::Full, full())?;
        std::fs::remove_file(&path).or_kind(ErrorKind::Full, full())?;
        self.file = Some(Arc::new(file));
        Ok(())
    }

    /// The next bytes of the value.
    pub fn add(&mut self, piece: &[u8]) -> Result<()> {
        let file = self.file.as_ref().ok_or_else(|| Error::bug("a long value that was not begun"))?;
        let told = || format!("writing a long value in {}", self.dir.display());
        file.write_all_at(piece, self.len).or_kind(ErrorKind::Full, told())?;
        self.len += piece.len() as u64;
        Ok(())
    }

    /// The value, which is whole. It counts until the next one begins.
    pub fn value(&self) -> Result<LongValue> {
        let file = self.file.clone().ok_or_else(|| Error::bug("no long value was begun"))?;
        Ok(LongValue::new(file, 0, self.len))
    }
}

impl std::io::Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.add(bytes).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
