//! RESP 2, as much of it as tests need: commands out, replies in.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::PATIENCE;

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reply {
    /// A status, such as `OK`.
    Status(String),
    /// An error, with its code in front.
    Error(String),
    /// A number.
    Integer(i64),
    /// A string.
    Bulk(Vec<u8>),
    /// Nothing.
    Nil,
    /// Several replies.
    Array(Vec<Reply>),
}

impl Reply {
    /// The bytes of a string or status.
    pub fn bytes(self) -> Vec<u8> {
        match self {
            Self::Bulk(bytes) => bytes,
            Self::Status(text) => text.into_bytes(),
            other => panic!("a string was expected: {other:?}"),
        }
    }

    /// A string or status as text.
    pub fn text(self) -> String {
        String::from_utf8(self.bytes()).expect("text")
    }

    /// A number.
    pub fn integer(&self) -> i64 {
        match self {
            Self::Integer(number) => *number,
            other => panic!("a number was expected: {other:?}"),
        }
    }

    /// The replies in an array.
    pub fn array(self) -> Vec<Reply> {
        match self {
            Self::Array(replies) => replies,
            other => panic!("an array was expected: {other:?}"),
        }
    }

    /// An array of strings.
    pub fn strings(self) -> Vec<Vec<u8>> {
        self.array().into_iter().map(Reply::bytes).collect()
    }
}

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// A connection to a server. A server that says nothing for [`PATIENCE`] fails the test.
pub struct Client {
    wire: BufReader<Box<dyn Wire>>,
}

impl Client {
    /// Connects to a unix socket.
    pub fn unix(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { wire: BufReader::new(Box::new(stream)) })
    }

    /// Connects to a loopback port.
    pub fn tcp(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { wire: BufReader::new(Box::new(stream)) })
    }

    /// Sends a command; an error of the server fails the test.
    pub fn call<A: AsRef<[u8]>>(&mut self, command: &[A]) -> Reply {
        match self.ask(command).expect("reply") {
            Reply::Error(error) => {
                let shown =
                    command.iter().map(|a| String::from_utf8_lossy(&a.as_ref()[..a.as_ref().len().min(64)]));
                panic!("{}: {error}", shown.collect::<Vec<_>>().join(" "))
            }
            reply => reply,
        }
    }

    /// Sends the words of a command without arguments that have spaces; an error of the server fails the test.
    pub fn run(&mut self, command: &str) -> Reply {
        self.call(&command.split_ascii_whitespace().collect::<Vec<_>>())
    }

    /// Whether the server knows a command.
    pub fn knows(&mut self, command: &str) -> bool {
        matches!(self.call(&["COMMAND", "INFO", command]).array()[..], [Reply::Array(_)])
    }

    /// Sends a command; errors of the server are replies, those of the connection are errors.
    pub fn ask<A: AsRef<[u8]>>(&mut self, command: &[A]) -> std::io::Result<Reply> {
        self.send(command)?;
        self.reply()
    }

    /// Sends many commands before it reads their replies. There must not be more than sockets hold.
    pub fn pipeline<A: AsRef<[u8]>>(&mut self, commands: &[Vec<A>]) -> Vec<Reply> {
        let mut out = Vec::new();
        commands.iter().for_each(|command| encode(command, &mut out));
        self.wire.get_mut().write_all(&out).expect("sent");
        commands.iter().map(|_| self.reply().expect("reply")).collect()
    }

    /// Sends what holds so many commands, then reads their replies; an error of the server fails the test.
    pub fn exchange(&mut self, commands: &[u8], count: usize) {
        self.wire.get_mut().write_all(commands).expect("sent");
        for _ in 0..count {
            if let Reply::Error(error) = self.reply().expect("reply") {
                panic!("{error}");
            }
        }
    }

    /// Sends a command and does not wait for the reply.
    pub fn send<A: AsRef<[u8]>>(&mut self, command: &[A]) -> std::io::Result<()> {
        let mut out = Vec::new();
        encode(command, &mut out);
        self.wire.get_mut().write_all(&out)
    }

    /// Reads a reply.
    pub fn reply(&mut self) -> std::io::Result<Reply> {
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| wrong(&line))?;
        let number = || rest.parse::<i64>().map_err(|_| wrong(&line));
        Ok(match kind {
            "+" => Reply::Status(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(number()?),
            "$" => match usize::try_from(number()?) {
                Err(_) => Reply::Nil,
                Ok(len) => {
                    let mut bytes = vec![0; len + 2];
                    self.wire.read_exact(&mut bytes)?;
                    bytes.truncate(len);
                    Reply::Bulk(bytes)
                }
            },
            "*" => match usize::try_from(number()?) {
                Err(_) => Reply::Nil,
                Ok(len) => Reply::Array((0..len).map(|_| self.reply()).collect::<Result<_, _>>()?),
            },
            _ => return Err(wrong(&line)),
        })
    }

    /// Reads a line without its end; what a primary sends a replica has such lines of its own.
    pub fn line(&mut self) -> std::io::Result<String> {
        let mut line = Vec::new();
        if self.wire.read_until(b'\n', &mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&line);
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The raw bytes that follow, for the replication stream.
    pub fn raw(&mut self) -> &mut impl Read {
        &mut self.wire
    }
}

fn encode<A: AsRef<[u8]>>(command: &[A], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
    for argument in command {
        let argument = argument.as_ref();
        out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
}

fn wrong(line: &str) -> std::io::Error {
    std::io::Error::other(format!("not RESP: {line:?}"))
}
