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
use crate::engine::LogSink;

/// Longest command that a log takes, in bytes: one batch holds it.
pub(super) const MAX_COMMAND: u64 = 28 << 20;

/// Buffer for reading a file of the spool, in bytes.
const FILE_BUFFER: usize = 256 << 10;
/// Most bytes that room is made for before they are read.
const MOST_RESERVED: usize = 32 << 20;

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
    pub(super) fn read(files: &[SpoolFile], (from, end): (u64, u64), most: u64) -> Result<Self> {
        let first = files.first().ok_or_else(|| Error::bug("a spool without files"))?;
        let begin = first.border_before(from);
        let mut out = Self { start: begin.offset, db: begin.db, ..Self::default() };
        let stop = end.min(from.saturating_add(most));
        out.bytes.reserve_exact(usize::try_from(stop.saturating_sub(out.start)).unwrap_or(0).min(MOST_RESERVED));
        for (n, file) in files.iter().take_while(|f| f.start < stop).enumerate() {
            // One that was dropped meanwhile holds what nobody asks for any more.
            let failed = || (ErrorKind::Retry, file.path.display().to_string());
            let mut opened = File::open(&file.path).or_kind(failed().0, failed().1)?;
            let at = if n == 0 { begin.at } else { FILE_HEAD as u64 };
            let _ = opened.seek(SeekFrom::Start(at)).or_kind(failed().0, failed().1)?;
            out.add(&mut BufReader::with_capacity(FILE_BUFFER, opened), file, stop)?;
        }
        Ok(out)
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

/// One command of a batch: where its bytes lie, in the stretch or among those that were added.
struct Place {
    slot: u16,
    db: u64,
    at: Timestamp,
    key: (usize, usize),
    bytes: (usize, usize),
    added: bool,
}

/// Where a batch ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// End of the last whole command that was read.
    pub(super) to: u64,
    /// Timestamp of the last entry.
    pub(super) last: Timestamp,
}

/// Gives out the entries of the commands behind `from`, which get timestamps above `after`, by ascending slot. With a `ceiling` they
/// stay below it, also those that came later than the time that it tells.
pub(super) fn entries(
    stretch: &Stretch,
    (from, after, ceiling): (u64, Timestamp, Option<Timestamp>),
    source: &Source<'_>,
    sink: &mut dyn LogSink,
) -> Result<Ended> {
    let mut places = Vec::new();
    let mut added = Vec::new();
    let mut state = Ended { to: from, last: after };
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
                place_of(&touched)
            }
        };
        if offset <= from {
            continue;
        }
        state.to = offset;
        let Some((slot, key)) = place else { continue };
        let key = key.map_or((0, 0), |key| {
            let start = key.as_ptr() as usize - bytes.as_ptr() as usize;
            (start, start + key.len())
        });
        state.last = state.last.next().max(Timestamp::new(millis, 0).min(most));
        places.push(Place { slot, db, at: state.last, key, bytes: (begin, end), added: false });
        if source.relative
            && let Some((key_bytes, ttl)) = relative(&args)
        {
            let begin = added.len();
            let expires = (millis as i64).saturating_add(ttl).to_string();
            put_request(&mut added, &[b"PEXPIREAT", key_bytes, expires.as_bytes()]);
            state.last = state.last.next();
            places.push(Place { slot, db, at: state.last, key, bytes: (begin, added.len()), added: true });
        }
    }
    places.sort_by_key(|p| p.slot);
    let mut meta = Vec::new();
    for place in &places {
        let whole = if place.added { &added } else { bytes };
        meta.clear();
        put_varint(&mut meta, place.db);
        let (key, at, slot) = (&bytes[place.key.0..place.key.1], place.at, place.slot);
        let whole = &whole[place.bytes.0..place.bytes.1];
        let last = whole.len().div_ceil(MAX_PIECE) - 1;
        for (n, piece) in whole.chunks(MAX_PIECE).enumerate() {
            let kind = if n == last { EntryKind::Command } else { EntryKind::CommandPart };
            sink.entry(LogEntry { slot, at, key, put: Some((&meta, piece)), kind })?;
        }
    }
    Ok(state)
}

/// The slot under which a command stands, and its first key; `None` for one that changes nothing.
fn place_of<'k>(touched: &Touches<'k>) -> Option<(u16, Option<&'k [u8]>)> {
    match touched {
        Touches::Select(_) | Touches::Nothing => None,
        Touches::Keys(keys) => {
            let first = *keys.first()?;
            let slot = slot_of(first);
            let one = keys.iter().skip(1).all(|key| slot_of(key) == slot);
            Some((if one { slot } else { ALL_SLOTS }, Some(first)))
        }
        Touches::Database | Touches::Everything | Touches::Unknown | Touches::Functions => Some((ALL_SLOTS, None)),
    }
}

/// Splits the command at `at`: where it ends, and where its words lie; none for an empty line. `None` where it is not whole.
fn split(bytes: &[u8], at: usize, words: &mut Vec<(usize, usize)>) -> Result<Option<usize>> {
    words.clear();
    let Some(&first) = bytes.get(at) else { return Ok(None) };
    if first == b'\n' || first == b'\r' {
        return Ok(Some(at + 1));
    }
    let Some((count, mut at)) = number(bytes, at, b'*')? else { return Ok(None) };
    for _ in 0..count {
        let Some((len, start)) = number(bytes, at, b'$')? else { return Ok(None) };
        let Some(end) = start.checked_add(len).filter(|end| end + 2 <= bytes.len()) else { return Ok(None) };
        words.push((start, end));
        at = end + 2;
    }
    Ok(Some(at))
}

/// A line that begins with `mark`: its number, and where the next one begins.
fn number(bytes: &[u8], at: usize, mark: u8) -> Result<Option<(usize, usize)>> {
    let unreadable = || Error::damaged("the stream of commands holds what is no command");
    let Some(&first) = bytes.get(at) else { return Ok(None) };
    if first != mark {
        return Err(unreadable());
    }
    let mut value = 0usize;
    for (i, &byte) in bytes[at + 1..].iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                value = value
                    .checked_mul(10)
                    .and_then(|v| v.checked_add(usize::from(byte - b'0')))
                    .ok_or_else(unreadable)?;
            }
            b'\r' => return Ok((at + i + 2 < bytes.len()).then_some((value, at + i + 3))),
            _ => return Err(unreadable()),
        }
    }
    Ok(None)
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
        let ended = entries(stretch, (from, Timestamp(after), None), &source, &mut sink).unwrap();
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
    fn times_to_live_of_old_servers_become_absolute() {
        let (seen, _) = read(&stretch(&["SET a 1", "EXPIRE a 10", "SET a 2"]), 1000, 0, true);
        let told: Vec<_> = seen.iter().map(|s| s.2.as_str()).collect();
        assert_eq!(told, ["SET a 1", "EXPIRE a 10", "PEXPIREAT a 10050", "SET a 2"]);
    }

    #[test]
    fn nonsense_is_an_error_and_the_end_is_none() {
        let mut words = Vec::new();
        for whole in [&b"*1\r\n$4\r\nPING\r\n"[..], b"\n", b"*2\r\n$0\r\n\r\n$1\r\nx\r\n"] {
            assert_eq!(split(whole, 0, &mut words).unwrap(), Some(whole.len()));
            for cut in 0..whole.len() {
                assert_eq!(split(&whole[..cut], 0, &mut words).unwrap(), None, "{cut}");
            }
        }
        for bad in [&b"+OK\r\n"[..], b"*1\r\n:3\r\n", b"*1x\r\n", b"*99999999999999999999999\r\n"] {
            assert!(split(bad, 0, &mut words).is_err(), "{bad:?}");
        }
    }
}
