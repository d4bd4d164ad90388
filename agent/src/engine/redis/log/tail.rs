//! The link of a log: it follows the server's stream as long as the log is kept, over restarts of either side, and over failovers.
//!
//! It begins without a base where it can: a server in a Cluster that has a backlog goes on from where it stands. A server of
//! its own is asked for a base, which is thrown away: only behind one the stream says which database its commands are for.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::rdb::{RdbSink, RecordHead, ValueSummary};
use tidemark_proto::wire::control::Position;
use tidemark_proto::{Error, ErrorKind, Incarnation, Result, Timestamp, error::ResultExt};

use super::super::absolute::sends_relative;
use super::super::conn::{Address, Connection, Login};
use super::super::keys::Commands;
use super::super::link::{BaseWay, Shared};
use super::super::server::View;
use super::super::shard::Servers;
use super::super::sync::{Sync, acknowledge, join, psync, read_base};
use super::super::worker::{Keeps, Worker};
use super::history_id;
use super::spool::Spool;

/// Most bytes that are kept after a start of the agent until somebody asks for the log; beyond, nobody does any more.
const UNASKED: u64 = 1 << 30;
/// Wait between attempts at following the stream.
const AGAIN: Duration = Duration::from_secs(1);

/// Where a log is to go on that is not in the spool: named as the coordinator knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resume {
    pub(super) history: Incarnation,
    pub(super) offset: u64,
}

/// What is known of the server.
#[derive(Debug)]
struct Known {
    commands: Commands,
    relative: bool,
}

/// What the thread and its readers share.
#[derive(Debug)]
struct Kept {
    spool: Mutex<Option<Spool>>,
    /// Most bytes of the spool; 0 before anybody said.
    most: AtomicU64,
    known: OnceLock<Known>,
    trouble: Mutex<Option<(ErrorKind, String)>>,
}

/// A link that follows a stream. Dropping it ends it; the spool stays on disk.
#[derive(Debug)]
pub(super) struct Tail {
    shared: Arc<Shared>,
    kept: Arc<Kept>,
    incarnation: Incarnation,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Tail {
    /// Begins to follow the stream of the server at an address.
    pub(super) fn start(
        (address, login): (Address, Login),
        servers: Servers,
        dir: &Path,
        incarnation: Incarnation,
        resume: Option<Resume>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let spool = Spool::reopen(dir, incarnation)?;
        let kept = Arc::new(Kept {
            spool: Mutex::new(spool),
            most: AtomicU64::new(0),
            known: OnceLock::new(),
            trouble: Mutex::default(),
        });
        let (shares, at) = (shared.clone(), address.clone());
        let worker =
            Worker { shared: shares, at, address, login, servers, dir: dir.to_owned(), way: BaseWay::default() };
        let mut follower =
            Follower { worker, spool: Spooled(kept.clone()), dir: dir.to_owned(), incarnation, resume };
        let span = tracing::Span::current();
        let run = move || {
            let _in = span.enter();
            follower.run();
        };
        let thread = std::thread::Builder::new().name("redis-log".into()).spawn(run);
        let thread = thread.or_kind(ErrorKind::Full, "starting a thread")?;
        Ok(Self { shared, kept, incarnation, thread: Some(thread) })
    }

    /// Whether it was given up.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(|thread| thread.is_finished())
    }

    /// The data that it is of.
    pub(super) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// How far it has come.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The present history of the stream.
    pub(super) fn history(&self) -> String {
        self.shared.lock().history.clone()
    }

    /// Whether everything up to a position was received.
    pub(super) fn has_come_to(&self, position: &Position) -> bool {
        let state = self.shared.lock();
        state.history == position.history && state.received >= position.offset
    }

    /// Waits until the stream is followed; `Retry` with what hinders.
    pub(super) fn ready(&self, patience: Duration) -> Result<()> {
        let there = self.shared.wait(Instant::now() + patience, |s| (!s.history.is_empty()).then_some(()))?;
        there.ok_or_else(|| match &*self.kept.trouble.lock().expect("trouble") {
            Some((kind, why)) => Error::new(*kind, format!("the server's stream cannot be followed: {why}")),
            None => Error::retry("the server's stream is being joined"),
        })
    }

    /// Works with the spool, which may take `most` bytes from now on (0: as before).
    pub(super) fn with_spool<T>(&self, most: u64, work: impl FnOnce(&mut Spool) -> Result<T>) -> Result<T> {
        if most > 0 {
            self.kept.most.store(most, Ordering::Relaxed);
        }
        let mut spool = self.kept.spool.lock().expect("spool");
        work(spool.as_mut().ok_or_else(|| Error::retry("the server's stream is being joined"))?)
    }

    /// Marks the cut `at` at a position; `false` where the stream is another one by now.
    pub(super) fn mark(&self, position: &Position, at: Timestamp) -> Result<bool> {
        let mut spool = self.kept.spool.lock().expect("spool");
        match spool.as_mut().filter(|spool| spool.history() == position.history) {
            Some(spool) => spool.mark(position.offset, at).map(|()| true),
            None => Ok(false),
        }
    }

    /// What is kept is of no use: the log begins anew.
    pub(super) fn forget(&self) {
        // The thread does it, as it must take the stream up again.
        self.kept.most.store(1, Ordering::Relaxed);
    }

    /// The commands that the server knows.
    pub(super) fn commands(&self) -> Result<&Commands> {
        let known = self.kept.known.get();
        known.map(|k| &k.commands).ok_or_else(|| Error::retry("the server has not told its commands yet"))
    }

    /// Whether the server sends times relative to the present.
    pub(super) fn sends_relative(&self) -> bool {
        self.kept.known.get().is_some_and(|k| k.relative)
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // Its end was noted by itself.
            let _ = thread.join();
        }
    }
}

/// The spool as what keeps a stream.
struct Spooled(Arc<Kept>);

impl Spooled {
    fn with<T>(&self, work: impl FnOnce(&mut Spool) -> T) -> Option<T> {
        self.0.spool.lock().expect("spool").as_mut().map(work)
    }
}

impl Keeps for Spooled {
    fn position(&self) -> u64 {
        self.with(|spool| spool.position()).unwrap_or(0)
    }

    fn take(&mut self, shared: &Shared, bytes: &[u8]) -> Result<bool> {
        let (millis, most) = (SystemClock.millis(), self.0.most.load(Ordering::Relaxed));
        let kept = self.with(|spool| {
            if most == 0 && spool.bytes() > UNASKED {
                return Err(Error::cancelled("nobody asks for the log of this server any more: it is not kept"));
            }
            if most > 0 && spool.bytes() > most {
                spool.forget()?;
                return Err(Error::retry("the spool of the log is full: what it held is dropped"));
            }
            spool.append(bytes, millis).map(|passed| (passed, spool.position()))
        });
        let (passed, position) = kept.ok_or_else(|| Error::bug("a stream without a spool"))??;
        shared.update(|s| {
            s.received = position;
            s.moved = passed.moved.unwrap_or(s.moved);
        });
        Ok(passed.asked)
    }

    fn renamed(&mut self, history: &str) -> Result<()> {
        self.with(|spool| spool.renamed(history)).unwrap_or(Ok(()))
    }

    fn may_gather(&self, _: &Shared) -> bool {
        self.0.known.get().is_some_and(|known| !known.relative)
    }
}

/// Drops what it is given.
struct Nowhere;

impl RdbSink for Nowhere {
    fn begin(&mut self, _: &RecordHead<'_>) -> Result<()> {
        Ok(())
    }

    fn value(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _: ValueSummary) -> Result<()> {
        Ok(())
    }
}

/// Follows the stream, on a thread of its own.
struct Follower {
    worker: Worker,
    spool: Spooled,
    dir: PathBuf,
    incarnation: Incarnation,
    resume: Option<Resume>,
}

impl Follower {
    fn run(&mut self) {
        while !self.worker.shared.stopped() {
            let Err(e) = self.follow() else { return };
            if self.worker.shared.stopped() {
                return;
            }
            if e.kind() == ErrorKind::Cancelled {
                tracing::warn!(error = %e.report(), "the log is given up");
                let _ = std::fs::remove_dir_all(&self.dir);
                self.worker.shared.update(|s| s.failed = Some((ErrorKind::Retry, e.report())));
                return;
            }
            tracing::warn!(error = %e.report(), "the stream of the log is not followed; trying again");
            if e.kind() == ErrorKind::Conflict || e.kind() == ErrorKind::Damaged {
                // What the server has forgotten is lost to the log: it begins anew.
                *self.spool.0.spool.lock().expect("spool") = None;
                self.worker.shared.update(|s| s.history.clear());
            }
            *self.spool.0.trouble.lock().expect("trouble") = Some((e.kind(), e.report()));
            self.worker.shared.rest(AGAIN);
        }
    }

    fn follow(&mut self) -> Result<()> {
        self.learn()?;
        let stands = self.spool.with(|spool| (spool.history().to_owned(), spool.position()));
        let connection = match stands {
            Some((history, position)) => {
                self.worker.shared.update(|s| (s.history, s.received) = (history.clone(), position));
                let place = self.worker.address.clone();
                match self.worker.take_up(&place, (&history, position), &mut self.spool)? {
                    Some(connection) => connection,
                    None => {
                        self.worker.again(&mut self.spool, Error::retry("the server has forgotten the stream"))?
                    }
                }
            }
            None => self.begin()?,
        };
        *self.spool.0.trouble.lock().expect("trouble") = None;
        self.worker.follow(connection, &mut self.spool)
    }

    /// Asks the server what it knows, once.
    fn learn(&mut self) -> Result<()> {
        if self.spool.0.known.get().is_some() {
            return Ok(());
        }
        let mut connection = Connection::open(&self.worker.address, &self.worker.login)?;
        let version = View::read(&mut connection)?.info.version();
        let commands = Commands::parse(connection.call(&[b"COMMAND"])?.ok("COMMAND")?)
            .map_err(|e| e.context("the log needs the right +command for the agent's user"))?;
        // Another thread cannot have been first: this is the only one.
        let _ = self.spool.0.known.set(Known { commands, relative: sends_relative(&version) });
        Ok(())
    }

    /// Joins the stream where the coordinator wants the log to go on, or where it stands now.
    fn begin(&mut self) -> Result<Connection> {
        let mut asking = Connection::open(&self.worker.address, &self.worker.login)?;
        let view = View::read(&mut asking)?;
        if let Some(why) = view.unready() {
            return Err(Error::retry(why));
        }
        let now = view.info.position()?;
        let mut connection = join(&self.worker.address, &self.worker.login)?;
        let from = match has_one_database(&view, &mut asking)? {
            true => Some(self.resume.take().and_then(|r| named(&view, r)).unwrap_or((now.history, now.offset))),
            // Which database the next command is for would not be known.
            false => None,
        };
        let asked = from.as_ref().map(|(history, offset)| (history.as_str(), offset + 1));
        let (started, unread) = match (psync(&mut connection, asked)?, from) {
            (Sync::Continue(new), Some((history, offset))) => {
                let mut spool = Spool::begin(&self.dir, self.incarnation, (&history, offset), 0)?;
                if !new.is_empty() {
                    spool.renamed(&new)?;
                }
                (spool, Vec::new())
            }
            (Sync::Full(position), _) => {
                let watch = |_| !self.worker.shared.stopped();
                let (_, unread) = read_base(&mut connection, &watch, &mut Nowhere)?;
                let at = (position.history.as_str(), position.offset);
                (Spool::begin(&self.dir, self.incarnation, at, 0)?, unread)
            }
            (Sync::Continue(_), None) => {
                return Err(Error::unsupported("the server goes on with what was never asked for"));
            }
        };
        let (history, position) = (started.history().to_owned(), started.position());
        *self.spool.0.spool.lock().expect("spool") = Some(started);
        tracing::info!(offset = position, "the log follows the server's stream");
        self.worker.shared.update(|s| (s.history, s.received, s.moved) = (history, position, position));
        if !unread.is_empty() {
            let _ = self.spool.take(&self.worker.shared, &unread)?;
        }
        acknowledge(&mut connection)?;
        Ok(connection)
    }
}

/// Whether all commands of a server are for the same database: it is one of a Cluster, and not of one with several (Valkey from 9
/// on). Where that may not be asked, it has several.
fn has_one_database(view: &View, asking: &mut Connection) -> Result<bool> {
    let info = &view.info;
    if !info.is_cluster() || !info.has("valkey_version") || info.release() < (9, 0) {
        return Ok(info.is_cluster());
    }
    let reply = asking.call(&[b"CONFIG", b"GET", b"cluster-databases"])?;
    let Ok(words) = reply.list("CONFIG GET") else { return Ok(false) };
    let number = words.into_iter().nth(1).and_then(|word| word.text("CONFIG GET").ok());
    Ok(number.is_some_and(|number| number == "1"))
}

/// The history of a server that the coordinator knows by its begin, and the offset in it.
pub(super) fn named(view: &View, resume: Resume) -> Option<(String, u64)> {
    let names = ["master_replid", "master_replid2"].map(|field| view.info.text(field).to_owned());
    let name = names.into_iter().find(|name| history_id(name) == resume.history)?;
    Some((name, resume.offset))
}
