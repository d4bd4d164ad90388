//! Flat memory of the log: what can be restored is found out of many segments in the memory of a few. The only test here: nextest and
//! cargo give it a process of its own, whose peak is what it measures.

use bytes::Bytes;
use tidemark_coordinator::log::{Chains, Interval, NodeSpan, SegmentInfo, point, trimmable, windows};
use tidemark_coordinator::repository::{Ledger, MasterKey, Repository, Store, StoreConfig};
use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::slot::even_share;
use tidemark_proto::stored::ledger::{Backup, Body};
use tidemark_proto::stored::log::{Segment, SegmentNode, SegmentRange};
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Incarnation, NodeName, Timestamp};

/// Nodes of the cluster: each is in every segment.
const NODES: u16 = 3;
/// Segments, each with a restore point: at 5 s those of a month.
const SEGMENTS: u64 = 500_000;
/// Those of them that lie in a repository.
const STORED: u64 = 40_000;
/// Memory that may be taken beside what the process has, in KiB. A line for each stored segment would take 20 MiB.
const MOST_MEMORY: u64 = 10 << 10;

fn name(n: u16) -> NodeName {
    NodeName::new(format!("node-{n}")).expect("name")
}

/// Positions and times of a segment's end; the first one begins.
fn at(number: u64) -> Timestamp {
    Timestamp::new(1_000_000 + number * 5000, 0)
}

fn span(n: u16, number: u64) -> NodeSpan {
    NodeSpan {
        node: name(n),
        incarnation: Incarnation::from_u128(u128::from(n)),
        slots: even_share(n, NODES),
        from: if number == 1 { at(1).0 } else { at(number - 1).0 },
        to: at(number).0,
        closed: at(number),
        begins: number == 1,
        branches: false,
    }
}

/// Memory of this process in KiB: the peak since the last [`begin`], or the present.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|l| l.strip_prefix(field)).expect("field");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("number")
}

/// Forgets the peak; answers the present.
fn begin() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").expect("peak");
    memory("VmRSS")
}

fn little(what: &str, before: u64) {
    let more = memory("VmHWM").saturating_sub(before);
    eprintln!("{what}: {more} KiB");
    assert!(more < MOST_MEMORY, "{what}: {more} KiB more than before");
}

fn all_but_the_first(interval: &Interval, base: u64, last: u64) {
    assert_eq!((interval.start, interval.end), (at(1), at(last)));
    let points = interval.points.as_ref().expect("points");
    assert_eq!(points.count_from(at(base)), last - base + 1);
    assert!(points.has(at(base)) && points.latest(interval.end) == Some(at(last)));
}

fn chains_of_many_segments() {
    let before = begin();
    let (base, wanted) = (SEGMENTS / 7, Timestamp(at(SEGMENTS / 3).0 + 7));
    let mut chains = Chains::seeking([at(base)], Some(wanted));
    for number in 1..=SEGMENTS {
        let nodes = (0..NODES).map(|n| span(n, number)).collect();
        let range = SegmentRange::one(number);
        chains.push(&SegmentInfo { range, nodes, points: Some(vec![at(number)]), ..SegmentInfo::default() });
    }
    let windows = chains.windows();
    assert_eq!(windows.intervals.len(), 1);
    all_but_the_first(&windows.intervals[0], base, SEGMENTS);
    assert_eq!(windows.intervals[0].latest(wanted), Some(at(SEGMENTS / 3)));
    let restorable =
        windows.restorable(&[(at(base), JobId::from_u128(7)), (Timestamp(at(base).0 + 9), JobId::default())]);
    assert_eq!((restorable[0].earliest, restorable[0].bases.len()), (at(base), 1));
    little("chains", before);
}

/// Writes segments without chunks as files, as a session would put them.
fn write(repository: &Repository, cluster: &ClusterName, folder: &std::path::Path) {
    let mut previous = Hash::ZERO;
    std::fs::create_dir_all(folder.join(paths::log_dir(cluster))).expect("folder");
    for number in 1..=STORED {
        let node = |n| {
            let NodeSpan { node, incarnation, slots, from, to, closed, begins, .. } = span(n, number);
            let key = repository.draw_batch(cluster, &node);
            let (key_id, salt, begins) = (key.key_id, key.salt, u8::from(begins));
            SegmentNode { node, incarnation, slots, from, to, closed, key_id, salt, begins }
        };
        let mut segment = Segment {
            number,
            first: number,
            stands_for: Hash::ZERO,
            previous,
            epoch: 1,
            put_id: [0; 16],
            at_millis: at(number).millis(),
            slots_per_region: 64,
            nodes: (0..NODES).map(node).collect(),
            chunks: Vec::new(),
        };
        let none: [Bytes; 0] = [];
        let built = repository.build_segment(cluster, &mut segment, Some(&[at(number)]), &none).expect("segment");
        std::fs::write(folder.join(paths::log(cluster, number)), &built.bytes).expect("file");
        previous = built.hash;
    }
}

#[tokio::test]
async fn many_segments_take_little_memory() {
    chains_of_many_segments();

    let dir = tempfile::tempdir().expect("folder");
    let url = format!("file://{}", dir.path().display());
    let store = Store::open(&StoreConfig { url, ..StoreConfig::default() }).expect("store");
    let repository = Repository::init(store, Some(&MasterKey::generate()), 1).await.expect("repository");
    let cluster = ClusterName::new("orders").expect("name");
    let _ = repository.take_epoch("c1", 1).await.expect("epoch");
    write(&repository, &cluster, dir.path());
    let mut ledger = Ledger::load(&repository, &cluster).await.expect("ledger");
    let base = STORED / 2;
    let body =
        Body::Backup(Backup { job: JobId::from_u128(7), cut: at(base), root: Hash::ZERO, parent: Hash::ZERO });
    let _ = ledger.append(1, 1, &body, |_| Ok(())).await.expect("entry");

    let before = begin();
    let (all, restorable) = windows(&repository, &ledger).await.expect("windows");
    all_but_the_first(&all.intervals[0], base, STORED);
    assert_eq!((restorable.len(), restorable[0].earliest), (1, at(base)));
    little("windows", before);
    let wanted = Timestamp(at(base + 100).0 + 1);
    let point = point(&repository, &ledger, wanted, None).await.expect("point");
    assert_eq!((point.at, point.base.backup.cut, point.segments()), (at(base + 100), at(base), 100));
    little("a restore point", before);
    let trim = trimmable(&repository, &ledger, 1).await.expect("trim");
    assert_eq!((trim.below, trim.objects.len() as u64), (base, base - 1));
}
