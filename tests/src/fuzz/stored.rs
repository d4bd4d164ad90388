//! What lies in an object store: envelopes, bodies, runs. Seals hold whoever has no key off; what is under them is decoded
//! here all the same, as it is in a repository without encryption.

use tidemark_common::overlay::{LogSorter, Wanted};
use tidemark_common::run::{Merge, RunReader, blocks_for, open_bytes, open_index, record_hash};
use tidemark_common::seal::{NONCE_LEN, Sealer};
use tidemark_coordinator::job::backup::tiling;
use tidemark_coordinator::kept::KeptSummary;
use tidemark_coordinator::repository::{decode_kept, decode_page, decode_root, decode_root_with_kept};
use tidemark_proto::frame::from_archive;
use tidemark_proto::stored::envelope::{self as e, ObjectKind};
use tidemark_proto::stored::events::JobEvents;
use tidemark_proto::stored::ledger::{Body, Entry};
use tidemark_proto::stored::limits::Limits;
use tidemark_proto::stored::log::{Segment, TRAILER_LEN, Trailer};
use tidemark_proto::stored::run::{Index, SEAL_BLOCK, SEAL_INDEX, SEAL_OBJECT};
use tidemark_proto::stored::{job, repository as r};
use tidemark_proto::wire::control::SecretKey;
use tidemark_proto::{Result, SlotSet, Timestamp};

/// Longest value that is read.
const MAX_VALUE: u64 = 8 << 20;
/// Largest object that is opened.
const MAX_OBJECT: usize = 16 << 20;

const KINDS: [ObjectKind; 14] = [
    ObjectKind::Repository,
    ObjectKind::Key,
    ObjectKind::Epoch,
    ObjectKind::LedgerEntry,
    ObjectKind::Root,
    ObjectKind::Page,
    ObjectKind::Pack,
    ObjectKind::JobRecord,
    ObjectKind::JobEvents,
    ObjectKind::Limits,
    ObjectKind::Kept,
    ObjectKind::RestoreWithUsers,
    ObjectKind::RestoreAt,
    ObjectKind::Segment,
];

fn sealer() -> Sealer {
    Sealer::new(&SecretKey([7; 32]), [9; 16], true)
}

/// Envelopes.
pub fn envelope(bytes: &[u8]) {
    let _ = e::kind_of(bytes);
    for kind in KINDS {
        if let Ok(opened) = e::unwrap(kind, 1, bytes) {
            assert!(opened.body.len() < bytes.len());
        }
        let _ = e::check_header(kind, 1, bytes);
    }
}

/// Bodies of the small objects: the first byte chooses which.
pub fn small(bytes: &[u8]) {
    let Some((which, body)) = bytes.split_first() else { return };
    match which % 14 {
        0 => drop(from_archive::<r::Description>(body)),
        1 => drop(from_archive::<r::WrappedKey>(body)),
        2 => drop(from_archive::<r::Epoch>(body)),
        3 => drop(from_archive::<r::JobRecord>(body)),
        4 => drop(from_archive::<job::BackupBegun>(body)),
        5 => drop(from_archive::<job::BackupCut>(body)),
        6 => drop(from_archive::<job::RestoreBegun>(body)),
        7 => drop(from_archive::<job::RestoreSwitching>(body)),
        8 => drop(from_archive::<job::RestoreEnded>(body)),
        9 => drop(from_archive::<JobEvents>(body)),
        10 => drop(from_archive::<Limits>(body)),
        11 => drop(from_archive::<job::RestoreWithUsers>(body)),
        12 => drop(from_archive::<job::RestoreAt>(body)),
        _ => drop(from_archive::<job::RestoreOptions>(body)),
    }
}

/// Footers and trailers of log segments, and raw chunks.
pub fn segment(bytes: &[u8]) {
    if let Ok(segment) = from_archive::<Segment>(bytes) {
        assert!(segment.range().is_merged() || segment.first >= segment.number);
        let _ = segment.nodes.iter().all(|n| n.slots.is_canonical());
    }
    if let Some(trailer) = bytes.first_chunk::<TRAILER_LEN>() {
        let _ = Trailer::decode(trailer);
    }
    let wanted = Wanted {
        after: Timestamp(1),
        at: Timestamp(u64::MAX / 2),
        slots: SlotSet::range(0, 9000),
        lower: Vec::new(),
        upper: vec![9, 9],
    };
    let mut sorter = LogSorter::new(wanted, 1 << 20, &std::env::temp_dir());
    let _ = sorter.push_chunk(bytes);
    if let Ok(mut overlay) = sorter.finish() {
        while overlay.advance().is_ok_and(|more| more) {
            let _ = overlay.current().map(|entry| entry.key.len());
        }
    }
}

/// Ledger entries, and their bodies: the first byte chooses the kind of body.
pub fn ledger(bytes: &[u8]) {
    if let Ok(entry) = from_archive::<Entry>(bytes) {
        let _ = Body::decode(entry.kind, &entry.body);
    }
    if let Some((kind, body)) = bytes.split_first() {
        let _ = Body::decode(u16::from(*kind), body);
    }
}

/// Manifest roots and pages, and the sums that readers make of them.
pub fn manifest(bytes: &[u8]) {
    if let Ok(root) = decode_root(bytes) {
        let _ = tiling::slots(root.nodes.iter().map(|n| (n.node.as_str(), &n.slots)));
    }
    if let Ok((root, _)) = decode_root_with_kept(bytes) {
        let _ = tiling::slots(root.nodes.iter().map(|n| (n.node.as_str(), &n.slots)));
    }
    if let Ok(kept) = decode_kept(bytes) {
        let _ = KeptSummary::of(&kept);
    }
    if let Ok(page) = decode_page(bytes) {
        let _ = tiling::parts(&page.parts, &[SlotSet::all(), SlotSet::range(0, 99)]);
        for part in &page.parts {
            let _ = (part.slots.len(), part.hash(), part.slots.intersect(&SlotSet::range(3, 7)));
        }
    }
}

/// Indexes of runs.
pub fn index(bytes: &[u8]) {
    if let Ok(index) = from_archive::<Index>(bytes) {
        let ranges = blocks_for(&index, &SlotSet::range(5, 900));
        assert!(ranges.iter().all(|r| r.start < r.end && r.end as usize <= index.blocks.len()));
    }
}

/// Blocks of two runs, opened and merged: the input in pieces, each with its length in front, each sealed as it should be.
pub fn run(bytes: &[u8]) {
    let (mut rest, mut runs) = (bytes, [Vec::new(), Vec::new()]);
    while let Some((len, after)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len));
        let (piece, after) = after.split_at(len.min(after.len()));
        let which = usize::from(len % 2 == 1);
        let number = runs[which].len() as u32;
        let Ok(sealed) = tidemark_common::run::seal_bytes(&sealer(), SEAL_BLOCK, number, piece) else { return };
        runs[which].push(sealed);
        rest = after;
    }
    let _ = walk(runs.into());
}

fn walk(runs: Vec<Vec<Vec<u8>>>) -> Result<u128> {
    let mut readers = Vec::new();
    for blocks in runs {
        let numbers = std::iter::once(0..blocks.len() as u32).collect();
        let mut blocks = blocks.into_iter();
        readers.push(RunReader::new(sealer(), numbers, move || Ok(blocks.next()), MAX_VALUE)?);
    }
    let (mut merge, mut sum) = (Merge::new(readers), 0u128);
    while merge.advance()? {
        let entry = merge.current();
        let (meta, value) = entry.put.unwrap_or_default();
        sum = sum.wrapping_add(record_hash(entry.key, meta, value));
    }
    Ok(sum)
}

/// What stands under a seal: codec, length, compressed bytes. And seals themselves, which nothing made up may open.
pub fn sealed(bytes: &[u8]) {
    for kind in [SEAL_BLOCK, SEAL_INDEX, SEAL_OBJECT] {
        let forged = open_bytes(&sealer(), kind, 0, &mut bytes.to_vec(), MAX_OBJECT);
        assert!(forged.is_err(), "a seal that nobody made");
        let mut made = vec![0; NONCE_LEN];
        made.extend_from_slice(bytes);
        sealer().seal(kind, 0, &mut made);
        let opened = open_bytes(&sealer(), kind, 0, &mut made.clone(), MAX_OBJECT);
        if let Ok(opened) = opened {
            assert!(opened.len() <= MAX_OBJECT);
        }
        if kind == SEAL_INDEX {
            let _ = open_index(&sealer(), &mut made);
        }
    }
}
