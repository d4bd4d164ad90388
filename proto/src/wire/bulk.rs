//! The bulk protocol between agent and ingest or serve process. The agent dials and opens every stream.
//!
//! **Upload**, one bidirectional stream a part: agent [`v1::PartOffer`] -> ingest [`v1::Grant`] (when its memory
//! budget allows) -> agent block frames ([`FRAME_BLOCK`]), the index frame ([`FRAME_INDEX`]), [`v1::PartDone`] ->
//! ingest [`v1::Stored`] once packs and job record are durable. A broken stream voids the attempt as a whole; the
//! next one gets another salt.
//!
//! **Upload before the cut**, of a base whose regions are ready: the same with [`v1::EarlyOffer`], and [`v1::EarlyKept`] at its end.
//! After the cut what differs follows on a stream of its own, which begins with [`v1::OverOffer`].
//!
//! **Fetch**, one bidirectional stream a run: agent [`v1::Fetch`] -> serve the index frame, then as many
//! [`v1::FetchBlocks`] as the agent sends are answered by that many block frames; the agent finishes its side to end.
//! Only runs of parts that the restore job assigned to this node are served.
//!
//! **Fetch of a log**, one bidirectional stream a part: agent [`v1::FetchLog`] -> serve a [`v1::LogPiece`] and a chunk frame
//! for every chunk, then the end of the stream. Chunks of a log of commands come in groups, each behind a [`v1::LogGroup`].
//!
//! **Log**, one bidirectional stream a node, as long as the log is kept: agent [`v1::LogOpen`], then each [`v1::LogPull`] of
//! the ingest is answered by [`v1::LogBatch`] and as many chunk frames ([`FRAME_CHUNK`]) as it names. The agent keeps what it
//! has sent until a later pull says that it is durable. A store whose log is its stream of commands is asked by [`v1::LogFollow`].
//!
//! Errors end a stream by its reset code, or by a `control::Failure` where words help.

/// First version; frozen.
pub mod v1;

pub use v1::*;

crate::messages! {
    60 => v1::PartOffer, v 1;
    61 => v1::Grant, v 1;
    64 => v1::PartDone, v 1;
    65 => v1::Stored, v 1;
    70 => v1::Fetch, v 1;
    71 => v1::FetchBlocks, v 1;
    72 => v1::LogOpen, v 1;
    73 => v1::LogPull, v 1;
    74 => v1::LogBatch, v 1;
    76 => v1::FetchLog, v 1;
    77 => v1::LogPiece, v 1;
    78 => v1::LogFollow, v 1;
    79 => v1::LogGroup, v 1;
    80 => v1::EarlyOffer, v 1;
    81 => v1::EarlyKept, v 1;
    82 => v1::OverOffer, v 1;
}

/// Frame of one sealed block; the body is its bytes.
pub const FRAME_BLOCK: u16 = 62;
/// Frame of a run's sealed index; the body is its bytes.
pub const FRAME_INDEX: u16 = 63;
/// Frame of one sealed chunk of the log; the body is its bytes.
pub const FRAME_CHUNK: u16 = 75;
/// Version of the raw frames.
pub const FRAME_VERSION: u8 = 1;
/// Largest sealed block, in bytes: a block of [`crate::stored::run::MAX_BLOCK`] that did not shrink, with its seal.
pub const MAX_BLOCK_FRAME: u32 = crate::stored::run::MAX_BLOCK as u32 + 256;
/// Largest sealed chunk of the log, in bytes.
pub const MAX_CHUNK_FRAME: u32 = crate::stored::log::MAX_CHUNK as u32 + 256;
/// Most bytes of chunks that one [`v1::LogPull`] may ask for; a single entry may pass it.
pub const MAX_PULL: u32 = 64 << 20;
/// Largest sealed index, in bytes.
pub const MAX_INDEX_FRAME: u32 = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::SetDigest;
    use crate::id::{Incarnation, JobId};
    use crate::slot::SlotSet;
    use crate::time::Timestamp;
    use crate::wire::control::SecretKey;
    use crate::wire::golden::check;

    const FILE: &str = "bulk-v1.txt";

    #[test]
    fn golden_bytes() {
        let offer = PartOffer {
            job: JobId::from_u128(0x11 << 64 | 5),
            attempt: 2,
            region: 3,
            slots: SlotSet::from_ranges([(192, 200), (210, 255)]),
            lower: vec![0, 192, b'a'],
            delta: 1,
        };
        check(FILE, "part-offer", &offer);
        check(FILE, "early-offer", &EarlyOffer { offer: PartOffer { delta: 0, ..offer.clone() } });
        check(FILE, "early-kept", &EarlyKept {});
        check(FILE, "over-offer", &OverOffer { offer, early: [4; 16] });
        check(FILE, "grant", &Grant { run_tag: [6; 16], key: SecretKey([9; 32]), encrypt: 1 });
        let done = PartDone {
            upper: vec![0, 255],
            blocks: 800,
            records: 1 << 33,
            raw_bytes: 1 << 40,
            digest: SetDigest { count: 7, low: 8, high: u64::MAX },
            live_bytes: u64::MAX - 5,
        };
        check(FILE, "part-done", &done);
        check(FILE, "stored", &Stored {});
        check(FILE, "fetch", &Fetch { job: JobId::from_u128(77), part: 9, run: 1 });
        check(FILE, "fetch-blocks", &FetchBlocks { first: 100, count: 28 });
        check(FILE, "log-open", &LogOpen { session: JobId::from_u128(12) });
        let pull = LogPull {
            incarnation: Incarnation::from_u128(4),
            from: 1 << 50,
            durable: 1 << 49,
            now: Timestamp(3 << 50),
            most_bytes: 4 << 20,
            spool_bytes: 1 << 30,
            slots_per_region: 64,
            run_tag: [3; 16],
            key: SecretKey([8; 32]),
            encrypt: 1,
        };
        check(FILE, "log-pull", &pull);
        check(FILE, "log-follow", &LogFollow { pull, closed: Timestamp(7 << 48), takes_over: 1 });
        check(FILE, "log-group", &LogGroup { pieces: 3 });
        let batch = LogBatch {
            incarnation: Incarnation::from_u128(4),
            slots: SlotSet::from_ranges([(0, 100)]),
            from: 1 << 50,
            to: 2 << 50,
            closed: Timestamp(2 << 50),
            begins: 0,
            behind_bytes: 77,
            clock_millis: 1 << 40,
            chunks: vec![LogChunk {
                region: 1,
                raw_len: 300,
                entries: 4,
                first: Timestamp(5),
                last: Timestamp(1 << 52),
            }],
        };
        check(FILE, "log-batch", &batch);
        check(FILE, "fetch-log", &FetchLog { job: JobId::from_u128(77), part: 9 });
        check(FILE, "log-piece", &LogPiece { run_tag: [1; 16], key: SecretKey([2; 32]), encrypt: 1, number: 8 });
    }
}
