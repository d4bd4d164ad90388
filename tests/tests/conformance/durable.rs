//! What the embedded engine keeps over restarts and crashes. A crash is a copy of the directory of an open store.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidemark_agent::engine::Engine;
use tidemark_agent::engine::embedded::Embedded;
use tidemark_proto::{ErrorKind, SlotSet, Timestamp, slot_of};

use crate::fixture::*;
use crate::restore::{load, sample};

/// Attempts at a copy during which no file came or went.
const COPIES: usize = 100;

/// Copies a folder; answers the files' paths in it. A file that goes away meanwhile is an error.
fn copy(from: &Path, to: &Path, files: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target, files)?;
        } else {
            let _ = std::fs::copy(entry.path(), target)?;
            let _ = files.insert(entry.path());
        }
    }
    Ok(())
}

/// The files below a folder.
fn list(dir: &Path, files: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            let _ = files.insert(path);
        }
    }
    Ok(())
}

/// The store as a crash right now would leave it. A crash stops everything at one moment and a copy does not: it counts
/// when no file came or went meanwhile (the store tidies up in the background).
fn crash(dir: &Path) -> tempfile::TempDir {
    for _ in 0..COPIES {
        let after = tempfile::tempdir().unwrap();
        let (mut copied, mut there) = (BTreeSet::new(), BTreeSet::new());
        let done = copy(dir, after.path(), &mut copied).and_then(|()| list(dir, &mut there));
        if done.is_ok() && copied == there {
            return after;
        }
    }
    panic!("the files of the store never stood still");
}

fn data_dirs(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("data")).unwrap().count()
}

#[test]
fn commits_pins_and_positions_survive_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), SlotSet::all()).unwrap();
    let mut last = Timestamp::ZERO;
    for i in 0..100 {
        last = commit(store.as_ref(), vec![put(format!("k{i}"), "v"), put("same", format!("{i}"))]);
    }
    let held = store.hold(job(1), BUDGET).unwrap();
    let at = Timestamp::new(START + 30_000, 0);
    let _ = store.seal(job(1), at).unwrap();
    let (before, state) = (store.describe().unwrap(), newest(store.as_ref()));

    let copy = crash(dir.path());
    let after = open(copy.path(), SlotSet::all()).unwrap();
    assert_eq!(after.describe().unwrap(), before);
    assert_eq!(newest(after.as_ref()), state);
    assert_eq!(state_at(after.as_ref(), last), state);
    assert_eq!(after.pins().unwrap(), vec![(format!("job:{}", job(1)), at)]);
    assert_eq!(after.seal(job(1), at).unwrap_err().kind(), ErrorKind::Conflict, "a reading ends with the process");
    // The clock of the new process stands at START, the cut is above it.
    assert!(commit(after.as_ref(), vec![put("n", "")]) > at);
    let now = after.hold(job(2), Duration::ZERO).unwrap();
    assert_eq!(now.position.offset, held.position.offset + 1);
    after.close();
    after.close();
    assert_eq!(try_commit(after.as_ref(), vec![put("n", "")]).unwrap_err().kind(), ErrorKind::Cancelled);
    drop(after);
    let again = open(copy.path(), SlotSet::all()).unwrap();
    assert_eq!(again.describe().unwrap().position, now.position);
}

#[test]
fn the_safe_point_survives() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let options = |retention| {
        let hlc = tidemark_common::clock::Hlc::new(clock.clone());
        tidemark_agent::engine::embedded::Options {
            retention,
            ..tidemark_agent::engine::embedded::Options::new(SlotSet::all(), hlc)
        }
    };
    let store = Embedded::open(dir.path(), options(Duration::ZERO)).unwrap();
    let first = commit(store.as_ref(), vec![put("a", "1")]);
    let second = commit(store.as_ref(), vec![put("a", "2")]);
    store.pin("p", second, BUDGET).unwrap();
    drop(store);
    let store = Embedded::open(dir.path(), options(Duration::ZERO)).unwrap();
    // The wall clock stands at the first commit: nothing is older than it.
    assert!(store.collect().unwrap().safe_point <= first);
    assert_eq!(value(store.as_ref(), "a", Some(first)), Some(b"1".to_vec()));
    drop(store);
    let store = Embedded::open(dir.path(), options(Duration::from_secs(600))).unwrap();
    assert_eq!(value(store.as_ref(), "a", None), Some(b"2".to_vec()));
}

#[test]
fn close_commits_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), SlotSet::all()).unwrap();
    let _ = store.hold(job(1), BUDGET).unwrap();
    let answers: Vec<_> = (0..50)
        .map(|i| {
            tidemark_agent::kv::KvStore::commit(store.as_ref(), vec![put(format!("{i}"), "v")], Timestamp::ZERO)
        })
        .collect();
    store.close();
    for answer in answers {
        let _ = answer.blocking_recv().unwrap().unwrap();
    }
    drop(store);
    assert_eq!(newest(open(dir.path(), SlotSet::all()).unwrap().as_ref()).len(), 50);
}

#[test]
fn a_second_opener_and_other_slots_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let slot = slot_of(b"a");
    let store = open(dir.path(), SlotSet::all()).unwrap();
    let err = open(dir.path(), SlotSet::all()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict, "{err}");
    drop(store);
    // Empty: any slots will do.
    let store = open(dir.path(), SlotSet::range(slot, slot)).unwrap();
    let _ = commit(store.as_ref(), vec![put("a", "1")]);
    drop(store);
    let err = open(dir.path(), SlotSet::all().minus(&SlotSet::range(slot, slot))).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Config);
    assert!(err.message().contains(&format!("slot {slot}")), "{err}");
    let store = open(dir.path(), SlotSet::all()).unwrap();
    assert_eq!(store.describe().unwrap().ownership.slots, SlotSet::all());
    assert_eq!(newest(store.as_ref()).len(), 1);
}

#[test]
fn a_restore_goes_on_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), SlotSet::all()).unwrap();
    let _ = commit(store.as_ref(), vec![put("old", "1")]);
    let (one, two) = (sample(500, "one"), sample(3000, "two"));
    let loader = store.restore(job(1), SlotSet::all(), true).unwrap();
    let _ = load(loader.as_ref(), 1, &one);
    let _ = load(loader.as_ref(), 4, &State::new());
    let mut part = loader.part(2).unwrap();
    for ((slot, key), value) in two.iter().take(2000) {
        put_record(part.as_mut(), tidemark_agent::engine::RecordRef { slot: *slot, key, meta: &[], value })
            .unwrap();
    }
    let copy = crash(dir.path());

    let store = open(copy.path(), SlotSet::all()).unwrap();
    assert_eq!(store.describe().unwrap().state, "restoring");
    let err = try_commit(store.as_ref(), vec![put("a", "")]).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict);
    assert_eq!(store.restore(job(2), SlotSet::all(), true).map(|_| ()).unwrap_err().kind(), ErrorKind::Conflict);
    let loader = store.restore(job(1), SlotSet::all(), true).unwrap();
    let loaded: Vec<_> = loader.loaded().unwrap().into_iter().map(|(n, s, d)| (n, s == d, d)).collect();
    assert_eq!(loaded, vec![(1, true, digest(&one)), (4, true, digest(&State::new()))]);
    assert_eq!(loader.verify().unwrap(), digest(&one));
    let _ = load(loader.as_ref(), 2, &two);
    let want = digest(&one).plus(digest(&two));
    assert_eq!(loader.verify().unwrap(), want);
    let before_switch = crash(copy.path());
    let incarnation = loader.commit(Timestamp::new(START, 0)).unwrap();
    drop(loader);
    assert_eq!(data_dirs(copy.path()), 1, "the old data is gone");
    let after_switch = crash(copy.path());

    // The old data whole, or the new one.
    let old = open(before_switch.path(), SlotSet::all()).unwrap();
    assert_eq!(old.describe().unwrap().state, "restoring");
    old.restore(job(1), SlotSet::all(), true).unwrap().abort().unwrap();
    assert_eq!(newest(old.as_ref()), state_of(&[(b"old", b"1")]));
    let new = open(after_switch.path(), SlotSet::all()).unwrap();
    assert_eq!(new.describe().unwrap().incarnation, incarnation);
    assert_eq!(digest(&newest(new.as_ref())), want);
}

/// The files of both sides of the switch, put together as crashes at each step leave them.
#[test]
fn a_crash_around_the_switch_leaves_one_side() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), SlotSet::all()).unwrap();
    let _ = commit(store.as_ref(), vec![put("old", "1")]);
    let state = sample(100, "new");
    let loader = store.restore(job(1), SlotSet::all(), true).unwrap();
    let _ = load(loader.as_ref(), 1, &state);
    let before = crash(dir.path());
    let _ = loader.commit(Timestamp::new(START, 0)).unwrap();
    let after = crash(dir.path());

    // Renamed, but the marker and the old directory are still there.
    let renamed = tempfile::tempdir().unwrap();
    copy(before.path(), renamed.path(), &mut BTreeSet::new()).unwrap();
    copy(&after.path().join("data"), &renamed.path().join("data"), &mut BTreeSet::new()).unwrap();
    let _ = std::fs::copy(after.path().join("CURRENT"), renamed.path().join("CURRENT")).unwrap();
    assert!(renamed.path().join("RESTORE").exists());
    let new = open(renamed.path(), SlotSet::all()).unwrap();
    assert_eq!(new.describe().unwrap().state, "available");
    assert_eq!(newest(new.as_ref()), state);
    assert_eq!(data_dirs(renamed.path()), 1);
    assert!(!renamed.path().join("RESTORE").exists());

    // Aborted: the marker is gone, the staged directory still there.
    std::fs::remove_file(before.path().join("RESTORE")).unwrap();
    assert_eq!(data_dirs(before.path()), 2);
    let old = open(before.path(), SlotSet::all()).unwrap();
    assert_eq!(newest(old.as_ref()), state_of(&[(b"old", b"1")]));
    assert_eq!(data_dirs(before.path()), 1);
}
