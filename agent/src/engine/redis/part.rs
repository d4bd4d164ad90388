//! A part on its way into a server: records go as `RESTORE` in pipelines.

use std::sync::Arc;

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::crash;
use tidemark_common::rdb::commands::{CommandSink, MOST_STRING, put_key};
use tidemark_common::rdb::convert::type_for_server;
use tidemark_common::rdb::{Crc64, convert, payload};
use tidemark_common::record::{RedisMeta, split_redis_key};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::{Error, Result};

use super::conn::Connection;
use super::load::Shared;
use super::notes::{Expiring, Note};
use super::resp::{put_bulk, put_head, put_request};
use super::target;
use crate::engine::{PartLoader, RecordRef};
use crate::fsutil;

/// Bytes of requests that are sent before the replies to those before them are read.
const BATCH: usize = 256 << 10;
/// Values over this many bytes are sent without copying them.
const LONG: usize = 64 << 10;

/// A part being loaded.
pub(super) struct RedisPart {
    shared: Arc<Shared>,
    number: u32,
    /// Life of the server in which it began.
    life: u64,
    connection: Option<Connection>,
    out: Vec<u8>,
    payload: Vec<u8>,
    /// Requests in `out`, and those whose replies are due.
    queued: usize,
    due: usize,
    /// Bytes of them that were sent from the middle of a command.
    ahead: usize,
    db: u64,
    loaded: SetDigest,
    expiring: Vec<Expiring>,
    expired: u64,
}

impl RedisPart {
    pub(super) fn new(shared: Arc<Shared>, number: u32, life: u64) -> Self {
        Self {
            shared,
            number,
            life,
            connection: None,
            out: Vec::with_capacity(BATCH + (BATCH >> 2)),
            payload: Vec::new(),
            queued: 0,
            due: 0,
            ahead: 0,
            db: 0,
            loaded: SetDigest::default(),
            expiring: Vec::new(),
            expired: 0,
        }
    }

    pub(super) fn connect(&mut self) -> Result<()> {
        self.connection = Some(self.shared.redis.connect()?);
        Ok(())
    }

    fn connection(&mut self) -> Result<&mut Connection> {
        self.connection.as_mut().ok_or_else(|| Error::bug("a part without a connection"))
    }

    /// Sends what is queued, and reads the replies to what was sent before: the server works on one while the other is made.
    fn flush(&mut self) -> Result<()> {
        let out = std::mem::take(&mut self.out);
        let due = std::mem::replace(&mut self.due, self.queued);
        (self.queued, self.ahead) = (0, 0);
        let connection = self.connection()?;
        connection.send(&out)?;
        for _ in 0..due {
            if let Err(e) = connection.reply()?.ok("loading a record") {
                return Err(target::explain(e, &self.shared.redis));
            }
        }
        self.out = out;
        self.out.clear();
        Ok(())
    }

    fn request(&mut self, args: &[&[u8]]) {
        put_request(&mut self.out, args);
        self.queued += 1;
    }

    fn select(&mut self, db: u64) -> Result<()> {
        if db == self.db {
            return Ok(());
        }
        if self.shared.cluster {
            return Err(Error::unsupported(format!(
                "the backup holds keys in database {db}, and a Cluster has database 0 alone: restore onto a server of its \
                 own"
            )));
        }
        self.request(&[b"SELECT", db.to_string().as_bytes()]);
        self.db = db;
        Ok(())
    }

    /// Makes the payload of a value for this server; none of a long one, which is sent from where it lies.
    fn make_payload(&mut self, meta: &RedisMeta, key: &[u8], value: &[u8]) -> Result<()> {
        let version = self.shared.version;
        let too_new = || {
            let key = String::from_utf8_lossy(&key[..key.len().min(128)]).into_owned();
            Error::unsupported(format!(
                "key `{key}` has a value of RDB type {}, which this server (RDB version {version}) does not load: restore \
                 onto a newer server",
                meta.type_byte
            ))
        };
        let target = type_for_server(version, meta.family, meta.type_byte).ok_or_else(too_new)?;
        self.payload.clear();
        if target != meta.type_byte {
            let mut converted = Vec::new();
            convert(meta.type_byte, &mut &value[..], target, &mut converted)?;
            payload::write(version, target, &converted, &mut self.payload);
        } else if value.len() <= LONG {
            payload::write(version, target, value, &mut self.payload);
        }
        Ok(())
    }

    /// Sends a long value from where it lies, without a copy of it.
    fn send_long(&mut self, key: &[u8], ttl: &[u8], type_byte: u8, value: &[u8], options: &[&[u8]]) -> Result<()> {
        let mut crc = Crc64::new();
        crc.update(&[type_byte]);
        crc.update(value);
        let footer = payload::footer(self.shared.version, crc);
        put_head(&mut self.out, b'*', 4 + options.len());
        for arg in [b"RESTORE", key, ttl] {
            put_bulk(&mut self.out, arg);
        }
        put_head(&mut self.out, b'$', 1 + value.len() + footer.len());
        self.out.push(type_byte);
        self.queued += 1;
        self.flush()?;
        let connection = self.connection()?;
        connection.send(value)?;
        connection.send(&footer)?;
        self.out.extend_from_slice(b"\r\n");
        options.iter().for_each(|arg| put_bulk(&mut self.out, arg));
        Ok(())
    }

    /// Sends a value as one payload.
    fn put_payload(&mut self, key: &[u8], meta: &RedisMeta, value: &[u8]) -> Result<()> {
        self.make_payload(meta, key, value)?;
        let ttl = meta.expire_at_millis.unwrap_or(0).to_string();
        let payload = std::mem::take(&mut self.payload);
        let mut options: Vec<&[u8]> = vec![b"REPLACE", b"ABSTTL"];
        let (idle, frequency) = (meta.idle_seconds.map(|s| s.to_string()), meta.frequency.map(|f| f.to_string()));
        if let Some(seconds) = &idle {
            options.extend([&b"IDLETIME"[..], seconds.as_bytes()]);
        } else if let Some(frequency) = &frequency {
            options.extend([&b"FREQ"[..], frequency.as_bytes()]);
        }
        if payload.is_empty() {
            self.send_long(key, ttl.as_bytes(), meta.type_byte, value, &options)?;
        } else {
            let mut args: Vec<&[u8]> = vec![b"RESTORE", key, ttl.as_bytes(), &payload];
            args.extend(&options);
            self.request(&args);
        }
        self.payload = payload;
        Ok(())
    }

    /// Sends a value as commands, in pieces. How long and how often its key was used is lost.
    fn put_natively(&mut self, key: &[u8], meta: &RedisMeta, value: &[u8]) -> Result<()> {
        put_key(self, key, meta, value, MOST_STRING)?.ok_or_else(|| {
            let (type_byte, bytes) = (meta.type_byte, value.len());
            let key = String::from_utf8_lossy(&key[..key.len().min(128)]).into_owned();
            Error::unsupported(format!(
                "key `{key}` has a value of RDB type {type_byte} and {bytes} bytes: servers take no payload of that length, and \
                 no known commands make it. Leave it out (--keys '!…')"
            ))
        })
    }
}

impl CommandSink for RedisPart {
    fn commands(&mut self, count: usize) -> Result<()> {
        // Whole commands alone are answered.
        if self.out.len() + self.ahead >= BATCH {
            self.flush()?;
            crash::point("agent.native-flushed");
        }
        self.queued += count;
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if self.out.len() + bytes.len() < BATCH {
            self.out.extend_from_slice(bytes);
            return Ok(());
        }
        // Long strings go from where they lie.
        let mut out = std::mem::take(&mut self.out);
        let connection = self.connection()?;
        connection.send(&out)?;
        connection.send(bytes)?;
        self.ahead += out.len() + bytes.len();
        out.clear();
        self.out = out;
        Ok(())
    }
}

impl PartLoader for RedisPart {
    fn put(&mut self, record: RecordRef<'_>, hash: u128) -> Result<()> {
        if !self.shared.slots.contains(record.slot) {
            let slots = &self.shared.slots;
            return Err(Error::request(format!("a record of slot {} does not belong here: {slots}", record.slot)));
        }
        let (db, key) = split_redis_key(record.key)?;
        let meta = RedisMeta::decode(record.meta).map_err(|e| e.context("a record that is not of Redis"))?;
        if meta.expire_at_millis.is_some_and(|at| at <= SystemClock.millis() as i64) {
            self.expired += 1;
            return Ok(());
        }
        self.select(db)?;
        match record.value.len() > self.shared.redis.options.native_over {
            true => self.put_natively(key, &meta, record.value)?,
            false => self.put_payload(key, &meta, record.value)?,
        }
        self.loaded.add(hash);
        if let Some(at) = meta.expire_at_millis {
            self.expiring.push((at, hash));
        }
        if self.out.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>, source: SetDigest) -> Result<SetDigest> {
        self.flush()?;
        self.flush()?;
        let folder = &self.shared.folder;
        folder.keep_expiring(self.number, &self.expiring)?;
        let note = Note { source, loaded: self.loaded, expired: self.expired }.text();
        let shared = &self.shared;
        shared.place.same_life(self.life, || fsutil::replace(&folder.part(self.number), note.as_bytes()))?;
        if self.expired > 0 {
            tracing::info!(
                part = self.number,
                keys = self.expired,
                "keys that have expired by now were not loaded"
            );
        }
        Ok(self.loaded)
    }
}

impl Drop for RedisPart {
    fn drop(&mut self) {
        let _ = self.shared.open.lock().expect("parts").remove(&self.number);
    }
}
