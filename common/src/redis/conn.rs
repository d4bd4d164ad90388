//! A connection to a server: TCP, TLS or a unix socket, logged in.

use std::io::{BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::resp::{Reply, put_request, read_reply, write_all};

/// Time for a server to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a server to answer, where nothing else is said.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes read at once.
const READ_BUFFER: usize = 256 << 10;
/// Name under which `CLIENT LIST` shows the agent's connections.
pub const CLIENT_NAME: &str = "tidemark-agent";

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// `host:port`.
    Tcp(String),
    /// Path of a unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(a) => f.write_str(a),
            Self::Unix(p) => write!(f, "unix:{}", p.display()),
        }
    }
}

impl std::str::FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(_) => {
                Err(Error::config(format!("`{text}`: a unix socket needs its whole path, unix:/run/redis.sock")))
            }
            None => {
                match text.rsplit_once(':').and_then(|(h, p)| (!h.is_empty()).then_some(p)?.parse::<u16>().ok()) {
                    Some(port) if port > 0 => Ok(Self::Tcp(text.to_owned())),
                    _ => Err(Error::config(format!("`{text}`: write host:port, or unix:/path/of/the/socket"))),
                }
            }
        }
    }
}

/// How to log in.
#[derive(Clone, Default)]
pub struct Login {
    /// User; empty for the `default` one.
    pub user: String,
    /// Password; empty for none.
    pub password: String,
    /// TLS, where the server wants it.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl Login {
    /// Name of the user, as the server calls it.
    pub fn user_name(&self) -> &str {
        if self.user.is_empty() { "default" } else { &self.user }
    }
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

/// What carries the connection.
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(s) => s.read(buf),
            Self::Unix(s) => s.read(buf),
            Self::Tls(s) => s.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(s) => s.write(buf),
            Self::Unix(s) => s.write(buf),
            Self::Tls(s) => s.write(buf),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Tcp(s) => s.flush(),
            Self::Unix(s) => s.flush(),
            Self::Tls(s) => s.flush(),
        }
    }
}

impl Stream {
    fn set_timeout(&self, timeout: Duration) -> std::io::Result<()> {
        let timeout = Some(timeout);
        match self {
            Self::Unix(s) => s.set_read_timeout(timeout).and_then(|()| s.set_write_timeout(timeout)),
            Self::Tcp(s) => s.set_read_timeout(timeout).and_then(|()| s.set_write_timeout(timeout)),
            Self::Tls(s) => s.sock.set_read_timeout(timeout).and_then(|()| s.sock.set_write_timeout(timeout)),
        }
    }
}

/// A connection that is logged in.
pub struct Connection {
    address: Address,
    stream: BufReader<Stream>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Connection").field(&self.address).finish()
    }
}

fn tcp(address: &str) -> Result<TcpStream> {
    let fail = || format!("connecting to the server at {address}");
    let mut last = Error::retry(format!("{}: the name has no address", fail()));
    for found in address.to_socket_addrs().or_kind(ErrorKind::Retry, fail())? {
        match TcpStream::connect_timeout(&found, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true).or_kind(ErrorKind::Retry, fail())?;
                return Ok(stream);
            }
            Err(e) => last = Error::retry(fail()).with_source(e),
        }
    }
    Err(last)
}

fn tls(address: &str, config: &Arc<rustls::ClientConfig>) -> Result<Stream> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    let name = rustls::pki_types::ServerName::try_from(host);
    let name = name.map_err(|e| Error::config(format!("{address}: no name for TLS")).with_source(e))?;
    let session = ClientConnection::new(config.clone(), name).or_kind(ErrorKind::Config, "TLS to the server")?;
    Ok(Stream::Tls(Box::new(StreamOwned::new(session, tcp(address)?))))
}

impl Connection {
    /// Connects and logs in. `Retry` when the server does not answer, `Denied` when it refuses the user.
    pub fn open(address: &Address, login: &Login) -> Result<Self> {
        let stream = match (address, &login.tls) {
            (Address::Unix(path), _) => {
                let fail = || format!("connecting to the server at {address}");
                Stream::Unix(UnixStream::connect(path).or_kind(ErrorKind::Retry, fail())?)
            }
            (Address::Tcp(a), None) => Stream::Tcp(tcp(a)?),
            (Address::Tcp(a), Some(config)) => tls(a, config)?,
        };
        let mut connection =
            Self { address: address.clone(), stream: BufReader::with_capacity(READ_BUFFER, stream) };
        connection.set_timeout(ANSWER_TIMEOUT)?;
        connection.log_in(login).map_err(|e| e.context(format_args!("server {address}")))?;
        Ok(connection)
    }

    fn log_in(&mut self, login: &Login) -> Result<()> {
        let (user, password) = (login.user.as_bytes(), login.password.as_bytes());
        if !password.is_empty() {
            let reply = match user {
                [] => self.call(&[b"AUTH", password])?,
                user => self.call(&[b"AUTH", user, password])?,
            };
            let _ = reply.ok("logging in")?;
        }
        // A user without the right to name its connection may do everything else.
        let _ = self.call(&[b"CLIENT", b"SETNAME", CLIENT_NAME.as_bytes()])?;
        Ok(())
    }

    /// Itself, when the server answers.
    pub fn if_alive(mut self) -> Option<Self> {
        self.call(&[b"PING"]).is_ok_and(|r| r.ok("PING").is_ok()).then_some(self)
    }

    /// Where the server is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Time for each further read and write.
    pub fn set_timeout(&self, timeout: Duration) -> Result<()> {
        self.stream.get_ref().set_timeout(timeout).or_kind(ErrorKind::Retry, "connection to the server")
    }

    /// Writes bytes of requests.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        write_all(self.stream.get_mut(), bytes)
    }

    /// Reads the next reply.
    pub fn reply(&mut self) -> Result<Reply> {
        read_reply(&mut self.stream)
    }

    /// A request and its reply, which may be an error of the server.
    pub fn call(&mut self, args: &[&[u8]]) -> Result<Reply> {
        let mut out = Vec::new();
        put_request(&mut out, args);
        self.send(&out)?;
        self.reply()
    }

    /// Requests in one write, and their replies.
    pub fn pipeline(&mut self, requests: &[&[&[u8]]]) -> Result<Vec<Reply>> {
        let mut out = Vec::new();
        requests.iter().for_each(|args| put_request(&mut out, args));
        self.send(&out)?;
        requests.iter().map(|_| self.reply()).collect()
    }

    /// What arrives, for protocols other than request and reply.
    pub fn reader(&mut self) -> &mut BufReader<Stream> {
        &mut self.stream
    }

    /// Whether bytes have arrived that were not read yet.
    pub fn has_unread(&self) -> bool {
        !self.stream.buffer().is_empty()
    }
}
