//! Records as commands that `redis-cli --pipe` sends to a server ([`tidemark_common::rdb::commands`]).

use std::io::Write;

use tidemark_common::rdb::RawValue;
use tidemark_common::rdb::commands::{CommandSink, MOST_STRING, command, put_key};
use tidemark_common::record::{RedisMeta, split_redis_key};
use tidemark_common::run::{Entry, LongValue};
use tidemark_proto::{Error, Result};

use super::{Output, shown, unwritten};

/// Writes commands.
pub struct Commands<W> {
    out: Out<W>,
    db: Option<u64>,
    now_millis: i64,
}

impl<W: Write> Commands<W> {
    /// Commands to `out`, which should be buffered; keys that have expired at `now_millis` are left out.
    pub fn new(out: W, now_millis: i64) -> Self {
        Self { out: Out(out), db: None, now_millis }
    }
}

impl<W: Write> Commands<W> {
    /// Commands that load libraries of functions.
    pub fn load(&mut self, libraries: &[Vec<u8>]) -> Result<()> {
        libraries.iter().try_for_each(|code| command(&mut self.out, &[b"FUNCTION", b"LOAD", b"REPLACE", code]))
    }
}

struct Out<W>(W);

impl<W: Write> CommandSink for Out<W> {
    fn command(&mut self) -> Result<()> {
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).map_err(unwritten)
    }
}

impl<W: Write + Send> Output for Commands<W> {
    /// A key that has expired has no place.
    fn write(&mut self, entry: &Entry<'_>, long: Option<&LongValue>) -> Result<bool> {
        let (meta, value) = entry.put.unwrap_or_default();
        match long {
            Some(long) => self.put(entry, meta, long),
            None => self.put(entry, meta, value),
        }
    }

    fn finish(&mut self) -> Result<()> {
        self.out.0.flush().map_err(unwritten)
    }
}

impl<W: Write> Commands<W> {
    fn put<V: RawValue + ?Sized>(&mut self, entry: &Entry<'_>, meta: &[u8], value: &V) -> Result<bool> {
        let (meta, (db, key)) = (RedisMeta::decode(meta)?, split_redis_key(entry.key)?);
        if meta.expire_at_millis.is_some_and(|at| at <= self.now_millis) {
            return Ok(false);
        }
        if self.db != Some(db) {
            command(&mut self.out, &[b"SELECT", db.to_string().as_bytes()])?;
            self.db = Some(db);
        }
        let made = put_key(&mut self.out, key, &meta, value, MOST_STRING)?;
        made.ok_or_else(|| {
            Error::unsupported(format!(
                "the value of key `{}` is of a module (RDB type {}), which no known commands make: use --format rdb, or \
                 leave the key out (--keys '!…')",
                shown(key),
                meta.type_byte
            ))
        })?;
        Ok(true)
    }
}
