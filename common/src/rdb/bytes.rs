//! Where the walker takes bytes from: a source with a window, and a part of one.

use tidemark_proto::Result;

use super::cut;

/// Most bytes that can be asked for at once.
pub(super) const MOST_PEEK: usize = 64;

/// Unread bytes of something that may be far longer than memory.
pub(super) trait Bytes {
    /// At least `least` unread bytes (at most [`MOST_PEEK`]); fewer only where it ends.
    fn peek(&mut self, least: usize) -> Result<&[u8]>;

    /// Takes bytes that were seen.
    fn consume(&mut self, count: usize);

    /// Takes bytes that were seen, that an older layout of the type does not have: conversions leave them out.
    fn consume_newer(&mut self, count: usize) -> Result<()> {
        self.consume(count);
        Ok(())
    }

    /// What follows of the value is of its newest layout alone: conversions leave it out.
    fn only_newest_follows(&mut self) -> Result<()> {
        Ok(())
    }

    /// At least `count` unread bytes, or the error that it ends.
    #[inline]
    fn need(&mut self, count: usize) -> Result<&[u8]> {
        let seen = self.peek(count)?;
        if seen.len() < count { Err(cut()) } else { Ok(seen) }
    }

    /// Takes `N` bytes.
    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let array = *self.need(N)?.first_chunk::<N>().ok_or_else(cut)?;
        self.consume(N);
        Ok(array)
    }

    /// Takes one byte.
    #[inline]
    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Takes `len` bytes, piece by piece.
    #[inline]
    fn pass(&mut self, mut len: u64, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()>
    where
        Self: Sized,
    {
        while len > 0 {
            let seen = self.need(1)?;
            let count = seen.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            take(&seen[..count])?;
            self.consume(count);
            len -= count as u64;
        }
        Ok(())
    }
}

/// The next so many bytes of another source.
pub(super) struct Limited<'a, B> {
    source: &'a mut B,
    left: u64,
}

impl<'a, B: Bytes> Limited<'a, B> {
    pub(super) fn new(source: &'a mut B, len: u64) -> Self {
        Self { source, left: len }
    }
}

impl<B> Limited<'_, B> {
    pub(super) fn left(&self) -> u64 {
        self.left
    }
}

impl<B: Bytes> Bytes for Limited<'_, B> {
    #[inline]
    fn peek(&mut self, least: usize) -> Result<&[u8]> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let wanted = least.min(most);
        let seen = self.source.peek(wanted)?;
        // A source that ends inside one of its strings is cut off, and not just at its end.
        if seen.len() < wanted { Err(cut()) } else { Ok(&seen[..seen.len().min(most)]) }
    }

    #[inline]
    fn consume(&mut self, count: usize) {
        self.source.consume(count);
        self.left -= count as u64;
    }
}

/// Bytes in memory.
impl Bytes for &[u8] {
    #[inline]
    fn peek(&mut self, _least: usize) -> Result<&[u8]> {
        Ok(self)
    }

    #[inline]
    fn consume(&mut self, count: usize) {
        *self = self.get(count..).unwrap_or_default();
    }
}
