//! Records as commands that `redis-cli --pipe` sends to a server: each key is made anew by commands that all servers know.
//!
//! What a file has and commands cannot say is left out: how often and when keys were used, when consumers of streams were
//! seen. A key that is there already is replaced. Values of modules cannot be made by commands that are known here.

mod stream;

use std::io::Write;

use tidemark_common::rdb::{Class, Group, Role, StreamId, StreamMeta, ValueVisitor, class_of, decode_slice};
use tidemark_common::record::{RedisMeta, split_redis_key};
use tidemark_common::run::Entry;
use tidemark_proto::{Error, Result};

use super::{Output, shown, unwritten};
use stream::{Pending, Stream};

/// Elements of one command at most: it holds the server up while it runs.
const MOST_ELEMENTS: usize = 1000;
/// Bytes of a command that is gathered, at which it ends. A string that is longer goes from the block that it lies in
/// straight into a command of its own.
const MOST_BYTES: usize = 1 << 20;

/// Writes commands.
pub struct Commands<W> {
    out: W,
    db: Option<u64>,
    now_millis: i64,
}

impl<W: Write> Commands<W> {
    /// Commands to `out`, which should be buffered; keys that have expired at `now_millis` are left out.
    pub fn new(out: W, now_millis: i64) -> Self {
        Self { out, db: None, now_millis }
    }
}

impl<W: Write + Send> Output for Commands<W> {
    /// A key that has expired has no place.
    fn write(&mut self, entry: &Entry<'_>) -> Result<bool> {
        let (meta, value) = entry.put.unwrap_or_default();
        let (meta, (db, key)) = (RedisMeta::decode(meta)?, split_redis_key(entry.key)?);
        if meta.expire_at_millis.is_some_and(|at| at <= self.now_millis) {
            return Ok(false);
        }
        let class = class_of(meta.type_byte, meta.family).filter(|class| *class != Class::Module);
        let class = class.ok_or_else(|| {
            Error::unsupported(format!(
                "the value of key `{}` is of a module (RDB type {}), which no known commands make: use --format rdb, or \
                 leave the key out (--keys '!…')",
                shown(key),
                meta.type_byte
            ))
        })?;
        if self.db != Some(db) {
            command(&mut self.out, &[b"SELECT", db.to_string().as_bytes()])?;
            self.db = Some(db);
        }
        if class != Class::String {
            command(&mut self.out, &[b"DEL", key])?;
        }
        if class == Class::Stream {
            let mut pending = Pending::default();
            decode_slice(meta.type_byte, meta.family, value, &mut pending)?;
            let mut stream = Stream::new(&mut self.out, key, pending);
            decode_slice(meta.type_byte, meta.family, value, &mut stream)?;
            stream.finish()?;
        } else {
            let mut made = Value::new(&mut self.out, class, key);
            decode_slice(meta.type_byte, meta.family, value, &mut made)?;
            made.flush()?;
        }
        if let Some(at) = meta.expire_at_millis {
            command(&mut self.out, &[b"PEXPIREAT", key, at.to_string().as_bytes()])?;
        }
        Ok(true)
    }

    fn finish(&mut self) -> Result<()> {
        self.out.flush().map_err(unwritten)
    }
}

fn raw(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(unwritten)
}

/// Begins a command of so many words.
fn begin(out: &mut impl Write, words: usize) -> Result<()> {
    write!(out, "*{words}\r\n").map_err(unwritten)
}

fn word(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    write!(out, "${}\r\n", bytes.len()).map_err(unwritten)?;
    raw(out, bytes)?;
    raw(out, b"\r\n")
}

fn command(out: &mut impl Write, words: &[&[u8]]) -> Result<()> {
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
    /// Commands that come after it: times at which fields expire.
    after: Vec<u8>,
}

impl<'o, W: Write> Value<'o, W> {
    fn new(out: &'o mut W, class: Class, key: &'o [u8]) -> Self {
        let verb: &[u8] = match class {
            Class::List => b"RPUSH",
            Class::Set => b"SADD",
            Class::SortedSet => b"ZADD",
            Class::Hash => b"HSET",
            _ => b"SET",
        };
        let (text, field, gathered, after) = Default::default();
        Self { out, verb, key, text, field, straight: false, gathered, words: 0, elements: 0, after }
    }

    fn gather(&mut self, text: &[u8]) -> Result<()> {
        self.words += 1;
        word(&mut self.gathered, text)
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
            raw(self.out, &self.gathered)?;
        }
        raw(self.out, &self.after)?;
        (self.words, self.elements) = (0, 0);
        self.gathered.clear();
        self.after.clear();
        Ok(())
    }
}

impl<W: Write> ValueVisitor for Value<'_, W> {
    fn begin(&mut self, role: Role, len: u64) -> Result<()> {
        self.text.clear();
        // Members of sorted sets come after their score, fields of hashes belong to their value: both wait.
        let alone = matches!(role, Role::Value | Role::Element | Role::Member | Role::FieldValue);
        self.straight = alone && (role == Role::Value || len >= MOST_BYTES as u64);
        if self.straight {
            self.flush()?;
            begin(self.out, if role == Role::FieldValue { 4 } else { 3 })?;
            word(self.out, self.verb)?;
            word(self.out, self.key)?;
            if role == Role::FieldValue {
                word(self.out, &self.field)?;
            }
            write!(self.out, "${len}\r\n").map_err(unwritten)?;
        }
        Ok(())
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        if self.straight {
            return raw(self.out, bytes);
        }
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self, role: Role) -> Result<()> {
        if self.straight {
            return raw(self.out, b"\r\n");
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
        }
        self.element_end()
    }
}
