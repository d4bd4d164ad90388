//! RDB: what stores send and files hold. The first byte chooses what the rest is.

use tidemark_common::Result;
use tidemark_common::rdb::{
    Family, Meaning, RdbSink, RecordHead, ValueSummary, convert, decode, decode_slice, meaning_of, payload, read,
};

/// Checks that the pieces of each value are as long as they are said to be, and mean what they are said to mean.
#[derive(Default)]
struct Check {
    type_byte: u8,
    family: Option<Family>,
    raw: Vec<u8>,
}

impl RdbSink for Check {
    fn begin(&mut self, head: &RecordHead<'_>) -> Result<()> {
        (self.type_byte, self.family) = (head.type_byte, Some(head.family));
        self.raw.clear();
        Ok(())
    }

    fn value(&mut self, piece: &[u8]) -> Result<()> {
        self.raw.extend_from_slice(piece);
        Ok(())
    }

    fn end(&mut self, summary: ValueSummary) -> Result<()> {
        let family = self.family.expect("a record has begun");
        assert_eq!(meaning_of(self.type_byte, family, &self.raw).expect("as it was read"), summary);
        for target in [2, 19] {
            let mut out = Vec::new();
            if convert(self.type_byte, &mut &self.raw[..], target, &mut out).is_ok() {
                let converted = meaning_of(target, Family::Redis, &out).expect("converted");
                assert_eq!(converted.meaning, summary.meaning, "type {} as {target}", self.type_byte);
            }
        }
        Ok(())
    }
}

/// Files with or without their headers, payloads, raw values.
pub fn rdb(bytes: &[u8]) {
    let Some((&which, rest)) = bytes.split_first() else { return };
    let mut sink = Check::default();
    match which {
        // A file, its checksum as it may be: damage that the checksum shows must be survived before it is read.
        0 => drop(read(&mut &rest[..], &mut sink)),
        1 => drop(read(&mut [&b"REDIS0011"[..], rest].concat().as_slice(), &mut sink)),
        2 => drop(read(&mut [&b"VALKEY080"[..], rest].concat().as_slice(), &mut sink)),
        3 => {
            if let Ok(payload) = payload::open(rest) {
                let _ = decode_slice(payload.type_byte, payload.family, payload.raw, &mut Meaning::new());
            }
        }
        _ => {
            let (type_byte, family) =
                if which < 128 { (which - 4, Family::Redis) } else { (which - 128, Family::Valkey) };
            let sliced = decode_slice(type_byte, family, rest, &mut Meaning::new());
            let streamed = decode(type_byte, family, &mut &rest[..], &mut Meaning::new());
            assert_eq!(sliced.is_ok(), streamed.is_ok(), "in memory and as a stream");
        }
    }
}
