//! What stands in the folder of a restore: notes of finished parts, and their keys that expire.
//!
//! Parts that were loaded in a row are noted together, in one file `row-<number of its first part>`: a line for each, its number and its
//! note. Each file costs two writes that must be on disk, which is more than the records of a small part do. A build
//! before wrote a file `part-<number>` for each part, with its note alone; those are read as well.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use tidemark_common::rdb::lasting::Lasting;
use tidemark_common::record::record_hash;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use crate::fsutil;

/// Names of the files of notes begin so: of a row of parts, and of one part.
const ROW: &str = "row-";
const PART: &str = "part-";
/// Bytes of an entry in the list of expiring keys: time and hash.
const EXPIRING: usize = 24;

/// Bytes of such a list that are written, or read, at once.
const BUFFER: usize = 64 << 10;

/// The list of a part's records that expire, as they are loaded: on disk, for there may be as many as there are records.
#[derive(Debug, Default)]
pub(super) struct Expiring(Option<(BufWriter<File>, PathBuf)>);

impl Expiring {
    /// One more of part `number`: when it expires (milliseconds since 1970), and its hash.
    pub(super) fn push(&mut self, folder: &Folder, number: u32, at: i64, hash: u128) -> Result<()> {
        let (out, path) = match &mut self.0 {
            Some(open) => open,
            None => {
                let path = folder.expiring(number);
                let file = File::create(&path).or_kind(ErrorKind::Full, format_args!("{}", path.display()))?;
                self.0.insert((BufWriter::with_capacity(BUFFER, file), path))
            }
        };
        let mut entry = [0; EXPIRING];
        entry[..8].copy_from_slice(&at.to_le_bytes());
        entry[8..].copy_from_slice(&hash.to_le_bytes());
        out.write_all(&entry).or_kind(ErrorKind::Full, format_args!("{}", path.display()))
    }

    /// The list of part `number` is whole; the next record is of another part.
    pub(super) fn end(&mut self, folder: &Folder, number: u32) -> Result<()> {
        match self.0.take() {
            Some((mut out, path)) => out.flush().or_kind(ErrorKind::Full, format_args!("{}", path.display())),
            None => absent(&folder.expiring(number)),
        }
    }
}

/// Removes the list that a broken attempt at a part may have left.
fn absent(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).or_kind(ErrorKind::Retry, format_args!("{}", path.display()))
        }
        _ => Ok(()),
    }
}

fn decode_expiring(entry: &[u8; EXPIRING]) -> (i64, u128) {
    let (mut at, mut hash) = ([0; 8], [0; 16]);
    at.copy_from_slice(&entry[..8]);
    hash.copy_from_slice(&entry[8..]);
    (i64::from_le_bytes(at), u128::from_le_bytes(hash))
}

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
    /// Notes the parts of a row, at least one, durably and all at once.
    pub(super) fn keep(&self, row: &[(u32, Note)]) -> Result<()> {
        let Some((first, _)) = row.first() else { return Err(Error::bug("a row of no parts")) };
        let lines: Vec<String> = row.iter().map(|(number, note)| format!("{number} {}\n", note.text())).collect();
        fsutil::replace(&self.0.join(format!("{ROW}{first}")), lines.concat().as_bytes())
    }

    /// List of the part's expiring keys.
    fn expiring(&self, number: u32) -> PathBuf {
        self.0.join(format!("expiring-{number}"))
    }

    /// The digest of the records of finished parts that expire before a time (milliseconds since 1970).
    pub(super) fn expiring_before(&self, millis: i64) -> Result<SetDigest> {
        let mut sum = SetDigest::default();
        for number in self.finished()?.into_keys() {
            let path = self.expiring(number);
            let told = || format!("{}", path.display());
            let file = match File::open(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                file => file.or_kind(ErrorKind::Retry, told())?,
            };
            let (mut list, mut entry) = (BufReader::with_capacity(BUFFER, file), [0; EXPIRING]);
            while !list.fill_buf().or_kind(ErrorKind::Retry, told())?.is_empty() {
                list.read_exact(&mut entry).or_kind(ErrorKind::Damaged, told())?;
                let (at, hash) = decode_expiring(&entry);
                if at < millis {
                    sum.add(hash);
                }
            }
        }
        Ok(sum)
    }

    /// List of the part's hashes whose fields expire.
    fn fields(&self, number: u32) -> PathBuf {
        self.0.join(format!("fields-{number}"))
    }

    /// Keeps the part's hashes whose fields expire.
    pub(super) fn keep_fields(&self, number: u32, hashes: &[Volatile]) -> Result<()> {
        let (path, mut bytes) = (self.fields(number), Vec::new());
        if hashes.is_empty() {
            return absent(&path);
        }
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
        Ok(self.notes()?.0)
    }

    /// Finished parts, and the files that say so.
    pub(super) fn notes(&self) -> Result<(Finished, Vec<PathBuf>)> {
        let (mut found, mut files) = (Finished::new(), Vec::new());
        for entry in std::fs::read_dir(&self.0).or_kind(ErrorKind::Retry, "folder of the restore")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let of = |prefix| name.strip_prefix(prefix).and_then(|n: &str| n.parse::<u32>().ok());
            let (part, row) = (of(PART), of(ROW));
            if part.or(row).is_none() {
                continue;
            }
            let text = std::fs::read_to_string(entry.path()).or_kind(ErrorKind::Retry, "notes of loaded parts")?;
            match part {
                Some(number) => found.extend([(number, Note::parse(&text)?)]),
                None => found.extend(text.lines().map(parse_line).collect::<Result<Vec<_>>>()?),
            }
            files.push(entry.path());
        }
        Ok((found, files))
    }
}

/// A line of a row's file.
fn parse_line(line: &str) -> Result<(u32, Note)> {
    let (number, note) = line.split_once(' ').ok_or_else(damaged)?;
    Ok((number.parse().map_err(|_| damaged())?, Note::parse(note)?))
}

fn damaged() -> Error {
    Error::damaged("the note of a loaded part does not hold: call the restore off and begin anew")
}

impl Note {
    fn text(&self) -> String {
        let words = [self.source, self.loaded].map(|d| format!("{} {} {}", d.count, d.low, d.high));
        format!("{} {}", words.join(" "), self.expired)
    }

    fn parse(text: &str) -> Result<Self> {
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

    fn note(count: u64) -> Note {
        let source = SetDigest { count, low: 1, high: u64::MAX };
        Note { source, loaded: SetDigest { count: count - 1, low: 2, high: 3 }, expired: 1 }
    }

    #[test]
    fn what_expires_is_listed_by_part() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_owned());
        let mut list = Expiring::default();
        // More than is written at once, of the first part.
        for n in 0..5000 {
            list.push(&folder, 1, 1000 + n, n as u128).unwrap();
        }
        list.end(&folder, 1).unwrap();
        list.push(&folder, 2, -5, 1 << 100).unwrap();
        list.end(&folder, 2).unwrap();
        list.end(&folder, 3).unwrap();
        assert_eq!(folder.expiring_before(i64::MAX).unwrap().count, 0, "nothing is finished yet");
        folder.keep(&[(1, note(5)), (3, note(1))]).unwrap();
        let before = |at| folder.expiring_before(at).unwrap();
        assert_eq!((before(1000).count, before(1002).count), (0, 2));
        assert_eq!(before(1002).low, 1, "hashes 0 and 1");
        folder.keep(&[(2, note(5))]).unwrap();
        assert_eq!((before(1000).count, before(i64::MAX).count), (1, 5001));
        std::fs::write(dir.path().join("expiring-3"), [0; EXPIRING - 1]).unwrap();
        assert_eq!(folder.expiring_before(0).unwrap_err().kind(), ErrorKind::Damaged);
        // What an attempt left of which nothing came is not taken for what the next one loaded.
        list.end(&folder, 3).unwrap();
        assert_eq!(before(i64::MAX).count, 5001);
    }

    #[test]
    fn rows_and_parts_of_earlier_builds_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_owned());
        assert_eq!(folder.finished().unwrap(), Finished::new());
        folder.keep(&[(7, note(5)), (8, note(1)), (3, note(9))]).unwrap();
        folder.keep(&[(12, note(2))]).unwrap();
        // As builds before wrote them, the first of them without a count of what had expired.
        std::fs::write(dir.path().join("part-20"), "5 1 2 5 1 2").unwrap();
        std::fs::write(dir.path().join("part-21"), note(4).text()).unwrap();
        std::fs::write(dir.path().join("expiring-7"), [0; EXPIRING]).unwrap();
        let (found, files) = folder.notes().unwrap();
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [3, 7, 8, 12, 20, 21]);
        assert_eq!((found[&3], found[&12], found[&21]), (note(9), note(2), note(4)));
        assert_eq!((found[&20].source.count, found[&20].expired), (5, 0));
        assert_eq!(files.len(), 4, "those that say what is finished, and no others");

        assert_eq!(folder.keep(&[]).unwrap_err().kind(), ErrorKind::Bug);
        for torn in ["7", "7 5 1", "x 5 1 2 5 1 2 0", "7 5 1 2 5 1 2 0\n\n"] {
            std::fs::write(dir.path().join("row-1"), torn).unwrap();
            assert_eq!(folder.finished().unwrap_err().kind(), ErrorKind::Damaged, "{torn:?}");
        }
    }

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
        folder.keep(&[(3, note), (4, note)]).unwrap();
        assert_eq!(folder.all_fields().unwrap(), HashMap::from([(a.key, a), (b.key, b)]));
    }
}
