//! Sets of slots whose commands can be taken in one order.
//!
//! A slot moves key by key, as a rule over several segments: its new node has a key (`RESTORE`) before its old one deletes it, and
//! until the slot is handed over both have commands for it. At a time at which no slot moves a slot's keys are those that the
//! stream of its owner alone leaves. So all that others did to it comes before all that its last owner did, whichever segments they stand in,
//! and if that had the slot before, what it did then comes behind what others did meanwhile: it deleted the keys that it gave away.

use std::collections::BTreeSet;

use tidemark_proto::SlotSet;

use super::owners::History;

/// Slots, and which chains come before which others for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) slots: SlotSet,
    before: BTreeSet<(usize, usize)>,
}

/// Puts slots into sets, each into the first one whose order theirs fits. With each history come the chains that only passed: they have
/// commands for some of the slots and never owned any like them. What these did came with the keys to the owner since, and is void;
/// unless nobody owns the slots, as it was not told yet.
pub(super) fn sets(histories: Vec<(History, BTreeSet<usize>)>) -> Vec<Set> {
    let mut out: Vec<Set> = Vec::new();
    for (History { slots, chains, is_owned }, passed) in histories {
        let mut before = BTreeSet::new();
        for (i, to) in chains.iter().enumerate() {
            before.extend(chains[..i].iter().map(|from| (*from, *to)));
            before.extend(passed.iter().map(|chain| if is_owned { (*chain, *to) } else { (*to, *chain) }));
        }
        let fits = out.iter_mut().find_map(|set| {
            let both: BTreeSet<_> = set.before.union(&before).copied().collect();
            is_ordered(&both).then_some((set, both))
        });
        match fits {
            Some((set, both)) => (set.slots, set.before) = (set.slots.union(&slots), both),
            None => out.push(Set { slots, before }),
        }
    }
    out
}

/// Whether nobody comes before itself.
fn is_ordered(before: &BTreeSet<(usize, usize)>) -> bool {
    let mut left = before.clone();
    loop {
        let waits: BTreeSet<usize> = left.iter().map(|(_, to)| *to).collect();
        let more: BTreeSet<_> = left.iter().copied().filter(|(from, _)| waits.contains(from)).collect();
        if more.len() == left.len() {
            return left.is_empty();
        }
        left = more;
    }
}

impl Set {
    /// In which order groups come, of which `chains` says whose they are: the given one, but that some wait for all groups of others.
    pub(super) fn order(&self, chains: &[usize]) -> Vec<usize> {
        let most = chains.iter().max().map_or(0, |most| most + 1);
        let (mut left, mut waiting) = (vec![0usize; most], vec![Vec::new(); most]);
        chains.iter().for_each(|chain| left[*chain] += 1);
        let waits_for =
            |chain: usize| self.before.iter().filter(move |(_, to)| *to == chain).map(|(from, _)| *from);
        let mut out = Vec::with_capacity(chains.len());
        for (group, &chain) in chains.iter().enumerate() {
            waiting[chain].push(group);
            // Whoever need not wait any more goes, and may end the wait of others.
            let mut look = vec![chain];
            while let Some(chain) = look.pop() {
                let waits = waits_for(chain).any(|from| left.get(from).is_some_and(|left| *left > 0));
                if waiting[chain].is_empty() || waits {
                    continue;
                }
                let gone = std::mem::take(&mut waiting[chain]);
                left[chain] -= gone.len();
                out.extend(gone);
                if left[chain] == 0 {
                    look.extend(self.before.iter().filter(|(from, _)| *from == chain).map(|(_, to)| *to));
                    look.retain(|chain| *chain < most);
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(slot: u16, chains: &[usize]) -> (History, BTreeSet<usize>) {
        (History { slots: SlotSet::range(slot, slot), chains: chains.to_vec(), is_owned: true }, BTreeSet::new())
    }

    fn order(groups: &[usize], histories: &[&[usize]]) -> Vec<usize> {
        let found = sets(histories.iter().enumerate().map(|(i, chains)| history(i as u16, chains)).collect());
        assert_eq!(found.len(), 1);
        found[0].order(groups).into_iter().map(|i| groups[i]).collect()
    }

    #[test]
    fn who_gave_slots_away_comes_before_who_has_them() {
        assert_eq!(order(&[0, 1, 2, 0, 1, 2], &[&[0], &[1]]), [0, 1, 2, 0, 1, 2]);
        assert_eq!(order(&[1, 0, 1, 2, 1, 0], &[&[0, 1]]), [0, 2, 0, 1, 1, 1]);
        assert_eq!(order(&[2, 1, 0, 1, 2, 0], &[&[0, 1], &[1, 2]]), [0, 0, 1, 1, 2, 2]);
        // From one that did nothing there is nothing to wait for; what lies before it counts all the same.
        assert_eq!(order(&[0, 1, 0, 1], &[&[9, 0]]), [0, 1, 0, 1]);
        assert_eq!(order(&[1, 0, 1], &[&[0, 9, 1]]), [0, 1, 1]);
    }

    #[test]
    fn slots_that_were_exchanged_are_of_several_sets() {
        let found = sets(vec![history(1, &[0, 1]), history(2, &[1, 0]), history(3, &[2]), history(4, &[2, 1, 0])]);
        let slots: Vec<String> = found.iter().map(|set| set.slots.to_string()).collect();
        assert_eq!(slots, ["1,3", "2,4"]);
        assert_eq!(found[0].order(&[1, 0, 1]), [1, 0, 2]);
        assert_eq!(found[1].order(&[1, 0, 1]), [0, 2, 1]);
    }

    #[test]
    fn who_never_owned_a_slot_comes_first_unless_nobody_owns_it() {
        let passed = |is_owned| {
            let (history, _) = history(1, &[0]);
            sets(vec![(History { is_owned, ..history }, BTreeSet::from([1]))])[0].order(&[0, 1, 0])
        };
        assert_eq!(passed(true), [1, 0, 2]);
        assert_eq!(passed(false), [0, 2, 1]);
    }
}
