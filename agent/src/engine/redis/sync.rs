//! What a replica says to a server and what the server sends: the handshake, the base, acknowledgements.
//!
//! Source: `replication.c` of Redis, tried on Redis 7.0 and Valkey 8.0.

use std::io::Read;
use std::time::Duration;

use tidemark_common::rdb::{self, RdbSink, Trailer};
use tidemark_proto::wire::control::Position;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::conn::{Address, Connection, Login};
use super::resp::{error_of, put_request, read_line};
use super::server::Info;

/// Longest silence of a server before the base begins: it forks, and may wait for other replicas.
const BASE_PATIENCE: Duration = Duration::from_secs(120);
/// Mark around a base that is sent without its length.
const EOF_MARK: usize = 40;

/// What a server answers to `PSYNC`.
pub(super) enum Sync {
    /// The whole data follows, and behind it the stream from there.
    Full(Position),
    /// The stream goes on, maybe under a new history.
    Continue(String),
}

/// Joins a server as a replica.
pub(super) fn join(address: &Address, login: &Login) -> Result<Connection> {
    join_as(address, login, false)
}

/// As [`join`]; with `through_file` a base that is asked for begins at once, and goes through the server's file.
pub(super) fn join_as(address: &Address, login: &Login, through_file: bool) -> Result<Connection> {
    const KNOWN: [&[u8]; 5] = [b"REPLCONF", b"capa", b"psync2", b"capa", b"eof"];
    let known = if through_file { &KNOWN[..3] } else { &KNOWN };
    let mut connection = Connection::open(address, login)?;
    for args in [&[&b"PING"[..]][..], known] {
        let _ = connection.call(args)?.ok("joining as a replica")?;
    }
    // Valkey from 9 on keeps what older versions do not know from a replica that does not name its own: it would fail to send a
    // hash whose fields expire. One that does not know the option says so, and goes on.
    let info = Info::parse(&connection.call(&[b"INFO", b"server"])?.text("INFO")?);
    if info.has("valkey_version") {
        let _ = connection.call(&[b"REPLCONF", b"version", info.text("valkey_version").as_bytes()])?;
    }
    Ok(connection)
}

/// Reads everything that a server holds into `sink`, once, and leaves.
pub(super) fn read_once(address: &Address, login: &Login, sink: &mut impl RdbSink) -> Result<()> {
    let mut connection = join(address, login)?;
    match psync(&mut connection, None)? {
        Sync::Full(_) => read_base(&mut connection, &|_| true, sink).map(drop),
        Sync::Continue(_) => Err(Error::unsupported("the server goes on with what was never asked for")),
    }
}

/// Reads a base into `sink`; answers what the server said at its end, and the start of the stream behind it. `watch` is told
/// of bytes that have arrived and says whether to go on.
pub(super) fn read_base(
    connection: &mut Connection,
    watch: &dyn Fn(u64) -> bool,
    sink: &mut impl RdbSink,
) -> Result<(Trailer, Vec<u8>)> {
    connection.set_timeout(BASE_PATIENCE)?;
    let head = base_head(connection)?;
    let mut counted = Counted { reader: connection.reader(), watch };
    let mut trailer = rdb::read(&mut counted, sink).map_err(|e| e.context("the base"))?;
    let mut unread = std::mem::take(&mut trailer.unread);
    match head {
        Head::Length(len) if len != trailer.bytes => {
            return Err(Error::damaged("the base is not as long as the server said"));
        }
        Head::Length(_) => {}
        Head::Marked(mark) => {
            let from = unread.len();
            unread.resize(from.max(EOF_MARK), 0);
            connection.reader().read_exact(&mut unread[from..]).or_kind(ErrorKind::Retry, "the end of the base")?;
            let stream = unread.split_off(EOF_MARK);
            if std::mem::replace(&mut unread, stream) != mark {
                return Err(Error::damaged("the base does not end with its mark"));
            }
        }
    }
    Ok((trailer, unread))
}

/// How a base is framed.
enum Head {
    Marked(Vec<u8>),
    Length(u64),
}

/// Reads `$EOF:<mark>` or `$<length>`; while the server prepares the base it sends empty lines.
fn base_head(connection: &mut Connection) -> Result<Head> {
    let mut line = Vec::new();
    loop {
        let reader = connection.reader();
        line.clear();
        // Empty lines come without a carriage return.
        let mut byte = [0];
        reader.read_exact(&mut byte).or_kind(ErrorKind::Retry, "waiting for the base")?;
        match byte[0] {
            b'\n' => continue,
            b'-' => {
                read_line(reader, &mut line)?;
                return Err(error_of(&String::from_utf8_lossy(&line)));
            }
            b'$' => {}
            _ => return Err(Error::damaged("the server sends no base where one must come")),
        }
        read_line(reader, &mut line)?;
        return match line.strip_prefix(b"EOF:") {
            Some(mark) if mark.len() == EOF_MARK => Ok(Head::Marked(mark.to_vec())),
            Some(_) => Err(Error::damaged("the mark of the base is not of 40 bytes")),
            None => {
                let len = std::str::from_utf8(&line).ok().and_then(|l| l.parse().ok());
                len.map(Head::Length).ok_or_else(|| Error::damaged("the base has no length"))
            }
        };
    }
}

/// Asks for the stream behind `from`, a history and an offset; `None` asks for everything.
pub(super) fn psync(connection: &mut Connection, from: Option<(&str, u64)>) -> Result<Sync> {
    ask(connection, from)?;
    answer(connection, &mut || Ok(()))
}

/// As [`psync`], without waiting for the answer.
pub(super) fn ask(connection: &mut Connection, from: Option<(&str, u64)>) -> Result<()> {
    let offset = from.map_or_else(|| "-1".to_owned(), |(_, offset)| offset.to_string());
    let history = from.map_or("?", |(history, _)| history);
    let mut out = Vec::new();
    put_request(&mut out, &[b"PSYNC", history.as_bytes(), offset.as_bytes()]);
    connection.send(&out)
}

/// What the server says to [`ask`]. While another child of it is at work, or it waits for other replicas, it says once a second that who
/// asks must wait: `waits` hears of that, and ends it with an error.
pub(super) fn answer(connection: &mut Connection, waits: &mut dyn FnMut() -> Result<()>) -> Result<Sync> {
    let answer = loop {
        let mut line = Vec::new();
        read_line_or_empty(connection, &mut line)?;
        if !line.is_empty() {
            break String::from_utf8_lossy(&line).into_owned();
        }
        waits()?;
    };
    let words: Vec<&str> = answer.split(' ').collect();
    match words[..] {
        ["+FULLRESYNC", history, offset] => {
            let offset = offset.parse().map_err(|_| Error::damaged("FULLRESYNC without an offset"))?;
            Ok(Sync::Full(Position { history: history.to_owned(), offset }))
        }
        ["+CONTINUE", history] => Ok(Sync::Continue(history.to_owned())),
        ["+CONTINUE"] => Ok(Sync::Continue(String::new())),
        _ => match answer.strip_prefix('-') {
            Some(error) => Err(error_of(error).context("PSYNC")),
            None => Err(Error::unsupported(format!("the server answers `{answer}` to PSYNC"))),
        },
    }
}

/// A line; an empty one (a server that prepares a base sends them) ends with a line feed alone.
fn read_line_or_empty(connection: &mut Connection, line: &mut Vec<u8>) -> Result<()> {
    let mut first = [0];
    connection.reader().read_exact(&mut first).or_kind(ErrorKind::Retry, "PSYNC")?;
    if first[0] == b'\n' {
        return Ok(());
    }
    read_line(connection.reader(), line)?;
    line.insert(0, first[0]);
    Ok(())
}

/// Counts the bytes of the base as they arrive, and ends when the link is stopped.
struct Counted<'a, R> {
    reader: &'a mut R,
    watch: &'a dyn Fn(u64) -> bool,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = self.reader.read(buf)?;
        match (self.watch)(len as u64) {
            true => Ok(len),
            false => Err(std::io::Error::other("the link was ended")),
        }
    }
}

/// Says that the link lives, and that nothing may be built on it.
pub(super) fn acknowledge(connection: &mut Connection) -> Result<()> {
    let mut out = Vec::new();
    put_request(&mut out, &[b"REPLCONF", b"ACK", b"0"]);
    connection.send(&out)
}
