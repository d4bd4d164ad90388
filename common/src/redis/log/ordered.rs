//! A log in order, in a file.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_proto::stored::log::{LogEntry, take_entry};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::command::{Command, Entries, GroupSlots, Pieces};
use super::{FILE_BUFFER, full, temporary};
use crate::run::{LongReader, LongValue};

/// Writes entries down, each behind its group and its length (32 bits).
#[derive(Debug)]
pub struct ToFile {
    dir: PathBuf,
    out: Option<BufWriter<File>>,
    len: u64,
    entries: u64,
}

impl ToFile {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), out: None, len: 0, entries: 0 }
    }

    pub(super) fn finish(self, groups: Vec<GroupSlots>) -> Result<Ordered> {
        let into = |out: BufWriter<File>| full(out.into_inner().map_err(std::io::IntoInnerError::into_error));
        let file = self.out.map(into).transpose()?.map(Arc::new);
        Ok(Ordered { file, len: self.len, groups, entries: self.entries })
    }
}

impl Entries for ToFile {
    fn entry(&mut self, (group, _): (u32, &GroupSlots), _: &LogEntry<'_>, bytes: &[u8]) -> Result<()> {
        let out = match &mut self.out {
            Some(out) => out,
            None => self.out.insert(BufWriter::with_capacity(FILE_BUFFER, temporary(&self.dir)?)),
        };
        self.len += 8 + bytes.len() as u64;
        self.entries += 1;
        full(out.write_all(&group.to_le_bytes()))?;
        full(out.write_all(&(bytes.len() as u32).to_le_bytes()))?;
        full(out.write_all(bytes))
    }
}

/// A log of commands in order.
#[derive(Debug, Clone)]
pub struct Ordered {
    file: Option<Arc<File>>,
    len: u64,
    groups: Vec<GroupSlots>,
    entries: u64,
}

impl Ordered {
    /// Whether there is no command.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Reads the commands from the first on. What of them is too long for memory waits in `dir`.
    pub fn commands(&self, dir: &Path) -> CommandReader {
        let file = self.file.clone().map(|file| LongValue::new(file, 0, self.len));
        CommandReader {
            file,
            at: 0,
            groups: self.groups.clone(),
            ahead: Vec::new(),
            ahead_at: 0,
            entry: Vec::new(),
            pieces: Pieces::new(dir),
        }
    }
}

/// Reads commands in order.
#[derive(Debug)]
pub struct CommandReader {
    file: Option<LongValue>,
    at: u64,
    groups: Vec<GroupSlots>,
    /// Bytes of the file that were read ahead, and how many of them were taken.
    ahead: Vec<u8>,
    ahead_at: usize,
    entry: Vec<u8>,
    pieces: Pieces,
}

impl CommandReader {
    /// Reads exactly as many bytes as `out` has; `false` at the end of the file.
    fn take(&mut self, out: &mut [u8]) -> Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let mut have = 0;
        while have < out.len() {
            if self.ahead_at == self.ahead.len() {
                self.ahead.resize(FILE_BUFFER, 0);
                let mut reader: LongReader<'_> = file.reader_at(self.at);
                let read =
                    reader.read(&mut self.ahead).or_kind(ErrorKind::Retry, "reading back the log of commands")?;
                self.ahead.truncate(read);
                (self.at, self.ahead_at) = (self.at + read as u64, 0);
                if read == 0 {
                    return if have == 0 {
                        Ok(false)
                    } else {
                        Err(Error::bug("a file of commands ends inside one"))
                    };
                }
            }
            let some = (out.len() - have).min(self.ahead.len() - self.ahead_at);
            out[have..have + some].copy_from_slice(&self.ahead[self.ahead_at..][..some]);
            (have, self.ahead_at) = (have + some, self.ahead_at + some);
        }
        Ok(true)
    }

    /// The next command, `None` after the last. `Damaged` where a piece of one is missing.
    #[allow(clippy::should_implement_trait, reason = "what it answers lives until the next call")]
    pub fn next(&mut self) -> Result<Option<Command<'_>>> {
        let group = loop {
            let mut head = [0; 8];
            if !self.take(&mut head)? {
                return self.pieces.end().map(|()| None);
            }
            let (group, len) = head.split_at(4);
            let number = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            let (group, len) = (number(group), number(len));
            let mut bytes = std::mem::take(&mut self.entry);
            bytes.resize(len as usize, 0);
            let _ = self.take(&mut bytes)?;
            self.entry = bytes;
            if self.pieces.push(group, &decode(&self.entry)?)? {
                break group;
            }
        };
        self.pieces.command(&self.groups[group as usize], &decode(&self.entry)?).map(Some)
    }
}

fn decode(bytes: &[u8]) -> Result<LogEntry<'_>> {
    take_entry(&mut &bytes[..])?.ok_or_else(|| Error::bug("an empty entry of a log"))
}
