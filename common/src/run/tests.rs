use std::collections::BTreeMap;

use proptest::prelude::*;
use tidemark_proto::stored::run::{Index, MAX_INLINE};
use tidemark_proto::wire::control::SecretKey;
use tidemark_proto::{ErrorKind, Result, SlotSet, slot_of};

use super::*;
use crate::record::record_hash_of;
use crate::seal::Sealer;

mod formats;

type Records = BTreeMap<(u16, Vec<u8>), Option<(Vec<u8>, Vec<u8>)>>;

const MAX_VALUE: u64 = 8 << 20;

fn sealer() -> Sealer {
    Sealer::new(&SecretKey([3; 32]), [9; 16], true)
}

fn write(records: &Records) -> (Vec<Vec<u8>>, Index) {
    let (sealer, mut blocks) = (sealer(), Vec::new());
    let mut w = RunWriter::new(&sealer, |b| {
        blocks.push(b);
        Ok(())
    })
    .unwrap();
    for ((slot, key), put) in records {
        w.push(Entry { slot: *slot, key, put: put.as_ref().map(|(m, v)| (&m[..], &v[..])) }).unwrap();
    }
    let mut summary = w.finish().unwrap();
    assert_eq!(summary.records as usize, records.len());
    let index = open_index(&sealer, &mut summary.index).unwrap();
    assert_eq!(index.blocks.len(), blocks.len());
    (blocks, index)
}

fn reader(blocks: Vec<Vec<u8>>, index: &Index, slots: &SlotSet) -> RunReader<impl BlockSource + use<>> {
    let ranges = blocks_for(index, slots);
    let wanted: Vec<_> = ranges.iter().cloned().flatten().map(|i| blocks[i as usize].clone()).collect();
    let mut wanted = wanted.into_iter();
    RunReader::new(sealer(), ranges, move || Ok(wanted.next()), MAX_VALUE).unwrap()
}

fn collect<S: BlockSource>(mut r: RunReader<S>) -> Result<Records> {
    let mut out = Records::new();
    while r.advance()? {
        let e = r.current();
        let _ = out.insert((e.slot, e.key.to_vec()), e.put.map(|(m, v)| (m.to_vec(), v.to_vec())));
    }
    Ok(out)
}

fn put(records: &mut Records, key: &[u8], value: Vec<u8>) {
    let _ = records.insert((slot_of(key), key.to_vec()), Some((b"m".to_vec(), value)));
}

#[test]
fn long_values_travel_in_continuation_blocks() {
    let mut records = Records::new();
    let noise = |n: usize| (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u8).collect::<Vec<_>>();
    for (i, len) in [10, MAX_INLINE, MAX_INLINE + 1, 3 << 20, 5].into_iter().enumerate() {
        put(&mut records, format!("k{i}").as_bytes(), noise(len));
    }
    let (blocks, index) = write(&records);
    assert!(blocks.iter().all(|b| b.len() <= tidemark_proto::wire::bulk::MAX_BLOCK_FRAME as usize));
    assert_eq!(collect(reader(blocks, &index, &SlotSet::all())).unwrap(), records);
}

#[test]
fn long_values_need_not_be_in_memory() {
    let (dir, mut records) = (tempfile::tempdir().unwrap(), Records::new());
    for (i, len) in [10, MAX_INLINE, MAX_INLINE + 1, 5, 3 << 20].into_iter().enumerate() {
        put(&mut records, format!("k{i}").as_bytes(), (0..len).map(|at| (at / 7) as u8).collect());
    }
    let (blocks, index) = write(&records);
    // Written in pieces, they make the same blocks.
    let (sealer, mut spool, mut pieces) = (sealer(), Spool::new(&dir.path().join("new")), Vec::new());
    let mut w = RunWriter::new(&sealer, |b| {
        pieces.push(b);
        Ok(())
    })
    .unwrap();
    for ((slot, key), value) in &records {
        let (meta, value) = value.as_ref().map(|(m, v)| (&m[..], &v[..])).unwrap();
        if value.len() <= MAX_INLINE {
            w.push(Entry { slot: *slot, key, put: Some((meta, value)) }).unwrap();
            continue;
        }
        spool.begin().unwrap();
        value.chunks(100_001).for_each(|piece| spool.add(piece).unwrap());
        let long = spool.value().unwrap();
        assert_eq!(long.whole(8 << 20).unwrap(), value);
        assert_eq!(long.whole(value.len() - 1).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(record_hash_of(key, meta, &long).unwrap(), record_hash(key, meta, value));
        w.push_long(*slot, key, meta, long.len(), &mut long.reader()).unwrap();
    }
    let told = w.finish().unwrap();
    assert!(pieces == blocks && told.records == 5);
    // Read through a file, or only hashed.
    let mut spooled = reader(blocks.clone(), &index, &SlotSet::all()).spooling(Spool::new(dir.path()));
    let mut hashed = reader(blocks, &index, &SlotSet::all()).hashing();
    for ((slot, key), value) in &records {
        let (meta, value) = value.as_ref().unwrap();
        assert!(spooled.advance().unwrap() && hashed.advance().unwrap());
        let is_long = value.len() > MAX_INLINE;
        let short = if is_long { &[][..] } else { value };
        assert_eq!(spooled.current(), Entry { slot: *slot, key, put: Some((meta, short)) });
        assert_eq!(hashed.current(), spooled.current());
        assert_eq!(spooled.long().map(|long| long.whole(8 << 20).unwrap()), is_long.then(|| value.clone()));
        let hash = (record_hash(key, meta, value), value.len() as u64);
        assert_eq!(hashed.hashed(), is_long.then_some(hash));
    }
    assert!(!spooled.advance().unwrap() && !hashed.advance().unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "files of long values have no names");
}

#[test]
fn packed_blocks_are_those_of_a_run() {
    let mut records = Records::new();
    for i in 0..3000 {
        put(&mut records, format!("k{i}").as_bytes(), vec![(i % 251) as u8; i % 500]);
    }
    let (blocks, index) = write(&records);
    let (sealer, mut packed, mut packer) = (sealer(), Vec::new(), BlockPacker::new().unwrap());
    let mut read = PackedReader::new().unwrap();
    let mut w = RunWriter::new(&sealer, |b| {
        packed.push(b);
        Ok(())
    })
    .unwrap();
    let (mut taken, mut found) = (0, Records::new());
    for ((slot, key), value) in &records {
        let put = value.as_ref().map(|(m, v)| (&m[..], &v[..]));
        taken += 1;
        let full = packer.push(&Entry { slot: *slot, key, put }).unwrap();
        if !full && taken < records.len() {
            continue;
        }
        let block = packer.close().unwrap().unwrap();
        w.push_packed(&block).unwrap();
        assert_eq!(w.push_packed(&block).unwrap_err().kind(), ErrorKind::Bug, "out of order");
        read.open(block.plain).unwrap();
        while read.advance().unwrap() {
            let e = read.current().unwrap();
            let _ = found.insert((e.slot, e.key.to_vec()), e.put.map(|(m, v)| (m.to_vec(), v.to_vec())));
        }
    }
    let mut told = w.finish().unwrap();
    assert_eq!(found, records);
    assert!(blocks.len() > 3 && packed == blocks);
    assert_eq!(open_index(&sealer, &mut told.index).unwrap(), index);
}

#[test]
fn a_value_over_the_engine_limit_is_refused_by_name() {
    let mut records = Records::new();
    put(&mut records, b"k", vec![0; MAX_VALUE as usize + 1]);
    let (blocks, index) = write(&records);
    let err = collect(reader(blocks, &index, &SlotSet::all())).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Unsupported);
}

#[test]
fn damage_anywhere_is_an_error_and_never_a_panic() {
    let mut records = Records::new();
    for i in 0..50 {
        put(&mut records, format!("k{i}").as_bytes(), vec![b'v'; i]);
    }
    let (blocks, index) = write(&records);
    for bit in 0..blocks[0].len() * 8 {
        let mut bad = blocks.clone();
        bad[0][bit / 8] ^= 1 << (bit % 8);
        let err = collect(reader(bad, &index, &SlotSet::all())).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Damaged);
    }
}

#[test]
fn out_of_order_entries_are_refused() {
    let sealer = sealer();
    let mut w = RunWriter::new(&sealer, |_| Ok(())).unwrap();
    w.push(Entry { slot: 5, key: b"b", put: None }).unwrap();
    assert_eq!(w.push(Entry { slot: 5, key: b"b", put: None }).unwrap_err().kind(), ErrorKind::Bug);
}

#[test]
fn record_hashes_are_of_the_fields_end_to_end() {
    for len in [0, 1, 900, 2035, 2036, 2037, 5000] {
        let value = vec![b'v'; len];
        let mut bytes = b"\x03\0\0\0key\x01\0\0\0m".to_vec();
        bytes.extend_from_slice(&value);
        let whole = blake3::hash(&bytes);
        let half = u128::from_le_bytes(whole.as_bytes()[..16].try_into().unwrap());
        assert_eq!(record_hash(b"key", b"m", &value), half, "{len}");
    }
    assert_ne!(record_hash(b"a", b"b", b""), record_hash(b"ab", b"", b""));
}

fn any_records() -> impl Strategy<Value = Records> {
    let value = proptest::option::of((
        proptest::collection::vec(any::<u8>(), 0..4),
        proptest::collection::vec(any::<u8>(), 0..40_000),
    ));
    proptest::collection::btree_map((0u16..64, proptest::collection::vec(any::<u8>(), 0..6)), value, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn comes_back_whole_and_by_slots(records in any_records(), a in 0u16..64, n in 0u16..20) {
        let (blocks, index) = write(&records);
        prop_assert_eq!(&collect(reader(blocks.clone(), &index, &SlotSet::all())).unwrap(), &records);
        let slots = SlotSet::range(a, a + n);
        let some = collect(reader(blocks, &index, &slots)).unwrap();
        for (k, v) in records.iter().filter(|((s, _), _)| slots.contains(*s)) {
            prop_assert_eq!(some.get(k), Some(v));
        }
    }

    #[test]
    fn merge_equals_a_map(runs in proptest::collection::vec(any_records(), 0..5)) {
        let mut model = Records::new();
        for run in &runs {
            model.extend(run.clone());
        }
        model.retain(|_, v| v.is_some());
        let readers = runs.iter().map(|r| {
            let (blocks, index) = write(r);
            reader(blocks, &index, &SlotSet::all())
        }).collect();
        let mut merge = Merge::new(readers);
        let mut out = Records::new();
        let mut last = None;
        while merge.advance().unwrap() {
            let e = merge.current();
            let key = (e.slot, e.key.to_vec());
            prop_assert!(last.as_ref().is_none_or(|l| *l < key));
            last = Some(key.clone());
            let _ = out.insert(key, e.put.map(|(m, v)| (m.to_vec(), v.to_vec())));
        }
        prop_assert_eq!(out, model);
    }
}
