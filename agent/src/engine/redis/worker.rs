//! The thread of a link: base, stream, and going on after the link dropped.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::wire::control::Position;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::base::BaseSink;
use super::conn::{Address, Connection, Login};
use super::early;
use super::link::{Base, BaseWay, LOG, Shared};
use super::server::Info;
use super::shard::Servers;
use super::spill::Spill;
use super::stream::Splitter;
use super::sync::{Sync, acknowledge, answer, ask, join, join_as, psync, read_base};

/// The server is told that the link lives this often.
const ACK_EVERY: Duration = Duration::from_secs(1);
/// The same for so long after a base, unless the stream has begun: a server lets it begin with a word that comes once it knows that its
/// child is done, which it looks for ten times a second.
const ACK_SOON: Duration = Duration::from_millis(25);
const SOON: Duration = Duration::from_secs(2);
/// Longest wait for bytes of the stream before the link looks after its duties.
const TICK: Duration = Duration::from_millis(200);
/// Attempts at taking a dropped link up again, and the wait between them.
const RECONNECTS: u32 = 20;
const RECONNECT_WAIT: Duration = Duration::from_millis(500);
/// Bytes of the stream read, and written to files, at once.
const READ: usize = 64 << 10;
/// After a read of less than that the next one waits so long, unless somebody waits for the stream: a read for every few commands
/// would cost the server, which wakes the reader with each of its writes, as much as it costs the agent.
const GATHER: Duration = Duration::from_millis(5);
/// The same, where more than [`READ`] came since the last wait.
const GATHER_MUCH: Duration = Duration::from_millis(1);
/// Most bytes of stream that are kept on disk before the cut.
const MAX_LOG: u64 = 64 << 30;

/// What keeps the bytes of a stream.
pub(super) trait Keeps {
    /// Offset up to which it has them.
    fn position(&self) -> u64;

    /// Keeps the next bytes. Answers whether the server asked for an acknowledgement.
    fn take(&mut self, shared: &Shared, bytes: &[u8]) -> Result<bool>;

    /// The stream goes on under another history.
    fn renamed(&mut self, history: &str) -> Result<()>;

    /// Whether bytes may wait for a moment in the socket: not where it counts when they came.
    fn may_gather(&self, shared: &Shared) -> bool;
}

/// Does the work of a link, on a thread of its own.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    /// The server.
    pub(super) address: Address,
    /// Where the link goes at present.
    pub(super) at: Address,
    pub(super) login: Login,
    pub(super) servers: Servers,
    pub(super) dir: PathBuf,
    /// How the server is to write the base.
    pub(super) way: BaseWay,
}

impl Worker {
    pub(super) fn run(&mut self) -> Result<()> {
        let waiting = match self.shared.early() {
            Some(delay) => early::wait(&self.shared, delay, &|| self.connect())?,
            None => None,
        };
        let (mut connection, position) = self.begin(waiting)?;
        let (base, unread) = self.read_base(&mut connection, position)?;
        let position = base.position.clone();
        self.shared.update(|s| {
            (s.history, s.received, s.moved) = (position.history.clone(), position.offset, position.offset);
            s.base = Some(Arc::new(base));
        });
        let path = self.dir.join(LOG);
        let log = File::create(&path).or_kind(ErrorKind::Full, format_args!("{}", path.display()))?;
        let mut stream = Stream { log, splitter: Splitter::new(position.offset), first: position.offset };
        let _ = stream.take(&self.shared, &unread)?;
        acknowledge(&mut connection)?;
        self.follow(connection, &mut stream)
    }

    /// Asks for the base, unless it was asked for early, and hears of where its stream begins: the server has forked then, or does
    /// before it reads another command.
    fn begin(&self, asked: Option<Connection>) -> Result<(Connection, Position)> {
        let fresh = if asked.is_none() { Some(self.connect()?) } else { None };
        let mut tuned = self.way.tuning.as_ref().and_then(|tuning| tuning.begin());
        let mut waits = || {
            // That may take long, and is not what it was changed for.
            drop(tuned.take());
            self.shared.go_on()
        };
        if let Some(begun) = asked.and_then(|connection| early::begin(connection, &mut waits)) {
            return Ok(begun);
        }
        self.shared.go_on()?;
        let mut connection = fresh.map_or_else(|| self.connect(), Ok)?;
        ask(&mut connection, None)?;
        match answer(&mut connection, &mut waits)? {
            Sync::Full(position) => Ok((connection, position)),
            Sync::Continue(_) => Err(Error::unsupported("the server goes on with what was never asked for")),
        }
    }

    fn connect(&self) -> Result<Connection> {
        join_as(&self.address, &self.login, self.way.through_file)
    }

    fn read_base(&self, connection: &mut Connection, position: Position) -> Result<(Base, Vec<u8>)> {
        let mut sink = BaseSink::new(Spill::new(&self.dir.join("base"))?);
        let watch = |bytes: u64| {
            self.shared.lock().transferred += bytes;
            !self.shared.stopped()
        };
        let (trailer, unread) = read_base(connection, &watch, &mut sink)?;
        let (records, bytes) = sink.spill().taken();
        tracing::info!(records, bytes, offset = position.offset, "base taken");
        // The server's next base need not wait for the last records to be sorted, nor does the stream.
        let (records, gathered) = sink.finish_behind(&trailer)?;
        Ok((Base { position, records: Arc::new(records), gathered }, unread))
    }

    /// Keeps the stream until the link is stopped.
    pub(super) fn follow(&mut self, mut connection: Connection, stream: &mut impl Keeps) -> Result<()> {
        loop {
            match self.keep(&mut connection, stream) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Retry && !self.shared.stopped() => {
                    tracing::warn!(error = %e.report(), "the link to the server dropped: taking it up again");
                    connection = self.again(stream, e)?;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes the link up where it stood: at the server itself, or at another one of its shard, which has the same stream.
    pub(super) fn again(&mut self, stream: &mut impl Keeps, cause: Error) -> Result<Connection> {
        let offset = stream.position();
        let history = self.shared.lock().history.clone();
        let mut last = cause;
        // Asking one that has forgotten makes it prepare a base.
        let mut forgot = BTreeSet::new();
        for _ in 0..RECONNECTS {
            self.shared.rest(RECONNECT_WAIT);
            let places = std::iter::once(self.address.clone()).chain(self.servers.list());
            for place in places {
                self.shared.go_on()?;
                if forgot.contains(&place) {
                    continue;
                }
                match self.take_up(&place, (&history, offset), stream) {
                    Ok(Some(connection)) => return Ok(connection),
                    Ok(None) => _ = forgot.insert(place),
                    Err(e) => last = e,
                }
            }
            if forgot.contains(&self.address) {
                return Err(Error::conflict(
                    "the server has forgotten where the link stood (its backlog is too short, or it was started \
                     anew): the base must be taken again",
                ));
            }
        }
        Err(last.context("the link to the server dropped and could not be taken up"))
    }

    /// Goes on with the stream behind `offset` at `place`; `None` when the server has forgotten it.
    pub(super) fn take_up(
        &mut self,
        place: &Address,
        (history, offset): (&str, u64),
        stream: &mut impl Keeps,
    ) -> Result<Option<Connection>> {
        let mut connection = join(place, &self.login)?;
        match psync(&mut connection, Some((history, offset + 1)))? {
            Sync::Continue(new) => {
                tracing::info!(offset, %place, history = %new, "the link goes on");
                let new = if new.is_empty() { history.to_owned() } else { new };
                stream.renamed(&new)?;
                self.shared.update(|s| s.history = new);
                acknowledge(&mut connection)?;
                self.at = place.clone();
                Ok(Some(connection))
            }
            Sync::Full(_) => Ok(None),
        }
    }

    /// Reads the stream until it breaks (an error) or the link is stopped.
    fn keep(&self, connection: &mut Connection, stream: &mut impl Keeps) -> Result<()> {
        let (mut buffer, since, mut asking) = (vec![0; READ], Instant::now(), None);
        let (mut acked, mut soon, mut begun) = (since, true, false);
        connection.set_timeout(ACK_SOON)?;
        // Over TLS a read gives one of its records at most, however much there is.
        let (gathers, mut gathered) = (self.login.tls.is_none(), 0);
        while !self.shared.stopped() {
            let asked = match connection.reader().read(&mut buffer) {
                Ok(0) => return Err(Error::retry("the server closed the link")),
                Ok(len) => {
                    begun |= buffer[..len].iter().any(|b| *b != b'\n');
                    let asked = stream.take(&self.shared, &buffer[..len])?;
                    gathered += len;
                    if !asked && len < READ && gathers && stream.may_gather(&self.shared) {
                        // The socket must not be full before: then the server would keep what it holds no room for.
                        let most = if gathered < READ { GATHER } else { GATHER_MUCH };
                        self.shared.gather(most);
                        gathered = 0;
                    }
                    asked
                }
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    false
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => false,
                Err(e) => return Err(Error::retry("the link to the server ended").with_source(e)),
            };
            if soon && !begun && since.elapsed() < SOON {
                acknowledge(connection)?;
                continue;
            }
            if std::mem::take(&mut soon) {
                connection.set_timeout(TICK)?;
            }
            if asked || acked.elapsed() >= ACK_EVERY {
                acked = Instant::now();
                if self.server_leaves(&mut asking) {
                    return Err(Error::retry("the server shuts down"));
                }
                acknowledge(connection)?;
            }
        }
        Ok(())
    }

    /// Whether the server waits for its replicas in order to shut down. When it cannot be asked, the link itself will tell.
    fn server_leaves(&self, asking: &mut Option<Connection>) -> bool {
        let open = |kept: Option<Connection>| kept.map_or_else(|| Connection::open(&self.at, &self.login), Ok);
        let ask = |mut connection: Connection| -> Result<(bool, Connection)> {
            let info = Info::parse(&connection.call(&[b"INFO", b"server"])?.text("INFO")?);
            Ok((info.has("shutdown_in_milliseconds"), connection))
        };
        let answer = open(asking.take()).and_then(ask);
        answer.is_ok_and(|(leaves, connection)| {
            *asking = Some(connection);
            leaves
        })
    }
}

/// The stream's file, and where its commands end.
struct Stream {
    log: File,
    splitter: Splitter,
    first: u64,
}

impl Keeps for Stream {
    fn position(&self) -> u64 {
        self.splitter.position()
    }

    fn renamed(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn may_gather(&self, shared: &Shared) -> bool {
        shared.lock().arrivals.is_none()
    }

    fn take(&mut self, shared: &Shared, bytes: &[u8]) -> Result<bool> {
        if self.splitter.position() - self.first > MAX_LOG {
            return Err(Error::new(
                ErrorKind::Full,
                format!("more than {MAX_LOG} bytes were written since the base"),
            ));
        }
        self.log.write_all(bytes).or_kind(ErrorKind::Full, "keeping the stream of changes on disk")?;
        let (mut moved, mut asked) = (None, false);
        self.splitter.feed(bytes, |passed| {
            match passed.is_idle() {
                true => asked |= !passed.is("PING"),
                false => moved = Some(passed.end),
            }
            Ok(())
        })?;
        shared.update(|s| {
            s.received = self.splitter.position();
            s.moved = moved.unwrap_or(s.moved);
            if let Some(arrivals) = s.arrivals.as_mut().filter(|_| moved.is_some()) {
                arrivals.note(self.splitter.position(), SystemClock.millis() as i64);
            }
        });
        Ok(asked)
    }
}
