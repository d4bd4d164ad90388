//! RESP2, the protocol of Redis and Valkey, as a client speaks it: requests out, replies in.
//!
//! Source: the protocol specification in Redis' documentation ("RESP2"). Blocking: called from threads that may block.

use std::io::{BufRead, Read, Write};

use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

/// Longest line of a reply (status, error, length), in bytes.
const MAX_LINE: usize = 64 << 10;
/// Longest bulk string of a reply: `proto-max-bulk-len` may be set higher than its default of 512 MiB.
const MAX_BULK: u64 = 1 << 30;
/// Most elements of one array.
const MAX_ARRAY: u64 = 16 << 20;
/// Deepest nesting of arrays.
const MAX_DEPTH: u32 = 16;
/// Bytes of a bulk string that are made room for before they have arrived.
const STEP: u64 = 1 << 20;

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`.
    Status(String),
    /// `-ERR what is wrong`.
    Error(String),
    /// `:1`.
    Int(i64),
    /// A string.
    Bulk(Vec<u8>),
    /// Nothing: a null string or a null array.
    Nil,
    /// A list.
    Array(Vec<Reply>),
}

impl Reply {
    /// As an error where the server answered one; `what` says what was asked.
    pub fn ok(self, what: &str) -> Result<Self> {
        match self {
            Self::Error(message) => Err(error_of(&message).context(what)),
            other => Ok(other),
        }
    }

    /// As text: a status or a string.
    pub fn text(self, what: &str) -> Result<String> {
        match self.ok(what)? {
            Self::Status(s) => Ok(s),
            Self::Bulk(b) => Ok(String::from_utf8_lossy(&b).into_owned()),
            _ => Err(unexpected(what)),
        }
    }

    /// As bytes: a string.
    pub fn bytes(self, what: &str) -> Result<Vec<u8>> {
        match self.ok(what)? {
            Self::Bulk(b) => Ok(b),
            Self::Status(s) => Ok(s.into_bytes()),
            _ => Err(unexpected(what)),
        }
    }

    /// As a number.
    pub fn int(self, what: &str) -> Result<i64> {
        match self.ok(what)? {
            Self::Int(n) => Ok(n),
            Self::Bulk(b) => {
                std::str::from_utf8(&b).ok().and_then(|s| s.parse().ok()).ok_or_else(|| unexpected(what))
            }
            _ => Err(unexpected(what)),
        }
    }

    /// As a list; nothing is an empty one.
    pub fn list(self, what: &str) -> Result<Vec<Self>> {
        match self.ok(what)? {
            Self::Array(list) => Ok(list),
            Self::Nil => Ok(Vec::new()),
            _ => Err(unexpected(what)),
        }
    }
}

fn unexpected(what: &str) -> Error {
    Error::unsupported(format!("{what}: the server answers in a form that this agent does not know"))
}

/// The kind of error behind a server's answer. Its first word is a code.
pub fn error_of(message: &str) -> Error {
    let code = message.split(' ').next().unwrap_or_default();
    let kind = match code {
        "NOAUTH" | "WRONGPASS" | "NOPERM" => ErrorKind::Denied,
        "LOADING" | "BUSY" | "TRYAGAIN" | "MASTERDOWN" | "CLUSTERDOWN" | "NOMASTERLINK" | "NOREPLICAS" => {
            ErrorKind::Retry
        }
        "OOM" | "MISCONF" => ErrorKind::Full,
        "READONLY" | "MOVED" | "ASK" | "BUSYKEY" => ErrorKind::Conflict,
        _ if message.contains("unknown command") || message.contains("unknown subcommand") => {
            ErrorKind::Unsupported
        }
        _ => ErrorKind::Request,
    };
    Error::new(kind, format!("the server answered `{message}`"))
}

/// Appends a request to `out`.
pub fn put_request(out: &mut Vec<u8>, args: &[&[u8]]) {
    put_head(out, b'*', args.len());
    args.iter().for_each(|arg| put_bulk(out, arg));
}

/// Appends a string.
pub fn put_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    put_head(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends `mark` and a number as a line: the head of a list (`*`) or of a string (`$`).
pub fn put_head(out: &mut Vec<u8>, mark: u8, number: usize) {
    // By hand: this is done for each word of each command.
    let (mut digits, mut at, mut left) = ([0u8; 20], 20, number);
    loop {
        at -= 1;
        (digits[at], left) = (b'0' + (left % 10) as u8, left / 10);
        if left == 0 {
            break;
        }
    }
    out.push(mark);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

fn gone(what: &str) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.to_owned();
    move |e| {
        let late = matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
        let told = if late { "no answer in time" } else { "the connection to the server ended" };
        Error::retry(format!("{told} ({what})")).with_source(e)
    }
}

/// Reads a line without its end into `line`.
pub fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> Result<()> {
    line.clear();
    let mut limited = reader.take(MAX_LINE as u64 + 2);
    let _ = limited.read_until(b'\n', line).map_err(gone("reading a reply"))?;
    match line.strip_suffix(b"\r\n") {
        Some(rest) => {
            let len = rest.len();
            line.truncate(len);
            Ok(())
        }
        None if line.len() > MAX_LINE => Err(Error::damaged("a line of the server's reply is too long")),
        None => Err(Error::retry("the server closed the connection")),
    }
}

fn number(line: &[u8]) -> Result<i64> {
    let text = std::str::from_utf8(line).ok();
    text.and_then(|t| t.parse().ok())
        .ok_or_else(|| Error::damaged("the server's reply holds no number where one must be"))
}

/// Reads `len` bytes without trusting the length before they are there.
fn read_bulk(reader: &mut impl BufRead, len: u64) -> Result<Vec<u8>> {
    if len > MAX_BULK {
        return Err(Error::unsupported(format!("a string of {len} bytes in a reply: at most {MAX_BULK}")));
    }
    let mut out = Vec::with_capacity(len.min(STEP) as usize);
    let read = reader.take(len).read_to_end(&mut out).map_err(gone("reading a string"))?;
    let mut end = [0; 2];
    reader.read_exact(&mut end).map_err(gone("reading a string"))?;
    if read as u64 != len || end != *b"\r\n" {
        return Err(Error::damaged("a string of the server's reply does not end where it says"));
    }
    Ok(out)
}

/// Reads a command, of each of its words at most `most` bytes: what follows in a longer one is passed over.
pub fn read_command(reader: &mut impl BufRead, most: u64) -> Result<Vec<Vec<u8>>> {
    let mut line = Vec::new();
    let mut head = |reader: &mut _, mark: u8| -> Result<u64> {
        read_line(reader, &mut line)?;
        let len = line.strip_prefix(&[mark]).map(number).transpose()?.and_then(|len| u64::try_from(len).ok());
        len.ok_or_else(|| Error::damaged("the stream of changes holds what is no command"))
    };
    let count = head(reader, b'*')?;
    let mut words = Vec::with_capacity(count.min(1024) as usize);
    for _ in 0..count {
        let len = head(reader, b'$')?;
        let mut word = Vec::with_capacity(len.min(most).min(STEP) as usize);
        let read = reader.take(len.min(most)).read_to_end(&mut word).map_err(gone("reading a command"))?;
        let rest = len - read as u64 + 2;
        let passed =
            std::io::copy(&mut reader.take(rest), &mut std::io::sink()).map_err(gone("reading a command"))?;
        if passed != rest {
            return Err(Error::damaged("the stream of changes ends inside a command"));
        }
        words.push(word);
    }
    Ok(words)
}

/// The first two words of a command in memory; `None` where it has fewer, or is none.
pub fn first_two(request: &[u8]) -> Option<(&[u8], &[u8])> {
    let (count, rest) = length(request, b'*')?;
    let (len, rest) = length(rest, b'$').filter(|_| count >= 2)?;
    let (first, rest) = rest.split_at_checked(len)?;
    let (len, rest) = length(rest.strip_prefix(b"\r\n")?, b'$')?;
    let (second, rest) = rest.split_at_checked(len)?;
    rest.starts_with(b"\r\n").then_some((first, second))
}

/// The number behind `mark` at the beginning, and what follows its line.
fn length(bytes: &[u8], mark: u8) -> Option<(usize, &[u8])> {
    let mut rest = bytes.strip_prefix(&[mark])?;
    let mut number = 0usize;
    loop {
        match rest.split_first()? {
            (digit @ b'0'..=b'9', after) => {
                number = number.checked_mul(10)?.checked_add(usize::from(digit - b'0'))?;
                rest = after;
            }
            (b'\r', after) => return Some((number, after.strip_prefix(b"\n")?)),
            _ => return None,
        }
    }
}

/// Reads one reply.
pub fn read_reply(reader: &mut impl BufRead) -> Result<Reply> {
    let mut line = Vec::new();
    read_nested(reader, &mut line, 0)
}

fn read_nested(reader: &mut impl BufRead, line: &mut Vec<u8>, depth: u32) -> Result<Reply> {
    read_line(reader, line)?;
    let (mark, rest) = line.split_first().ok_or_else(|| Error::damaged("an empty reply of the server"))?;
    let text = || String::from_utf8_lossy(rest).into_owned();
    match mark {
        b'+' => Ok(Reply::Status(text())),
        b'-' => Ok(Reply::Error(text())),
        b':' => Ok(Reply::Int(number(rest)?)),
        b'$' => match number(rest)? {
            n if n < 0 => Ok(Reply::Nil),
            n => read_bulk(reader, n as u64).map(Reply::Bulk),
        },
        b'*' => {
            let len = number(rest)?;
            if len < 0 {
                return Ok(Reply::Nil);
            }
            if len as u64 > MAX_ARRAY || depth == MAX_DEPTH {
                return Err(Error::unsupported("a list in the server's reply is too long or too deep"));
            }
            let mut list = Vec::with_capacity((len as usize).min(1024));
            for _ in 0..len {
                list.push(read_nested(reader, line, depth + 1)?);
            }
            Ok(Reply::Array(list))
        }
        other => Err(Error::damaged(format!("the server's reply begins with byte {other}: is this a Redis port?"))),
    }
}

/// Writes all of `bytes`.
pub fn write_all(writer: &mut impl Write, bytes: &[u8]) -> Result<()> {
    writer.write_all(bytes).and_then(|()| writer.flush()).or_kind(ErrorKind::Retry, "writing to the server")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Reply> {
        read_reply(&mut &bytes[..])
    }

    #[test]
    fn replies_are_read() {
        let list = Reply::Array(vec![Reply::Int(-7), Reply::Bulk(b"a\r\nb".to_vec()), Reply::Nil, Reply::Nil]);
        assert_eq!(read(b"*4\r\n:-7\r\n$4\r\na\r\nb\r\n$-1\r\n*-1\r\n").unwrap(), list);
        assert_eq!(read(b"+OK\r\n").unwrap(), Reply::Status("OK".into()));
        let err = read(b"-NOPERM no\r\n").unwrap().ok("SET").unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Denied);
        assert!(err.report().contains("SET") && err.report().contains("NOPERM no"), "{}", err.report());
        assert_eq!(read(b"$5\r\nabc\r\n").unwrap_err().kind(), ErrorKind::Retry);
        assert_eq!(read(b"$3\r\nabcde").unwrap_err().kind(), ErrorKind::Damaged);
        assert_eq!(read(b"HTTP/1.1 400\r\n").unwrap_err().kind(), ErrorKind::Damaged);
        assert_eq!(read(b"$99999999999999\r\n").unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn of_long_words_the_beginning_is_read() {
        let mut stream = &b"*2\r\n$3\r\nSET\r\n$10\r\n0123456789\r\n*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPI"[..];
        assert_eq!(read_command(&mut stream, 4).unwrap(), [b"SET".to_vec(), b"0123".to_vec()]);
        assert_eq!(read_command(&mut stream, 4).unwrap(), [b"PING".to_vec()]);
        assert!(read_command(&mut stream, 4).is_err());
        assert!(read_command(&mut &b"+OK\r\n"[..], 4).is_err());
    }

    #[test]
    fn the_first_words_of_a_command() {
        let two = |bytes: &'static str| first_two(bytes.as_bytes());
        assert_eq!(two("*3\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$1\r\nx\r\n"), Some((&b"SET"[..], &b"\r\n"[..])));
        assert_eq!(two("*2\r\n$0\r\n\r\n$1\r\nx\r\n"), Some((&b""[..], &b"x"[..])));
        for bad in [
            "",
            "+OK\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "*2\r\n$4\r\nINCR\r\n",
            "*2\r\n$4\r\nINCR\r\n$9\r\nx\r\n",
            "*2\r\n$4\r\nINCR\r\n$1\r\nxx\r\n",
            "*2\r\n$99999999999999999999\r\nINCR\r\n$1\r\nx\r\n",
            "*2\r\n$-1\r\n$1\r\nx\r\n",
        ] {
            assert_eq!(two(bad), None, "{bad}");
        }
    }

    #[test]
    fn heads_are_written() {
        for number in [0, 7, 10, 99, 100, 65_536, usize::MAX] {
            let mut out = Vec::new();
            put_head(&mut out, b'$', number);
            assert_eq!(out, format!("${number}\r\n").as_bytes());
        }
    }

    #[test]
    fn requests_are_written() {
        let mut out = Vec::new();
        put_request(&mut out, &[b"SET", b"", b"a\r\n"]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$3\r\na\r\n\r\n");
    }

    proptest! {
        #[test]
        fn nonsense_never_panics(bytes in proptest::collection::vec(prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), b'0'..=b'9', any::<u8>()], 0..80)) {
            let _ = read(&bytes);
        }
    }
}
