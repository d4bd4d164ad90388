//! Pins, the safe point, collection.

use std::time::Duration;

use tidemark_proto::ErrorKind;

use crate::fixture::*;

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn pins_survive_collection(f: &Fixture) {
    let s = f.store();
    let t1 = commit(s, vec![put("a", "1"), put("b", "1")]);
    s.pin("backup", t1, HOUR * 2).unwrap();
    s.pin("short", t1, HOUR / 2).unwrap();
    f.pass(HOUR);
    let _ = commit(s, vec![put("a", "2"), delete("b")]);
    f.pass(HOUR / 2);
    f.collect();
    assert_eq!(s.pins().unwrap(), vec![("backup".to_owned(), t1)], "the short lease has ended");
    assert_eq!(state_at(s, t1), state_of(&[(b"a", b"1"), (b"b", b"1")]));
    s.unpin("backup").unwrap();
    f.collect();
    assert_eq!(s.snapshot(t1).map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(newest(s), state_of(&[(b"a", b"2")]));
}

pub(crate) fn too_old_is_refused(f: &Fixture) {
    let s = f.store();
    let t1 = commit(s, vec![put("a", "1")]);
    let t2 = commit(s, vec![put("a", "2")]);
    f.pass(HOUR);
    f.collect();
    for err in [
        s.snapshot(t1).map(|_| ()).unwrap_err(),
        s.get(b"a", Some(t1)).map(|_| ()).unwrap_err(),
        s.scan(b"", &[], Some(t2), 1, 1).map(|_| ()).unwrap_err(),
        s.pin("p", t2, HOUR).unwrap_err(),
    ] {
        assert_eq!(err.kind(), ErrorKind::NotFound);
        assert!(err.message().contains("TooOld"), "{err}");
    }
    assert_eq!(value(s, "a", None), Some(b"2".to_vec()), "the newest stays readable");
    let t3 = commit(s, vec![put("a", "3")]);
    let snapshot = s.snapshot(t3).unwrap();
    f.pass(HOUR);
    f.collect();
    if s.describe().unwrap().changes_since {
        let all = tidemark_agent::engine::ScanRange::slots(tidemark_proto::SlotSet::all());
        let err = snapshot.changes(t1, &all, &mut |_| Ok(std::ops::ControlFlow::Continue(()))).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::NotFound);
    }
}

/// What can still be read is the same before and after; a snapshot taken before stays whole.
pub(crate) fn collection_changes_nothing_readable(f: &Fixture) {
    let s = f.store();
    let mut times = Vec::new();
    for round in 0..40u32 {
        let key = |i: u32| format!("{{h{}}}k{i}", i % 3);
        let writes = (0..30).filter(|i| (i + round) % 4 != 0);
        let writes =
            writes.map(|i| if (i * round) % 5 == 0 { delete(key(i)) } else { put(key(i), round.to_be_bytes()) });
        times.push(commit(s, writes.collect()));
        f.pass(Duration::from_secs(60));
    }
    let before: Vec<_> = times.iter().map(|t| state_at(s, *t)).collect();
    let early = s.snapshot(times[0]).unwrap();
    f.collect();
    f.collect();
    let all = tidemark_agent::engine::ScanRange::slots(tidemark_proto::SlotSet::all());
    assert_eq!(dump(early.as_ref(), &all), before[0]);
    let (mut gone, mut kept) = (0, 0);
    for (at, want) in times.iter().zip(before) {
        match s.snapshot(*at) {
            Ok(snapshot) => {
                assert_eq!(dump(snapshot.as_ref(), &all), want);
                kept += 1;
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NotFound);
                gone += 1;
            }
        }
    }
    assert_eq!((gone, kept), (30, 10), "ten minutes of one commit each");
    f.pass(HOUR);
    f.collect();
    let d = s.describe().unwrap();
    assert_eq!(d.records, newest(s).len() as u64, "the estimate is exact once all is collected");
}
