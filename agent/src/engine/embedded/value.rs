//! Values of the data keyspace: a flag byte, then the client's value.

use tidemark_proto::{Error, Result};

const DELETE: u8 = 0;
const PUT: u8 = 1;

/// Writes a put.
pub(super) fn put(out: &mut Vec<u8>, value: &[u8]) {
    out.clear();
    out.push(PUT);
    out.extend_from_slice(value);
}

/// Writes a delete.
pub(super) fn delete(out: &mut Vec<u8>) {
    out.clear();
    out.push(DELETE);
}

/// The value of a put, `None` for a delete.
pub(super) fn read(stored: &[u8]) -> Result<Option<&[u8]>> {
    match stored.split_first() {
        Some((&PUT, value)) => Ok(Some(value)),
        Some((&DELETE, [])) => Ok(None),
        _ => {
            Err(Error::damaged("a value of the embedded store has no valid form: restore this node from a backup"))
        }
    }
}
