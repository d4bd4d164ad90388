//! A part on its way into a server: records go as `RESTORE` in pipelines.

use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::rdb::convert::type_for_server;
use tidemark_common::rdb::fields::fields_expire;
use tidemark_common::rdb::lasting::Lasting;
use tidemark_common::rdb::{Crc64, RawValue, convert, payload};
use tidemark_common::record::{RedisMeta, split_redis_key};
use tidemark_common::run::{LONG_PIECE, LongValue, Spool};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, error::ResultExt};

use super::conn::Connection;
use super::load::Shared;
use super::notes::{Expiring, Note, Volatile};
use super::resp::{put_bulk, put_head, put_request};
use super::server::View;
use super::target::{self, ASKING};
use crate::engine::{Engine, LongRecord, PartLoader, RecordRef};

mod natively;

/// Bytes of requests that are sent before the replies to those before them are read.
const BATCH: usize = 256 << 10;
/// A part of a row that begins so long after the last look at slots on their way looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Values over this many bytes are sent without copying them.
const LONG: usize = 64 << 10;

/// A part being loaded, the last of its row so far.
pub(super) struct RedisPart {
    shared: Arc<Shared>,
    number: u32,
    /// Those of the row that have ended.
    before: Vec<(u32, Note)>,
    /// Life of the server in which the row began.
    life: u64,
    connection: Option<Connection>,
    /// Slots that were on their way to the server when that was last asked: their keys are taken behind `ASKING` alone. It does
    /// no harm should the server own them by now.
    arriving: SlotSet,
    /// When that was asked.
    looked: Instant,
    /// Whether the record at hand is of these.
    asking: bool,
    out: Vec<u8>,
    payload: Vec<u8>,
    /// Requests in `out`, and those whose replies are due.
    queued: usize,
    due: usize,
    /// Bytes of them that were sent from the middle of a command.
    ahead: usize,
    db: u64,
    loaded: SetDigest,
    expiring: Expiring,
    volatile: Vec<Volatile>,
    expired: u64,
}

impl RedisPart {
    pub(super) fn new(shared: Arc<Shared>, number: u32, life: u64) -> Self {
        Self {
            shared,
            number,
            before: Vec::new(),
            life,
            connection: None,
            arriving: SlotSet::EMPTY,
            looked: Instant::now(),
            asking: false,
            out: Vec::with_capacity(BATCH + (BATCH >> 2)),
            payload: Vec::new(),
            queued: 0,
            due: 0,
            ahead: 0,
            db: 0,
            loaded: SetDigest::default(),
            expiring: Expiring::default(),
            volatile: Vec::new(),
            expired: 0,
        }
    }

    pub(super) fn connect(&mut self) -> Result<()> {
        self.connection = Some(self.shared.redis.connect()?);
        self.look()
    }

    /// Asks which slots are on their way to the server, before a part begins. Nothing may be under way.
    fn look(&mut self) -> Result<()> {
        if self.shared.cluster {
            let view = View::read(self.connection()?)?;
            self.arriving = target::served(&view, &self.shared.slots)?;
            self.looked = Instant::now();
        }
        Ok(())
    }

    /// Waits until all that was sent is loaded.
    fn drain(&mut self) -> Result<()> {
        self.flush()?;
        self.flush()
    }

    /// Ends the part at hand; answers the digest of what was put.
    fn end(&mut self, source: SetDigest) -> Result<SetDigest> {
        let folder = &self.shared.folder;
        self.expiring.end(folder, self.number)?;
        folder.keep_fields(self.number, &std::mem::take(&mut self.volatile))?;
        let (loaded, expired) = (std::mem::take(&mut self.loaded), std::mem::take(&mut self.expired));
        if expired > 0 {
            tracing::info!(part = self.number, keys = expired, "keys that have expired by now were not loaded");
        }
        self.before.push((self.number, Note { source, loaded, expired }));
        Ok(loaded)
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

    /// Before each command on the record at hand.
    fn ask(&mut self) {
        if self.asking {
            self.request(&[ASKING]);
        }
    }

    fn select(&mut self, db: u64) -> Result<()> {
        if db == self.db {
            return Ok(());
        }
        if !self.shared.has_database(db)? {
            return Err(Error::unsupported(format!(
                "the backup holds keys in database {db}, which the servers of this Cluster do not have: restore onto a server \
                 of its own, or onto a Cluster with several databases (Valkey from 9 on, cluster-databases)"
            )));
        }
        self.request(&[b"SELECT", db.to_string().as_bytes()]);
        self.db = db;
        Ok(())
    }

    /// Makes the payload of a value for this server; none of a long one, which is sent from where it lies.
    fn make_payload(&mut self, meta: &RedisMeta, key: &[u8], value: &[u8]) -> Result<()> {
        let (version, target) = (self.shared.version, self.target(meta, key)?);
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

    /// The type of a value on this server.
    fn target(&self, meta: &RedisMeta, key: &[u8]) -> Result<u8> {
        let version = self.shared.version;
        let too_new = || {
            let key = String::from_utf8_lossy(&key[..key.len().min(128)]).into_owned();
            Error::unsupported(format!(
                "key `{key}` has a value of RDB type {}, which this server (RDB version {version}) does not load: restore \
                 onto a newer server",
                meta.type_byte
            ))
        };
        type_for_server(version, meta.family, meta.type_byte).ok_or_else(too_new)
    }

    /// Sends a long value from where it lies, without a copy of it.
    fn send_long<V: RawValue + ?Sized>(
        &mut self,
        key: &[u8],
        ttl: &[u8],
        type_byte: u8,
        value: &V,
        options: &[&[u8]],
    ) -> Result<()> {
        self.ask();
        put_head(&mut self.out, b'*', 4 + options.len());
        for arg in [b"RESTORE", key, ttl] {
            put_bulk(&mut self.out, arg);
        }
        put_head(&mut self.out, b'$', 1 + value.raw_len() as usize + payload::FOOTER_LEN);
        self.out.push(type_byte);
        self.queued += 1;
        self.flush()?;
        let (version, connection) = (self.shared.version, self.connection()?);
        let mut crc = Crc64::new();
        crc.update(&[type_byte]);
        value.pieces(|piece| {
            crc.update(piece);
            connection.send(piece)
        })?;
        connection.send(&payload::footer(version, crc))?;
        self.out.extend_from_slice(b"\r\n");
        options.iter().for_each(|arg| put_bulk(&mut self.out, arg));
        Ok(())
    }

    /// Sends a value as one payload.
    fn put_payload(&mut self, key: &[u8], meta: &RedisMeta, value: &[u8]) -> Result<()> {
        self.make_payload(meta, key, value)?;
        let access = Access::of(meta);
        let payload = std::mem::take(&mut self.payload);
        if payload.is_empty() {
            self.send_long(key, &access.ttl, meta.type_byte, value, &access.options())?;
        } else {
            let mut args: Vec<&[u8]> = vec![b"RESTORE", key, &access.ttl, &payload];
            args.extend(access.options());
            self.ask();
            self.request(&args);
        }
        self.payload = payload;
        Ok(())
    }

    /// Sends a value that lies in a file as one payload. One that this server needs in another layout goes through another file.
    fn put_payload_of(&mut self, key: &[u8], meta: &RedisMeta, value: &LongValue) -> Result<()> {
        let target = self.target(meta, key)?;
        let access = Access::of(meta);
        if target == meta.type_byte {
            return self.send_long(key, &access.ttl, target, value, &access.options());
        }
        let folder = self.shared.redis.spool().ok_or_else(|| Error::bug("no folder for long values"))?;
        let mut spool = Spool::new(&folder);
        spool.begin()?;
        let mut out = BufWriter::with_capacity(LONG_PIECE, &mut spool);
        convert(meta.type_byte, &mut value.reader(), target, &mut out)?;
        out.flush().or_kind(ErrorKind::Full, "writing a value in another layout")?;
        drop(out);
        self.send_long(key, &access.ttl, target, &spool.value()?, &access.options())
    }
}

/// When a key expires and how it was used, as words of `RESTORE`.
struct Access {
    ttl: Vec<u8>,
    used: Option<(&'static [u8], String)>,
}

impl Access {
    fn of(meta: &RedisMeta) -> Self {
        let idle = meta.idle_seconds.map(|s| (&b"IDLETIME"[..], s.to_string()));
        let frequency = meta.frequency.map(|f| (&b"FREQ"[..], f.to_string()));
        Self { ttl: meta.expire_at_millis.unwrap_or(0).to_string().into(), used: idle.or(frequency) }
    }

    fn options(&self) -> Vec<&[u8]> {
        let used = self.used.iter().flat_map(|(word, number)| [*word, number.as_bytes()]);
        [&b"REPLACE"[..], b"ABSTTL"].into_iter().chain(used).collect()
    }
}

impl RedisPart {
    /// Goes to the database of a record; its key there and its meta. `None` for one that has expired.
    fn admit<'r>(&mut self, slot: u16, key: &'r [u8], meta: &[u8]) -> Result<Option<(&'r [u8], RedisMeta)>> {
        if !self.shared.slots.contains(slot) {
            let slots = &self.shared.slots;
            return Err(Error::request(format!("a record of slot {slot} does not belong here: {slots}")));
        }
        let (db, key) = split_redis_key(key)?;
        let meta = RedisMeta::decode(meta).map_err(|e| e.context("a record that is not of Redis"))?;
        if meta.expire_at_millis.is_some_and(|at| at <= SystemClock.millis() as i64) {
            self.expired += 1;
            return Ok(None);
        }
        self.select(db)?;
        self.asking = self.arriving.contains(slot);
        Ok(Some((key, meta)))
    }

    /// Notes a record that was sent: `key` of the record and its value.
    fn note<V: RawValue + ?Sized>(&mut self, key: &[u8], meta: &RedisMeta, value: &V, hash: u128) -> Result<()> {
        self.loaded.add(hash);
        let mut ends = meta.expire_at_millis;
        if fields_expire(meta.type_byte, meta.family) {
            let fields = Lasting::of(meta.type_byte, meta.family, value)?;
            ends = [ends, fields.ends()].into_iter().flatten().min();
            self.volatile.push(Volatile { key: Volatile::hash(key), meaning: meta.meaning, fields });
        }
        if let Some(at) = ends {
            self.expiring.push(&self.shared.folder, self.number, at, hash)?;
        }
        if self.out.len() >= BATCH { self.flush() } else { Ok(()) }
    }
}

impl PartLoader for RedisPart {
    fn put(&mut self, record: RecordRef<'_>, hash: u128) -> Result<()> {
        let Some((key, meta)) = self.admit(record.slot, record.key, record.meta)? else { return Ok(()) };
        match record.value.len() > self.shared.redis.options.native_over {
            true => self.put_natively(key, &meta, record.value)?,
            false => self.put_payload(key, &meta, record.value)?,
        }
        self.note(record.key, &meta, record.value, hash)
    }

    fn put_long(&mut self, record: LongRecord<'_>, hash: u128) -> Result<()> {
        let Some((key, meta)) = self.admit(record.slot, record.key, record.meta)? else { return Ok(()) };
        match record.value.len() > self.shared.redis.options.native_over as u64 {
            true => self.put_natively(key, &meta, record.value)?,
            false => self.put_payload_of(key, &meta, record.value)?,
        }
        self.note(record.key, &meta, record.value, hash)
    }

    fn then(&mut self, source: SetDigest, number: u32) -> Result<SetDigest> {
        // What is not answered yet counts when the row ends. Who moves slots is asked now and then: nothing may be under way then.
        if self.shared.cluster && self.looked.elapsed() >= LOOK_AGAIN {
            self.drain()?;
            self.look()?;
        }
        let loaded = self.end(source)?;
        self.shared.open(number, self.life)?;
        self.number = number;
        Ok(loaded)
    }

    fn finish(mut self: Box<Self>, source: SetDigest) -> Result<SetDigest> {
        self.drain()?;
        let loaded = self.end(source)?;
        let shared = &self.shared;
        shared.place.same_life(self.life, || shared.folder.keep(&self.before))?;
        shared.whole(self.before.iter().map(|(number, _)| *number), self.life);
        Ok(loaded)
    }
}

impl Drop for RedisPart {
    fn drop(&mut self) {
        let numbers: Vec<u32> = self.before.iter().map(|(number, _)| *number).chain([self.number]).collect();
        self.shared.close(&numbers);
    }
}
