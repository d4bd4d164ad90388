//! The fleet's own authority: creating it, issuing certificates, showing them.
//!
//! Layout of a PKI folder: `ca.crt` and the leaves that are handed out lie in the folder itself; the authority's key
//! lies apart in `authority/ca.key` (mode 0700 around it) and never leaves it. What holds: every file appears whole or
//! not at all, with mode 0600, and none is replaced unless that was asked for. A key is written before its certificate,
//! so that a crash in between leaves a key that nobody uses.

mod authority;
mod files;
mod show;

pub use authority::{Authority, Issued, Leaf};
pub use show::{CertificateInfo, inspect};

/// Days that an authority is good for.
pub const CA_DAYS: u32 = 3650;
/// Days that an issued certificate is good for.
pub const LEAF_DAYS: u32 = 365;
/// Certificates begin this many seconds in the past, for clocks that are behind.
pub const BACKDATE_SECONDS: u64 = 300;
/// Seconds of a day.
const DAY: u64 = 86_400;
/// The authority's certificate in a PKI folder.
pub const CA_CERT: &str = "ca.crt";
/// The folder of the authority's key.
const AUTHORITY_DIR: &str = "authority";
/// The authority's key in its folder.
const CA_KEY: &str = "ca.key";

#[cfg(test)]
mod tests;
