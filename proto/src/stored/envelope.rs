//! The envelope around every stored object.
//!
//! `"TIDE" | kind (u8) | version (u8) | flags (u8) | 0 (u8) | body | checksum (16 bytes)`; the checksum is the first
//! 128 bits of the BLAKE3 hash of everything before it. Flag bit 0 says that the body is sealed:
//! `key id (u32 LE) | salt (16) | nonce (12) | ciphertext | tag (16)`.

use crate::error::{Error, Result};

/// First bytes of every object.
pub const MAGIC: [u8; 4] = *b"TIDE";
/// Bytes before the body.
pub const HEADER_LEN: usize = 8;
/// Bytes after the body.
pub const CHECKSUM_LEN: usize = 16;
/// Flag: the body is sealed.
pub const FLAG_SEALED: u8 = 1;

/// What an object is. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    /// The repository's description.
    Repository = 1,
    /// A wrapped data key.
    Key = 2,
    /// A coordinator's epoch.
    Epoch = 3,
    /// A ledger entry.
    LedgerEntry = 4,
    /// The root of a manifest.
    Root = 5,
    /// A page of a manifest.
    Page = 6,
    /// A pack.
    Pack = 7,
    /// A revision of a job record.
    JobRecord = 8,
    /// A log segment.
    Segment = 9,
    /// A backup job has begun.
    BackupBegun = 10,
    /// The cut of a backup holds.
    BackupCut = 11,
    /// A restore is about to touch its targets.
    RestoreBegun = 16,
    /// A restore switches.
    RestoreSwitching = 17,
    /// A restore is over.
    RestoreEnded = 18,
    /// How a restore loads records.
    RestoreOptions = 23,
    /// A restore of a time after its backup.
    RestoreAt = 24,
    /// What the nodes of a backup keep beside their records.
    Kept = 19,
    /// A restore sets users too.
    RestoreWithUsers = 20,
    /// Events of a job.
    JobEvents = 12,
    /// Limits of rates.
    Limits = 13,
}

impl ObjectKind {
    /// Name for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Repository => "repository description",
            Self::Key => "key",
            Self::Epoch => "epoch",
            Self::LedgerEntry => "ledger entry",
            Self::Root => "manifest root",
            Self::Page => "manifest page",
            Self::Pack => "pack",
            Self::JobRecord => "job record",
            Self::Segment => "log segment",
            Self::BackupBegun => "begin of a backup",
            Self::BackupCut => "cut of a backup",
            Self::RestoreBegun => "begin of a restore",
            Self::RestoreSwitching => "switch of a restore",
            Self::RestoreEnded => "end of a restore",
            Self::RestoreOptions => "options of a restore",
            Self::RestoreAt => "time of a restore",
            Self::Kept => "kept things",
            Self::RestoreWithUsers => "users of a restore",
            Self::JobEvents => "job events",
            Self::Limits => "limits",
        }
    }
}

/// The number of the kind in the header of `bytes`; 0 when there is none. Nothing is checked: that is [`unwrap`]'s work.
pub fn kind_of(bytes: &[u8]) -> u8 {
    bytes.get(4).copied().unwrap_or(0)
}

/// The version in the header of `bytes`; 0 when there is none. Nothing is checked.
pub fn version_of(bytes: &[u8]) -> u8 {
    bytes.get(5).copied().unwrap_or(0)
}

/// The first bytes of an object.
pub const fn header(kind: ObjectKind, version: u8, flags: u8) -> [u8; HEADER_LEN] {
    [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], kind as u8, version, flags, 0]
}

/// The checksum of `before`.
pub fn checksum(before: &[u8]) -> [u8; CHECKSUM_LEN] {
    truncate(blake3::hash(before))
}

/// The part of a hash that stands at the end of an object.
pub fn truncate(hash: blake3::Hash) -> [u8; CHECKSUM_LEN] {
    let mut out = [0; CHECKSUM_LEN];
    out.copy_from_slice(&hash.as_bytes()[..CHECKSUM_LEN]);
    out
}

/// Puts a body into its envelope.
pub fn wrap(kind: ObjectKind, version: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + body.len() + CHECKSUM_LEN);
    out.extend_from_slice(&header(kind, version, flags));
    out.extend_from_slice(body);
    let sum = checksum(&out);
    out.extend_from_slice(&sum);
    out
}

/// An opened envelope.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Version of the body's format.
    pub version: u8,
    /// Flags.
    pub flags: u8,
    /// The body.
    pub body: &'a [u8],
}

/// Checks magic, kind, version and checksum. Errors: `Damaged`, or `Unsupported` for a version above `max_version`.
pub fn unwrap(kind: ObjectKind, max_version: u8, bytes: &[u8]) -> Result<Opened<'_>> {
    let what = kind.name();
    if bytes.len() < HEADER_LEN + CHECKSUM_LEN {
        return Err(Error::damaged(format!("{what}: cut short to {} bytes", bytes.len())));
    }
    let (before, sum) = bytes.split_at(bytes.len() - CHECKSUM_LEN);
    check_header(kind, max_version, bytes)?;
    if checksum(before) != sum {
        return Err(Error::damaged(format!("{what}: checksum does not hold")));
    }
    Ok(Opened { version: bytes[5], flags: bytes[6], body: &before[HEADER_LEN..] })
}

/// Checks magic, kind and version of an object's first [`HEADER_LEN`] bytes.
pub fn check_header(kind: ObjectKind, max_version: u8, bytes: &[u8]) -> Result<()> {
    let what = kind.name();
    if bytes.len() < HEADER_LEN || bytes[..4] != MAGIC || bytes[7] != 0 {
        return Err(Error::damaged(format!("{what}: does not begin like an object of Tidemark")));
    }
    if bytes[4] != kind as u8 {
        return Err(Error::damaged(format!("{what}: the object is of kind {}", bytes[4])));
    }
    if bytes[5] == 0 || bytes[5] > max_version {
        return Err(Error::unsupported(format!("{what}: version {} is newer than this build knows", bytes[5])));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn every_single_bit_flip_is_found() {
        let bytes = wrap(ObjectKind::Root, 1, 0, b"body");
        assert_eq!(unwrap(ObjectKind::Root, 1, &bytes).unwrap().body, b"body");
        for i in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[i / 8] ^= 1 << (i % 8);
            assert!(unwrap(ObjectKind::Root, 1, &bad).is_err(), "bit {i}");
        }
        for len in 0..bytes.len() {
            assert!(unwrap(ObjectKind::Root, 1, &bytes[..len]).is_err(), "length {len}");
        }
    }

    #[test]
    fn kind_and_version_are_named() {
        let bytes = wrap(ObjectKind::Page, 2, 0, b"");
        assert_eq!(unwrap(ObjectKind::Root, 2, &bytes).unwrap_err().kind(), ErrorKind::Damaged);
        assert_eq!(unwrap(ObjectKind::Page, 1, &bytes).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn golden() {
        let hex = data_encoding::HEXLOWER.encode(&wrap(ObjectKind::Epoch, 1, 0, b"x"));
        assert_eq!(hex, "544944450301000078a38fd8d05718cb4bfb0eb5422d74fd66");
    }
}
