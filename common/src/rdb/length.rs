//! Lengths and strings as RDB writes them (`rdb.c`: functions of length and string encoding).

use tidemark_proto::Result;

use super::bytes::Bytes;
use super::lzf::{Lzf, Scratch};
use super::visitor::{Role, ValueVisitor};
use super::{cut, damaged};

/// How a string is stored.
pub(super) enum Stored {
    /// As it is.
    Plain(u64),
    /// As an integer, whose decimal digits are the string.
    Number(i64),
    /// Compressed: bytes stored, bytes meant.
    Packed { stored: u64, len: u64 },
}

enum Length {
    Of(u64),
    /// A special encoding of a string, by its number.
    Special(u8),
}

fn any_length<B: Bytes>(source: &mut B) -> Result<Length> {
    let first = source.need(1)?[0];
    let (size, length) = match first >> 6 {
        0 => (1, Length::Of(u64::from(first))),
        1 => {
            let seen = source.need(2)?;
            (2, Length::Of(u64::from(first & 0x3f) << 8 | u64::from(seen[1])))
        }
        3 => (1, Length::Special(first & 0x3f)),
        _ if first == 0x80 => {
            let be = source.need(5)?[1..].first_chunk::<4>().copied().ok_or_else(cut)?;
            (5, Length::Of(u64::from(u32::from_be_bytes(be))))
        }
        _ if first == 0x81 => {
            let be = source.need(9)?[1..].first_chunk::<8>().copied().ok_or_else(cut)?;
            (9, Length::Of(u64::from_be_bytes(be)))
        }
        _ => return Err(damaged("a length of an unknown form")),
    };
    source.consume(size);
    Ok(length)
}

/// A length, or a number stored as one.
#[inline]
pub(super) fn length<B: Bytes>(source: &mut B) -> Result<u64> {
    match any_length(source)? {
        Length::Of(length) => Ok(length),
        Length::Special(_) => Err(damaged("a string where a length should be")),
    }
}

/// The head of a string.
#[inline]
pub(super) fn stored<B: Bytes>(source: &mut B) -> Result<Stored> {
    Ok(match any_length(source)? {
        Length::Of(length) => Stored::Plain(length),
        Length::Special(0) => Stored::Number(i64::from(i8::from_le_bytes(source.array()?))),
        Length::Special(1) => Stored::Number(i64::from(i16::from_le_bytes(source.array()?))),
        Length::Special(2) => Stored::Number(i64::from(i32::from_le_bytes(source.array()?))),
        Length::Special(3) => Stored::Packed { stored: length(source)?, len: length(source)? },
        Length::Special(_) => return Err(damaged("a string of an unknown encoding")),
    })
}

/// A string, handed to the visitor in the given role.
#[inline]
pub(super) fn string<B: Bytes, V: ValueVisitor>(
    source: &mut B,
    scratch: &mut Scratch,
    role: Role,
    visitor: &mut V,
) -> Result<()> {
    match stored(source)? {
        Stored::Plain(len) => {
            visitor.begin(role, len)?;
            source.pass(len, |piece| visitor.piece(piece))?;
        }
        Stored::Number(number) => {
            let mut digits = [0; DIGITS];
            let digits = decimal(number, &mut digits);
            visitor.begin(role, digits.len() as u64)?;
            visitor.piece(digits)?;
        }
        Stored::Packed { stored, len } => {
            visitor.begin(role, len)?;
            let mut unpacked = Lzf::new(source, scratch, stored, len);
            unpacked.pass(len, |piece| visitor.piece(piece))?;
            unpacked.finish()?;
        }
    }
    visitor.end(role)
}

/// A string into memory: `into` grows with what arrives, up to `most` bytes.
pub(super) fn text<B: Bytes>(source: &mut B, scratch: &mut Scratch, most: usize, into: &mut Vec<u8>) -> Result<()> {
    into.clear();
    let mut take = |piece: &[u8]| {
        if into.len() + piece.len() > most {
            return Err(damaged("a key or name longer than any server takes"));
        }
        into.extend_from_slice(piece);
        Ok(())
    };
    match stored(source)? {
        Stored::Plain(len) => source.pass(len, take),
        Stored::Number(number) => take(decimal(number, &mut [0; DIGITS])),
        Stored::Packed { stored, len } => {
            let mut unpacked = Lzf::new(source, scratch, stored, len);
            unpacked.pass(len, take)?;
            unpacked.finish()
        }
    }
}

/// Room for any 64-bit number.
pub(super) const DIGITS: usize = 20;

/// The decimal digits of a number.
pub(super) fn decimal(number: i64, room: &mut [u8; DIGITS]) -> &[u8] {
    let (mut rest, mut at) = (number.unsigned_abs(), DIGITS);
    loop {
        at -= 1;
        room[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        room[at] = b'-';
    }
    &room[at..]
}

/// Writes a length as the servers do, in as few bytes as it takes.
pub(super) fn put_length(length: u64, out: &mut Vec<u8>) {
    if length < 1 << 6 {
        out.push(length as u8);
    } else if length < 1 << 14 {
        out.extend_from_slice(&[0x40 | (length >> 8) as u8, length as u8]);
    } else if let Ok(length) = u32::try_from(length) {
        out.push(0x80);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(0x81);
        out.extend_from_slice(&length.to_be_bytes());
    }
}

/// Writes a string as it is: no encoding is ever required.
pub(super) fn put_text(text: &[u8], out: &mut Vec<u8>) {
    put_length(text.len() as u64, out);
    out.extend_from_slice(text);
}
