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
use super::times::Times;
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

    /// Offset up to which it goes.
    pub(super) fn end(&self) -> u64 {
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

    /// Takes a command that changes nothing, behind the offset `before`: it may begin a transaction or end one.
    fn border(&mut self, args: &[&[u8]], before: u64, millis: u64, times: &mut Times) {
        let is = |word: &[u8]| args.len() == 1 && args[0].eq_ignore_ascii_case(word);
        if is(b"MULTI") {
            times.begin(before, (self.places.len(), self.added.len()));
        } else if is(b"EXEC")
            && let Some((from, first)) = times.end(millis, self.places.len())
        {
            for (n, place) in self.places[from..].iter_mut().enumerate() {
                place.at = Timestamp(first.0 + n as u64);
            }
        }
    }

    /// Forgets all but the first so many commands and added bytes.
    fn cut_back(&mut self, (places, added): (usize, usize)) {
        self.places.truncate(places);
        self.order.truncate(places);
        self.added.truncate(added);
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
    /// Whether a transaction follows whose end is not there.
    pub(super) waits: bool,
    /// Behind it slots move as a whole: that is not for the log.
    pub(super) moving: bool,
}

/// Which commands of a stretch a batch gives out.
pub(super) struct Part {
    /// Those behind this offset.
    pub(super) from: u64,
    /// They get timestamps above this.
    pub(super) after: Timestamp,
    /// And stay below this, also those that came later than the time that it tells.
    pub(super) ceiling: Option<Timestamp>,
    /// Whether a transaction whose end is not there is divided, if there is nothing before it; else it is left for later.
    pub(super) divide: bool,
}

/// Gives out the entries of the commands of a part, by ascending slot.
pub(super) fn entries(
    stretch: &Stretch,
    part: &Part,
    source: &Source<'_>,
    found: &mut Found,
    sink: &mut dyn LogSink,
) -> Result<Ended> {
    found.clear();
    let (mut to, mut at, mut db, mut words, mut came) = (part.from, 0, stretch.db, Vec::new(), 0);
    let mut moving = false;
    let bytes = &stretch.bytes;
    let mut args: Vec<&[u8]> = Vec::new();
    // Room for every command that may follow.
    let most = part.ceiling.map(|at| Timestamp(at.0.saturating_sub(2 * (bytes.len() as u64 / LEAST_COMMAND + 1))));
    let mut times = Times::new(part.after, most.unwrap_or(Timestamp::MAX));
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
                moving = offset > part.from && touched == Touches::Moving;
                place_of(&touched)
            }
        };
        if offset <= part.from {
            continue;
        }
        if moving {
            break;
        }
        let before = std::mem::replace(&mut to, offset);
        let Some((slot, key)) = place else {
            found.border(&args, before, millis, &mut times);
            continue;
        };
        let key = key.map_or((0, 0), |key| {
            let start = key.as_ptr() as usize - bytes.as_ptr() as usize;
            span(start, start + key.len())
        });
        let at = times.next(millis);
        found.push(slot, Place { db, at, key, bytes: span(begin, end), added: false });
        if source.relative
            && let Some((key_bytes, ttl)) = relative(&args)
        {
            let begin = found.added.len();
            let expires = (millis as i64).saturating_add(ttl).to_string();
            put_request(&mut found.added, &[b"PEXPIREAT", key_bytes, expires.as_bytes()]);
            let (at, bytes) = (times.next(millis), span(begin, found.added.len()));
            found.push(slot, Place { db, at, key, bytes, added: true });
        }
    }
    let left = times.open().filter(|open| open.to > part.from || !part.divide);
    if left.is_some()
        && let Some(open) = times.leave()
    {
        to = open.to;
        found.cut_back(open.found);
    }
    found.give(bytes, sink)?;
    Ok(Ended { to, last: times.last, waits: left.is_some(), moving })
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
mod tests;
