//! The command stream that follows a base: where commands end, what they are, and which keys they touch.
//!
//! Source: `replication.c` and `networking.c` of Redis for what a primary sends, tried on Redis 7.0 and Valkey 8.0. The stream
//! is made of requests (arrays of strings) and nothing else; `SELECT` says which database the commands behind it are for.

use tidemark_proto::{Error, Result};

/// Bytes of an argument that are looked at while the stream passes by: names of commands, numbers of databases.
const PEEK: usize = 64;
/// Arguments that are looked at.
const PEEKED: usize = 2;
/// Longest line of a head (`*3`, `$17`), without its end.
const MAX_HEAD: usize = 24;
/// Most arguments of one command.
const MAX_ARGS: u64 = 1 << 24;

/// A command that has passed.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed<'s> {
    /// Bytes of the stream up to its end.
    pub end: u64,
    /// Its name and first argument, each cut to [`PEEK`] bytes.
    pub words: &'s [Vec<u8>],
}

impl Passed<'_> {
    /// Whether the command has this name.
    pub fn is(&self, name: &str) -> bool {
        self.words.first().is_some_and(|w| w.eq_ignore_ascii_case(name.as_bytes()))
    }

    /// Whether the primary sends it of its own accord and no data changes by it.
    pub fn is_idle(&self) -> bool {
        let getack = |w: &Vec<u8>| w.eq_ignore_ascii_case(b"GETACK");
        self.is("PING") || (self.is("REPLCONF") && self.words.get(1).is_some_and(getack))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the line that says how many arguments follow.
    Array,
    /// In the line that says how long an argument is; so many arguments are left, this one included.
    Bulk(u64),
    /// In an argument of so many bytes more, its end included.
    Body(u64, u64),
}

/// Splits a stream into commands as it arrives.
#[derive(Debug)]
pub struct Splitter {
    at: At,
    head: Vec<u8>,
    words: Vec<Vec<u8>>,
    /// Words in use: the vectors are kept for the next command.
    used: usize,
    position: u64,
}

impl Splitter {
    /// Of a stream that begins at `position`.
    pub fn new(position: u64) -> Self {
        Self { at: At::Array, head: Vec::new(), words: vec![Vec::new(); PEEKED], used: 0, position }
    }

    /// Bytes of the stream that were fed.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Takes the next bytes; `passed` hears of every command that ends in them.
    pub fn feed(&mut self, mut bytes: &[u8], mut passed: impl FnMut(Passed<'_>) -> Result<()>) -> Result<()> {
        while !bytes.is_empty() {
            let At::Body(args, left) = self.at else {
                bytes = self.head(bytes)?;
                continue;
            };
            let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            // The last two bytes are the end of the argument.
            let content = usize::try_from(left.saturating_sub(2)).unwrap_or(usize::MAX).min(taken);
            if let Some(word) = self.words.get_mut(self.used) {
                let room = PEEK - word.len().min(PEEK);
                word.extend_from_slice(&bytes[..content.min(room)]);
            }
            bytes = &bytes[taken..];
            self.position += taken as u64;
            self.at = At::Body(args, left - taken as u64);
            if left == taken as u64 {
                self.used = (self.used + 1).min(PEEKED);
                self.at = if args == 1 { At::Array } else { At::Bulk(args - 1) };
                if args == 1 {
                    passed(Passed { end: self.position, words: &self.words[..self.used] })?;
                    self.used = 0;
                }
            }
        }
        Ok(())
    }

    /// Takes the rest of a head, or as much of it as is there; answers what follows.
    fn head<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8]> {
        let room = MAX_HEAD + 1 - self.head.len();
        let Some(end) = bytes.iter().take(room).position(|b| *b == b'\n') else {
            if bytes.len() >= room {
                return Err(unreadable());
            }
            self.head.extend_from_slice(bytes);
            self.position += bytes.len() as u64;
            return Ok(&[]);
        };
        self.position += end as u64 + 1;
        if self.head.is_empty() {
            self.line(&bytes[..end])?;
        } else {
            let mut line = std::mem::take(&mut self.head);
            line.extend_from_slice(&bytes[..end]);
            self.line(&line)?;
            line.clear();
            self.head = line;
        }
        Ok(&bytes[end + 1..])
    }

    fn line(&mut self, line: &[u8]) -> Result<()> {
        let number = |mark: u8| -> Result<u64> {
            let digits = line.strip_suffix(b"\r").and_then(|l| l.strip_prefix(&[mark])).ok_or_else(unreadable)?;
            let add = |sum: u64, digit: &u8| match digit {
                b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
                _ => None,
            };
            let known = if digits.is_empty() { None } else { digits.iter().try_fold(0u64, add) };
            known.ok_or_else(unreadable)
        };
        self.at = match self.at {
            // A primary that has nothing to say keeps the link alive by empty lines.
            At::Array if line.is_empty() || line == b"\r" => At::Array,
            At::Array => match number(b'*')? {
                0 => return Err(unreadable()),
                args if args > MAX_ARGS => return Err(unreadable()),
                args => At::Bulk(args),
            },
            At::Bulk(args) => {
                if let Some(word) = self.words.get_mut(self.used) {
                    word.clear();
                }
                At::Body(args, number(b'$')?.checked_add(2).ok_or_else(unreadable)?)
            }
            At::Body(..) => return Err(unreadable()),
        };
        Ok(())
    }
}

fn unreadable() -> Error {
    Error::damaged("the replication stream holds what is no command: the log since the base is not usable")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::resp::put_request;
    use super::*;

    fn split(pieces: &[&[u8]]) -> Result<Vec<(u64, Vec<Vec<u8>>)>> {
        let (mut splitter, mut out) = (Splitter::new(100), Vec::new());
        for piece in pieces {
            splitter.feed(piece, |p| {
                out.push((p.end, p.words.to_vec()));
                Ok(())
            })?;
        }
        Ok(out)
    }

    #[test]
    fn commands_and_their_ends() {
        let stream =
            b"*1\r\n$4\r\nPING\r\n\n*3\r\n$3\r\nset\r\n$0\r\n\r\n$2\r\n\r\n\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n7\r\n";
        let found = split(&[stream]).unwrap();
        let words = |list: &[&str]| list.iter().map(|w| w.as_bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!(found[0], (114, words(&["PING"])));
        assert_eq!(found[1].1, words(&["set", ""]));
        assert_eq!(found[2], (100 + stream.len() as u64, words(&["SELECT", "7"])));
        assert!(Passed { end: 0, words: &words(&["replconf", "getack"]) }.is_idle());
        assert!(!Passed { end: 0, words: &words(&["REPLCONF", "ACK"]) }.is_idle());
        for bad in [&b"+OK\r\n"[..], b"*0\r\n", b"*1\r\n:3\r\n", b"*1\r\n$-1\r\n", b"*99999999999\r\n"] {
            assert!(split(&[bad]).is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// However the stream is cut into pieces, the commands are the same.
        #[test]
        fn pieces_do_not_matter(
            commands in proptest::collection::vec(proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..90), 1..5), 1..8),
            cut in 1usize..40,
        ) {
            let (mut stream, mut ends) = (Vec::new(), Vec::new());
            for args in &commands {
                put_request(&mut stream, &args.iter().map(Vec::as_slice).collect::<Vec<_>>());
                ends.push(100 + stream.len() as u64);
            }
            let pieces: Vec<_> = stream.chunks(cut).collect();
            let found = split(&pieces).unwrap();
            prop_assert_eq!(found.iter().map(|(end, _)| *end).collect::<Vec<_>>(), ends);
            for ((_, words), args) in found.iter().zip(&commands) {
                let peeked: Vec<_> = args.iter().take(PEEKED).map(|a| a[..a.len().min(PEEK)].to_vec()).collect();
                prop_assert_eq!(words, &peeked);
            }
        }

        #[test]
        fn nonsense_never_panics(bytes in proptest::collection::vec(prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), b'0'..=b'9', any::<u8>()], 0..80)) {
            let _ = split(&[&bytes]);
        }
    }
}
