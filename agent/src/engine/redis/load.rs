//! Restores onto a server: records go as `RESTORE` in pipelines, by several connections at once.
//!
//! The server must be empty when a restore begins, or is fenced and emptied (`place`), and belongs to the restore until the
//! end: one that is called off empties it again. Parts are loaded with `REPLACE`, so that one that was begun before is simply loaded again. What was
//! loaded is read back as a replica reads it, and compared by what it means.
//!
//! Keys that have expired by now are not loaded: a server would drop them at once. Those that expire before they are read
//! back are known by a list of expiring keys.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::rdb::convert::type_for;
use tidemark_common::rdb::types::SHARED_LAST;
use tidemark_common::rdb::{Crc64, Family, convert, loads, payload, version_of_server};
use tidemark_common::record::{RedisMeta, split_redis_key};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::id::JobId;
use tidemark_proto::{Error, ErrorKind, Incarnation, Result, SlotSet, Timestamp, error::ResultExt};

use super::Redis;
use super::conn::Connection;
use super::marker::{Marker, Step};
use super::place::Place;
use super::readback::read_back;
use super::resp::{put_bulk, put_head, put_request};
use super::server::PRIMARY;
use crate::engine::{Loader, PartLoader, RecordRef};
use crate::fsutil;

/// Bytes of requests that are sent before the replies to those before them are read.
const BATCH: usize = 256 << 10;
/// Longest value that is sent as one payload: servers take no longer strings by default (`proto-max-bulk-len`).
pub(super) const MAX_PAYLOAD: usize = 400 << 20;
/// Values over this many bytes are sent without copying them.
const LONG: usize = 64 << 10;
/// Bytes of an entry in the list of expiring keys: time and hash.
const EXPIRING: usize = 24;

/// A finished part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Note {
    /// Digest of its source.
    source: SetDigest,
    /// Digest of what was loaded.
    loaded: SetDigest,
    /// Records that had expired.
    expired: u64,
}

type Finished = BTreeMap<u32, Note>;

/// What stands in the folder of a restore.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn part(&self, number: u32) -> PathBuf {
        self.0.join(format!("part-{number}"))
    }

    /// List of the part's expiring keys.
    fn expiring(&self, number: u32) -> PathBuf {
        self.0.join(format!("expiring-{number}"))
    }

    fn finished(&self) -> Result<Finished> {
        let mut found = Finished::new();
        for entry in std::fs::read_dir(&self.0).or_kind(ErrorKind::Retry, "folder of the restore")?.flatten() {
            let name = entry.file_name();
            let number = name.to_string_lossy().strip_prefix("part-").and_then(|n| n.parse().ok());
            if let Some(number) = number {
                let text = std::fs::read_to_string(entry.path()).or_kind(ErrorKind::Retry, "a finished part")?;
                let _ = found.insert(number, Note::parse(&text)?);
            }
        }
        Ok(found)
    }
}

impl Note {
    fn text(&self) -> String {
        let words = [self.source, self.loaded].map(|d| format!("{} {} {}", d.count, d.low, d.high));
        format!("{} {}", words.join(" "), self.expired)
    }

    fn parse(text: &str) -> Result<Self> {
        let damaged =
            || Error::damaged("the note of a loaded part does not hold: call the restore off and begin anew");
        let numbers: Option<Vec<u64>> = text.split_ascii_whitespace().map(|w| w.parse().ok()).collect();
        let (digests, expired) = match numbers.as_deref() {
            Some([digests @ .., expired]) if digests.len() == 6 => (digests, *expired),
            // An earlier build counted none.
            Some(digests) if digests.len() == 6 => (digests, 0),
            _ => return Err(damaged()),
        };
        let digest = |n: usize| SetDigest { count: digests[n], low: digests[n + 1], high: digests[n + 2] };
        Ok(Self { source: digest(0), loaded: digest(3), expired })
    }
}

/// What the loaders of one restore share.
#[derive(Debug)]
struct Shared {
    redis: Arc<Redis>,
    place: Place,
    slots: SlotSet,
    folder: Folder,
    /// Version of the RDB format of the server.
    version: u16,
    cluster: bool,
    open: Mutex<BTreeSet<u32>>,
}

/// The restore that is under way. One that stands already is brought to its end first.
pub(super) fn under_way(redis: Arc<Redis>) -> Result<Option<JobId>> {
    let Some(marker) = Marker::read(&redis.options.dir)? else { return Ok(None) };
    if marker.step == Some(Step::Committed) {
        let _ = Place::new(redis, marker.job).complete()?;
        return Ok(None);
    }
    Ok(Some(marker.job))
}

/// Begins a restore, or goes on with it.
pub(super) fn begin(redis: Arc<Redis>, job: JobId, slots: SlotSet, in_place: bool) -> Result<Box<dyn Loader>> {
    let view = redis.view()?;
    if let Some(why) = view.unready() {
        return Err(Error::retry(why));
    }
    if view.info.role() != PRIMARY {
        return Err(Error::conflict("the server is a read-only replica: restore onto its primary"));
    }
    let owned = view.ownership()?.slots;
    if !slots.minus(&owned).is_empty() {
        return Err(Error::conflict(format!("the server does not own slots {} any more", slots.minus(&owned))));
    }
    let place = Place::new(redis.clone(), job);
    place.take(&view, in_place)?;
    let folder = Folder(place.parts().to_owned());
    let (server, cluster) = (view.info.version(), view.info.is_cluster());
    let version = version_of_server(&server)
        .ok_or_else(|| Error::unsupported(format!("the version of the server is not understood: {server}")))?;
    let open = Mutex::default();
    Ok(Box::new(RedisLoader(Arc::new(Shared { redis, place, slots, folder, version, cluster, open }))))
}

/// Calls a restore off that this process need not have begun.
pub(super) fn abort(redis: Arc<Redis>, job: JobId) -> Result<()> {
    Place::new(redis, job).abort()
}

impl Shared {
    fn check_no_open_part(&self) -> Result<()> {
        let open = self.open.lock().expect("parts");
        open.first()
            .map_or(Ok(()), |n| Err(Error::conflict(format!("part {n} is being loaded: finish or drop it first"))))
    }
}

struct RedisLoader(Arc<Shared>);

impl Loader for RedisLoader {
    fn loaded(&self) -> Result<Vec<(u32, SetDigest, SetDigest)>> {
        let _ = self.0.place.marker()?;
        Ok(self.0.folder.finished()?.into_iter().map(|(n, note)| (n, note.source, note.loaded)).collect())
    }

    fn expired(&self) -> Result<u64> {
        let _ = self.0.place.marker()?;
        Ok(self.0.folder.finished()?.values().map(|note| note.expired).sum())
    }

    fn part(&self, number: u32) -> Result<Box<dyn PartLoader>> {
        let life = self.0.place.stand()?;
        if self.0.folder.part(number).exists() || !self.0.open.lock().expect("parts").insert(number) {
            return Err(Error::conflict(format!("part {number} is loaded already, or being loaded")));
        }
        // From here on the part is closed when it is dropped.
        let mut part = RedisPart::new(self.0.clone(), number, life);
        part.connect()?;
        Ok(Box::new(part))
    }

    fn verify(&self) -> Result<SetDigest> {
        let (options, folder) = (&self.0.redis.options, &self.0.folder);
        self.0.place.is_whole(&folder.finished()?.into_keys().collect())?;
        let mut expiring = Vec::new();
        for number in folder.finished()?.into_keys() {
            let list = std::fs::read(folder.expiring(number)).unwrap_or_default();
            expiring.extend(list.chunks_exact(EXPIRING).map(|entry| {
                let (at, hash) = entry.split_at(8);
                let mut words = ([0; 8], [0; 16]);
                words.0.copy_from_slice(at);
                words.1.copy_from_slice(hash);
                (i64::from_le_bytes(words.0), u128::from_le_bytes(words.1))
            }));
        }
        read_back(&options.address, &self.0.place.login()?, &self.0.slots, expiring)
    }

    fn commit(&self, _: Timestamp) -> Result<Incarnation> {
        self.0.check_no_open_part()?;
        self.0.place.commit()
    }

    fn abort(&self) -> Result<()> {
        self.0.check_no_open_part()?;
        self.0.place.abort()
    }
}

struct RedisPart {
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
    db: u64,
    loaded: SetDigest,
    expiring: Vec<u8>,
    expired: u64,
}

impl RedisPart {
    fn new(shared: Arc<Shared>, number: u32, life: u64) -> Self {
        Self {
            shared,
            number,
            life,
            connection: None,
            out: Vec::with_capacity(BATCH + (BATCH >> 2)),
            payload: Vec::new(),
            queued: 0,
            due: 0,
            db: 0,
            loaded: SetDigest::default(),
            expiring: Vec::new(),
            expired: 0,
        }
    }

    fn connect(&mut self) -> Result<()> {
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
        self.queued = 0;
        let connection = self.connection()?;
        connection.send(&out)?;
        for _ in 0..due {
            let _ = connection.reply()?.ok("RESTORE")?;
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
        let family = Family::of_version(version);
        let too_new = || {
            let key = String::from_utf8_lossy(&key[..key.len().min(128)]).into_owned();
            Error::unsupported(format!(
                "key `{key}` has a value of RDB type {}, which this server (RDB version {version}) does not load: restore \
                 onto a newer server",
                meta.type_byte
            ))
        };
        if value.len() > MAX_PAYLOAD {
            return Err(Error::unsupported(format!("a value of {} bytes: at most {MAX_PAYLOAD}", value.len())));
        }
        // A number that the other family gives to something else says nothing here.
        let same = meta.family == family || loads(SHARED_LAST, meta.family, meta.type_byte);
        let target = type_for(version, family, meta.type_byte).filter(|_| same).ok_or_else(too_new)?;
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
        self.make_payload(&meta, key, record.value)?;
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
            self.send_long(key, ttl.as_bytes(), meta.type_byte, record.value, &options)?;
        } else {
            let mut args: Vec<&[u8]> = vec![b"RESTORE", key, ttl.as_bytes(), &payload];
            args.extend(&options);
            self.request(&args);
        }
        self.payload = payload;
        self.loaded.add(hash);
        if let Some(at) = meta.expire_at_millis {
            self.expiring.extend_from_slice(&at.to_le_bytes());
            self.expiring.extend_from_slice(&hash.to_le_bytes());
        }
        if self.out.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>, source: SetDigest) -> Result<SetDigest> {
        self.flush()?;
        self.flush()?;
        let folder = &self.shared.folder;
        if !self.expiring.is_empty() {
            let path = folder.expiring(self.number);
            let write = || File::create(&path)?.write_all(&self.expiring);
            write().or_kind(ErrorKind::Full, format_args!("{}", path.display()))?;
        }
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
