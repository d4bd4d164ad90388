//! Deltas by the key index, of records that take other room than when they were stored.

use std::path::Path;

use tidemark_common::rdb::Family;
use tidemark_common::record::{RedisMeta, redis_key};
use tidemark_common::seal::Sealer;
use tidemark_proto::wire::control::SecretKey;
use tidemark_proto::{Error, Result, SlotSet, Timestamp, slot_of};
use tokio_util::sync::CancellationToken;

use super::{BuiltPart, Counters, Method, PartInput, build};
use crate::engine::{ChangeVisitor, RecordRef, RecordVisitor, ScanRange, Snapshot};

/// One record, of this many bytes, or none. Its value means the same however long it is.
struct One(Option<usize>);

impl Snapshot for One {
    fn at(&self) -> Timestamp {
        Timestamp(1)
    }

    fn scan(&self, _: &ScanRange, visit: &mut RecordVisitor<'_>) -> Result<()> {
        let (mut key, mut meta) = (Vec::new(), Vec::new());
        redis_key(0, b"one", &mut key);
        let known = RedisMeta {
            type_byte: 0,
            family: Family::Redis,
            meaning: 7,
            expire_at_millis: None,
            idle_seconds: None,
            frequency: None,
        };
        known.encode(&mut meta);
        if let Some(len) = self.0 {
            let _ = visit(RecordRef { slot: slot_of(b"one"), key: &key, meta: &meta, value: &vec![0; len] })?;
        }
        Ok(())
    }

    fn changes(&self, _: Timestamp, _: &ScanRange, _: &mut ChangeVisitor<'_>) -> Result<()> {
        Err(Error::unsupported("it keeps no changes"))
    }
}

fn built(state: &One, method: &Method, index: &Path) -> BuiltPart {
    let sealer = Sealer::new(&SecretKey([3; 32]), [9; 16], true);
    let (counters, cancel) = (Counters::default(), CancellationToken::new());
    let input = PartInput {
        snapshot: state,
        range: &ScanRange::slots(SlotSet::all()),
        method,
        new_index: Some(index),
        part_bytes: 1 << 30,
        counters: &counters,
        cancel: &cancel,
    };
    build(&input, &sealer, |_| Ok(())).unwrap()
}

#[test]
fn what_goes_takes_with_it_what_it_took_when_it_was_stored() {
    let dir = tempfile::tempdir().unwrap();
    let index = |n: usize| dir.path().join(n.to_string());
    let whole = built(&One(Some(100)), &Method::Full, &index(0));
    assert!(whole.live_bytes > 100);
    let same = built(&One(Some(5000)), &Method::KeyIndex(index(0)), &index(1));
    assert_eq!((same.run.records, same.live_bytes), (0, 0));
    let gone = built(&One(None), &Method::KeyIndex(index(1)), &index(2));
    assert_eq!((gone.run.records, whole.live_bytes.wrapping_add(gone.live_bytes)), (1, 0));
}
