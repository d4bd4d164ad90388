//! Clones of one incarnation: a writable branch is a timestamp of the parent and an overlay, two keyspaces of its own in
//! the parent's database (`clone-<id>-data`, `clone-<id>-changes`), which hold what was written in it, deletes included.
//!
//! What holds: the record of a clone (`clone/<name>` in `meta`) is its pin as well, so that neither stands without the other;
//! its keyspaces are durable before the record is, and go after it. So a crash leaves keyspaces without a record at
//! worst, which nobody can have written to: they are removed when the incarnation is opened.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fjall::Keyspace;
use tidemark_proto::wire::control::CloneInfo;
use tidemark_proto::{CloneName, Error, ErrorKind, Result, Timestamp};

use super::generation::{Generation, check_at, decode_numbers, encode_numbers, options};
use super::{fault, key};

/// Most clones of one store.
pub const MAX_CLONES: usize = 64;
/// A memtable of an overlay, in bytes: many may stand at once.
const MEMTABLE: u64 = 2 << 20;
/// Blocks of an overlay's data, in bytes.
const DATA_BLOCK: u32 = 16 << 10;
/// Blocks of its change index, in bytes.
const SMALL_BLOCK: u32 = 8 << 10;

const RECORD: &str = "clone/";
/// What the names of overlays' keyspaces begin with.
const KEYSPACE: &str = "clone-";

/// What was written in one clone.
pub(super) struct Overlay {
    pub(super) name: CloneName,
    /// The state of the parent that lies under it.
    pub(super) at: Timestamp,
    created_millis: u64,
    /// Names its keyspaces: a clone that is made anew under the name of one that was dropped gets others.
    id: u64,
    pub(super) data: Keyspace,
    pub(super) changes: Keyspace,
    /// Below it nothing can be read in the clone.
    safe: AtomicU64,
    dropped: AtomicBool,
    /// Held while the record is written or removed, and while old versions are removed, chunk by chunk.
    pub(super) collecting: Mutex<()>,
}

impl Overlay {
    /// What is told of the clone.
    pub(super) fn info(&self) -> CloneInfo {
        CloneInfo {
            name: self.name.to_string(),
            at: self.at,
            created_millis: self.created_millis,
            bytes: self.data.disk_space() + self.changes.disk_space(),
        }
    }

    /// Below it nothing can be read in the clone.
    pub(super) fn safe_point(&self) -> Timestamp {
        Timestamp(self.safe.load(Ordering::Acquire))
    }

    /// From here on nobody reads or writes it.
    pub(super) fn set_dropped(&self) {
        self.dropped.store(true, Ordering::Release);
    }

    /// Whether it was dropped.
    pub(super) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    /// `NotFound` once it was dropped.
    pub(super) fn check_standing(&self) -> Result<()> {
        if self.is_dropped() {
            return Err(Error::not_found(format!(
                "clone {} was dropped: `tidemark clone list` tells which stand",
                self.name
            )));
        }
        Ok(())
    }

    /// `NotFound` where the clone cannot be read at `at`: before it began, or below its safe point.
    pub(super) fn check_readable(&self, at: Timestamp) -> Result<()> {
        if at < self.at {
            return Err(Error::not_found(format!(
                "clone {} begins at {}, nothing of it is at {at}: read the cluster itself, or a later timestamp",
                self.name, self.at
            )));
        }
        check_at(at, self.safe_point())
    }

    fn record(&self, safe: Timestamp) -> Vec<u8> {
        encode_numbers([self.id, self.at.0, self.created_millis, safe.0])
    }
}

fn record_key(name: &CloneName) -> Vec<u8> {
    [RECORD, name.as_str()].concat().into_bytes()
}

fn keyspace_names(id: u64) -> [String; 2] {
    [format!("{KEYSPACE}{id:016x}-data"), format!("{KEYSPACE}{id:016x}-changes")]
}

impl Generation {
    fn overlay_keyspaces(&self, id: u64) -> Result<[Keyspace; 2]> {
        let [data, changes] = keyspace_names(id);
        let open = |name: &str, block| {
            self.db.keyspace(name, || options(block, MEMTABLE)).map_err(fault::fjall("open a clone's writes"))
        };
        Ok([open(&data, DATA_BLOCK)?, open(&changes, SMALL_BLOCK)?])
    }

    /// Opens all clones and removes what a crash left of others.
    pub(super) fn recover_clones(&self) -> Result<()> {
        let mut standing = Vec::new();
        for item in self.meta.prefix(RECORD) {
            let (key, row) = item.into_inner().map_err(fault::fjall("read the clones"))?;
            let damaged = |_| Error::damaged("the list of clones is damaged: restore this node from a backup");
            let name = std::str::from_utf8(&key[RECORD.len()..]).map_err(|e| damaged(e.to_string()))?;
            let name = CloneName::new(name).map_err(|e| damaged(e.report()))?;
            let [id, at, created_millis, safe] = decode_numbers(&row)?;
            let names = keyspace_names(id);
            if let Some(lost) = names.iter().find(|n| !self.db.keyspace_exists(n)) {
                return Err(Error::damaged(format!(
                    "the writes of clone {name} are missing ({lost}): restore this node from a backup"
                )));
            }
            let [data, changes] = self.overlay_keyspaces(id)?;
            standing.extend(names);
            let _ = self.take_up(Overlay {
                name,
                at: Timestamp(at),
                created_millis,
                id,
                data,
                changes,
                safe: AtomicU64::new(safe),
                dropped: AtomicBool::new(false),
                collecting: Mutex::default(),
            });
        }
        for name in self.db.list_keyspace_names() {
            if name.starts_with(KEYSPACE) && !standing.iter().any(|s| **s == *name) {
                let left = self.db.keyspace(&name, || options(SMALL_BLOCK, MEMTABLE));
                let removed = left.and_then(|left| self.db.delete_keyspace(left));
                removed.map_err(fault::fjall("remove what is left of a clone"))?;
            }
        }
        Ok(())
    }

    /// Makes a clone, durably. `NotFound` when versions at `at` have been collected.
    pub(super) fn add_clone(&self, name: &CloneName, at: Timestamp, now: u64) -> Result<Arc<Overlay>> {
        let id = rand::random();
        let [data, changes] = self.overlay_keyspaces(id)?;
        // The library syncs what is in the keyspaces' folders; what is written in the clone must find the folders too.
        if let Some(folders) = data.path().parent() {
            let synced = File::open(folders).and_then(|d| d.sync_all());
            synced.map_err(fault::io(format!("sync {}", folders.display())))?;
        }
        let overlay = Overlay {
            name: name.clone(),
            at,
            created_millis: now,
            id,
            data,
            changes,
            safe: AtomicU64::new(at.0),
            dropped: AtomicBool::new(false),
            collecting: Mutex::default(),
        };
        let mut batch = self.durable_batch();
        batch.insert(&self.meta, record_key(name), overlay.record(at));
        match self.keep(name, at, batch) {
            Ok(()) => Ok(self.take_up(overlay)),
            Err(e) => {
                // Where it is not known whether the record stands, the next open sees to the keyspaces.
                if e.kind() == ErrorKind::NotFound {
                    self.delete_overlay(&overlay)?;
                }
                Err(e)
            }
        }
    }

    /// Forgets a clone, durably: from here on its keyspaces are garbage, and versions that it needed may go.
    pub(super) fn forget_clone(&self, overlay: &Overlay) -> Result<()> {
        let mut batch = self.durable_batch();
        batch.remove(&self.meta, record_key(&overlay.name));
        self.let_go(&overlay.name, batch)
    }

    /// Removes the keyspaces of a clone that was forgotten. Their files go with the last reader.
    pub(super) fn delete_overlay(&self, overlay: &Overlay) -> Result<()> {
        for keyspace in [&overlay.data, &overlay.changes] {
            self.db.delete_keyspace(keyspace.clone()).map_err(fault::fjall("remove a clone's writes"))?;
        }
        Ok(())
    }

    /// Moves the clone's safe point up to `wanted`, durably, before anybody may collect below it. Answers the safe point.
    pub(super) fn move_clone_safe_point(&self, overlay: &Overlay, wanted: Timestamp) -> Result<Timestamp> {
        let before = overlay.safe_point();
        if wanted <= before {
            return Ok(before);
        }
        let mut batch = self.durable_batch();
        batch.insert(&self.meta, record_key(&overlay.name), overlay.record(wanted));
        batch.commit().map_err(fault::fjall("move the safe point of a clone"))?;
        overlay.safe.store(wanted.0, Ordering::Release);
        Ok(wanted)
    }

    /// Whether the parent holds a live record under a prefix, where a delete in the clone must go on hiding it.
    pub(super) fn lies_under(self: &Arc<Self>, overlay: &Overlay, prefix: &[u8]) -> Result<bool> {
        let view = super::read::View::new(Arc::clone(self), overlay.at)?;
        let mut scratch = Vec::new();
        let raw = key::decode(prefix, &mut scratch)?.1;
        view.get(raw).map(|found| found.is_some())
    }
}

#[cfg(test)]
mod tests {
    use tidemark_proto::{Incarnation, SlotSet};

    use super::*;

    fn open(dir: &std::path::Path) -> Generation {
        Generation::open(dir, Incarnation::from_u128(1), SlotSet::all(), 1 << 20).unwrap()
    }

    /// Ids of the keyspaces of clones.
    fn keyspaces(generation: &Generation) -> usize {
        generation.db.list_keyspace_names().iter().filter(|n| n.starts_with(KEYSPACE)).count()
    }

    #[test]
    fn keyspaces_without_a_record_go_at_the_next_open() {
        let dir = tempfile::tempdir().unwrap();
        let (first, at) = (open(dir.path()), Timestamp(5));
        let stays = first.add_clone(&"stays".parse().unwrap(), at, 7).unwrap();
        let _ = first.move_clone_safe_point(&stays, Timestamp(9)).unwrap();
        // A crash before the record is there, and one after it is gone.
        let _ = first.overlay_keyspaces(77).unwrap();
        let forgotten = first.add_clone(&"forgotten".parse().unwrap(), at, 7).unwrap();
        first.forget_clone(&forgotten).unwrap();
        assert_eq!(keyspaces(&first), 6);
        drop((first, stays, forgotten));

        let again = open(dir.path());
        assert_eq!(keyspaces(&again), 2);
        let left: Vec<_> = again.clones().iter().map(|o| (o.info(), o.safe_point())).collect();
        let info = CloneInfo { name: "stays".into(), at, created_millis: 7, bytes: left[0].0.bytes };
        assert_eq!(left, [(info, Timestamp(9))]);
        assert_eq!(again.highest_promised(), at);
    }

    #[test]
    fn lost_keyspaces_are_damage() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        let overlay = first.add_clone(&"x".parse().unwrap(), Timestamp(5), 7).unwrap();
        first.delete_overlay(&overlay).unwrap();
        drop((first, overlay));
        let opened = Generation::open(dir.path(), Incarnation::from_u128(1), SlotSet::all(), 1 << 20);
        assert_eq!(opened.map(drop).unwrap_err().kind(), ErrorKind::Damaged);
    }
}
