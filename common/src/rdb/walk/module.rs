//! Values of modules: nobody but the module knows what they mean, but each part says what follows, so that they can be
//! carried about. Their raw bytes are handed on.

use tidemark_proto::{Error, Result};

use crate::rdb::bytes::Bytes;
use crate::rdb::damaged;
use crate::rdb::length::{Stored, length, stored};
use crate::rdb::visitor::{Nothing, ValueVisitor};

/// What follows in a module's value (`rdb.h`).
const END: u64 = 0;
const SIGNED: u64 = 1;
const UNSIGNED: u64 = 2;
const FLOAT: u64 = 3;
const DOUBLE: u64 = 4;
const STRING: u64 = 5;

/// A module's data: its id, then parts up to the last one. All of it goes to the visitor.
pub(super) fn walk<B: Bytes, V: ValueVisitor>(source: &mut B, visitor: &mut V) -> Result<()> {
    let mut echo = Echo { source, visitor, failed: None };
    let _id = length(&mut echo)?;
    parts(&mut echo)?;
    echo.failed.map_or(Ok(()), Err)
}

/// Passes over a module's data; the module's id.
pub(in crate::rdb) fn skip<B: Bytes>(source: &mut B) -> Result<u64> {
    let mut echo = Echo { source, visitor: &mut Nothing, failed: None };
    let id = length(&mut echo)?;
    parts(&mut echo)?;
    Ok(id)
}

fn parts<B: Bytes>(source: &mut B) -> Result<()> {
    loop {
        match length(source)? {
            END => return Ok(()),
            SIGNED | UNSIGNED => drop(length(source)?),
            FLOAT => source.pass(4, |_| Ok(()))?,
            DOUBLE => source.pass(8, |_| Ok(()))?,
            STRING => match stored(source)? {
                Stored::Plain(len) | Stored::Packed { stored: len, .. } => source.pass(len, |_| Ok(()))?,
                Stored::Number(_) => {}
            },
            _ => return Err(damaged("a part of a module's value of an unknown form")),
        }
    }
}

/// Shows the visitor every byte that is taken.
struct Echo<'a, B, V> {
    source: &'a mut B,
    visitor: &'a mut V,
    /// What the visitor said against it; told at the next occasion.
    failed: Option<Error>,
}

impl<B: Bytes, V: ValueVisitor> Bytes for Echo<'_, B, V> {
    fn peek(&mut self, least: usize) -> Result<&[u8]> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => self.source.peek(least),
        }
    }

    fn consume(&mut self, count: usize) {
        // What was seen is at hand, so this reads nothing.
        let told = self.source.peek(count).and_then(|seen| self.visitor.module(&seen[..count.min(seen.len())]));
        self.failed = told.err();
        self.source.consume(count);
    }
}
