//! Names and ids.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Longest name of a cluster or node, in bytes.
pub const MAX_NAME: usize = 63;

fn check_name(what: &str, s: &str) -> Result<()> {
    let ok = !s.is_empty()
        && s.len() <= MAX_NAME
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
        && s.as_bytes()[0].is_ascii_alphanumeric();
    if ok {
        return Ok(());
    }
    Err(Error::request(format!(
        "`{s}` is no {what} name: use 1 to {MAX_NAME} of a-z, 0-9, '-', '_', '.', beginning with a letter or digit"
    )))
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident, $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(String);
        impl $name {
            /// Checks and takes a name: 1 to 63 of `a-z 0-9 - _ .`, beginning with a letter or digit.
            pub fn new(s: impl Into<String>) -> Result<Self> {
                let s = s.into();
                check_name($what, &s)?;
                Ok(Self(s))
            }
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self> {
                Self::new(s)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
                Self::new(String::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

names! {
    /// Name of a cluster: a named set of nodes of one engine under one policy.
    ClusterName, "cluster";
    /// Name of a storage node within its cluster.
    NodeName, "node";
    /// Name of a clone: a writable branch of a cluster's data.
    CloneName, "clone";
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
        pub struct $name(pub [u8; 16]);
        impl $name {
            /// From 128 random bits.
            pub const fn from_u128(v: u128) -> Self {
                Self(v.to_be_bytes())
            }
            /// Whether all bits are zero ("none").
            pub fn is_zero(&self) -> bool {
                self.0 == [0; 16]
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self> {
                let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(s.as_bytes()).ok();
                let bytes = bytes.and_then(|b| <[u8; 16]>::try_from(b).ok());
                bytes.map(Self).ok_or_else(|| Error::request(format!("`{s}` is not an id of 32 hex digits")))
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// A repository, drawn when it is created.
    RepositoryId;
    /// A node's data: renewed by restore, wipe or full resync; histories never cross one.
    Incarnation;
    /// The object name of a pack: random, so that it says nothing about its content.
    PackId;
    /// A job of the coordinator (backup, restore, verify).
    JobId;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_paths_cannot_hold() {
        for bad in ["", "a/b", "..", "-x", "UPPER", "a b", &"x".repeat(64)] {
            assert!(ClusterName::new(bad).is_err(), "{bad}");
        }
        assert!(NodeName::new("node-1.rack_2").is_ok());
    }

    #[test]
    fn ids_print_and_parse() {
        let id = PackId::from_u128(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        assert_eq!(id.to_string(), "0123456789abcdef0011223344556677");
        assert_eq!(id.to_string().parse::<PackId>().unwrap(), id);
        assert!("12".parse::<PackId>().is_err());
    }
}
