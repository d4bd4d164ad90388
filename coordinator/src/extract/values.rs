//! Values of Redis and Valkey in JSON, written as they are walked:
//! - string: `"value_encoding":"text","value":"…"`, or `base64`; a module's value the same, its raw bytes in base64;
//! - list: its elements in order; set: its members in the order of their bytes;
//! - hash: `[field, value]`, with the time at which the field expires as a third where there is one;
//! - sorted set: `[member, score]`, infinite scores as `"inf"` and `"-inf"`; both as the server had them in store;
//! - stream: an object with `entries` (`id`, `fields` as pairs), `last_id`, `entries_added`, `max_deleted_id` and `groups`.
//!
//! A string within a value is a JSON string where its bytes are written as text, and `{"base64":"…"}` where they are not.
//! Times are milliseconds since 1970. Which strings are text is found in a walk of its own: one bit each, so that no
//! string is ever whole in memory (members of sets are, see [`sorted`]).

use std::io::Write;

use tidemark_common::rdb::{Class, Group, RawValue, Role, StreamId, StreamMeta, ValueVisitor, class_of};
use tidemark_common::record::RedisMeta;
use tidemark_proto::{Error, Result};

use super::json::{Pieces, Utf8, put};
use super::lines::{Encoding, no_text};
use super::sorted;

/// Writes the fields `type`, `expire_at` and `value` of a record.
pub(super) fn put_value<V: RawValue + ?Sized>(
    out: &mut impl Write,
    encoding: Encoding,
    key: &[u8],
    meta: &RedisMeta,
    raw: &V,
) -> Result<()> {
    let class = class_of(meta.type_byte, meta.family)
        .ok_or_else(|| Error::unsupported(format!("RDB type {} is not known to this build", meta.type_byte)))?;
    put(out, format_args!(",\"type\":\"{}\"", class.name()))?;
    if let Some(at) = meta.expire_at_millis {
        put(out, format_args!(",\"expire_at\":{at}"))?;
    }
    let mut texts = Texts::default();
    match (encoding, class) {
        (Encoding::Base64, _) | (_, Class::Module) => texts.none = true,
        _ => raw.show(meta.type_byte, meta.family, &mut texts)?,
    }
    if encoding == Encoding::Text && (!texts.odd.is_empty() || class == Class::Module) {
        return Err(no_text(key, "value"));
    }
    if class == Class::Set {
        return set(out, encoding, meta, raw);
    }
    let mut json =
        Json { out, texts, strings: 0, string: Pieces::default(), first: true, inner: true, at: At::Flat };
    json.open(class)?;
    raw.show(meta.type_byte, meta.family, &mut json)?;
    json.close(class)
}

fn set<V: RawValue + ?Sized>(out: &mut impl Write, encoding: Encoding, meta: &RedisMeta, raw: &V) -> Result<()> {
    put(out, format_args!(",\"value\":["))?;
    let mut comma = "";
    sorted::members(meta.type_byte, meta.family, raw, sorted::ROOM, |member| {
        let base64 = encoding == Encoding::Base64 || std::str::from_utf8(member).is_err();
        put(out, format_args!("{comma}{}", opening(base64)))?;
        comma = ",";
        let mut string = Pieces::new(base64);
        string.piece(out, member)?;
        string.end(out)?;
        put(out, format_args!("{}", closing(base64)))
    })?;
    put(out, format_args!("]"))
}

fn opening(base64: bool) -> &'static str {
    if base64 { "{\"base64\":\"" } else { "\"" }
}

fn closing(base64: bool) -> &'static str {
    if base64 { "\"}" } else { "\"" }
}

/// Finds which strings of a value are no text, by their number.
#[derive(Default)]
struct Texts {
    check: Utf8,
    seen: usize,
    /// A bit each, as far as there are any.
    odd: Vec<u64>,
    /// All are written as base64.
    none: bool,
}

impl Texts {
    fn is_text(&self, string: usize) -> bool {
        !self.none && self.odd.get(string / 64).is_none_or(|bits| bits >> (string % 64) & 1 == 0)
    }
}

impl ValueVisitor for Texts {
    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        self.check.piece(bytes);
        Ok(())
    }

    fn end(&mut self, _role: Role) -> Result<()> {
        if !self.check.end() {
            self.odd.resize(self.odd.len().max(self.seen / 64 + 1), 0);
            self.odd[self.seen / 64] |= 1 << (self.seen % 64);
        }
        self.seen += 1;
        Ok(())
    }
}

/// Where in a stream the walk is, by what is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// In no stream.
    Flat,
    Entries,
    Entry,
    Groups,
    /// Pending entries of a group.
    Pending,
    Consumers,
    /// Pending entries of a consumer.
    Consumer,
}

/// Writes a value.
struct Json<'o, W> {
    out: &'o mut W,
    texts: Texts,
    /// Strings begun.
    strings: usize,
    string: Pieces,
    /// Whether nothing stands yet in the array of the value, of entries, of groups, of consumers.
    first: bool,
    /// The same of fields of an entry, of pending entries.
    inner: bool,
    at: At,
}

impl<W: Write> Json<'_, W> {
    fn put(&mut self, text: &str) -> Result<()> {
        put(self.out, format_args!("{text}"))
    }

    fn open(&mut self, class: Class) -> Result<()> {
        match class {
            Class::String => Ok(()),
            Class::Module => self.put(",\"value_encoding\":\"base64\",\"value\":\""),
            Class::Stream => {
                self.at = At::Entries;
                self.put(",\"value\":{\"entries\":[")
            }
            _ => self.put(",\"value\":["),
        }
    }

    fn close(&mut self, class: Class) -> Result<()> {
        match class {
            Class::String => Ok(()),
            Class::Module => {
                std::mem::take(&mut self.string).end(self.out)?;
                self.put("\"")
            }
            Class::Stream => {
                self.end_group()?;
                self.put("]}")
            }
            _ => self.put("]"),
        }
    }

    fn comma(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.first, false) { Ok(()) } else { self.put(",") }
    }

    fn inner_comma(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.inner, false) { Ok(()) } else { self.put(",") }
    }

    /// Ends the consumer that is open, so that another one can follow.
    fn end_consumer(&mut self) -> Result<()> {
        match self.at {
            At::Consumer => self.put("]}")?,
            At::Pending => {
                self.put("],\"consumers\":[")?;
                self.first = true;
            }
            _ => {}
        }
        self.at = At::Consumers;
        Ok(())
    }

    fn end_group(&mut self) -> Result<()> {
        if self.at != At::Groups {
            self.end_consumer()?;
            self.put("]}")?;
            self.first = false;
            self.at = At::Groups;
        }
        Ok(())
    }

    fn end_entry(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.at, At::Entries) == At::Entry { self.put("]}") } else { Ok(()) }
    }
}

impl<W: Write> ValueVisitor for Json<'_, W> {
    fn begin(&mut self, role: Role, _len: u64) -> Result<()> {
        let base64 = !self.texts.is_text(self.strings);
        self.strings += 1;
        self.string = Pieces::new(base64);
        match role {
            Role::Value => {
                let encoding = if base64 { "base64" } else { "text" };
                return put(self.out, format_args!(",\"value_encoding\":\"{encoding}\",\"value\":\""));
            }
            Role::Element | Role::Member => self.comma()?,
            Role::ScoredMember | Role::Field => {
                self.comma()?;
                self.put("[")?;
            }
            Role::EntryField => {
                self.inner_comma()?;
                self.put("[")?;
            }
            Role::FieldValue | Role::EntryValue => self.put(",")?,
            Role::Group => {
                self.end_group()?;
                self.comma()?;
                self.put("{\"name\":")?;
            }
            Role::Consumer => {
                self.end_consumer()?;
                self.comma()?;
                self.put("{\"name\":")?;
            }
        }
        self.put(opening(base64))
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        self.string.piece(self.out, bytes)
    }

    fn end(&mut self, role: Role) -> Result<()> {
        let base64 = !self.texts.is_text(self.strings - 1);
        std::mem::take(&mut self.string).end(self.out)?;
        self.put(if role == Role::Value { "\"" } else { closing(base64) })?;
        if role == Role::EntryValue { self.put("]") } else { Ok(()) }
    }

    fn score(&mut self, score: f64) -> Result<()> {
        match score {
            f64::INFINITY => self.put(",\"inf\"]"),
            f64::NEG_INFINITY => self.put(",\"-inf\"]"),
            _ => put(self.out, format_args!(",{}]", serde_json::Value::from(score))),
        }
    }

    fn field_end(&mut self, expire_at_millis: Option<i64>) -> Result<()> {
        if let Some(at) = expire_at_millis {
            put(self.out, format_args!(",{at}"))?;
        }
        self.put("]")
    }

    fn entry(&mut self, id: StreamId, _fields: u64) -> Result<()> {
        self.end_entry()?;
        self.comma()?;
        (self.at, self.inner) = (At::Entry, true);
        put(self.out, format_args!("{{\"id\":\"{id}\",\"fields\":["))
    }

    fn stream(&mut self, meta: &StreamMeta) -> Result<()> {
        self.end_entry()?;
        put(self.out, format_args!("],\"last_id\":\"{}\"", meta.last))?;
        if let Some(added) = meta.entries_added {
            put(self.out, format_args!(",\"entries_added\":{added}"))?;
        }
        if let Some(id) = meta.max_deleted {
            put(self.out, format_args!(",\"max_deleted_id\":\"{id}\""))?;
        }
        (self.at, self.first) = (At::Groups, true);
        self.put(",\"groups\":[")
    }

    fn group(&mut self, group: &Group) -> Result<()> {
        put(self.out, format_args!(",\"last_id\":\"{}\"", group.last))?;
        // −1 says that the server does not know it.
        if let Some(read) = group.entries_read.filter(|read| *read >= 0) {
            put(self.out, format_args!(",\"entries_read\":{read}"))?;
        }
        (self.at, self.inner) = (At::Pending, true);
        self.put(",\"pending\":[")
    }

    fn pending(&mut self, id: StreamId, delivered_at_millis: i64, deliveries: u64) -> Result<()> {
        self.inner_comma()?;
        let at = delivered_at_millis;
        put(self.out, format_args!("{{\"id\":\"{id}\",\"delivered_at\":{at},\"deliveries\":{deliveries}}}"))
    }

    fn consumer(&mut self, seen_millis: i64, active_millis: Option<i64>) -> Result<()> {
        put(self.out, format_args!(",\"seen_at\":{seen_millis}"))?;
        if let Some(active) = active_millis.filter(|at| *at >= 0) {
            put(self.out, format_args!(",\"active_at\":{active}"))?;
        }
        (self.at, self.inner) = (At::Consumer, true);
        self.put(",\"pending\":[")
    }

    fn consumer_pending(&mut self, id: StreamId) -> Result<()> {
        self.inner_comma()?;
        put(self.out, format_args!("\"{id}\""))
    }

    fn module(&mut self, raw: &[u8]) -> Result<()> {
        if self.strings == 0 {
            (self.strings, self.string) = (1, Pieces::new(true));
        }
        self.string.piece(self.out, raw)
    }
}
