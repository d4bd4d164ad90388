//! The link to a server as its replica: the base arrives and is sorted on disk, then the command stream is kept in a file.
//!
//! Rules, each tried on real servers:
//! - after the base one `REPLCONF ACK` is due, or a diskless stream never begins; it and all later ones say 0, so that
//!   `WAIT`, `FAILOVER` and Sentinel never build on the agent;
//! - a server that shuts down waits for its replicas (10 s by default) with writes paused. So at every `GETACK`, and once a
//!   second, the link looks whether it does, and leaves at once;
//! - a link that drops is taken up where it ended (`PSYNC` with the next offset), under a new history where a replica was
//!   promoted; at another server of the shard where this one is away. Where that offset is forgotten, the base is lost.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tidemark_proto::wire::control::Position;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::absolute::Arrivals;
use super::base::Gathered;
use super::conn::{Address, Login};
use super::shard::Servers;
use super::spill::Sorting;
use super::tuned::Tuning;
use super::worker::Worker;

/// Longest wait for the base before progress is told.
const LOOK: Duration = Duration::from_millis(200);
/// Name of the stream's file.
pub(super) const LOG: &str = "log";

/// Where the base stands, and what came with it.
#[derive(Debug)]
pub struct Base {
    /// Where the stream begins that follows it.
    pub position: Position,
    /// Its records.
    pub records: Arc<Sorting>,
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
    /// When they came, where that matters.
    pub(super) arrivals: Option<Arrivals>,
}

/// How the server writes a base.
#[derive(Debug, Default)]
pub(super) struct BaseWay {
    /// Through its own file.
    pub(super) through_file: bool,
    /// With other settings while it forks.
    pub(super) tuning: Option<Arc<Tuning>>,
}

/// How far a link has come.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) base: Option<Arc<Base>>,
    /// Bytes of the base received.
    pub(super) transferred: u64,
    pub(super) history: String,
    /// Bytes of the stream that are in the file, as an offset of the history.
    pub(super) received: u64,
    /// End of the last command that may have changed data.
    pub(super) moved: u64,
    /// When the bytes of the stream came, where that matters.
    pub(super) arrivals: Option<Arrivals>,
    /// How long the server waits before it forks, while the base is asked for and may not begin yet.
    early: Option<Duration>,
    pub(super) failed: Option<(ErrorKind, String)>,
    pub(super) ended: bool,
    /// How many wait for the stream to come somewhere.
    awaited: usize,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// An error once the link is to end.
    pub(super) fn go_on(&self) -> Result<()> {
        if self.stopped() { Err(Error::cancelled("the link was ended")) } else { Ok(()) }
    }

    /// Waits for some time, or until the link is stopped.
    pub(super) fn rest(&self, time: Duration) {
        let woken = self.changed.wait_timeout_while(self.lock(), time, |_| !self.stopped());
        drop(woken.expect("no panic while held"));
    }

    /// How long the server waits before it forks, where the base may not begin yet.
    pub(super) fn early(&self) -> Option<Duration> {
        self.lock().early
    }

    /// Whether the link waits for the word that the base may begin.
    pub(super) fn before_word(&self) -> bool {
        self.is_before_word(&self.lock())
    }

    fn is_before_word(&self, state: &State) -> bool {
        state.early.is_some() && !state.ended && !self.stopped()
    }

    /// Whoever asked early has nothing to wait on any more. `false` where the base may begin since: it is to be asked for then.
    pub(super) fn waits_no_more(&self) -> bool {
        let mut state = self.lock();
        state.ended |= state.early.is_some();
        state.ended
    }

    /// Waits for some time, or until the base may begin.
    pub(super) fn rest_before_word(&self, time: Duration) {
        let woken = self.changed.wait_timeout_while(self.lock(), time, |state| self.is_before_word(state));
        drop(woken.expect("no panic while held"));
    }

    /// Waits for some time, or until somebody waits for the stream.
    pub(super) fn gather(&self, time: Duration) {
        let idle = |state: &mut State| state.awaited == 0 && !self.stopped();
        let woken = self.changed.wait_timeout_while(self.lock(), time, idle);
        drop(woken.expect("no panic while held"));
    }

    /// Waits until the stream has come to `to`; then whether no command since `from` may have changed data.
    pub(super) fn was_idle(&self, from: &Position, to: &Position, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        let seen = self.wait(deadline, |s| {
            (s.history == to.history && s.received >= to.offset).then_some(s.moved <= from.offset)
        })?;
        seen.ok_or_else(|| {
            Error::conflict(format!("the stream of changes has not come to offset {} of {}", to.offset, to.history))
        })
    }

    /// The link is to end.
    pub(super) fn stop(&self) {
        self.update(|_| self.stop.store(true, Ordering::Relaxed));
    }

    /// Waits until `ready` answers something; `None` at the deadline, an error once the link has failed.
    pub(super) fn wait<T>(
        &self,
        deadline: Instant,
        mut ready: impl FnMut(&State) -> Option<T>,
    ) -> Result<Option<T>> {
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
            // Whoever gathers is told once: those who wait must not wake each other.
            if state.awaited == 0 {
                self.changed.notify_all();
            }
            state.awaited += 1;
            state = self.changed.wait_timeout(state, left).expect("no panic while held").0;
            state.awaited -= 1;
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
    /// Begins a link to the server at `address`; its files go to `dir`, which is made. With `arrivals` it is noted when the bytes of
    /// the stream come. With `early`, how long the server waits before it forks, the base begins only after [`Self::begin`].
    pub(super) fn start(
        (address, login): (Address, Login),
        servers: Servers,
        dir: &Path,
        arrivals: bool,
        way: BaseWay,
        early: Option<Duration>,
    ) -> Result<Self> {
        std::fs::create_dir_all(dir).or_kind(ErrorKind::Full, format_args!("{}", dir.display()))?;
        let shared = Arc::new(Shared::default());
        shared.update(|s| (s.arrivals, s.early) = (arrivals.then(Arrivals::default), early));
        let span = tracing::Span::current();
        let (at, dir) = (address.clone(), dir.to_owned());
        let shares = shared.clone();
        let mut worker = Worker { shared: shares, at, address, login, servers, dir: dir.clone(), way };
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
        Ok(Self { shared, thread: Some(thread), dir })
    }

    /// The base may begin. `false` where the link did not wait for that: another one is to be started.
    pub(super) fn begin(&self) -> bool {
        let mut waited = false;
        self.shared.update(|s| {
            waited = self.shared.is_before_word(s);
            s.early = None;
        });
        waited
    }

    /// Whether it waits until the base may begin.
    pub(super) fn waits(&self) -> bool {
        self.shared.before_word()
    }

    /// Waits for the base; `progress` hears of the bytes that have arrived.
    pub fn base(&self, cancel: &dyn Fn() -> bool, progress: &dyn Fn(u64)) -> Result<Arc<Base>> {
        loop {
            let found = self.shared.wait(Instant::now() + LOOK, |s| s.base.clone())?;
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

    /// How far it has come.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// As [`Shared::was_idle`].
    pub(super) fn was_idle(&self, from: &Position, to: &Position, patience: Duration) -> Result<bool> {
        self.shared.was_idle(from, to, patience)
    }

    /// Waits until the stream has come to `to`; what to make the state there of.
    pub fn up_to(&self, to: &Position, patience: Duration) -> Result<UpTo> {
        let _ = self.was_idle(to, to, patience)?;
        let base = self.base_if_whole().ok_or_else(|| Error::conflict("the base was lost"))?;
        let before = to.offset.checked_sub(base.position.offset);
        let bytes = before.ok_or_else(|| Error::conflict("the cut lies before the base"))?;
        let state = self.shared.lock();
        let (moved, arrivals) = (state.moved > base.position.offset, state.arrivals.clone());
        drop(state);
        Ok(UpTo { base, log: self.dir.join(LOG), bytes, moved, arrivals })
    }

    /// Ends the link; its files stay until it is dropped.
    pub fn stop(&mut self) {
        self.shared.stop();
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
