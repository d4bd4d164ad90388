//! From the bytes of a stream to the entries of a log: each command under its slot, with a timestamp of its own.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use tidemark_proto::stored::log::{ALL_SLOTS, EntryKind, LogEntry, MAX_PIECE};
use tidemark_proto::stored::run::put_varint;
use tidemark_proto::{Error, ErrorKind, Result, Timestamp, error::ResultExt, slot_of};

use super::super::absolute::relative;
use super::super::keys::{Commands, Touches};
use super::super::resp::put_request;
use super::LEAST_COMMAND;
use super::frames::{FILE_HEAD, Frame, next_frame};
use super::spool::SpoolFile;
use super::words::split;
use crate::engine::LogSink;

/// Longest command that a log takes, in bytes: one batch holds it.
pub(super) const MAX_COMMAND: u64 = 28 << 20;

/// Buffer for reading a file of the spool, in bytes.
const FILE_BUFFER: usize = 256 << 10;
/// Most bytes that room is made for before they are read.
const MOST_RESERVED: usize = 32 << 20;

/// Bytes of a buffer that stay with the log when little of it is used.
const KEPT: usize = 1 << 20;

/// The buffers of reads, kept from one to the next: fresh memory for each of them would cost more than what is done with it.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// What was read last.
    pub(super) stretch: Stretch,
    /// What was found in it.
    pub(super) found: Found,
}

impl Room {
    /// Gives back what a large read needed and the last one did not.
    pub(super) fn shrink(&mut self) {
        let Self { stretch: Stretch { bytes, came, .. }, found: Found { places, order, added } } = self;
        shrink(bytes);
        shrink(came);
        shrink(places);
        shrink(order);
        shrink(added);
    }
}

fn shrink<T>(buffer: &mut Vec<T>) {
    if buffer.len() < buffer.capacity() / 4 {
        buffer.shrink_to((2 * buffer.len()).max(KEPT / size_of::<T>()));
    }
}

/// Contiguous bytes of the stream from a border on, and when they came.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    /// Offset of the first byte.
    pub(super) start: u64,
    /// Database at its beginning.
    pub(super) db: u64,
    bytes: Vec<u8>,
    /// Offset up to which bytes had come, and when: milliseconds since 1970.
    came: Vec<(u64, u64)>,
}

impl Stretch {
    /// Reads `files`, the first of which holds `from`, up to the offset `end`, or until there are `most` bytes behind `from`.
    pub(super) fn read(&mut self, files: &[SpoolFile], (from, end): (u64, u64), most: u64) -> Result<()> {
        let first = files.first().ok_or_else(|| Error::bug("a spool without files"))?;
        let begin = first.border_before(from);
        (self.start, self.db) = (begin.offset, begin.db);
        self.bytes.clear();
        self.came.clear();
        let stop = end.min(from.saturating_add(most));
        let room = usize::try_from(stop.saturating_sub(self.start)).unwrap_or(0).min(MOST_RESERVED);
        self.bytes.reserve_exact(room);
        for (n, file) in files.iter().take_while(|f| f.start < stop).enumerate() {
            // One that was dropped meanwhile holds what nobody asks for any more.
            let failed = || (ErrorKind::Retry, file.path.display().to_string());
            let mut opened = File::open(&file.path).or_kind(failed().0, failed().1)?;
            let at = if n == 0 { begin.at } else { FILE_HEAD as u64 };
            let _ = opened.seek(SeekFrom::Start(at)).or_kind(failed().0, failed().1)?;
            self.add(&mut BufReader::with_capacity(FILE_BUFFER, opened), file, stop)?;
        }
        Ok(())
    }

    /// Adds what a file holds, up to `stop`.
    fn add(&mut self, reader: &mut impl Read, file: &SpoolFile, stop: u64) -> Result<()> {
        let file_end = file.end.min(stop);
        while self.end() < file_end {
            let (end, before) = (self.end(), self.bytes.len());
            match next_frame(reader, &mut self.bytes)? {
                // The first one may begin before the border.
                Some(Frame::Bytes { offset, millis }) if offset <= end && (offset == end || before == 0) => {
                    let skipped = ((end - offset) as usize).min(self.bytes.len() - before);
                    drop(self.bytes.drain(before..before + skipped));
                    let over = self.end().saturating_sub(file_end) as usize;
                    self.bytes.truncate(self.bytes.len() - over);
                    self.came.push((self.end(), millis));
                }
                Some(Frame::Bytes { .. }) => self.bytes.truncate(before),
                Some(Frame::Other) => {}
                None => {
                    let told = format!("{} ends before offset {file_end}", file.path.display());
                    return Err(Error::damaged(told));
                }
            }
        }
        Ok(())
    }

    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// The bytes from an offset on.
    #[cfg(test)]
    pub(super) fn behind(&self, from: u64) -> &[u8] {
        &self.bytes[(from - self.start) as usize..]
    }
}

/// What is known of the source.
pub(super) struct Source<'a> {
    pub(super) commands: &'a Commands,
    /// Whether it sends times relative to the present.
    pub(super) relative: bool,
}

/// One command of a batch: where its bytes lie, in the stretch or among those that were added. There are very many.
#[derive(Debug)]
struct Place {
    db: u64,
    at: Timestamp,
    key: Span,
    bytes: Span,
    added: bool,
}

/// Begin and end.
type Span = (u32, u32);

/// As positions of places: no stretch is nearly as long.
fn span(begin: usize, end: usize) -> Span {
    (begin as u32, end as u32)
}

fn of(bytes: &[u8], (begin, end): Span) -> &[u8] {
    &bytes[begin as usize..end as usize]
}

/// The commands of a batch.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In the order of the stream.
    places: Vec<Place>,
    /// Of each its slot, and in the lower half where it stands among the places: sorted these are by slot, and in the stream's order.
    order: Vec<u64>,
    /// Commands that the stream does not hold itself.
    added: Vec<u8>,
}

impl Found {
    fn clear(&mut self) {
        self.places.clear();
        self.order.clear();
        self.added.clear();
    }

    fn push(&mut self, slot: u16, place: Place) {
        self.order.push(u64::from(slot) << 32 | self.places.len() as u64);
        self.places.push(place);
    }

    /// Gives all out by slot. `bytes` are those of the stretch.
    fn give(&mut self, bytes: &[u8], sink: &mut dyn LogSink) -> Result<()> {
        self.order.sort_unstable();
        let mut meta = Vec::new();
        for entry in &self.order {
            let (slot, place) = ((entry >> 32) as u16, &self.places[*entry as u32 as usize]);
            meta.clear();
            put_varint(&mut meta, place.db);
            let (key, at) = (of(bytes, place.key), place.at);
            let whole = of(if place.added { &self.added } else { bytes }, place.bytes);
            let last = whole.len().div_ceil(MAX_PIECE) - 1;
            for (n, piece) in whole.chunks(MAX_PIECE).enumerate() {
                let kind = if n == last { EntryKind::Command } else { EntryKind::CommandPart };
                sink.entry(LogEntry { slot, at, key, put: Some((&meta, piece)), kind })?;
            }
        }
        Ok(())
    }
}

/// Where a batch ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// End of the last whole command that was read.
    pub(super) to: u64,
    /// Timestamp of the last entry.
    pub(super) last: Timestamp,
    /// Behind it slots move as a whole: that is not for the log.
    pub(super) moving: bool,
}

/// Gives out the entries of the commands behind `from`, which get timestamps above `after`, by ascending slot. With a `ceiling` they
/// stay below it, also those that came later than the time that it tells.
pub(super) fn entries(
    stretch: &Stretch,
    (from, after, ceiling): (u64, Timestamp, Option<Timestamp>),
    source: &Source<'_>,
    found: &mut Found,
    sink: &mut dyn LogSink,
) -> Result<Ended> {
    found.clear();
    let mut state = Ended { to: from, last: after, moving: false };
    let (mut at, mut db, mut words, mut came) = (0, stretch.db, Vec::new(), 0);
    let bytes = &stretch.bytes;
    let mut args: Vec<&[u8]> = Vec::new();
    // Room for every command that may follow.
    let most = ceiling.map(|at| Timestamp(at.0.saturating_sub(2 * (bytes.len() as u64 / LEAST_COMMAND + 1))));
    let most = most.unwrap_or(Timestamp::MAX);
    while let Some(end) = split(bytes, at, &mut words)? {
        let (begin, offset) = (std::mem::replace(&mut at, end), stretch.start + end as u64);
        if words.is_empty() {
            continue;
        }
        while stretch.came.get(came).is_some_and(|(end, _)| *end < offset) {
            came += 1;
        }
        let millis = stretch.came.get(came).map_or(0, |(_, millis)| *millis);
        args.clear();
        args.extend(words.iter().map(|&(s, e)| &bytes[s..e]));
        // Most commands are of this kind, and there are very many.
        let place = match source.commands.one_key(&args) {
            Some(key) => Some((slot_of(key), Some(key))),
            None => {
                let touched = source.commands.touches(&args)?;
                if let Touches::Select(number) = touched {
                    db = number;
                }
                state.moving = offset > from && touched == Touches::Moving;
                place_of(&touched)
            }
        };
        if offset <= from {
            continue;
        }
        if state.moving {
            break;
        }
        state.to = offset;
        let Some((slot, key)) = place else { continue };
        let key = key.map_or((0, 0), |key| {
            let start = key.as_ptr() as usize - bytes.as_ptr() as usize;
            span(start, start + key.len())
        });
        state.last = state.last.next().max(Timestamp::new(millis, 0).min(most));
        found.push(slot, Place { db, at: state.last, key, bytes: span(begin, end), added: false });
        if source.relative
            && let Some((key_bytes, ttl)) = relative(&args)
        {
            let begin = found.added.len();
            let expires = (millis as i64).saturating_add(ttl).to_string();
            put_request(&mut found.added, &[b"PEXPIREAT", key_bytes, expires.as_bytes()]);
            state.last = state.last.next();
            let bytes = span(begin, found.added.len());
            found.push(slot, Place { db, at: state.last, key, bytes, added: true });
        }
    }
    found.give(bytes, sink)?;
    Ok(state)
}

/// The slot under which a command stands, and its first key; `None` for one that changes nothing.
fn place_of<'k>(touched: &Touches<'k>) -> Option<(u16, Option<&'k [u8]>)> {
    match touched {
        Touches::Select(_) | Touches::Nothing | Touches::Moving => None,
        Touches::Keys(keys) => {
            let first = *keys.first()?;
            let slot = slot_of(first);
            let one = keys.iter().skip(1).all(|key| slot_of(key) == slot);
            Some((if one { slot } else { ALL_SLOTS }, Some(first)))
        }
        Touches::Database | Touches::Everything | Touches::Unknown | Touches::Functions | Touches::Slots(_) => {
            Some((ALL_SLOTS, None))
        }
    }
}

#[cfg(test)]
mod tests {
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
        let ended =
            entries(stretch, (from, Timestamp(after), None), &source, &mut Found::default(), &mut sink).unwrap();
        (sink.0, ended)
    }

    #[test]
    fn commands_stand_under_their_slots_with_ascending_times() {
        let lines =
            ["SELECT 3", "SET b 1", "MULTI", "SET a 2", "DEL {a}x {a}y", "EXEC", "DEL a b", "PING", "FLUSHALL"];
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
            (behind.came[0].0, Timestamp(0), None),
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
}
