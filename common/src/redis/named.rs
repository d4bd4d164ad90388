//! What a log of commands names, and the commands as a primary sends them: those that count for some keys, and no others.
//!
//! A node that empties a database empties its own slots alone, while the commands of several nodes go to one server. So in the place
//! of `FLUSHALL` and `FLUSHDB` come deletions of all keys that were named up to then; what the base holds of these slots is
//! void, and is not looked at any more.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use tidemark_proto::stored::log::ALL_SLOTS;
use tidemark_proto::{Error, Result, SlotSet, Timestamp, slot_of};

use super::about::{name_of, slot_of_key, words_of_each_key};
use super::keys::Commands;
use super::log::{Command, Ordered, Request};
use super::resp::first_two;
use crate::record::{redis_key, split_redis_key};
use crate::run::LongValue;

mod out;
mod slots;

pub(super) use out::Out;
use slots::Slots;

pub use super::about::{About, about, ties_keys};

/// Bytes of a word of a command that are looked at: keys are not longer, or cannot be backed up; values do not matter.
const MOST_OF_WORD: u64 = 1 << 20;
/// Keys that one deletion names.
const DELETED_AT_ONCE: usize = 512;
/// Longest command that is taken apart, in bytes: those that name keys of other parts as well.
const MOST_TAKEN_APART: usize = 64 << 20;
/// Commands that may choose databases by themselves.
const SCRIPTS: [&str; 3] = ["EVAL", "EVALSHA", "FCALL"];

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
        let slot = slot.to_be_bytes();
        let below = |bound: &[u8]| (&slot[..], key) < bound.split_at_checked(2).unwrap_or((bound, &[]));
        !below(&self.lower) && (self.upper.is_empty() || below(&self.upper))
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
#[derive(Debug, Default)]
pub struct Named {
    /// Users choose the keys: the hash is seeded at random.
    keys: HashMap<Vec<u8>, Key, foldhash::fast::RandomState>,
    /// The key at hand.
    key: Vec<u8>,
    /// The slots of these keys, a bit each.
    slots: Slots,
    /// The highest database of them; of all, where that is not known.
    highest: u64,
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

impl Named {
    /// The next command of a log, in order. One on keys that do not count is left out; `Unsupported` names one that ties keys that count
    /// to others, and one whose keys are not known. In memory are the keys that are named; what counts goes to `out`.
    pub(super) fn take(
        &mut self,
        command: &Command<'_>,
        scope: &Scope,
        commands: &Commands,
        out: &mut Out,
    ) -> Result<()> {
        let done = match one_key(command, commands) {
            Some(_) if scope.functions => return Ok(()),
            Some((key, request)) => self.take_one(command, scope, (key, request), out),
            None => self.take_any(command, scope, commands, out),
        };
        done.map_err(|e| {
            let (at, when) = (command.at, command.at.millis());
            e.context(format_args!("a command of the log at {at} ({when} ms since 1970)"))
        })
    }

    /// There are no more commands.
    pub(super) fn finish(&mut self, out: Out) -> Result<()> {
        self.highest = if self.everything { u64::MAX } else { self.highest.max(out.highest) };
        self.commands = out.finish()?;
        Ok(())
    }

    /// The highest database that it knows of: of a command, and of every key that one names. [`u64::MAX`] where more may be touched.
    pub(super) fn highest(&self) -> u64 {
        self.highest
    }

    /// A command on one key, which is what most commands are, and there are very many.
    fn take_one(
        &mut self,
        command: &Command<'_>,
        scope: &Scope,
        (key, request): (&[u8], &[u8]),
        out: &mut Out,
    ) -> Result<()> {
        let slot = if command.slot == ALL_SLOTS { slot_of(key) } else { command.slot };
        redis_key(command.db, key, &mut self.key);
        if !scope.takes(slot, &self.key) || (command.slot == ALL_SLOTS && !command.of.counted.contains(slot)) {
            return Ok(());
        }
        out.select(command.db)?;
        out.bytes(request)?;
        self.count += 1;
        if let Some(known) = self.keys.get_mut(&self.key) {
            (known.alive, known.at) = (true, command.at);
            return Ok(());
        }
        let key = self.key.clone();
        self.add(key, slot, command.at)
    }

    fn take_any(&mut self, command: &Command<'_>, scope: &Scope, commands: &Commands, out: &mut Out) -> Result<()> {
        let words = command.request.words(MOST_OF_WORD)?;
        match about(commands, command.db, &words)? {
            About::Functions if scope.functions => {
                self.functions = true;
                self.pass(command, out)?;
            }
            About::Nothing | About::Functions => return Ok(()),
            _ if scope.functions => return Ok(()),
            About::Emptied(db) => {
                let slots = scope.slots.intersect(&command.of.emptied);
                if !self.everything {
                    self.empty(db, &slots, out)?;
                } else if slots == scope.slots {
                    // The server holds all that counts, by now under other names: it knows what to drop.
                    self.pass(command, out)?;
                } else if !slots.is_empty() {
                    return Err(Error::unsupported("it empties a node's databases after others were swapped"));
                }
            }
            About::Slots(slots) => {
                let slots = slots.intersect(&scope.slots).intersect(&command.of.emptied);
                if self.everything && !slots.is_empty() {
                    return Err(Error::unsupported("it deletes the keys of slots after databases were swapped"));
                }
                self.empty(None, &slots, out)?;
            }
            About::Everything => {
                // What is swapped or looked up by it lies in other slots than those that count, unless it is a swap.
                let swap = name_of(&words) == "SWAPDB";
                let bounded = scope.only.is_some() || !scope.lower.is_empty() || !scope.upper.is_empty();
                let whole = !bounded && scope.slots.minus(&command.of.emptied).is_empty();
                if !(whole && (swap || scope.is_all())) {
                    return Err(tied(&words));
                }
                self.everything = true;
                self.pass(command, out)?;
            }
            About::Keys(keys) => {
                if SCRIPTS.contains(&name_of(&words).as_str()) {
                    self.highest = u64::MAX;
                }
                let mut inside = Vec::with_capacity(keys.len());
                for key in &keys {
                    let slot = slot_of_key(key)?;
                    inside.push(scope.takes(slot, key) && command.of.counted.contains(slot));
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
        let slot = slot_of_key(&key)?;
        self.add(key, slot, at)
    }

    /// A key that was not named before.
    fn add(&mut self, key: Vec<u8>, slot: u16, at: Timestamp) -> Result<()> {
        let based = !self.is_emptied(slot, &key)?;
        self.highest = self.highest.max(split_redis_key(&key)?.0);
        self.slots.insert(slot);
        let _ = self.keys.insert(key, Key { based, alive: true, at });
        Ok(())
    }

    fn is_emptied(&self, slot: u16, key: &[u8]) -> Result<bool> {
        let (db, _) = split_redis_key(key)?;
        let holds = |of: Option<u64>| self.emptied.get(&of).is_some_and(|slots| slots.contains(slot));
        Ok(!self.emptied.is_empty() && (holds(None) || holds(Some(db))))
    }

    /// A database, or all of them, was emptied in these slots.
    fn empty(&mut self, db: Option<u64>, slots: &SlotSet, out: &mut Out) -> Result<()> {
        if slots.is_empty() {
            return Ok(());
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
        *emptied = emptied.union(slots);
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

    /// Whether the base may have records of these slots that do not stay.
    pub fn touches(&self, slots: &SlotSet) -> bool {
        self.everything || !self.emptied.is_empty() || self.slots.any_of(slots)
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

/// The key of a command that touches one key and nothing else, and the command's bytes.
fn one_key<'a>(command: &'a Command<'_>, commands: &Commands) -> Option<(&'a [u8], &'a [u8])> {
    let Request::Held(request) = &command.request else { return None };
    let (name, key) = first_two(request).filter(|(_, key)| key.len() as u64 <= MOST_OF_WORD)?;
    commands.one_key(&[name, key]).map(|key| (key, *request))
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
