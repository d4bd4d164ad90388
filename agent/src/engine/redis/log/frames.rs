//! The files of a spool.
//!
//! A file begins at the border of two commands: `"TMSP" | version (u8) | 3 zeros | offset (u64) | database (u64) | id of the data
//! (16) | history (40)`, then frames: `kind (u8) | 3 zeros | length (u32) | offset (u64) | value (u64) | sum (u64) | bytes`. Numbers are
//! little-endian; the sum is the begin of the BLAKE3 of what stands before it and of the bytes. Kinds: 0, bytes of the stream
//! from `offset` on, received at `value` (milliseconds since 1970); 1, a mark: the cut at timestamp `value` lies at `offset`; 2, the
//! stream goes on under another history, whose name are the bytes. What does not hold at the end of the last file was being
//! written when the agent died, and the server is asked for it again. Files are written over: frames with lower offsets than the
//! file's, behind those that count, are of its former use.

use std::fs::File;
use std::io::Read;

use tidemark_proto::{ErrorKind, Incarnation, Result, error::ResultExt};

const MAGIC: [u8; 4] = *b"TMSP";
const VERSION: u8 = 1;
/// Bytes of a file's head.
pub(super) const FILE_HEAD: usize = 80;
/// Bytes of a frame's head.
pub(super) const FRAME_HEAD: usize = 32;
const HISTORY_LEN: usize = 40;
pub(super) const BYTES: u8 = 0;
pub(super) const MARK: u8 = 1;
pub(super) const HISTORY: u8 = 2;
/// Largest frame: what is read from a server at once.
const MAX_FRAME: usize = 4 << 20;

/// What a frame holds.
pub(super) enum Frame {
    Bytes { offset: u64, millis: u64 },
    Other,
}

fn sum(head: &[u8], bytes: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    let _ = hasher.update(head).update(bytes);
    let mut out = [0; 8];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(out)
}

/// The head of a file.
pub(super) fn file_head(start: u64, db: u64, incarnation: Incarnation, history: &str) -> Vec<u8> {
    let mut head = Vec::with_capacity(FILE_HEAD);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&[VERSION, 0, 0, 0]);
    head.extend_from_slice(&start.to_le_bytes());
    head.extend_from_slice(&db.to_le_bytes());
    head.extend_from_slice(&incarnation.0);
    let mut history = history.as_bytes().to_vec();
    history.resize(HISTORY_LEN, 0);
    head.extend_from_slice(&history);
    head
}

/// The head of a frame.
pub(super) fn frame_head(kind: u8, offset: u64, value: u64, bytes: &[u8]) -> [u8; FRAME_HEAD] {
    let mut head = [0; FRAME_HEAD];
    head[0] = kind;
    head[4..8].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    head[8..16].copy_from_slice(&offset.to_le_bytes());
    head[16..24].copy_from_slice(&value.to_le_bytes());
    let sum = sum(&head[..24], bytes);
    head[24..].copy_from_slice(&sum.to_le_bytes());
    head
}

/// Kind, offset and value of a frame.
pub(super) fn fields(head: &[u8; FRAME_HEAD]) -> (u8, u64, u64) {
    let word = |at: usize| {
        let mut out = [0; 8];
        out.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(out)
    };
    (head[0], word(8), word(16))
}

/// The head of a file: offset, database, id of the data, history. `None` where there is none.
pub(super) fn read_file_head(file: &mut File) -> Result<Option<(u64, u64, Incarnation, String)>> {
    let mut head = [0; FILE_HEAD];
    if !filled(file, &mut head)? || head[..4] != MAGIC || head[4] != VERSION {
        return Ok(None);
    }
    let word = |at: usize| {
        let mut out = [0; 8];
        out.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(out)
    };
    let mut incarnation = [0; 16];
    incarnation.copy_from_slice(&head[24..40]);
    let history = String::from_utf8_lossy(&head[40..]).trim_end_matches('\0').to_owned();
    Ok(Some((word(8), word(16), Incarnation(incarnation), history)))
}

/// Reads `buf` full; `false` where less is left.
fn filled(file: &mut impl Read, buf: &mut [u8]) -> Result<bool> {
    let mut have = 0;
    while have < buf.len() {
        match file.read(&mut buf[have..]).or_kind(ErrorKind::Retry, "the spool of the log")? {
            0 => return Ok(false),
            n => have += n,
        }
    }
    Ok(true)
}

/// The next frame: its head and its bytes. `None` at the end, and where it does not hold.
pub(super) fn read_frame(file: &mut impl Read) -> Result<Option<([u8; FRAME_HEAD], Vec<u8>)>> {
    let mut bytes = Vec::new();
    Ok(frame_onto(file, &mut bytes)?.map(|head| (head, bytes)))
}

/// The same, with its bytes behind those that `onto` holds; they stay as they are where there is no frame.
fn frame_onto(file: &mut impl Read, onto: &mut Vec<u8>) -> Result<Option<[u8; FRAME_HEAD]>> {
    let mut head = [0; FRAME_HEAD];
    if !filled(file, &mut head)? {
        return Ok(None);
    }
    let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    if len > MAX_FRAME {
        return Ok(None);
    }
    let before = onto.len();
    let read = file.take(len as u64).read_to_end(onto).or_kind(ErrorKind::Retry, "the spool of the log")?;
    let mut kept = [0; 8];
    kept.copy_from_slice(&head[24..]);
    if read == len && sum(&head[..24], &onto[before..]) == u64::from_le_bytes(kept) {
        return Ok(Some(head));
    }
    onto.truncate(before);
    Ok(None)
}

/// The next frame of a file that is being written. Its bytes are put behind those that `onto` holds if they are of the stream.
pub(super) fn next_frame(file: &mut impl Read, onto: &mut Vec<u8>) -> Result<Option<Frame>> {
    let before = onto.len();
    Ok(frame_onto(file, onto)?.map(|head| match fields(&head) {
        (BYTES, offset, millis) => Frame::Bytes { offset, millis },
        _ => {
            onto.truncate(before);
            Frame::Other
        }
    }))
}
