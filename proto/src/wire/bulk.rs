//! The bulk protocol between agent and ingest or serve process. The agent dials and opens every stream.
//!
//! **Upload**, one bidirectional stream a part: agent [`v1::PartOffer`] -> ingest [`v1::Grant`] (when its memory
//! budget allows) -> agent block frames ([`FRAME_BLOCK`]), the index frame ([`FRAME_INDEX`]), [`v1::PartDone`] ->
//! ingest [`v1::Stored`] once packs and job record are durable. A broken stream voids the attempt as a whole; the
//! next one gets another salt.
//!
//! **Fetch**, one bidirectional stream a run: agent [`v1::Fetch`] -> serve the index frame, then as many
//! [`v1::FetchBlocks`] as the agent sends are answered by that many block frames; the agent finishes its side to end.
//! Only runs of parts that the restore job assigned to this node are served.
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
}

/// Frame of one sealed block; the body is its bytes.
pub const FRAME_BLOCK: u16 = 62;
/// Frame of a run's sealed index; the body is its bytes.
pub const FRAME_INDEX: u16 = 63;
/// Version of both raw frames.
pub const FRAME_VERSION: u8 = 1;
/// Largest sealed block, in bytes: a block of [`crate::stored::run::MAX_BLOCK`] that did not shrink, with its seal.
pub const MAX_BLOCK_FRAME: u32 = crate::stored::run::MAX_BLOCK as u32 + 256;
/// Largest sealed index, in bytes.
pub const MAX_INDEX_FRAME: u32 = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::SetDigest;
    use crate::id::JobId;
    use crate::slot::SlotSet;
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
    }
}
