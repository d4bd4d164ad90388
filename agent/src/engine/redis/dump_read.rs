//! Reading RDB files that are imported: what their heads say, their records, and all of them together.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::rdb::{Family, RdbSink, RecordHead, ValueSummary};
use tidemark_common::record::split_redis_key;
use tidemark_proto::wire::control::Setting;
use tidemark_proto::{Error, Result, Timestamp};

use super::base::BaseSink;
use super::merge::State;
use crate::engine::{ChangeVisitor, Next, PackedVisitor, RecordVisitor, ScanRange, Scanned, Snapshot};

/// Bytes of a file read at once.
const READ: usize = 256 << 10;

/// Learns who wrote a file, and ends at its first record.
#[derive(Default)]
pub(super) struct Head {
    pub(super) seen: bool,
    pub(super) version: String,
}

impl RdbSink for Head {
    fn header(&mut self, family: Family, _: u16) -> Result<()> {
        self.seen = true;
        self.version = if family == Family::Valkey { "valkey".into() } else { "redis".into() };
        Ok(())
    }

    fn aux(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let value = String::from_utf8_lossy(value);
        match key {
            b"redis-ver" => self.version = format!("redis {value}"),
            b"valkey-ver" => self.version = format!("valkey {value}"),
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, _: &RecordHead<'_>) -> Result<()> {
        Err(Error::cancelled("the head is read"))
    }

    fn value(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _: ValueSummary) -> Result<()> {
        Ok(())
    }
}

/// Sorts the records of a file; `shift` is by how many milliseconds their expiry moves, once the file has said when it was
/// written.
pub(super) struct FileSink {
    pub(super) inner: BaseSink,
    pub(super) shift: Option<i64>,
    /// Seconds since 1970 at which the file was written, and the server's version, as far as it says.
    pub(super) written: i64,
    pub(super) by: String,
}

impl FileSink {
    /// Where its records come from, for people.
    pub(super) fn told(&self, path: &Path) -> Setting {
        let name = path.file_name().map_or_else(Default::default, |n| n.to_string_lossy());
        let value = format!("written at {} (seconds since 1970) by {}", self.written, self.by);
        Setting { name: format!("file {name}"), value }
    }
}

impl RdbSink for FileSink {
    fn aux(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(value);
        match key {
            b"ctime" => {
                self.written =
                    text.parse().map_err(|_| Error::damaged(format!("ctime of the file is `{text}`")))?;
                let now = SystemClock.millis() as i64;
                self.shift = self.shift.map(|_| now - self.written.saturating_mul(1000));
            }
            b"redis-ver" => self.by = format!("redis {text}"),
            b"valkey-ver" => self.by = format!("valkey {text}"),
            _ => {}
        }
        Ok(())
    }

    fn function(&mut self, code: &[u8]) -> Result<()> {
        self.inner.function(code)
    }

    fn begin(&mut self, head: &RecordHead<'_>) -> Result<()> {
        let shift = self.shift.unwrap_or(0);
        let expire_at_millis = head.expire_at_millis.map(|at| at.saturating_add(shift));
        self.inner.begin(&RecordHead { expire_at_millis, ..*head })
    }

    fn value(&mut self, piece: &[u8]) -> Result<()> {
        self.inner.value(piece)
    }

    fn end(&mut self, summary: ValueSummary) -> Result<()> {
        self.inner.end(summary)
    }
}

/// Counts what is read, over all files, and ends early.
pub(super) struct Watched<'a> {
    pub(super) file: File,
    pub(super) done: &'a mut u64,
    pub(super) cancel: &'a dyn Fn() -> bool,
    pub(super) progress: &'a dyn Fn(u64),
}

impl Read for Watched<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if (self.cancel)() {
            return Err(std::io::Error::other("cancelled"));
        }
        let most = buf.len().min(READ);
        let len = self.file.read(&mut buf[..most])?;
        *self.done += len as u64;
        (self.progress)(*self.done);
        Ok(len)
    }
}

/// Refuses a key that is that of the record before, `last`, which it takes the place of. No key is empty: its database stands
/// first.
fn alone(last: &mut Vec<u8>, key: &[u8]) -> Result<()> {
    if *last == key {
        let (db, name) = split_redis_key(key)?;
        return Err(Error::conflict(format!(
            "key `{}` of database {db} stands in two of the files: import files of one moment of one server, or one of each \
             shard of a Cluster",
            String::from_utf8_lossy(name)
        )));
    }
    last.clear();
    last.extend_from_slice(key);
    Ok(())
}

/// The records, of which no two may have one key.
pub(super) struct DumpSnapshot(pub(super) Arc<State>);

impl Snapshot for DumpSnapshot {
    fn at(&self) -> Timestamp {
        self.0.at
    }

    fn scan(&self, range: &ScanRange, visit: &mut RecordVisitor<'_>) -> Result<()> {
        let mut last = Vec::new();
        self.0.scan(range, &mut |record| {
            alone(&mut last, record.key)?;
            visit(record)
        })
    }

    fn scan_packed(&self, range: &ScanRange, visit: &mut PackedVisitor<'_>) -> Result<()> {
        let mut last = Vec::new();
        self.0.scan_packed(range, &mut |scanned| {
            let key = match &scanned {
                Scanned::Record(record) => record.key,
                Scanned::Long(record) => record.key,
                // Two files may have a key of it.
                Scanned::Packed(_) => return Ok(Next::Open),
            };
            alone(&mut last, key)?;
            visit(scanned)
        })
    }

    fn changes(&self, _: Timestamp, _: &ScanRange, _: &mut ChangeVisitor<'_>) -> Result<()> {
        Err(Error::unsupported("files keep no changes"))
    }
}
