//! Sorted entries in files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::{Wanted, decode};

/// Sorted entries in a file, each behind its length (32 bits): those between these pairs of offsets, which ascend.
#[derive(Debug)]
pub(crate) struct Stretches {
    pub(crate) file: Arc<File>,
    pub(crate) ranges: VecDeque<(u64, u64)>,
    /// Where their long values lie.
    pub(crate) long: Option<Arc<File>>,
}

impl Read for Stretches {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while let Some((from, to)) = self.ranges.front_mut() {
            if from == to {
                let _ = self.ranges.pop_front();
                continue;
            }
            let most = buf.len().min(usize::try_from(*to - *from).unwrap_or(usize::MAX));
            let len = self.file.read_at(&mut buf[..most], *from)?;
            if len == 0 && most > 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            *from += len as u64;
            return Ok(len);
        }
        Ok(0)
    }
}

/// A sorted file, with the entry at hand.
#[derive(Debug)]
pub(super) struct SortedFile {
    pub(super) file: BufReader<Stretches>,
    pub(super) entry: Vec<u8>,
    pub(super) alive: bool,
    /// Of its entries those count.
    pub(super) wanted: Option<Arc<Wanted>>,
}

impl SortedFile {
    /// Goes to the next entry that counts.
    pub(super) fn step(&mut self) -> Result<()> {
        loop {
            self.read()?;
            match &self.wanted {
                Some(wanted) if self.alive && !wanted.takes(&decode(&self.entry)?) => {}
                _ => return Ok(()),
            }
        }
    }

    fn read(&mut self) -> Result<()> {
        let mut len = [0; 4];
        let mut have = 0;
        while have < len.len() {
            match self.file.read(&mut len[have..]).or_kind(ErrorKind::Retry, "a temporary file")? {
                0 if have == 0 => {
                    self.alive = false;
                    return Ok(());
                }
                0 => return Err(Error::damaged("a temporary file ends inside an entry")),
                n => have += n,
            }
        }
        self.entry.resize(u32::from_le_bytes(len) as usize, 0);
        self.file.read_exact(&mut self.entry).or_kind(ErrorKind::Retry, "a temporary file")
    }
}
