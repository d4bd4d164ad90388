//! Keys that begin with a prefix, at one time.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use tidemark_common::record::{split_redis_key, user_key};
use tidemark_proto::stored::run::sort_key;
use tidemark_proto::{Error, Result};

use super::past::Visit;
use super::{MAX_ANSWER_BYTES, Past, Where, bytes_of, limit, shown, wanted};
use crate::repository::{Ledger, Repository};

/// A scan as it is asked for.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct ScanQuery {
    /// Where.
    #[serde(flatten)]
    pub place: Where,
    /// What keys begin with; empty for all.
    #[serde(default)]
    pub prefix: String,
    /// The prefix is given as base64.
    #[serde(default)]
    pub base64: bool,
    /// When, a raw timestamp; the newest restore point where absent.
    #[serde(default)]
    pub at: Option<u64>,
    /// Most records of the answer.
    #[serde(default = "super::default_limit")]
    pub limit: usize,
    /// Where an earlier answer of the same time said that it goes on; empty to begin.
    #[serde(default)]
    pub cursor: String,
}

/// One record.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct ScanItem {
    /// The record, as `repo extract` writes it.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub record: serde_json::Map<String, serde_json::Value>,
}

/// What a scan found.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Page {
    /// The restore point that was read, a raw timestamp.
    pub at: u64,
    /// The backup under it.
    pub backup: String,
    /// The records, part by part, of each by slot and key.
    pub records: Vec<ScanItem>,
    /// Where it goes on; empty at the end.
    pub cursor: String,
}

#[derive(Debug, Default)]
struct Gathered {
    records: Vec<ScanItem>,
    bytes: usize,
    /// Sort key of the first record that did not fit.
    next: Option<Vec<u8>>,
}

/// Records whose keys begin with a prefix.
pub async fn scan(repository: &Repository, ledger: &Ledger, query: &ScanQuery) -> Result<Page> {
    let most = limit(query.limit)?;
    let past = Past::open(repository, ledger, wanted(query.at)).await?;
    let prefix = bytes_of(&query.prefix, query.base64)?;
    let _ = past.key(query.place.db, &prefix)?;
    let (first, mut from) = cursor_of(&query.cursor)?;
    let gathered = Arc::new(Mutex::new(Gathered::default()));
    let (db, sink) = (query.place.db, gathered.clone());
    let mut visit: Visit = Box::new(move |entry, long| {
        let (meta, value) = entry.put.unwrap_or_default();
        let own = meta.first() != Some(&tidemark_common::record::REDIS) || split_redis_key(entry.key)?.0 == db;
        if !own || !user_key(entry.key, meta).starts_with(&prefix) {
            return Ok(ControlFlow::Continue(()));
        }
        let mut gathered = sink.lock().expect("no panic while held");
        let size = entry.key.len() + long.map_or(value.len(), |l| usize::try_from(l.len()).unwrap_or(usize::MAX));
        if gathered.records.len() == most || (gathered.bytes + size > MAX_ANSWER_BYTES && gathered.bytes > 0) {
            gathered.next = Some(sort_key(entry.slot, entry.key));
            return Ok(ControlFlow::Break(()));
        }
        gathered.bytes += size;
        match shown(entry, long)? {
            serde_json::Value::Object(record) => gathered.records.push(ScanItem { record }),
            _ => return Err(Error::bug("a record that is no object")),
        }
        Ok(ControlFlow::Continue(()))
    });
    let parts = past.parts(|_| true).await?;
    let mut cursor = String::new();
    for (number, part) in parts.into_iter().enumerate().skip(first) {
        let (whole, back) = past.walk(part, std::mem::take(&mut from), visit).await?;
        visit = back;
        if !whole {
            let next = gathered.lock().expect("no panic while held").next.take().unwrap_or_default();
            cursor = format!("{number}-{}", data_encoding::HEXLOWER.encode(&next));
            break;
        }
    }
    let records = std::mem::take(&mut gathered.lock().expect("no panic while held").records);
    Ok(Page { at: past.at.0, backup: past.backup(), records, cursor })
}

/// Place among the parts, and sort key, that a cursor names.
fn cursor_of(text: &str) -> Result<(usize, Vec<u8>)> {
    if text.is_empty() {
        return Ok((0, Vec::new()));
    }
    let parsed = text
        .split_once('-')
        .and_then(|(part, key)| Some((part.parse().ok()?, data_encoding::HEXLOWER.decode(key.as_bytes()).ok()?)));
    parsed.ok_or_else(|| Error::request(format!("`{text}` is no cursor: take the one of the answer before")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back() {
        assert_eq!(cursor_of("").unwrap(), (0, vec![]));
        assert_eq!(cursor_of("12-00ff61").unwrap(), (12, vec![0, 0xff, b'a']));
        for bad in ["x", "1", "-", "1-0", "1-zz"] {
            assert!(cursor_of(bad).is_err(), "{bad}");
        }
    }
}
