//! Server-sent events: from bytes, cut anywhere, to the data of whole events.

use tidemark_proto::{Error, Result};

/// Longest event, in bytes.
const MAX_EVENT: usize = 4 << 20;

/// Collects bytes of an event stream.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// What follows the last line end.
    rest: Vec<u8>,
    data: Vec<u8>,
}

impl Events {
    /// Takes bytes; answers the data of the events that they end.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut whole = Vec::new();
        let mut pieces = bytes.split_inclusive(|b| *b == b'\n');
        for piece in &mut pieces {
            if self.rest.len() + self.data.len() + piece.len() > MAX_EVENT {
                return Err(Error::unsupported(format!("an event of over {MAX_EVENT} bytes")));
            }
            self.rest.extend_from_slice(piece);
            if !piece.ends_with(b"\n") {
                break;
            }
            let line = std::mem::take(&mut self.rest);
            self.line(line.trim_ascii_end(), &mut whole);
        }
        Ok(whole)
    }

    fn line(&mut self, line: &[u8], whole: &mut Vec<Vec<u8>>) {
        if line.is_empty() {
            if !self.data.is_empty() {
                whole.push(std::mem::take(&mut self.data));
            }
        } else if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
        }
        // Comments (keep-alive), ids and names of events say nothing here.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_the_bytes_are_cut() {
        let text =
            b": keep alive\n\ndata: {\"a\":1}\n\nid: 7\r\ndata:{\"b\":2}\r\n\r\ndata: one\ndata: two\n\ndata: cut";
        for size in 1..text.len() {
            let mut events = Events::default();
            let got: Vec<_> = text.chunks(size).flat_map(|c| events.push(c).unwrap()).collect();
            assert_eq!(got, [&b"{\"a\":1}"[..], b"{\"b\":2}", b"one\ntwo"], "chunks of {size}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut events = Events::default();
        let chunk = vec![b'x'; 1 << 20];
        assert!((0..5).any(|_| events.push(&chunk).is_err()));
    }
}
