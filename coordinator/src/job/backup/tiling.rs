//! Completeness: what makes a backup whole. The slots of the nodes tile 0..16383 exactly once, and the parts of each
//! node tile its slots and all keys of them.

use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::{Error, Result, SlotSet};

/// Checks that the named slot sets tile all slots exactly once. `Conflict` names the hole or the overlap.
pub fn slots<'a>(owners: impl IntoIterator<Item = (&'a str, &'a SlotSet)>) -> Result<()> {
    let mut seen: Vec<(&str, &SlotSet)> = Vec::new();
    let mut union = SlotSet::EMPTY;
    for (name, set) in owners {
        if let Some((other, both)) =
            seen.iter().map(|(n, s)| (n, s.intersect(set))).find(|(_, both)| !both.is_empty())
        {
            return Err(Error::conflict(format!("slots {both} are owned by both {other} and {name}")));
        }
        union = union.union(set);
        seen.push((name, set));
    }
    let hole = SlotSet::all().minus(&union);
    if hole.is_empty() { Ok(()) } else { Err(Error::conflict(format!("no node owns slots {hole}"))) }
}

/// Checks that the parts tile what was taken from each node: every slot and every key exactly once. Parts ascend by
/// (first slot, lower). `Damaged` names what is wrong.
pub fn parts(parts: &[PartEntry], taken: &[SlotSet]) -> Result<()> {
    let mut tiles = Tiles::new(taken.to_vec());
    parts.iter().try_for_each(|part| tiles.push(part))?;
    tiles.finish()
}

/// The check of [`parts`] for parts that come one after another: it remembers slots, and no part but the last one.
#[derive(Debug)]
pub struct Tiles {
    taken: Vec<SlotSet>,
    covered: Vec<SlotSet>,
    last: Option<Last>,
}

/// The end of the last part.
#[derive(Debug)]
struct Last {
    node: u16,
    region: u16,
    slots: SlotSet,
    upper: Vec<u8>,
}

impl Tiles {
    /// Parts of nodes from which these slots were taken.
    pub fn new(taken: Vec<SlotSet>) -> Self {
        Self { covered: vec![SlotSet::EMPTY; taken.len()], taken, last: None }
    }

    /// The next part.
    pub fn push(&mut self, part: &PartEntry) -> Result<()> {
        let gap = |region| Error::damaged(format!("the parts of region {region} leave a gap or overlap"));
        let follows = self.last.as_ref().filter(|l| l.node == part.node && l.slots == part.slots);
        let begins = match (&self.last, follows) {
            (_, Some(last)) if !last.upper.is_empty() => &last.upper[..],
            (Some(last), None) if !last.upper.is_empty() => return Err(gap(last.region)),
            _ => &[],
        };
        if part.lower != begins || (!part.upper.is_empty() && part.upper <= part.lower) {
            return Err(gap(part.region));
        }
        if part.lower.is_empty() {
            self.cover(part)?;
        }
        match &mut self.last {
            Some(last) if last.node == part.node && last.slots == part.slots => last.upper.clone_from(&part.upper),
            last => {
                let (slots, upper) = (part.slots.clone(), part.upper.clone());
                *last = Some(Last { node: part.node, region: part.region, slots, upper });
            }
        }
        Ok(())
    }

    fn cover(&mut self, part: &PartEntry) -> Result<()> {
        let node = usize::from(part.node);
        let own = self.taken.get(node);
        let own = own.ok_or_else(|| Error::damaged(format!("a part names node {node}, which is not there")))?;
        if part.slots.is_empty() || !part.slots.minus(own).is_empty() {
            return Err(Error::damaged(format!("a part holds slots {} that its node does not own", part.slots)));
        }
        let twice = self.covered[node].intersect(&part.slots);
        if !twice.is_empty() {
            return Err(Error::damaged(format!("slots {twice} are in two parts")));
        }
        self.covered[node] = self.covered[node].union(&part.slots);
        Ok(())
    }

    /// There are no more parts.
    pub fn finish(self) -> Result<()> {
        if let Some(last) = self.last.filter(|l| !l.upper.is_empty()) {
            return Err(Error::damaged(format!("the parts of region {} leave a gap or overlap", last.region)));
        }
        for (own, got) in self.taken.iter().zip(&self.covered) {
            let hole = own.minus(got);
            if !hole.is_empty() {
                return Err(Error::damaged(format!("no part holds slots {hole}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidemark_proto::hash::SetDigest;
    use tidemark_proto::slot::even_share;

    use super::*;

    fn part(node: u16, slots: &SlotSet, lower: &str, upper: &str) -> PartEntry {
        let (lower, upper) = (lower.into(), upper.into());
        PartEntry {
            region: 0,
            node,
            slots: slots.clone(),
            lower,
            upper,
            digest: SetDigest::default(),
            live_bytes: 0,
            runs: vec![],
        }
    }

    #[test]
    fn holes_and_overlaps_of_owners_are_named() {
        let (a, b) = (SlotSet::range(0, 9999), SlotSet::range(10_000, 16_383));
        assert!(slots([("a", &a), ("b", &b)]).is_ok());
        assert!(slots([("a", &a)]).unwrap_err().message().contains("10000-16383"));
        let err = slots([("a", &a), ("b", &b), ("c", &SlotSet::range(5, 6))]).unwrap_err();
        assert!(err.message().contains("5-6") && err.message().contains('a') && err.message().contains('c'));
    }

    #[test]
    fn key_ranges_of_a_region_must_meet() {
        let all = SlotSet::all();
        let check = |list: &[(&str, &str)]| {
            parts(&list.iter().map(|(l, u)| part(0, &all, l, u)).collect::<Vec<_>>(), std::slice::from_ref(&all))
        };
        assert!(check(&[("", "")]).is_ok());
        assert!(check(&[("", "k"), ("k", "")]).is_ok());
        for bad in [
            &[][..],
            &[("", "k")],
            &[("k", "")],
            &[("", "k"), ("l", "")],
            &[("", ""), ("", "")],
            &[("", "k"), ("k", "k"), ("k", "")],
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn one_part_less_or_twice_is_found(nodes in 1u16..6, regions in 1u16..9, pick in any::<prop::sample::Index>()) {
            let taken: Vec<_> = (0..nodes).map(|i| even_share(i, nodes)).collect();
            let mut list = Vec::new();
            for r in 0..regions {
                for (n, own) in taken.iter().enumerate() {
                    let slots = even_share(r, regions).intersect(own);
                    if !slots.is_empty() {
                        list.push(part(n as u16, &slots, "", ""));
                    }
                }
            }
            prop_assert!(parts(&list, &taken).is_ok());
            let mut less = list.clone();
            let gone = less.remove(pick.index(list.len()));
            prop_assert!(parts(&less, &taken).is_err());
            list.push(gone);
            prop_assert!(parts(&list, &taken).is_err());
        }
    }
}
