//! What came of a stream of commands and is not durable elsewhere yet: files that are only ever appended to, and read back after a
//! restart of the agent. Their format is in [`super::frames`].

mod files;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use tidemark_proto::{Error, ErrorKind, Incarnation, Result, Timestamp};

use super::super::stream::Splitter;
use super::frames::{
    BYTES, FILE_HEAD, FRAME_HEAD, HISTORY, MARK, fields, file_head, frame_head, read_file_head, read_frame,
};

pub(super) use files::SpoolFile;
use files::{Border, Spares};

/// A file is ended at the next border of commands when it has this many bytes.
const FILE_TARGET: u64 = 16 << 20;

/// What passed with some bytes.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// The server wants an acknowledgement.
    pub(super) asked: bool,
    /// End of the last command that may have changed data.
    pub(super) moved: Option<u64>,
}

/// The spool of one stream.
#[derive(Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    incarnation: Incarnation,
    files: VecDeque<SpoolFile>,
    spares: Spares,
    out: Option<File>,
    /// Bytes of the file that is written to.
    written: u64,
    splitter: Splitter,
    db: u64,
    /// Where each history of the stream begins that may still be asked for; the last is the present one.
    histories: Vec<(u64, String)>,
    /// Cuts, by their offsets; of several at one offset the first and the last.
    marks: BTreeMap<u64, (Timestamp, Timestamp)>,
    /// End of the last whole command.
    border: u64,
    bytes: u64,
}

fn full(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let told = format!("the spool of the log, {}", path.display());
    move |e| Error::new(ErrorKind::Full, told.clone()).with_source(e)
}

impl Spool {
    /// Begins anew in `dir`, at an offset of a history, with the database that the commands are for.
    pub(super) fn begin(
        dir: &Path,
        incarnation: Incarnation,
        (history, offset): (&str, u64),
        db: u64,
    ) -> Result<Self> {
        let _ = std::fs::remove_dir_all(dir);
        std::fs::create_dir_all(dir).map_err(full(dir))?;
        let mut spool = Self {
            dir: dir.to_owned(),
            incarnation,
            files: VecDeque::new(),
            spares: Spares::default(),
            out: None,
            written: 0,
            splitter: Splitter::new(offset),
            db,
            histories: vec![(offset, history.to_owned())],
            marks: BTreeMap::new(),
            border: offset,
            bytes: 0,
        };
        spool.rotate()?;
        Ok(spool)
    }

    /// Reads back what an earlier process left; `None` where there is nothing of this data, or where it does not hold.
    pub(super) fn reopen(dir: &Path, incarnation: Incarnation) -> Result<Option<Self>> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Ok(None) };
        let (spares, mut paths): (Vec<PathBuf>, Vec<PathBuf>) =
            entries.flatten().map(|e| e.path()).partition(|path| Spares::is(path));
        for spare in spares {
            let _ = std::fs::remove_file(spare);
        }
        // Names are offsets with leading zeros.
        paths.sort();
        let mut spool: Option<Self> = None;
        for path in paths {
            let mut file = File::open(&path).map_err(full(&path))?;
            let Some((start, db, of, history)) = read_file_head(&mut file)? else { break };
            if of != incarnation {
                return Ok(None);
            }
            let this = spool.get_or_insert_with(|| Self {
                dir: dir.to_owned(),
                incarnation,
                files: VecDeque::new(),
                spares: Spares::default(),
                out: None,
                written: 0,
                splitter: Splitter::new(start),
                db,
                histories: vec![(start, history)],
                marks: BTreeMap::new(),
                border: start,
                bytes: 0,
            });
            if this.border != start {
                break;
            }
            // Nothing holds the bytes behind the border any more: the file begins there.
            (this.splitter, this.db) = (Splitter::new(start), db);
            this.files.push_back(SpoolFile::new(path.clone(), start, db));
            this.recover(&mut file)?;
        }
        let Some(mut spool) = spool else { return Ok(None) };
        // What comes behind a command that has not ended comes again.
        spool.splitter = Splitter::new(spool.border);
        spool.rotate()?;
        Ok(Some(spool))
    }

    fn recover(&mut self, file: &mut File) -> Result<()> {
        let mut at = FILE_HEAD as u64;
        while let Some((head, bytes)) = read_frame(file)? {
            let (kind, offset, value) = fields(&head);
            let next = at + (FRAME_HEAD + bytes.len()) as u64;
            let frame = std::mem::replace(&mut at, next);
            match kind {
                BYTES if offset == self.splitter.position() => {
                    let _ = self.pass(&bytes)?;
                    self.note(frame);
                }
                BYTES => break,
                MARK => self.note_mark(offset, Timestamp(value)),
                // Of a former use of the file.
                HISTORY if offset != self.splitter.position() => break,
                HISTORY => self.histories.push((offset, String::from_utf8_lossy(&bytes).into_owned())),
                _ => break,
            }
        }
        if let Some(last) = self.files.back_mut() {
            last.end = self.border;
            self.bytes += last.end - last.start;
        }
        Ok(())
    }

    /// Begins the next file, at the border where the stream stands.
    fn rotate(&mut self) -> Result<()> {
        let start = self.border;
        let path = self.dir.join(format!("{start:020}"));
        let head = file_head(start, self.db, self.incarnation, self.history());
        let mut file = self.spares.create(&path).map_err(full(&path))?;
        file.write_all(&head).map_err(full(&path))?;
        // A file that holds nothing yet is replaced by this one, which begins at the same offset.
        if self.files.back().is_some_and(|f| f.start == start) {
            let _ = self.files.pop_back();
        }
        self.files.push_back(SpoolFile::new(path, start, self.db));
        (self.out, self.written) = (Some(file), FILE_HEAD as u64);
        // Marks of before that still count go with the file: those before it may be dropped.
        let marks: Vec<_> = self.marks.range(start..).map(|(o, t)| (*o, *t)).collect();
        for (offset, (first, last)) in marks {
            self.put(MARK, offset, first.0, &[])?;
            self.put(MARK, offset, last.0, &[])?;
        }
        Ok(())
    }

    fn put(&mut self, kind: u8, offset: u64, value: u64, bytes: &[u8]) -> Result<()> {
        let head = frame_head(kind, offset, value, bytes);
        let out = self.out.as_mut().ok_or_else(|| Error::bug("a spool without a file"))?;
        out.write_all(&head).and_then(|()| out.write_all(bytes)).map_err(full(&self.dir))?;
        self.written += (FRAME_HEAD + bytes.len()) as u64;
        Ok(())
    }

    /// Remembers the border where the stream stands, which lies in the frame at `at` of the last file.
    fn note(&mut self, at: u64) {
        let border = Border { offset: self.border, db: self.db, at };
        if let Some(file) = self.files.back_mut() {
            file.note(border);
        }
    }

    /// Feeds the splitter, which finds borders, databases, and what moves.
    fn pass(&mut self, bytes: &[u8]) -> Result<Passed> {
        let (mut passed, mut db, mut border) = (Passed::default(), self.db, self.border);
        self.splitter.feed(bytes, |command| {
            border = command.end;
            if command.is("SELECT") {
                let number = command.words.get(1).and_then(|w| std::str::from_utf8(w).ok()?.parse().ok());
                db = number.ok_or_else(|| Error::damaged("the stream holds a SELECT without a database"))?;
            }
            match command.is_idle() {
                true => passed.asked |= !command.is("PING"),
                false => passed.moved = Some(command.end),
            }
            Ok(())
        })?;
        (self.db, self.border) = (db, border);
        Ok(passed)
    }

    /// Keeps bytes of the stream that came at `millis`.
    pub(super) fn append(&mut self, bytes: &[u8], millis: u64) -> Result<Passed> {
        let (from, before) = (self.splitter.position(), self.border);
        let passed = self.pass(bytes)?;
        let file = self.files.back().ok_or_else(|| Error::bug("a spool without a file"))?;
        let large = self.border - file.start >= FILE_TARGET && self.border > before;
        let (old, new) = if large { bytes.split_at((self.border - from) as usize) } else { (bytes, &[][..]) };
        let frame = self.written;
        self.put(BYTES, from, millis, old)?;
        self.bytes += self.border - before;
        self.note(frame);
        if let Some(file) = self.files.back_mut() {
            file.end = self.border;
        }
        if large {
            self.rotate()?;
            if !new.is_empty() {
                self.put(BYTES, self.border, millis, new)?;
            }
        }
        Ok(passed)
    }

    /// The cut at `at` lies at `offset`: what comes behind it gets a later timestamp.
    pub(super) fn mark(&mut self, offset: u64, at: Timestamp) -> Result<()> {
        self.put(MARK, offset, at.0, &[])?;
        self.note_mark(offset, at);
        Ok(())
    }

    fn note_mark(&mut self, offset: u64, at: Timestamp) {
        let (first, last) = self.marks.entry(offset).or_insert((at, at));
        (*first, *last) = (at.min(*first), at.max(*last));
    }

    /// The stream goes on under another name.
    pub(super) fn renamed(&mut self, history: &str) -> Result<()> {
        if history == self.history() {
            return Ok(());
        }
        let offset = self.splitter.position();
        self.put(HISTORY, offset, 0, history.as_bytes())?;
        self.histories.push((offset, history.to_owned()));
        Ok(())
    }

    /// The present history.
    pub(super) fn history(&self) -> &str {
        self.histories.last().map_or("", |(_, name)| name.as_str())
    }

    /// Whether `from` of a history that is named by its begin is a position in what is kept.
    pub(super) fn holds(&self, is: impl Fn(&str) -> bool, from: u64) -> bool {
        self.start() <= from && from <= self.border && self.histories.iter().any(|(_, name)| is(name))
    }

    /// Where it begins.
    pub(super) fn start(&self) -> u64 {
        self.files.front().map_or(self.border, |f| f.start)
    }

    /// End of the last whole command.
    pub(super) fn border(&self) -> u64 {
        self.border
    }

    /// Where the stream stands, in the middle of a command maybe.
    pub(super) fn position(&self) -> u64 {
        self.splitter.position()
    }

    /// Bytes of the stream that are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first offset at or behind `from` with a cut later than `closed`, and that cut: where something lies before it that was not
    /// read yet the first one there, which none of it may be later than; else the last.
    pub(super) fn next_mark(&self, from: u64, closed: Timestamp) -> Option<(u64, Timestamp)> {
        let later = self.marks.range(from..).find(|(_, (_, last))| *last > closed);
        later.map(|(&offset, &(first, last))| (offset, if offset > from && first > closed { first } else { last }))
    }

    /// The files from the one that holds `from` on.
    pub(super) fn files_from(&self, from: u64) -> Vec<SpoolFile> {
        let first = self.files.iter().rposition(|f| f.start <= from).unwrap_or(0);
        self.files.iter().skip(first).cloned().collect()
    }

    /// Nothing before `durable` is needed any more.
    pub(super) fn drop_below(&mut self, durable: u64) {
        while self.files.len() > 1 && self.files[0].end <= durable {
            if let Some(file) = self.files.pop_front() {
                self.bytes -= file.end - file.start;
                self.spares.keep(&file.path);
            }
        }
        let start = self.start();
        self.marks = self.marks.split_off(&durable.min(self.border));
        // The history of the first byte stays known.
        while self.histories.len() > 1 && self.histories[1].0 <= start {
            let _ = self.histories.remove(0);
        }
    }

    /// Drops everything: the spool was full. The stream must be taken up at the border then.
    pub(super) fn forget(&mut self) -> Result<()> {
        let rest = self.files.drain(..).collect::<Vec<_>>();
        (self.bytes, self.out) = (0, None);
        self.spares.clear();
        for file in rest {
            let _ = std::fs::remove_file(file.path);
        }
        self.splitter = Splitter::new(self.border);
        self.marks.clear();
        self.histories = vec![(self.border, self.history().to_owned())];
        self.rotate()
    }
}

#[cfg(test)]
mod tests;
