//! Asking a server for its base before it may begin, so that its own wait passes meanwhile.
//!
//! A server that sends bases without a file waits `repl-diskless-sync-delay` (5 s by default) for other replicas before it
//! forks. Where bases are taken one after the other, each would wait anew. So a node that comes next asks early, and the
//! fork is put off until it may begin. Rules, each tried on Redis 7.0 and Valkey 8.0:
//! - the server counts from when a waiting replica last said something: a `REPLCONF ACK` puts the fork off, for as long as
//!   wanted, and nothing is started by it. A replica that leaves before the fork has cost nothing either;
//! - with more than one replica waiting, the one that has been silent for longest decides. So several connections wait,
//!   their times spread evenly: when the base may begin, the oldest one stays, and little of the wait is left;
//! - a fork that begins before it may is another replica's, or this machine was too busy to put it off: the link leaves, so
//!   that a fork that was for it alone ends at once, and the base is asked for in its turn, as without all this.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::Position;
use tidemark_proto::{Error, Result};

use super::Redis;
use super::conn::{ANSWER_TIMEOUT, Connection};
use super::link::{Link, Shared};
use super::settings::Settings;
use super::sync::{Sync, acknowledge, answer, ask};

/// The fork is put off when so much of the server's wait is left: it counts in whole seconds, which makes it up to one
/// second early, and this machine may be busy.
const MARGIN: Duration = Duration::from_millis(1500);
/// Where the server waits no longer than that, asking early would save nothing to speak of.
const LEAST_DELAY: Duration = Duration::from_secs(3);
/// Connections that wait at a time.
const TURNS: u32 = 3;
/// The connections are looked after this often.
const LOOK: Duration = Duration::from_millis(100);
/// Time for bytes that have arrived to be read.
const POLL: Duration = Duration::from_millis(1);

/// The settings of a server that say how long it waits before it forks.
const SETTINGS: &str = "repl-diskless-sync*";

/// How long the server waits before it forks for a replica; `None` where asking early is of no use, or nobody may know.
fn delay(connection: &mut Connection) -> Result<Option<Duration>> {
    Ok(Settings::read(connection, &[SETTINGS])?.as_ref().and_then(delay_of))
}

fn delay_of(settings: &Settings) -> Option<Duration> {
    // With a number of replicas that it waits for, the connections of the agent alone could make it begin.
    let counts = settings.get("repl-diskless-sync-max-replicas").is_some_and(|most| most != "0");
    if !settings.is("repl-diskless-sync", "yes") || counts {
        return None;
    }
    let seconds = settings.get("repl-diskless-sync-delay")?.parse().ok()?;
    Some(Duration::from_secs(seconds)).filter(|delay| *delay >= LEAST_DELAY)
}

/// A connection on which a base was asked for.
struct Asked {
    connection: Connection,
    /// When the server last heard of it.
    since: Instant,
}

impl Asked {
    /// Whether the server has begun to answer; an error where it has left.
    fn is_answered(&mut self) -> Result<bool> {
        use std::io::{
            BufRead,
            ErrorKind::{Interrupted, TimedOut, WouldBlock},
        };
        self.connection.set_timeout(POLL)?;
        let reader = self.connection.reader();
        let found = loop {
            let lines = match reader.fill_buf() {
                Ok([]) => break Err(Error::retry("the server closed the link")),
                // While it waits it sends empty lines.
                Ok(bytes) => bytes.iter().take_while(|b| **b == b'\n').count(),
                Err(e) if matches!(e.kind(), WouldBlock | TimedOut | Interrupted) => break Ok(false),
                Err(e) => break Err(Error::retry("the link to the server ended").with_source(e)),
            };
            if lines == 0 {
                break Ok(true);
            }
            reader.consume(lines);
        };
        self.connection.set_timeout(ANSWER_TIMEOUT)?;
        found
    }
}

/// Connections that wait, the one first that the server has not heard of for longest.
struct Waiting<'a> {
    asked: VecDeque<Asked>,
    /// How long one may wait before the fork is put off.
    life: Duration,
    join: &'a dyn Fn() -> Result<Connection>,
}

impl Waiting<'_> {
    /// Looks after the connections. Answers one on which a base begins.
    fn look(&mut self) -> Result<Option<Asked>> {
        for n in 0..self.asked.len() {
            if self.asked[n].is_answered()? {
                return Ok(self.asked.remove(n));
            }
        }
        if self.asked.front().is_some_and(|oldest| oldest.since.elapsed() >= self.life)
            && let Some(mut oldest) = self.asked.pop_front()
        {
            acknowledge(&mut oldest.connection)?;
            self.asked.push_back(Asked { since: Instant::now(), ..oldest });
        }
        let apart = self.life / TURNS;
        let due = self.asked.back().is_none_or(|newest| newest.since.elapsed() >= apart);
        if due && self.asked.len() < TURNS as usize {
            let mut connection = (self.join)()?;
            ask(&mut connection, None)?;
            self.asked.push_back(Asked { connection, since: Instant::now() });
        }
        Ok(None)
    }
}

/// Waits for the word that the base may begin; answers the connection that it comes on. `None` where it is to be asked for anew. An
/// error before the word: nobody waits at the server any more.
pub(super) fn wait(
    shared: &Shared,
    delay: Duration,
    join: &dyn Fn() -> Result<Connection>,
) -> Result<Option<Connection>> {
    let mut waiting = Waiting { asked: VecDeque::new(), life: delay.saturating_sub(MARGIN), join };
    let found = loop {
        let found = waiting.look();
        // The word may have come since.
        if shared.early().is_none() || !matches!(found, Ok(None)) {
            break found;
        }
        shared.rest_before_word(LOOK);
        shared.go_on()?;
    };
    if shared.waits_no_more() {
        return Err(match found {
            Err(e) => e.context("asking for the base early"),
            Ok(_) => Error::retry("the server answered before the base was wanted"),
        });
    }
    // A link that breaks here breaks before the base has begun: it is asked for as if nobody had waited.
    let oldest = match found {
        Ok(begun) => begun.or_else(|| waiting.asked.pop_front()),
        Err(e) => return Ok(anew(&e)),
    };
    Ok(oldest.map(|oldest| {
        tracing::info!(waited_ms = oldest.since.elapsed().as_millis() as u64, "the base may begin");
        oldest.connection
    }))
}

/// Where the stream of the base begins that was asked for on this connection; `None` where it is to be asked for anew.
pub(super) fn begin(
    mut connection: Connection,
    waits: &mut dyn FnMut() -> Result<()>,
) -> Option<(Connection, Position)> {
    match answer(&mut connection, waits) {
        Ok(Sync::Full(position)) => Some((connection, position)),
        Ok(Sync::Continue(_)) => None,
        Err(e) => anew(&e),
    }
}

fn anew<T>(cause: &Error) -> Option<T> {
    tracing::info!(error = %cause.report(), "the base that was asked for early is asked for anew");
    None
}

impl Redis {
    /// Asks for the base of a job, which may not begin yet, and waits for the word or for `cancel`. Returns at once where that
    /// saves nothing.
    pub(super) fn ask_early(&self, job: JobId, cancel: &(dyn Fn() -> bool + std::marker::Sync)) -> Result<()> {
        // A base through the file begins at once, and so does one of a server whose wait may be set to nothing.
        if self.options.base_through_file {
            return Ok(());
        }
        let tunes = |c: &mut Connection| Ok(self.options.base_at_once && self.tuning.is_allowed(c)?);
        if self.ask(tunes)? {
            return Ok(());
        }
        let Some(delay) = self.ask(delay)? else { return Ok(()) };
        // A job that is over must not take the place of the one that came after it.
        if cancel() {
            return Err(Error::cancelled("the base is not needed any more"));
        }
        let shared = self.job_or_new(job);
        let waits: Arc<Shared> = {
            // Whoever holds it takes the base.
            let Ok(mut this) = shared.try_lock() else { return Ok(()) };
            if this.link.is_some() {
                return Ok(());
            }
            let view = self.admit()?;
            let link = self.link(&mut this, &view, Some(delay))?;
            tracing::info!(delay_s = delay.as_secs(), "asking for the base before it may begin");
            this.link.insert(link).shared().clone()
        };
        while waits.before_word() {
            if cancel() {
                let mut this = shared.lock().expect("job");
                if this.link.as_ref().is_some_and(Link::waits) {
                    this.link = None;
                }
                return Err(Error::cancelled("the base is not needed any more"));
            }
            waits.rest_before_word(LOOK);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wait_that_is_worth_it_is_begun_early() {
        let of = |text: &str| delay_of(&Settings::of(text)).map(|d| d.as_secs());
        let on = "repl-diskless-sync yes repl-diskless-sync-delay";
        assert_eq!(of(&format!("{on} 5")), Some(5));
        assert_eq!(of(&format!("{on} 5 repl-diskless-sync-max-replicas 0")), Some(5));
        assert_eq!(of(&format!("{on} 5 repl-diskless-sync-max-replicas 2")), None);
        assert_eq!(of(&format!("{on} 2")), None);
        assert_eq!(of(&format!("{on} 0")), None);
        assert_eq!(of("repl-diskless-sync no repl-diskless-sync-delay 5"), None);
        assert_eq!(of("repl-diskless-sync yes"), None);
    }
}
