//! A throw-away server on this machine that the agent is the primary of: nothing is stored by it but what it is told to, and
//! nobody else can reach it.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::conn::{Address, Connection, Login};
use super::keys::Commands;
use super::resp::{Reply, put_request, read_reply};
use super::tied::{Tied, find as program_of};
use crate::crash;
use crate::rdb::version_of_server;

/// Programs that are looked for, for a source that is Redis and for one that is Valkey.
const PROGRAMS: [[&str; 2]; 2] = [["redis-server", "valkey-server"], ["valkey-server", "redis-server"]];
/// Time for the server to start, and to come to its primary.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Longest silence of the server while it takes base and log.
const SILENCE: Duration = Duration::from_secs(300);
/// Longest silence while it writes its dump.
const SAVE_PATIENCE: Duration = Duration::from_secs(3600);
/// Wait between two looks.
const POLL: Duration = Duration::from_millis(10);
/// Databases of a server for commands and records of which none is of a higher one: it starts in a few milliseconds.
pub const FEW_DATABASES: u32 = 16;
/// Databases of a server for any others.
pub const MOST_DATABASES: u32 = 65536;
/// Lines of its log that an error shows.
const LAST_WORDS: usize = 4;
/// Mark around the base that is sent.
const MARK_LEN: usize = 40;

/// A server that was started.
#[derive(Debug)]
pub struct Scratch {
    child: Tied,
    dir: PathBuf,
    /// The folder, open: by it the socket has a short name, whatever the folder's is (a socket's has at most 107 bytes).
    at: File,
    listener: TcpListener,
    token: String,
}

fn config(dir: &Path, port: u16, token: &str, databases: u32) -> String {
    let dir = dir.display();
    format!(
        "port 0\nunixsocket socket\nunixsocketperm 700\ndir {dir}\ndbfilename dump.rdb\nsave \"\"\nappendonly no\n\
         daemonize no\nlogfile {dir}/log\ndatabases {databases}\nmaxmemory 0\nrdbcompression yes\nreplicaof 127.0.0.1 {port}\n\
         masterauth {token}\nreplica-serve-stale-data yes\nrepl-diskless-load disabled\nsanitize-dump-payload no\n\
         repl-timeout 3600\nclient-query-buffer-limit 1gb\nproto-max-bulk-len 1gb\n"
    )
}

/// The program that would be started; `None` when none is there.
pub fn find(program: &str) -> Option<String> {
    find_for(program, false)
}

/// The same, for a source that is Valkey or not.
pub fn find_for(program: &str, valkey: bool) -> Option<String> {
    let named = [program];
    let candidates: &[&str] = if program.is_empty() { &PROGRAMS[usize::from(valkey)] } else { &named };
    let runs = |program: &&&str| {
        let asked = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        asked.is_ok_and(|answer| answer.status.success())
    };
    candidates.iter().find(runs).map(|program| (*program).to_owned())
}

/// Name and version of the server of a program that is there, as [`version_of_server`] takes them.
pub fn version_of(program: &str) -> Result<String> {
    let failed = || format!("asking `{program} --version`");
    let asked = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let text = String::from_utf8_lossy(&asked.or_kind(ErrorKind::Config, failed())?.stdout).into_owned();
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("v="));
    let name = if text.starts_with("Valkey") { "valkey" } else { "redis" };
    let version = version.ok_or_else(|| Error::config(format!("{}: it says `{}`", failed(), text.trim())))?;
    Ok(format!("{name} {version}"))
}

/// That it is not there, and what to do.
pub fn not_there(program: &str) -> Error {
    let wanted = if program.is_empty() { "redis-server or valkey-server" } else { program };
    Error::config(format!(
        "commands that were written after a base are applied by a scratch server, and {wanted} is not there: install the \
         server's package on this machine, or name its program (agents: engine.scratch_server)"
    ))
}

impl Scratch {
    /// Starts a server in `dir`: `program`, or where that is empty the first that is there, of the source's kind first. It has so many
    /// databases: commands for one that it does not have it runs on another, and says nothing.
    pub fn start(program: &str, valkey: bool, dir: &Path, databases: u32) -> Result<Self> {
        std::fs::create_dir_all(dir).or_kind(ErrorKind::Full, format_args!("{}", dir.display()))?;
        let listener =
            TcpListener::bind("127.0.0.1:0").or_kind(ErrorKind::Retry, "a port for the scratch server")?;
        let port = listener.local_addr().or_kind(ErrorKind::Retry, "a port for the scratch server")?.port();
        let token = format!("{:032x}", rand::random::<u128>());
        let config = config(dir, port, &token, databases);
        let at = File::open(dir).or_kind(ErrorKind::Full, format_args!("{}", dir.display()))?;
        let named = [program];
        let candidates: &[&str] = if program.is_empty() { &PROGRAMS[usize::from(valkey)] } else { &named };
        let there = candidates.iter().find(|candidate| program_of(candidate).is_some());
        let mut child = Tied::to(dir)?;
        child.start(there.ok_or_else(|| not_there(program))?, &config)?;
        Ok(Self { child, dir: dir.to_owned(), at, listener, token })
    }

    /// Plays its primary on its link: sends what `base` writes, then the log, and waits until it has taken all of it.
    pub fn replicate(
        &mut self,
        link: TcpStream,
        base: impl FnOnce(&mut dyn Write) -> Result<()>,
        log: (&Path, u64),
    ) -> Result<()> {
        self.serve(link, base, log).map_err(|e| {
            let ended = self.child.ended().ok().flatten().map_or(String::new(), |s| format!(" (it ended: {s})"));
            e.context(format!("the scratch server{ended}, which says `{}`", self.last_words()))
        })
    }

    /// The commands that it knows.
    pub fn commands(&self) -> Result<Commands> {
        Commands::parse(self.connect()?.call(&[b"COMMAND"])?)
    }

    /// The version of the RDB format that it loads.
    pub fn rdb_version(&self) -> Result<u16> {
        let info = self.connect()?.call(&[b"INFO", b"server"])?.text("INFO")?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let server = match (field("valkey_version:"), field("redis_version:")) {
            (Some(version), _) => format!("valkey {version}"),
            (None, version) => format!("redis {}", version.unwrap_or_default()),
        };
        version_of_server(&server).ok_or_else(|| {
            Error::unsupported(format!("the version of the scratch server is not understood: {server}"))
        })
    }

    /// Waits for its link as a replica. Whoever else finds the port does not know the token.
    pub fn accept(&mut self) -> Result<TcpStream> {
        let told = "the scratch server";
        self.listener.set_nonblocking(true).or_kind(ErrorKind::Bug, told)?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).or_kind(ErrorKind::Bug, told)?;
                    stream.set_read_timeout(Some(SILENCE)).or_kind(ErrorKind::Bug, told)?;
                    stream.set_write_timeout(Some(SILENCE)).or_kind(ErrorKind::Bug, told)?;
                    if let Some(stream) = self.greet(stream)? {
                        crash::point("scratch.joined");
                        return Ok(stream);
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => std::thread::park_timeout(POLL),
                Err(e) => return Err(Error::retry(told).with_source(e)),
            }
            if let Some(status) = self.child.ended()? {
                let words = self.last_words();
                return Err(Error::config(format!("the scratch server ended ({status}): {words}")));
            }
            if Instant::now() >= deadline {
                return Err(Error::retry("the scratch server does not come to its primary"));
            }
        }
    }

    /// Answers what a replica asks before its base; `None` for a caller that is none.
    fn greet(&self, mut stream: TcpStream) -> Result<Option<TcpStream>> {
        let mut reader = BufReader::with_capacity(512, stream.try_clone().or_kind(ErrorKind::Bug, "a socket")?);
        let mut known = false;
        loop {
            let Ok(request) = read_reply(&mut reader) else { return Ok(None) };
            let words: Vec<String> =
                request.list("a replica's request")?.into_iter().filter_map(|w| w.text("").ok()).collect();
            let answer: &[u8] = match words.first().map(|w| w.to_ascii_uppercase()).as_deref() {
                Some("AUTH") if words.last() == Some(&self.token) => {
                    known = true;
                    b"+OK\r\n"
                }
                Some("PSYNC") if known => return Ok(Some(stream)),
                Some("PING") => b"+PONG\r\n",
                Some("REPLCONF") if known => b"+OK\r\n",
                _ => b"-NOAUTH this is no server\r\n",
            };
            if stream.write_all(answer).is_err() {
                return Ok(None);
            }
        }
    }

    fn serve(
        &self,
        stream: TcpStream,
        base: impl FnOnce(&mut dyn Write) -> Result<()>,
        (log, len): (&Path, u64),
    ) -> Result<()> {
        let lost = || (ErrorKind::Retry, "sending base and log");
        let sent = |done: std::io::Result<()>| done.or_kind(lost().0, lost().1);
        let reader = stream.try_clone().or_kind(ErrorKind::Bug, "a socket")?;
        let mut out = BufWriter::with_capacity(1 << 20, stream);
        let (history, mark) =
            (format!("{:040x}", rand::random::<u128>()), format!("{:040x}", rand::random::<u128>()));
        debug_assert_eq!(mark.len(), MARK_LEN);
        sent(write!(out, "+FULLRESYNC {history} 0\r\n$EOF:{mark}\r\n"))?;
        base(&mut out)?;
        sent(out.write_all(mark.as_bytes()))?;
        sent(out.flush())?;
        // The mark must be the last that it has read: the log may follow once it says that it has loaded the base.
        let mut reader = BufReader::new(reader);
        let _ = acknowledgement(&mut reader)?;
        let mut file = File::open(log).or_kind(ErrorKind::Bug, "the log")?.take(len);
        let copied = std::io::copy(&mut file, &mut out).or_kind(lost().0, lost().1)?;
        if copied != len {
            return Err(Error::damaged("the log is shorter than the cut"));
        }
        let mut ask = Vec::new();
        put_request(&mut ask, &[b"REPLCONF", b"GETACK", b"*"]);
        sent(out.write_all(&ask))?;
        sent(out.flush())?;
        // It acknowledges what it took before the question, on its own every second and when asked.
        loop {
            let words = acknowledgement(&mut reader)?;
            let offset = words.last().cloned().unwrap_or(Reply::Nil).text("an acknowledgement")?;
            if offset.parse::<u64>().is_ok_and(|offset| offset >= len) {
                return Ok(());
            }
        }
    }

    /// Makes it write what it holds; answers the file.
    pub fn save(&mut self) -> Result<PathBuf> {
        let mut connection = self.connect()?;
        connection.set_timeout(SAVE_PATIENCE)?;
        let _ = connection.call(&[b"SAVE"])?.ok("SAVE of the scratch server")?;
        Ok(self.dir.join("dump.rdb"))
    }

    /// A connection to it.
    pub fn connect(&self) -> Result<Connection> {
        let socket = format!("/proc/self/fd/{}/socket", self.at.as_raw_fd());
        Connection::open(&Address::Unix(socket.into()), &Login::default())
    }

    /// Its last lines, for errors.
    fn last_words(&self) -> String {
        let log = std::fs::read(self.dir.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().filter(|l| !l.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join(" | ")
    }
}

/// Reads what a replica says. While it empties itself and loads, it sends empty lines.
fn acknowledgement(reader: &mut impl BufRead) -> Result<Vec<Reply>> {
    loop {
        let ahead = reader.fill_buf().or_kind(ErrorKind::Retry, "waiting for the replica")?;
        match ahead.iter().take_while(|b| matches!(b, b'\n' | b'\r')).count() {
            0 => return read_reply(reader)?.list("an acknowledgement"),
            empty => reader.consume(empty),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lines_of_a_replica_that_loads_are_no_acknowledgement() {
        let said = b"\n\n*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$2\r\n17\r\n\n".to_vec();
        let words = acknowledgement(&mut BufReader::with_capacity(1, &said[..])).unwrap();
        assert_eq!(words.last().cloned().unwrap().text("offset").unwrap(), "17");
        assert!(acknowledgement(&mut &b"\n\n"[..]).is_err());
    }

    #[test]
    fn programs_say_which_version_they_are() {
        let program = find("").expect("a server is installed where the tests run");
        assert!(version_of_server(&version_of(&program).unwrap()).is_some_and(|version| version >= 9));
        assert!(version_of("/nowhere/redis-server").is_err() && version_of("true").is_err());
        assert_eq!(find_for("/nowhere/redis-server", true), None);
    }
}
