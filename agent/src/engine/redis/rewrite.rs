//! A log, written anew with commands that were put behind others, or in their places.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::resp::read_command;

/// Bytes of the log read at once.
const READ: usize = 1 << 20;

/// What becomes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays.
    Stays,
    /// It is left out.
    Goes,
}

/// Copies the first `len` bytes of `log` to `out`; answers how many bytes that are then. `each` is told each command, of whose words at
/// most `most` bytes are looked at, and where it ends; says what becomes of it, and puts bytes behind it.
pub(super) fn rewrite(
    (log, len): (&Path, u64),
    most: u64,
    out: &Path,
    mut each: impl FnMut(&[&[u8]], u64, &mut Vec<u8>) -> Result<Fate>,
) -> Result<u64> {
    let open = || File::open(log).or_kind(ErrorKind::Bug, format_args!("{}", log.display()));
    let full = || format!("writing {}", out.display());
    let mut commands = BufReader::with_capacity(READ, Counted { file: open()?.take(len), read: 0 });
    let mut raw = open()?.take(len);
    let file = File::create(out).or_kind(ErrorKind::Full, full())?;
    // What was taken of the log, and how many bytes more or fewer were written than taken.
    let (mut to, mut taken, mut written, mut behind) = (BufWriter::with_capacity(READ, file), 0, 0, Vec::new());
    loop {
        let ahead = commands.fill_buf().or_kind(ErrorKind::Retry, "reading back the log")?;
        match ahead.first() {
            None => break,
            Some(b'\n' | b'\r') => {
                commands.consume(1);
                continue;
            }
            Some(_) => {}
        }
        let place = |commands: &BufReader<Counted<_>>| commands.get_ref().read - commands.buffer().len() as u64;
        let begin = place(&commands);
        let words = read_command(&mut commands, most)?;
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let end = place(&commands);
        behind.clear();
        let fate = each(&words, end, &mut behind)?;
        if fate == Fate::Stays && behind.is_empty() {
            continue;
        }
        let stays = if fate == Fate::Stays { end } else { begin };
        written += std::io::copy(&mut (&mut raw).take(stays - taken), &mut to).or_kind(ErrorKind::Full, full())?;
        let _ = std::io::copy(&mut (&mut raw).take(end - stays), &mut std::io::sink())
            .or_kind(ErrorKind::Retry, "reading back the log")?;
        taken = end;
        to.write_all(&behind).or_kind(ErrorKind::Full, full())?;
        written += behind.len() as u64;
    }
    let rest = std::io::copy(&mut raw, &mut to).or_kind(ErrorKind::Full, full())?;
    to.flush().or_kind(ErrorKind::Full, full())?;
    match taken + rest == len {
        true => Ok(written + rest),
        false => Err(Error::damaged("the log is shorter than what was kept of it")),
    }
}

/// Counts what is read.
struct Counted<R> {
    file: R,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = self.file.read(buf)?;
        self.read += len as u64;
        Ok(len)
    }
}
