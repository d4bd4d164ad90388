//! Members of a set in order, in bounded memory: the value is walked as often as its members fill the room.

use std::collections::BTreeSet;

use tidemark_common::rdb::{Family, RawValue, Role, ValueVisitor};
use tidemark_proto::Result;

/// Bytes of members that are sorted at once.
pub(super) const ROOM: usize = 32 << 20;
/// What a member takes beside its bytes.
const OVERHEAD: usize = 48;

/// Shows the members of a set to `each`, in the order of their bytes.
pub(super) fn members<V: RawValue + ?Sized>(
    type_byte: u8,
    family: Family,
    raw: &V,
    room: usize,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut after = None;
    loop {
        let mut smallest = Smallest {
            after: after.as_deref(),
            room,
            text: Vec::new(),
            kept: BTreeSet::new(),
            bytes: 0,
            more: false,
        };
        raw.show(type_byte, family, &mut smallest)?;
        let (mut kept, more) = (smallest.kept, smallest.more);
        kept.iter().try_for_each(|member| each(member))?;
        if !more {
            return Ok(());
        }
        after = kept.pop_last();
    }
}

/// The smallest members after one of them.
struct Smallest<'a> {
    after: Option<&'a [u8]>,
    room: usize,
    text: Vec<u8>,
    kept: BTreeSet<Vec<u8>>,
    bytes: usize,
    /// Whether there are others.
    more: bool,
}

impl ValueVisitor for Smallest<'_> {
    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self, _role: Role) -> Result<()> {
        let member = std::mem::take(&mut self.text);
        if self.after.is_some_and(|after| member[..] <= *after) {
            return Ok(());
        }
        // One that was left out is greater than all that are kept, and so is this.
        if self.more && self.kept.last().is_some_and(|last| member > *last) {
            return Ok(());
        }
        self.bytes += member.len() + OVERHEAD;
        let _ = self.kept.insert(member);
        // One stays, however large: each walk shows one at least.
        while self.bytes > self.room && self.kept.len() > 1 {
            self.bytes -= self.kept.pop_last().map_or(0, |m| m.len() + OVERHEAD);
            self.more = true;
        }
        Ok(())
    }
}
