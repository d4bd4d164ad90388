//! How records are loaded: which of them, and when their keys expire.

use tidemark_common::expiry::{Becomes, Expiry, ExpiryMode};
use tidemark_common::record::{REDIS, RedisMeta};
use tidemark_common::select::Selection;
use tidemark_proto::wire::control::LoadOptions;
use tidemark_proto::{Error, Result, SlotSet, Timestamp};

use crate::engine::RecordRef;

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

/// Changes when keys expire, in the records of a part.
pub(super) struct Changes {
    expiry: Expiry,
    meta: Vec<u8>,
}

impl Changes {
    pub(super) fn new(expiry: Expiry) -> Self {
        Self { expiry, meta: Vec::new() }
    }

    /// The record as it is loaded; `None` where it is loaded as it stands. One that had expired by the cut keeps its time: a
    /// store does not take it, and counts it.
    pub(super) fn change<'a>(&'a mut self, record: RecordRef<'a>) -> Result<Option<RecordRef<'a>>> {
        if self.expiry.mode == ExpiryMode::Absolute || record.meta.first() != Some(&REDIS) {
            return Ok(None);
        }
        let meta = RedisMeta::decode(record.meta)?;
        let Some(Becomes::Moved(expire_at_millis)) = meta.expire_at_millis.map(|at| self.expiry.of(at)) else {
            return Ok(None);
        };
        RedisMeta { expire_at_millis, ..meta }.encode(&mut self.meta);
        Ok(Some(RecordRef { meta: &self.meta, ..record }))
    }
}
