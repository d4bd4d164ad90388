//! Streams: listpacks of entries under the id of the first one of each, then counters, then consumer groups (`t_stream.c`
//! for the entries, `rdb.c` for the rest).

use tidemark_proto::Result;

use crate::rdb::bytes::Bytes;
use crate::rdb::damaged;
use crate::rdb::length::{Stored, length, stored, string};
use crate::rdb::lzf::Scratch;
use crate::rdb::packed::{Packed, Packing};
use crate::rdb::types::number::{STREAM_LISTPACKS_2, STREAM_LISTPACKS_3, STREAM_LISTPACKS_4};
use crate::rdb::visitor::{Group, Nothing, Role, StreamId, StreamMeta, ValueVisitor};

/// Flags of an entry.
const DELETED: i64 = 1;
const SAME_FIELDS: i64 = 2;
/// Most bytes of names of fields that the entries of a node share: they are kept in memory while the node is read.
const MOST_NAMES: usize = 64 << 20;

/// Names of the fields of a node's first entry, one after the other, and where each ends.
#[derive(Default)]
struct Names {
    text: Vec<u8>,
    ends: Vec<usize>,
}

pub(super) fn walk<B: Bytes, V: ValueVisitor>(
    type_byte: u8,
    source: &mut B,
    scratch: &mut Scratch,
    visitor: &mut V,
) -> Result<()> {
    let mut names = Names::default();
    for _ in 0..length(source)? {
        let Stored::Plain(16) = stored(source)? else { return Err(damaged("a key in a stream that is no id")) };
        let first = StreamId::from_bytes(source.array()?);
        let mut items = Packed::open(source, scratch, Packing::Listpack)?;
        node(first, &mut items, &mut names, visitor)?;
        items.finish()?;
    }
    let newer = type_byte >= STREAM_LISTPACKS_2;
    let mut meta = StreamMeta { length: length(source)?, last: id(source)?, ..StreamMeta::default() };
    if newer {
        (meta.first, meta.max_deleted) = (Some(id(source)?), Some(id(source)?));
        meta.entries_added = Some(length(source)?);
    }
    visitor.stream(&meta)?;
    for _ in 0..length(source)? {
        group(type_byte, source, scratch, visitor)?;
    }
    if type_byte >= STREAM_LISTPACKS_4 {
        source.only_newest_follows()?;
        producers(source, scratch)?;
    }
    Ok(())
}

/// What producers have sent lately: for how long and of how many that is remembered, then of each producer its name and what it
/// called each entry that it sent; counters last.
fn producers<B: Bytes>(source: &mut B, scratch: &mut Scratch) -> Result<()> {
    let (_duration, _most) = (length(source)?, length(source)?);
    for _ in 0..length(source)? {
        string(source, scratch, Role::Group, &mut Nothing)?;
        for _ in 0..length(source)? {
            string(source, scratch, Role::Group, &mut Nothing)?;
            let _entry = id(source)?;
        }
    }
    let (_added, _again) = (length(source)?, length(source)?);
    Ok(())
}

fn id<B: Bytes>(source: &mut B) -> Result<StreamId> {
    Ok(StreamId { millis: length(source)?, sequence: length(source)? })
}

/// A node: counts of entries and the fields of the first one, then all entries.
fn node<B: Bytes, V: ValueVisitor>(
    first: StreamId,
    items: &mut Packed<'_, B>,
    names: &mut Names,
    visitor: &mut V,
) -> Result<()> {
    let (live, deleted) = (number(items)?, number(items)?);
    let fields = number(items)?;
    names.text.clear();
    names.ends.clear();
    for _ in 0..fields {
        let name = items.expect()?;
        items.append(name, MOST_NAMES, &mut names.text)?;
        if names.ends.len() >= MOST_NAMES / size_of::<usize>() {
            return Err(damaged("a stream with more fields than fit in memory"));
        }
        names.ends.push(names.text.len());
    }
    // Ends the fields, as an entry would be ended by its number of items.
    let _end = number(items)?;
    let mut seen = [0; 2];
    while let Some(flags) = items.next()? {
        let flags = items.integer(flags)?;
        let id = StreamId {
            millis: first.millis.wrapping_add(number(items)? as u64),
            sequence: first.sequence.wrapping_add(number(items)? as u64),
        };
        if flags & DELETED != 0 {
            seen[1] += 1;
            entry(flags, id, items, names, &mut Nothing)?;
        } else {
            seen[0] += 1;
            entry(flags, id, items, names, visitor)?;
        }
    }
    if seen != [live, deleted] {
        return Err(damaged("a part of a stream with another number of entries than it says"));
    }
    Ok(())
}

fn number<B: Bytes>(items: &mut Packed<'_, B>) -> Result<i64> {
    let item = items.expect()?;
    items.integer(item)
}

fn entry<B: Bytes, V: ValueVisitor>(
    flags: i64,
    id: StreamId,
    items: &mut Packed<'_, B>,
    names: &Names,
    visitor: &mut V,
) -> Result<()> {
    if flags & SAME_FIELDS != 0 {
        visitor.entry(id, names.ends.len() as u64)?;
        let mut from = 0;
        for &to in &names.ends {
            visitor.begin(Role::EntryField, (to - from) as u64)?;
            if from < to {
                visitor.piece(&names.text[from..to])?;
            }
            visitor.end(Role::EntryField)?;
            let value = items.expect()?;
            items.emit(value, Role::EntryValue, visitor)?;
            from = to;
        }
    } else {
        let fields = u64::try_from(number(items)?).map_err(|_| damaged("an entry with fewer fields than none"))?;
        visitor.entry(id, fields)?;
        for _ in 0..fields {
            for role in [Role::EntryField, Role::EntryValue] {
                let item = items.expect()?;
                items.emit(item, role, visitor)?;
            }
        }
    }
    // Number of items of the entry, to walk backwards by.
    number(items).map(drop)
}

fn group<B: Bytes, V: ValueVisitor>(
    type_byte: u8,
    source: &mut B,
    scratch: &mut Scratch,
    visitor: &mut V,
) -> Result<()> {
    string(source, scratch, Role::Group, visitor)?;
    let last = id(source)?;
    // "Unknown" is −1, written as a length without a sign.
    let read = if type_byte >= STREAM_LISTPACKS_2 { Some(length(source)? as i64) } else { None };
    visitor.group(&Group { last, entries_read: read })?;
    for _ in 0..length(source)? {
        let id = StreamId::from_bytes(source.array()?);
        visitor.pending(id, i64::from_le_bytes(source.array()?), length(source)?)?;
    }
    for _ in 0..length(source)? {
        string(source, scratch, Role::Consumer, visitor)?;
        let seen = i64::from_le_bytes(source.array()?);
        let active = if type_byte >= STREAM_LISTPACKS_3 {
            let active = *source.need(8)?.first_chunk().ok_or_else(crate::rdb::cut)?;
            source.consume_newer(8)?;
            Some(i64::from_le_bytes(active))
        } else {
            None
        };
        visitor.consumer(seen, active)?;
        for _ in 0..length(source)? {
            visitor.consumer_pending(StreamId::from_bytes(source.array()?))?;
        }
    }
    Ok(())
}
