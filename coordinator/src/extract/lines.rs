//! Records as JSON Lines: one object a record, with its slot, its key and value, and how each of these is written.

use std::io::Write;

use data_encoding::BASE64;
use serde::Serialize;
use tidemark_common::run::Entry;
use tidemark_proto::{Error, ErrorKind, Result};

/// Bytes encoded at once: a multiple of three, so that padding comes only at the end.
const PIECE: usize = 3 << 12;

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

    /// Writes a record. `Request` when it is no text and must be; `Cancelled` when nobody reads any more.
    pub(super) fn write(&mut self, entry: &Entry<'_>) -> Result<()> {
        let (meta, value) = entry.put.unwrap_or_default();
        self.raw(format_args!("{{\"slot\":{}", entry.slot))?;
        self.field(entry, "key", entry.key)?;
        if !meta.is_empty() {
            self.field(entry, "meta", meta)?;
        }
        self.field(entry, "value", value)?;
        self.raw(format_args!("}}\n"))
    }

    /// Hands on what is buffered.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.out.flush().map_err(unwritten)
    }

    fn raw(&mut self, text: std::fmt::Arguments<'_>) -> Result<()> {
        self.out.write_fmt(text).map_err(unwritten)
    }

    fn field(&mut self, entry: &Entry<'_>, name: &str, bytes: &[u8]) -> Result<()> {
        let text = match self.encoding {
            Encoding::Base64 => None,
            Encoding::Auto => std::str::from_utf8(bytes).ok(),
            Encoding::Text => Some(std::str::from_utf8(bytes).map_err(|e| {
                let key = String::from_utf8_lossy(entry.key);
                Error::request(format!("the {name} of `{key}` is no text: use --encoding auto or base64"))
                    .with_source(e)
            })?),
        };
        let encoding = if text.is_some() { "text" } else { "base64" };
        self.raw(format_args!(",\"{name}_encoding\":\"{encoding}\",\"{name}\":"))?;
        match text {
            Some(text) => text
                .serialize(&mut serde_json::Serializer::new(&mut self.out))
                .map_err(|e| unwritten(std::io::Error::from(e))),
            None => self.base64(bytes),
        }
    }

    fn base64(&mut self, bytes: &[u8]) -> Result<()> {
        self.raw(format_args!("\""))?;
        for piece in bytes.chunks(PIECE) {
            self.out.write_all(BASE64.encode(piece).as_bytes()).map_err(unwritten)?;
        }
        self.raw(format_args!("\""))
    }
}

fn unwritten(e: std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::BrokenPipe => Error::cancelled("nobody reads the output any more"),
        _ => Error::new(ErrorKind::Full, "the records cannot be written").with_source(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(encoding: Encoding, key: &[u8], value: &[u8]) -> Result<serde_json::Value> {
        let mut lines = Lines::new(Vec::new(), encoding);
        lines.write(&Entry { slot: 7, key, put: Some((b"", value)) })?;
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
        let value: Vec<u8> = (0..PIECE * 2 + 1).map(|i| (i % 251) as u8 | 0x80).collect();
        let found = line(Encoding::Auto, b"k", &value).unwrap();
        assert_eq!(BASE64.decode(found["value"].as_str().unwrap().as_bytes()).unwrap(), value);
    }
}
