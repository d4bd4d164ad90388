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
    let mut covered = vec![SlotSet::EMPTY; taken.len()];
    let mut i = 0;
    while i < parts.len() {
        let group = parts[i..].iter().take_while(|p| p.slots == parts[i].slots && p.node == parts[i].node).count();
        chain(&parts[i..i + group])?;
        let first = &parts[i];
        let node = usize::from(first.node);
        let own = taken
            .get(node)
            .ok_or_else(|| Error::damaged(format!("a part names node {node}, which is not there")))?;
        if first.slots.is_empty() || !first.slots.minus(own).is_empty() {
            return Err(Error::damaged(format!("a part holds slots {} that its node does not own", first.slots)));
        }
        if !covered[node].intersect(&first.slots).is_empty() {
            return Err(Error::damaged(format!(
                "slots {} are in two parts",
                covered[node].intersect(&first.slots)
            )));
        }
        covered[node] = covered[node].union(&first.slots);
        i += group;
    }
    for (own, got) in taken.iter().zip(&covered) {
        let hole = own.minus(got);
        if !hole.is_empty() {
            return Err(Error::damaged(format!("no part holds slots {hole}")));
        }
    }
    Ok(())
}

/// Parts of the same slots follow each other without a gap from the first key to the last.
fn chain(parts: &[PartEntry]) -> Result<()> {
    let mut at: &[u8] = &[];
    for (i, part) in parts.iter().enumerate() {
        let last = i + 1 == parts.len();
        if part.lower != at || part.upper.is_empty() != last || (!last && part.upper <= part.lower) {
            return Err(Error::damaged(format!("the parts of region {} leave a gap or overlap", part.region)));
        }
        at = &part.upper;
    }
    Ok(())
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
