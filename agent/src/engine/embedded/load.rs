//! Loading beside the live data: one staged incarnation, filled by sorted ingestion.
//!
//! A part is one ingestion: its tables appear in the staged database all at once or not at all, so an unfinished part
//! leaves nothing to empty (files without an owner go when the database is opened again). Before it is finished, an
//! intent with its first key and digests is made durable; after a crash, whether that key is there tells whether the
//! part is. Parts hold disjoint keys, so nobody else can have put it there.
//!
//! Parts in a row are one ingestion and one note: each ingestion costs about ten writes that must be on disk, and tables
//! that come out of order are merged by the database, which writes them once more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use fjall::{UserKey, UserValue};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::id::JobId;
use tidemark_proto::slot::SLOT_COUNT;
use tidemark_proto::{Error, Result, SlotSet, Timestamp};

use super::generation::{Commits, Generation, decode_numbers, encode_numbers};
use super::ingest::Ingest;
use super::read::View;
use super::{fault, key, value};
use crate::engine::{PartLoader, RecordRef, ScanRange, Snapshot as _, record_hash};
use crate::kv::{MAX_KEY, MAX_VALUE};

const PART: &str = "part/";
/// Threads that read a load back.
const VERIFY_THREADS: usize = 2;
/// Slots that one of them takes at a time.
const VERIFY_SLOTS: u16 = 128;
/// Numbers of a part's row before its first key.
const ROW: usize = 8;

/// A part that is loaded whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loaded {
    pub(super) source: SetDigest,
    pub(super) digest: SetDigest,
    bytes: u64,
}

#[derive(Default)]
struct Parts {
    loaded: BTreeMap<u32, Loaded>,
    open: BTreeSet<u32>,
    /// Committed or aborted: no more parts.
    ended: bool,
}

impl Parts {
    /// `Conflict` where the part cannot be begun.
    fn can_open(&self, job: JobId, number: u32) -> Result<()> {
        if self.ended {
            return Err(ended(job));
        }
        if self.loaded.contains_key(&number) {
            return Err(Error::conflict(format!("part {number} is loaded already: go on with the others")));
        }
        match self.open.contains(&number) {
            true => {
                Err(Error::conflict(format!("part {number} is being loaded: wait for it, or end that attempt")))
            }
            false => Ok(()),
        }
    }
}

/// A load under way.
pub(super) struct Staging {
    pub(super) job: JobId,
    pub(super) generation: Arc<Generation>,
    parts: Mutex<Parts>,
}

impl Staging {
    /// Takes a staged incarnation up, with the parts that are whole in it.
    pub(super) fn open(job: JobId, generation: Arc<Generation>) -> Result<Self> {
        let mut loaded = BTreeMap::new();
        for item in generation.meta.prefix(PART) {
            let (name, row) = item.into_inner().map_err(fault::fjall("read the loaded parts"))?;
            let (number, part, first) = decode_row(&name, &row)?;
            let whole = part.digest.count == 0
                || generation.data.contains_key(first).map_err(fault::fjall("look for a part"))?;
            if whole {
                let _ = loaded.insert(number, part);
            }
        }
        Ok(Self { job, generation, parts: Mutex::new(Parts { loaded, ..Parts::default() }) })
    }

    /// The parts that are whole.
    pub(super) fn loaded(&self) -> Vec<(u32, SetDigest, SetDigest)> {
        let parts = self.parts.lock().expect("parts");
        parts.loaded.iter().map(|(n, p)| (*n, p.source, p.digest)).collect()
    }

    /// Begins a part.
    pub(super) fn part(self: &Arc<Self>, number: u32) -> Result<Box<dyn PartLoader>> {
        let mut parts = self.parts.lock().expect("parts");
        parts.can_open(self.job, number)?;
        let ingest = Ingest::start(Arc::clone(&self.generation))?;
        let _ = parts.open.insert(number);
        Ok(Box::new(Part {
            staging: Arc::clone(self),
            number,
            before: Vec::new(),
            ingest,
            first: None,
            last: Vec::new(),
            encoded: Vec::new(),
            value: Vec::new(),
            digest: SetDigest::default(),
            bytes: 0,
        }))
    }

    /// Ends the load: no part may be open, none will begin. Answers what the parts add up to.
    pub(super) fn end(&self) -> Result<Commits> {
        let mut parts = self.parts.lock().expect("parts");
        if parts.ended {
            return Err(ended(self.job));
        }
        if let Some(open) = parts.open.first() {
            return Err(Error::conflict(format!("part {open} is being loaded: finish or drop it first")));
        }
        parts.ended = true;
        let mut sum = Commits::default();
        for part in parts.loaded.values() {
            sum.records += part.digest.count;
            sum.bytes += part.bytes;
        }
        Ok(sum)
    }

    /// Takes the end back: a commit failed before its switch.
    pub(super) fn reopen(&self) {
        self.parts.lock().expect("parts").ended = false;
    }

    /// Count and digest of everything staged.
    pub(super) fn verify(&self) -> Result<SetDigest> {
        let next = AtomicU16::new(0);
        let worker = || -> Result<SetDigest> {
            let view = View::new(Arc::clone(&self.generation), Timestamp::MAX)?;
            let mut digest = SetDigest::default();
            loop {
                let first = next.fetch_add(VERIFY_SLOTS, Ordering::Relaxed);
                if first >= SLOT_COUNT {
                    return Ok(digest);
                }
                // All slots, not only the node's: what is where it must not be has to show.
                let range = ScanRange::slots(SlotSet::range(first, first + (VERIFY_SLOTS - 1)));
                view.scan(&range, &mut |record| {
                    digest.add(record_hash(record));
                    Ok(std::ops::ControlFlow::Continue(()))
                })?;
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..VERIFY_THREADS).map(|_| scope.spawn(worker)).collect();
            threads.into_iter().try_fold(SetDigest::default(), |sum, t| {
                let digest = t.join().map_err(|_| Error::bug("a thread that reads the load back panicked"))??;
                Ok(sum.plus(digest))
            })
        })
    }
}

fn ended(job: JobId) -> Error {
    Error::conflict(format!("the restore of job {job} was committed or aborted: begin a new one"))
}

/// A part, the last of its row so far.
struct Part {
    staging: Arc<Staging>,
    number: u32,
    /// Those of the row that have ended, each with its first encoded key.
    before: Vec<(u32, Loaded, UserKey)>,
    ingest: Ingest,
    /// First encoded key.
    first: Option<UserKey>,
    /// Last prefix of the row.
    last: Vec<u8>,
    encoded: Vec<u8>,
    value: Vec<u8>,
    digest: SetDigest,
    bytes: u64,
}

impl Part {
    fn check(&self, record: RecordRef<'_>) -> Result<()> {
        let (slots, number) = (&self.staging.generation.slots, self.number);
        if !record.meta.is_empty() || record.key.len() > MAX_KEY || record.value.len() > MAX_VALUE {
            return Err(Error::unsupported(format!(
                "part {number}: a record with {} bytes of key, {} of meta and {} of value does not fit this store; \
                 restore into the kind of store that it was taken from",
                record.key.len(),
                record.meta.len(),
                record.value.len()
            )));
        }
        if record.slot != tidemark_proto::slot_of(record.key) || !slots.contains(record.slot) {
            return Err(Error::request(format!(
                "part {number}: a record of slot {} does not belong here, this node takes {slots}: check the plan",
                record.slot
            )));
        }
        Ok(())
    }

    /// Ends the part at hand; answers the digest of what was put.
    fn end(&mut self, source: SetDigest) -> SetDigest {
        let digest = std::mem::take(&mut self.digest);
        let loaded = Loaded { source, digest, bytes: std::mem::take(&mut self.bytes) };
        let first = self.first.take().unwrap_or_else(|| UserKey::from(&[][..]));
        self.before.push((self.number, loaded, first));
        digest
    }
}

impl PartLoader for Part {
    fn put(&mut self, record: RecordRef<'_>, hash: u128) -> Result<()> {
        self.check(record)?;
        key::encode_prefix(&mut self.encoded, record.slot, record.key);
        if !self.last.is_empty() && self.encoded <= self.last {
            return Err(Error::request(format!(
                "part {}: records must ascend by (slot, key): sort the source",
                self.number
            )));
        }
        self.last.clone_from(&self.encoded);
        key::push_time(&mut self.encoded, Timestamp::ZERO);
        let encoded = UserKey::from(&self.encoded[..]);
        if self.first.is_none() {
            self.first = Some(encoded.clone());
        }
        value::put(&mut self.value, record.value);
        self.ingest.put(encoded, UserValue::from(&self.value[..]))?;
        self.digest.add(hash);
        self.bytes += (record.key.len() + record.value.len()) as u64;
        Ok(())
    }

    fn then(&mut self, source: SetDigest, number: u32) -> Result<SetDigest> {
        let mut parts = self.staging.parts.lock().expect("parts");
        parts.can_open(self.staging.job, number)?;
        let _ = parts.open.insert(number);
        drop(parts);
        let digest = self.end(source);
        self.number = number;
        Ok(digest)
    }

    fn finish(mut self: Box<Self>, source: SetDigest) -> Result<SetDigest> {
        let digest = self.end(source);
        let generation = &self.staging.generation;
        let mut intent = generation.durable_batch();
        for (number, loaded, first) in &self.before {
            intent.insert(&generation.meta, row_name(*number), encode_row(loaded, first));
        }
        intent.commit().map_err(fault::fjall("note a part"))?;
        self.ingest.finish()?;
        let mut parts = self.staging.parts.lock().expect("parts");
        parts.loaded.extend(self.before.iter().map(|(number, loaded, _)| (*number, *loaded)));
        Ok(digest)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut parts = self.staging.parts.lock().expect("parts");
        for number in self.before.iter().map(|(number, ..)| number).chain([&self.number]) {
            let _ = parts.open.remove(number);
        }
    }
}

fn row_name(number: u32) -> Vec<u8> {
    [PART.as_bytes(), &number.to_be_bytes()].concat()
}

fn encode_row(part: &Loaded, first: &[u8]) -> Vec<u8> {
    let (s, d) = (part.source, part.digest);
    let mut row = encode_numbers::<ROW>([s.count, s.low, s.high, d.count, d.low, d.high, part.bytes, 0]);
    row.extend_from_slice(first);
    row
}

fn decode_row<'a>(name: &[u8], row: &'a [u8]) -> Result<(u32, Loaded, &'a [u8])> {
    let damaged = || Error::damaged("the list of loaded parts is damaged: abort the restore and begin again");
    let number = name.strip_prefix(PART.as_bytes()).and_then(|n| n.try_into().ok()).ok_or_else(damaged)?;
    let (head, first) = row.split_at_checked(ROW * 8).ok_or_else(damaged)?;
    let [count, low, high, d_count, d_low, d_high, bytes, _] = decode_numbers::<ROW>(head)?;
    let source = SetDigest { count, low, high };
    let digest = SetDigest { count: d_count, low: d_low, high: d_high };
    Ok((u32::from_be_bytes(number), Loaded { source, digest, bytes }, first))
}

#[cfg(test)]
mod tests {
    use tidemark_proto::Incarnation;

    use super::*;

    fn staging(dir: &std::path::Path) -> Arc<Staging> {
        let g = Generation::open(dir, Incarnation::from_u128(1), SlotSet::all(), 1 << 20).unwrap();
        Arc::new(Staging::open(JobId::from_u128(1), Arc::new(g)).unwrap())
    }

    fn put(part: &mut dyn PartLoader, key: &[u8]) {
        let slot = tidemark_proto::slot_of(key);
        let record = RecordRef { slot, key, meta: &[], value: b"v" };
        part.put(record, record_hash(record)).unwrap();
    }

    #[test]
    fn a_noted_part_counts_only_when_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let first = staging(dir.path());
        let mut part = first.part(1).unwrap();
        put(part.as_mut(), b"a");
        let digest = part.finish(SetDigest::default()).unwrap();
        // What a crash between a part's note and its appearance leaves.
        let mut key = Vec::new();
        key::encode(&mut key, tidemark_proto::slot_of(b"b"), b"b", Timestamp::ZERO);
        let lost = Loaded { source: digest, digest, bytes: 2 };
        first.generation.meta.insert(row_name(2), encode_row(&lost, &key)).unwrap();
        drop(first);

        let again = staging(dir.path());
        assert_eq!(again.loaded(), vec![(1, SetDigest::default(), digest)]);
        let mut part = again.part(2).unwrap();
        put(part.as_mut(), b"b");
        let _ = part.finish(digest).unwrap();
        assert_eq!(again.verify().unwrap().count, 2);
        assert_eq!(again.end().unwrap().records, 2);
    }

    #[test]
    fn parts_in_a_row_appear_together() {
        let dir = tempfile::tempdir().unwrap();
        let first = staging(dir.path());
        let mut keys: Vec<Vec<u8>> = (0..40u32).map(|n| format!("k{n}").into_bytes()).collect();
        keys.sort_by_key(|k| (tidemark_proto::slot_of(k), k.clone()));
        let (one, two) = keys.split_at(15);
        let row = |staging: &Arc<Staging>, numbers: [u32; 3]| {
            let mut row = staging.part(numbers[0]).unwrap();
            one.iter().for_each(|k| put(row.as_mut(), k));
            let digests = [row.then(SetDigest::default(), numbers[1]).unwrap()];
            // An empty one in between.
            let digests = [digests[0], row.then(SetDigest::default(), numbers[2]).unwrap()];
            two.iter().for_each(|k| put(row.as_mut(), k));
            (row, digests)
        };
        let (mut broken, _) = row(&first, [1, 2, 3]);
        let _ = broken.then(SetDigest::default(), 4).unwrap();
        for taken in [1, 2, 3] {
            assert!(first.part(taken).is_err(), "part {taken} is being loaded");
        }
        assert!(broken.then(SetDigest::default(), 2).is_err());
        let behind = RecordRef { slot: tidemark_proto::slot_of(&one[0]), key: &one[0], meta: &[], value: b"v" };
        assert!(broken.put(behind, record_hash(behind)).is_err(), "keys ascend over the whole row");
        drop(broken);
        assert_eq!(first.loaded(), vec![]);
        assert_eq!(first.verify().unwrap().count, 0, "a row that was not finished leaves nothing");

        let (whole, [a, b]) = row(&first, [3, 2, 1]);
        let c = whole.finish(SetDigest { count: 7, ..SetDigest::default() }).unwrap();
        assert_eq!((a.count, b.count, c.count), (15, 0, 25));
        let source = SetDigest { count: 7, ..SetDigest::default() };
        let loaded = vec![(1, source, c), (2, SetDigest::default(), b), (3, SetDigest::default(), a)];
        assert_eq!(first.loaded(), loaded);
        assert!(first.part(2).is_err(), "loaded already");
        drop(first);

        let again = staging(dir.path());
        assert_eq!(again.loaded(), loaded);
        assert_eq!(again.verify().unwrap(), a.plus(c));
        assert_eq!(again.end().unwrap().records, 40);
    }
}
