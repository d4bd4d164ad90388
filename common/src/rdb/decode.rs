//! Raw values, cut out before, taken apart.

use std::io::Read;

use tidemark_proto::Result;

use super::bytes::Bytes;
use super::damaged;
use super::input::{Input, NoTap};
use super::lzf::Scratch;
use super::meaning::{Meaning, ValueSummary};
use super::types::Family;
use super::visitor::ValueVisitor;
use super::walk::walk;
use crate::run::LongValue;

/// Shows a visitor what the raw bytes of a value mean (those that a sink got in [`super::RdbSink::value`]). Reads them to
/// their end; bytes that are too many are an error, as are bytes that are missing.
pub fn decode(type_byte: u8, family: Family, raw: &mut impl Read, visitor: &mut impl ValueVisitor) -> Result<()> {
    let mut input = Input::new(raw, NoTap);
    walk(type_byte, family, &mut input, &mut Scratch::default(), visitor)?;
    if input.at_end()? { Ok(()) } else { Err(damaged("bytes after the end of a value")) }
}

/// As [`decode()`], of bytes in memory: nothing is copied.
pub fn decode_slice(type_byte: u8, family: Family, mut raw: &[u8], visitor: &mut impl ValueVisitor) -> Result<()> {
    walk(type_byte, family, &mut raw, &mut Scratch::default(), visitor)?;
    if raw.peek(1)?.is_empty() { Ok(()) } else { Err(damaged("bytes after the end of a value")) }
}

/// A raw value, in memory or in a file, that can be looked at more than once.
pub trait RawValue {
    /// Its length, in bytes.
    fn raw_len(&self) -> u64;

    /// Shows what it means, as [`decode()`] does.
    fn show(&self, type_byte: u8, family: Family, visitor: &mut impl ValueVisitor) -> Result<()>;

    /// Hands on its bytes.
    fn pieces(&self, take: impl FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// Reads its bytes.
    fn reader(&self) -> impl Read;
}

impl RawValue for [u8] {
    fn raw_len(&self) -> u64 {
        self.len() as u64
    }

    fn show(&self, type_byte: u8, family: Family, visitor: &mut impl ValueVisitor) -> Result<()> {
        decode_slice(type_byte, family, self, visitor)
    }

    fn pieces(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        take(self)
    }

    fn reader(&self) -> impl Read {
        self
    }
}

impl RawValue for LongValue {
    fn raw_len(&self) -> u64 {
        self.len()
    }

    fn show(&self, type_byte: u8, family: Family, visitor: &mut impl ValueVisitor) -> Result<()> {
        decode(type_byte, family, &mut Self::reader(self), visitor)
    }

    fn pieces(&self, take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        Self::pieces(self, take)
    }

    fn reader(&self) -> impl Read {
        Self::reader(self)
    }
}

/// What a sink would be told of a value with these raw bytes.
pub fn meaning_of(type_byte: u8, family: Family, raw: &[u8]) -> Result<ValueSummary> {
    let mut meaning = Meaning::new();
    decode_slice(type_byte, family, raw, &mut meaning)?;
    let (hash, elements) = meaning.finish();
    Ok(ValueSummary { raw_len: raw.len() as u64, meaning: hash, elements })
}
