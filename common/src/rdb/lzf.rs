//! Decompression of LZF as it goes (`lzf_d.c`): back references reach at most 8 KiB, so a window of that size is all the
//! history that is ever needed.

use tidemark_proto::Result;

use super::bytes::Bytes;
use super::damaged;

/// Farthest back that a reference reaches, in bytes.
const HISTORY: usize = 8 << 10;
/// Most bytes that one step makes.
const MOST_OUT: usize = 7 + 255 + 2;
/// Most bytes that one step takes.
const MOST_IN: usize = 33;
/// Most bytes of a literal run.
const MOST_LITERAL: usize = 32;
/// Most bytes of a back reference that counts as short: nearly all are.
const SHORT: usize = 16;
/// Bytes of the buffer: history and what was made from it.
const ROOM: usize = 64 << 10;

/// Memory that is used again for each string.
#[derive(Default)]
pub(super) struct Scratch {
    window: Vec<u8>,
}

/// The bytes that a compressed string means.
pub(super) struct Lzf<'a, B> {
    source: &'a mut B,
    window: &'a mut Vec<u8>,
    /// Compressed bytes not taken yet.
    stored: u64,
    /// Bytes not made yet.
    unmade: u64,
    /// First byte not handed out, and end of what is made.
    at: usize,
    end: usize,
}

impl<'a, B: Bytes> Lzf<'a, B> {
    pub(super) fn new(source: &'a mut B, scratch: &'a mut Scratch, stored: u64, len: u64) -> Self {
        let window = &mut scratch.window;
        if window.is_empty() {
            window.resize(ROOM, 0);
        }
        Self { source, window, stored, unmade: len, at: 0, end: 0 }
    }

    /// Checks that both sides ended together.
    pub(super) fn finish(&mut self) -> Result<()> {
        if self.unmade > 0 || self.stored > 0 || self.at < self.end {
            return Err(damaged("a compressed string of another length than it says"));
        }
        Ok(())
    }

    #[cold]
    fn refill(&mut self, least: usize) -> Result<()> {
        while self.end - self.at < least && self.unmade > 0 {
            if ROOM - self.end < MOST_OUT {
                let keep = self.at.min(self.end.saturating_sub(HISTORY));
                self.window.copy_within(keep..self.end, 0);
                self.at -= keep;
                self.end -= keep;
            }
            self.steps()?;
        }
        Ok(())
    }

    /// As many steps as the bytes at hand and the room allow: at least one.
    fn steps(&mut self) -> Result<()> {
        let wanted = self.stored.min(MOST_IN as u64) as usize;
        let seen = self.source.need(wanted)?;
        let whole = seen.len() as u64 >= self.stored;
        let input = &seen[..if whole { self.stored as usize } else { seen.len() }];
        let mut used = 0;
        while self.unmade > 0 && ROOM - self.end >= MOST_OUT && (whole || input.len() - used >= MOST_IN) {
            let (took, made) = step(&input[used..], self.window, self.end)?;
            if made as u64 > self.unmade {
                return Err(damaged("a compressed string longer than it says"));
            }
            used += took;
            self.end += made;
            self.unmade -= made as u64;
        }
        self.source.consume(used);
        self.stored -= used as u64;
        Ok(())
    }
}

/// One literal run or back reference at the start of `input`: bytes taken, bytes made. There is room for it.
#[inline]
fn step(input: &[u8], window: &mut [u8], end: usize) -> Result<(usize, usize)> {
    let short = || damaged("a compressed string that ends too early");
    let (&control, rest) = input.split_first().ok_or_else(short)?;
    if control < 32 {
        let len = usize::from(control) + 1;
        // Copies of a fixed length cost less than of the right one; what is too much is written over by the next step.
        if let Some(whole) = rest.first_chunk::<MOST_LITERAL>() {
            window[end..end + MOST_LITERAL].copy_from_slice(whole);
        } else {
            window[end..end + len].copy_from_slice(rest.get(..len).ok_or_else(short)?);
        }
        return Ok((1 + len, len));
    }
    let (mut len, mut took) = (usize::from(control >> 5), 2);
    let mut low = *rest.first().ok_or_else(short)?;
    if len == 7 {
        len += usize::from(low);
        low = *rest.get(1).ok_or_else(short)?;
        took = 3;
    }
    let (len, back) = (len + 2, (usize::from(control & 31) << 8 | usize::from(low)) + 1);
    let from =
        end.checked_sub(back).ok_or_else(|| damaged("a compressed string that refers to before its start"))?;
    if let Some(&run) = window[from..end].first_chunk::<SHORT>()
        && len <= SHORT
    {
        window[end..end + SHORT].copy_from_slice(&run);
    } else if back >= len {
        window.copy_within(from..from + len, end);
    } else {
        // The run overlaps what it makes: byte by byte repeats it.
        for i in 0..len {
            window[end + i] = window[from + i];
        }
    }
    Ok((took, len))
}

impl<B: Bytes> Bytes for Lzf<'_, B> {
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
}
