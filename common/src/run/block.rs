//! Compression and sealing of blocks.

use tidemark_proto::frame;
use tidemark_proto::stored::run::{Index, MAX_BLOCK, SEAL_BLOCK, SEAL_INDEX};
use tidemark_proto::{Error, Result};

use super::ZSTD_LEVEL;
use crate::seal::{NONCE_LEN, Sealer, TAG_LEN};

const CODEC_RAW: u8 = 0;
const CODEC_ZSTD: u8 = 1;
/// Codec and raw length.
const HEAD: usize = 5;
/// Largest raw index, in bytes: 8192 blocks of a 1 GiB part with keys of 64 KiB would pass it, but such parts are split.
const MAX_INDEX_RAW: usize = 64 << 20;

/// Compresses and seals; keeps its buffers.
pub struct Packer {
    zstd: zstd::bulk::Compressor<'static>,
    /// Room for the longest that compression may come to: what is handed out is as long as it must be.
    room: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Packer {
    /// One of a level of zstd. `Config` for a level that there is not.
    pub fn new(level: i32) -> Result<Self> {
        let zstd = zstd::bulk::Compressor::new(level)
            .map_err(|e| Error::config(format!("compression level {level}")).with_source(e))?;
        Ok(Self { zstd, room: Vec::new() })
    }

    /// The sealed form of `raw`: raw when compression does not shrink it.
    pub fn pack(&mut self, sealer: &Sealer, kind: u8, number: u32, raw: &[u8]) -> Result<Vec<u8>> {
        let mut room = std::mem::take(&mut self.room);
        room.clear();
        self.plain(raw, &mut room)?;
        let mut out = Vec::with_capacity(NONCE_LEN + room.len() + TAG_LEN);
        out.resize(NONCE_LEN, 0);
        out.extend_from_slice(&room);
        self.room = room;
        sealer.seal(kind, number, &mut out);
        Ok(out)
    }

    /// Appends what is sealed of `raw`: codec, length, bytes.
    pub(super) fn plain(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let begin = out.len();
        out.push(CODEC_ZSTD);
        out.extend_from_slice(&(raw.len() as u32).to_le_bytes());
        let body = out.len();
        out.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        // Behind what is there, into memory that nobody has to clear before.
        let mut behind = std::io::Cursor::new(&mut *out);
        behind.set_position(body as u64);
        let packed = self
            .zstd
            .compress_to_buffer(raw, &mut behind)
            .map_err(|e| Error::bug("compressing a block").with_source(e))?;
        if packed >= raw.len() {
            out[begin] = CODEC_RAW;
            out.truncate(body);
            out.extend_from_slice(raw);
        }
        Ok(())
    }
}

/// Opens and decompresses; keeps its buffers.
pub(crate) struct Unpacker {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Unpacker {
    pub(crate) fn new() -> Result<Self> {
        let zstd = zstd::bulk::Decompressor::new().map_err(|e| Error::bug("zstd").with_source(e))?;
        Ok(Self { zstd })
    }

    /// Opens `sealed` (its bytes are overwritten) into `raw`, which never grows past `max` bytes.
    pub(crate) fn unpack(
        &mut self,
        sealer: &Sealer,
        kind: u8,
        number: u32,
        sealed: &mut [u8],
        raw: &mut Vec<u8>,
        max: usize,
    ) -> Result<()> {
        self.unpack_plain(number, sealer.open(kind, number, sealed)?, raw, max)
    }

    /// Decompresses what was sealed.
    pub(super) fn unpack_plain(&mut self, number: u32, plain: &[u8], raw: &mut Vec<u8>, max: usize) -> Result<()> {
        let damaged = |what: &str| Error::damaged(format!("block {number}: {what}"));
        let (head, body) = plain.split_at_checked(HEAD).ok_or_else(|| damaged("shorter than its header"))?;
        let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if len > max {
            return Err(damaged("claims to be larger than a block may be"));
        }
        raw.clear();
        match head[0] {
            CODEC_RAW => raw.extend_from_slice(body),
            CODEC_ZSTD => {
                raw.reserve(len);
                let _ = self
                    .zstd
                    .decompress_to_buffer(body, raw)
                    .map_err(|e| damaged("does not decompress").with_source(e))?;
            }
            other => {
                return Err(Error::unsupported(format!("block {number}: codec {other} is newer than this build")));
            }
        }
        if raw.len() == len { Ok(()) } else { Err(damaged("has another length than its header says")) }
    }

    pub(super) fn block(
        &mut self,
        sealer: &Sealer,
        number: u32,
        sealed: &mut [u8],
        raw: &mut Vec<u8>,
    ) -> Result<()> {
        self.unpack(sealer, SEAL_BLOCK, number, sealed, raw, MAX_BLOCK)
    }
}

/// Compresses and seals bytes of any kind.
pub fn seal_bytes(sealer: &Sealer, kind: u8, number: u32, raw: &[u8]) -> Result<Vec<u8>> {
    Packer::new(ZSTD_LEVEL)?.pack(sealer, kind, number, raw)
}

/// Opens what [`seal_bytes`] made (`sealed` is overwritten); refuses to grow past `max` bytes.
pub fn open_bytes(sealer: &Sealer, kind: u8, number: u32, sealed: &mut [u8], max: usize) -> Result<Vec<u8>> {
    let mut raw = Vec::new();
    Unpacker::new()?.unpack(sealer, kind, number, sealed, &mut raw, max)?;
    Ok(raw)
}

/// The sealed form of an index.
pub fn seal_index(sealer: &Sealer, index: &Index) -> Result<Vec<u8>> {
    seal_bytes(sealer, SEAL_INDEX, 0, &frame::to_archive(index))
}

/// Opens a sealed index (its bytes are overwritten).
pub fn open_index(sealer: &Sealer, sealed: &mut [u8]) -> Result<Index> {
    let raw = open_bytes(sealer, SEAL_INDEX, 0, sealed, MAX_INDEX_RAW).map_err(|e| e.context("index of a run"))?;
    frame::from_archive(&raw)
}
