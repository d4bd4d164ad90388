//! Framing of messages on QUIC streams.
//!
//! A frame is an 8-byte header and a body: `length of the body (u32 LE) | kind (u16 LE) | version (u8) | 0 (u8)`.
//! The body of a message is an rkyv archive of the frozen struct that (kind, version) names; the body of a bulk
//! frame is raw bytes. The length is checked against the cap of the kind before anything is allocated.

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;

use crate::error::{Error, Result};

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 8;
/// Largest body of a structured message, in bytes.
pub const MAX_MESSAGE: u32 = 4 << 20;

/// A decoded frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the body that follows.
    pub len: u32,
    /// What the body is.
    pub kind: u16,
    /// Version of the body's format.
    pub version: u8,
}

impl Header {
    /// The header's bytes.
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&self.len.to_le_bytes());
        out[4..6].copy_from_slice(&self.kind.to_le_bytes());
        out[6] = self.version;
        out
    }

    /// Reads a header; the last byte must be zero.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self> {
        if bytes[7] != 0 {
            return Err(Error::damaged("frame header: reserved byte is set"));
        }
        Ok(Self {
            len: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            kind: u16::from_le_bytes([bytes[4], bytes[5]]),
            version: bytes[6],
        })
    }
}

/// A structured message: a frozen rkyv struct with its number on the wire. Declared by [`messages!`](crate::messages).
pub trait Message: Sized + Send + Sync + 'static {
    /// Its number, never reused.
    const KIND: u16;
    /// Version of its format.
    const VERSION: u8;
    /// Largest body accepted, in bytes.
    const MAX: u32 = MAX_MESSAGE;

    /// The archive that travels as the body.
    fn to_body(&self) -> AlignedVec;

    /// Checks and decodes a body.
    fn from_body(body: &[u8]) -> Result<Self>;
}

/// Encodes any frozen type to its archive.
pub fn to_archive<T>(value: &T) -> AlignedVec
where
    T: for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    // Writing to memory fails only when memory does, which aborts before it can be reported.
    rkyv::to_bytes::<rancor::Error>(value).expect("archiving to memory")
}

/// Checks and decodes an archive of a frozen type. The bytes need no alignment (they are copied when unaligned).
pub fn from_archive<T>(bytes: &[u8]) -> Result<T>
where
    T: rkyv::Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
        + rkyv::Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let mut aligned = AlignedVec::<16>::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    rkyv::from_bytes::<T, rancor::Error>(&aligned)
        .map_err(|e| Error::damaged("an archive does not hold what its type asks").with_source(e.to_string()))
}

/// Encodes header and body of a message. A body over the message's cap is refused, as the peer would refuse it.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>> {
    let body = message.to_body();
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= M::MAX).ok_or_else(|| {
        Error::request(format!("message {} of {} bytes: at most {} are allowed", M::KIND, body.len(), M::MAX))
    })?;
    let header = Header { len, kind: M::KIND, version: M::VERSION };
    let mut out = Vec::with_capacity(HEADER_LEN + body.len());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&body);
    Ok(out)
}

/// Declares frozen message structs' numbers: `messages! { 7 => control::Hold, v 1; 8 => Big, v 1, max 16 << 20; }`.
#[macro_export]
macro_rules! messages {
    ($($kind:literal => $ty:ty, v $version:literal $(, max $max:expr)?;)*) => {
        $(impl $crate::frame::Message for $ty {
            const KIND: u16 = $kind;
            const VERSION: u8 = $version;
            $(const MAX: u32 = $max;)?
            fn to_body(&self) -> ::rkyv::util::AlignedVec {
                $crate::frame::to_archive(self)
            }
            fn from_body(body: &[u8]) -> $crate::error::Result<Self> {
                $crate::frame::from_archive(body)
            }
        })*
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_eight_fixed_bytes() {
        let h = Header { len: 0x0102_0304, kind: 0x0506, version: 7 };
        assert_eq!(h.encode(), [4, 3, 2, 1, 6, 5, 7, 0]);
        assert_eq!(Header::decode(h.encode()).unwrap(), h);
        assert!(Header::decode([0, 0, 0, 0, 0, 0, 0, 1]).is_err());
    }

    #[test]
    fn a_message_over_its_cap_is_not_sent() {
        use crate::wire::hello::{MAX_HELLO, Refused};
        let fits = |n: usize| encode(&Refused { code: 1, message: "x".repeat(n) }).is_ok();
        assert!(fits(MAX_HELLO as usize - 64));
        assert!(!fits(MAX_HELLO as usize));
    }
}
