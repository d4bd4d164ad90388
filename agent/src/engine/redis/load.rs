//! Restores onto a server: records go as `RESTORE` in pipelines, by several connections at once.
//!
//! The server must be empty when a restore begins, or is fenced and emptied (`place`), and belongs to the restore until the
//! end: one that is called off empties it again. Parts are loaded with `REPLACE`, so that one that was begun before is simply loaded again.
//! Small ones come in rows: one connection, and one note when the last of them is loaded. What was
//! loaded is read back as a replica reads it, and compared by what it means.
//!
//! Keys that have expired by now are not loaded: a server would drop them at once. Those that expire before they are read
//! back are known by a list of expiring keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tidemark_common::rdb::version_of_server;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::id::JobId;
use tidemark_proto::{Error, Incarnation, Result, SlotSet, Timestamp};

use super::conn::Connection;
use super::marker::{Marker, Step};
use super::notes::Folder;
use super::part::RedisPart;
use super::place::Place;
use super::readback::read_back;
use super::{Redis, target};
use crate::engine::{Loader, PartLoader};

/// Longest value that is sent as one payload, in bytes: servers take no longer strings by default (`proto-max-bulk-len`).
pub const MAX_PAYLOAD: usize = 400 << 20;
/// What the loaders of one restore share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) redis: Arc<Redis>,
    pub(super) place: Place,
    pub(super) slots: SlotSet,
    pub(super) folder: Folder,
    /// Version of the RDB format of the server.
    pub(super) version: u16,
    pub(super) cluster: bool,
    /// Databases beside the first that a server of a Cluster has, as far as anybody has asked.
    databases: Mutex<BTreeSet<u64>>,
    parts: Mutex<Parts>,
}

/// The parts of a restore, as this process knows them.
#[derive(Debug, Default)]
struct Parts {
    /// Being loaded.
    open: BTreeSet<u32>,
    /// Loaded, with the life of the server in which they were.
    whole: BTreeMap<u32, u64>,
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
    target::fits(&view, &slots)?;
    if !in_place {
        // In place a user is made that may do it all.
        let arriving = !view.arriving().intersect(&slots).is_empty();
        redis.ask(|connection| target::rights(connection, &redis.options, arriving))?;
    }
    let place = Place::new(redis.clone(), job);
    place.take(&view, &slots, in_place)?;
    if in_place {
        // Nobody can move slots any more; what somebody did since they were looked at shows while the data is still there.
        let _ = target::served(&redis.view()?, &slots)?;
    }
    let folder = Folder(place.parts().to_owned());
    let (server, cluster) = (view.info.version(), view.info.is_cluster());
    let version = version_of_server(&server)
        .ok_or_else(|| Error::unsupported(format!("the version of the server is not understood: {server}")))?;
    let life = place.life();
    let whole = folder.finished()?.into_keys().map(|number| (number, life)).collect();
    let (databases, parts) = (Mutex::default(), Mutex::new(Parts { open: BTreeSet::new(), whole }));
    Ok(Box::new(RedisLoader(Arc::new(Shared { redis, place, slots, folder, version, cluster, databases, parts }))))
}

/// Calls a restore off that this process need not have begun.
pub(super) fn abort(redis: Arc<Redis>, job: JobId) -> Result<()> {
    Place::new(redis, job).abort()
}

impl Shared {
    /// Whether the server has a database. One of a Cluster has the first alone, and more only where it was told so (Valkey from 9 on):
    /// it is asked, as what is sent behind a choice that it refuses would go to another database.
    pub(super) fn has_database(&self, db: u64) -> Result<bool> {
        let mut known = self.databases.lock().expect("databases");
        if !self.cluster || known.contains(&db) {
            return Ok(true);
        }
        let mut connection = Connection::open(&self.redis.options.address, &self.place.login()?)?;
        let has = connection.call(&[b"SELECT", db.to_string().as_bytes()])?.ok("SELECT").is_ok();
        if has {
            let _ = known.insert(db);
        }
        Ok(has)
    }

    fn check_no_open_part(&self) -> Result<()> {
        let parts = self.parts.lock().expect("parts");
        let told = |n| Err(Error::conflict(format!("part {n} is being loaded: finish or drop it first")));
        parts.open.first().map_or(Ok(()), told)
    }

    /// Begins a part, in this life of the server: `Conflict` where it is loaded already, or being loaded.
    pub(super) fn open(&self, number: u32, life: u64) -> Result<()> {
        let mut parts = self.parts.lock().expect("parts");
        if parts.whole.get(&number) == Some(&life) || !parts.open.insert(number) {
            return Err(Error::conflict(format!("part {number} is loaded already, or being loaded")));
        }
        Ok(())
    }

    /// These parts are not being loaded any more.
    pub(super) fn close(&self, numbers: &[u32]) {
        let mut parts = self.parts.lock().expect("parts");
        parts.open.retain(|open| !numbers.contains(open));
    }

    /// These parts were noted as loaded in this life of the server.
    pub(super) fn whole(&self, numbers: impl Iterator<Item = u32>, life: u64) {
        self.parts.lock().expect("parts").whole.extend(numbers.map(|number| (number, life)));
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
        self.0.open(number, life)?;
        // From here on the part is closed when it is dropped.
        let mut part = RedisPart::new(self.0.clone(), number, life);
        part.connect()?;
        Ok(Box::new(part))
    }

    fn in_rows(&self) -> bool {
        true
    }

    fn verify(&self) -> Result<SetDigest> {
        let (options, folder) = (&self.0.redis.options, &self.0.folder);
        self.0.place.is_whole(&folder.finished()?.into_keys().collect())?;
        let (address, login) = (&options.address, self.0.place.login()?);
        let _ = target::served(&self.0.redis.view()?, &self.0.slots)?;
        let fields = folder.all_fields()?;
        let read = read_back(address, &login, &self.0.slots, fields, |at| folder.expiring_before(at))?;
        // What moved meanwhile is missing from what was read.
        let _ = target::served(&self.0.redis.view()?, &self.0.slots)?;
        Ok(read)
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
