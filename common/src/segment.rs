//! Chunks of log segments: sealing them as entries come, and opening them. The format is in
//! [`tidemark_proto::stored::log`].
//!
//! CPU work: call it from threads that may block.

use tidemark_proto::stored::log::{
    ALL_REGIONS, ALL_SLOTS, CHUNK_TARGET, LogEntry, MAX_CHUNK, SEAL_CHUNK, take_entry,
};
use tidemark_proto::wire::bulk::LogChunk;
use tidemark_proto::{Error, Result, Timestamp};

use crate::run::{Packer, Unpacker, ZSTD_LEVEL, open_bytes};
use crate::seal::Sealer;

/// Makes chunks of entries that come by ascending region.
pub struct ChunkWriter<'s> {
    sealer: &'s Sealer,
    packer: Packer,
    slots_per_region: u16,
    raw: Vec<u8>,
    open: Option<LogChunk>,
    chunks: Vec<(LogChunk, Vec<u8>)>,
}

impl std::fmt::Debug for ChunkWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkWriter").field("chunks", &self.chunks.len()).finish_non_exhaustive()
    }
}

impl<'s> ChunkWriter<'s> {
    /// A writer of one batch. `slots_per_region` is at least 1.
    pub fn new(sealer: &'s Sealer, slots_per_region: u16) -> Result<Self> {
        Ok(Self {
            sealer,
            packer: Packer::new(ZSTD_LEVEL)?,
            slots_per_region: slots_per_region.max(1),
            raw: Vec::new(),
            open: None,
            chunks: Vec::new(),
        })
    }

    /// Adds an entry. One that does not fit a chunk at all is refused.
    pub fn push(&mut self, entry: &LogEntry<'_>) -> Result<()> {
        let region = if entry.slot == ALL_SLOTS { ALL_REGIONS } else { entry.slot / self.slots_per_region };
        if self.open.as_ref().is_some_and(|c| c.region != region) || self.raw.len() >= CHUNK_TARGET {
            self.close()?;
        }
        let fresh = LogChunk { region, raw_len: 0, entries: 0, first: Timestamp::MAX, last: Timestamp::ZERO };
        let open = self.open.get_or_insert(fresh);
        open.entries += 1;
        open.first = open.first.min(entry.at);
        open.last = open.last.max(entry.at);
        entry.encode(&mut self.raw);
        match self.raw.len() <= MAX_CHUNK {
            true => Ok(()),
            false => {
                Err(Error::bug(format!("an entry of the log of {} bytes is larger than a chunk", self.raw.len())))
            }
        }
    }

    fn close(&mut self) -> Result<()> {
        let Some(mut chunk) = self.open.take() else { return Ok(()) };
        chunk.raw_len = self.raw.len() as u32;
        let number = self.chunks.len() as u32;
        let sealed = self.packer.pack(self.sealer, SEAL_CHUNK, number, &self.raw)?;
        self.raw.clear();
        self.chunks.push((chunk, sealed));
        Ok(())
    }

    /// Forgets what was pushed.
    pub fn clear(&mut self) {
        self.raw.clear();
        self.open = None;
        self.chunks.clear();
    }

    /// The chunks in the order of their numbers, each with its sealed bytes.
    pub fn finish(mut self) -> Result<Vec<(LogChunk, Vec<u8>)>> {
        self.close()?;
        Ok(self.chunks)
    }
}

/// Opens chunk `number` of a batch (`sealed` is overwritten): its raw entries.
pub fn open_chunk(sealer: &Sealer, number: u32, sealed: &mut [u8]) -> Result<Vec<u8>> {
    open_bytes(sealer, SEAL_CHUNK, number, sealed, MAX_CHUNK)
}

/// Opens chunks one after the other; keeps its buffers.
pub struct ChunkOpener {
    unpacker: Unpacker,
    raw: Vec<u8>,
}

impl std::fmt::Debug for ChunkOpener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkOpener").finish_non_exhaustive()
    }
}

impl ChunkOpener {
    /// One without a chunk.
    pub fn new() -> Result<Self> {
        Ok(Self { unpacker: Unpacker::new()?, raw: Vec::new() })
    }

    /// As [`open_chunk`]; the entries stay until the next chunk is opened.
    pub fn open(&mut self, sealer: &Sealer, number: u32, sealed: &mut [u8]) -> Result<&[u8]> {
        self.unpacker.unpack(sealer, SEAL_CHUNK, number, sealed, &mut self.raw, MAX_CHUNK)?;
        Ok(&self.raw)
    }
}

/// Visits the entries of a raw chunk.
pub fn each_entry(raw: &[u8], mut visit: impl FnMut(LogEntry<'_>) -> Result<()>) -> Result<()> {
    let mut rest = raw;
    while let Some(entry) = take_entry(&mut rest)? {
        visit(entry)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidemark_proto::wire::control::SecretKey;

    use super::*;

    fn sealer(tag: u8) -> Sealer {
        Sealer::new(&SecretKey([7; 32]), [tag; 16], true)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn batches_come_back(
            mut entries in proptest::collection::vec((0u16..16384, any::<u64>(), 0usize..90_000, any::<bool>()), 0..40),
            per_region in 1u16..300,
        ) {
            entries.sort_unstable();
            let sealer = sealer(1);
            let mut writer = ChunkWriter::new(&sealer, per_region).unwrap();
            let value = vec![9; 90_000];
            let entry = |e: &(u16, u64, usize, bool)| LogEntry {
                slot: e.0, at: Timestamp(e.1), key: b"key", put: e.3.then_some((&b"m"[..], &value[..e.2])), kind: Default::default(),
            }.encode_to_vec();
            for e in &entries {
                let bytes = entry(e);
                writer.push(&take_entry(&mut &bytes[..]).unwrap().unwrap()).unwrap();
            }
            let mut read = Vec::new();
            let mut opener = ChunkOpener::new().unwrap();
            let chunks = writer.finish().unwrap();
            for (number, (chunk, sealed)) in chunks.iter().enumerate() {
                let mut sealed = sealed.clone();
                prop_assert!(open_chunk(&sealer, number as u32 + 1, &mut sealed.clone()).is_err());
                prop_assert!(opener.open(&sealer, number as u32 + 1, &mut sealed.clone()).is_err());
                let again = opener.open(&sealer, number as u32, &mut sealed.clone()).unwrap();
                let raw = open_chunk(&sealer, number as u32, &mut sealed).unwrap();
                prop_assert_eq!(again, &raw[..]);
                prop_assert_eq!(raw.len(), chunk.raw_len as usize);
                let before = read.len();
                each_entry(&raw, |e| {
                    assert!(e.slot / per_region == chunk.region && e.at >= chunk.first && e.at <= chunk.last);
                    let mut bytes = Vec::new();
                    e.encode(&mut bytes);
                    read.push(bytes);
                    Ok(())
                }).unwrap();
                prop_assert_eq!(read.len() - before, chunk.entries as usize);
            }
            prop_assert!(chunks.windows(2).all(|w| w[0].0.region <= w[1].0.region));
            prop_assert_eq!(read, entries.iter().map(entry).collect::<Vec<_>>());
        }
    }

    trait Encoded {
        fn encode_to_vec(&self) -> Vec<u8>;
    }

    impl Encoded for LogEntry<'_> {
        fn encode_to_vec(&self) -> Vec<u8> {
            let mut out = Vec::new();
            self.encode(&mut out);
            out
        }
    }
}
