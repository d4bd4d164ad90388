//! The link to a server as its replica: the base arrives and is sorted on disk, then the command stream is kept in a file.
//!
//! Rules, each tried on real servers:
//! - after the base one `REPLCONF ACK` is due, or a diskless stream never begins; it and all later ones say 0, so that
//!   `WAIT`, `FAILOVER` and Sentinel never build on the agent;
//! - a server that shuts down waits for its replicas (10 s by default) with writes paused. So at every `GETACK`, and once a
//!   second, the link looks whether it does, and leaves at once;
//! - a link that drops is taken up where it ended (`PSYNC` with the next offset), under a new history where a replica was
//!   promoted. Where the server has forgotten that offset, the base is lost.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tidemark_proto::wire::control::Position;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::base::{BaseSink, Gathered};
use super::conn::{Address, Connection, Login};
use super::server::Info;
use super::spill::{Sorted, Spill};
use super::stream::Splitter;
use super::sync::{Sync, acknowledge, join, psync, read_base};

/// The server is told that the link lives this often.
const ACK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for bytes of the stream before the link looks after its duties.
const TICK: Duration = Duration::from_millis(200);
/// Attempts at taking a dropped link up again, and the wait between them.
const RECONNECTS: u32 = 20;
const RECONNECT_WAIT: Duration = Duration::from_millis(500);
/// Bytes of the stream read at once.
const READ: usize = 256 << 10;
/// Most bytes of stream that are kept on disk before the cut.
const MAX_LOG: u64 = 64 << 30;

/// Where the base stands, and what came with it.
#[derive(Debug)]
pub struct Base {
    /// Where the stream begins that follows it.
    pub position: Position,
    /// Its records.
    pub records: Arc<Sorted>,
    /// What else it held.
    pub gathered: Gathered,
}

/// A base and the log behind it, up to some position.
#[derive(Debug)]
pub struct UpTo {
    /// The base.
    pub base: Arc<Base>,
    /// The file of the stream.
    pub log: PathBuf,
    /// How many of its bytes come before the position.
    pub bytes: u64,
    /// Whether they may hold commands that change data.
    pub moved: bool,
}

/// How far a link has come.
#[derive(Debug, Default)]
struct State {
    base: Option<Arc<Base>>,
    /// Bytes of the base received.
    transferred: u64,
    history: String,
    /// Bytes of the stream that are in the file, as an offset of the history.
    received: u64,
    /// End of the last command that may have changed data.
    moved: u64,
    failed: Option<(ErrorKind, String)>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits for some time, or until the link is stopped.
    fn rest(&self, time: Duration) {
        let woken = self.changed.wait_timeout_while(self.lock(), time, |_| !self.stopped());
        drop(woken.expect("no panic while held"));
    }

    /// Waits until `ready` answers something; `None` at the deadline, an error once the link has failed.
    fn wait<T>(&self, deadline: Instant, mut ready: impl FnMut(&State) -> Option<T>) -> Result<Option<T>> {
        let mut state = self.lock();
        loop {
            if let Some(done) = ready(&state) {
                return Ok(Some(done));
            }
            if let Some((kind, why)) = &state.failed {
                return Err(Error::new(*kind, why.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return Ok(None);
            }
            state = self.changed.wait_timeout(state, left).expect("no panic while held").0;
        }
    }
}

/// A link to a server. Dropping it ends it and removes its files.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
    dir: PathBuf,
}

impl Link {
    /// Begins a link to the server at `address`; its files go to `dir`, which is made.
    pub fn start(address: Address, login: Login, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).or_kind(ErrorKind::Full, format_args!("{}", dir.display()))?;
        let shared = Arc::new(Shared::default());
        let span = tracing::Span::current();
        let mut worker = Worker { shared: shared.clone(), address, login, dir: dir.to_owned() };
        let run = move || {
            let _in = span.enter();
            let ended = worker.run();
            worker.shared.update(|state| {
                state.ended = true;
                state.failed = ended.err().map(|e| (e.kind(), e.report()));
            });
        };
        let thread = std::thread::Builder::new().name("redis-link".into()).spawn(run);
        let thread = thread.or_kind(ErrorKind::Full, "starting a thread")?;
        Ok(Self { shared, thread: Some(thread), dir: dir.to_owned() })
    }

    /// Waits for the base; `progress` hears of the bytes that have arrived.
    pub fn base(&self, cancel: &dyn Fn() -> bool, progress: &dyn Fn(u64)) -> Result<Arc<Base>> {
        loop {
            let found = self.shared.wait(Instant::now() + TICK, |s| s.base.clone())?;
            progress(self.shared.lock().transferred);
            match found {
                Some(base) => return Ok(base),
                None if cancel() => return Err(Error::cancelled("the base is not needed any more")),
                None if self.shared.lock().ended => return Err(Error::cancelled("the link was ended")),
                None => {}
            }
        }
    }

    /// The base, when it is there and the link has not failed.
    pub fn base_if_whole(&self) -> Option<Arc<Base>> {
        let state = self.shared.lock();
        state.base.clone().filter(|_| state.failed.is_none())
    }

    /// Waits until the stream has come to `to`; then whether no command since `from` may have changed data.
    pub fn was_idle(&self, from: &Position, to: &Position, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        let seen = self.shared.wait(deadline, |s| {
            (s.history == to.history && s.received >= to.offset).then_some(s.moved <= from.offset)
        })?;
        seen.ok_or_else(|| {
            Error::conflict(format!("the stream of changes has not come to offset {} of {}", to.offset, to.history))
        })
    }

    /// Waits until the stream has come to `to`; what to make the state there of.
    pub fn up_to(&self, to: &Position, patience: Duration) -> Result<UpTo> {
        let _ = self.was_idle(to, to, patience)?;
        let base = self.base_if_whole().ok_or_else(|| Error::conflict("the base was lost"))?;
        let before = to.offset.checked_sub(base.position.offset);
        let bytes = before.ok_or_else(|| Error::conflict("the cut lies before the base"))?;
        let moved = self.shared.lock().moved > base.position.offset;
        Ok(UpTo { base, log: self.dir.join(LOG), bytes, moved })
    }

    /// Ends the link; its files stay until it is dropped.
    pub fn stop(&mut self) {
        self.shared.update(|_| self.shared.stop.store(true, Ordering::Relaxed));
        if let Some(thread) = self.thread.take() {
            // Its end was noted by itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Name of the stream's file.
const LOG: &str = "log";

struct Worker {
    shared: Arc<Shared>,
    address: Address,
    login: Login,
    dir: PathBuf,
}

impl Worker {
    fn run(&mut self) -> Result<()> {
        let mut connection = self.connect()?;
        let position = match psync(&mut connection, None)? {
            Sync::Full(position) => position,
            Sync::Continue(_) => {
                return Err(Error::unsupported("the server goes on with what was never asked for"));
            }
        };
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

    fn connect(&self) -> Result<Connection> {
        join(&self.address, &self.login)
    }

    fn read_base(&self, connection: &mut Connection, position: Position) -> Result<(Base, Vec<u8>)> {
        let mut sink = BaseSink::new(Spill::new(&self.dir.join("base"))?);
        let watch = |bytes: u64| {
            self.shared.lock().transferred += bytes;
            !self.shared.stopped()
        };
        let (trailer, unread) = read_base(connection, &watch, &mut sink)?;
        let (records, gathered) = sink.finish(&trailer)?;
        tracing::info!(records = records.records, bytes = records.bytes, offset = position.offset, "base taken");
        Ok((Base { position, records: Arc::new(records), gathered }, unread))
    }

    /// Keeps the stream until the link is stopped.
    fn follow(&self, mut connection: Connection, stream: &mut Stream) -> Result<()> {
        loop {
            match self.keep(&mut connection, stream) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Retry && !self.shared.stopped() => {
                    tracing::warn!(error = %e.report(), "the link to the server dropped: taking it up again");
                    connection = self.again(stream.splitter.position(), e)?;
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn again(&self, offset: u64, cause: Error) -> Result<Connection> {
        let history = self.shared.lock().history.clone();
        let mut last = cause;
        for _ in 0..RECONNECTS {
            self.shared.rest(RECONNECT_WAIT);
            if self.shared.stopped() {
                return Err(Error::cancelled("the link was ended"));
            }
            let mut connection = match self.connect() {
                Ok(connection) => connection,
                Err(e) => {
                    last = e;
                    continue;
                }
            };
            match psync(&mut connection, Some((&history, offset + 1))) {
                Ok(Sync::Continue(new)) => {
                    tracing::info!(offset, history = %new, "the link goes on");
                    self.shared.update(|s| s.history = if new.is_empty() { history.clone() } else { new });
                    acknowledge(&mut connection)?;
                    return Ok(connection);
                }
                Ok(Sync::Full(_)) => {
                    return Err(Error::conflict(
                        "the server has forgotten where the link stood (its backlog is too short, or it was started \
                         anew): the base must be taken again",
                    ));
                }
                Err(e) => last = e,
            }
        }
        Err(last.context("the link to the server dropped and could not be taken up"))
    }

    /// Reads the stream until it breaks (an error) or the link is stopped.
    fn keep(&self, connection: &mut Connection, stream: &mut Stream) -> Result<()> {
        connection.set_timeout(TICK)?;
        let (mut buffer, mut acked, mut asking) = (vec![0; READ], Instant::now(), None);
        while !self.shared.stopped() {
            let asked = match connection.reader().read(&mut buffer) {
                Ok(0) => return Err(Error::retry("the server closed the link")),
                Ok(len) => stream.take(&self.shared, &buffer[..len])?,
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    false
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => false,
                Err(e) => return Err(Error::retry("the link to the server ended").with_source(e)),
            };
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
        let open = |kept: Option<Connection>| kept.map_or_else(|| Connection::open(&self.address, &self.login), Ok);
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

impl Stream {
    /// Keeps bytes of the stream. Answers whether the server asked for an acknowledgement.
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
        });
        Ok(asked)
    }
}
