//! The key index: for engines that cannot tell what changed, the agent keeps the sorted keys of each part with the
//! 128-bit hash of their records, and finds a delta by a streaming merge-join of the snapshot with it.
//!
//! A file is `"TIDX" | version (u8)`, then chunks `length (u32 LE) | checksum (16) | entries`, then a chunk of length
//! zero. An entry is `shared with the key before (varint) | rest length (varint) | rest | record bytes (varint) |
//! record hash (16)`; the first of a chunk shares nothing. A file is named by the hash of the part entry whose state it
//! lists; a new one waits beside the old until the backup is committed. Lost, damaged or of another parent means a full
//! run, never an error.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use tidemark_proto::stored::envelope::{CHECKSUM_LEN, checksum};
use tidemark_proto::stored::run::{put_varint, take, take_varint};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

const MAGIC: [u8; 5] = *b"TIDX\x01";
/// A chunk is closed when it reaches this many bytes.
const CHUNK: usize = 64 << 10;
/// Largest chunk that is read: a full one and one more entry of the longest key.
const MAX_CHUNK: usize = CHUNK + (128 << 10);

/// Most bytes of entries that are added at once.
pub const MAX_ENTRIES: usize = MAX_CHUNK;

/// One key of the index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexEntry {
    /// Sort key: slot big-endian ++ key.
    pub key: Vec<u8>,
    /// Bytes of key, meta and value.
    pub bytes: u64,
    /// Hash of the record.
    pub hash: u128,
}

/// Entries as they stand in a chunk.
#[derive(Debug, Default)]
pub struct Entries {
    bytes: Vec<u8>,
    last: Vec<u8>,
}

impl Entries {
    /// Adds the next key; keys ascend.
    pub fn push(&mut self, key: &[u8], bytes: u64, hash: u128) {
        let shared =
            if self.bytes.is_empty() { 0 } else { self.last.iter().zip(key).take_while(|(a, b)| a == b).count() };
        put_varint(&mut self.bytes, shared as u64);
        put_varint(&mut self.bytes, (key.len() - shared) as u64);
        self.bytes.extend_from_slice(&key[shared..]);
        put_varint(&mut self.bytes, bytes);
        self.bytes.extend_from_slice(&hash.to_le_bytes());
        self.last.clear();
        self.last.extend_from_slice(key);
    }

    /// What was pushed since the last [`Self::clear`].
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Begins anew: the next key shares nothing.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }
}

/// Writes an index.
#[derive(Debug)]
pub struct IndexWriter {
    file: BufWriter<File>,
    chunk: Entries,
}

impl IndexWriter {
    /// Begins the file at `path`, replacing one that is there.
    pub fn create(path: &Path) -> Result<Self> {
        // Its bytes may be those of another name too.
        let _ = std::fs::remove_file(path);
        let file = File::create(path).or_kind(ErrorKind::Full, format_args!("key index {}", path.display()))?;
        let mut file = BufWriter::new(file);
        file.write_all(&MAGIC).or_kind(ErrorKind::Full, "key index")?;
        Ok(Self { file, chunk: Entries::default() })
    }

    /// Adds the next key; keys ascend.
    pub fn push(&mut self, key: &[u8], bytes: u64, hash: u128) -> Result<()> {
        self.chunk.push(key, bytes, hash);
        if self.chunk.bytes().len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    /// Adds entries behind those before them that were written before, as a chunk of their own: at most [`MAX_ENTRIES`] bytes,
    /// the first of which shares nothing.
    pub fn push_entries(&mut self, entries: &[u8]) -> Result<()> {
        if entries.len() > MAX_ENTRIES {
            return Err(Error::bug(format!("{} bytes of entries at once in a key index", entries.len())));
        }
        self.flush_rest()?;
        self.write(entries)
    }

    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        let write = |file: &mut BufWriter<File>| {
            file.write_all(&(chunk.len() as u32).to_le_bytes())?;
            file.write_all(&checksum(chunk))?;
            file.write_all(chunk)
        };
        write(&mut self.file).or_kind(ErrorKind::Full, "writing a key index")
    }

    fn flush(&mut self) -> Result<()> {
        let mut chunk = std::mem::take(&mut self.chunk);
        self.write(chunk.bytes())?;
        chunk.clear();
        self.chunk = chunk;
        Ok(())
    }

    fn flush_rest(&mut self) -> Result<()> {
        if self.chunk.bytes().is_empty() { Ok(()) } else { self.flush() }
    }

    /// Writes the end mark. The file is not synced: a lost index costs a full run and nothing else.
    pub fn finish(mut self) -> Result<()> {
        self.flush_rest()?;
        self.flush()?;
        self.file.flush().or_kind(ErrorKind::Full, "writing a key index")
    }
}

/// Reads an index. Every chunk is checked before its entries are given out.
#[derive(Debug)]
pub struct IndexReader {
    file: BufReader<File>,
    chunk: Vec<u8>,
    pos: usize,
    entry: IndexEntry,
    ended: bool,
}

impl IndexReader {
    /// Opens the file at `path`; `NotFound` when there is none, `Damaged` when it does not begin like an index.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).or_kind(ErrorKind::NotFound, "no key index")?;
        let mut file = BufReader::with_capacity(CHUNK, file);
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic).or_kind(ErrorKind::Damaged, "key index")?;
        if magic != MAGIC {
            return Err(Error::damaged("key index: not a file of this version"));
        }
        Ok(Self { file, chunk: Vec::new(), pos: 0, entry: IndexEntry::default(), ended: false })
    }

    /// The next entry, `None` after the last.
    #[allow(clippy::should_implement_trait, reason = "lends its entry, as an iterator cannot")]
    pub fn next(&mut self) -> Result<Option<&IndexEntry>> {
        if self.pos == self.chunk.len() && !self.load()? {
            return Ok(None);
        }
        let mut rest = &self.chunk[self.pos..];
        let shared = take_varint(&mut rest)?;
        let len = take_varint(&mut rest)?;
        let tail = take(&mut rest, len)?;
        if shared > self.entry.key.len() as u64 {
            return Err(Error::damaged("key index: shares more than there is"));
        }
        self.entry.key.truncate(shared as usize);
        self.entry.key.extend_from_slice(tail);
        self.entry.bytes = take_varint(&mut rest)?;
        let mut hash = [0; 16];
        hash.copy_from_slice(take(&mut rest, 16)?);
        self.entry.hash = u128::from_le_bytes(hash);
        self.pos = self.chunk.len() - rest.len();
        Ok(Some(&self.entry))
    }

    fn load(&mut self) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let mut head = [0; 4 + CHECKSUM_LEN];
        self.file.read_exact(&mut head).or_kind(ErrorKind::Damaged, "key index: cut short")?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if len > MAX_CHUNK {
            return Err(Error::damaged("key index: a chunk is too long"));
        }
        self.chunk.resize(len, 0);
        self.file.read_exact(&mut self.chunk).or_kind(ErrorKind::Damaged, "key index: cut short")?;
        if checksum(&self.chunk) != head[4..] {
            return Err(Error::damaged("key index: checksum does not hold"));
        }
        (self.pos, self.ended) = (0, len == 0);
        Ok(!self.ended)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(path: &Path) -> Result<Vec<IndexEntry>> {
        let (mut reader, mut out) = (IndexReader::open(path)?, Vec::new());
        while let Some(e) = reader.next()? {
            out.push(e.clone());
        }
        Ok(out)
    }

    fn write(path: &Path, entries: &[IndexEntry]) {
        let mut w = IndexWriter::create(path).unwrap();
        for e in entries {
            w.push(&e.key, e.bytes, e.hash).unwrap();
        }
        w.finish().unwrap();
    }

    #[test]
    fn every_flip_and_cut_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let entries: Vec<_> = (0..50u64)
            .map(|i| IndexEntry { key: format!("key{i:03}").into(), bytes: i, hash: u128::from(i) << 70 })
            .collect();
        write(&path, &entries);
        let good = std::fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            assert!(read(&path).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            std::fs::write(&path, &good[..len]).unwrap();
            assert!(read(&path).is_err(), "length {len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        /// A chunk whose checksum holds may still hold nonsense.
        #[test]
        fn nonsense_in_a_chunk_is_an_error(body in proptest::collection::vec(prop_oneof![0u8..8, any::<u8>()], 1..200)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x");
            let mut file = MAGIC.to_vec();
            for chunk in [&body[..], &[]] {
                file.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
                file.extend_from_slice(&checksum(chunk));
                file.extend_from_slice(chunk);
            }
            std::fs::write(&path, file).unwrap();
            if let Err(e) = read(&path) {
                prop_assert_eq!(e.kind(), ErrorKind::Damaged);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn comes_back(keys in proptest::collection::btree_map(proptest::collection::vec(any::<u8>(), 0..2000), (any::<u64>(), any::<u128>()), 0..300)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x");
            let entries: Vec<_> = keys.into_iter().map(|(key, (bytes, hash))| IndexEntry { key, bytes, hash }).collect();
            write(&path, &entries);
            prop_assert_eq!(read(&path).unwrap(), entries);
        }
    }
}
