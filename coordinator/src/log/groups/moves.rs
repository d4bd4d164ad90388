//! Groups of nodes between which slots moved.
//!
//! A slot moves key by key, as a rule over several segments: its new node has a key (`RESTORE`) before its old one deletes it, and
//! until the slot is handed over both have commands for it. So all that the old node did comes before all that the new one did, whichever
//! segments they stand in.

use std::collections::BTreeSet;

use tidemark_proto::NodeName;

/// In which order groups come, of which `nodes` says whose they are: the given one, but for groups of nodes that slots came to. These wait for
/// all groups of the nodes that the slots came from (`moves`: from, to). Where nodes wait for each other the given order stays.
pub(super) fn after_moves(nodes: &[&NodeName], moves: &BTreeSet<(NodeName, NodeName)>) -> Vec<usize> {
    let mut names: Vec<&NodeName> = nodes.to_vec();
    names.sort_unstable();
    names.dedup();
    let place = |name: &NodeName| names.binary_search(&name).ok();
    let mut waits_for: Vec<Vec<usize>> = vec![Vec::new(); names.len()];
    for (from, to) in moves {
        if let (Some(from), Some(to)) = (place(from), place(to)) {
            waits_for[to].push(from);
        }
    }
    let of: Vec<usize> = nodes.iter().filter_map(|node| place(node)).collect();
    let (mut left, mut waiting) = (vec![0usize; names.len()], vec![Vec::new(); names.len()]);
    of.iter().for_each(|node| left[*node] += 1);
    let mut out = Vec::with_capacity(of.len());
    for (group, &node) in of.iter().enumerate() {
        waiting[node].push(group);
        // Whoever need not wait any more goes, and may end the wait of others.
        let mut look = vec![node];
        while let Some(node) = look.pop() {
            if waiting[node].is_empty() || waits_for[node].iter().any(|from| left[*from] > 0) {
                continue;
            }
            let gone = std::mem::take(&mut waiting[node]);
            left[node] -= gone.len();
            out.extend(gone);
            if left[node] == 0 {
                look.extend((0..names.len()).filter(|to| waits_for[*to].contains(&node)));
            }
        }
    }
    if out.len() == of.len() { out } else { (0..of.len()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(groups: &str, moves: &[(&str, &str)]) -> String {
        let names: Vec<NodeName> = groups.chars().map(|c| NodeName::new(c.to_string()).unwrap()).collect();
        let name = |name: &str| NodeName::new(name).unwrap();
        let moves = moves.iter().map(|(from, to)| (name(from), name(to))).collect();
        let found = after_moves(&names.iter().collect::<Vec<_>>(), &moves);
        found.into_iter().map(|i| groups.as_bytes()[i] as char).collect()
    }

    #[test]
    fn who_gave_slots_away_comes_before_who_has_them() {
        assert_eq!(order("abcabc", &[]), "abcabc");
        assert_eq!(order("babcba", &[("a", "b")]), "acabbb");
        assert_eq!(order("cbabca", &[("a", "b"), ("b", "c")]), "aabbcc");
        // From one that did nothing there is nothing to wait for.
        assert_eq!(order("abab", &[("z", "a")]), "abab");
        assert_eq!(order("abab", &[("a", "b"), ("b", "a")]), "abab", "each waits for the other");
    }
}
