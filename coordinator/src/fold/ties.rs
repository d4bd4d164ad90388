//! Which commands tie keys together.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt;
use tidemark_common::redis::fold::{Fate, Fold, Folded, Scope, ScratchServer};
use tidemark_common::redis::keys::Commands;
use tidemark_common::redis::log::Ordered;
use tidemark_common::redis::named::{About, about, tied_to, ties_keys};
use tidemark_common::redis::resp::read_command;
use tidemark_common::run::Entry;
use tidemark_common::segment::each_entry;
use tidemark_proto::stored::log::{EntryKind, LogEntry, database};
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::stored::run::sort_key;
use tidemark_proto::{Result, SlotSet, Timestamp, slot_of};

use crate::blocks::READ_SPAN;
use crate::log::{LogParts, Piece};
use crate::repository::Manifest;
use tidemark_common::record::split_redis_key;

/// Longest word of a command that is looked at, in bytes.
const MOST_OF_WORD: u64 = 1 << 20;

/// What keeps a log from being followed part by part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tie {
    /// A command about keys of several parts.
    Command {
        /// When it was run.
        at: Timestamp,
        /// Its name.
        command: String,
    },
    /// Nodes exchanged some of these slots of a part: there is no one order of its log.
    Exchanged(SlotSet),
}

impl std::fmt::Display for Tie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command { at, command } => {
                write!(f, "`{command}` at {} ties keys of several parts together", crate::cli::exact(*at))
            }
            Self::Exchanged(slots) => write!(f, "nodes exchanged some of the slots {slots}"),
        }
    }
}

/// Slots and bounds of the parts.
struct Bounds {
    /// Parts of each region whose keys are divided, by first slot.
    parts: Vec<PartEntry>,
}

impl Bounds {
    /// The part of a key.
    fn part(&self, slot: u16, key: &[u8]) -> Option<usize> {
        let sort = sort_key(slot, key);
        self.parts
            .iter()
            .position(|p| p.slots.contains(slot) && p.lower <= sort && (p.upper.is_empty() || sort < p.upper))
    }
}

/// The first command between the backup and `at`, of those that are found first, that ties keys of several parts together; `None`
/// where each part can be followed alone. Commands that this build does not know count as such.
pub async fn ties(manifest: &Manifest, log: &LogParts, at: Timestamp) -> Result<Option<Tie>> {
    let root = manifest.root();
    let (mut pages, mut divided, mut slots) = (manifest.pages(), HashMap::<u16, Vec<PartEntry>>::new(), Vec::new());
    while let Some(page) = pages.next().await {
        for part in page.page?.parts {
            if part.lower.is_empty() {
                slots.push(part.slots.clone());
            }
            if !part.lower.is_empty() || !part.upper.is_empty() {
                divided.entry(part.region).or_default().push(PartEntry { runs: Vec::new(), ..part });
            }
        }
    }
    for slots in &slots {
        if log.were_exchanged(slots, &root.nodes)? {
            return Ok(Some(Tie::Exchanged(slots.clone())));
        }
    }
    let commands = Commands::known();
    let counts = |entry: &LogEntry<'_>| entry.at > root.cut && entry.at <= at;
    let several = |piece: Piece, entry: &LogEntry<'_>| -> Option<String> {
        let (name, found) = named(&commands, entry);
        let owner = || log.owner(piece, &root.nodes);
        let whole =
            |owner: SlotSet| slots.iter().all(|s| s.intersect(&owner).is_empty() || s.minus(&owner).is_empty());
        let alone = match found {
            Some((About::Nothing | About::Functions, _)) => true,
            Some((About::Keys(_), ties)) => !ties,
            Some((About::Emptied(_) | About::Slots(_), _)) => whole(owner()),
            Some((About::Everything, _)) => name == "SWAPDB" && divided.is_empty() && whole(owner()),
            None => false,
        };
        (!alone).then_some(name)
    };
    if let Some(tie) = first(manifest, log, log.everywhere(), counts, several).await? {
        return Ok(Some(tie));
    }
    for (region, parts) in &divided {
        let bounds = Bounds { parts: parts.clone() };
        let several = |_, entry: &LogEntry<'_>| -> Option<String> {
            let (name, found) = named(&commands, entry);
            let alone = match found {
                Some((About::Keys(keys), true)) => {
                    let part = |key: &Vec<u8>| split_redis_key(key).map(|(_, k)| bounds.part(slot_of(k), key)).ok();
                    let mut parts = keys.iter().map(part);
                    let one = parts.next();
                    parts.all(|p| Some(p) == one)
                }
                Some((About::Everything, _)) | None => false,
                Some(_) => true,
            };
            (!alone).then_some(name)
        };
        if let Some(tie) = first(manifest, log, log.pieces(*region), counts, several).await? {
            return Ok(Some(tie));
        }
    }
    Ok(None)
}

/// The first command that keeps the log from being worked off in shares of the slots, whatever slots these are; `None` where there is
/// none. Keys of one slot are in one share always: it is enough to look at commands of several.
pub(super) async fn ties_slots(manifest: &Manifest, log: &LogParts, at: Timestamp) -> Result<Option<Tie>> {
    let (root, commands) = (manifest.root(), Commands::known());
    let counts = |entry: &LogEntry<'_>| entry.at > root.cut && entry.at <= at;
    let several = |piece: Piece, entry: &LogEntry<'_>| -> Option<String> {
        let (name, found) = named(&commands, entry);
        let alone = match found {
            Some((About::Nothing | About::Functions | About::Emptied(_) | About::Slots(_), _)) => true,
            Some((About::Keys(_), ties)) => !ties,
            // Each server swaps what it has of both; where a node has some slots alone, it must not.
            Some((About::Everything, _)) => name == "SWAPDB" && log.owner(piece, &root.nodes) == SlotSet::all(),
            None => false,
        };
        (!alone).then_some(name)
    };
    first(manifest, log, log.everywhere(), counts, several).await
}

/// Name of a command, and what it is about and whether it ties its keys; `None` where that is not known.
fn named(commands: &Commands, entry: &LogEntry<'_>) -> (String, Option<(About, bool)>) {
    let (meta, mut value) = entry.put.unwrap_or_default();
    let known = read_command(&mut value, MOST_OF_WORD).and_then(|words| {
        let found = about(commands, database(meta)?, &words)?;
        Ok((words, found))
    });
    match known {
        Ok((words, found)) => {
            let name = words.first().map(|w| String::from_utf8_lossy(w).to_ascii_uppercase()).unwrap_or_default();
            (name, Some((found, ties_keys(&words))))
        }
        Err(_) => ("a command that this build cannot look into".into(), None),
    }
}

/// The first entry of these chunks that counts and of which `several` gives a name.
async fn first(
    manifest: &Manifest,
    log: &LogParts,
    pieces: &[Piece],
    counts: impl Fn(&LogEntry<'_>) -> bool,
    several: impl Fn(Piece, &LogEntry<'_>) -> Option<String>,
) -> Result<Option<Tie>> {
    let repository = manifest.repository();
    for pieces in log.spans_of(pieces, READ_SPAN) {
        for (piece, sealed) in pieces.iter().zip(log.read(repository, pieces).await?) {
            let (raw, mut found, mut inside) = (log.open(repository, *piece, &sealed)?, None, None);
            each_entry(&raw, |entry| {
                // Pieces behind the first one of a command say nothing.
                let goes_on = inside == Some(entry.at);
                inside = (entry.kind == EntryKind::CommandPart).then_some(entry.at);
                if found.is_none() && !goes_on && counts(&entry) {
                    // Of a command in pieces whose keys lie in one slot the others do not matter: only one is so long.
                    found = several(*piece, &entry).map(|command| Tie::Command { at: entry.at, command });
                }
                Ok(())
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
    }
    Ok(None)
}

/// What a log makes of a few keys and of those that it ties to them; `None` where commands tie keys to others that are not in a log
/// that is not `whole`.
pub(super) fn fold_keys(
    log: &Ordered,
    keys: HashSet<Vec<u8>>,
    whole: bool,
    (server, budget, dir): (&ScratchServer, usize, &Path),
    lookup: impl Fn(&[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>>,
) -> Result<Option<Folded>> {
    let slot = |key: &[u8]| split_redis_key(key).map(|(_, key)| slot_of(key));
    let slots: HashSet<u16> = keys.iter().map(|k| slot(k)).collect::<Result<_>>()?;
    let commands = if log.is_empty() { Arc::default() } else { server.commands(dir)? };
    let Some(keys) = tied_to(log, keys, &commands, dir)? else { return Ok(None) };
    for key in &keys {
        if !whole && !slots.contains(&slot(key)?) {
            return Ok(None);
        }
    }
    let only = Arc::new(keys);
    let scope = Scope { only: Some(only.clone()), ..Scope::slots(SlotSet::all()) };
    let mut fold = Fold::begin(log, scope, server, budget, dir)?;
    for key in only.iter() {
        let slot = slot(key)?;
        if fold.fate(slot, key)? == Fate::Needed
            && let Some((meta, value)) = lookup(key)?
        {
            fold.base(&Entry { slot, key, put: Some((&meta, &value)) }, None)?;
        }
    }
    fold.run().map(Some)
}
