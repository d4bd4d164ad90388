//! The bytes of a string that is a container of its own, stored as they are or compressed.

use tidemark_proto::Result;

use super::bytes::{Bytes, Limited};
use super::damaged;
use super::length::{Stored, stored};
use super::lzf::{Lzf, Scratch};

pub(super) enum Body<'a, B> {
    Plain(Limited<'a, B>),
    Packed(Lzf<'a, B>),
}

impl<'a, B: Bytes> Body<'a, B> {
    /// The string that follows, and its length.
    pub(super) fn open(source: &'a mut B, scratch: &'a mut Scratch) -> Result<(Self, u64)> {
        match stored(source)? {
            Stored::Plain(len) => Ok((Self::Plain(Limited::new(source, len)), len)),
            Stored::Packed { stored, len } => Ok((Self::Packed(Lzf::new(source, scratch, stored, len)), len)),
            Stored::Number(_) => Err(damaged("a number where a container should be")),
        }
    }

    /// Checks that all of it was taken.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::Plain(plain) if plain.left() > 0 => Err(damaged("bytes after the end of a container")),
            Self::Plain(_) => Ok(()),
            Self::Packed(mut packed) => packed.finish(),
        }
    }
}

impl<B: Bytes> Bytes for Body<'_, B> {
    #[inline]
    fn peek(&mut self, least: usize) -> Result<&[u8]> {
        match self {
            Self::Plain(plain) => plain.peek(least),
            Self::Packed(packed) => packed.peek(least),
        }
    }

    #[inline]
    fn consume(&mut self, count: usize) {
        match self {
            Self::Plain(plain) => plain.consume(count),
            Self::Packed(packed) => packed.consume(count),
        }
    }
}
