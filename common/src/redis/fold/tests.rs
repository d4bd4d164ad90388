//! Folds by real servers. They are installed where these tests run.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidemark_proto::stored::log::{ALL_SLOTS, EntryKind, LogEntry};
use tidemark_proto::stored::run::put_varint;
use tidemark_proto::{SlotSet, Timestamp, slot_of};

use super::super::named;
use super::*;
use crate::record::{record_hash, redis_key};
use crate::redis::keys::Commands;
use crate::redis::resp::put_request;

mod servers;

/// A log that is being made.
#[derive(Default)]
struct Log {
    /// Groups, each with the slots of its node and its chunks.
    groups: Vec<(SlotSet, Vec<Vec<u8>>)>,
    at: u64,
}

fn request(line: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_request(&mut out, &line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
    out
}

impl Log {
    fn group(&mut self, owner: SlotSet) -> &mut Self {
        self.groups.push((owner, Vec::new()));
        self
    }

    fn entry(&mut self, slot: u16, db: u64, (kind, bytes): (EntryKind, &[u8])) {
        let (mut meta, mut raw) = (Vec::new(), Vec::new());
        put_varint(&mut meta, db);
        LogEntry { slot, at: Timestamp(self.at), key: b"", put: Some((&meta, bytes)), kind }.encode(&mut raw);
        if self.groups.is_empty() {
            let _ = self.group(SlotSet::all());
        }
        self.groups.last_mut().unwrap().1.push(raw);
    }

    /// The next command: `3 SET a 1` is one of database 3.
    fn run(&mut self, line: &str) -> &mut Self {
        let (db, line) = line.split_once(' ').unwrap();
        let db = db.parse().unwrap();
        let words: Vec<Vec<u8>> = line.split(' ').map(|w| w.as_bytes().to_vec()).collect();
        let slots: Vec<u16> = match named::about(&Commands::known(), db, &words).unwrap() {
            named::About::Keys(keys) => keys.iter().map(|k| slot_of(split_redis_key(k).unwrap().1)).collect(),
            _ => Vec::new(),
        };
        let one = slots.first().filter(|first| slots.iter().all(|s| s == *first));
        self.at += 1;
        self.entry(one.copied().unwrap_or(ALL_SLOTS), db, (EntryKind::Command, &request(line)));
        self
    }

    fn runs(&mut self, lines: &[&str]) -> &mut Self {
        lines.iter().for_each(|line| _ = self.run(line));
        self
    }

    /// In order, by an arena that holds only a few commands.
    fn ordered(&self, dir: &Path, (after, at): (u64, u64)) -> Ordered {
        let span = Span { after: Timestamp(after), at: Timestamp(at), slots: SlotSet::all() };
        let mut log = CommandLog::new(span, 300, dir);
        for (owner, chunks) in &self.groups {
            log.group(owner.clone()).unwrap();
            // Chunks of several regions come one after another, whatever their times.
            let (odd, even): (Vec<_>, Vec<_>) = chunks.iter().enumerate().partition(|(i, _)| i % 2 == 1);
            odd.into_iter().chain(even).for_each(|(_, raw)| log.push_chunk(raw).unwrap());
        }
        log.finish().unwrap()
    }
}

/// Slot, meta and value.
type Record = (u16, Vec<u8>, Vec<u8>);
/// Records by their keys.
type State = BTreeMap<Vec<u8>, Record>;

fn of_overlay(folded: &Folded, scope: &Scope) -> State {
    let mut overlay = folded.overlay(scope).unwrap();
    let mut state = State::new();
    let mut before = None;
    while overlay.advance().unwrap() {
        let entry = overlay.current().unwrap();
        let (meta, value) = entry.put.unwrap();
        let value = overlay.long().unwrap().map_or(value.to_vec(), |long| long.whole(1 << 30).unwrap());
        assert!(before < Some((entry.slot, entry.key.to_vec())), "in order");
        before = Some((entry.slot, entry.key.to_vec()));
        let _ = state.insert(entry.key.to_vec(), (entry.slot, meta.to_vec(), value));
    }
    state
}

fn try_fold(base: &State, log: &Ordered, scope: &Scope, dir: &Path) -> Result<State> {
    let mut fold = Fold::begin(log, scope.clone(), &ScratchServer::default(), 400, dir)?;
    let mut state = State::new();
    for (key, record) in base.iter().filter(|(key, (slot, ..))| scope.takes(*slot, key)) {
        let (slot, meta, value) = record;
        let fate = fold.fate(*slot, key)?;
        // Parts of which this says no are not read.
        assert!(fate == Fate::Stays || fold.touches(&SlotSet::range(*slot, *slot)), "slot {slot}");
        match fate {
            Fate::Stays => drop(state.insert(key.clone(), record.clone())),
            Fate::Needed => fold.base(&Entry { slot: *slot, key, put: Some((meta, value)) }, None)?,
            Fate::Void => {}
        }
    }
    let folded = fold.run()?;
    assert!(state.iter().all(|(key, (slot, ..))| folded.keeps(*slot, key).unwrap()));
    let stayed = state.len();
    let over = of_overlay(&folded, scope);
    let made = over.len();
    state.extend(over);
    assert_eq!(state.len(), stayed + made, "no key is in both");
    Ok(state)
}

fn fold(base: &State, log: &Log, dir: &Path) -> State {
    try_fold(base, &log.ordered(dir, (0, u64::MAX)), &Scope::slots(SlotSet::all()), dir).unwrap()
}

/// What users see: database, key, expiry and the hash of what the value means.
fn meant(state: &State) -> Vec<(u64, String, Option<i64>, u128)> {
    let one = |(key, (_, meta, value)): (&Vec<u8>, &Record)| {
        let (db, name) = split_redis_key(key).unwrap();
        let expires = RedisMeta::decode(meta).unwrap().expire_at_millis;
        (db, String::from_utf8_lossy(name).into_owned(), expires, record_hash(key, meta, value))
    };
    state.iter().map(one).collect()
}

fn names(state: &State) -> Vec<String> {
    meant(state).into_iter().map(|(db, name, ..)| format!("{db} {name}")).collect()
}

fn made(lines: &[&str], dir: &Path) -> State {
    fold(&State::new(), Log::default().runs(lines), dir)
}

#[test]
fn what_has_expired_is_followed_and_does_not_vanish() {
    let dir = tempfile::tempdir().unwrap();
    let base = made(&["0 SET a x PXAT 1000", "0 SET b y PXAT 1000", "0 RPUSH l 1 2", "0 SET stays z"], dir.path());
    let mut log = Log::default();
    let _ = log.runs(&[
        "0 APPEND a more",
        "0 PEXPIREAT a 2000",
        "0 COPY a c",
        "0 PERSIST c",
        "0 RENAME b d",
        "0 RPUSH l 3",
        "0 PEXPIREAT l 1",
    ]);
    let state = fold(&base, &log, dir.path());
    let expected = [("a", Some(2000)), ("c", None), ("d", Some(1000)), ("l", Some(1)), ("stays", None)];
    let found: Vec<_> = meant(&state).into_iter().map(|(_, name, expires, _)| (name, expires)).collect();
    assert_eq!(found, expected.map(|(name, at)| (name.to_owned(), at)));
    let whole = made(&["0 SET c xmore", "0 SET d y PXAT 1000", "0 RPUSH l 1 2 3", "0 PEXPIREAT l 1"], dir.path());
    for (db, name, at, hash) in meant(&whole) {
        assert!(meant(&state).contains(&(db, name.clone(), at, hash)), "{name}");
    }
}

#[test]
fn databases_that_are_emptied_and_swapped_on_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let base = made(&["0 SET a x", "0 SET u x", "1 SET a y", "1 SET u y", "7 SET t z"], dir.path());
    let after = |lines: &[&str]| names(&fold(&base, Log::default().runs(lines), dir.path()));
    assert_eq!(after(&["0 SET a 1", "0 FLUSHDB", "0 APPEND a 2"]), ["0 a", "1 a", "1 u", "7 t"]);
    assert_eq!(after(&["0 SET a 1", "0 FLUSHALL", "1 SET n 2"]), ["1 n"]);
    assert_eq!(after(&["0 FLUSHALL"]), Vec::<String>::new());
    assert_eq!(after(&["0 SWAPDB 0 7"]), ["0 t", "1 a", "1 u", "7 a", "7 u"]);
    assert_eq!(after(&["0 FLUSHDB", "0 SWAPDB 0 7", "7 SET b 1", "1 FLUSHDB"]), ["0 t", "7 b"]);
    assert_eq!(after(&["0 MOVE a 7", "1 COPY a b DB 3"]), ["0 u", "1 a", "1 u", "3 b", "7 a", "7 t"]);
    // What is appended to after a FLUSHALL is new.
    let state = fold(&base, Log::default().runs(&["0 APPEND a 1x", "0 FLUSHALL", "0 APPEND a 2x"]), dir.path());
    assert_eq!(meant(&state), meant(&made(&["0 SET a 2x"], dir.path())));
}

#[test]
fn a_node_empties_its_own_slots_alone() {
    let dir = tempfile::tempdir().unwrap();
    let base = made(&["0 SET a x", "0 SET b x", "0 SET untouched x"], dir.path());
    let (a, b) = (SlotSet::range(slot_of(b"a"), slot_of(b"a")), SlotSet::range(slot_of(b"b"), slot_of(b"b")));
    let mut log = Log::default();
    let _ = log.group(a).runs(&["0 APPEND a 1", "0 FLUSHALL", "0 APPEND a 2"]);
    let _ = log.group(b).runs(&["0 APPEND b 1"]);
    let state = fold(&base, &log, dir.path());
    assert_eq!(meant(&state), meant(&made(&["0 SET a 2", "0 SET b x1", "0 SET untouched x"], dir.path())));
}

#[test]
fn a_node_deletes_the_keys_of_its_own_slots_alone() {
    let dir = tempfile::tempdir().unwrap();
    let base = made(&["0 SET a x", "3 SET a x", "0 SET {a}u x", "0 SET b x", "0 SET untouched x"], dir.path());
    let (a, b) = (slot_of(b"a"), slot_of(b"b"));
    let (flush, trim) = (format!("0 CLUSTER FLUSHSLOT {a}"), format!("0 TRIMSLOTS RANGES 2 {a} {a} {b} {b}"));
    for delete in [flush.as_str(), trim.as_str()] {
        let mut log = Log::default();
        let _ = log.group(SlotSet::range(a, a)).runs(&["0 APPEND a 1", "3 APPEND a 1", delete, "0 APPEND a 2"]);
        // Slots that another node owns are not meant.
        let _ = log.group(SlotSet::range(b, b)).runs(&["0 APPEND b 1", &format!("0 TRIMSLOTS RANGES 1 {a} {a}")]);
        let _ = log.runs(&["0 CLUSTER SYNCSLOTS FINISH STATE SUCCESS NAME x"]);
        let state = fold(&base, &log, dir.path());
        let wanted = made(&["0 SET a 2", "0 SET b x1", "0 SET untouched x"], dir.path());
        assert_eq!(meant(&state), meant(&wanted), "{delete}");
    }
}

#[test]
fn slots_that_moved_go_on_from_what_arrived() {
    let dir = tempfile::tempdir().unwrap();
    let base = made(&["0 RPUSH k 1"], dir.path());
    let mut log = Log::default();
    let _ = log.group(SlotSet::all()).runs(&["0 RPUSH k 2", "0 DEL k"]);
    // The payload is that of the list with both elements, as the server itself would send it.
    let list = made(&["0 RPUSH k 1 2"], dir.path()).into_values().next().unwrap();
    let (meta, mut payload) = (RedisMeta::decode(&list.1).unwrap(), Vec::new());
    rdb::payload::write(10, meta.type_byte, &list.2, &mut payload);
    let mut request = Vec::new();
    put_request(&mut request, &[b"RESTORE-ASKING", b"k", b"0", &payload, b"REPLACE"]);
    let _ = log.group(SlotSet::all());
    log.at = 1;
    log.entry(slot_of(b"k"), 0, (EntryKind::Command, &request));
    let _ = log.run("0 RPUSH k 3");
    assert_eq!(meant(&fold(&base, &log, dir.path())), meant(&made(&["0 RPUSH k 1 2 3"], dir.path())));
}

#[test]
fn commands_in_pieces_and_long_values() {
    let dir = tempfile::tempdir().unwrap();
    // Not to be compressed well, and more than is held in memory.
    let text: String = (0..3_000_000u64).map(|i| format!("{:x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    let text = &text[..20 << 20];
    let bytes = request(&format!("SET big {text}"));
    let mut log = Log { at: 5, ..Log::default() };
    let pieces: Vec<&[u8]> = bytes.chunks(7 << 20).collect();
    let (last, parts) = pieces.split_last().unwrap();
    parts.iter().for_each(|piece| log.entry(slot_of(b"big"), 2, (EntryKind::CommandPart, piece)));
    log.entry(slot_of(b"big"), 2, (EntryKind::Command, last));
    // One group each: pieces stand in the order in which they came.
    let span = || Span { after: Timestamp(0), at: Timestamp(9), slots: SlotSet::all() };
    let ordered = |count: usize| {
        let mut sorter = CommandLog::new(span(), 1000, dir.path());
        sorter.group(SlotSet::all()).unwrap();
        log.groups[0].1[..count].iter().for_each(|raw| sorter.push_chunk(raw).unwrap());
        sorter.finish().unwrap()
    };
    let all = Scope::slots(SlotSet::all());
    let state = try_fold(&State::new(), &ordered(pieces.len()), &all, dir.path()).unwrap();
    let meaning = |state: &State| RedisMeta::decode(&state.values().next().unwrap().1).unwrap().meaning;
    let of_text = |text: &str| {
        // A string of RDB, its length in 32 bits in front.
        let raw = [&[0x80], &(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
        crate::rdb::meaning_of(0, rdb::Family::Redis, &raw).unwrap().meaning
    };
    assert!(state.len() == 1 && meaning(&state) == of_text(text));
    let cut = try_fold(&State::new(), &ordered(pieces.len() - 1), &all, dir.path()).unwrap_err();
    assert!(cut.message().contains("ends inside"), "{cut}");
    // A long record of the base, with a short command behind it.
    let mut more = Log::default();
    let _ = more.run("2 APPEND big end");
    let grown = fold(&state, &more, dir.path());
    assert_eq!(meaning(&grown), of_text(&format!("{text}end")));
}

#[test]
fn only_the_span_and_the_keys_that_count() {
    let dir = tempfile::tempdir().unwrap();
    let base = made(&["0 SET a x", "0 SET b x"], dir.path());
    let mut log = Log::default();
    let _ = log.runs(&["0 APPEND a 1", "0 APPEND a 2", "0 MSET a 3 b 4", "0 DEL a b"]);
    let all = Scope::slots(SlotSet::all());
    let at = |after, at, scope: &Scope| {
        meant(&try_fold(&base, &log.ordered(dir.path(), (after, at)), scope, dir.path()).unwrap())
    };
    assert_eq!(at(0, 1, &all), meant(&made(&["0 SET a x1", "0 SET b x"], dir.path())));
    assert_eq!(at(1, 2, &all), meant(&made(&["0 SET a x2", "0 SET b x"], dir.path())));
    let slot = slot_of(b"a");
    let one = Scope::slots(SlotSet::range(slot, slot));
    assert_eq!(at(0, 3, &one), meant(&made(&["0 SET a 3"], dir.path())));
    assert_eq!(at(0, 4, &one), []);
    let mut bound = Vec::new();
    redis_key(0, b"b", &mut bound);
    let below = Scope { upper: tidemark_proto::stored::run::sort_key(slot_of(b"b"), &bound), ..all.clone() };
    let named = at(0, 3, &below).into_iter().map(|(_, name, ..)| name).collect::<Vec<_>>();
    assert_eq!(named, if slot_of(b"a") < slot_of(b"b") { vec!["a"] } else { vec![] });
    for line in ["0 RENAME a b", "0 SUNIONSTORE a b c", "0 SORT a BY w_* STORE a"] {
        let mut log = Log::default();
        let ordered = log.run(line).ordered(dir.path(), (0, 9));
        let e = try_fold(&base, &ordered, &one, dir.path()).unwrap_err();
        let name = line.split(' ').nth(1).unwrap();
        assert!(e.message().contains(name) && e.message().contains("at 1"), "{e}");
    }
}

#[test]
fn commands_that_nobody_knows_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log { at: 3, ..Log::default() };
    log.entry(1, 0, (EntryKind::Command, &request("FT.FANCY a")));
    let all = Scope::slots(SlotSet::all());
    let e = try_fold(&State::new(), &log.ordered(dir.path(), (0, 9)), &all, dir.path()).unwrap_err();
    assert!(e.message().contains("ft.fancy"), "{e}");
    let nowhere = ScratchServer { program: "/nowhere/redis-server".into(), valkey: false };
    let e = Fold::begin(&log.ordered(dir.path(), (0, 9)), all, &nowhere, 1 << 20, dir.path()).unwrap_err();
    assert!(e.kind() == ErrorKind::Config && e.message().contains("install"), "{e}");
}

#[test]
fn keys_that_are_tied_together_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let _ = log.runs(&["0 RENAME a b", "0 MSET b 1 x 2", "0 COPY b c", "0 SET z 1"]);
    let record = |name: &[u8]| {
        let mut key = Vec::new();
        redis_key(0, name, &mut key);
        key
    };
    let tied = |log: &Log, name: &[u8]| {
        let keys = [record(name)].into_iter().collect();
        let found = named::tied_to(&log.ordered(dir.path(), (0, 9)), keys, &Commands::known(), dir.path()).unwrap();
        found.map(|keys| keys.into_iter().collect::<std::collections::BTreeSet<_>>())
    };
    let keys = |names: &[&str]| Some(names.iter().map(|n| record(n.as_bytes())).collect());
    assert_eq!(tied(&log, b"c"), keys(&["a", "b", "c"]));
    assert_eq!(tied(&log, b"x"), keys(&["x"]));
    assert_eq!(tied(log.run("0 SWAPDB 0 1"), b"x"), None);
}

/// Commands on a few keys of all kinds, as a primary replicates them.
fn lines() -> impl Strategy<Value = Vec<String>> {
    let key = || prop::sample::select(vec!["s", "t", "{s}l", "h", "z"]);
    let line = (0..3u8, key(), key(), 0..13u8, 0..5u8).prop_map(|(db, a, b, what, n)| match what {
        0 => format!("{db} SET {a} v{n}"),
        1 => format!("{db} SET {a} v{n} PXAT {}", 1 + u32::from(n)),
        2 => format!("{db} PEXPIREAT {a} {}", 9_000_000_000_000u64 + u64::from(n)),
        3 => format!("{db} PERSIST {a}"),
        4 => format!("{db} APPEND s{n} x"),
        5 => format!("{db} RPUSH l{n} {a}"),
        6 => format!("{db} HSET h{n} {a} {b}"),
        7 => format!("{db} COPY {a} {b} REPLACE"),
        8 => format!("{db} RENAME {a} {a}"),
        9 => format!("{db} DEL {a} l{n}"),
        10 => format!("{db} MOVE {a} {}", (db + 1) % 3),
        11 if n == 0 => format!("{db} FLUSHDB"),
        11 => format!("{db} ZADD z{n} {n} {b}"),
        _ => format!("{db} SADD set{n} {a} {b}"),
    });
    proptest::collection::vec(line, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    #[test]
    fn a_log_in_two_halves_is_the_log_as_a_whole(lines in lines(), half in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (first, second) = lines.split_at(half.index(lines.len()));
        let base = made(first, dir.path());
        let state = fold(&base, Log::default().runs(second), dir.path());
        prop_assert_eq!(meant(&state), meant(&made(&lines, dir.path())));
    }
}
