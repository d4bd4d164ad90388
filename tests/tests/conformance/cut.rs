//! Hold, seal, release.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidemark_proto::{ErrorKind, Timestamp};

use crate::fixture::*;

const SHORT: Duration = Duration::from_millis(60);

pub(crate) fn hold_blocks_and_ends_by_itself(f: &Fixture) {
    let s = f.store();
    let before = commit(s, vec![put("a", "1")]);
    let begin = Instant::now();
    let held = s.hold(job(1), SHORT).unwrap();
    assert_eq!(held.position, s.describe().unwrap().position);
    assert!(held.max_timestamp >= before);
    let mut answer = s.commit(vec![put("a", "2")], Timestamp::ZERO);
    let (early, seen) = (answer.try_recv().is_ok(), value(s, "a", None));
    // A machine that took longer than the budget to come here has shown nothing.
    if begin.elapsed() < SHORT {
        assert!(!early, "acknowledged while held");
        assert_eq!(seen, Some(b"1".to_vec()), "visible while held");
    }
    if early {
        return;
    }
    // Nobody releases it.
    let at = answer.blocking_recv().unwrap().unwrap();
    assert!(begin.elapsed() >= SHORT);
    assert!(at > held.max_timestamp);
    assert_eq!(value(s, "a", None), Some(b"2".to_vec()));
    let (_, held_for) = s.release(job(1)).unwrap();
    assert_eq!(held_for, SHORT, "a hold that ended by itself was its budget long");
}

pub(crate) fn release_ends_a_hold(f: &Fixture) {
    let s = f.store();
    let _ = s.hold(job(1), BUDGET).unwrap();
    let mut answer = s.commit(vec![put("a", "1")], Timestamp::ZERO);
    let (_, none) = s.release(job(2)).unwrap();
    assert_eq!(none, Duration::ZERO);
    assert!(answer.try_recv().is_err(), "another job's release does nothing");
    let (ownership, held) = s.release(job(1)).unwrap();
    assert!(held > Duration::ZERO && held < BUDGET);
    assert_eq!(ownership.role, "primary");
    let _ = answer.blocking_recv().unwrap().unwrap();
    let _ = s.release(job(1)).unwrap();
    // A second hold replaces the first.
    let _ = s.hold(job(1), BUDGET).unwrap();
    let _ = s.hold(job(2), BUDGET).unwrap();
    assert_eq!(s.seal(job(1), Timestamp::new(START + 5, 0)).unwrap_err().kind(), ErrorKind::Conflict);
    let _ = s.release(job(2)).unwrap();
    let _ = commit(s, vec![put("a", "2")]);
}

pub(crate) fn a_write_voids_the_cut(f: &Fixture) {
    let s = f.store();
    for budget in [Duration::ZERO, Duration::from_millis(1)] {
        let held = s.hold(job(1), budget).unwrap();
        let _ = commit(s, vec![put("a", "1")]);
        let err = s.seal(job(1), Timestamp(held.max_timestamp.0 + 1000)).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Conflict);
        let _ = s.release(job(1)).unwrap();
    }
    assert_eq!(s.pins().unwrap(), vec![]);
}

pub(crate) fn an_expired_hold_still_seals_if_nothing_came(f: &Fixture) {
    let s = f.store();
    let _ = commit(s, vec![put("a", "1")]);
    // A commit counts as under way until its acknowledgement is out, which may be a moment after it was read here.
    let deadline = Instant::now() + Duration::from_secs(5);
    let (held, sealed) = loop {
        let held = s.hold(job(1), Duration::ZERO).unwrap();
        match s.seal(job(1), held.max_timestamp.next()) {
            Ok(sealed) => break (held, sealed),
            Err(e) => assert!(e.kind() == ErrorKind::Conflict && Instant::now() < deadline, "{e}"),
        }
        std::thread::yield_now();
    };
    assert_eq!(sealed.position, held.position);
}

pub(crate) fn seal_pins_and_binds_later_commits(f: &Fixture) {
    let s = f.store();
    let _ = commit(s, vec![put("a", "1")]);
    let held = s.hold(job(1), BUDGET).unwrap();
    let waiting = s.commit(vec![put("a", "2")], Timestamp::ZERO);
    // The coordinator's clock is ahead of this node's.
    let at = Timestamp::new(START + 20_000, 3);
    let sealed = s.seal(job(1), at).unwrap();
    assert_eq!(sealed.position, held.position);
    assert_eq!(s.seal(job(1), at).unwrap(), sealed, "asked again");
    assert_eq!(s.pins().unwrap(), vec![(format!("job:{}", job(1)), at)]);
    let _ = s.release(job(1)).unwrap();
    assert!(waiting.blocking_recv().unwrap().unwrap() > at);
    assert!(commit(s, vec![put("b", "1")]) > at);
    assert_eq!(state_at(s, at), state_of(&[(b"a", b"1")]));
    s.unpin(&format!("job:{}", job(1))).unwrap();
    s.unpin("not there").unwrap();
    assert_eq!(s.pins().unwrap(), vec![]);
}

pub(crate) fn seal_needs_the_own_hold(f: &Fixture) {
    let s = f.store();
    let at = Timestamp::new(START + 10, 0);
    assert_eq!(s.seal(job(1), at).unwrap_err().kind(), ErrorKind::Conflict);
    let last = commit(s, vec![put("a", "1")]);
    let _ = s.hold(job(1), BUDGET).unwrap();
    assert_eq!(s.seal(job(1), last.prev()).unwrap_err().kind(), ErrorKind::Request, "below a commit");
    let far = Timestamp::new(START + 3_600_000, 0);
    assert_eq!(s.seal(job(1), far).unwrap_err().kind(), ErrorKind::Request, "an hour ahead");
    assert_eq!(s.pins().unwrap(), vec![]);
    let _ = s.release(job(1)).unwrap();
}

/// Writers each write an ascending counter to two keys at once; every cut shows both equal, and just what its
/// position says.
pub(crate) fn cuts_under_load_are_consistent(f: &Fixture) {
    let (s, stop, sealed) = (f.store(), AtomicBool::new(false), AtomicU64::new(0));
    let cuts = std::thread::scope(|scope| {
        for w in 0..4u32 {
            let stop = &stop;
            let _ = scope.spawn(move || {
                for i in 0u32.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let v = i.to_be_bytes();
                    let _ = commit(s, vec![put(format!("l{w}"), v), put(format!("r{w}"), v)]);
                }
            });
        }
        let mut cuts = Vec::new();
        for n in 0..20 {
            let held = s.hold(job(n), BUDGET).unwrap();
            let at = held.max_timestamp.next();
            let got = s.seal(job(n), at).unwrap();
            assert_eq!(got.position, held.position);
            let _ = s.release(job(n)).unwrap();
            cuts.push((at, held.position.offset));
            let _ = sealed.fetch_add(1, Ordering::SeqCst);
        }
        stop.store(true, Ordering::SeqCst);
        cuts
    });
    for (at, position) in cuts {
        let state = state_at(s, at);
        let mut commits = 0;
        for w in 0..4 {
            let read = |side: &str| value(s, format!("{side}{w}"), Some(at));
            assert_eq!(read("l"), read("r"));
            commits += read("l").map_or(0, |v| u64::from(u32::from_be_bytes(v.try_into().unwrap())) + 1);
        }
        assert_eq!(commits, position, "{} records at {at}", state.len());
    }
}
