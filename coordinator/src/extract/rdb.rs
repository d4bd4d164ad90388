//! Records as a file that a stock server of Redis or Valkey loads.

use std::io::Write;

use tidemark_common::rdb::{RawValue, RdbWriter, RecordHead, ValueOf, convert, types};
use tidemark_common::record::{RedisMeta, split_redis_key};
use tidemark_common::run::{Entry, LongValue};
use tidemark_proto::{Error, ErrorKind, Result};

use super::{Output, shown};

/// Writes a file. All records have a place in it, also those that have expired: the server drops them when it loads.
pub struct RdbFile<W> {
    /// `None` once it is whole.
    writer: Option<RdbWriter<W>>,
    version: u16,
}

impl<W: Write> RdbFile<W> {
    /// Begins a file of this version of the format; `backup` is noted in it, libraries of functions come first. `Request` for
    /// a version that does not exist.
    pub fn begin(out: W, version: u16, backup: &str, libraries: &[Vec<u8>]) -> Result<Self> {
        let mut writer = RdbWriter::new(out, version)?;
        writer.aux(b"tidemark-backup", backup.as_bytes()).map_err(full)?;
        for code in libraries {
            writer.function(code).map_err(full)?;
        }
        Ok(Self { writer: Some(writer), version })
    }

    /// The type that the value gets in the file. `Unsupported` where servers of the version have none for it.
    fn target(&self, key: &[u8], meta: &RedisMeta) -> Result<u8> {
        let target = convert::type_for_server(self.version, meta.family, meta.type_byte);
        target.ok_or_else(|| {
            let class = types::class_of(meta.type_byte, meta.family).map_or("unknown", |class| class.name());
            Error::unsupported(format!(
                "the value of key `{}` ({class}, RDB type {}) cannot be written for servers of RDB version {}: give a \
                 higher --rdb-version, leave the key out (--keys '!…'), or use --format resp",
                shown(key),
                meta.type_byte,
                self.version
            ))
        })
    }
}

impl<W: Write + Send> Output for RdbFile<W> {
    fn write(&mut self, entry: &Entry<'_>, long: Option<&LongValue>) -> Result<bool> {
        let (meta, value) = entry.put.unwrap_or_default();
        match long {
            Some(long) => self.put(entry, meta, long),
            None => self.put(entry, meta, value),
        }
    }

    fn finish(&mut self) -> Result<()> {
        let writer = self.writer.take().ok_or_else(|| Error::bug("the file is whole"))?;
        writer.finish().map(drop).map_err(full)
    }
}

impl<W: Write> RdbFile<W> {
    fn put<V: RawValue + ?Sized>(&mut self, entry: &Entry<'_>, meta: &[u8], value: &V) -> Result<bool> {
        let (meta, (db, key)) = (RedisMeta::decode(meta)?, split_redis_key(entry.key)?);
        let type_byte = self.target(key, &meta)?;
        let head = RecordHead {
            db,
            key,
            type_byte,
            family: meta.family,
            expire_at_millis: meta.expire_at_millis,
            lru_idle_seconds: meta.idle_seconds,
            lfu_freq: meta.frequency,
        };
        let writer = self.writer.as_mut().ok_or_else(|| Error::bug("a record after the end of the file"))?;
        if type_byte == meta.type_byte {
            writer.begin(&head).map_err(full)?;
            value.pieces(|piece| writer.value(piece).map_err(full))?;
            writer.end()?;
            return Ok(true);
        }
        writer.begin(&head).map_err(full)?;
        convert(meta.type_byte, &mut value.reader(), type_byte, &mut ValueOf(writer))
            .map_err(|e| full(e).context(format_args!("key `{}`", shown(key))))?;
        writer.end()?;
        Ok(true)
    }
}

/// What fails in writing a file fails for want of room, as a rule: another try would not help.
fn full(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Retry => Error::new(ErrorKind::Full, "the records cannot be written").with_source(e),
        _ => e,
    }
}
