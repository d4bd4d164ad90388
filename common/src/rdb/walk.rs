//! The walker: every type of value, taken apart from its raw bytes.

mod module;
mod stream;

use tidemark_proto::{Error, Result};

use super::bytes::Bytes;
use super::damaged;
use super::length::{length, string};
use super::lzf::Scratch;
use super::packed::{Packed, Packing, parse_score};
use super::types::{Class, Family, class_of, number as n};
use super::visitor::{Role, ValueVisitor};

pub(super) use module::skip as skip_module;

/// Containers of a quicklist (`quicklist.h`).
const PLAIN_NODE: u64 = 1;
const PACKED_NODE: u64 = 2;
/// The last time that a field may expire at (`ebuckets.h`).
const LAST_EXPIRE: i64 = (1 << 48) - 1;

/// Walks the value that `source` stands at.
pub(super) fn walk<B: Bytes, V: ValueVisitor>(
    type_byte: u8,
    family: Family,
    source: &mut B,
    scratch: &mut Scratch,
    visitor: &mut V,
) -> Result<()> {
    let class = class_of(type_byte, family).ok_or_else(|| unknown(type_byte, family))?;
    visitor.class(class)?;
    match type_byte {
        n::STRING => string(source, scratch, Role::Value, visitor),
        n::LIST => strings(source, scratch, Role::Element, visitor),
        n::SET => strings(source, scratch, Role::Member, visitor),
        n::LIST_ZIPLIST => packed(source, scratch, Packing::Ziplist, Role::Element, visitor),
        n::LIST_QUICKLIST | n::LIST_QUICKLIST_2 => quicklist(type_byte, source, scratch, visitor),
        n::SET_INTSET => packed(source, scratch, Packing::Intset, Role::Member, visitor),
        n::SET_LISTPACK => packed(source, scratch, Packing::Listpack, Role::Member, visitor),
        n::ZSET | n::ZSET_2 => sorted_set(type_byte, source, scratch, visitor),
        n::ZSET_ZIPLIST => packed_sorted_set(source, scratch, Packing::Ziplist, visitor),
        n::ZSET_LISTPACK => packed_sorted_set(source, scratch, Packing::Listpack, visitor),
        n::HASH_ZIPMAP => packed_hash(source, scratch, Packing::Zipmap, false, visitor),
        n::HASH_ZIPLIST => packed_hash(source, scratch, Packing::Ziplist, false, visitor),
        n::HASH_LISTPACK => packed_hash(source, scratch, Packing::Listpack, false, visitor),
        n::HASH_LISTPACK_EX_PRE_GA => packed_hash(source, scratch, Packing::Listpack, true, visitor),
        n::HASH_LISTPACK_EX => {
            // The first time that any of its fields expires: for the server's own use.
            let _: [u8; 8] = source.array()?;
            packed_hash(source, scratch, Packing::Listpack, true, visitor)
        }
        n::MODULE_2 => module::walk(source, visitor),
        _ if class == Class::Stream => stream::walk(type_byte, source, scratch, visitor),
        _ => hash(type_byte, family, source, scratch, visitor),
    }
}

/// The error for a type that is not known.
pub(super) fn unknown(type_byte: u8, family: Family) -> Error {
    match (type_byte, family) {
        (n::MODULE_PRE_GA, _) => {
            Error::unsupported("values of modules of Redis 4 release candidates (RDB type 6) cannot be read")
        }
        (_, Family::Redis) => {
            Error::unsupported(format!("RDB type {type_byte} of Redis is not known to this build"))
        }
        (_, Family::Valkey) => {
            Error::unsupported(format!("RDB type {type_byte} of Valkey is not known to this build"))
        }
    }
}

fn strings<B: Bytes, V: ValueVisitor>(s: &mut B, scratch: &mut Scratch, role: Role, v: &mut V) -> Result<()> {
    for _ in 0..length(s)? {
        string(s, scratch, role, v)?;
    }
    Ok(())
}

fn packed<B: Bytes, V: ValueVisitor>(
    source: &mut B,
    scratch: &mut Scratch,
    packing: Packing,
    role: Role,
    visitor: &mut V,
) -> Result<()> {
    let mut items = Packed::open(source, scratch, packing)?;
    while let Some(item) = items.next()? {
        items.emit(item, role, visitor)?;
    }
    items.finish()
}

fn quicklist<B: Bytes, V: ValueVisitor>(type_byte: u8, s: &mut B, scratch: &mut Scratch, v: &mut V) -> Result<()> {
    for _ in 0..length(s)? {
        if type_byte == n::LIST_QUICKLIST {
            packed(s, scratch, Packing::Ziplist, Role::Element, v)?;
            continue;
        }
        match length(s)? {
            PLAIN_NODE => string(s, scratch, Role::Element, v)?,
            PACKED_NODE => packed(s, scratch, Packing::Listpack, Role::Element, v)?,
            _ => return Err(damaged("a node of a list of an unknown form")),
        }
    }
    Ok(())
}

fn sorted_set<B: Bytes, V: ValueVisitor>(type_byte: u8, s: &mut B, scratch: &mut Scratch, v: &mut V) -> Result<()> {
    for _ in 0..length(s)? {
        string(s, scratch, Role::ScoredMember, v)?;
        let score = if type_byte == n::ZSET { decimal_score(s)? } else { f64::from_le_bytes(s.array()?) };
        if score.is_nan() {
            return Err(damaged("a score that is no number"));
        }
        v.score(score)?;
    }
    Ok(())
}

/// A score as old servers wrote it: a length, or a number that stands for infinity, then digits.
fn decimal_score<B: Bytes>(source: &mut B) -> Result<f64> {
    let len = usize::from(source.byte()?);
    match len {
        255 => Ok(f64::NEG_INFINITY),
        254 => Ok(f64::INFINITY),
        253 => Ok(f64::NAN),
        0..=super::bytes::MOST_PEEK => {
            let score = parse_score(&source.need(len)?[..len])?;
            source.consume(len);
            Ok(score)
        }
        _ => Err(damaged("a score that is too long")),
    }
}

fn packed_sorted_set<B: Bytes, V: ValueVisitor>(
    source: &mut B,
    scratch: &mut Scratch,
    packing: Packing,
    visitor: &mut V,
) -> Result<()> {
    let mut items = Packed::open(source, scratch, packing)?;
    while let Some(member) = items.next()? {
        items.emit(member, Role::ScoredMember, visitor)?;
        let score = items.expect()?;
        visitor.score(items.score(score)?)?;
    }
    items.finish()
}

fn packed_hash<B: Bytes, V: ValueVisitor>(
    source: &mut B,
    scratch: &mut Scratch,
    packing: Packing,
    expiring: bool,
    visitor: &mut V,
) -> Result<()> {
    let mut items = Packed::open(source, scratch, packing)?;
    while let Some(field) = items.next()? {
        items.emit(field, Role::Field, visitor)?;
        let value = items.expect()?;
        items.emit(value, Role::FieldValue, visitor)?;
        let expire = if expiring {
            let at = items.expect()?;
            items.integer(at)?
        } else {
            0
        };
        visitor.field_end((expire != 0).then_some(expire))?;
    }
    items.finish()
}

/// Hashes of single strings; where fields may expire, each family has its own order.
fn hash<B: Bytes, V: ValueVisitor>(
    type_byte: u8,
    family: Family,
    source: &mut B,
    scratch: &mut Scratch,
    visitor: &mut V,
) -> Result<()> {
    let valkey = family == Family::Valkey && type_byte == n::VALKEY_HASH_2;
    // Times are relative to the first one, plus one, so that zero can say that there is none.
    let base = match (type_byte, family) {
        (n::HASH_METADATA, Family::Redis) => i64::from_le_bytes(source.array()?).checked_sub(1),
        _ => Some(0),
    };
    for _ in 0..length(source)? {
        let mut expire = None;
        if type_byte != n::HASH && !valkey {
            let relative = length(source)?;
            if relative != 0 {
                let at = i64::try_from(relative).ok().zip(base).and_then(|(r, b)| b.checked_add(r));
                expire = at.filter(|at| (0..=LAST_EXPIRE).contains(at));
                if expire.is_none() {
                    return Err(damaged("a field of a hash that expires at an impossible time"));
                }
            }
        }
        string(source, scratch, Role::Field, visitor)?;
        string(source, scratch, Role::FieldValue, visitor)?;
        if valkey {
            expire = Some(i64::from_le_bytes(source.array()?)).filter(|at| *at != -1);
        }
        visitor.field_end(expire)?;
    }
    Ok(())
}
