//! What stands in the folder of a restore: a note of each finished part, and its keys that expire.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use tidemark_proto::hash::SetDigest;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

/// Bytes of an entry in the list of expiring keys: time and hash.
const EXPIRING: usize = 24;

/// When a loaded record expires (milliseconds since 1970), and its hash.
pub(super) type Expiring = (i64, u128);

/// A finished part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note {
    /// Digest of its source.
    pub(super) source: SetDigest,
    /// Digest of what was loaded.
    pub(super) loaded: SetDigest,
    /// Records that had expired.
    pub(super) expired: u64,
}

/// Finished parts by their number.
pub(super) type Finished = BTreeMap<u32, Note>;

/// What stands in the folder of a restore.
#[derive(Debug)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn part(&self, number: u32) -> PathBuf {
        self.0.join(format!("part-{number}"))
    }

    /// List of the part's expiring keys.
    fn expiring(&self, number: u32) -> PathBuf {
        self.0.join(format!("expiring-{number}"))
    }

    /// Keeps the part's expiring keys.
    pub(super) fn keep_expiring(&self, number: u32, keys: &[Expiring]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let path = self.expiring(number);
        let bytes: Vec<u8> =
            keys.iter().flat_map(|k| [&k.0.to_le_bytes()[..], &k.1.to_le_bytes()].concat()).collect();
        let write = || File::create(&path)?.write_all(&bytes);
        write().or_kind(ErrorKind::Full, format_args!("{}", path.display()))
    }

    /// The expiring keys of all finished parts.
    pub(super) fn all_expiring(&self) -> Result<Vec<Expiring>> {
        let mut all = Vec::new();
        for number in self.finished()?.into_keys() {
            let list = std::fs::read(self.expiring(number)).unwrap_or_default();
            all.extend(list.chunks_exact(EXPIRING).map(|entry| {
                let (at, hash) = entry.split_at(8);
                let mut words = ([0; 8], [0; 16]);
                words.0.copy_from_slice(at);
                words.1.copy_from_slice(hash);
                (i64::from_le_bytes(words.0), u128::from_le_bytes(words.1))
            }));
        }
        Ok(all)
    }

    pub(super) fn finished(&self) -> Result<Finished> {
        let mut found = Finished::new();
        for entry in std::fs::read_dir(&self.0).or_kind(ErrorKind::Retry, "folder of the restore")?.flatten() {
            let name = entry.file_name();
            let number = name.to_string_lossy().strip_prefix("part-").and_then(|n| n.parse().ok());
            if let Some(number) = number {
                let text = std::fs::read_to_string(entry.path()).or_kind(ErrorKind::Retry, "a finished part")?;
                let _ = found.insert(number, Note::parse(&text)?);
            }
        }
        Ok(found)
    }
}

impl Note {
    pub(super) fn text(&self) -> String {
        let words = [self.source, self.loaded].map(|d| format!("{} {} {}", d.count, d.low, d.high));
        format!("{} {}", words.join(" "), self.expired)
    }

    fn parse(text: &str) -> Result<Self> {
        let damaged =
            || Error::damaged("the note of a loaded part does not hold: call the restore off and begin anew");
        let numbers: Option<Vec<u64>> = text.split_ascii_whitespace().map(|w| w.parse().ok()).collect();
        let (digests, expired) = match numbers.as_deref() {
            Some([digests @ .., expired]) if digests.len() == 6 => (digests, *expired),
            // An earlier build counted none.
            Some(digests) if digests.len() == 6 => (digests, 0),
            _ => return Err(damaged()),
        };
        let digest = |n: usize| SetDigest { count: digests[n], low: digests[n + 1], high: digests[n + 2] };
        Ok(Self { source: digest(0), loaded: digest(3), expired })
    }
}
