//! From a base and a log of commands to the state at a time.
//!
//! A log cannot be applied by an ordinary client: a time-to-live that has passed by then deletes the key at once, and what a
//! later command did to it goes wrong. A replica never expires a key by itself. So a scratch server ([`super::scratch`]) gets those
//! records of the base that the log names, from this process in the role of its primary, then the log, and what it holds in the
//! end is the state of these keys. All others are as the base has them.
//!
//! ```text
//! CommandLog    chunks -> commands in order             sorted in bounded memory
//! Named         which keys they name, what they empty   in memory: the keys
//! Fold          records of the base that are needed -> a file; both -> the scratch server -> its dump
//! Folded        sorted records, part by part            values over 1 MiB stay in a file
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tempfile::TempDir;
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, error::ResultExt};

use super::folded::Sink;
use super::keys::Commands;
use super::log::{Ordered, Takes};
use super::scratch::{FEW_DATABASES, MOST_DATABASES, Scratch};
use crate::rdb::{self, RdbWriter, RecordHead, ValueOf, convert};
use crate::record::{RedisMeta, split_redis_key};
use crate::run::{Entry, LongValue};

pub use super::folded::{Folded, Gone, Sorted};
pub use super::log::{CommandLog, Span};
pub use super::named::{Fate, Named, Scope};
pub use idle::Idle;
pub use naming::Naming;

mod idle;
mod naming;

/// Buffer of each temporary file, in bytes.
const FILE_BUFFER: usize = 64 << 10;
/// Bytes of a key that an error shows.
const MOST_OF_KEY: usize = 128;

/// The server that works commands off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ScratchServer {
    /// Its program; empty: `redis-server` or `valkey-server`, whichever is there.
    pub program: String,
    /// Whether the source is Valkey: then its server is looked for first.
    pub valkey: bool,
}

/// What a kind of server knows.
#[derive(Debug, Clone)]
struct Kind {
    commands: Arc<Commands>,
    /// Version of the RDB format that it loads.
    version: u16,
}

impl ScratchServer {
    /// What the server knows: asked once in a process.
    fn kind(&self, dir: &Path) -> Result<Kind> {
        static KNOWN: OnceLock<Mutex<HashMap<ScratchServer, Kind>>> = OnceLock::new();
        // Held while it is asked: who comes meanwhile waits for that answer.
        let mut known = KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kind) = known.get(self) {
            return Ok(kind.clone());
        }
        let folder = folder(dir)?;
        let mut scratch = Scratch::start(&self.program, self.valkey, folder.path(), FEW_DATABASES)?;
        let _link = scratch.accept()?;
        let kind = Kind { commands: Arc::new(scratch.commands()?), version: scratch.rdb_version()? };
        let _ = known.insert(self.clone(), kind.clone());
        Ok(kind)
    }

    /// The commands that the server knows. `Config` where there is no such program; the error says what to install.
    pub fn commands(&self, dir: &Path) -> Result<Arc<Commands>> {
        self.kind(dir).map(|kind| kind.commands)
    }
}

/// A folder for a server, which goes with it.
fn folder(dir: &Path) -> Result<TempDir> {
    let made = tempfile::Builder::new().prefix("tidemark-scratch-").tempdir_in(dir);
    made.or_kind(ErrorKind::Full, format_args!("a temporary folder in {}", dir.display()))
}

/// A log of which the base is still to come.
#[derive(Debug)]
pub struct Fold {
    named: Named,
    scope: Scope,
    server: ScratchServer,
    version: u16,
    /// The highest database of a record of the base.
    highest: u64,
    base: Option<RdbWriter<BufWriter<File>>>,
    budget: usize,
    dir: PathBuf,
    functions: Vec<Vec<u8>>,
    idle: Arc<Idle>,
}

impl Fold {
    /// Reads what the log names. Takes `budget` bytes of memory beside the names of the keys; what is temporary lies in `dir`.
    /// `Unsupported` names a command that cannot be followed with the keys of `scope` alone, or whose keys are not known;
    /// `Config` says what to install where there is no server.
    pub fn begin(log: &Ordered, scope: Scope, server: &ScratchServer, budget: usize, dir: &Path) -> Result<Self> {
        let (mut naming, mut reader) = (Naming::new(scope, server, budget, dir), log.commands(dir));
        while let Some(command) = reader.next()? {
            naming.take(&command)?;
        }
        naming.finish()
    }

    /// What becomes of a record of the base, whose key counts.
    pub fn fate(&self, slot: u16, key: &[u8]) -> Result<Fate> {
        self.named.fate(slot, key)
    }

    /// Whether the base may have records of these slots whose fate is another than [`Fate::Stays`].
    pub fn touches(&self, slots: &SlotSet) -> bool {
        self.named.touches(slots)
    }

    /// The keys of records that the log names, unless it touches others as well.
    pub fn keys(&self) -> Option<impl Iterator<Item = &[u8]>> {
        self.named.keys()
    }

    /// The keys that count.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether the log does nothing to the keys that count.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// The libraries of functions of the base.
    pub fn base_functions(&mut self, functions: Vec<Vec<u8>>) {
        self.functions = functions;
    }

    fn writer(&mut self) -> Result<&mut RdbWriter<BufWriter<File>>> {
        if self.base.is_none() {
            let told = || format!("a temporary file in {}", self.dir.display());
            let file = tempfile::tempfile_in(&self.dir).or_kind(ErrorKind::Full, told())?;
            let mut writer = RdbWriter::new(BufWriter::with_capacity(FILE_BUFFER, file), self.version)?;
            if self.named.functions {
                self.functions.iter().try_for_each(|code| writer.function(code))?;
            }
            self.base = Some(writer);
        }
        self.base.as_mut().ok_or_else(|| Error::bug("no file for the base"))
    }

    /// Takes a record of the base that is [`Fate::Needed`]; in any order. `Unsupported` for a value that the server does not load.
    pub fn base(&mut self, entry: &Entry<'_>, long: Option<&LongValue>) -> Result<()> {
        let (meta, value) = entry.put.unwrap_or_default();
        let (meta, (db, key)) = (RedisMeta::decode(meta)?, split_redis_key(entry.key)?);
        let version = self.version;
        let target = convert::type_for_server(version, meta.family, meta.type_byte).ok_or_else(|| {
            let key = String::from_utf8_lossy(&key[..key.len().min(MOST_OF_KEY)]).into_owned();
            Error::unsupported(format!(
                "key `{key}` has a value of RDB type {}, which the scratch server (RDB version {version}) does not load: \
                 install a server as new as that which was backed up, or name its program",
                meta.type_byte
            ))
        })?;
        let head = RecordHead {
            db,
            key,
            type_byte: target,
            family: meta.family,
            expire_at_millis: meta.expire_at_millis,
            lru_idle_seconds: meta.idle_seconds,
            lfu_freq: meta.frequency,
        };
        self.highest = self.highest.max(db);
        let writer = self.writer()?;
        writer.begin(&head)?;
        match (long, target == meta.type_byte) {
            (Some(long), true) => long.pieces(|piece| writer.value(piece))?,
            (None, true) => writer.value(value)?,
            (Some(long), false) => convert(meta.type_byte, &mut long.reader(), target, &mut ValueOf(writer))?,
            (None, false) => convert(meta.type_byte, &mut &value[..], target, &mut ValueOf(writer))?,
        }
        writer.end()
    }

    /// Works the log off. The base is whole by now.
    pub fn run(mut self) -> Result<Folded> {
        let Some(commands) = self.named.commands.take() else {
            return Ok(Folded::nothing(self.named, self.scope.slots));
        };
        let _ = self.writer()?;
        let (file, _) = self.base.take().ok_or_else(|| Error::bug("no file for the base"))?.finish()?;
        let base = file.into_inner().map_err(std::io::IntoInnerError::into_error);
        let base = Arc::new(base.or_kind(ErrorKind::Full, "writing the base to a temporary file")?);
        let len = base.metadata().or_kind(ErrorKind::Retry, "the file of the base")?.len();
        let base = LongValue::new(base, 0, len);
        // A database that the server does not have is not chosen, and what is meant for it changes another.
        let few = self.named.highest().max(self.highest) < u64::from(FEW_DATABASES);
        let databases = if few { FEW_DATABASES } else { MOST_DATABASES };
        let mut started = self.idle.take(&self.server, databases, &self.dir)?;
        let scratch = &mut started.scratch;
        let link = scratch.accept()?;
        // Opened by this name it is read from its beginning, whoever has read it before.
        let log = format!("/proc/self/fd/{}", commands.file().as_raw_fd());
        let send = |out: &mut dyn Write| {
            base.pieces(|piece| out.write_all(piece).or_kind(ErrorKind::Retry, "sending the base"))
        };
        scratch.replicate(link, send, (Path::new(&log), commands.len()))?;
        let dump = scratch.save()?;
        let file = File::open(&dump).or_kind(ErrorKind::Bug, format_args!("{}", dump.display()))?;
        let mut sink = Sink::new(self.scope, self.budget, &self.dir);
        let _ = rdb::read(&mut &file, &mut sink).map_err(|e| e.context("the dump of the scratch server"))?;
        self.idle.give(started, self.version);
        let folded = sink.finish(self.named)?;
        tracing::debug!(records = folded.records, "a log of commands was worked off");
        Ok(folded)
    }
}

#[cfg(test)]
mod tests;
