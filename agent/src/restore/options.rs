//! How records are loaded: which of them, and when their keys expire.

use tidemark_common::expiry::{Becomes, Expiry, ExpiryMode};
use tidemark_common::rdb::fields::{fields_expire, move_fields};
use tidemark_common::rdb::meaning_of;
use tidemark_common::record::{REDIS, RedisMeta};
use tidemark_common::select::Selection;
use tidemark_proto::wire::control::LoadOptions;
use tidemark_proto::{Error, Result, SlotSet, Timestamp};

use crate::engine::{LongRecord, RecordRef};

/// Longest hash whose fields' times are moved, in bytes: it is made anew in memory.
const MOST_MOVED: usize = 1 << 30;

/// All records, as they are.
pub(super) fn usual() -> LoadOptions {
    LoadOptions { slots: SlotSet::all(), dbs: Vec::new(), expiry: ExpiryMode::Absolute.code(), shift_millis: 0 }
}

/// What a coordinator asks for, in a restore of the state at `at`.
pub(super) fn of(options: LoadOptions, at: Timestamp) -> Result<(Selection, Expiry)> {
    if !options.slots.is_canonical() {
        return Err(Error::request("the slots to load are not written as they must be"));
    }
    let expiry = Expiry::new(ExpiryMode::of_code(options.expiry)?, at, options.shift_millis);
    Ok((Selection { slots: options.slots, dbs: options.dbs, ..Selection::default() }, expiry))
}

/// Changes when keys and fields of hashes expire, in the records of a part.
pub(super) struct Changes {
    expiry: Expiry,
    meta: Vec<u8>,
    value: Vec<u8>,
}

impl Changes {
    pub(super) fn new(expiry: Expiry) -> Self {
        Self { expiry, meta: Vec::new(), value: Vec::new() }
    }

    /// The record as it is loaded; `None` where it is loaded as it stands. One that had expired by the cut keeps its time: a
    /// store does not take it, and counts it.
    pub(super) fn change<'a>(&'a mut self, record: RecordRef<'a>) -> Result<Option<RecordRef<'a>>> {
        if self.expiry.mode == ExpiryMode::Absolute || record.meta.first() != Some(&REDIS) {
            return Ok(None);
        }
        let mut meta = RedisMeta::decode(record.meta)?;
        let fields = fields_expire(meta.type_byte, meta.family);
        match meta.expire_at_millis.map_or(Becomes::Same, |at| self.expiry.of(at)) {
            Becomes::Expired => return Ok(None),
            Becomes::Same if !fields => return Ok(None),
            Becomes::Same => {}
            Becomes::Moved(at) => meta.expire_at_millis = at,
        }
        let mut value = record.value;
        self.value.clear();
        if fields {
            match move_fields(meta.type_byte, meta.family, record.value, &self.expiry)? {
                Some((type_byte, moved)) => {
                    meta.meaning = meaning_of(type_byte, meta.family, &moved)?.meaning;
                    meta.type_byte = type_byte;
                    self.value = moved;
                    value = &self.value;
                }
                // A hash without fields is gone.
                None => meta.expire_at_millis = Some(self.expiry.cut_millis),
            }
        }
        meta.encode(&mut self.meta);
        Ok(Some(RecordRef { meta: &self.meta, value, ..record }))
    }
}

/// What becomes of a record with a long value.
pub(super) enum ChangedLong<'a> {
    /// It is loaded as it stands.
    Same,
    /// It has this meta.
    Meta(&'a [u8]),
    /// It is another record.
    All(RecordRef<'a>),
}

impl Changes {
    /// As [`Self::change`]. A hash whose fields expire is made anew in memory; any other value stays where it is.
    pub(super) fn change_long<'a>(&'a mut self, record: &LongRecord<'a>) -> Result<ChangedLong<'a>> {
        let LongRecord { slot, key, meta, value } = *record;
        if self.expiry.mode == ExpiryMode::Absolute || meta.first() != Some(&REDIS) {
            return Ok(ChangedLong::Same);
        }
        let decoded = RedisMeta::decode(meta)?;
        let fields = fields_expire(decoded.type_byte, decoded.family);
        let held = if fields { value.whole(MOST_MOVED)? } else { Vec::new() };
        let changed = self.change(RecordRef { slot, key, meta, value: &held })?.is_some();
        Ok(match changed {
            false => ChangedLong::Same,
            // What was made of the fields lies here.
            true if fields && !self.value.is_empty() => {
                ChangedLong::All(RecordRef { slot, key, meta: &self.meta, value: &self.value })
            }
            true => ChangedLong::Meta(&self.meta),
        })
    }
}

#[cfg(test)]
mod tests {
    use tidemark_common::rdb::{Family, types::number};
    use tidemark_common::record::redis_key;

    use super::*;

    /// The record that is loaded of a hash with the field `f`, which expires then.
    fn hash(mode: ExpiryMode, field_at: i64) -> RedisMeta {
        let raw = [&field_at.to_le_bytes()[..], &[1, 1, 1, b'f', 1, b'v']].concat();
        let (family, type_byte) = (Family::Redis, number::HASH_METADATA);
        let meaning = meaning_of(type_byte, family, &raw).unwrap().meaning;
        let (expire_at_millis, idle_seconds, frequency) = (None, None, None);
        let (mut meta, mut key) = (Vec::new(), Vec::new());
        RedisMeta { type_byte, family, meaning, expire_at_millis, idle_seconds, frequency }.encode(&mut meta);
        redis_key(0, b"k", &mut key);
        let mut changes = Changes::new(Expiry::new(mode, Timestamp::new(1000, 0), 50));
        let changed = changes.change(RecordRef { slot: 0, key: &key, meta: &meta, value: &raw }).unwrap();
        let changed = changed.expect("another record");
        let meta = RedisMeta::decode(changed.meta).unwrap();
        if meta.expire_at_millis.is_none() {
            let meaning = meaning_of(meta.type_byte, family, changed.value).unwrap().meaning;
            assert_eq!(meta.meaning, meaning, "the digest proves what is loaded");
        }
        meta
    }

    #[test]
    fn fields_of_hashes_expire_by_the_same_rule() {
        assert_eq!(hash(ExpiryMode::Shift, 2000).type_byte, number::HASH_METADATA);
        assert_ne!(hash(ExpiryMode::Shift, 2000).meaning, hash(ExpiryMode::Shift, 2001).meaning);
        let dropped = hash(ExpiryMode::Drop, 2000);
        assert_eq!((dropped.type_byte, dropped.meaning), (number::HASH, hash(ExpiryMode::Drop, 2001).meaning));
        // Its only field was gone by the cut, and so was it.
        assert_eq!(hash(ExpiryMode::Shift, 900).expire_at_millis, Some(1000));
    }
}
