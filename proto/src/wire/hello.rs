//! The hello: the first exchange of every connection.
//!
//! The side that dialled opens one bidirectional stream, writes [`v1::Hello`] and finishes it. The other side answers
//! [`v1::Welcome`] with the version it chose, or [`v1::Refused`] and then closes the connection with the same code.
//! Nothing else travels before the welcome. Who a peer *is* comes from its certificate alone: the names in the hello
//! are what the sender's configuration says, so that a certificate on the wrong machine is found out at once.

/// First version; frozen.
pub mod v1;

pub use v1::*;

use crate::error::{Error, Result};

/// Largest body of a hello message, in bytes: strangers send these.
pub const MAX_HELLO: u32 = 4 << 10;
/// Oldest protocol version this build speaks.
pub const MIN_VERSION: u16 = 1;
/// Newest protocol version this build speaks.
pub const MAX_VERSION: u16 = 1;

crate::messages! {
    1 => v1::Hello, v 1, max MAX_HELLO;
    2 => v1::Welcome, v 1, max MAX_HELLO;
    3 => v1::Refused, v 1, max MAX_HELLO;
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Commands from the coordinator to an agent.
    Control,
    /// Part uploads and restores.
    Bulk,
    /// The data protocol of the embedded store.
    Kv,
}

impl Purpose {
    /// The number on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Bulk => 2,
            Self::Kv => 3,
        }
    }

    /// The purpose of a wire number; one that this build does not know is `Unsupported`.
    pub fn from_code(code: u8) -> Result<Self> {
        [Self::Control, Self::Bulk, Self::Kv]
            .into_iter()
            .find(|p| p.code() == code)
            .ok_or_else(|| Error::unsupported(format!("connection purpose {code} is not known to this build")))
    }
}

/// The newest version that both ranges hold.
pub fn choose_version(ours: (u16, u16), theirs: (u16, u16)) -> Result<u16> {
    let (low, high) = (ours.0.max(theirs.0), ours.1.min(theirs.1));
    if low <= high {
        return Ok(high);
    }
    Err(Error::unsupported(format!(
        "no common protocol version: this side speaks {} to {}, the peer {} to {}; upgrade the older build",
        ours.0, ours.1, theirs.0, theirs.1
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::golden::check;

    #[test]
    fn golden_bytes() {
        let file = "hello-v1.txt";
        let hello = Hello {
            min_version: 1,
            max_version: 3,
            build: "0.1.0".into(),
            purpose: 2,
            cluster: "orders-eu".into(),
            node: "n1".into(),
        };
        check(file, "hello", &hello);
        check(file, "welcome", &Welcome { version: 1, build: "0.1.0+abcdef0".into(), epoch: 77 });
        check(file, "refused", &Refused { code: 5, message: "speaking for another node".into() });
    }

    #[test]
    fn the_newest_common_version_wins() {
        assert_eq!(choose_version((1, 3), (2, 9)).unwrap(), 3);
        assert_eq!(choose_version((2, 9), (1, 3)).unwrap(), 3);
        let err = choose_version((1, 1), (2, 3)).unwrap_err();
        assert!(err.message().contains("1 to 1") && err.message().contains("2 to 3"), "{err}");
    }

    #[test]
    fn purposes_come_back() {
        for p in [Purpose::Control, Purpose::Bulk, Purpose::Kv] {
            assert_eq!(Purpose::from_code(p.code()).unwrap(), p);
        }
        assert!(Purpose::from_code(0).is_err());
    }
}
