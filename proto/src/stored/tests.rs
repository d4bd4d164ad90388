//! Golden bytes of every stored struct, and decoders that meet anything.

use proptest::prelude::*;

use super::envelope::{self, ObjectKind};
use super::{events, job, kept, ledger, limits, log, manifest, repository, run};
use crate::frame::{self, Header};
use crate::hash::{Hash, SetDigest};
use crate::id::{ClusterName, Incarnation, JobId, NodeName, PackId, RepositoryId};
use crate::slot::SlotSet;
use crate::time::Timestamp;
use crate::wire::control::{
    Held, Kept, Ownership, Position, RestoreParts, Sealed, SecretBytes, Setting, Settle, Upload,
};
use crate::wire::golden::check_stored;

const FILE: &str = "stored-v1.txt";

/// Checks a struct's archive against the kept one.
macro_rules! archive {
    ($name:literal, $value:expr) => {
        check_stored(FILE, $name, &$value, |v| frame::to_archive(v).into_vec(), frame::from_archive)
    };
}

/// Checks a struct in its envelope against the kept object.
macro_rules! object {
    ($name:literal, $kind:expr, $version:expr, $value:expr) => {
        check_stored(
            FILE,
            $name,
            &$value,
            |v| envelope::wrap($kind, $version, 0, &frame::to_archive(v)),
            |bytes| frame::from_archive(envelope::unwrap($kind, $version, bytes)?.body),
        )
    };
}

fn cluster() -> ClusterName {
    ClusterName::new("orders-eu").unwrap()
}

fn extent(n: u128) -> manifest::Extent {
    manifest::Extent { pack: PackId::from_u128(n << 64 | 1), offset: 8 + n as u64, len: 1 << 20 }
}

fn run_entry() -> manifest::RunEntry {
    manifest::RunEntry {
        at: Timestamp(1 << 50),
        key_id: 1,
        salt: [5; 16],
        blocks: 800,
        records: 100_000,
        raw_bytes: 100 << 20,
        extents: vec![extent(1), extent(2)],
        index: extent(3),
    }
}

fn part() -> manifest::PartEntry {
    manifest::PartEntry {
        region: 3,
        node: 1,
        slots: SlotSet::from_ranges([(192, 200), (210, 255)]),
        lower: vec![0, 192, b'a'],
        upper: vec![],
        digest: SetDigest { count: 9, low: 8, high: 7 },
        live_bytes: 123_456,
        runs: vec![run_entry(), manifest::RunEntry { at: Timestamp(2 << 50), ..run_entry() }],
    }
}

fn ownership() -> Ownership {
    Ownership { role: "primary".into(), slots: SlotSet::range(0, 8191), moving: SlotSet::EMPTY, config_epoch: 3 }
}

fn root() -> manifest::Root {
    let position = Position { history: "8371b4fb1155b71f".into(), offset: 1_234_567 };
    let node = manifest::NodeEntry {
        node: NodeName::new("n1").unwrap(),
        incarnation: Incarnation::from_u128(77),
        engine_version: "0.1.0".into(),
        held: Held {
            position: position.clone(),
            max_timestamp: Timestamp::new(1_700_000_000_123, 5),
            ownership: ownership(),
            incarnation: Incarnation::from_u128(77),
            clock_millis: 1_700_000_000_124,
        },
        sealed: Sealed { position },
        released: ownership(),
        held_micros: 8_123,
        slots: SlotSet::range(0, 8191),
    };
    manifest::Root {
        repository: RepositoryId::from_u128(1 << 100),
        cluster: cluster(),
        job: JobId::from_u128(0x11 << 64 | 5),
        engine: "embedded".into(),
        cut: Timestamp(1 << 50),
        cut_attempt: 2,
        started_millis: 1_700_000_000_000,
        finished_millis: 1_700_000_009_000,
        manual: 1,
        parent: Hash::of(b"parent"),
        slots_per_region: 64,
        nodes: vec![node],
        pages: vec![manifest::PageRef { hash: Hash::of(b"page"), parts: 256 }],
        totals: manifest::Totals {
            parts: 1,
            records: 2,
            live_bytes: 3,
            read_bytes: 4,
            new_bytes: 5,
            stored_bytes: 6,
            full_parts: 7,
            delta_parts: 8,
            same_parts: 9,
        },
    }
}

fn root_with_kept() -> manifest::RootWithKept {
    let kept = manifest::KeptRef { hash: Hash::of(b"kept"), bytes: 1234 };
    manifest::RootWithKept { root: root(), kept }
}

fn kept_things() -> kept::KeptThings {
    let kept = Kept {
        read_millis: 1_700_000_000_126,
        users: vec![SecretBytes(b"user default on nopass ~* &* +@all".to_vec())],
        libraries: vec![b"#!lua name=lib".to_vec()],
        settings: vec![Setting { name: "maxmemory".into(), value: "0".into() }],
        topology: Vec::new(),
        missing: Vec::new(),
    };
    let nodes = vec![kept::KeptOf { node: NodeName::new("n1").unwrap(), kept }];
    kept::KeptThings { job: JobId::from_u128(6), nodes }
}

fn page() -> manifest::Page {
    manifest::Page { parts: vec![part()], packs: vec![(PackId::from_u128(5), 1 << 25)] }
}

fn job_record() -> repository::JobRecord {
    repository::JobRecord {
        job: JobId::from_u128(6),
        cluster: cluster(),
        epoch: 9,
        at_millis: 1_700_000_000_000,
        cut: Timestamp(1 << 50),
        parent: Hash::of(b"parent"),
        parts: vec![part()],
    }
}

fn bodies() -> Vec<(&'static str, ledger::Body)> {
    use ledger::{Backup, Body, Condemn, Delete, Failed, Fence, Hold, Leave, Policy, Trim, Void};
    let nodes = vec!["n1".into(), "n2".into()];
    let job = JobId::from_u128(6);
    let root = Hash::of(b"root");
    vec![
        ("fence", Body::Fence(Fence { coordinator: "c1".into() })),
        ("policy", Body::Policy(Policy { engine: "embedded".into(), slots_per_region: 64, nodes })),
        ("backup", Body::Backup(Backup { job, cut: Timestamp(1 << 50), root, parent: Hash::ZERO })),
        ("delete", Body::Delete(Delete { job })),
        (
            "failed",
            Body::Failed(Failed { job, started_millis: 5, code: 4, reason: "n1 is away".into(), manual: 1 }),
        ),
        ("condemn", Body::Condemn(Condemn { packs: vec![PackId::from_u128(9)], roots: vec![root] })),
        ("hold", Body::Hold(Hold { reader: JobId::from_u128(7), backup: job, until_millis: 1_700_000_000_000 })),
        ("leave", Body::Leave(Leave { reader: JobId::from_u128(7) })),
        ("log-policy", Body::LogPolicy(log_policy())),
        ("trim", Body::Trim(Trim { below: 4711 })),
        ("void", Body::Void(Void { segment: 4712, reason: "its seal does not hold".into() })),
    ]
}

fn log_policy() -> ledger::LogPolicy {
    ledger::LogPolicy { state: ledger::LOG_ON, interval_millis: 2000, segment_bytes: 16 << 20, idle_millis: 30_000 }
}

fn entry(kind: u16, body: Vec<u8>) -> ledger::Entry {
    let previous = Hash::of(b"previous");
    ledger::Entry { number: 12, previous, epoch: 9, put_id: [4; 16], at_millis: 1_700_000_000_000, kind, body }
}

fn index() -> run::Index {
    let block = run::BlockEntry { first: vec![0, 192, b'a'], records: 70, raw_len: 131_072, sealed_len: 60_000 };
    let continuation = run::BlockEntry { first: vec![], records: 0, ..block.clone() };
    run::Index { blocks: vec![block, continuation] }
}

#[test]
fn golden_bytes_of_the_top() {
    let id = RepositoryId::from_u128(1 << 100);
    let description = repository::Description { id, created_millis: 1_700_000_000_000, encrypted: 1 };
    object!("repository", ObjectKind::Repository, repository::VERSION, description);
    let key = repository::WrappedKey {
        repository: id,
        key_id: 1,
        method: "file".into(),
        hint: [1, 2, 3, 4, 5, 6, 7, 8],
        nonce: [9; 12],
        wrapped: vec![7; 48],
    };
    object!("key", ObjectKind::Key, repository::VERSION, key);
    let epoch = repository::Epoch { coordinator: "c1".into(), put_id: [3; 16], at_millis: 1_700_000_000_000 };
    object!("epoch", ObjectKind::Epoch, repository::VERSION, epoch);
    archive!("job-record", job_record());
}

fn job_events() -> events::JobEvents {
    let event = |what: &str, node: &str| events::Event {
        at_millis: 1_700_000_000_000,
        what: what.into(),
        node: node.into(),
        message: "sending parts".into(),
    };
    events::JobEvents {
        job: JobId::from_u128(6),
        cluster: cluster(),
        kind: "backup".into(),
        epoch: 9,
        events: vec![event("phase", ""), event("retry", "n1")],
        lost: 2,
    }
}

#[test]
fn golden_bytes_of_events_and_limits() {
    object!("job-events", ObjectKind::JobEvents, events::VERSION, job_events());
    let limits = limits::Limits {
        fleet: limits::Limit { set: 1, bytes_per_second: 50_000_000 },
        per_agent: limits::Limit { set: 0, bytes_per_second: 0 },
        at_millis: 1_700_000_000_000,
        put_id: [3; 16],
    };
    object!("limits", ObjectKind::Limits, limits::VERSION, limits);
}

#[test]
fn golden_bytes_of_the_ledger() {
    for (name, body) in bodies() {
        let (kind, archive) = body.encode();
        let name = format!("ledger-{name}");
        let whole = entry(kind, archive);
        let encode = |e: &ledger::Entry| frame::to_archive(e).into_vec();
        check_stored(FILE, &name, &whole, encode, frame::from_archive);
        assert_eq!(ledger::Body::decode(whole.kind, &whole.body).unwrap(), body);
    }
    assert_eq!(ledger::Body::decode(999, b"of a newer build").unwrap(), ledger::Body::Unknown(999));
}

#[test]
fn golden_bytes_of_the_manifest() {
    archive!("root", root());
    archive!("page", page());
    archive!("part", part());
    // The name by which a later backup calls this part its parent.
    assert_eq!(part().hash(), Hash::of(&frame::to_archive(&part())));
    archive!("run-index", index());
    archive!("root-with-kept", root_with_kept());
    object!("kept-things", ObjectKind::Kept, kept::VERSION, kept_things());
}

mod log_format;

/// Every decoder of structured bytes.
fn decode_all(bytes: &[u8]) {
    let _ = frame::from_archive::<manifest::Root>(bytes);
    let _ = frame::from_archive::<manifest::RootWithKept>(bytes);
    let _ = frame::from_archive::<kept::KeptThings>(bytes);
    let _ = frame::from_archive::<manifest::Page>(bytes);
    let _ = frame::from_archive::<manifest::PartEntry>(bytes);
    let _ = frame::from_archive::<repository::Description>(bytes);
    let _ = frame::from_archive::<repository::WrappedKey>(bytes);
    let _ = frame::from_archive::<repository::Epoch>(bytes);
    let _ = frame::from_archive::<repository::JobRecord>(bytes);
    let _ = frame::from_archive::<ledger::Entry>(bytes);
    let _ = frame::from_archive::<run::Index>(bytes);
    let _ = frame::from_archive::<log::Segment>(bytes);
    let _ = frame::from_archive::<events::JobEvents>(bytes);
    let _ = frame::from_archive::<limits::Limits>(bytes);
    let _ = frame::from_archive::<Upload>(bytes);
    let _ = frame::from_archive::<Settle>(bytes);
    let _ = frame::from_archive::<RestoreParts>(bytes);
    if let Ok(held) = frame::from_archive::<Held>(bytes) {
        let _ = held.ownership.slots.is_canonical();
        let _ = held.ownership.slots.to_string();
    }
    for kind in 0..12 {
        let _ = ledger::Body::decode(kind, bytes);
    }
    for kind in [ObjectKind::Repository, ObjectKind::Pack, ObjectKind::Root] {
        let _ = envelope::unwrap(kind, 1, bytes);
    }
    if let Ok(head) = <[u8; 8]>::try_from(&bytes[..bytes.len().min(8)]) {
        let _ = Header::decode(head);
    }
    let mut rest = bytes;
    while run::take_varint(&mut rest).is_ok_and(|len| run::take(&mut rest, len).is_ok()) && !rest.is_empty() {}
}

proptest! {
    #[test]
    fn no_decoder_panics_on_noise(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        decode_all(&bytes);
    }

    /// Archives of real values with some bytes changed or cut away: these get further than noise.
    #[test]
    fn no_decoder_panics_on_damaged_archives(
        which in 0usize..9,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = match which {
            0 => frame::to_archive(&root()),
            1 => frame::to_archive(&page()),
            2 => frame::to_archive(&job_record()),
            3 => frame::to_archive(&index()),
            4 => frame::to_archive(&root().nodes[0].held),
            5 => frame::to_archive(&job_events()),
            6 => frame::to_archive(&root_with_kept()),
            7 => frame::to_archive(&kept_things()),
            _ => {
                let (kind, body) = bodies()[4].1.encode();
                frame::to_archive(&entry(kind, body))
            }
        };
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        let end = cut.map_or(bytes.len(), |c| c.index(bytes.len()));
        decode_all(&bytes[..end]);
    }
}

#[test]
fn golden_bytes_of_job_records() {
    let id = JobId::from_u128(6);
    let name = |n: &str| NodeName::new(n).unwrap();
    let begun = job::BackupBegun { job: id, epoch: 9, started_millis: 1_700_000_000_000, manual: 1 };
    object!("backup-begun", ObjectKind::BackupBegun, job::VERSION, begun);
    let cut = job::BackupCut {
        job: id,
        engine: "embedded".into(),
        slots_per_region: 64,
        cut: Timestamp(1 << 50),
        attempt: 2,
        parent: Hash::of(b"parent"),
        nodes: root().nodes,
    };
    object!("backup-cut", ObjectKind::BackupCut, job::VERSION, cut);
    let begun = job::RestoreBegun {
        job: id,
        epoch: 9,
        started_millis: 1_700_000_000_000,
        source: cluster(),
        backup: JobId::from_u128(7),
        in_place: 1,
        salvage: 0,
        keys: vec!["user:*".into()],
        targets: vec![name("n1"), name("n2")],
    };
    object!("restore-begun", ObjectKind::RestoreBegun, job::VERSION, begun);
    let options = job::RestoreOptions {
        job: id,
        now_millis: 1_700_000_100_000,
        expiry: 1,
        slots: SlotSet::range(0, 5460),
        dbs: vec![0, 3],
        expired: Some(17),
    };
    object!("restore-options", ObjectKind::RestoreOptions, job::VERSION, options);
    object!("restore-at", ObjectKind::RestoreAt, job::VERSION, job::RestoreAt { job: id, at: Timestamp(1 << 50) });
    object!("restore-with-users", ObjectKind::RestoreWithUsers, job::VERSION, job::RestoreWithUsers { job: id });
    let expect = SetDigest { count: 3, low: 4, high: 5 };
    let target = job::SwitchTarget { node: name("n1"), slots: SlotSet::range(0, 5460), expect };
    let switching = job::RestoreSwitching { job: id, at: Timestamp(1 << 50), targets: vec![target] };
    object!("restore-switching", ObjectKind::RestoreSwitching, job::VERSION, switching);
    let ended = job::RestoreEnded { job: id, at_millis: 1_700_000_000_001, reason: "node n1 is away".into() };
    object!("restore-ended", ObjectKind::RestoreEnded, job::VERSION, ended);
}
