//! Flat memory on the read side: a backup of a million parts is written, listed, shown, checked, planned and handed
//! out in far less memory than its part entries would take. The only test here: nextest and cargo give it a process of
//! its own, whose peak is what it measures.

use std::time::Instant;

use tidemark_coordinator::catalog;
use tidemark_coordinator::job::restore::{Candidate, RestoreRequest, Sums, plan_onto};
use tidemark_coordinator::job::{JobKind, Jobs, check};
use tidemark_coordinator::repository::{
    Ledger, Manifest, ManifestWriter, MasterKey, Repository, Store, StoreConfig, Written,
};
use tidemark_proto::hash::{Hash, SetDigest};
use tidemark_proto::id::{Incarnation, JobId, PackId};
use tidemark_proto::slot::even_share;
use tidemark_proto::stored::ledger::{Backup, Body};
use tidemark_proto::stored::manifest::{Extent, NodeEntry, PartEntry, Root, RunEntry, Totals};
use tidemark_proto::stored::paths;
use tidemark_proto::wire::control::{Held, LoadedPart, Ownership, Position, Sealed};
use tidemark_proto::{ClusterName, SlotSet, Timestamp};
use tidemark_tests::bench::peak_rss_mib;

/// Part entries.
const PARTS: u64 = 1_000_000;
/// Slots of a region: 4096 regions, each of many parts by key range.
const SLOTS_PER_REGION: u16 = 4;
/// Regions.
const REGIONS: u64 = 16384 / SLOTS_PER_REGION as u64;
/// Nodes of the restore: their borders cut regions in two.
const TARGETS: u16 = 5;
/// Peak of the resident set, in MiB.
const MOST_MEMORY: u64 = 256;
/// Size of the one pack.
const PACK: usize = 4096;

fn cluster() -> ClusterName {
    ClusterName::new("orders").expect("name")
}

fn digest(number: u64) -> SetDigest {
    SetDigest { count: 10, low: number, high: !number }
}

/// The part with this number, as a base and a delta.
fn part(number: u64) -> PartEntry {
    let (each, more) = (PARTS / REGIONS, PARTS % REGIONS);
    let fat = more * (each + 1);
    let (region, place, of) = match number < fat {
        true => (number / (each + 1), number % (each + 1), each + 1),
        false => (more + (number - fat) / each, (number - fat) % each, each),
    };
    let edge = |place: u64| match place {
        0 => Vec::new(),
        place if place == of => Vec::new(),
        place => format!("{region:06}:customer:{place:012}").into_bytes(),
    };
    let extent = |at: u64| Extent { pack: PackId::from_u128(7), offset: 8 + at * 100, len: 100 };
    let run = |n: u64| RunEntry {
        at: Timestamp(n),
        key_id: 1,
        salt: (u128::from(number) << 64 | u128::from(n)).to_be_bytes(),
        blocks: 1,
        records: 10,
        raw_bytes: 1000,
        extents: vec![extent(2 * n)],
        index: extent(2 * n + 1),
    };
    let slot = region as u16 * SLOTS_PER_REGION;
    PartEntry {
        region: region as u16,
        node: 0,
        slots: SlotSet::range(slot, slot + SLOTS_PER_REGION - 1),
        lower: edge(place),
        upper: edge(place + 1),
        digest: digest(number),
        live_bytes: 1000,
        runs: vec![run(0), run(1)],
    }
}

fn root(repository: &Repository) -> Root {
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
    let node = NodeEntry {
        node: "n0".parse().expect("name"),
        incarnation: Incarnation::from_u128(1),
        engine_version: "1".into(),
        held,
        sealed: Sealed { position },
        released: ownership,
        held_micros: 0,
        slots: SlotSet::all(),
    };
    Root {
        repository: repository.id(),
        cluster: cluster(),
        job: JobId::from_u128(1),
        engine: "embedded".into(),
        cut: Timestamp(2),
        cut_attempt: 1,
        started_millis: 1,
        finished_millis: 2,
        manual: 1,
        parent: Hash::ZERO,
        slots_per_region: SLOTS_PER_REGION,
        nodes: vec![node],
        pages: vec![],
        totals: Totals {
            parts: PARTS,
            records: PARTS * 10,
            live_bytes: PARTS * 1000,
            full_parts: PARTS,
            ..Totals::default()
        },
    }
}

async fn write(repository: &Repository) -> Hash {
    repository
        .store()
        .put(&paths::pack(&cluster(), &PackId::from_u128(7)), vec![0; PACK].into())
        .await
        .expect("pack");
    let scope = repository.draw();
    let mut writer = ManifestWriter::new(repository, &cluster(), &scope);
    for number in 0..PARTS {
        writer.push(part(number)).await.expect("page");
    }
    let Written { hash, root, .. } = writer.finish(root(repository)).await.expect("root");
    let backup = Body::Backup(Backup { job: root.job, cut: root.cut, root: hash, parent: Hash::ZERO });
    let mut ledger = Ledger::load(repository, &cluster()).await.expect("ledger");
    let _ = ledger.append(1, 1, &backup, |_| Ok(())).await.expect("entry");
    hash
}

fn candidates() -> Vec<Candidate> {
    let node = |i| Candidate {
        node: format!("t{i}").parse().expect("name"),
        engine: "embedded".into(),
        engine_version: String::new(),
        replica: false,
        slots: even_share(i, TARGETS),
        moving: SlotSet::EMPTY,
        records: 0,
    };
    (0..TARGETS).map(node).collect()
}

fn request() -> RestoreRequest {
    serde_json::from_value(serde_json::json!({"cluster": "orders", "backup": "latest"})).expect("request")
}

/// What a node answers: each slot of a part holds a share of its records, the last slot what is left.
fn answer(number: u32, part: &PartEntry, slots: &SlotSet) -> LoadedPart {
    let last = part.slots.ranges()[0].1;
    let source = if slots.contains(last) { digest(u64::from(number)) } else { SetDigest::default() };
    LoadedPart { number, source, loaded: source }
}

#[tokio::test]
async fn a_million_parts_take_little_memory() {
    let dir = tempfile::tempdir().expect("folder");
    let url = format!("file://{}", dir.path().display());
    let store = Store::open(&StoreConfig { url, ..StoreConfig::default() }).expect("store");
    let repository = Repository::init(store, Some(&MasterKey::generate()), 1).await.expect("repository");
    let begin = Instant::now();
    let told = |what: &str| eprintln!("{what}: {:.1} s, peak {} MiB", begin.elapsed().as_secs_f64(), peak());
    let _ = repository.take_epoch("c1", 1).await.expect("epoch");
    let hash = write(&repository).await;
    told("written");

    let list = catalog::recorded(&repository, &cluster()).await.expect("list");
    assert_eq!((list.len(), list[0].records), (1, PARTS * 10));
    let shown = catalog::show(&repository, &cluster(), "latest").await.expect("show");
    assert_eq!(shown.parts, PARTS);
    let jobs = Jobs::default();
    let job = jobs.begin(JobKind::Check, &cluster(), false, 1).expect("job");
    let _ = check::run(repository.clone(), job, cluster(), None, Vec::new()).await.expect("check");
    told("checked");

    let manifest = Manifest::open(&repository, &cluster(), &hash).await.expect("manifest");
    let plan = plan_onto(manifest, candidates(), request()).await.expect("plan");
    assert_eq!(plan.problems, Vec::<String>::new());
    let shared = plan.targets.iter().map(|t| t.parts).sum::<u64>() - PARTS;
    assert!(shared > 0, "no border of a node cuts a region: the shape of this test is wrong");
    assert!(plan.targets.iter().all(|t| t.bytes.abs_diff(PARTS * 1000 / 5) < PARTS));
    told("planned");

    let mut shares: Vec<_> =
        plan.targets.iter().enumerate().map(|(n, t)| (t, plan.share(n).expect("share"))).collect();
    let (mut sums, mut loaded) = (Sums::default(), 0);
    // All nodes load at once, a batch in turn.
    while !shares.is_empty() {
        let mut going = Vec::new();
        for (target, mut share) in shares {
            let Some(batch) = share.next().await.expect("batch") else { continue };
            let done = batch.iter().map(|(number, part)| answer(*number, part, &target.slots)).collect();
            loaded += sums.take(&batch, &target.slots, done).expect("as the manifest says").parts;
            going.push((target, share));
        }
        shares = going;
    }
    assert_eq!(loaded, PARTS + shared);
    sums.whole(PARTS).expect("all compared");
    told("handed out");
    assert!((1..MOST_MEMORY).contains(&peak()), "peak of the resident set: {} MiB", peak());
}

fn peak() -> u64 {
    peak_rss_mib(std::process::id())
}
