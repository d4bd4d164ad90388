//! A repository made without a fleet: one cluster, a full backup and a delta, in memory, small enough to be damaged and
//! read a hundred times.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemark_common::run::{Entry, RunWriter, record_hash};
use tidemark_common::seal::Sealer;
use tidemark_coordinator::repository::{
    JobRecorder, Ledger, ManifestWriter, MasterKey, PackKind, PackSet, Repository, Scope, Store, StoreConfig,
    Written,
};
use tidemark_proto::hash::{Hash, SetDigest};
use tidemark_proto::id::{Incarnation, JobId};
use tidemark_proto::stored::kept::{KeptOf, KeptThings};
use tidemark_proto::stored::ledger::{Backup, Body, Policy};
use tidemark_proto::stored::manifest::{NodeEntry, PartEntry, Root, RunEntry, Totals};
use tidemark_proto::wire::control::{Held, Kept, Ownership, Position, Sealed, SecretBytes};
use tidemark_proto::{ClusterName, Result, SlotSet, Timestamp, slot_of};

/// Slots of a region: 16 regions, one part each.
pub const SLOTS_PER_REGION: u16 = 1024;
/// Parts of a page: four pages a backup.
const PAGE_PARTS: usize = 4;
/// Keys of the full backup.
const KEYS: u32 = 400;

/// Records by slot and key.
pub type Slotted = BTreeMap<(u16, Vec<u8>), Vec<u8>>;

/// The repository and what its backups hold.
#[derive(Debug)]
pub struct Archive {
    /// Every object by its key.
    pub objects: BTreeMap<String, Bytes>,
    /// The master key; none for a repository without encryption.
    pub master: Option<MasterKey>,
    /// The backups with what they hold, oldest first.
    pub backups: Vec<(Backup, Slotted)>,
}

/// The cluster.
pub fn cluster() -> ClusterName {
    ClusterName::new("orders").expect("name")
}

fn memory() -> Store {
    Store::open(&StoreConfig { url: "memory:///".into(), ..StoreConfig::default() }).expect("store")
}

/// A store that holds these objects.
pub async fn store_of(objects: &BTreeMap<String, Bytes>) -> Store {
    let store = memory();
    for (key, body) in objects {
        store.put(key, body.clone()).await.expect("object");
    }
    store
}

impl Archive {
    /// Makes it.
    pub async fn make(encrypted: bool) -> Self {
        let master = encrypted.then(MasterKey::generate);
        let store = memory();
        let repository = Repository::init(store.clone(), master.as_ref(), 1).await.expect("repository");
        for name in ["a", "b"] {
            let _ = repository.take_epoch(name, 1).await.expect("epoch");
        }
        let mut ledger = Ledger::load(&repository, &cluster()).await.expect("ledger");
        let policy =
            Policy { engine: "memory".into(), slots_per_region: SLOTS_PER_REGION, nodes: vec!["n0".into()] };
        let _ = ledger.append(2, 1, &Body::Policy(policy), |_| Ok(())).await.expect("entry");
        let full: Slotted = (0..KEYS).map(|n| record(n, "full")).collect();
        let mut maker = Maker { repository, ledger, parts: Vec::new(), parent: Hash::ZERO };
        let first = Box::pin(maker.backup(1, &full, &BTreeMap::new(), PackKind::Base(0))).await;
        // Every region changes, and some records go.
        let changes: BTreeMap<_, _> = (0..KEYS)
            .filter(|n| n % 3 == 0)
            .map(|n| (record(n, "").0, (n % 2 == 0).then(|| record(n, "delta").1)))
            .collect();
        let mut state = full.clone();
        for (place, change) in &changes {
            let _ = match change {
                Some(value) => state.insert(place.clone(), value.clone()),
                None => state.remove(place),
            };
        }
        let second = Box::pin(maker.backup(2, &state, &changes, PackKind::Delta)).await;
        let mut objects = BTreeMap::new();
        for (key, _) in store.list("").await.expect("list") {
            let body = store.get(&key).await.expect("object");
            let _ = objects.insert(key, body);
        }
        Self { objects, master, backups: vec![(first, full), (second, state)] }
    }
}

fn record(n: u32, what: &str) -> ((u16, Vec<u8>), Vec<u8>) {
    let key = format!("key:{n}").into_bytes();
    let value = blake3_text(n, what);
    ((slot_of(&key), key), value)
}

/// A value that does not compress away.
fn blake3_text(n: u32, what: &str) -> Vec<u8> {
    Hash::of(format!("{n} {what}").as_bytes()).to_string().into_bytes()
}

struct Maker {
    repository: Repository,
    ledger: Ledger,
    parts: Vec<PartEntry>,
    parent: Hash,
}

type Changes = BTreeMap<(u16, Vec<u8>), Option<Vec<u8>>>;

impl Maker {
    async fn backup(&mut self, number: u64, state: &Slotted, changes: &Changes, kind: PackKind) -> Backup {
        let (job, cut) = (JobId::from_u128(u128::from(number) << 64 | 0xabc), Timestamp(number << 20));
        let scope = self.repository.draw();
        let mut recorder = JobRecorder::new(&self.repository, &cluster(), job, 2, 0);
        let mut parts = Vec::new();
        for half in 0..2u16 {
            // A set of packs for each half, so that there are two of each kind to be swapped.
            let packs = PackSet::new(self.repository.store(), &cluster(), &scope);
            let regions = half * 8..half * 8 + 8;
            let mut stored = Vec::new();
            for region in regions {
                stored.push(self.part(region, cut, state, changes, &packs, kind).await.expect("part"));
            }
            packs.flush().await.expect("packs");
            recorder.parts(cut, self.parent, stored.clone()).await.expect("job record");
            parts.extend(stored);
        }
        self.parts.clone_from(&parts);
        self.commit(job, cut, parts, &scope).await
    }

    async fn part(
        &self,
        region: u16,
        cut: Timestamp,
        state: &Slotted,
        changes: &Changes,
        packs: &PackSet,
        kind: PackKind,
    ) -> Result<PartEntry> {
        let first = region * SLOTS_PER_REGION;
        let slots = SlotSet::range(first, first + SLOTS_PER_REGION - 1);
        let own = |slot: u16| slots.contains(slot);
        let mut entries: Changes =
            changes.iter().filter(|(p, _)| own(p.0)).map(|(p, v)| (p.clone(), v.clone())).collect();
        if kind != PackKind::Delta {
            entries = state.iter().filter(|(p, _)| own(p.0)).map(|(p, v)| (p.clone(), Some(v.clone()))).collect();
        }
        let mut runs = self.parts.get(usize::from(region)).map_or_else(Vec::new, |p| p.runs.clone());
        runs.push(self.run(region, cut, &entries, packs, kind).await?);
        let (mut digest, mut live_bytes) = (SetDigest::default(), 0);
        for ((_, key), value) in state.iter().filter(|(p, _)| own(p.0)) {
            digest.add(record_hash(key, b"", value));
            live_bytes += (key.len() + value.len()) as u64;
        }
        Ok(PartEntry { region, node: 0, slots, lower: vec![], upper: vec![], digest, live_bytes, runs })
    }

    async fn run(
        &self,
        region: u16,
        at: Timestamp,
        entries: &Changes,
        packs: &PackSet,
        kind: PackKind,
    ) -> Result<RunEntry> {
        let (keys, salt) = (self.repository.keys(), [region as u8 ^ at.0 as u8 ^ (at.0 >> 20) as u8; 16]);
        let tag = keys.run_tag(&cluster(), region, b"", &salt);
        let sealer = Sealer::new(&keys.subkey(keys.current(), &salt)?, tag, keys.encrypts());
        let mut blocks = Vec::new();
        let sink = |block: Vec<u8>| {
            blocks.push(Bytes::from((block.len() as u32).to_le_bytes().to_vec()));
            blocks.push(Bytes::from(block));
            Ok(())
        };
        let mut writer = RunWriter::new(&sealer, sink)?;
        for ((slot, key), value) in entries {
            writer.push(Entry { slot: *slot, key, put: value.as_ref().map(|v| (&b""[..], &v[..])) })?;
        }
        let summary = writer.finish()?;
        Ok(RunEntry {
            at,
            key_id: keys.current(),
            salt,
            blocks: summary.blocks,
            records: summary.records,
            raw_bytes: summary.raw_bytes,
            extents: vec![packs.append(kind, &blocks).await?],
            index: packs.append(kind, &[summary.index.into()]).await?,
        })
    }

    async fn commit(&mut self, job: JobId, cut: Timestamp, parts: Vec<PartEntry>, scope: &Scope) -> Backup {
        let root = root(&self.repository, job, cut, self.parent, &parts);
        let mut writer = ManifestWriter::new(&self.repository, &cluster(), scope).with_pages_of(PAGE_PARTS);
        for part in parts {
            writer.push(part).await.expect("page");
        }
        // The second backup has a root of the second version.
        if self.parent != Hash::ZERO {
            writer.keep(&kept_things(job)).await.expect("kept things");
        }
        let Written { hash, .. } = writer.finish(root).await.expect("root");
        let backup = Backup { job, cut, root: hash, parent: self.parent };
        let _ = self.ledger.append(2, 1, &Body::Backup(backup.clone()), |_| Ok(())).await.expect("entry");
        self.parent = hash;
        backup
    }
}

fn kept_things(job: JobId) -> KeptThings {
    let kept = Kept {
        read_millis: 1,
        users: vec![SecretBytes(b"user app on #00 ~* -@all +get".to_vec())],
        libraries: vec![b"#!lua name=lib\n".to_vec()],
        ..Kept::default()
    };
    KeptThings { job, nodes: vec![KeptOf { node: "n0".parse().expect("name"), kept }] }
}

fn root(repository: &Repository, job: JobId, cut: Timestamp, parent: Hash, parts: &[PartEntry]) -> Root {
    let position = Position { history: "h".into(), offset: 9 };
    let ownership =
        Ownership { role: "primary".into(), slots: SlotSet::all(), moving: SlotSet::EMPTY, config_epoch: 0 };
    let held = Held {
        position: position.clone(),
        max_timestamp: Timestamp(1),
        ownership: ownership.clone(),
        incarnation: Incarnation::from_u128(1),
        clock_millis: 1,
    };
    Root {
        repository: repository.id(),
        cluster: cluster(),
        job,
        engine: "memory".into(),
        cut,
        cut_attempt: 1,
        started_millis: cut.0,
        finished_millis: cut.0,
        manual: 1,
        parent,
        slots_per_region: SLOTS_PER_REGION,
        nodes: vec![NodeEntry {
            node: "n0".parse().expect("name"),
            incarnation: Incarnation::from_u128(1),
            engine_version: "1".into(),
            held,
            sealed: Sealed { position },
            released: ownership,
            held_micros: 0,
            slots: SlotSet::all(),
        }],
        pages: vec![],
        totals: Totals {
            parts: parts.len() as u64,
            records: parts.iter().map(|p| p.digest.count).sum(),
            live_bytes: parts.iter().map(|p| p.live_bytes).sum(),
            ..Totals::default()
        },
    }
}
