//! Golden bytes of runs, sealed and plain, and readers that meet anything under a seal that holds.

use std::path::PathBuf;

use tidemark_proto::stored::run::{BlockEntry, SEAL_BLOCK};

use super::*;
use crate::testing::golden;

fn kept(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/run-v1.txt");
    golden(&file, name, make)
}

/// Writes a run: its blocks and its index, as they are stored.
fn seal(sealer: &Sealer, records: &Records) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut blocks = Vec::new();
    let mut w = RunWriter::new(sealer, |b| {
        blocks.push(b);
        Ok(())
    })
    .unwrap();
    for ((slot, key), put) in records {
        w.push(Entry { slot: *slot, key, put: put.as_ref().map(|(m, v)| (&m[..], &v[..])) }).unwrap();
    }
    let index = w.finish().unwrap().index;
    (blocks, index)
}

fn open(encrypt: bool, blocks: Vec<Vec<u8>>, mut index: Vec<u8>) -> Records {
    let index = open_index(&of(encrypt), &mut index).unwrap();
    assert_eq!(index.blocks.len(), blocks.len());
    let (ranges, mut blocks) = (blocks_for(&index, &SlotSet::all()), blocks.into_iter());
    collect(RunReader::new(of(encrypt), ranges, move || Ok(blocks.next()), MAX_VALUE).unwrap()).unwrap()
}

fn of(encrypt: bool) -> Sealer {
    Sealer::new(&SecretKey([3; 32]), [9; 16], encrypt)
}

#[test]
fn golden_bytes_of_a_run() {
    // Nothing that zstd shrinks: its output may change with its version, and need not.
    let mut records = Records::new();
    put(&mut records, b"alpha", b"0aZ9.7qX".to_vec());
    put(&mut records, b"", Vec::new());
    let _ = records.insert((7, b"gone".to_vec()), None);
    for (mode, encrypt) in [("sealed", true), ("plain", false)] {
        let (blocks, index) = seal(&of(encrypt), &records);
        assert_eq!(blocks.len(), 1);
        let old_block = kept(&format!("{mode}-block"), || blocks[0].clone());
        let old_index = kept(&format!("{mode}-index"), || index.clone());
        assert_eq!((&blocks[0], &index), (&old_block, &old_index), "{mode}: the same records make other bytes");
        assert_eq!(open(encrypt, vec![old_block], old_index), records, "{mode}: old bytes hold other records");
    }
}

#[test]
fn golden_bytes_of_compressed_blocks_and_a_long_value() {
    let mut records = Records::new();
    put(&mut records, b"alpha", vec![b'a'; 4000]);
    put(&mut records, b"long", vec![b'z'; MAX_INLINE + 5]);
    let (blocks, index) = seal(&of(true), &records);
    let pieces: Vec<_> =
        (0..blocks.len()).map(|i| kept(&format!("zstd-block-{i}"), || blocks[i].clone())).collect();
    assert!(pieces.len() == 10 && pieces.iter().all(|p| p.len() < 200));
    assert_eq!(open(true, pieces, kept("zstd-index", || index)), records);
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![0u8..8, any::<u8>()], 0..300)
}

proptest! {
    #[test]
    fn nonsense_under_a_good_seal_is_an_error(blocks in proptest::collection::vec(bytes(), 1..4)) {
        let sealed: Vec<_> = (0..)
            .zip(&blocks)
            .map(|(i, raw)| seal_bytes(&sealer(), SEAL_BLOCK, i, raw).unwrap())
            .collect();
        let (ranges, mut sealed) = (std::iter::once(0..sealed.len() as u32).collect(), sealed.into_iter());
        let read = collect(RunReader::new(sealer(), ranges, move || Ok(sealed.next()), MAX_VALUE).unwrap());
        if let Err(e) = read {
            prop_assert!(matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Unsupported), "{}", e);
        }
    }

    #[test]
    fn an_index_of_nonsense_never_panics(
        firsts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..4), 0..20),
        slots in proptest::collection::vec((any::<u16>(), any::<u16>()), 0..4),
    ) {
        let count = firsts.len() as u32;
        let block = |first| BlockEntry { first, records: 1, raw_len: 1, sealed_len: 1 };
        let index = Index { blocks: firsts.into_iter().map(block).collect() };
        let mut last = 0;
        for range in blocks_for(&index, &SlotSet::from_ranges(slots)) {
            prop_assert!(range.start >= last && range.end > range.start && range.end <= count);
            last = range.end;
        }
    }
}
