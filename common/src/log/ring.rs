//! The last log lines of this process.

use std::collections::VecDeque;
use std::io::{Stderr, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that are kept.
pub const MAX_BYTES: usize = 256 << 10;
/// Longest line that is kept whole, in bytes.
pub const MAX_LINE: usize = 4 << 10;

/// The last lines. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct LogRing(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        for line in text.lines() {
            let end = line.floor_char_boundary(MAX_LINE);
            let mut kept = line[..end].to_owned();
            if end < line.len() {
                kept.push_str(" ...");
            }
            self.bytes += kept.len();
            self.lines.push_back(kept);
        }
        while self.bytes > MAX_BYTES {
            self.bytes -= self.lines.pop_front().map_or(0, |l| l.len());
        }
    }
}

impl LogRing {
    /// The lines, oldest first, each ended by a line end.
    pub fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.lines.iter().fold(String::with_capacity(lines.bytes + lines.lines.len()), |mut all, line| {
            all.push_str(line);
            all.push('\n');
            all
        })
    }
}

/// Writes to standard error, and keeps what it writes.
#[derive(Debug)]
pub struct Tee {
    ring: LogRing,
    stderr: Stderr,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // One call holds one line or more, whole: that is how tracing-subscriber writes events.
        self.ring.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        self.stderr.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stderr.flush()
    }
}

impl<'a> MakeWriter<'a> for LogRing {
    type Writer = Tee;

    fn make_writer(&'a self) -> Tee {
        Tee { ring: self.clone(), stderr: std::io::stderr() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_kept() {
        let ring = LogRing::default();
        for n in 0..100_000 {
            ring.0.lock().unwrap().push(format!("line {n}\n").as_bytes());
        }
        let text = ring.text();
        assert!(text.ends_with("line 99999\n") && !text.contains("line 5\n"));
        assert!(text.lines().map(str::len).sum::<usize>() <= MAX_BYTES);
        ring.0.lock().unwrap().push("ü".repeat(MAX_LINE).as_bytes());
        assert!(ring.text().ends_with("ü ...\n"), "a long line is cut between characters");
    }
}
