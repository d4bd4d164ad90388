use super::*;
use crate::hash::{Hash, SetDigest};
use crate::id::{Incarnation, JobId};
use crate::slot::SlotSet;
use crate::time::Timestamp;
use crate::wire::golden::check;

const FILE: &str = "control-v1.txt";

fn position() -> Position {
    Position { history: "8371b4fb1155b71f".into(), offset: 1_234_567 }
}

fn ownership() -> Ownership {
    Ownership {
        role: "primary".into(),
        slots: SlotSet::from_ranges([(0, 5460), (9000, 9000)]),
        moving: SlotSet::range(5000, 5001),
        config_epoch: 3,
    }
}

fn digest(n: u64) -> SetDigest {
    SetDigest { count: n, low: n << 32 | 7, high: u64::MAX - n }
}

fn loaded() -> LoadedPart {
    LoadedPart { number: 4, source: digest(10), loaded: digest(9) }
}

#[test]
fn golden_bytes_of_state_and_cut() {
    check(FILE, "command-head", &CommandHead { epoch: 9, job: JobId::from_u128(0x11 << 64 | 5), attempt: 2 });
    check(FILE, "describe", &Describe {});
    let description = Description {
        engine: "embedded".into(),
        engine_version: "0.1.0".into(),
        incarnation: Incarnation::from_u128(77),
        state: "available".into(),
        position: position(),
        ownership: ownership(),
        clock_millis: 1_700_000_000_123,
        records: 1_000_000,
        bytes: 131_072_000,
        changes_since: true,
        data_address: "127.0.0.1:7001".into(),
        ledger_number: 12,
        ledger_hash: Hash::of(b"ledger"),
    };
    check(FILE, "description", &description);
    check(FILE, "hold", &Hold { budget_micros: 50_000 });
    let held = Held {
        position: position(),
        max_timestamp: Timestamp::new(1_700_000_000_123, 5),
        ownership: ownership(),
        incarnation: Incarnation::from_u128(77),
        clock_millis: 1_700_000_000_124,
    };
    check(FILE, "held", &held);
    check(FILE, "seal", &Seal { at: Timestamp::new(1_700_000_000_125, 0) });
    check(FILE, "sealed", &Sealed { position: position() });
    check(FILE, "release", &Release {});
    check(FILE, "released", &Released { ownership: ownership(), held_micros: 8_123 });
}

#[test]
fn golden_bytes_of_upload() {
    let parent = PartParent {
        region: 3,
        slots: SlotSet::range(192, 255),
        lower: vec![0, 192, b'a'],
        upper: vec![],
        hash: Hash::of(b"part"),
    };
    let upload = Upload {
        at: Timestamp(1 << 50),
        slots: SlotSet::all(),
        slots_per_region: 64,
        ingest: "coordinator:7400".into(),
        parent_at: Timestamp(1 << 49),
        parent_incarnation: Incarnation::from_u128(77),
        parents: vec![parent],
        concurrency: 4,
        stored: vec![(1, vec![]), (2, vec![0, 128])],
    };
    check(FILE, "upload", &upload);
    check(FILE, "uploaded", &Uploaded { parts: 256, bytes_read: 1 << 33 });
    let settle = Settle {
        committed: 1,
        at: Timestamp(1 << 50),
        ledger_number: 13,
        ledger_hash: Hash::of(b"entry"),
        parts: vec![(3, vec![0, 192, b'a'], Hash::of(b"part"))],
    };
    check(FILE, "settle", &settle);
    check(FILE, "done", &Done {});
    check(FILE, "progress", &Progress { bytes: 1, wire_bytes: 2, records: 3, parts: 4 });
    check(FILE, "failure", &Failure { code: 4, message: "the position moved".into() });
}

#[test]
fn golden_bytes_of_restore() {
    let begin =
        RestoreBegin { at: Timestamp(1 << 50), slots: SlotSet::range(0, 99), in_place: 1, serve: "c:7400".into() };
    check(FILE, "restore-begin", &begin);
    check(FILE, "restore-ready", &RestoreReady { loaded: vec![loaded()] });
    let run = RunSource { number: 1, blocks: 800, run_tag: [6; 16], key: SecretKey([9; 32]), encrypt: 1 };
    let part = RestorePart { number: 4, slots: SlotSet::range(0, 63), runs: vec![run], bytes: 1 << 30 };
    let parts = RestoreParts { parts: vec![part], keys: vec!["user:*".into(), "!user:9*".into()], concurrency: 0 };
    check(FILE, "restore-parts", &parts);
    check(FILE, "restore-parts-done", &RestorePartsDone { parts: vec![loaded()] });
    check(FILE, "restore-verify", &RestoreVerify { expect: digest(9) });
    check(FILE, "restore-verified", &RestoreVerified { digest: digest(9) });
    check(FILE, "restore-finish", &RestoreFinish { expect: digest(9) });
    let finished = RestoreFinished { incarnation: Incarnation::from_u128(78), digest: digest(9) };
    check(FILE, "restore-finished", &finished);
    check(FILE, "restore-abort", &RestoreAbort {});
}

#[test]
fn golden_bytes_of_restore_options() {
    let begin = RestoreBegin { at: Timestamp(1 << 50), slots: SlotSet::all(), in_place: 0, serve: "c:7400".into() };
    let options =
        LoadOptions { slots: SlotSet::range(0, 5460), dbs: vec![0, 3], expiry: 1, shift_millis: 86_400_000 };
    check(FILE, "restore-begin-as", &RestoreBeginAs { begin, options });
    check(FILE, "restore-count", &RestoreCount {});
    check(FILE, "restore-counted", &RestoreCounted { expired: 17 });
}

#[test]
fn golden_bytes_of_diagnosis() {
    check(FILE, "diagnose", &Diagnose {});
    let diagnosed = Diagnosed {
        build: "tidemark-agent 0.1.0".into(),
        config: "cluster = \"orders\"\n".into(),
        metrics: "tidemark_agent_connected 1\n".into(),
        log: "a line\n".into(),
    };
    check(FILE, "diagnosed", &diagnosed);
}

#[test]
fn secret_keys_are_not_shown() {
    let run = RunSource { number: 1, blocks: 1, run_tag: [0; 16], key: SecretKey([0xab; 32]), encrypt: 1 };
    let shown = format!("{run:?}");
    assert!(!shown.contains("171") && !shown.contains("ab"), "{shown}");
}

#[test]
fn golden_bytes_of_resumption() {
    let upload = Upload {
        at: Timestamp(1 << 50),
        slots: SlotSet::range(0, 5460),
        slots_per_region: 64,
        ingest: "coordinator:7400".into(),
        parent_at: Timestamp::ZERO,
        parent_incarnation: Incarnation::from_u128(77),
        parents: Vec::new(),
        concurrency: 2,
        stored: vec![(3, vec![])],
    };
    check(FILE, "upload-rest", &UploadRest { upload, rest: vec![(3, vec![0, 192, b'm'])] });
    check(FILE, "list-jobs", &ListJobs {});
    check(FILE, "describe-source", &DescribeSource {});
    check(FILE, "log-start", &LogStart { session: JobId::from_u128(9), ingest: "10.0.0.1:7000".into() });
    check(FILE, "log-stop", &LogStop {});
    check(FILE, "log-hold", &LogHold { budget_millis: 50 });
    check(FILE, "log-seal", &LogSeal { at: Timestamp(5 << 40) });
    check(FILE, "log-release", &LogRelease {});
    let logged = RestorePartsLogged {
        parts: RestoreParts { parts: vec![], keys: vec!["a*".into()], concurrency: 0 },
        after: Timestamp(5),
        at: Timestamp(9),
        bounds: vec![PartBounds { lower: vec![0, 1], upper: vec![] }],
    };
    check(FILE, "restore-parts-logged", &logged);
    check(FILE, "prepare", &Prepare {});
    check(FILE, "prepare-early", &PrepareEarly {});
    let (slots, ingest) = (SlotSet::from_ranges([(0, 63), (128, 5460)]), "coordinator:7471".to_owned());
    check(FILE, "upload-early", &UploadEarly { slots, slots_per_region: 64, ingest, concurrency: 2 });
    check(FILE, "prepared", &Prepared { bytes: 117_440_512 });
    let (backups, restores) = (vec![JobId::from_u128(5)], vec![JobId::from_u128(6)]);
    check(FILE, "open-jobs", &OpenJobs { backups, restores });
}

#[test]
fn golden_bytes_of_kept_things() {
    check(FILE, "keep", &Keep { at: Timestamp(1 << 50), most_bytes: 16 << 20 });
    let users = vec![SecretBytes(b"user app on #98c1eb4ee93476743763878fcb96a25f ~app:* &* -@all +get".to_vec())];
    let libraries = vec![b"#!lua name=lib\nredis.register_function('f', function() return 1 end)".to_vec()];
    let node = TopologyNode {
        id: "8371b4fb1155b71f".into(),
        address: "192.0.2.1:6379".into(),
        role: "primary".into(),
        follows: String::new(),
        slots: SlotSet::range(0, 5460),
        config_epoch: 3,
        myself: 1,
    };
    let kept = Kept {
        read_millis: 1_700_000_000_126,
        users: users.clone(),
        libraries: libraries.clone(),
        settings: vec![Setting { name: "maxmemory".into(), value: "0".into() }],
        topology: vec![node],
        missing: vec![NotKept { what: "users".into(), why: "the right +acl|list is missing".into() }],
    };
    check(FILE, "kept", &kept);
    check(FILE, "restore-kept", &RestoreKept { step: KEPT_USERS, replace: 1, libraries, users });
    let restored = RestoredKept { libraries: 1, users: 2, warnings: vec!["user `app` was not set".into()] };
    check(FILE, "restored-kept", &restored);
    let shown = format!("{kept:?}");
    assert!(!shown.contains("98c1eb") && !shown.contains("57, 56"), "{shown}");
    assert!(Kept::default().is_empty() && !kept.is_empty());
}

#[test]
fn golden_bytes_of_clones() {
    let (name, at) = ("orders-trial".to_owned(), Timestamp::new(1_700_000_000_125, 3));
    let clone = CloneInfo { name: name.clone(), at, created_millis: 1_700_000_000_126, bytes: 40_960 };
    check(FILE, "create-clone", &CreateClone { name: name.clone(), at });
    check(FILE, "clone-created", &CloneCreated { clone: clone.clone(), fresh: 1 });
    check(FILE, "list-clones", &ListClones {});
    check(FILE, "clones", &Clones { clones: vec![clone], highest: Timestamp::new(1_700_000_000_127, 0) });
    check(FILE, "drop-clone", &DropClone { name, at });
    check(FILE, "clone-dropped", &CloneDropped { dropped: 1 });
}
