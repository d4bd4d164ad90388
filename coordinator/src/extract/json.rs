//! Strings in JSON, written piece by piece: text as it is with what JSON wants escaped, other bytes as base64.

use std::io::Write;

use data_encoding::BASE64;
use tidemark_proto::Result;

use super::unwritten;

/// Bytes encoded at once: a multiple of three, so that padding comes only at the end.
const PIECE: usize = 3 << 12;

/// Writes a formatted text.
pub(super) fn put(out: &mut impl Write, text: std::fmt::Arguments<'_>) -> Result<()> {
    out.write_fmt(text).map_err(unwritten)
}

/// Writes pieces of one string; quotation marks are the caller's.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    base64: bool,
    /// Bytes that wait for others: base64 takes three at a time.
    carried: Vec<u8>,
}

impl Pieces {
    /// A string as text or as base64.
    pub(super) fn new(base64: bool) -> Self {
        Self { base64, carried: Vec::new() }
    }

    /// Writes the next bytes.
    pub(super) fn piece(&mut self, out: &mut impl Write, mut bytes: &[u8]) -> Result<()> {
        if !self.base64 {
            return escaped(out, bytes);
        }
        if !self.carried.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(3 - self.carried.len()));
            self.carried.extend_from_slice(head);
            if self.carried.len() < 3 {
                return Ok(());
            }
            encoded(out, &self.carried)?;
            self.carried.clear();
            bytes = rest;
        }
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % 3);
        encoded(out, whole)?;
        self.carried.extend_from_slice(rest);
        Ok(())
    }

    /// Writes what is left.
    pub(super) fn end(self, out: &mut impl Write) -> Result<()> {
        encoded(out, &self.carried)
    }
}

fn encoded(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    bytes.chunks(PIECE).try_for_each(|piece| out.write_all(BASE64.encode(piece).as_bytes()).map_err(unwritten))
}

/// Escapes byte by byte: a character that is cut between two pieces is whole again in the output.
fn escaped(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    let mut plain = 0;
    for (i, &byte) in bytes.iter().enumerate() {
        if byte >= b' ' && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.write_all(&bytes[plain..i]).map_err(unwritten)?;
        plain = i + 1;
        match byte {
            b'"' | b'\\' => put(out, format_args!("\\{}", char::from(byte)))?,
            b'\n' => put(out, format_args!("\\n"))?,
            b'\r' => put(out, format_args!("\\r"))?,
            b'\t' => put(out, format_args!("\\t"))?,
            8 => put(out, format_args!("\\b"))?,
            12 => put(out, format_args!("\\f"))?,
            _ => put(out, format_args!("\\u{byte:04x}"))?,
        }
    }
    out.write_all(&bytes[plain..]).map_err(unwritten)
}

/// Finds out, piece by piece, whether a string is UTF-8.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The beginning of a character whose rest has not come.
    cut: Vec<u8>,
    wrong: bool,
}

impl Utf8 {
    /// Looks at the next bytes.
    pub(super) fn piece(&mut self, mut bytes: &[u8]) {
        while !self.cut.is_empty() && !self.wrong && !bytes.is_empty() {
            self.cut.push(bytes[0]);
            bytes = &bytes[1..];
            match std::str::from_utf8(&self.cut) {
                Ok(_) => self.cut.clear(),
                Err(e) => self.wrong = e.error_len().is_some(),
            }
        }
        if self.wrong {
            return;
        }
        if let Err(e) = std::str::from_utf8(bytes) {
            self.wrong = e.error_len().is_some();
            self.cut.extend_from_slice(&bytes[e.valid_up_to()..][..(bytes.len() - e.valid_up_to()).min(4)]);
        }
    }

    /// The string is whole: whether it is UTF-8. Ready for the next one.
    pub(super) fn end(&mut self) -> bool {
        let whole = !self.wrong && self.cut.is_empty();
        *self = Self::default();
        whole
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(base64: bool, pieces: &[&[u8]]) -> String {
        let (mut out, mut string) = (Vec::new(), Pieces::new(base64));
        pieces.iter().for_each(|p| string.piece(&mut out, p).unwrap());
        string.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn pieces_make_what_the_whole_makes(text in any::<String>(), bytes: Vec<u8>, size in 1usize..9) {
            let json = written(false, &text.as_bytes().chunks(size).collect::<Vec<_>>());
            prop_assert_eq!(serde_json::from_str::<String>(&format!("\"{json}\"")).unwrap(), text);
            prop_assert_eq!(written(true, &bytes.chunks(size).collect::<Vec<_>>()), BASE64.encode(&bytes));
        }

        #[test]
        fn utf8_is_found_in_pieces(mut bytes in any::<String>().prop_map(String::into_bytes), at: prop::sample::Index, blow: Option<u8>, size in 1usize..9) {
            if let (Some(byte), false) = (blow, bytes.is_empty()) {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let mut check = Utf8::default();
            for _ in 0..2 {
                bytes.chunks(size).for_each(|p| check.piece(p));
                prop_assert_eq!(check.end(), std::str::from_utf8(&bytes).is_ok());
            }
        }
    }
}
