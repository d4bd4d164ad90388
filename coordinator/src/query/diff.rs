//! What changed between two times.
//!
//! Where the log knows every change between both, it names the keys, and only those are looked up. Else both states must
//! be cuts of backups: they are read side by side. So are states of a log of commands where one of these changes more than what it
//! names, or where they name very many keys.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use futures::FutureExt;
use tidemark_common::glob::KeyFilter;
use tidemark_common::overlay::{LogSorter, Wanted};
use tidemark_common::record::{record_hash_of, user_key};
use tidemark_common::run::{Entry, LongValue, record_hash};
use tidemark_common::select::Selection;
use tidemark_proto::{Error, Result, SlotSet, Timestamp};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::commands::SlotKey;
use super::lookup::Version;
use super::{Past, Where, limit, shown};
use crate::extract::{self, Output};
use crate::log;
use crate::repository::{Ledger, Repository};

/// Memory for sorting the keys of one region, in bytes.
const SORT_MEMORY: usize = 32 << 20;
/// Most keys that are looked up one by one: to read both states is cheaper than so many small reads.
const MOST_NAMED: usize = 1000;
/// Records read ahead of each state.
const AHEAD: usize = 256;

/// Two times as they are asked for.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct DiffQuery {
    /// Where.
    #[serde(flatten)]
    pub place: Where,
    /// The earlier time, a raw timestamp.
    pub from: u64,
    /// The later time, a raw timestamp; the newest restore point where absent.
    #[serde(default)]
    pub to: Option<u64>,
    /// Key globs; `!` in front excludes; empty takes all.
    #[serde(default)]
    pub keys: Vec<String>,
    /// Most keys of the answer.
    #[serde(default = "super::default_limit")]
    pub limit: usize,
}

/// One key that changed.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct DiffItem {
    /// `added`, `changed` or `removed`.
    pub change: String,
    /// The record before, as `repo extract` writes it.
    #[schema(value_type = Option<Object>)]
    pub before: Option<serde_json::Value>,
    /// The record after.
    #[schema(value_type = Option<Object>)]
    pub after: Option<serde_json::Value>,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Difference {
    /// The earlier restore point, a raw timestamp.
    pub from: u64,
    /// The later one.
    pub to: u64,
    /// The keys, by region, of each by slot and key.
    pub changes: Vec<DiffItem>,
    /// There are more than the limit lets out.
    pub more: bool,
}

/// The keys that differ between two times.
pub async fn diff(repository: &Repository, ledger: &Ledger, query: &DiffQuery) -> Result<Difference> {
    let most = limit(query.limit)?;
    let filter = KeyFilter::new(&query.keys)?;
    let before = Past::open(repository, ledger, Timestamp(query.from)).await?;
    let after = Past::open(repository, ledger, super::wanted(query.to)).await?;
    if after.at < before.at {
        return Err(Error::request("--from is the earlier time, --to the later one"));
    }
    // Stores without databases refuse to be asked for one.
    let _ = after.key(query.place.db, &[])?;
    let (from, to) = (before.at, after.at);
    let (windows, _) = log::windows(repository, ledger).boxed().await?;
    let logged = windows.intervals.iter().any(|i| i.start <= from && to <= i.end);
    let commands = after.has_databases();
    let changes = if from == to {
        Vec::new()
    } else if logged {
        let each = after.manifest.root().slots_per_region;
        let log = log::between(repository, ledger, (from, to), each).boxed().await?;
        let news = Past { log, ..after.clone() };
        match commands {
            true => by_commands((&before, &after, news), (from, to), (filter, query.place.db), most).await?,
            false => {
                let work = move || by_log(&before, &news, (from, to), &filter, most);
                tokio::task::spawn_blocking(work)
                    .await
                    .map_err(|e| Error::bug("comparing two times").with_source(e))??
            }
        }
    } else if before.laid.is_some() || after.laid.is_some() || (before.base() == from && after.base() == to) {
        side_by_side(&before, &after, (filter, query.place.db), most).await?
    } else {
        return Err(Error::unsupported(
            "the log does not lead from one time to the other: name two times of one window (`tidemark pitr status`), \
             or two cuts of backups",
        ));
    };
    let more = changes.len() > most;
    Ok(Difference { from: from.0, to: to.0, changes: changes.into_iter().take(most).collect(), more })
}

fn item(key: (u16, &[u8]), (before, after): (Option<&Version>, Option<&Version>)) -> Result<Option<DiffItem>> {
    let (slot, key) = key;
    let content =
        |v: Option<&Version>| v.and_then(|v| v.put.as_ref()).map(|(meta, value)| record_hash(key, meta, value));
    let change = match (content(before), content(after)) {
        (None, Some(_)) => "added",
        (Some(_), None) => "removed",
        (Some(a), Some(b)) if a != b => "changed",
        _ => return Ok(None),
    };
    let record = |v: Option<&Version>| v.map(|v| v.shown(slot, key)).transpose().map(Option::flatten);
    Ok(Some(DiffItem { change: change.into(), before: record(before)?, after: record(after)? }))
}

/// The keys that the log names, looked up at the earlier time. Blocks.
fn by_log(
    before: &Past,
    news: &Past,
    (from, to): (Timestamp, Timestamp),
    filter: &KeyFilter,
    most: usize,
) -> Result<Vec<DiffItem>> {
    let mut regions: Vec<u16> = news.log.regions().collect();
    regions.sort_unstable();
    let mut out = Vec::new();
    for region in regions {
        let (lower, upper) = Default::default();
        let wanted = Wanted { after: from, at: to, slots: SlotSet::all(), lower, upper };
        let mut sorter = LogSorter::new(wanted, SORT_MEMORY, &std::env::temp_dir());
        for pieces in news.log.spans(region, crate::blocks::READ_SPAN) {
            news.each_chunk(pieces, |raw| sorter.push_chunk(raw))?;
        }
        let mut overlay = sorter.finish()?;
        while overlay.advance()? {
            let entry = overlay.current()?;
            let (slot, key) = (entry.slot, entry.key.to_vec());
            let put = entry.put.map(|(meta, value)| (meta.to_vec(), value.to_vec()));
            let meta = put.as_ref().map_or(&[][..], |(meta, _)| meta.as_slice());
            if !filter.takes(user_key(&key, meta)) {
                continue;
            }
            let old = Handle::current().block_on(before.lookup(slot, key.clone()))?;
            out.extend(item((slot, &key), (old.as_ref(), Some(&Version { at: None, put })))?);
            if out.len() > most {
                return Ok(out);
            }
        }
    }
    Ok(out)
}

/// The keys that commands name, with what was made of them by both times.
async fn by_commands(
    (before, after, news): (&Past, &Past, Past),
    times: (Timestamp, Timestamp),
    (filter, db): (KeyFilter, u64),
    most: usize,
) -> Result<Vec<DiffItem>> {
    let wanted = filter.clone();
    let named = move || news.keys_named(times, (&wanted, db), MOST_NAMED);
    let named =
        tokio::task::spawn_blocking(named).await.map_err(|e| Error::bug("reading commands").with_source(e))?;
    let Some(keys) = named? else { return side_by_side(before, after, (filter, db), most).await };
    let (old, new) = (before.all(keys.clone()).await?, after.all(keys.clone()).await?);
    let mut out = Vec::new();
    for ((slot, key), (old, new)) in keys.iter().zip(old.iter().zip(&new)) {
        out.extend(item((*slot, key), (old.as_ref(), new.as_ref()))?);
    }
    Ok(out)
}

impl Past {
    /// What each of some keys held, in their order.
    async fn all(&self, keys: BTreeSet<SlotKey>) -> Result<Vec<Option<Version>>> {
        if self.laid.is_some() && !keys.is_empty() {
            return self.all_worked_off(keys).await;
        }
        let mut out = Vec::with_capacity(keys.len());
        for (slot, key) in keys {
            out.push(self.lookup(slot, key).await?);
        }
        Ok(out)
    }
}

/// A record of one of two states.
#[derive(Debug)]
struct Sent {
    slot: u16,
    key: Vec<u8>,
    hash: u128,
    record: serde_json::Value,
}

/// Sends records to whoever compares them.
struct Sender(SyncSender<Sent>);

impl Output for Sender {
    fn write(&mut self, entry: &Entry<'_>, long: Option<&LongValue>) -> Result<bool> {
        let (meta, value) = entry.put.unwrap_or_default();
        let hash = match long {
            Some(long) => record_hash_of(entry.key, meta, long)?,
            None => record_hash(entry.key, meta, value),
        };
        let sent = Sent { slot: entry.slot, key: entry.key.to_vec(), hash, record: shown(entry, long)? };
        self.0.send(sent).map(|()| true).map_err(|_| Error::cancelled("enough was compared"))
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Two backups, or states of a log of commands, record by record.
async fn side_by_side(
    before: &Past,
    after: &Past,
    (filter, db): (KeyFilter, u64),
    most: usize,
) -> Result<Vec<DiffItem>> {
    let cancel = CancellationToken::new();
    let open = |past: &Past| {
        let (send, receive) = sync_channel(AHEAD);
        let (manifest, laid, cancel) = (past.manifest.clone(), past.laid.clone(), cancel.clone());
        let dbs = if past.has_databases() { vec![db] } else { Vec::new() };
        let selection = Selection { keys: filter.clone(), slots: SlotSet::all(), dbs };
        let read =
            async move { extract::extract_at(&manifest, laid, selection, Sender(send), &cancel).await.map(drop) };
        (tokio::spawn(read), receive)
    };
    let ((old, old_records), (new, new_records)) = (open(before), open(after));
    let compare = tokio::task::spawn_blocking(move || compare(&old_records, &new_records, most));
    let out = compare.await.map_err(|e| Error::bug("comparing two backups").with_source(e))?;
    cancel.cancel();
    for read in [old, new] {
        match read.await.map_err(|e| Error::bug("reading a backup").with_source(e))? {
            Err(e) if e.kind() == tidemark_proto::ErrorKind::Cancelled && out.len() > most => {}
            other => other?,
        }
    }
    Ok(out)
}

fn compare(old: &Receiver<Sent>, new: &Receiver<Sent>, most: usize) -> Vec<DiffItem> {
    let (mut a, mut b) = (old.recv().ok(), new.recv().ok());
    let mut out = Vec::new();
    while out.len() <= most {
        let order = match (&a, &b) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => (a.slot, &a.key).cmp(&(b.slot, &b.key)),
        };
        let (mut before, mut after) = (None, None);
        if order.is_le() {
            before = std::mem::replace(&mut a, old.recv().ok());
        }
        if order.is_ge() {
            after = std::mem::replace(&mut b, new.recv().ok());
        }
        let change = match (&before, &after) {
            (Some(x), Some(y)) if x.hash == y.hash => continue,
            (Some(_), Some(_)) => "changed",
            (Some(_), None) => "removed",
            _ => "added",
        };
        let (before, after) = (before.map(|s| s.record), after.map(|s| s.record));
        out.push(DiffItem { change: change.into(), before, after });
    }
    out
}
