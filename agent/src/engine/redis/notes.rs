//! What stands in the folder of a restore: a note of each finished part, and its keys that expire.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use tidemark_common::rdb::lasting::Lasting;
use tidemark_common::record::record_hash;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

/// Bytes of an entry in the list of expiring keys: time and hash.
const EXPIRING: usize = 24;

/// When a loaded record expires (milliseconds since 1970), and its hash.
pub(super) type Expiring = (i64, u128);

/// A loaded hash whose fields expire one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volatile {
    /// Hash of its key.
    pub(super) key: u128,
    /// Hash of what it meant when it was loaded.
    pub(super) meaning: u128,
    /// Its fields.
    pub(super) fields: Lasting,
}

impl Volatile {
    /// The hash of a record's key.
    pub(super) fn hash(key: &[u8]) -> u128 {
        record_hash(key, &[], &[])
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let Lasting { all, expiring } = &self.fields;
        [self.key, self.meaning].iter().for_each(|n| out.extend(n.to_le_bytes()));
        [all.count, all.low, all.high, expiring.len() as u64].iter().for_each(|n| out.extend(n.to_le_bytes()));
        for (at, hash) in expiring {
            out.extend(at.to_le_bytes());
            out.extend(hash.to_le_bytes());
        }
    }

    /// The next one; `None` at the end.
    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let (key, meaning) = (u128::from_le_bytes(take(bytes)?), u128::from_le_bytes(take(bytes)?));
        let mut number = || Some(u64::from_le_bytes(take(bytes)?));
        let (count, low, high, len) = (number()?, number()?, number()?, number()?);
        let expiring =
            (0..len).map(|_| Some((i64::from_le_bytes(take(bytes)?), u128::from_le_bytes(take(bytes)?))));
        let fields = Lasting { all: SetDigest { count, low, high }, expiring: expiring.collect::<Option<_>>()? };
        Some(Self { key, meaning, fields })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

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

    /// List of the part's hashes whose fields expire.
    fn fields(&self, number: u32) -> PathBuf {
        self.0.join(format!("fields-{number}"))
    }

    /// Keeps the part's hashes whose fields expire.
    pub(super) fn keep_fields(&self, number: u32, hashes: &[Volatile]) -> Result<()> {
        if hashes.is_empty() {
            return Ok(());
        }
        let (path, mut bytes) = (self.fields(number), Vec::new());
        hashes.iter().for_each(|hash| hash.encode(&mut bytes));
        std::fs::write(&path, bytes).or_kind(ErrorKind::Full, format_args!("{}", path.display()))
    }

    /// The hashes whose fields expire of all finished parts, by their keys.
    pub(super) fn all_fields(&self) -> Result<HashMap<u128, Volatile>> {
        let mut all = HashMap::new();
        for number in self.finished()?.into_keys() {
            let list = std::fs::read(self.fields(number)).unwrap_or_default();
            let mut rest = &list[..];
            while let Some(hash) = Volatile::decode(&mut rest) {
                let _ = all.insert(hash.key, hash);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_whose_fields_expire_are_kept_with_their_parts() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_owned());
        let (mut all, hash) = (SetDigest::default(), 1 << 100);
        [hash, 7, 5].into_iter().for_each(|hash| all.add(hash));
        let of = |key: &[u8], expiring: &[(i64, u128)]| Volatile {
            key: Volatile::hash(key),
            meaning: u128::MAX - 1,
            fields: Lasting { all, expiring: expiring.to_vec() },
        };
        let (a, b) = (of(b"a", &[(1, 7), (-1, hash)]), of(b"b", &[]));
        folder.keep_fields(3, &[a.clone(), b.clone()]).unwrap();
        assert_eq!(folder.all_fields().unwrap().len(), 0, "the part is not finished");
        let note = Note { source: all, loaded: all, expired: 0 };
        std::fs::write(folder.part(3), note.text()).unwrap();
        std::fs::write(folder.part(4), note.text()).unwrap();
        assert_eq!(folder.all_fields().unwrap(), HashMap::from([(a.key, a), (b.key, b)]));
    }
}
