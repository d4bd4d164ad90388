//! Values in the layout of an older server. A version number alone does not make a value unreadable, its type does; two
//! types that came with Redis 7.2 say nothing that the ones before cannot say, and a stream of 8.6 can do without what it has more.

use std::io::{Read, Write};

use tidemark_proto::error::ResultExt;
use tidemark_proto::{Error, ErrorKind, Result};

use super::damaged;
use super::decode::decode;
use super::input::{Input, Tap};
use super::length::{put_length, put_text};
use super::lzf::Scratch;
use super::types::{Family, SHARED_LAST, loads, number as n};
use super::visitor::{Nothing, Role, ValueVisitor};
use super::walk::walk;

/// Most bytes of a packed set that is turned into a plain one, which must be counted first.
const MOST_SET: usize = 256 << 20;

/// The type to convert a value to for a server of this version; `None` if there is none that it loads. The type itself,
/// where the server loads that.
pub const fn type_for(version: u16, family: Family, type_byte: u8) -> Option<u8> {
    if loads(version, family, type_byte) {
        return Some(type_byte);
    }
    match type_byte {
        n::SET_LISTPACK => Some(n::SET),
        n::STREAM_LISTPACKS_4 if loads(version, family, n::STREAM_LISTPACKS_3) => Some(n::STREAM_LISTPACKS_3),
        n::STREAM_LISTPACKS_3 | n::STREAM_LISTPACKS_4 if loads(version, family, n::STREAM_LISTPACKS_2) => {
            Some(n::STREAM_LISTPACKS_2)
        }
        _ => None,
    }
}

/// As [`type_for`], for a value of another server: of which family its number is says `family`. A number that the server's own
/// family gives to something else says nothing there.
pub fn type_for_server(version: u16, family: Family, type_byte: u8) -> Option<u8> {
    let own = Family::of_version(version);
    let same = family == own || loads(SHARED_LAST, family, type_byte);
    let shared = |target: u8| target != type_byte && loads(SHARED_LAST, own, target);
    type_for(version, own, type_byte).filter(|target| same || shared(*target))
}

/// Writes a raw value of type `type_byte` as one of type `target`: 20 (packed set) as 2, 26 (stream of Redis 8.6) as 21 or 19, 21
/// (of 7.2) as 19, anything as itself. What is lost is when consumers of a stream were last active, and what its producers have
/// sent lately, by which one that sends it again is told apart.
pub fn convert(type_byte: u8, raw: &mut impl Read, target: u8, out: &mut impl Write) -> Result<()> {
    match (type_byte, target) {
        _ if type_byte == target => {
            std::io::copy(raw, out).map(drop).or_kind(ErrorKind::Retry, "cannot copy a value")
        }
        (n::SET_LISTPACK, n::SET) => set(raw, out),
        (n::STREAM_LISTPACKS_3, n::STREAM_LISTPACKS_2)
        | (n::STREAM_LISTPACKS_4, n::STREAM_LISTPACKS_2 | n::STREAM_LISTPACKS_3) => {
            let mut input = Input::new(raw, Out(out));
            (input.strip_newer, input.strip_newest) = (target == n::STREAM_LISTPACKS_2, true);
            input.open_tap();
            walk(type_byte, Family::Redis, &mut input, &mut Scratch::default(), &mut Nothing)?;
            let _len = input.close_tap()?;
            if input.at_end()? { Ok(()) } else { Err(damaged("bytes after the end of a value")) }
        }
        _ => Err(Error::unsupported(format!(
            "a value of RDB type {type_byte} cannot be made one of type {target}: restore it to a newer server"
        ))),
    }
}

struct Out<'a, W>(&'a mut W);

impl<W: Write> Tap for Out<'_, W> {
    fn raw(&mut self, piece: &[u8]) -> Result<()> {
        self.0.write_all(piece).or_kind(ErrorKind::Retry, "cannot write a value")
    }
}

fn set(raw: &mut impl Read, out: &mut impl Write) -> Result<()> {
    let mut members = Members::default();
    decode(n::SET_LISTPACK, Family::Redis, raw, &mut members)?;
    let mut count = Vec::new();
    put_length(members.count, &mut count);
    Out(out).raw(&count)?;
    Out(out).raw(&members.stored)
}

/// Members of a set as plain strings, one after the other.
#[derive(Default)]
struct Members {
    count: u64,
    stored: Vec<u8>,
    member: Vec<u8>,
}

impl ValueVisitor for Members {
    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        if self.stored.len() + self.member.len() + bytes.len() > MOST_SET {
            return Err(Error::unsupported("a packed set that is too large for an older server's layout"));
        }
        self.member.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self, _role: Role) -> Result<()> {
        self.count += 1;
        put_text(&self.member, &mut self.stored);
        self.member.clear();
        Ok(())
    }
}
