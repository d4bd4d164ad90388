//! What a log of commands names, and the commands as a primary sends them: those that count for some keys, and no others.
//!
//! A node that empties a database empties its own slots alone, while the commands of several nodes go to one server. So in the place
//! of `FLUSHALL` and `FLUSHDB` come deletions of all keys that were named up to then; what the base holds of these slots is
//! void, and is not looked at any more.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use tidemark_proto::stored::run::sort_key;
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, Timestamp, error::ResultExt, slot_of};

use super::about::{name_of, slot_of_key, words_of_each_key};
use super::keys::Commands;
use super::log::{Command, Ordered, Request};
use super::resp::put_request;
use crate::record::split_redis_key;
use crate::run::LongValue;

pub use super::about::{About, about, ties_keys};

/// Bytes of a word of a command that are looked at: keys are not longer, or cannot be backed up; values do not matter.
const MOST_OF_WORD: u64 = 1 << 20;
/// Keys that one deletion names.
const DELETED_AT_ONCE: usize = 512;
/// Longest command that is taken apart, in bytes: those that name keys of other parts as well.
const MOST_TAKEN_APART: usize = 64 << 20;
/// Buffer of the file of commands, in bytes.
const FILE_BUFFER: usize = 256 << 10;

/// Which keys count.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Those of these slots.
    pub slots: SlotSet,
    /// First sort key (slot big-endian ++ key); empty = from the beginning.
    pub lower: Vec<u8>,
    /// Sort key to stop before; empty = to the end.
    pub upper: Vec<u8>,
    /// Of them only these keys of records, where given.
    pub only: Option<Arc<HashSet<Vec<u8>>>>,
    /// Not keys count, but the functions alone.
    pub functions: bool,
}

impl Scope {
    /// All keys of these slots.
    pub fn slots(slots: SlotSet) -> Self {
        Self { slots, lower: Vec::new(), upper: Vec::new(), only: None, functions: false }
    }

    /// No keys, but the functions.
    pub fn functions() -> Self {
        Self { functions: true, ..Self::slots(SlotSet::EMPTY) }
    }

    /// Whether every key counts.
    pub fn is_all(&self) -> bool {
        self.slots == SlotSet::all() && self.lower.is_empty() && self.upper.is_empty() && self.only.is_none()
    }

    /// Whether the key of a record counts.
    pub fn takes(&self, slot: u16, key: &[u8]) -> bool {
        if !self.slots.contains(slot) || self.only.as_ref().is_some_and(|only| !only.contains(key)) {
            return false;
        }
        let sort = || sort_key(slot, key);
        (self.lower.is_empty() || sort() >= self.lower) && (self.upper.is_empty() || sort() < self.upper)
    }
}

/// What becomes of a record of the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The log does not touch it.
    Stays,
    /// The log goes on from it.
    Needed,
    /// Nothing is left of it, whatever the log makes of its key later.
    Void,
}

/// What is known of a key that the log names.
#[derive(Debug, Clone, Copy)]
struct Key {
    /// Its record of the base counts.
    based: bool,
    /// It may be there: it was named after its database was last emptied.
    alive: bool,
    /// When it was last named.
    at: Timestamp,
}

/// What a log names, and its commands.
#[derive(Debug)]
pub struct Named {
    keys: HashMap<Vec<u8>, Key>,
    /// Slots that were emptied, by database; `None` for all databases.
    emptied: HashMap<Option<u64>, SlotSet>,
    /// From some command on all keys are followed.
    everything: bool,
    /// The commands, as a primary sends them.
    pub(super) commands: Option<LongValue>,
    /// How many of them change data.
    pub count: u64,
    /// Whether there are commands on functions.
    pub functions: bool,
}

/// Writes the commands.
struct Out {
    file: BufWriter<File>,
    len: u64,
    db: Option<u64>,
    made: Vec<u8>,
}

impl Out {
    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.len += bytes.len() as u64;
        self.file.write_all(bytes).or_kind(ErrorKind::Full, "writing the commands to a temporary file")
    }

    fn request(&mut self, db: u64, args: &[&[u8]]) -> Result<()> {
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

    fn select(&mut self, db: u64) -> Result<()> {
        if self.db == Some(db) {
            return Ok(());
        }
        self.db = Some(db);
        self.made(&[b"SELECT", db.to_string().as_bytes()])
    }
}

impl Named {
    /// Reads a log in order. Commands on keys that do not count are left out; `Unsupported` names one that ties keys that count to
    /// others, and one whose keys are not known. In memory are the keys that are named. Files without a name lie in `dir`.
    pub fn read(log: &Ordered, scope: &Scope, commands: &Commands, dir: &Path) -> Result<Self> {
        let told = || format!("a temporary file in {}", dir.display());
        let file = tempfile::tempfile_in(dir).or_kind(ErrorKind::Full, told())?;
        let mut out = Out { file: BufWriter::with_capacity(FILE_BUFFER, file), len: 0, db: None, made: Vec::new() };
        let mut named = Self {
            keys: HashMap::new(),
            emptied: HashMap::new(),
            everything: false,
            commands: None,
            count: 0,
            functions: false,
        };
        let mut reader = log.commands(dir);
        while let Some(command) = reader.next()? {
            let at = command.at;
            named.take(&command, scope, commands, &mut out).map_err(|e| {
                let when = at.millis();
                e.context(format_args!("a command of the log at {at} ({when} ms since 1970)"))
            })?;
        }
        let len = out.len;
        let file = out.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        let file = file.or_kind(ErrorKind::Full, told())?;
        named.commands = (len > 0).then(|| LongValue::new(Arc::new(file), 0, len));
        Ok(named)
    }

    fn take(&mut self, command: &Command<'_>, scope: &Scope, commands: &Commands, out: &mut Out) -> Result<()> {
        let words = command.request.words(MOST_OF_WORD)?;
        match about(commands, command.db, &words)? {
            About::Functions if scope.functions => {
                self.functions = true;
                self.pass(command, out)?;
            }
            About::Nothing | About::Functions => return Ok(()),
            _ if scope.functions => return Ok(()),
            About::Emptied(db) => self.empty(db, command, scope, out)?,
            About::Everything => {
                // What is swapped or looked up by it lies in other slots than those that count, unless it is a swap.
                let swap = name_of(&words) == "SWAPDB";
                let bounded = scope.only.is_some() || !scope.lower.is_empty() || !scope.upper.is_empty();
                let whole = !bounded && scope.slots.minus(command.owner).is_empty();
                if !(whole && (swap || scope.is_all())) {
                    return Err(tied(&words));
                }
                self.everything = true;
                self.pass(command, out)?;
            }
            About::Keys(keys) => {
                let mut inside = Vec::with_capacity(keys.len());
                for key in &keys {
                    inside.push(scope.takes(slot_of_key(key)?, key));
                }
                match (inside.iter().any(|i| *i), inside.iter().all(|i| *i)) {
                    (false, _) => return Ok(()),
                    (true, true) => self.pass(command, out)?,
                    (true, false) => take_apart(command, &words, &inside, out)?,
                }
                for key in keys.into_iter().zip(inside).filter_map(|(key, inside)| inside.then_some(key)) {
                    self.name(key, command.at)?;
                }
            }
        }
        self.count += 1;
        Ok(())
    }

    fn pass(&self, command: &Command<'_>, out: &mut Out) -> Result<()> {
        out.select(command.db)?;
        command.request.pieces(|piece| out.bytes(piece))
    }

    fn name(&mut self, key: Vec<u8>, at: Timestamp) -> Result<()> {
        if let Some(known) = self.keys.get_mut(&key) {
            (known.alive, known.at) = (true, at);
            return Ok(());
        }
        let based = !self.is_emptied(slot_of_key(&key)?, &key)?;
        let _ = self.keys.insert(key, Key { based, alive: true, at });
        Ok(())
    }

    fn is_emptied(&self, slot: u16, key: &[u8]) -> Result<bool> {
        let (db, _) = split_redis_key(key)?;
        let holds = |of: Option<u64>| self.emptied.get(&of).is_some_and(|slots| slots.contains(slot));
        Ok(!self.emptied.is_empty() && (holds(None) || holds(Some(db))))
    }

    /// A database, or all of them, was emptied by the node of `command`.
    fn empty(&mut self, db: Option<u64>, command: &Command<'_>, scope: &Scope, out: &mut Out) -> Result<()> {
        let slots = scope.slots.intersect(command.owner);
        if slots.is_empty() {
            return Ok(());
        }
        if self.everything {
            // The server holds all that counts, by now under other names: it knows what to drop.
            if slots != scope.slots {
                return Err(Error::unsupported("it empties a node's databases after others were swapped"));
            }
            return self.pass(command, out);
        }
        let mut gone: HashMap<u64, Vec<Vec<u8>>> = HashMap::new();
        for (key, known) in self.keys.iter_mut().filter(|(_, known)| known.alive) {
            let (of, name) = split_redis_key(key)?;
            if db.is_none_or(|db| db == of) && slots.contains(slot_of(name)) {
                known.alive = false;
                gone.entry(of).or_default().push(name.to_vec());
            }
        }
        for (of, names) in gone {
            for some in names.chunks(DELETED_AT_ONCE) {
                let args: Vec<&[u8]> = std::iter::once(&b"DEL"[..]).chain(some.iter().map(Vec::as_slice)).collect();
                out.request(of, &args)?;
            }
        }
        let emptied = self.emptied.entry(db).or_insert(SlotSet::EMPTY);
        *emptied = emptied.union(&slots);
        Ok(())
    }

    /// What becomes of the base's record of a key that counts.
    pub fn fate(&self, slot: u16, key: &[u8]) -> Result<Fate> {
        Ok(match self.keys.get(key) {
            Some(Key { based: true, .. }) => Fate::Needed,
            Some(_) => Fate::Void,
            None if self.is_emptied(slot, key)? => Fate::Void,
            None if self.everything => Fate::Needed,
            None => Fate::Stays,
        })
    }

    /// When a key was last named.
    pub fn written(&self, key: &[u8]) -> Option<Timestamp> {
        self.keys.get(key).map(|key| key.at)
    }

    /// Whether nothing of the base changes.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The keys of records that it names, unless it touches others as well.
    pub fn keys(&self) -> Option<impl Iterator<Item = &[u8]>> {
        let all = !self.everything && self.emptied.is_empty();
        all.then(|| self.keys.keys().map(Vec::as_slice))
    }
}

fn tied(words: &[Vec<u8>]) -> Error {
    Error::unsupported(format!("`{}` ties keys together of which not all are at hand here", name_of(words)))
}

/// Writes the part of a command that is about the keys inside.
fn take_apart(command: &Command<'_>, words: &[Vec<u8>], inside: &[bool], out: &mut Out) -> Result<()> {
    let each = words_of_each_key(words);
    if each == 0 {
        return Err(tied(words));
    }
    // Values are needed whole here.
    let whole = match &command.request {
        Request::Held(_) => command.request.words(u64::MAX)?,
        Request::Long(long) if long.len() <= MOST_TAKEN_APART as u64 => command.request.words(u64::MAX)?,
        Request::Long(long) => {
            return Err(Error::unsupported(format!(
                "`{}` of {} bytes names keys of several parts: at most {MOST_TAKEN_APART} can be taken apart",
                name_of(words),
                long.len()
            )));
        }
    };
    let keys = whole[1..].chunks(each).zip(inside).filter(|(_, inside)| **inside);
    let args: Vec<&[u8]> =
        std::iter::once(&whole[0][..]).chain(keys.flat_map(|(words, _)| words.iter().map(Vec::as_slice))).collect();
    out.request(command.db, &args)
}

/// The keys that commands tie to `keys`, themselves included: reads the log until no more are found. `None` where not only keys
/// are touched (swapped databases, sorts by other keys).
pub fn tied_to(
    log: &Ordered,
    mut keys: HashSet<Vec<u8>>,
    commands: &Commands,
    dir: &Path,
) -> Result<Option<HashSet<Vec<u8>>>> {
    loop {
        let (before, mut reader) = (keys.len(), log.commands(dir));
        while let Some(command) = reader.next()? {
            let words = command.request.words(MOST_OF_WORD)?;
            match about(commands, command.db, &words)? {
                About::Everything => return Ok(None),
                About::Keys(named) if ties_keys(&words) && named.iter().any(|key| keys.contains(key)) => {
                    keys.extend(named);
                }
                _ => {}
            }
        }
        if keys.len() == before {
            return Ok(Some(keys));
        }
    }
}
