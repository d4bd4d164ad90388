//! Times to live in a log, made absolute.
//!
//! Redis before 7.0 tells its replicas of most times to live as the server was told: relative to the present. By the time the log is
//! applied that present is long over. So behind each such command goes one more, which says when the key expires: from the
//! time at which the command came. The key is not dropped before it: it is applied by a replica, which never expires a key.

use std::path::Path;

use tidemark_proto::{Error, Result};

use super::resp::put_request;
use super::rewrite::{Fate, rewrite};

/// How exactly it is known when a command came, in milliseconds.
const GRAIN: i64 = 100;

/// When the bytes of a stream came.
#[derive(Debug, Clone, Default)]
pub(super) struct Arrivals(Vec<(u64, i64)>);

impl Arrivals {
    /// The stream has come to `position`, at `millis` since 1970.
    pub(super) fn note(&mut self, position: u64, millis: i64) {
        match self.0.last_mut().filter(|(_, at)| (0..GRAIN).contains(&(millis - *at))) {
            Some((end, _)) => *end = position,
            None => self.0.push((position, millis)),
        }
    }

    /// When the byte before `position` came.
    fn of(&self, position: u64) -> Option<i64> {
        let at = self.0.partition_point(|(end, _)| *end < position);
        self.0.get(at).or(self.0.last()).map(|(_, millis)| *millis)
    }
}

/// Whether a server of this name and version sends such times.
pub(super) fn sends_relative(version: &str) -> bool {
    let major =
        version.strip_prefix("redis ").and_then(|v| v.split('.').next()).and_then(|v| v.parse::<u32>().ok());
    major.is_some_and(|major| major < 7)
}

/// Key and time to live, in milliseconds, of a command that says one relative to the present.
pub(super) fn relative<'a>(words: &[&'a [u8]]) -> Option<(&'a [u8], i64)> {
    let number = |at: usize| -> Option<i64> { std::str::from_utf8(words.get(at)?).ok()?.parse().ok() };
    let is = |at: usize, word: &str| words.get(at).is_some_and(|w| w.eq_ignore_ascii_case(word.as_bytes()));
    let option = |from: usize| {
        (from..words.len()).find_map(|at| match () {
            () if is(at, "px") => number(at + 1),
            () if is(at, "ex") => number(at + 1)?.checked_mul(1000),
            () => None,
        })
    };
    let name = words.first()?.to_ascii_lowercase();
    let millis = match &name[..] {
        b"expire" | b"setex" => number(2)?.checked_mul(1000)?,
        b"pexpire" | b"psetex" => number(2)?,
        b"set" => option(3)?,
        b"getex" => option(2)?,
        b"restore" | b"restore-asking" if !(4..words.len()).any(|at| is(at, "absttl")) => number(2)?,
        _ => return None,
    };
    (millis > 0).then_some((*words.get(1)?, millis))
}

/// Writes the first `len` bytes of `log`, which begins at `first` of its stream, to `out`, with absolute times; answers how many bytes
/// that are. Of a word at most `most` bytes are looked at.
pub(super) fn write_absolute(
    log: (&Path, u64),
    (first, arrivals): (u64, &Arrivals),
    most: u64,
    out: &Path,
) -> Result<u64> {
    rewrite(log, most, out, |words, end, behind| {
        if let Some((key, ttl)) = relative(words) {
            let came = arrivals.of(first + end).ok_or_else(|| Error::bug("nobody knows when the log came"))?;
            put_request(behind, &[b"PEXPIREAT", key, came.saturating_add(ttl).to_string().as_bytes()]);
        }
        Ok(Fate::Stays)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_send_relative_times() {
        let sends = |version| sends_relative(version);
        assert!(sends("redis 6.2.14") && sends("redis 5.0.3"));
        assert!(!sends("redis 7.0.15") && !sends("redis 10.1") && !sends("valkey 8.0.1") && !sends(""));
    }

    #[test]
    fn a_time_is_that_of_the_bytes() {
        let mut arrivals = Arrivals::default();
        for (position, millis) in [(10, 1000), (20, 1050), (30, 1100), (40, 900), (50, 950)] {
            arrivals.note(position, millis);
        }
        assert_eq!(arrivals.0, [(20, 1000), (30, 1100), (50, 900)]);
        let of = |position| arrivals.of(position).unwrap();
        assert_eq!([1, 20, 21, 30, 31, 50, 51].map(of), [1000, 1000, 1100, 1100, 900, 900, 900]);
    }

    #[test]
    fn behind_each_relative_time_goes_an_absolute_one() {
        let dir = tempfile::tempdir().unwrap();
        let (log, out) = (dir.path().join("log"), dir.path().join("out"));
        let commands = [
            ("SELECT 3", None),
            ("EXPIRE a 10", Some(("a", 10_000))),
            ("pexpire b 7", Some(("b", 7))),
            ("SETEX c 2 value", Some(("c", 2000))),
            ("PSETEX d 5 value", Some(("d", 5))),
            ("SET e PX PX 9", Some(("e", 9))),
            ("SET f EX", None),
            ("SET f v KEEPTTL EX 3", Some(("f", 3000))),
            ("SET g v PXAT 9", None),
            ("GETEX h EX 4", Some(("h", 4000))),
            ("RESTORE i 6 payload REPLACE", Some(("i", 6))),
            ("RESTORE j 6 payload ABSTTL", None),
            ("RESTORE-ASKING o 6 payload", Some(("o", 6))),
            ("RESTORE k 0 payload", None),
            ("PEXPIREAT l 9", None),
            ("EXPIRE m soon", None),
            ("EXPIRE n -1", None),
            ("MULTI", None),
        ];
        let request = |line: &str| {
            let mut bytes = Vec::new();
            put_request(&mut bytes, &line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
            bytes
        };
        let (mut came, mut wanted, mut arrivals) = (b"\n".to_vec(), b"\n".to_vec(), Arrivals::default());
        for (i, (line, expires)) in commands.into_iter().enumerate() {
            let at = 1_000_000 * (i as i64 + 1);
            came.extend(request(line));
            wanted.extend(request(line));
            arrivals.note(500 + came.len() as u64, at);
            if let Some((key, ttl)) = expires {
                wanted.extend(request(&format!("PEXPIREAT {key} {}", at + ttl)));
            }
        }
        let len = came.len() as u64;
        came.extend_from_slice(b"*1\r\n$4\r\nwhat is not wanted any more");
        std::fs::write(&log, came).unwrap();
        let written = write_absolute((&log, len), (500, &arrivals), 64, &out).unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), wanted);
        assert_eq!(written, wanted.len() as u64);
    }
}
