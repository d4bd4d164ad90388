//! Every version of one key that backups and the log know.

use std::collections::BTreeMap;

use futures::FutureExt;
use tidemark_common::run::record_hash;
use tidemark_common::segment::each_entry;
use tidemark_proto::{Error, Result, Timestamp, slot_of};

use super::lookup::Version;
use super::{CommandItem, MAX_LIMIT, Past, Where, bytes_of};
use crate::log;
use crate::repository::{Ledger, Repository};

/// A key whose history is asked for.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct HistoryQuery {
    /// Where.
    #[serde(flatten)]
    pub place: Where,
    /// The key.
    pub key: String,
    /// The key is given as base64.
    #[serde(default)]
    pub base64: bool,
}

/// One version.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct HistoryItem {
    /// When, a raw timestamp: it was written then (`log`), or at some time up to then (`backup`).
    pub at: u64,
    /// `log` or `backup`.
    pub known_by: String,
    /// The backup that knows it; empty for the log.
    pub backup: String,
    /// The record, as `repo extract` writes it; nothing where the key was deleted or was not there.
    #[schema(value_type = Option<Object>)]
    pub record: Option<serde_json::Value>,
    /// The command that was run then, of a log of commands (which does not tell the record): one that names the key, empties its
    /// database or swaps databases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandItem>,
}

/// What is known of a key, oldest first.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct History {
    /// The versions. Between two of them that lie outside of `complete` there may have been others.
    pub versions: Vec<HistoryItem>,
    /// Stretches of time, raw timestamps, in which the log knows every change.
    pub complete: Vec<(u64, u64)>,
}

/// Every version of a key.
pub async fn history(repository: &Repository, ledger: &Ledger, query: &HistoryQuery) -> Result<History> {
    let user_key = bytes_of(&query.key, query.base64)?;
    let mut known: BTreeMap<Timestamp, (Version, String)> = BTreeMap::new();
    let backups = ledger.backups();
    let last = backups.last().ok_or_else(|| Error::not_found("the cluster has no backup"))?;
    let newest = Past::open(repository, ledger, last.backup.cut).await?;
    let (slot, key) = newest.key(query.place.db, &user_key)?;
    debug_assert_eq!(slot, slot_of(&user_key), "slots are those of users' keys");
    let each = newest.manifest.root().slots_per_region;
    let whole = log::between(repository, ledger, (Timestamp::ZERO, Timestamp::MAX), each).boxed().await?;
    let of_commands = newest.has_databases();
    let reader = Past { log: whole, ..newest };
    let region = slot / each.max(1);
    let (wanted, db) = (key.clone(), query.place.db);
    if of_commands {
        let user_key = user_key.clone();
        let read = move || reader.commands_on(slot, (db, &user_key));
        let read = tokio::task::spawn_blocking(read).await;
        let ran = read.map_err(|e| Error::bug("reading the log of a key").with_source(e))??;
        return of_backups_and(repository, ledger, (slot, key), ran).await;
    }
    let logged = tokio::task::spawn_blocking(move || {
        let mut versions = Vec::new();
        for pieces in reader.log.spans(region, crate::blocks::READ_SPAN) {
            reader.each_chunk(pieces, |raw| {
                each_entry(raw, |e| {
                    if e.slot == slot && e.key == wanted {
                        let put = e.put.map(|(meta, value)| (meta.to_vec(), value.to_vec()));
                        versions.push((e.at, Version { at: Some(e.at), put }));
                    }
                    match versions.len() <= MAX_LIMIT {
                        true => Ok(()),
                        false => Err(Error::unsupported(format!("more than {MAX_LIMIT} versions of one key"))),
                    }
                })
            })?;
        }
        Ok(versions)
    });
    let logged = logged.await.map_err(|e| Error::bug("reading the log of a key").with_source(e))??;
    known.extend(logged.into_iter().map(|(at, version)| (at, (version, String::new()))));
    for record in backups {
        let past = Past::open(repository, ledger, record.backup.cut).await?;
        let version = past.lookup(slot, key.clone()).await?.unwrap_or(Version { at: None, put: None });
        let before = known.range(..=record.backup.cut).next_back().map(|(_, (version, _))| version);
        // What the version before says already is no news; nor is it that a key was not there before anything is known.
        let same = before.map_or(version.put.is_none(), |before| content(before, &key) == content(&version, &key));
        if !same {
            let _ = known.insert(record.backup.cut, (version, record.backup.job.to_string()));
        }
    }
    let (windows, _) = log::windows(repository, ledger).boxed().await?;
    let item = |(at, (version, backup)): (Timestamp, (Version, String))| {
        let known_by = if backup.is_empty() { "log" } else { "backup" }.to_owned();
        Ok(HistoryItem { at: at.0, known_by, backup, record: version.shown(slot, &key)?, command: None })
    };
    Ok(History {
        versions: known.into_iter().map(item).collect::<Result<_>>()?,
        complete: windows.intervals.iter().map(|i| (i.start.0, i.end.0)).collect(),
    })
}

/// The versions that backups know, with the commands between them.
async fn of_backups_and(
    repository: &Repository,
    ledger: &Ledger,
    (slot, key): (u16, Vec<u8>),
    ran: Vec<(Timestamp, CommandItem)>,
) -> Result<History> {
    let command = |(at, command): (Timestamp, CommandItem)| {
        let (known_by, backup) = ("log".to_owned(), String::new());
        HistoryItem { at: at.0, known_by, backup, record: None, command: Some(command) }
    };
    let mut versions: Vec<HistoryItem> = ran.into_iter().map(command).collect();
    let mut before: Option<Option<u128>> = None;
    for record in ledger.backups() {
        let past = Past::open(repository, ledger, record.backup.cut).await?;
        let version = past.lookup(slot, key.clone()).await?.unwrap_or(Version { at: None, put: None });
        let now = content(&version, &key);
        if before.map_or(now.is_some(), |before| before != now) {
            let (known_by, backup) = ("backup".to_owned(), record.backup.job.to_string());
            let (at, record) = (record.backup.cut.0, version.shown(slot, &key)?);
            versions.push(HistoryItem { at, known_by, backup, record, command: None });
        }
        before = Some(now);
    }
    versions.sort_by_key(|version| version.at);
    let (windows, _) = log::windows(repository, ledger).boxed().await?;
    let complete = windows.intervals.iter().map(|i| (i.start.0, i.end.0)).collect();
    Ok(History { versions, complete })
}

/// What a version means, to compare it with another.
fn content(version: &Version, key: &[u8]) -> Option<u128> {
    version.put.as_ref().map(|(meta, value)| record_hash(key, meta, value))
}
