//! Where the words of a command lie in the bytes of a stream.

use tidemark_proto::{Error, Result};

/// Splits the command at `at`: where it ends, and where its words lie; none for an empty line. `None` where it is not whole.
pub(super) fn split(bytes: &[u8], at: usize, words: &mut Vec<(usize, usize)>) -> Result<Option<usize>> {
    words.clear();
    let Some(&first) = bytes.get(at) else { return Ok(None) };
    if first == b'\n' || first == b'\r' {
        return Ok(Some(at + 1));
    }
    let Some((count, mut at)) = number(bytes, at, b'*')? else { return Ok(None) };
    for _ in 0..count {
        let Some((len, start)) = number(bytes, at, b'$')? else { return Ok(None) };
        let Some(end) = start.checked_add(len).filter(|end| end + 2 <= bytes.len()) else { return Ok(None) };
        words.push((start, end));
        at = end + 2;
    }
    Ok(Some(at))
}

/// A line that begins with `mark`: its number, and where the next one begins.
fn number(bytes: &[u8], at: usize, mark: u8) -> Result<Option<(usize, usize)>> {
    let unreadable = || Error::damaged("the stream of commands holds what is no command");
    let Some(&first) = bytes.get(at) else { return Ok(None) };
    if first != mark {
        return Err(unreadable());
    }
    let mut value = 0usize;
    for (i, &byte) in bytes[at + 1..].iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                value = value
                    .checked_mul(10)
                    .and_then(|v| v.checked_add(usize::from(byte - b'0')))
                    .ok_or_else(unreadable)?;
            }
            b'\r' => return Ok((at + i + 2 < bytes.len()).then_some((value, at + i + 3))),
            _ => return Err(unreadable()),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_an_error_and_the_end_is_none() {
        let mut words = Vec::new();
        for whole in [&b"*1\r\n$4\r\nPING\r\n"[..], b"\n", b"*2\r\n$0\r\n\r\n$1\r\nx\r\n"] {
            assert_eq!(split(whole, 0, &mut words).unwrap(), Some(whole.len()));
            for cut in 0..whole.len() {
                assert_eq!(split(&whole[..cut], 0, &mut words).unwrap(), None, "{cut}");
            }
        }
        for bad in [&b"+OK\r\n"[..], b"*1\r\n:3\r\n", b"*1x\r\n", b"*99999999999999999999999\r\n"] {
            assert!(split(bad, 0, &mut words).is_err(), "{bad:?}");
        }
    }
}
