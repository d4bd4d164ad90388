//! What peers send: frames, whose header chooses the kind of message.

use tidemark_proto::frame::{HEADER_LEN, Header, Message};
use tidemark_proto::wire::{bulk as b, control as c, hello as h, kv as k};

/// Decodes the body as each of these kinds that it is for; what decodes is encoded again and must come back.
macro_rules! decode {
    ($bytes:expr, $($ty:ty),* $(,)?) => {{
        let Some((head, body)) = $bytes.split_first_chunk::<HEADER_LEN>() else { return };
        let Ok(Header { kind, .. }) = Header::decode(*head) else { return };
        $(if kind == <$ty>::KIND && body.len() <= <$ty>::MAX as usize
            && let Ok(message) = <$ty>::from_body(body)
        {
            assert!(<$ty>::from_body(&message.to_body()).is_ok(), "kind {kind} comes back");
        })*
    }};
}

/// Headers of frames.
pub fn frame(bytes: &[u8]) {
    if let Some(head) = bytes.first_chunk::<HEADER_LEN>()
        && let Ok(header) = Header::decode(*head)
    {
        assert_eq!(header.encode(), *head);
    }
}

/// The first messages of a connection.
pub fn hello(bytes: &[u8]) {
    decode!(bytes, h::Hello, h::Welcome, h::Refused);
    if let Some((_, body)) = bytes.split_first_chunk::<HEADER_LEN>()
        && let Ok(hello) = h::Hello::from_body(body)
    {
        let _ = h::Purpose::from_code(hello.purpose);
        let _ = h::choose_version((1, 1), (hello.min_version, hello.max_version));
    }
}

/// Commands and their answers.
pub fn control(bytes: &[u8]) {
    decode!(
        bytes,
        c::CommandHead,
        c::Describe,
        c::Description,
        c::Hold,
        c::Held,
        c::Seal,
        c::Sealed,
        c::Release,
        c::Released,
        c::Upload,
        c::Uploaded,
        c::Settle,
        c::Done,
        c::RestoreBegin,
        c::RestoreReady,
        c::RestoreParts,
        c::RestorePartsDone,
        c::RestoreFinish,
        c::RestoreFinished,
        c::RestoreAbort,
        c::Progress,
        c::Failure,
        c::RestoreVerify,
        c::RestoreVerified,
        c::UploadRest,
        c::ListJobs,
        c::OpenJobs,
        c::DescribeSource,
        c::Prepare,
        c::PrepareEarly,
        c::UploadEarly,
        c::Prepared,
        c::Diagnose,
        c::Diagnosed,
        c::RestoreBeginAs,
        c::RestoreCount,
        c::RestoreCounted,
        c::Keep,
        c::Kept,
        c::RestoreKept,
        c::RestoredKept,
        c::CreateClone,
        c::CloneCreated,
        c::ListClones,
        c::Clones,
        c::DropClone,
        c::CloneDropped,
    );
    if let Some((_, body)) = bytes.split_first_chunk::<HEADER_LEN>()
        && let Ok(description) = c::Description::from_body(body)
    {
        let _ = (description.ownership.is_canonical(), description.ownership.slots.len());
    }
}

/// Uploads and fetches of parts.
pub fn bulk(bytes: &[u8]) {
    decode!(
        bytes,
        b::PartOffer,
        b::Grant,
        b::PartDone,
        b::Stored,
        b::EarlyOffer,
        b::EarlyKept,
        b::OverOffer,
        b::Fetch,
        b::FetchBlocks
    );
}

/// The data protocol.
pub fn kv(bytes: &[u8]) {
    decode!(
        bytes,
        k::Commit,
        k::Committed,
        k::Get,
        k::Value,
        k::Scan,
        k::Page,
        k::Failure,
        k::OpenClone,
        k::CloneOpened
    );
}
