//! Values as commands that every server knows: a key is made anew, whatever was there.
//!
//! What a file has and commands cannot say is left out: how often and when keys were used, when consumers of streams were
//! seen. Values of modules cannot be made by commands that are known here.

mod stream;

use tidemark_proto::{Error, Result};

use super::decode::RawValue;
use super::types::{Class, class_of};
use super::visitor::{Group, Role, StreamId, StreamMeta, ValueVisitor};
use crate::record::RedisMeta;
use stream::{Pending, Stream};

/// Elements of one command at most: it holds the server up while it runs.
const MOST_ELEMENTS: usize = 1000;
/// Bytes of a command that is gathered, at which it ends. A string that is longer goes from the block that it lies in
/// straight into a command of its own.
const MOST_BYTES: usize = 1 << 20;
/// Bytes of a value of class string that go into one command: what is left follows by `APPEND`.
pub const MOST_STRING: usize = 64 << 20;

/// Takes commands as they are sent to a server.
pub trait CommandSink {
    /// A command follows in the next bytes; it is whole before this is called again.
    fn command(&mut self) -> Result<()>;

    /// The next bytes.
    fn bytes(&mut self, bytes: &[u8]) -> Result<()>;
}

impl CommandSink for Vec<u8> {
    fn command(&mut self) -> Result<()> {
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

/// Writes the commands that make `key` with this value in the database at hand, with its expiry. Strings go in commands of
/// `most_string` bytes at most. `None`, and nothing written, for a value that no commands make: of a module, or a newer type.
pub fn put_key<V: RawValue + ?Sized>(
    out: &mut impl CommandSink,
    key: &[u8],
    meta: &RedisMeta,
    value: &V,
    most_string: usize,
) -> Result<Option<()>> {
    let Some(class) = class_of(meta.type_byte, meta.family).filter(|class| *class != Class::Module) else {
        return Ok(None);
    };
    if class != Class::String {
        command(out, &[b"DEL", key])?;
    }
    if class == Class::Stream {
        let mut pending = Pending::default();
        value.show(meta.type_byte, meta.family, &mut pending)?;
        let mut stream = Stream::new(out, key, pending);
        value.show(meta.type_byte, meta.family, &mut stream)?;
        stream.finish()?;
    } else {
        let mut made = Value::new(out, class, key, most_string.max(1) as u64);
        value.show(meta.type_byte, meta.family, &mut made)?;
        made.flush()?;
    }
    if let Some(at) = meta.expire_at_millis {
        command(out, &[b"PEXPIREAT", key, at.to_string().as_bytes()])?;
    }
    Ok(Some(()))
}

/// Begins a command of so many words.
fn begin(out: &mut impl CommandSink, words: usize) -> Result<()> {
    out.command()?;
    out.bytes(format!("*{words}\r\n").as_bytes())
}

/// Begins a word of so many bytes.
fn begin_word(out: &mut impl CommandSink, len: u64) -> Result<()> {
    out.bytes(format!("${len}\r\n").as_bytes())
}

fn word(out: &mut impl CommandSink, bytes: &[u8]) -> Result<()> {
    begin_word(out, bytes.len() as u64)?;
    out.bytes(bytes)?;
    out.bytes(b"\r\n")
}

/// Writes a command.
pub fn command(out: &mut impl CommandSink, words: &[&[u8]]) -> Result<()> {
    begin(out, words.len())?;
    words.iter().try_for_each(|w| word(out, w))
}

/// Makes a value of any class but streams.
struct Value<'o, W> {
    out: &'o mut W,
    verb: &'static [u8],
    key: &'o [u8],
    /// The string that the walk is in; of a hash, the field too.
    text: Vec<u8>,
    field: Vec<u8>,
    /// Whether the string goes straight out.
    straight: bool,
    /// Words of the next command after verb and key, and their number; its elements.
    gathered: Vec<u8>,
    words: usize,
    elements: usize,
    /// Commands that come after it, and where each ends: times at which fields expire.
    after: Vec<u8>,
    ends: Vec<usize>,
    /// Bytes of a string of class string that go into one command, what is left of it, and what of that is in this one.
    most: u64,
    left: u64,
    room: u64,
}

impl<'o, W: CommandSink> Value<'o, W> {
    fn new(out: &'o mut W, class: Class, key: &'o [u8], most: u64) -> Self {
        let verb: &[u8] = match class {
            Class::List => b"RPUSH",
            Class::Set => b"SADD",
            Class::SortedSet => b"ZADD",
            Class::Hash => b"HSET",
            _ => b"SET",
        };
        let (text, field, gathered, after, ends) = Default::default();
        Self {
            out,
            verb,
            key,
            text,
            field,
            straight: false,
            gathered,
            words: 0,
            elements: 0,
            after,
            ends,
            most,
            left: 0,
            room: 0,
        }
    }

    fn gather(&mut self, text: &[u8]) -> Result<()> {
        self.words += 1;
        word(&mut self.gathered, text)
    }

    /// Begins a command with as much as goes into one of what is left of the string.
    fn string_command(&mut self, verb: &[u8]) -> Result<()> {
        self.room = self.left.min(self.most);
        self.left -= self.room;
        begin(self.out, 3)?;
        word(self.out, verb)?;
        word(self.out, self.key)?;
        begin_word(self.out, self.room)
    }

    fn element_end(&mut self) -> Result<()> {
        self.elements += 1;
        if self.elements >= MOST_ELEMENTS || self.gathered.len() >= MOST_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes what is gathered.
    fn flush(&mut self) -> Result<()> {
        if self.words > 0 {
            begin(self.out, 2 + self.words)?;
            word(self.out, self.verb)?;
            word(self.out, self.key)?;
            self.out.bytes(&self.gathered)?;
        }
        let mut from = 0;
        for end in self.ends.drain(..) {
            self.out.command()?;
            self.out.bytes(&self.after[from..end])?;
            from = end;
        }
        (self.words, self.elements) = (0, 0);
        self.gathered.clear();
        self.after.clear();
        Ok(())
    }
}

impl<W: CommandSink> ValueVisitor for Value<'_, W> {
    fn begin(&mut self, role: Role, len: u64) -> Result<()> {
        self.text.clear();
        // Members of sorted sets come after their score, fields of hashes belong to their value: both wait.
        let alone = matches!(role, Role::Value | Role::Element | Role::Member | Role::FieldValue);
        self.straight = alone && (role == Role::Value || len >= MOST_BYTES as u64);
        if role == Role::Value {
            self.left = len;
            return self.string_command(b"SET");
        }
        if self.straight {
            self.flush()?;
            begin(self.out, if role == Role::FieldValue { 4 } else { 3 })?;
            word(self.out, self.verb)?;
            word(self.out, self.key)?;
            if role == Role::FieldValue {
                word(self.out, &self.field)?;
            }
            begin_word(self.out, len)?;
        }
        Ok(())
    }

    fn piece(&mut self, mut bytes: &[u8]) -> Result<()> {
        // A string of class string may be longer than one command takes.
        while self.verb == b"SET" && bytes.len() as u64 > self.room {
            let (here, rest) = bytes.split_at(self.room as usize);
            self.out.bytes(here)?;
            self.out.bytes(b"\r\n")?;
            bytes = rest;
            self.string_command(b"APPEND")?;
        }
        if self.straight {
            self.room = self.room.saturating_sub(bytes.len() as u64);
            return self.out.bytes(bytes);
        }
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self, role: Role) -> Result<()> {
        if self.straight {
            return self.out.bytes(b"\r\n");
        }
        let text = std::mem::take(&mut self.text);
        match role {
            Role::Element | Role::Member => {
                self.gather(&text)?;
                self.element_end()?;
            }
            Role::Field => {
                self.text = std::mem::replace(&mut self.field, text);
                return Ok(());
            }
            Role::FieldValue => {
                let field = std::mem::take(&mut self.field);
                self.gather(&field)?;
                self.field = field;
                self.gather(&text)?;
            }
            // The score comes next.
            Role::ScoredMember => {
                self.text = text;
                return Ok(());
            }
            _ => return Err(Error::bug("a string of another class")),
        }
        // Its room is used again.
        self.text = text;
        Ok(())
    }

    fn score(&mut self, score: f64) -> Result<()> {
        let member = std::mem::take(&mut self.text);
        // The shortest digits that are this number and no other; servers read them, and `inf`, by `strtod`.
        let score = if score.is_finite() { format!("{score:e}") } else { score.to_string() };
        self.gather(score.as_bytes())?;
        self.gather(&member)?;
        self.text = member;
        self.element_end()
    }

    fn field_end(&mut self, expire_at_millis: Option<i64>) -> Result<()> {
        if let Some(at) = expire_at_millis {
            let at = at.to_string();
            command(&mut self.after, &[b"HPEXPIREAT", self.key, at.as_bytes(), b"FIELDS", b"1", &self.field])?;
            self.ends.push(self.after.len());
        }
        self.element_end()
    }
}
