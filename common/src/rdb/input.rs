//! A reader with a window over it, a checksum of what went through, and a tap for the raw bytes of values.

use std::io::{ErrorKind as Io, Read};

use tidemark_proto::{Error, Result};

use super::bytes::{Bytes, MOST_PEEK};
use super::crc::Crc64;
use super::damaged;

/// Bytes in the window.
const WINDOW: usize = 128 << 10;

/// Takes the raw bytes of a value as they are read.
pub(super) trait Tap {
    fn raw(&mut self, piece: &[u8]) -> Result<()>;
}

/// No raw bytes wanted.
pub(super) struct NoTap;

impl Tap for NoTap {
    fn raw(&mut self, _piece: &[u8]) -> Result<()> {
        Ok(())
    }
}

pub(super) struct Input<R, T> {
    source: R,
    pub(super) tap: T,
    window: Box<[u8]>,
    /// First unread byte and end of the bytes in the window.
    at: usize,
    end: usize,
    ended: bool,
    crc: Crc64,
    /// Up to here the window is in the checksum.
    summed: usize,
    /// From here on the window has raw bytes that the tap has not seen, when somebody wants them.
    untapped: Option<usize>,
    tapped: u64,
    /// Bytes that have left the window.
    gone: u64,
    /// Leave out what an older layout does not have.
    pub(super) strip_newer: bool,
    /// Leave out what only the newest layout has.
    pub(super) strip_newest: bool,
}

impl<R: Read, T: Tap> Input<R, T> {
    pub(super) fn new(source: R, tap: T) -> Self {
        Self {
            source,
            tap,
            window: vec![0; WINDOW].into_boxed_slice(),
            at: 0,
            end: 0,
            ended: false,
            crc: Crc64::new(),
            summed: 0,
            untapped: None,
            tapped: 0,
            gone: 0,
            strip_newer: false,
            strip_newest: false,
        }
    }

    /// Bytes taken so far.
    pub(super) fn position(&self) -> u64 {
        self.gone + self.at as u64
    }

    /// Checksum of the bytes taken so far.
    pub(super) fn checksum(&mut self) -> u64 {
        self.sum();
        self.crc.value()
    }

    /// From here on the tap gets what is taken.
    pub(super) fn open_tap(&mut self) {
        (self.untapped, self.tapped) = (Some(self.at), 0);
    }

    /// Ends it; the number of bytes that the tap got.
    pub(super) fn close_tap(&mut self) -> Result<u64> {
        self.flush_tap()?;
        self.untapped = None;
        Ok(self.tapped)
    }

    /// What was read from the source and not taken.
    pub(super) fn unread(&self) -> &[u8] {
        &self.window[self.at..self.end]
    }

    /// Whether nothing follows.
    pub(super) fn at_end(&mut self) -> Result<bool> {
        Ok(self.peek(1)?.is_empty())
    }

    fn sum(&mut self) {
        self.crc.update(&self.window[self.summed..self.at]);
        self.summed = self.at;
    }

    fn flush_tap(&mut self) -> Result<()> {
        if let Some(from) = self.untapped
            && from < self.at
        {
            self.tap.raw(&self.window[from..self.at])?;
            self.tapped += (self.at - from) as u64;
            self.untapped = Some(self.at);
        }
        Ok(())
    }

    /// Makes room and reads until `least` bytes are there or the source ends.
    #[cold]
    fn refill(&mut self, least: usize) -> Result<()> {
        self.sum();
        self.flush_tap()?;
        self.window.copy_within(self.at..self.end, 0);
        self.gone += self.at as u64;
        self.end -= self.at;
        (self.at, self.summed) = (0, 0);
        self.untapped = self.untapped.map(|_| 0);
        debug_assert!(least <= MOST_PEEK);
        while self.end < least && !self.ended {
            match self.source.read(&mut self.window[self.end..]) {
                Ok(0) => self.ended = true,
                // A reader that claims more than there was room for is wrong; what it wrote cannot be known.
                Ok(count) if count > self.window.len() - self.end => return Err(damaged("its reader overran")),
                Ok(count) => self.end += count,
                Err(e) if e.kind() == Io::Interrupted => {}
                Err(e) => return Err(Error::retry("cannot read RDB data").with_source(e)),
            }
        }
        Ok(())
    }
}

impl<R: Read, T: Tap> Bytes for Input<R, T> {
    #[inline]
    fn peek(&mut self, least: usize) -> Result<&[u8]> {
        if self.end - self.at < least {
            self.refill(least)?;
        }
        Ok(&self.window[self.at..self.end])
    }

    #[inline]
    fn consume(&mut self, count: usize) {
        self.at = (self.at + count).min(self.end);
    }

    fn consume_newer(&mut self, count: usize) -> Result<()> {
        if self.strip_newer {
            self.flush_tap()?;
            self.consume(count);
            self.untapped = self.untapped.map(|_| self.at);
        } else {
            self.consume(count);
        }
        Ok(())
    }

    fn only_newest_follows(&mut self) -> Result<()> {
        if self.strip_newest {
            self.flush_tap()?;
            self.untapped = None;
        }
        Ok(())
    }
}
