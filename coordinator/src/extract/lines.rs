//! Records as JSON Lines: one object a record, with its slot, its key and value, and how each of these is written. Records
//! of Redis and Valkey have their database, type, time of expiry and the value taken apart (see `values.rs`).

use std::io::Write;

use serde::Serialize;
use tidemark_common::rdb::RawValue;
use tidemark_common::record::{REDIS, RedisMeta, split_redis_key};
use tidemark_common::run::{Entry, LongValue};
use tidemark_proto::{Error, Result};

use super::json::{Pieces, put};
use super::{Output, shown, unwritten, values};

/// Longest value of a store other than Redis, in bytes.
const MOST_HELD: usize = 1 << 30;

/// How keys and values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Encoding {
    /// As text where the bytes are UTF-8, as base64 elsewhere; each record says which.
    #[default]
    Auto,
    /// As text; a record that is no UTF-8 is an error.
    Text,
    /// As base64.
    Base64,
}

/// Writes records.
#[derive(Debug)]
pub struct Lines<W> {
    out: W,
    encoding: Encoding,
}

impl<W: Write> Lines<W> {
    /// Lines to `out`, which should be buffered.
    pub fn new(out: W, encoding: Encoding) -> Self {
        Self { out, encoding }
    }

    /// Where they went.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn raw(&mut self, text: std::fmt::Arguments<'_>) -> Result<()> {
        put(&mut self.out, text)
    }

    fn redis<V: RawValue + ?Sized>(&mut self, entry: &Entry<'_>, meta: &[u8], value: &V) -> Result<()> {
        let (meta, (db, key)) = (RedisMeta::decode(meta)?, split_redis_key(entry.key)?);
        self.raw(format_args!(",\"db\":{db}"))?;
        self.field(key, "key", key)?;
        values::put_value(&mut self.out, self.encoding, key, &meta, value)
    }

    fn field(&mut self, key: &[u8], name: &str, bytes: &[u8]) -> Result<()> {
        let text = match self.encoding {
            Encoding::Base64 => None,
            Encoding::Auto => std::str::from_utf8(bytes).ok(),
            Encoding::Text => Some(std::str::from_utf8(bytes).map_err(|e| no_text(key, name).with_source(e))?),
        };
        let encoding = if text.is_some() { "text" } else { "base64" };
        self.raw(format_args!(",\"{name}_encoding\":\"{encoding}\",\"{name}\":"))?;
        if let Some(text) = text {
            let written = text.serialize(&mut serde_json::Serializer::new(&mut self.out));
            return written.map_err(|e| unwritten(std::io::Error::from(e)));
        }
        let mut pieces = Pieces::new(true);
        self.raw(format_args!("\""))?;
        pieces.piece(&mut self.out, bytes)?;
        pieces.end(&mut self.out)?;
        self.raw(format_args!("\""))
    }
}

impl<W: Write + Send> Output for Lines<W> {
    /// Every record has a place. `Request` when it is no text and must be; `Cancelled` when nobody reads any more.
    fn write(&mut self, entry: &Entry<'_>, long: Option<&LongValue>) -> Result<bool> {
        let (meta, value) = entry.put.unwrap_or_default();
        self.raw(format_args!("{{\"slot\":{}", entry.slot))?;
        if meta.first() == Some(&REDIS) {
            match long {
                Some(long) => self.redis(entry, meta, long)?,
                None => self.redis(entry, meta, value)?,
            }
        } else {
            // Other stores hold no values that do not fit into memory.
            let held = long.map(|long| long.whole(MOST_HELD)).transpose()?;
            let value = held.as_deref().unwrap_or(value);
            self.field(entry.key, "key", entry.key)?;
            if !meta.is_empty() {
                self.field(entry.key, "meta", meta)?;
            }
            self.field(entry.key, "value", value)?;
        }
        self.raw(format_args!("}}\n"))?;
        Ok(true)
    }

    fn finish(&mut self) -> Result<()> {
        self.out.flush().map_err(unwritten)
    }
}

/// The error for bytes that must be text and are not.
pub(super) fn no_text(key: &[u8], name: &str) -> Error {
    Error::request(format!("the {name} of `{}` is no text: use --encoding auto or base64", shown(key)))
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;
    use tidemark_proto::ErrorKind;

    use super::*;

    fn line(encoding: Encoding, key: &[u8], value: &[u8]) -> Result<serde_json::Value> {
        let mut lines = Lines::new(Vec::new(), encoding);
        let _ = lines.write(&Entry { slot: 7, key, put: Some((b"", value)) }, None)?;
        let text = String::from_utf8(lines.into_inner()).unwrap();
        assert!(text.ends_with('\n') && text.lines().count() == 1, "{text}");
        Ok(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn text_is_text_and_bytes_are_base64() {
        let found = line(Encoding::Auto, b"a\"\n\xc3\xa4", b"").unwrap();
        let text = serde_json::json!({"slot": 7, "key_encoding": "text", "key": "a\"\nä", "value_encoding": "text", "value": ""});
        assert_eq!(found, text);
        let found = line(Encoding::Auto, b"k", &[0xff, 0]).unwrap();
        assert_eq!((found["value_encoding"].as_str(), found["value"].as_str()), (Some("base64"), Some("/wA=")));
        assert_eq!(line(Encoding::Base64, b"k", b"v").unwrap()["value"], "dg==");
        assert_eq!(line(Encoding::Text, b"k", b"v").unwrap()["value"], "v");
        let e = line(Encoding::Text, b"k", &[0xff]).unwrap_err();
        assert!(e.kind() == ErrorKind::Request && e.message().contains("`k`"), "{e}");
    }

    #[test]
    fn long_values_are_encoded_by_pieces() {
        let value: Vec<u8> = (0..100_001_u32).map(|i| (i % 251) as u8 | 0x80).collect();
        let found = line(Encoding::Auto, b"k", &value).unwrap();
        assert_eq!(BASE64.decode(found["value"].as_str().unwrap().as_bytes()).unwrap(), value);
    }
}
