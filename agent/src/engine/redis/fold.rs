//! From a base and the log behind it to the state at the cut.
//!
//! A log cannot be applied by an ordinary client: a time-to-live that has passed by then deletes the key at once, and what a
//! later command did to it goes wrong. A replica never expires a key by itself. So a scratch server gets those records of
//! the base that the log names, from the agent in the role of its primary, then the log, and what it holds in the end is
//! the state of these keys at the cut. All others are as the base has them.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use tidemark_common::rdb::{self, Family, RdbWriter, RecordHead};
use tidemark_common::record::{RedisMeta, redis_key, split_redis_key};
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, Timestamp, error::ResultExt, slot_of};

use super::absolute::{Arrivals, write_absolute};
use super::base::{BaseSink, Gathered};
use super::keys::{Commands, Touches};
use super::link::Base;
use super::merge::{Emptied, State};
use super::ready::Ready;
use super::resp::{put_request, read_command};
use super::rewrite::{Fate, rewrite};
use super::scratch::{MOST_DATABASES, Scratch};
use super::spill::Spill;
use crate::engine::{Next, ScanRange, Scanned};

/// What a log touches.
#[derive(Debug, Default)]
struct Touched {
    /// Keys of records.
    keys: HashSet<Vec<u8>>,
    /// Databases and slots that were emptied: what the base holds of them is void.
    emptied: Emptied,
    /// Whether the log holds commands that a server which is no part of a Cluster does not run.
    of_cluster: bool,
    /// Whether the log can only be followed with all records at hand.
    everything: bool,
    /// Whether the functions changed.
    functions: bool,
    /// Commands that change data.
    commands: u64,
}

impl Touched {
    /// Reads the first `len` bytes of the log in `path`.
    fn read(path: &Path, len: u64, commands: &Commands) -> Result<Self> {
        let file = File::open(path).or_kind(ErrorKind::Bug, format_args!("{}", path.display()))?;
        let mut log = BufReader::with_capacity(1 << 20, file.take(len));
        let (mut touched, mut db, mut key) = (Self::default(), 0, Vec::new());
        while let Some(args) = next_command(&mut log)? {
            let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            match commands.touches(&args)? {
                Touches::Select(number) => db = number,
                Touches::Nothing => continue,
                Touches::Database => drop(touched.emptied.dbs.insert(db)),
                Touches::Everything => touched.emptied.all = true,
                Touches::Unknown => touched.everything = true,
                Touches::Functions => touched.functions = true,
                Touches::Slots(slots) => {
                    touched.emptied.slots = touched.emptied.slots.union(&slots);
                    touched.of_cluster = true;
                }
                Touches::Moving => {
                    touched.of_cluster = true;
                    continue;
                }
                Touches::Keys(keys) => {
                    for name in keys {
                        redis_key(db, name, &mut key);
                        if !touched.keys.contains(&key) {
                            let _ = touched.keys.insert(key.clone());
                        }
                    }
                }
            }
            touched.commands += 1;
        }
        Ok(touched)
    }

    /// Writes the first `len` bytes of `log` to `out` as a server of its own runs them; answers how many bytes that are. Where the keys
    /// of slots are deleted, it is told the names of those that it may hold: of all that the log names.
    fn write_of_one(&self, log: (&Path, u64), commands: &Commands, out: &Path) -> Result<u64> {
        if self.everything && !self.emptied.slots.is_empty() {
            return Err(Error::unsupported(
                "the keys of slots were deleted, and databases swapped or keys moved between them, since the base was taken: \
                 take the backup again",
            ));
        }
        let mut db = 0;
        rewrite(log, MOST_OF_WORD, out, |words, _, behind| match commands.touches(words)? {
            Touches::Select(number) => {
                db = number;
                Ok(Fate::Stays)
            }
            Touches::Moving => Ok(Fate::Goes),
            Touches::Slots(slots) => {
                self.delete(&slots, behind)?;
                put_request(behind, &[b"SELECT", db.to_string().as_bytes()]);
                Ok(Fate::Goes)
            }
            _ => Ok(Fate::Stays),
        })
    }

    /// Writes the commands that delete the keys of `slots`.
    fn delete(&self, slots: &SlotSet, out: &mut Vec<u8>) -> Result<()> {
        let mut keys: Vec<(u64, &[u8])> = self.keys.iter().map(|k| split_redis_key(k)).collect::<Result<_>>()?;
        keys.retain(|(_, name)| slots.contains(slot_of(name)));
        keys.sort_unstable();
        for of_db in keys.chunk_by(|a, b| a.0 == b.0) {
            put_request(out, &[b"SELECT", of_db[0].0.to_string().as_bytes()]);
            for some in of_db.chunks(DELETED_AT_ONCE) {
                let args: Vec<&[u8]> =
                    std::iter::once(&b"DEL"[..]).chain(some.iter().map(|(_, name)| *name)).collect();
                put_request(out, &args);
            }
        }
        Ok(())
    }

    fn slots(&self) -> Result<SlotSet> {
        let slots: HashSet<u16> =
            self.keys.iter().map(|k| split_redis_key(k).map(|(_, key)| slot_of(key))).collect::<Result<_>>()?;
        Ok(SlotSet::from_ranges(slots.into_iter().map(|s| (s, s))))
    }
}

/// Keys that one deletion names.
const DELETED_AT_ONCE: usize = 512;
/// Bytes of a word of a command that are looked at: a key is not longer, or cannot be backed up; values do not matter.
const MOST_OF_WORD: u64 = 2 * crate::engine::MAX_KEY as u64;

/// The next command of a log, `None` at its end.
fn next_command(log: &mut BufReader<std::io::Take<File>>) -> Result<Option<Vec<Vec<u8>>>> {
    use std::io::BufRead;
    loop {
        let ahead = log.fill_buf().or_kind(ErrorKind::Retry, "reading back the log")?;
        match ahead.first() {
            None => return Ok(None),
            Some(b'\n' | b'\r') => log.consume(1),
            Some(_) => break,
        }
    }
    read_command(log, MOST_OF_WORD).map(Some)
}

/// What a fold works with.
#[derive(Debug)]
pub struct Fold<'a> {
    /// The cut.
    pub at: Timestamp,
    /// The base.
    pub base: &'a Base,
    /// What was made ready of it.
    pub(super) ready: Option<Arc<Ready>>,
    /// The file of the log, and how many of its bytes come before the cut.
    pub log: (&'a Path, u64),
    /// Where the stream stood when the log began, and when its bytes came; of a server that sends times relative to the present.
    pub(super) relative: Option<(u64, &'a Arrivals)>,
    /// Whether the log may hold commands that change data.
    pub moved: bool,
    /// The program of the scratch server; empty for one that is looked for.
    pub program: &'a str,
    /// Whether the source is Valkey.
    pub valkey: bool,
    /// Folder for the scratch server and what comes of it.
    pub dir: &'a Path,
}

impl Fold<'_> {
    /// The state at the cut, and what else the server held then.
    pub fn run(&self) -> Result<(State, Gathered)> {
        let mut state = State::of(self.at, self.base.records.sorted()?);
        (state.ready, state.base_id) = (self.ready.clone(), self.base.records.id());
        if !self.moved {
            return Ok((state, self.base.gathered.clone()));
        }
        let _ = std::fs::remove_dir_all(self.dir);
        std::fs::create_dir_all(self.dir).or_kind(ErrorKind::Full, format_args!("{}", self.dir.display()))?;
        let absolute = self.dir.join("log");
        let log = match self.relative {
            Some(arrivals) => (&*absolute, write_absolute(self.log, arrivals, MOST_OF_WORD, &absolute)?),
            None => self.log,
        };
        let mut scratch = Scratch::start(self.program, self.valkey, &self.dir.join("server"), MOST_DATABASES)?;
        let link = scratch.accept()?;
        let (commands, of_one) = (scratch.commands()?, self.dir.join("log of one"));
        let touched = Touched::read(log.0, log.1, &commands)?;
        let log = match touched.of_cluster {
            true => (&*of_one, touched.write_of_one(log, &commands, &of_one)?),
            false => log,
        };
        scratch.replicate(link, |out| self.send_base(&state, &touched, out), log)?;
        let dump = scratch.save()?;
        let file = File::open(&dump).or_kind(ErrorKind::Bug, format_args!("{}", dump.display()))?;
        let mut sink = FoldSink {
            inner: BaseSink::new(Spill::new(&self.dir.join("over"))?),
            left: touched.keys,
            key: Vec::new(),
        };
        let trailer = rdb::read(&mut &file, &mut sink).map_err(|e| e.context("the dump of the scratch server"))?;
        for key in &sink.left {
            let (_, name) = split_redis_key(key)?;
            sink.inner.spill().gone(slot_of(name), key)?;
        }
        let (over, mut gathered) = sink.inner.finish(&trailer)?;
        gathered.version = self.base.gathered.version;
        if !touched.functions && !touched.emptied.all {
            gathered.functions.clone_from(&self.base.gathered.functions);
        }
        tracing::info!(commands = touched.commands, records = over.records, "the log up to the cut was applied");
        state.over = over;
        state.emptied = touched.emptied;
        state.emptied.all |= touched.everything;
        Ok((state, gathered))
    }

    /// Writes the records of the base that the log names, as a primary sends them.
    fn send_base(&self, state: &State, touched: &Touched, out: &mut dyn std::io::Write) -> Result<()> {
        let mut writer = RdbWriter::new(out, self.base.gathered.version)?;
        for code in &self.base.gathered.functions {
            writer.function(code)?;
        }
        let slots = if touched.everything { SlotSet::all() } else { touched.slots()? };
        // A writer of RDB files wants records database by database; loading takes them in any order.
        state.scan_packed(&ScanRange::slots(slots), &mut |scanned| {
            let (name, meta) = match &scanned {
                Scanned::Record(record) => (record.key, record.meta),
                Scanned::Long(record) => (record.key, record.meta),
                Scanned::Packed(_) => return Ok(Next::Open),
            };
            if !touched.everything && !touched.keys.contains(name) {
                return Ok(Next::Go);
            }
            let (db, key) = split_redis_key(name)?;
            let meta = RedisMeta::decode(meta)?;
            let head = RecordHead {
                db,
                key,
                type_byte: meta.type_byte,
                family: meta.family,
                expire_at_millis: meta.expire_at_millis,
                lru_idle_seconds: meta.idle_seconds,
                lfu_freq: meta.frequency,
            };
            writer.begin(&head)?;
            match scanned {
                Scanned::Long(record) => record.value.pieces(|piece| writer.value(piece))?,
                Scanned::Record(record) => writer.value(record.value)?,
                Scanned::Packed(_) => {}
            }
            writer.end()?;
            Ok(Next::Go)
        })?;
        writer.finish().map(drop)
    }
}

/// Sorts what the scratch server holds, and finds out which keys it does not hold any more.
struct FoldSink {
    inner: BaseSink,
    left: HashSet<Vec<u8>>,
    key: Vec<u8>,
}

impl rdb::RdbSink for FoldSink {
    fn header(&mut self, _: Family, _: u16) -> Result<()> {
        Ok(())
    }

    fn function(&mut self, code: &[u8]) -> Result<()> {
        self.inner.function(code)
    }

    fn begin(&mut self, head: &RecordHead<'_>) -> Result<()> {
        redis_key(head.db, head.key, &mut self.key);
        let _ = self.left.remove(&self.key);
        self.inner.begin(head)
    }

    fn value(&mut self, piece: &[u8]) -> Result<()> {
        self.inner.value(piece)
    }

    fn end(&mut self, summary: rdb::ValueSummary) -> Result<()> {
        self.inner.end(summary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        lines.iter().for_each(|l| put_request(&mut out, &l.split(' ').map(str::as_bytes).collect::<Vec<_>>()));
        out
    }

    #[test]
    fn what_a_cluster_alone_runs_is_written_as_a_server_of_its_own_runs_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, out) = (dir.path().join("log"), dir.path().join("out"));
        let (slot, other) = (slot_of(b"a"), slot_of(b"b"));
        let (flush, trim) =
            (format!("CLUSTER FLUSHSLOT {slot}"), format!("TRIMSLOTS RANGES 2 {slot} {slot} {other} {other}"));
        let mut bytes = log(&["SELECT 3", "SET {a}x 1", "SELECT 0", "RPUSH a 1"]);
        bytes.extend(b"\n");
        bytes.extend(log(&[&flush, "RPUSH a 2", "CLUSTER SYNCSLOTS SNAPSHOT-EOF", "SET b 1", &trim, "SET c 1"]));
        let len = bytes.len() as u64;
        bytes.extend(b"*1\r\n$4\r\nwhat is not wanted any more");
        std::fs::write(&path, bytes).unwrap();
        let commands = Commands::known();
        let touched = Touched::read(&path, len, &commands).unwrap();
        assert!(touched.of_cluster && !touched.everything);
        assert_eq!((touched.emptied.slots.len(), touched.commands), (2, 9));
        let written = touched.write_of_one((&path, len), &commands, &out).unwrap();
        let of_a = ["SELECT 0", "DEL a", "SELECT 3", "DEL {a}x", "SELECT 0"];
        let of_both = ["SELECT 0", "DEL a b", "SELECT 3", "DEL {a}x", "SELECT 0"];
        let mut wanted = log(&["SELECT 3", "SET {a}x 1", "SELECT 0", "RPUSH a 1"]);
        wanted.extend(b"\n");
        wanted.extend(log(&[&of_a[..], &["RPUSH a 2", "SET b 1"], &of_both, &["SET c 1"]].concat()));
        assert_eq!(String::from_utf8(std::fs::read(&out).unwrap()), String::from_utf8(wanted.clone()));
        assert_eq!(written, wanted.len() as u64);
        let everything = Touched { everything: true, ..touched };
        let told = everything.write_of_one((&path, len), &commands, &out).unwrap_err();
        assert!(told.report().contains("take the backup again"), "{}", told.report());
    }
}
