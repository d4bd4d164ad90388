//! Golden bytes: each wire struct's frame and each stored struct's bytes as the first build wrote them, kept forever in
//! `proto/golden`.
//! Old bytes must decode to the value and the value must encode to the bytes.
//!
//! A line is `name hex`. Setting `TIDEMARK_GOLDEN_ADD=1` appends names that are missing; present ones never change.

use std::fmt::Debug;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use data_encoding::HEXLOWER;

use crate::frame::{self, HEADER_LEN, Header, Message};

/// Set to append the bytes of new messages.
const ADD: &str = "TIDEMARK_GOLDEN_ADD";

/// Checks `value` against the bytes kept in `proto/golden/<file>` under `name`.
pub(crate) fn check<M: Message + PartialEq + Debug>(file: &str, name: &str, value: &M) {
    let bytes = frame::encode(value).unwrap();
    let old = kept(file, name, &bytes);
    let header = Header::decode(old[..HEADER_LEN].try_into().unwrap()).unwrap();
    assert_eq!((header.kind, header.version), (M::KIND, M::VERSION), "{name}: number on the wire");
    assert_eq!(header.len as usize, old.len() - HEADER_LEN, "{name}: length");
    assert_eq!(&M::from_body(&old[HEADER_LEN..]).unwrap(), value, "{name}: old bytes decode to another value");
    assert_eq!(HEXLOWER.encode(&bytes), HEXLOWER.encode(&old), "{name}: the value encodes to other bytes");
}

/// Checks the bytes that `encode` makes of `value`, and what `decode` makes of the kept ones.
pub(crate) fn check_stored<T: PartialEq + Debug>(
    file: &str,
    name: &str,
    value: &T,
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> crate::Result<T>,
) {
    let bytes = encode(value);
    let old = kept(file, name, &bytes);
    assert_eq!(&decode(&old).unwrap(), value, "{name}: old bytes decode to another value");
    assert_eq!(HEXLOWER.encode(&bytes), HEXLOWER.encode(&old), "{name}: the value encodes to other bytes");
}

/// The kept bytes of `name`; when there are none, `bytes` are appended if that was asked for.
fn kept(file: &str, name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(file);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let kept = text.lines().filter_map(|l| l.split_once(' ')).find(|(n, _)| *n == name).map(|(_, hex)| hex);
    if let Some(hex) = kept {
        return HEXLOWER.decode(hex.as_bytes()).unwrap();
    }
    assert!(std::env::var_os(ADD).is_some(), "no golden bytes of {name} in {file}: add them with {ADD}=1");
    let mut out = fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
    // One write, so that tests of several processes do not mix.
    out.write_all(format!("{name} {}\n", HEXLOWER.encode(bytes)).as_bytes()).unwrap();
    bytes.to_vec()
}
