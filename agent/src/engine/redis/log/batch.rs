//! Reading a stretch of the log back: where it begins, up to which cut it goes, and which timestamps it gets.

use std::time::Instant;

use tidemark_proto::wire::control::Position;
use tidemark_proto::{Error, Incarnation, Result, Timestamp};

use super::read::{Ended, MAX_COMMAND, Part, Room, Source, entries};
use super::tail::Tail;
use super::{POSITION, RedisLog, history_id, spool};
use crate::engine::{LogSink, LogWanted};

/// Whether a place of a history lies before a cut. A log must not begin there: its first commands would get later times than the
/// cut, and be there twice.
fn lies_before(offset: u64, history: &str, cut: &Position) -> bool {
    cut.history == history && offset < cut.offset
}

/// What a read found in the spool.
pub(super) struct Span {
    pub(super) files: Vec<spool::SpoolFile>,
    /// Offset at which the read ends at the latest.
    pub(super) end: u64,
    /// The cut there, if it is one.
    pub(super) mark: Option<(u64, Timestamp)>,
    pub(super) border: u64,
    pub(super) history: Incarnation,
    pub(super) held: bool,
}

/// Where a read begins.
pub(super) enum Begins {
    /// Where it was asked to.
    There(Span),
    /// Now, in this history.
    Anew { border: u64, history: Incarnation },
}

impl RedisLog {
    pub(super) fn begins(&self, tail: &Tail, wanted: &LogWanted) -> Result<Begins> {
        let asked = |name: &str| history_id(name) == wanted.incarnation;
        let (held, cut) = {
            let cuts = self.cuts();
            (cuts.barrier.is_some_and(|until| until > Instant::now()), cuts.at.clone())
        };
        let from = wanted.from.saturating_sub(POSITION);
        tail.with_spool(wanted.spool, |spool| {
            let history = history_id(spool.history());
            if wanted.from == 0 || !spool.holds(asked, from) {
                let border = spool.border();
                if cut.is_some_and(|cut| lies_before(border, spool.history(), &cut)) {
                    return Err(Error::retry("the stream of the log has not come to the last cut yet"));
                }
                return Ok(Begins::Anew { border, history });
            }
            spool.drop_below(wanted.durable.saturating_sub(POSITION));
            let mark = spool.next_mark(from, wanted.closed);
            let end = match mark {
                Some((offset, _)) => offset,
                // Until the cut is known nothing gets a timestamp.
                None if held => from,
                None => spool.border(),
            };
            let files = spool.files_from(from);
            Ok(Begins::There(Span { files, end, mark, border: spool.border(), history, held }))
        })
    }
}

/// What a read of the spool came to.
pub(super) struct Batch {
    pub(super) ended: Ended,
    pub(super) closed: Timestamp,
}

impl RedisLog {
    /// Reads a span behind `offset` and gives its entries out. `now` is a time by which all of the stream up to `position` was there.
    pub(super) fn read(
        &self,
        tail: &Tail,
        span: &Span,
        wanted: &LogWanted,
        (now, position): (Timestamp, &Position),
        sink: &mut dyn LogSink,
    ) -> Result<Batch> {
        let offset = wanted.from.saturating_sub(POSITION);
        let source = Source { commands: tail.commands()?, relative: tail.sends_relative() };
        let (after, ceiling) = (wanted.closed.max(Timestamp(1)), span.mark.map(|(_, at)| at));
        let mut found = None;
        let mut room = self.room.lock().expect("room");
        let reach = span.end.min(span.border);
        // One command, or one transaction, may be more than what is asked for.
        for (most, is_last) in [(wanted.most, false), (MAX_COMMAND, true)] {
            let Room { stretch, found: commands } = &mut *room;
            stretch.read(&span.files, (offset, span.end), most)?;
            // The rest of a transaction that goes on behind the border comes with the next read.
            let divide = if stretch.end() < reach { is_last } else { span.mark.is_some() };
            let part = Part { from: offset, after, ceiling, divide };
            let ended = entries(stretch, &part, &source, commands, sink)?;
            if ended.moving && ended.to == offset {
                tail.forget();
                return Err(Error::unsupported(
                    "slots move between nodes as a whole (CLUSTER SYNCSLOTS): the log begins anew behind it, and a backup is \
                     taken when they have come",
                ));
            }
            // A cut may lie behind what has come.
            if ended.to > offset || reach <= offset || (ended.waits && stretch.end() >= reach) {
                found = Some(ended);
                break;
            }
        }
        room.shrink();
        drop(room);
        let Some(ended) = found else {
            tail.forget();
            return Err(Error::unsupported(format!(
                "a command of over {MAX_COMMAND} bytes is more than the log takes: it begins anew behind it"
            )));
        };
        let closed = match span.mark.filter(|_| ended.to == span.end) {
            Some((_, at)) if ended.last <= at => at,
            Some(_) => return Err(Error::bug("a cut below what was logged before it")),
            // Nothing more comes at or below the present.
            None if ended.to == span.border && !span.held && tail.has_come_to(position) => ended.last.max(now),
            None => ended.last,
        };
        self.issue(closed, ended.to);
        Ok(Batch { ended, closed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_begins_behind_the_last_cut() {
        let cut = Position { history: "a".into(), offset: 100 };
        assert!(lies_before(99, "a", &cut) && !lies_before(100, "a", &cut));
        // Offsets of another history say nothing.
        assert!(!lies_before(99, "b", &cut));
    }
}
