//! From an RDB stream to sorted records.

use tidemark_common::rdb::{RdbSink, RecordHead, Trailer, ValueSummary};
use tidemark_common::record::{RedisMeta, redis_key};
use tidemark_proto::{Result, slot_of};

use super::spill::{Sorted, Sorting, Spill};

/// What a base holds beside its records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gathered {
    /// Version of the RDB format that the server writes.
    pub version: u16,
    /// Libraries of functions: their code.
    pub functions: Vec<Vec<u8>>,
}

/// Sorts what it is given.
#[derive(Debug)]
pub struct BaseSink {
    spill: Spill,
    gathered: Gathered,
    /// Meta of the record at hand, without the meaning of its value.
    meta: Option<RedisMeta>,
    key: Vec<u8>,
    encoded: Vec<u8>,
}

impl BaseSink {
    /// Into `spill`.
    pub fn new(spill: Spill) -> Self {
        Self { spill, gathered: Gathered::default(), meta: None, key: Vec::new(), encoded: Vec::new() }
    }

    /// The sorted records.
    pub fn finish(mut self, trailer: &Trailer) -> Result<(Sorted, Gathered)> {
        self.gathered.version = trailer.version;
        Ok((self.spill.finish()?, self.gathered))
    }

    /// As [`Self::finish`], but nobody waits yet for the last of the records to be sorted.
    pub fn finish_behind(mut self, trailer: &Trailer) -> Result<(Sorting, Gathered)> {
        self.gathered.version = trailer.version;
        Ok((self.spill.finish_behind()?, self.gathered))
    }

    /// Where the records go.
    pub fn spill(&mut self) -> &mut Spill {
        &mut self.spill
    }
}

impl RdbSink for BaseSink {
    fn function(&mut self, code: &[u8]) -> Result<()> {
        self.gathered.functions.push(code.to_vec());
        Ok(())
    }

    fn begin(&mut self, head: &RecordHead<'_>) -> Result<()> {
        redis_key(head.db, head.key, &mut self.key);
        self.meta = Some(RedisMeta::of(head, 0));
        self.spill.begin(slot_of(head.key), &self.key)
    }

    fn value(&mut self, piece: &[u8]) -> Result<()> {
        self.spill.value(piece)
    }

    fn end(&mut self, summary: ValueSummary) -> Result<()> {
        if let Some(meta) = self.meta.take() {
            RedisMeta { meaning: summary.meaning, ..meta }.encode(&mut self.encoded);
        }
        self.spill.end(&self.encoded)
    }
}
