//! RDB: the format in which Redis and Valkey store their data in files, send it to replicas and answer `DUMP`.
//!
//! - [`read`] walks a file or stream once and pushes what it finds into an [`RdbSink`]: the raw bytes of each value, exactly
//!   as they stand there, and a 128-bit hash of what the value *means*, which no encoding changes ([`meaning`]).
//! - [`decode()`] and [`decode_slice`] take such raw bytes apart again, into a [`ValueVisitor`].
//! - [`payload`] turns them into what `RESTORE` takes, [`mod@convert`] into an older layout, [`writer`] into a file again.
//!
//! One walker serves them all. It reads bytes through a small window and hands strings on in pieces, so that memory stays
//! flat however large a value is: nothing is allocated from a length that the data merely claims. It does no asynchronous
//! IO and starts no thread: give it a blocking reader.
//!
//! The format is described nowhere but in the servers' sources. What stands here was learned from reading `rdb.h`, `rdb.c`,
//! `listpack.c`, `ziplist.c`, `zipmap.c`, `intset.c`, `quicklist.c`, `t_stream.c` and `lzf_d.c` of Redis 6.2 to 7.4 and of
//! Valkey 8, `rdb.h` of Valkey 9, and from trying it against servers.

mod body;
mod bytes;
pub mod commands;
pub mod convert;
mod crc;
mod decode;
pub mod fields;
mod input;
pub mod lasting;
mod length;
mod lzf;
pub mod meaning;
mod packed;
pub mod payload;
mod reader;
mod sink;
#[cfg(test)]
mod tests;
pub mod types;
mod visitor;
mod walk;
pub mod writer;

pub use convert::convert;
pub use crc::Crc64;
pub use decode::{RawValue, decode, decode_slice, meaning_of};
pub use meaning::{Meaning, ValueSummary};
pub use reader::{Trailer, read};
pub use sink::{RdbSink, RecordHead, SlotImport, SlotInfo};
pub use types::{Class, Family, class_of, highest_type_of, loads, version_of_server};
pub use visitor::{Group, Role, StreamId, StreamMeta, ValueVisitor};
pub use writer::{RdbWriter, ValueOf};

use tidemark_proto::Error;

/// Longest key, aux field or function library that is taken, in bytes: the servers' own limit of a string
/// (`proto-max-bulk-len`).
pub const MAX_TEXT: usize = 512 << 20;

fn damaged(what: &str) -> Error {
    Error::damaged(format!("not valid RDB: {what}"))
}

fn cut() -> Error {
    damaged("it ends too early")
}
