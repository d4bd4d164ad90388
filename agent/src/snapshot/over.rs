//! What differs at the cut from a part that was sent before it: of the keys that were written since the base, those whose record
//! is another one than the part's key index tells.

use std::path::Path;

use tidemark_common::run::{Entry, RunSummary};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::run::sort_key;
use tidemark_proto::{Error, Result};

use super::join::Peek;
use super::{Builder, BuiltPart, PartInput, bytes_of, entry};
use crate::engine::{Next, Over, record_hash};
use crate::keyindex::IndexReader;

/// Whether any key of the part was written since the base.
pub(super) fn is_touched(input: &PartInput<'_>) -> Result<bool> {
    let mut touched = false;
    input.snapshot.over(input.range, &mut |_| {
        touched = true;
        Ok(Next::Stop)
    })?;
    Ok(touched)
}

/// The part as it came: an empty delta, and the key index of before.
pub(super) fn as_it_came(input: &PartInput<'_>, early: &Path) -> BuiltPart {
    if let Some(index) = input.new_index {
        // One of an attempt before is replaced. A missing index costs the next backup a full run, and nothing else.
        let _ = std::fs::remove_file(index);
        if let Err(e) = std::fs::hard_link(early, index).or_else(|_| std::fs::copy(early, index).map(drop)) {
            tracing::warn!(error = %e, index = %index.display(), "a key index is lost");
        }
    }
    let run = RunSummary { index: Vec::new(), blocks: 0, records: 0, raw_bytes: 0, sealed_bytes: 0 };
    BuiltPart { upper: input.range.upper.clone(), run, digest: SetDigest::default(), live_bytes: 0 }
}

impl<F: FnMut(Vec<u8>) -> Result<()>> Builder<'_, F> {
    /// The delta of what was written since the base against the key index at `early`.
    pub(super) fn over(&mut self, early: &Path) -> Result<()> {
        let input = self.input;
        let mut old = Peek::new(IndexReader::open(early)?)?;
        input.snapshot.over(input.range, &mut |over| {
            let (slot, key) = over.place();
            let place = sort_key(slot, key);
            self.keep_before(&mut old, Some(&place))?;
            let before = old.at(&place);
            if before.is_some() {
                old.step()?;
            }
            match over {
                Over::Record(record) => {
                    self.check(slot, key, record.meta)?;
                    let (bytes, hash) = (bytes_of(&record), record_hash(record));
                    if self.differs(&place, before, (bytes, hash))? {
                        self.writer.push(entry(&record))?;
                    }
                }
                Over::Long(record) => {
                    self.check(slot, key, record.meta)?;
                    if self.differs(&place, before, (record.bytes(), record.hash()?))? {
                        let value = record.value;
                        self.writer.push_long(slot, key, record.meta, value.len(), &mut value.reader())?;
                    }
                }
                Over::Gone { .. } => {
                    if let Some((bytes, hash)) = before {
                        self.minus(hash, bytes);
                        self.writer.push(Entry { slot, key, put: None })?;
                    }
                }
            }
            Ok(Next::Go)
        })?;
        self.keep_before(&mut old, None)
    }

    /// Notes a record that stands at the cut; whether it is another one than before.
    fn differs(&mut self, place: &[u8], before: Option<(u64, u128)>, now: (u64, u128)) -> Result<bool> {
        let (bytes, hash) = now;
        self.count(bytes, 1);
        if let Some((stored, _)) = before.filter(|(_, before)| *before == hash) {
            // It stands as it was stored, whatever it takes in the store by now.
            self.index_of(place, stored, hash)?;
            return Ok(false);
        }
        self.index_of(place, bytes, hash)?;
        if let Some((bytes, hash)) = before {
            self.minus(hash, bytes);
        }
        self.plus(hash, bytes);
        Ok(true)
    }

    /// Keys of the part before `key` (all that are left for `None`) stand as they came.
    fn keep_before(&mut self, old: &mut Peek, key: Option<&[u8]>) -> Result<()> {
        while old.alive && key.is_none_or(|k| old.key[..] < *k) {
            self.index_of(&old.key, old.bytes, old.hash)?;
            old.step()?;
        }
        Ok(())
    }

    fn index_of(&mut self, place: &[u8], bytes: u64, hash: u128) -> Result<()> {
        match &mut self.index {
            Some(index) => index.push(place, bytes, hash),
            None => Err(Error::bug("what differs from an early part, without a key index")),
        }
    }
}
