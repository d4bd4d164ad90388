//! The log of a server: its stream of commands, kept on disk until it is durable elsewhere.
//!
//! A link of its own follows the server's stream ([`tail`]) into a spool ([`spool`]). What is asked for is read back from there, and
//! each command gets a timestamp then ([`read`]): when it came, but above all before it. A cut (of a backup or a light one for a
//! restore point) leaves a mark in the spool: what lies before it gets a timestamp at or below the cut's, what lies behind it a
//! later one; and nothing is read while writes are held. So "up to T" means the same at all nodes for every cut T.

mod batch;
mod frames;
mod read;
mod spool;
mod tail;
mod times;
mod words;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::wire::control::{Held, Ownership, Position, Sealed};
use tidemark_proto::{Error, Incarnation, Result, SlotSet, Timestamp};

use super::Redis;
use super::hold::HoldState;
use super::server::View;
use crate::engine::{LogReached, LogSink, LogSource, LogWanted};
use batch::{Batch, Begins};
use read::Room;
use tail::{Resume, Tail};

/// Time for a stream that begins before a read is put off.
const BEGIN_PATIENCE: Duration = Duration::from_secs(3);
/// A hold keeps reads back for this much longer than writes: its cut may be sealed until then.
const HOLD_GRACE: Duration = Duration::from_secs(5);
/// Positions of the log are offsets of the stream and this: a stream that nothing was written to yet stands at offset 0, and
/// position 0 means that a log is to begin.
const POSITION: u64 = 1;
/// Cuts of which the slots are known that the server owned then: more than wait to be read while a bucket is away for a while.
const MOST_CUTS: usize = 1024;
/// Least bytes of a command.
const LEAST_COMMAND: u64 = 14;

/// What is known of the log's cuts.
#[derive(Debug, Default)]
struct Cuts {
    /// Writes are held, at most until then: nothing is read meanwhile.
    barrier: Option<Instant>,
    /// The light cut that is under way.
    hold: Option<HoldState>,
    /// The last cuts, and what the server owned at each.
    last: VecDeque<(Timestamp, SlotSet)>,
    /// Where the stream stood at the last cut, whether there is a mark of it or not.
    at: Option<Position>,
    /// No timestamp above this was given out.
    issued: Timestamp,
    /// Offset up to which timestamps were given out.
    read: u64,
}

/// The log of one server.
#[derive(Debug)]
pub(super) struct RedisLog {
    dir: PathBuf,
    tail: Mutex<Option<Tail>>,
    cuts: Mutex<Cuts>,
    room: Mutex<Room>,
}

/// The id under which a history is known to the coordinator: the first half of its name.
pub(super) fn history_id(history: &str) -> Incarnation {
    let half = history.get(..32).and_then(|half| u128::from_str_radix(half, 16).ok());
    Incarnation::from_u128(half.unwrap_or_default())
}

impl RedisLog {
    pub(super) fn new(dir: PathBuf) -> Self {
        let log = Self { dir, tail: Mutex::default(), cuts: Mutex::default(), room: Mutex::default() };
        if let Some(issued) = std::fs::read(log.issued()).ok().and_then(|bytes| bytes.try_into().ok()) {
            log.cuts().issued = Timestamp(u64::from_le_bytes(issued));
        }
        log
    }

    fn cuts(&self) -> std::sync::MutexGuard<'_, Cuts> {
        self.cuts.lock().expect("cuts")
    }

    /// Writes are held at `position`: nothing is read before the cut is known. Answers a timestamp that is above every one that
    /// was given out and every one that anything up to there can get.
    pub(super) fn hold(&self, position: &Position, budget: Duration) -> Timestamp {
        if self.tail.lock().expect("tail").is_none() {
            return Timestamp::ZERO;
        }
        let mut cuts = self.cuts();
        cuts.barrier = Some(Instant::now() + budget + HOLD_GRACE);
        let most = position.offset.saturating_sub(cuts.read) / LEAST_COMMAND + 1;
        let now = cuts.issued.max(Timestamp::new(SystemClock.millis(), 0));
        Timestamp(now.0 + 2 * most)
    }

    /// Timestamps up to `closed`, of the stream up to an offset, were given out. That is remembered over restarts, as clocks step back.
    fn issue(&self, closed: Timestamp, offset: u64) {
        let mut cuts = self.cuts();
        (cuts.issued, cuts.read) = (cuts.issued.max(closed), cuts.read.max(offset));
        // One that is lost is made good by the next read.
        let _ = std::fs::write(self.issued(), cuts.issued.0.to_le_bytes());
    }

    fn issued(&self) -> PathBuf {
        self.dir.with_extension("issued")
    }

    /// The cut of a hold is at `at`.
    pub(super) fn mark(&self, hold: &HoldState, at: Timestamp) -> Result<()> {
        let tail = self.tail.lock().expect("tail");
        let Some(tail) = tail.as_ref() else { return Ok(()) };
        let mut cuts = self.cuts();
        let position = hold.position();
        cuts.at = Some(position.clone());
        if cuts.read > position.offset || cuts.issued >= at {
            return Err(Error::conflict("the log was read beyond the cut: cut again"));
        }
        if tail.mark(position, at)? {
            cuts.issued = at;
            if cuts.last.len() == MOST_CUTS {
                let _ = cuts.last.pop_front();
            }
            cuts.last.push_back((at, hold.ownership().slots.clone()));
        }
        Ok(())
    }

    /// Reads go on.
    pub(super) fn let_go(&self) {
        self.cuts().barrier = None;
    }

    /// Ends the link, and drops what is kept.
    fn stop(&self) {
        *self.tail.lock().expect("tail") = None;
        let issued = self.cuts().issued;
        *self.cuts() = Cuts { issued, ..Cuts::default() };
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Redis {
    /// Follows the stream again where an earlier process of the agent did.
    pub(super) fn resume_log(&self) {
        if self.log.dir.exists()
            && let Err(e) = self.follow_log(None)
        {
            tracing::warn!(error = %e.report(), "the log is taken up when it is asked for");
        }
    }

    /// The link of the log stands, or is begun.
    fn follow_log(&self, resume: Option<Resume>) -> Result<()> {
        let mut tail = self.log.tail.lock().expect("tail");
        // After a restore the data is another.
        if tail.as_ref().is_some_and(|tail| tail.incarnation() != self.incarnation() || tail.has_ended()) {
            *tail = None;
        }
        if tail.is_none() {
            self.refuse_where_counted(&self.view()?)?;
            let (address, login) = (self.options.address.clone(), self.options.login.clone());
            let dir = &self.log.dir;
            *tail =
                Some(Tail::start((address, login), self.shard.servers.clone(), dir, self.incarnation(), resume)?);
        }
        Ok(())
    }

    /// The log goes on here where another node's ended; `Conflict` where the server does not know that stream.
    fn take_over(&self, resume: Resume) -> Result<()> {
        let mut tail = self.log.tail.lock().expect("tail");
        let asked = |name: &str| history_id(name) == resume.history;
        let stands = tail.as_ref().map(|tail| tail.with_spool(0, |spool| Ok(spool.holds(asked, resume.offset))));
        if matches!(stands, Some(Ok(true))) {
            return Ok(());
        }
        let view = self.view()?;
        if tail::named(&view, resume).is_none() {
            return Err(Error::conflict("the server does not know the stream that the log is to go on with"));
        }
        *tail = None;
        let _ = std::fs::remove_dir_all(&self.log.dir);
        Ok(())
    }

    /// The log of a server without slots tells of all that it will get, and begins beside others. Keys that have come by now are not in
    /// it: where slots are on their way it waits until it owns some, and what lies before that is another window.
    fn refuse_where_slots_come(&self) -> Result<()> {
        let now = self.ask_primary(View::read)?.ownership()?;
        match now.slots.is_empty() && now.moving.is_empty() {
            true => Ok(()),
            false => Err(Error::retry("slots are on their way to the server: its log begins when it owns them")),
        }
    }

    fn with_tail<T>(&self, work: impl FnOnce(&Tail) -> Result<T>) -> Result<T> {
        let tail = self.log.tail.lock().expect("tail");
        work(tail.as_ref().ok_or_else(|| Error::conflict("the log of this server is not followed"))?)
    }
}

impl LogSource for Redis {
    fn read_log(&self, wanted: &LogWanted, sink: &mut dyn LogSink) -> Result<LogReached> {
        let offset = wanted.from.saturating_sub(POSITION);
        let resume = (wanted.from > 0).then_some(Resume { history: wanted.incarnation, offset });
        if let Some(resume) = resume.filter(|_| wanted.takes_over) {
            self.take_over(resume)?;
        }
        self.follow_log(resume)?;
        // What the server has done by now has come, if the stream stands where the server says.
        let now = Timestamp::new(SystemClock.millis(), 0);
        let view = self.ask_primary(View::read)?;
        self.shard.note(&view);
        let (position, slots) = (view.info.position()?, view.ownership()?.slots);
        let reached = self.with_tail(|tail| {
            tail.ready(BEGIN_PATIENCE)?;
            let span = match self.log.begins(tail, wanted)? {
                Begins::There(span) => span,
                Begins::Anew { border, history } => {
                    let closed = self.log.cuts().issued.max(now).max(wanted.closed.next()).max(wanted.now);
                    self.log.issue(closed, border);
                    return Ok(LogReached {
                        incarnation: history,
                        slots,
                        from: border + POSITION,
                        to: border + POSITION,
                        closed,
                        begins: true,
                        branches: false,
                        behind: 0,
                    });
                }
            };
            let Batch { ended, closed } = self.log.read(tail, &span, wanted, (now, &position), sink)?;
            let cuts = self.log.cuts();
            let of_cut = cuts.last.iter().rev().find(|(at, _)| *at == closed).map(|(_, slots)| slots.clone());
            Ok(LogReached {
                incarnation: span.history,
                slots: of_cut.unwrap_or(slots),
                from: wanted.from,
                to: ended.to + POSITION,
                closed,
                begins: false,
                branches: span.history != wanted.incarnation,
                behind: span.border - ended.to,
            })
        })?;
        if reached.begins && reached.slots.is_empty() {
            self.refuse_where_slots_come()?;
        }
        Ok(reached)
    }

    fn stop_log(&self) -> Result<()> {
        self.log.stop();
        Ok(())
    }

    fn hold_log(&self, budget: Duration) -> Result<Held> {
        self.with_tail(|tail| tail.ready(Duration::ZERO))?;
        let (hold, held) = self.first_reading(budget)?;
        self.log.cuts().hold = Some(hold);
        self.with_tail(|tail| match tail.history() == held.position.history {
            true => Ok(held),
            false => Err(Error::conflict("the stream of the log has not come to the server's present history")),
        })
    }

    fn seal_log(&self, at: Timestamp) -> Result<Sealed> {
        let hold = self.log.cuts().hold.clone().ok_or_else(|| Error::conflict("a seal without a hold"))?;
        let shared = self.with_tail(|tail| Ok(tail.shared().clone()))?;
        self.second_reading(&hold, &shared)?;
        self.log.mark(&hold, at)?;
        Ok(Sealed { position: hold.position().clone() })
    }

    fn release_log(&self) -> Result<(Ownership, Duration)> {
        let hold = self.log.cuts().hold.take();
        let mut hold = hold.ok_or_else(|| Error::conflict("a release without a hold"))?;
        self.let_go(&mut hold)
    }
}
