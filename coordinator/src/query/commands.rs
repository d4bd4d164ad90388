//! Queries of a log of commands: one key worked off by itself, and the commands that name a key.

use std::collections::BTreeSet;
use std::path::Path;

use futures::FutureExt;
use tidemark_common::glob::KeyFilter;
use tidemark_common::record::split_redis_key;
use tidemark_common::redis::fold::{CommandLog, Folded, Scope, Span};
use tidemark_common::redis::keys::Commands;
use tidemark_common::redis::log::Ordered;
use tidemark_common::redis::named::{About, about};
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::stored::run::sort_key;
use tidemark_proto::{Error, Result, SlotSet, Timestamp, slot_of};
use tokio_util::sync::CancellationToken;

use super::lookup::Version;
use super::{MAX_LIMIT, MAX_SHOWN, Past};
use crate::blocks::READ_SPAN;

/// Memory for sorting the commands of one slot, in bytes.
const SORT_MEMORY: usize = 32 << 20;
/// Words of a command that are shown.
const MAX_WORDS: usize = 16;
/// Bytes of a word that are shown.
const MAX_WORD: usize = 64;
/// Bytes of a word that are looked at for keys.
const MOST_OF_WORD: u64 = 1 << 20;

/// A command as answers show it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct CommandItem {
    /// The database in which it ran.
    pub db: u64,
    /// Its words, long ones cut short; the last is `…` where there are more.
    pub words: Vec<String>,
}

/// Slot of a key, and the key as records have it.
pub(super) type SlotKey = (u16, Vec<u8>);

/// The part of a key, among `parts`.
fn part_of<'p>(parts: &'p [PartEntry], slot: u16, key: &[u8]) -> Result<&'p PartEntry> {
    let sort = sort_key(slot, key);
    let holds =
        |p: &&PartEntry| p.slots.contains(slot) && p.lower <= sort && (p.upper.is_empty() || sort < p.upper);
    parts.iter().find(holds).ok_or_else(|| Error::damaged(format!("no part of the backup holds slot {slot}")))
}

impl Past {
    /// What a key held, by the log of commands over the backup; `None` where it was not there. Worked off are the commands on the
    /// key, and on those that it is tied to.
    pub(super) async fn worked_off(&self, slot: u16, key: Vec<u8>) -> Result<Option<Version>> {
        let found = self.all_worked_off(BTreeSet::from([(slot, key)])).await?;
        Ok(found.into_iter().next().flatten())
    }

    /// What each of some keys held, in their order, as [`Self::worked_off`] tells of one.
    pub(super) async fn all_worked_off(&self, wanted: BTreeSet<SlotKey>) -> Result<Vec<Option<Version>>> {
        let laid = self.laid.as_ref().and_then(|laid| laid.commands());
        let commands = laid.ok_or_else(|| Error::bug("no log of commands"))?;
        let parts = self.parts(|_| true).await?;
        let fold = |slots: SlotSet| {
            let (past, parts) = (self.clone(), parts.clone());
            let lookup = move |key: &[u8]| {
                let slot = super::slot_of_record_key(key)?;
                let version = past.in_backup(part_of(&parts, slot, key)?, slot, key)?;
                Ok(version.and_then(|version| version.put))
            };
            commands.keys(wanted.iter().map(|(_, key)| key.clone()).collect(), slots, lookup).boxed()
        };
        let slots = wanted.iter().map(|(slot, _)| *slot).collect::<BTreeSet<u16>>();
        let mut folded = None;
        if slots.len() == 1 {
            folded =
                fold(slots.into_iter().map(|slot| SlotSet::range(slot, slot)).next().unwrap_or_default()).await?;
        }
        if folded.is_none() {
            folded = fold(SlotSet::all()).await?;
        }
        let folded = match folded {
            Some(folded) => std::sync::Arc::new(folded),
            None => commands.whole(&CancellationToken::new()).await?,
        };
        let past = self.clone();
        let read = move || {
            let each = wanted.iter().map(|(slot, key)| match folded.keeps(*slot, key)? {
                true => past.in_backup(part_of(&parts, *slot, key)?, *slot, key),
                false => of_folded(&folded, *slot, key),
            });
            each.collect()
        };
        tokio::task::spawn_blocking(read).await.map_err(|e| Error::bug("looking keys up").with_source(e))?
    }

    /// Reads the commands of the log at hand that are in `span` into the order of their slots. Blocks.
    fn commands(&self, span: Span, dir: &Path) -> Result<Ordered> {
        let slots = span.slots.clone();
        let mut log = CommandLog::new(span, SORT_MEMORY, dir);
        for group in self.log.groups(&slots, &self.manifest.root().nodes)? {
            log.group(group.slots)?;
            for pieces in self.log.spans_of(&group.pieces, READ_SPAN) {
                self.each_chunk(pieces, |raw| log.push_chunk(raw))?;
            }
        }
        log.finish()
    }

    /// The keys of database `db` that commands behind `from` name, up to `to`; `None` where a command changes others too, or where
    /// there are more than `most`. Blocks.
    pub(super) fn keys_named(
        &self,
        (from, to): (Timestamp, Timestamp),
        (filter, db): (&KeyFilter, u64),
        most: usize,
    ) -> Result<Option<BTreeSet<SlotKey>>> {
        let (known, dir, mut out) = (Commands::known(), std::env::temp_dir(), BTreeSet::new());
        let log = self.commands(Span { after: from, at: to, slots: SlotSet::all() }, &dir)?;
        let mut reader = log.commands(&dir);
        while let Some(command) = reader.next()? {
            let keys = match about(&known, command.db, &command.request.words(MOST_OF_WORD)?) {
                Ok(About::Keys(keys)) => keys,
                Ok(About::Functions | About::Nothing) => continue,
                Ok(About::Emptied(of)) if of.is_some_and(|of| of != db) => continue,
                Ok(About::Emptied(_) | About::Slots(_) | About::Everything) | Err(_) => return Ok(None),
            };
            for record in keys {
                let (of, key) = split_redis_key(&record)?;
                if of == db && filter.takes(key) {
                    let _ = out.insert((slot_of(key), record));
                }
            }
            if out.len() > most {
                return Ok(None);
            }
        }
        Ok(Some(out))
    }

    /// The commands of the whole log at hand that may change a key of a user in database `db`, with their times. Blocks.
    pub(super) fn commands_on(&self, slot: u16, (db, key): (u64, &[u8])) -> Result<Vec<(Timestamp, CommandItem)>> {
        let (mut record, slots, dir) = (Vec::new(), SlotSet::range(slot, slot), std::env::temp_dir());
        tidemark_common::record::redis_key(db, key, &mut record);
        let log = self.commands(Span { after: Timestamp::ZERO, at: Timestamp::MAX, slots }, &dir)?;
        let (commands, mut out) = (Commands::known(), Vec::new());
        let mut reader = log.commands(&dir);
        while let Some(command) = reader.next()? {
            let words = command.request.words(MOST_OF_WORD)?;
            let named = match about(&commands, command.db, &words) {
                Ok(About::Keys(keys)) => keys.contains(&record),
                Ok(About::Emptied(of)) => of.is_none_or(|of| of == db) && command.of.emptied.contains(slot),
                Ok(About::Slots(slots)) => slots.contains(slot) && command.of.emptied.contains(slot),
                Ok(About::Everything) => true,
                Ok(About::Functions | About::Nothing) => false,
                // Its keys are not known here: it is shown where it has the word.
                Err(_) => command.db == db && words.iter().any(|word| word == key),
            };
            if named {
                out.push((command.at, CommandItem { db: command.db, words: shown_words(&words) }));
            }
            if out.len() > MAX_LIMIT {
                return Err(Error::unsupported(format!("more than {MAX_LIMIT} commands on one key")));
            }
        }
        Ok(out)
    }
}

/// The record of a key that the log has something to say of.
fn of_folded(folded: &Folded, slot: u16, key: &[u8]) -> Result<Option<Version>> {
    let mut overlay = folded.overlay(&Scope::slots(SlotSet::range(slot, slot)))?;
    while overlay.advance()? {
        let entry = overlay.current()?;
        if entry.key != key {
            continue;
        }
        let (meta, value) = entry.put.unwrap_or_default();
        let value = match overlay.long()? {
            Some(long) => long.whole(MAX_SHOWN as usize)?,
            None => value.to_vec(),
        };
        let put = Some((meta.to_vec(), value));
        return Ok(Some(Version { at: folded.written(slot, key), put }));
    }
    Ok(Some(Version { at: folded.written(slot, key), put: None }))
}

/// Words for people: cut short, and not too many.
fn shown_words(words: &[Vec<u8>]) -> Vec<String> {
    let word = |word: &Vec<u8>| {
        let text = String::from_utf8_lossy(&word[..word.len().min(MAX_WORD)]).into_owned();
        if word.len() > MAX_WORD { text + "…" } else { text }
    };
    let mut out: Vec<String> = words.iter().take(MAX_WORDS).map(word).collect();
    if words.len() > MAX_WORDS {
        out.push("…".into());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_short() {
        let words: Vec<Vec<u8>> = vec![b"SET".to_vec(), vec![b'x'; 65]];
        assert_eq!(shown_words(&words), ["SET".to_owned(), "x".repeat(64) + "…"]);
        let many = shown_words(&vec![b"w".to_vec(); 17]);
        assert_eq!((many.len(), many[16].as_str()), (17, "…"));
    }
}
