//! What `DUMP` answers and `RESTORE` takes: type byte, raw value, version of the format, checksum (`cluster.c`).
//!
//! Servers refuse a version newer than their own, and check no more of it: the type decides whether they can load the value
//! ([`super::loads`]). So a payload for an older server carries that server's version.

use tidemark_proto::Result;

use super::crc::Crc64;
use super::damaged;
use super::types::Family;

/// Bytes after the value: version and checksum, both little-endian.
pub const FOOTER_LEN: usize = 10;

/// A payload, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload<'a> {
    /// Layout of the value.
    pub type_byte: u8,
    /// Whose numbers those are, by the version.
    pub family: Family,
    /// Version of the format of the server that wrote it.
    pub version: u16,
    /// The raw value.
    pub raw: &'a [u8],
}

/// The end of a payload of the given version; `crc` has run over type byte and raw value.
#[must_use]
pub fn footer(version: u16, mut crc: Crc64) -> [u8; FOOTER_LEN] {
    let mut out = [0; FOOTER_LEN];
    out[..2].copy_from_slice(&version.to_le_bytes());
    crc.update(&out[..2]);
    out[2..].copy_from_slice(&crc.value().to_le_bytes());
    out
}

/// Writes a payload, of a value in memory, at the end of `out`.
pub fn write(version: u16, type_byte: u8, raw: &[u8], out: &mut Vec<u8>) {
    let from = out.len();
    out.reserve(1 + raw.len() + FOOTER_LEN);
    out.push(type_byte);
    out.extend_from_slice(raw);
    out.extend_from_slice(&version.to_le_bytes());
    let crc = Crc64::of(&out[from..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// Takes a payload apart and checks it. The value itself is not looked into.
pub fn open(payload: &[u8]) -> Result<Payload<'_>> {
    let (content, checksum) =
        payload.split_last_chunk::<8>().ok_or_else(|| damaged("a payload without a footer"))?;
    // Servers do not take a checksum of zero for "none" here.
    if Crc64::of(content) != u64::from_le_bytes(*checksum) {
        return Err(damaged("the checksum of a payload is another"));
    }
    let (value, version) = content.split_last_chunk::<2>().ok_or_else(|| damaged("a payload without a version"))?;
    let (&type_byte, raw) = value.split_first().ok_or_else(|| damaged("a payload without a type"))?;
    let version = u16::from_le_bytes(*version);
    Ok(Payload { type_byte, family: Family::of_version(version), version, raw })
}
