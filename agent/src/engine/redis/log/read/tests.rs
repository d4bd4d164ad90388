//! From streams to entries.

use super::super::super::resp::Reply;
use super::*;

type Seen = (u16, u64, String, u64);

#[derive(Default)]
struct Sink(Vec<Seen>);

impl LogSink for Sink {
    fn entry(&mut self, e: LogEntry<'_>) -> Result<()> {
        let (meta, bytes) = e.put.unwrap();
        let words: Vec<String> =
            String::from_utf8_lossy(bytes).split("\r\n").skip(2).step_by(2).map(str::to_owned).collect();
        self.0.push((e.slot, tidemark_proto::stored::log::database(meta)?, words.join(" "), e.at.0));
        Ok(())
    }

    fn restart(&mut self) {}
}

fn commands() -> Commands {
    let spec = |name: &str, last: i64| {
        let numbers = [Reply::Int(1), Reply::Int(last), Reply::Int(1)];
        let head = [Reply::Bulk(name.into()), Reply::Int(1), Reply::Array(vec![])];
        Reply::Array(head.into_iter().chain(numbers).collect())
    };
    Commands::parse(Reply::Array(vec![spec("set", 1), spec("del", -1), spec("expire", 1)])).unwrap()
}

fn stretch(lines: &[&str]) -> Stretch {
    let mut out = Stretch { start: 1000, db: 0, ..Stretch::default() };
    for (i, line) in lines.iter().enumerate() {
        put_request(&mut out.bytes, &line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        out.came.push((out.end(), 50 + i as u64 / 3));
    }
    out
}

fn read(stretch: &Stretch, from: u64, after: u64, relative: bool) -> (Vec<Seen>, Ended) {
    let (mut sink, commands) = (Sink::default(), commands());
    let source = Source { commands: &commands, relative };
    let part = Part { from, after: Timestamp(after), ceiling: None, divide: false };
    let ended = entries(stretch, &part, &source, &mut Found::default(), &mut sink).unwrap();
    (sink.0, ended)
}

#[test]
fn commands_stand_under_their_slots_with_ascending_times() {
    let lines = ["SELECT 3", "SET b 1", "MULTI", "SET a 2", "DEL {a}x {a}y", "EXEC", "DEL a b", "PING", "FLUSHALL"];
    let mut stretch = stretch(&lines);
    stretch.bytes.extend_from_slice(b"*2\r\n$3\r\nDEL\r\n$1\r\n");
    let (seen, ended) = read(&stretch, 1000, 7, false);
    let (a, b) = (slot_of(b"a"), slot_of(b"b"));
    let told: Vec<_> = seen.iter().map(|(slot, db, line, _)| (*slot, *db, line.as_str())).collect();
    assert_eq!(
        told,
        [
            (b, 3, "SET b 1"),
            (a, 3, "SET a 2"),
            (a, 3, "DEL {a}x {a}y"),
            (ALL_SLOTS, 3, "DEL a b"),
            (ALL_SLOTS, 3, "FLUSHALL")
        ]
    );
    let mut times: Vec<_> = seen.iter().map(|s| s.3).collect();
    assert!(times[0] >= Timestamp::new(50, 0).0);
    times.sort_unstable();
    times.dedup();
    assert_eq!((times.len(), ended.last.0), (5, times[4]));
    assert_eq!(ended.to, stretch.came.last().unwrap().0, "not into the command that is not whole");

    // From the middle on, the database is the one before; and never earlier than what was told.
    let after = Timestamp::new(9000, 0).0;
    let (seen, _) = read(&stretch, stretch.came[3].0, after, false);
    assert_eq!((seen.len(), seen[0].1, seen[0].3), (3, 3, after + 1));
}

#[test]
fn what_moves_slots_as_a_whole_is_no_part_of_a_log() {
    let moving = "CLUSTER SYNCSLOTS ESTABLISH SOURCE a NAME b SLOTSRANGE 0 99";
    let stretch = stretch(&["SET a 1", "CLUSTER FLUSHSLOT 7", moving, "SET k 1"]);
    let (seen, ended) = read(&stretch, 1000, 0, false);
    let told: Vec<_> = seen.iter().map(|s| (s.0, s.2.as_str())).collect();
    assert_eq!(told, [(slot_of(b"a"), "SET a 1"), (ALL_SLOTS, "CLUSTER FLUSHSLOT 7")]);
    assert_eq!((ended.moving, ended.to), (true, stretch.came[1].0));
    // Nor is it passed over by who begins there; behind it a log may begin.
    let (seen, ended) = read(&stretch, stretch.came[1].0, 0, false);
    assert_eq!((seen, ended.moving, ended.to), (Vec::new(), true, stretch.came[1].0));
    let behind = Stretch { came: vec![(stretch.end(), 50)], ..stretch };
    let known = entries(
        &behind,
        &Part { from: behind.came[0].0, after: Timestamp(0), ceiling: None, divide: false },
        &Source { commands: &commands(), relative: false },
        &mut Found::default(),
        &mut Sink::default(),
    );
    assert!(!known.unwrap().moving);
}

#[test]
fn times_to_live_of_old_servers_become_absolute() {
    let (seen, _) = read(&stretch(&["SET a 1", "EXPIRE a 10", "SET a 2"]), 1000, 0, true);
    let told: Vec<_> = seen.iter().map(|s| s.2.as_str()).collect();
    assert_eq!(told, ["SET a 1", "EXPIRE a 10", "PEXPIREAT a 10050", "SET a 2"]);
}

#[test]
fn a_transaction_is_given_out_as_a_whole() {
    let mut lines = vec!["SET a 1", "MULTI", "SET a 2", "SET b 2", "exec", "multi", "SET a 3", "SET b 3"];
    let (seen, ended) = read(&stretch(&lines), 1000, 7, false);
    let told = |seen: &[Seen]| seen.iter().map(|s| s.2.clone()).collect::<Vec<_>>().join(", ");
    // By slot: `b` is before `a`.
    assert_eq!((told(&seen).as_str(), ended.waits), ("SET b 2, SET a 1, SET a 2", true));
    assert_eq!(ended.to, stretch(&lines[..5]).end());
    assert_eq!((seen[2].3 + 1, seen[0].3), (seen[0].3, ended.last.0), "one behind the other");
    // Behind it only the open one is left; where it is too long for a batch it is divided.
    let all = stretch(&lines);
    let (seen, rest) = read(&all, ended.to, ended.last.0, false);
    assert_eq!((seen.len(), rest.to, rest.last, rest.waits), (0, ended.to, ended.last, true));
    let (mut sink, commands) = (Sink::default(), commands());
    let part = Part { from: ended.to, after: ended.last, ceiling: None, divide: true };
    let source = Source { commands: &commands, relative: false };
    let divided = entries(&all, &part, &source, &mut Found::default(), &mut sink).unwrap();
    assert_eq!((told(&sink.0).as_str(), divided.to, divided.waits), ("SET b 3, SET a 3", all.end(), false));
    // Its end comes.
    lines.push("EXEC");
    let (seen, rest) = read(&stretch(&lines), ended.to, ended.last.0, false);
    assert_eq!((told(&seen).as_str(), rest.waits), ("SET b 3, SET a 3", false));
}
