//! Small collections packed into one string: listpacks, ziplists, zipmaps and intsets (`listpack.c`, `ziplist.c`,
//! `zipmap.c`, `intset.c`), read as one sequence of items each.

use tidemark_proto::Result;

use super::body::Body;
use super::bytes::Bytes;
use super::length::{DIGITS, decimal};
use super::lzf::Scratch;
use super::visitor::{Role, ValueVisitor};
use super::{cut, damaged};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Listpack,
    Ziplist,
    /// Keys and values in turn.
    Zipmap,
    Intset,
}

/// An item, whose text follows.
pub(super) enum Item {
    Number(i64),
    Text(u64),
}

/// The number of items is not known, as it does not fit its field.
const UNKNOWN: u64 = u16::MAX as u64;
/// Ends listpacks, ziplists and zipmaps.
const END: u8 = 255;
/// In ziplists and zipmaps: four bytes of length follow.
const LONG: u8 = 254;
/// An item's own length stands behind it, seven bits a byte, and the highest number of each count of bytes is written with one more
/// than it needs: but by Valkey from 9.1 on with as many as it needs, and then its first byte is this.
const LONGEST: u8 = 0x7f;
/// Longest text that is a number: more than any score or id has.
const MOST_DIGITS: usize = 128;

pub(super) struct Packed<'a, B> {
    body: Body<'a, B>,
    packing: Packing,
    /// Number of items, if it is known, and of those seen.
    count: Option<u64>,
    seen: u64,
    /// Bytes after the last item's text that belong to it.
    tail: u64,
    /// It may be one byte less: see [`LONGEST`].
    border: bool,
    /// Bytes of a number of an intset.
    width: usize,
}

impl<'a, B: Bytes> Packed<'a, B> {
    pub(super) fn open(source: &'a mut B, scratch: &'a mut Scratch, packing: Packing) -> Result<Self> {
        let (mut body, len) = Body::open(source, scratch)?;
        let (mut count, mut width) = (None, 0);
        match packing {
            Packing::Listpack | Packing::Ziplist => {
                if u64::from(u32::from_le_bytes(body.array()?)) != len {
                    return Err(damaged("a packed collection of another length than it says"));
                }
                if packing == Packing::Ziplist {
                    // Where the last item is.
                    let _: [u8; 4] = body.array()?;
                }
                let items = u64::from(u16::from_le_bytes(body.array()?));
                count = (items < UNKNOWN).then_some(items);
            }
            Packing::Zipmap => {
                let _: [u8; 1] = body.array()?;
            }
            Packing::Intset => {
                width = u32::from_le_bytes(body.array()?) as usize;
                let items = u64::from(u32::from_le_bytes(body.array()?));
                if !matches!(width, 2 | 4 | 8) || len != 8 + items * width as u64 {
                    return Err(damaged("a set of numbers of a wrong form"));
                }
                count = Some(items);
            }
        }
        Ok(Self { body, packing, count, seen: 0, tail: 0, border: false, width })
    }

    /// The next item; `None` at the end, once everything was found to be in order.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<Item>> {
        if self.tail > 0 {
            let mut tail = std::mem::take(&mut self.tail);
            if std::mem::take(&mut self.border) && self.body.need(1)?[0] == LONGEST {
                tail -= 1;
            }
            self.body.pass(tail, |_| Ok(()))?;
        }
        let ended = match self.packing {
            Packing::Intset => self.count == Some(self.seen),
            Packing::Zipmap if self.seen % 2 == 1 => false,
            _ => self.body.need(1)?[0] == END,
        };
        if ended {
            if self.packing != Packing::Intset {
                self.body.consume(1);
            }
            if self.count.is_some_and(|count| count != self.seen) || !self.body.peek(1)?.is_empty() {
                return Err(damaged("a packed collection of another number of items than it says"));
            }
            return Ok(None);
        }
        self.seen += 1;
        match self.packing {
            Packing::Listpack => self.listpack(),
            Packing::Ziplist => self.ziplist(),
            Packing::Zipmap => self.zipmap(),
            Packing::Intset => {
                self.body.need(self.width).and_then(|seen| integer(seen, self.width)).map(|number| {
                    self.body.consume(self.width);
                    Item::Number(number)
                })
            }
        }
        .map(Some)
    }

    /// The next item, which must be there.
    pub(super) fn expect(&mut self) -> Result<Item> {
        self.next()?.ok_or_else(|| damaged("a packed collection with half a pair"))
    }

    #[inline]
    fn listpack(&mut self) -> Result<Item> {
        let seen = self.body.need(1)?;
        let first = seen[0];
        let (head, item) = match first {
            0..=0x7f => (1, Item::Number(i64::from(first))),
            0x80..=0xbf => (1, Item::Text(u64::from(first & 0x3f))),
            0xc0..=0xdf => {
                let bits = i64::from(first & 0x1f) << 8 | i64::from(self.body.need(2)?[1]);
                (2, Item::Number(if bits < 1 << 12 { bits } else { bits - (1 << 13) }))
            }
            0xe0..=0xef => {
                let low = self.body.need(2)?[1];
                (2, Item::Text(u64::from(first & 0x0f) << 8 | u64::from(low)))
            }
            0xf0 => (5, Item::Text(integer(&self.body.need(5)?[1..], 4)? as u32 as u64)),
            0xf1..=0xf4 => {
                let width = [2, 3, 4, 8][usize::from(first - 0xf1)];
                (1 + width, Item::Number(integer(&self.body.need(1 + width)?[1..], width)?))
            }
            _ => return Err(damaged("an item of a listpack of an unknown form")),
        };
        self.body.consume(head);
        let len = head as u64 + if let Item::Text(len) = item { len } else { 0 };
        // What follows is the item's own length, to walk backwards by.
        self.border = matches!(len, 16_383 | 2_097_151 | 268_435_455);
        self.tail = match len {
            0..=127 => 1,
            128..=16_382 => 2,
            16_383..=2_097_150 => 3,
            2_097_151..=268_435_454 => 4,
            _ => 5,
        };
        Ok(item)
    }

    fn ziplist(&mut self) -> Result<Item> {
        let before = if self.body.need(1)?[0] == LONG { 5 } else { 1 };
        let seen = self.body.need(before + 1)?;
        let first = seen[before];
        let mut rest =
            |width: usize| self.body.need(before + 1 + width).map(|seen| first_eight(&seen[before + 1..]));
        let (head, item) = match first {
            0..=0x3f => (0, Item::Text(u64::from(first))),
            0x40..=0x7f => (1, Item::Text(u64::from(first & 0x3f) << 8 | u64::from(rest(1)?[0]))),
            0x80..=0xbf => {
                let [a, b, c, d, ..] = rest(4)?;
                (4, Item::Text(u64::from(u32::from_be_bytes([a, b, c, d]))))
            }
            0xc0 => (2, Item::Number(integer(&rest(2)?, 2)?)),
            0xd0 => (4, Item::Number(integer(&rest(4)?, 4)?)),
            0xe0 => (8, Item::Number(integer(&rest(8)?, 8)?)),
            0xf0 => (3, Item::Number(integer(&rest(3)?, 3)?)),
            0xfe => (1, Item::Number(integer(&rest(1)?, 1)?)),
            0xf1..=0xfd => (0, Item::Number(i64::from(first & 0x0f) - 1)),
            _ => return Err(damaged("an item of a ziplist of an unknown form")),
        };
        self.body.consume(before + 1 + head);
        Ok(item)
    }

    fn zipmap(&mut self) -> Result<Item> {
        let len = match self.body.byte()? {
            END => return Err(damaged("a zipmap that ends after a key")),
            LONG => u32::from_le_bytes(self.body.array()?),
            short => u32::from(short),
        };
        if self.seen.is_multiple_of(2) {
            // Room behind a value that became shorter.
            self.tail = u64::from(self.body.byte()?);
        }
        Ok(Item::Text(u64::from(len)))
    }

    /// Hands an item to the visitor.
    #[inline]
    pub(super) fn emit<V: ValueVisitor>(&mut self, item: Item, role: Role, visitor: &mut V) -> Result<()> {
        match item {
            Item::Text(len) => {
                visitor.begin(role, len)?;
                self.body.pass(len, |piece| visitor.piece(piece))?;
            }
            Item::Number(number) => {
                let mut digits = [0; DIGITS];
                let digits = decimal(number, &mut digits);
                visitor.begin(role, digits.len() as u64)?;
                visitor.piece(digits)?;
            }
        }
        visitor.end(role)
    }

    /// Appends an item's text to `into`, which may have `most` bytes.
    pub(super) fn append(&mut self, item: Item, most: usize, into: &mut Vec<u8>) -> Result<()> {
        let mut take = |piece: &[u8]| {
            if into.len() + piece.len() > most {
                return Err(damaged("names of fields, or a number, that are too long"));
            }
            into.extend_from_slice(piece);
            Ok(())
        };
        match item {
            Item::Text(len) => self.body.pass(len, take),
            Item::Number(number) => take(decimal(number, &mut [0; DIGITS])),
        }
    }

    /// An item as a score.
    pub(super) fn score(&mut self, item: Item) -> Result<f64> {
        match item {
            Item::Number(number) => Ok(number as f64),
            Item::Text(len) => {
                let mut text = [0; MOST_DIGITS];
                parse_score(self.short(len, &mut text)?)
            }
        }
    }

    /// An item as an integer.
    pub(super) fn integer(&mut self, item: Item) -> Result<i64> {
        match item {
            Item::Number(number) => Ok(number),
            Item::Text(len) => {
                let mut text = [0; MOST_DIGITS];
                let text = self.short(len, &mut text)?;
                let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                number.ok_or_else(|| damaged("text where a number should be"))
            }
        }
    }

    fn short<'t>(&mut self, len: u64, room: &'t mut [u8; MOST_DIGITS]) -> Result<&'t [u8]> {
        let mut at = 0;
        self.body.pass(len, |piece| {
            let part = room.get_mut(at..at + piece.len()).ok_or_else(|| damaged("a number that is too long"))?;
            part.copy_from_slice(piece);
            at += piece.len();
            Ok(())
        })?;
        Ok(&room[..at])
    }

    /// Checks that all of it was taken.
    pub(super) fn finish(self) -> Result<()> {
        self.body.finish()
    }
}

/// A score in decimal.
pub(super) fn parse_score(text: &[u8]) -> Result<f64> {
    let score = std::str::from_utf8(text).ok().and_then(|text| text.trim_ascii().parse::<f64>().ok());
    score.filter(|score| !score.is_nan()).ok_or_else(|| damaged("a score that is no number"))
}

/// A signed little-endian number of `width` bytes, which is 1 to 8.
#[inline]
fn integer(bytes: &[u8], width: usize) -> Result<i64> {
    let mut raw = [0; 8];
    raw[..width].copy_from_slice(bytes.get(..width).ok_or_else(cut)?);
    let unused = 64 - 8 * width as u32;
    Ok(i64::from_le_bytes(raw) << unused >> unused)
}

/// The first eight bytes; zeros behind the end.
fn first_eight(bytes: &[u8]) -> [u8; 8] {
    let mut out = [0; 8];
    let count = bytes.len().min(8);
    out[..count].copy_from_slice(&bytes[..count]);
    out
}
