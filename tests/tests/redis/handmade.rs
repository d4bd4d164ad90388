//! A log of commands made by hand, of commands that a real server runs at the same time.

use bytes::Bytes;
use tidemark_common::redis::keys::Commands;
use tidemark_common::redis::named::{About, about};
use tidemark_common::redis::resp::put_request;
use tidemark_common::segment::ChunkWriter;
use tidemark_coordinator::repository::{MasterKey, Repository, Store, StoreConfig};
use tidemark_proto::hash::Hash;
use tidemark_proto::stored::log::{ALL_SLOTS, EntryKind, LogEntry, Segment, SegmentChunk, SegmentNode};
use tidemark_proto::stored::paths;
use tidemark_proto::stored::run::put_varint;
use tidemark_proto::{ClusterName, Incarnation, SlotSet, Timestamp, slot_of};
use tidemark_tests::fleet::Fleet;
use tidemark_tests::redis::{Reply, Server};

use super::contents::{Contents, held_by};

/// Slots of one region in a fleet's configuration.
const PER_REGION: u16 = 64;
pub(crate) const CLUSTER: &str = "orders";

pub(crate) async fn repository(fleet: &Fleet) -> Repository {
    let url = format!("file://{}", fleet.repository().display());
    let store = Store::open(&StoreConfig { url, ..StoreConfig::default() }).expect("store");
    let key = MasterKey::load(Some(&fleet.dir().join("master.key"))).expect("key");
    Repository::open(store, key.as_ref()).await.expect("repository")
}

/// Writes segments as a session does.
pub(crate) struct Writer {
    repository: Repository,
    cluster: ClusterName,
    number: u64,
    previous: Hash,
    /// Up to where the log goes.
    pub(crate) at: u64,
    entries: Vec<(u16, Vec<u8>)>,
    first: u64,
}

impl Writer {
    /// A log that begins with the cut of a backup.
    pub(crate) async fn begin(fleet: &Fleet, cut: u64) -> Self {
        let (repository, cluster) = (repository(fleet).await, ClusterName::new(CLUSTER).unwrap());
        let (previous, entries) = (Hash::default(), Vec::new());
        let mut writer = Self { repository, cluster, number: 0, previous, at: cut, entries, first: cut };
        writer.put(1).await;
        writer
    }

    /// Notes a command of a database.
    pub(crate) fn note(&mut self, db: u64, words: &[&str]) {
        let args: Vec<Vec<u8>> = words.iter().map(|w| w.as_bytes().to_vec()).collect();
        let keys = match about(&Commands::known(), db, &args).unwrap() {
            About::Keys(keys) => keys,
            _ => Vec::new(),
        };
        let slots: Vec<u16> = keys.iter().map(|key| slot_of(&key[1..])).collect();
        let one = slots.first().filter(|first| slots.iter().all(|s| s == *first));
        let (slot, key) = (one.copied().unwrap_or(ALL_SLOTS), keys.first().map_or(&[][..], |key| &key[1..]));
        let (mut meta, mut request, mut raw) = (Vec::new(), Vec::new(), Vec::new());
        put_varint(&mut meta, db);
        put_request(&mut request, &args.iter().map(Vec::as_slice).collect::<Vec<_>>());
        self.at += 1;
        let kind = EntryKind::Command;
        LogEntry { slot, at: Timestamp(self.at), key, put: Some((&meta, &request)), kind }.encode(&mut raw);
        self.entries.push((slot, raw));
    }

    /// Puts what was noted as the next segment; its end is a restore point.
    async fn put(&mut self, begins: u8) {
        let node = "n0".parse().unwrap();
        let batch = self.repository.draw_batch(&self.cluster, &node);
        let node = SegmentNode {
            node,
            incarnation: Incarnation::from_u128(7),
            slots: SlotSet::all(),
            from: self.first,
            to: self.at,
            closed: Timestamp(self.at),
            key_id: batch.key_id,
            salt: batch.salt,
            begins,
        };
        let sealer = self.repository.batch_sealer(&self.cluster, &node).unwrap();
        let mut writer = ChunkWriter::new(&sealer, PER_REGION).unwrap();
        // By region; stable, so that commands of one region stay in their order.
        self.entries.sort_by_key(|(slot, _)| if *slot == ALL_SLOTS { ALL_SLOTS } else { slot / PER_REGION });
        for (_, raw) in self.entries.drain(..) {
            writer.push(&tidemark_proto::stored::log::take_entry(&mut &raw[..]).unwrap().unwrap()).unwrap();
        }
        let (mut chunks, mut sealed) = (Vec::new(), Vec::new());
        for (number, (chunk, bytes)) in writer.finish().unwrap().into_iter().enumerate() {
            chunks.push(SegmentChunk {
                node: 0,
                region: chunk.region,
                number: number as u32,
                offset: 0,
                len: 0,
                raw_len: chunk.raw_len,
                entries: chunk.entries,
                first: chunk.first,
                last: chunk.last,
            });
            sealed.push(Bytes::from(bytes));
        }
        self.number += 1;
        let mut segment = Segment {
            number: self.number,
            first: self.number,
            stands_for: Hash::default(),
            previous: self.previous,
            epoch: 1,
            put_id: rand::random(),
            at_millis: 0,
            slots_per_region: PER_REGION,
            nodes: vec![node],
            chunks,
        };
        let points = [Timestamp(self.at)];
        let built = self.repository.build_segment(&self.cluster, &mut segment, Some(&points), &sealed).unwrap();
        let path = paths::log(&self.cluster, self.number);
        self.repository.store().create(&path, built.bytes).await.unwrap();
        (self.previous, self.first) = (built.hash, self.at);
    }
}

/// Runs commands on a server and notes them, as it would send them to a replica.
pub(crate) struct Both<'s> {
    pub(crate) server: &'s Server,
    pub(crate) log: Writer,
}

impl Both<'_> {
    /// `3 SET a 1` is one of database 3.
    pub(crate) fn run(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let mut client = self.server.client();
        let _ = client.call(&["SELECT", words[0]]);
        let reply = client.call(&words[1..]);
        assert!(!matches!(reply, Reply::Error(_)), "{line}: {reply:?}");
        self.log.note(words[0].parse().unwrap(), &words[1..]);
    }

    /// Ends a segment; the time, and what the server holds then.
    pub(crate) async fn point(&mut self) -> (u64, Contents) {
        self.log.put(0).await;
        (self.log.at, held_by(self.server))
    }
}
