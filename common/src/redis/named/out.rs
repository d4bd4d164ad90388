//! The commands that count, as a primary sends them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use tidemark_proto::{ErrorKind, Result, error::ResultExt};

use crate::redis::resp::put_request;
use crate::run::LongValue;

/// Buffer of the file of commands, in bytes.
const FILE_BUFFER: usize = 64 << 10;

/// Writes commands to a file without a name.
#[derive(Debug)]
pub(in crate::redis) struct Out {
    file: BufWriter<File>,
    len: u64,
    db: Option<u64>,
    made: Vec<u8>,
    /// The highest database that a command is for.
    pub(super) highest: u64,
}

impl Out {
    pub(in crate::redis) fn new(dir: &Path) -> Result<Self> {
        let told = || format!("a temporary file in {}", dir.display());
        let file = tempfile::tempfile_in(dir).or_kind(ErrorKind::Full, told())?;
        let file = BufWriter::with_capacity(FILE_BUFFER, file);
        Ok(Self { file, len: 0, db: None, made: Vec::new(), highest: 0 })
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.len += bytes.len() as u64;
        self.file.write_all(bytes).or_kind(ErrorKind::Full, "writing the commands to a temporary file")
    }

    pub(super) fn request(&mut self, db: u64, args: &[&[u8]]) -> Result<()> {
        self.select(db)?;
        self.made(args)
    }

    fn made(&mut self, args: &[&[u8]]) -> Result<()> {
        let mut made = std::mem::take(&mut self.made);
        made.clear();
        put_request(&mut made, args);
        let done = self.bytes(&made);
        self.made = made;
        done
    }

    pub(super) fn select(&mut self, db: u64) -> Result<()> {
        if self.db == Some(db) {
            return Ok(());
        }
        (self.db, self.highest) = (Some(db), self.highest.max(db));
        self.made(&[b"SELECT", db.to_string().as_bytes()])
    }

    /// What was written, if anything.
    pub(super) fn finish(self) -> Result<Option<LongValue>> {
        let (file, len) = (self.file.into_inner().map_err(std::io::IntoInnerError::into_error), self.len);
        let file = file.or_kind(ErrorKind::Full, "writing the commands to a temporary file")?;
        Ok((len > 0).then(|| LongValue::new(Arc::new(file), 0, len)))
    }
}
