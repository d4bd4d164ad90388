//! What the embedded store keeps for the log is bounded, also when it is opened anew and nobody asks.

use std::sync::Arc;
use std::time::Duration;

use tidemark_agent::engine::embedded::{Embedded, Options};
use tidemark_agent::engine::{Engine, LogReached, LogSink, LogWanted};
use tidemark_common::clock::Hlc;
use tidemark_proto::stored::log::LogEntry;
use tidemark_proto::{Incarnation, Result, SlotSet, Timestamp};

use crate::fixture::*;

const SPOOL: u64 = 1 << 20;
/// Bytes of one write.
const LARGE: usize = 100_000;

#[derive(Default)]
struct Count(usize);

impl LogSink for Count {
    fn entry(&mut self, _: LogEntry<'_>) -> Result<()> {
        self.0 += 1;
        Ok(())
    }

    fn restart(&mut self) {
        self.0 = 0;
    }
}

fn read(s: &Embedded, now: u64, from: (u64, Incarnation)) -> (LogReached, usize) {
    let wanted = LogWanted {
        incarnation: from.1,
        from: from.0,
        durable: from.0,
        now: Timestamp::new(now, 0),
        most: 64 << 20,
        spool: SPOOL,
        closed: Timestamp::ZERO,
        takes_over: false,
    };
    let mut count = Count::default();
    let reached = s.log().unwrap().read_log(&wanted, &mut count).unwrap();
    (reached, count.0)
}

fn overwrite(s: &Arc<Embedded>, times: usize) {
    for n in 0..times {
        let _ = commit(s.as_ref(), vec![put("k", vec![n as u8; LARGE])]);
    }
}

#[test]
fn a_store_that_is_opened_anew_keeps_no_more_for_the_log_than_it_may() {
    let (clock, dir) = (clock(), tempfile::tempdir().unwrap());
    let open = || {
        let mut options = Options::new(SlotSet::all(), Hlc::new(clock.clone()));
        options.retention = Duration::ZERO;
        Embedded::open(dir.path(), options).unwrap()
    };
    let s = open();
    let (begun, _) = read(&s, clock.now(), (0, Incarnation::default()));
    let from = (begun.to, begun.incarnation);
    overwrite(&s, 6);
    drop(s);

    // Within bounds, with what came before and since; every version is there.
    let s = open();
    overwrite(&s, 3);
    clock.turn(Duration::from_secs(1));
    assert_eq!(s.collect().unwrap().versions, 0);
    let (reached, entries) = read(&s, clock.now(), from);
    assert_eq!((reached.begins, entries), (false, 9));

    // What is durable counts no more.
    let to = (reached.to, from.1);
    overwrite(&s, 9);
    assert_eq!(read(&s, clock.now(), to).1, 9);
    drop(s);
    let s = open();
    let collected = |s: &Arc<Embedded>| {
        clock.turn(Duration::from_secs(1));
        let _ = (s.collect().unwrap(), s.collect().unwrap());
        s.describe().unwrap().records
    };
    assert_eq!(collected(&s), 10, "the last one that is durable, and those behind it");
    overwrite(&s, 1);
    let (reached, entries) = read(&s, clock.now(), to);
    assert_eq!((reached.begins, entries), (false, 10), "1.0 of 1.05 MB");
    drop(s);

    // Nobody asks any more. More than the spool takes was kept before the store was opened, or has come since: it lets go.
    for (before, since) in [(12, 0), (8, 7)] {
        let s = open();
        let (begun, _) = read(&s, clock.now(), (0, Incarnation::default()));
        overwrite(&s, before);
        drop(s);
        let s = open();
        overwrite(&s, since);
        assert_eq!(collected(&s), 1, "of {before} versions and {since}");
        let (reached, _) = read(&s, clock.now(), (begun.to, begun.incarnation));
        assert!(reached.begins && reached.from > begun.to, "a gap, and told");
    }
}
