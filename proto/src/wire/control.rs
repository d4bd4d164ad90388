//! The control protocol between coordinator and agent.
//!
//! The agent dials; after the hello the coordinator opens one bidirectional stream for each command and writes
//! [`v1::CommandHead`] and then one body. The agent answers with any number of [`v1::Progress`] and then with the
//! reply that belongs to the body, or with [`v1::Failure`]; then both sides finish the stream. A reset of the stream
//! by the coordinator cancels the command. Commands are idempotent by (job, attempt); an agent refuses an epoch lower
//! than the highest it has seen.

/// First version; frozen.
pub mod v1;

pub use v1::*;

/// Most bytes that a node keeps beside its records: code, rules, settings.
pub const MAX_KEPT: u32 = 16 << 20;
/// Largest message with kept things: their bytes, and what frames them.
const MAX_KEPT_MESSAGE: u32 = MAX_KEPT + (1 << 20);

crate::messages! {
    20 => v1::CommandHead, v 1;
    21 => v1::Describe, v 1;
    22 => v1::Description, v 1;
    23 => v1::Hold, v 1;
    24 => v1::Held, v 1;
    25 => v1::Seal, v 1;
    26 => v1::Sealed, v 1;
    27 => v1::Release, v 1;
    28 => v1::Released, v 1;
    29 => v1::Upload, v 1;
    30 => v1::Uploaded, v 1;
    31 => v1::Settle, v 1;
    32 => v1::Done, v 1;
    33 => v1::RestoreBegin, v 1;
    34 => v1::RestoreReady, v 1;
    35 => v1::RestoreParts, v 1;
    36 => v1::RestorePartsDone, v 1;
    37 => v1::RestoreFinish, v 1;
    38 => v1::RestoreFinished, v 1;
    39 => v1::RestoreAbort, v 1;
    40 => v1::Progress, v 1;
    41 => v1::Failure, v 1;
    42 => v1::RestoreVerify, v 1;
    43 => v1::RestoreVerified, v 1;
    44 => v1::UploadRest, v 1;
    45 => v1::ListJobs, v 1;
    46 => v1::OpenJobs, v 1;
    47 => v1::Prepare, v 1;
    48 => v1::Prepared, v 1;
    50 => v1::Diagnose, v 1;
    51 => v1::Diagnosed, v 1;
    56 => v1::RestoreBeginAs, v 1;
    57 => v1::RestoreCount, v 1;
    58 => v1::RestoreCounted, v 1;
    52 => v1::Keep, v 1;
    53 => v1::Kept, v 1, max MAX_KEPT_MESSAGE;
    54 => v1::RestoreKept, v 1, max MAX_KEPT_MESSAGE;
    55 => v1::RestoredKept, v 1;
    60 => v1::DescribeSource, v 1;
    61 => v1::CreateClone, v 1;
    62 => v1::CloneCreated, v 1;
    63 => v1::ListClones, v 1;
    64 => v1::Clones, v 1;
    65 => v1::DropClone, v 1;
    66 => v1::CloneDropped, v 1;
    70 => v1::LogStart, v 1;
    71 => v1::LogStop, v 1;
    72 => v1::RestorePartsLogged, v 1;
    73 => v1::LogHold, v 1;
    74 => v1::LogSeal, v 1;
    75 => v1::LogRelease, v 1;
    80 => v1::PrepareEarly, v 1;
    81 => v1::UploadEarly, v 1;
}

#[cfg(test)]
mod tests;
