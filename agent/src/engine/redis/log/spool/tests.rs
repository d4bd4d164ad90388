//! Spools over restarts, torn ends and full disks of their own.

use std::collections::HashSet;

use super::super::super::resp::put_request;
use super::super::read::Stretch;
use super::files::BORDER_EVERY;
use super::*;

const DATA: Incarnation = Incarnation::from_u128(7);
const OLD: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const NEW: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn command(words: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    put_request(&mut out, &words.iter().map(|w| w.as_bytes()).collect::<Vec<_>>());
    out
}

fn begin(dir: &Path) -> Spool {
    Spool::begin(dir, DATA, (OLD, 100), 0).unwrap()
}

fn whole(spool: &Spool, from: u64) -> Vec<u8> {
    let mut stretch = Stretch::default();
    stretch.read(&spool.files_from(from), (from, spool.border()), u64::MAX).unwrap();
    stretch.behind(from).to_vec()
}

#[test]
fn what_was_appended_is_read_back_also_by_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spool");
    let mut spool = begin(&path);
    let commands = [command(&["SELECT", "3"]), command(&["SET", "a", "1"]), command(&["PING"])].concat();
    let (one, two) = commands.split_at(40);
    let first = spool.append(one, 5).unwrap();
    assert!(first.moved.is_some() && !first.asked);
    let _ = spool.append(two, 6).unwrap();
    let border = 100 + commands.len() as u64;
    spool.mark(border, Timestamp(77)).unwrap();
    spool.renamed(NEW).unwrap();
    let _ = spool.append(b"*1\r\n$4\r\nPI", 7).unwrap();
    assert_eq!((spool.border(), spool.position()), (border, border + 10), "a command that is not whole");
    drop(spool);
    assert!(Spool::reopen(&path, Incarnation::from_u128(8)).unwrap().is_none(), "of other data");
    let mut again = Spool::reopen(&path, DATA).unwrap().expect("a spool");
    assert_eq!((again.start(), again.border(), again.position()), (100, border, border));
    assert_eq!((again.history(), again.next_mark(100, Timestamp(5))), (NEW, Some((border, Timestamp(77)))));
    assert_eq!(again.next_mark(100, Timestamp(77)), None);
    assert!(again.holds(|name| name == OLD, 100) && again.holds(|name| name == NEW, border));
    assert!(!again.holds(|name| name == OLD, 99) && !again.holds(|name| name == "c", 100));
    let more = command(&["SET", "b", "2"]);
    let _ = again.append(&more, 9).unwrap();
    assert_eq!(whole(&again, 100), [commands, more].concat());
    // The database is known at the begin of every file.
    assert_eq!(again.files_from(border).first().map(|f| (f.start, f.border_before(border).db)), Some((border, 3)));
}

#[test]
fn a_torn_end_is_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spool");
    let mut spool = begin(&path);
    let (one, two) = (command(&["SET", "a", "1"]), command(&["SET", "b", "2"]));
    let _ = spool.append(&one, 5).unwrap();
    let kept = std::fs::metadata(&spool.files[0].path).unwrap().len();
    let _ = spool.append(&two, 6).unwrap();
    let file = spool.files[0].path.clone();
    drop(spool);
    let whole_len = std::fs::metadata(&file).unwrap().len();
    let bytes = std::fs::read(&file).unwrap();
    for len in kept..whole_len {
        let copy = dir.path().join(format!("copy-{len}"));
        std::fs::create_dir(&copy).unwrap();
        std::fs::write(copy.join(file.file_name().unwrap()), &bytes[..len as usize]).unwrap();
        let again = Spool::reopen(&copy, DATA).unwrap().expect("a spool");
        assert_eq!((again.border(), whole(&again, 100)), (100 + one.len() as u64, one.clone()), "cut at {len}");
    }
}

#[test]
fn files_are_ended_and_dropped_and_a_full_spool_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spool");
    let mut spool = begin(&path);
    let large = command(&["SET", "a", &"x".repeat(3 << 20)]);
    let mut all = Vec::new();
    for n in 0..16 {
        // In pieces that end in the middle of commands.
        all.extend_from_slice(&large);
        let from = if n == 0 { 0 } else { all.len() - large.len() - 1000 };
        let _ = spool.append(&all[from..all.len() - 1000], n).unwrap();
    }
    let _ = spool.append(&all[all.len() - 1000..], 99).unwrap();
    assert_eq!(spool.border(), 100 + all.len() as u64);
    assert!(spool.files.len() >= 3 && spool.bytes() == all.len() as u64, "{} files", spool.files.len());
    let middle = spool.files[1].start;
    assert_eq!(whole(&spool, 100).len(), all.len());
    assert!(whole(&spool, 100) == all, "the same bytes");
    spool.drop_below(middle);
    assert_eq!((spool.start(), spool.bytes()), (middle, spool.border() - middle));
    assert!(whole(&spool, middle) == all[(middle - 100) as usize..], "the rest is there");
    let there = std::fs::read_dir(&path).unwrap().count();
    assert_eq!(there, spool.files.len() + 1, "one is kept to be written over");
    spool.forget().unwrap();
    assert_eq!((spool.start(), spool.bytes(), std::fs::read_dir(&path).unwrap().count()), (spool.border(), 0, 1));
}

#[test]
fn reads_begin_at_a_border_close_by_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spool");
    let mut spool = begin(&path);
    let value = "x".repeat(700);
    let mut all = Vec::new();
    let mut borders = vec![(100, 0)];
    for n in 0..2000u64 {
        let db = n / 300;
        if n % 300 == 0 {
            all.extend_from_slice(&command(&["SELECT", &db.to_string()]));
            borders.push((100 + all.len() as u64, db));
        }
        all.extend_from_slice(&command(&["SET", &n.to_string(), &value]));
        borders.push((100 + all.len() as u64, db));
    }
    // Pieces of all lengths, of which few end where a command does.
    let mut at = 0;
    for n in 0.. {
        let len = (n * 7919 % 50_000 + 1).min(all.len() - at);
        if n == 40 {
            spool.mark(spool.border(), Timestamp(5)).unwrap();
        }
        let _ = spool.append(&all[at..at + len], n as u64).unwrap();
        at += len;
        if at == all.len() {
            break;
        }
    }
    let check = |spool: &Spool| {
        assert_eq!(spool.border(), 100 + all.len() as u64);
        let mut begun = HashSet::new();
        for &(from, _) in borders.iter().step_by(37) {
            assert!(whole(spool, from) == all[(from - 100) as usize..], "from {from}");
            let mut stretch = Stretch::default();
            stretch.read(&spool.files_from(from), (from, spool.border()), 1).unwrap();
            assert!(from - stretch.start <= BORDER_EVERY + 60_000, "{from} is read from {} on", stretch.start);
            assert!(borders.contains(&(stretch.start, stretch.db)), "{} {}", stretch.start, stretch.db);
            let _ = begun.insert(stretch.start);
        }
        assert!(begun.len() >= 8, "{begun:?}");
    };
    check(&spool);
    drop(spool);
    check(&Spool::reopen(&path, DATA).unwrap().expect("a spool"));
}

#[test]
fn what_a_file_held_before_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spool");
    let mut spool = begin(&path);
    let short = command(&["SET", "a", &"x".repeat(1000)]);
    // A file that has all kinds of frames at the same places as the one that is written over it.
    let frame = |spool: &mut Spool, n: u64| match n % 3 {
        0 => drop(spool.append(&short, n).unwrap()),
        1 => spool.mark(spool.border(), Timestamp(100 + n)).unwrap(),
        _ => spool.renamed(if n.is_multiple_of(2) { NEW } else { OLD }).unwrap(),
    };
    for n in 0..150 {
        frame(&mut spool, n);
    }
    let large = command(&["SET", "b", &"y".repeat(3 << 20)]);
    let filled = |spool: &mut Spool| {
        let before = spool.files.back().unwrap().start;
        while spool.files.back().unwrap().start == before {
            let _ = spool.append(&large, 60).unwrap();
        }
        spool.border()
    };
    let first = spool.files[0].path.clone();
    let start = filled(&mut spool);
    let _ = filled(&mut spool);
    spool.drop_below(start);
    assert!(!first.exists());
    // The next file is the first one, written over.
    let _ = filled(&mut spool);
    let last = &spool.files.back().unwrap().path;
    assert!(std::fs::metadata(last).unwrap().len() > FILE_TARGET, "a spare one");
    for n in 0..12 {
        frame(&mut spool, n);
        let copy = dir.path().join(format!("copy-{n}"));
        std::fs::create_dir(&copy).unwrap();
        for entry in std::fs::read_dir(&path).unwrap().flatten() {
            let _ = std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
        let again = Spool::reopen(&copy, DATA).unwrap().expect("a spool");
        let told = |spool: &Spool| {
            (spool.start(), spool.border(), spool.history().to_owned(), spool.next_mark(start, Timestamp::ZERO))
        };
        assert_eq!(told(&again), told(&spool), "after {n}");
        assert!(whole(&again, start) == whole(&spool, start));
        assert!(
            !std::fs::read_dir(&copy).unwrap().flatten().any(|e| Spares::is(&e.path())),
            "spare ones are removed"
        );
    }
}

#[test]
fn what_comes_late_is_not_later_than_the_first_of_several_cuts_at_one_offset() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::begin(&dir.path().join("spool"), DATA, (OLD, 100), 0).unwrap();
    // The stream hangs: three cuts of a server that stands still lie ahead of what has come.
    for at in [50, 60, 70] {
        spool.mark(140, Timestamp(at)).unwrap();
    }
    assert_eq!(spool.next_mark(100, Timestamp(5)), Some((140, Timestamp(50))));
    // Once that has been read, nothing lies between the others.
    assert_eq!(spool.next_mark(140, Timestamp(50)), Some((140, Timestamp(70))));
    assert_eq!(spool.next_mark(140, Timestamp(70)), None);
    assert_eq!(spool.next_mark(100, Timestamp(55)), Some((140, Timestamp(70))));
}
