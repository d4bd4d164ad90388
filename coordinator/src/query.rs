//! Queries of the past: what a key held at a time, without a restore and without a node. Read is only what is needed: pages of
//! the manifest, indexes and blocks that can hold the keys asked for, chunks of the log of their regions.

mod commands;
mod diff;
mod history;
mod lookup;
mod past;
mod scan;

use tidemark_common::run::{Entry, LongValue};
use tidemark_proto::{ClusterName, Error, Result, Timestamp};

use crate::extract::{Encoding, Lines, Output};

pub use commands::CommandItem;
pub use diff::{DiffItem, DiffQuery, Difference, diff};
pub use history::{History, HistoryItem, HistoryQuery, history};
pub use lookup::{Found, GetQuery, get};
pub use past::Past;
pub use scan::{Page, ScanItem, ScanQuery, scan};

/// Most records that one answer holds.
pub const MAX_LIMIT: usize = 10_000;
/// Records that an answer holds unless asked for otherwise.
pub const DEFAULT_LIMIT: usize = 100;
/// Most bytes of keys and values of one answer.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Longest value that is shown, in bytes.
const MAX_SHOWN: u64 = 16 << 20;

fn default_limit() -> usize {
    DEFAULT_LIMIT
}

/// A limit as it is asked for, in its bounds.
fn limit(wanted: usize) -> Result<usize> {
    match wanted {
        1..=MAX_LIMIT => Ok(wanted),
        _ => Err(Error::request(format!("a limit of {wanted}: 1 to {MAX_LIMIT}"))),
    }
}

/// Which cluster is asked for, when, and in which of its databases.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Where {
    /// The cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// Database of the keys (Redis and Valkey).
    #[serde(default)]
    pub db: u64,
}

/// The slot of the key of a record of Redis.
fn slot_of_record_key(key: &[u8]) -> Result<u16> {
    tidemark_common::record::split_redis_key(key).map(|(_, key)| tidemark_proto::slot_of(key))
}

/// The bytes of a key that was given as text, or as base64.
fn bytes_of(text: &str, base64: bool) -> Result<Vec<u8>> {
    match base64 {
        false => Ok(text.as_bytes().to_vec()),
        true => data_encoding::BASE64
            .decode(text.as_bytes())
            .map_err(|e| Error::request(format!("`{text}` is no base64")).with_source(e)),
    }
}

/// A record as answers show it: the form of `repo extract`.
fn shown(entry: &Entry<'_>, long: Option<&LongValue>) -> Result<serde_json::Value> {
    if long.is_some_and(|long| long.len() > MAX_SHOWN) {
        return Err(Error::unsupported(format!(
            "a value of slot {} is longer than {MAX_SHOWN} bytes: take it with `repo extract`",
            entry.slot
        )));
    }
    let mut lines = Lines::new(Vec::new(), Encoding::Auto);
    let _ = lines.write(entry, long)?;
    serde_json::from_slice(&lines.into_inner()).map_err(|e| Error::bug("a record as JSON").with_source(e))
}

/// The time that a query means: the newest there is, where none is given.
fn wanted(at: Option<u64>) -> Timestamp {
    at.map_or(Timestamp::MAX, Timestamp)
}
