use tidemark_proto::stored::log::{BEGINS_BRANCH, Segment, SegmentChunk, SegmentNode};
use tidemark_proto::{Incarnation, Timestamp};

use super::*;

const EACH: u16 = 100;

fn slots(ranges: &[(u16, u16)]) -> SlotSet {
    SlotSet::from_ranges(ranges.iter().copied())
}

/// A segment of nodes with their slots, and of chunks by node and region.
fn segment(nodes: &[(&str, SlotSet)], chunks: &[(u16, u16)]) -> Segment {
    let node = |(name, slots): &(&str, SlotSet)| SegmentNode {
        node: name.parse().unwrap(),
        incarnation: Incarnation::from_u128(1),
        slots: slots.clone(),
        from: 0,
        to: 0,
        closed: Timestamp(1),
        key_id: 0,
        salt: [0; 16],
        begins: 0,
    };
    let chunk = |(node, region): &(u16, u16)| SegmentChunk {
        node: *node,
        region: *region,
        number: 0,
        offset: 0,
        len: 1,
        raw_len: 1,
        entries: 1,
        first: Timestamp(5),
        last: Timestamp(5),
    };
    Segment {
        number: 1,
        first: 1,
        stands_for: Default::default(),
        previous: Default::default(),
        epoch: 1,
        put_id: [0; 16],
        at_millis: 0,
        slots_per_region: EACH,
        nodes: nodes.iter().map(node).collect(),
        chunks: chunks.iter().map(chunk).collect(),
    }
}

/// For each group the name of its node, and its regions.
fn groups(segments: Vec<Segment>, slots: &SlotSet) -> Result<Vec<(String, Vec<u16>)>> {
    let log = LogParts::of_segments(segments, EACH);
    let name = |group: Group| {
        let (segment, chunk) = log.chunk(group.pieces[0]);
        let regions = group.pieces.iter().map(|p| log.chunk(*p).1.region).collect();
        (segment.nodes[usize::from(chunk.node)].node.to_string(), regions)
    };
    Ok(log.groups(slots, &[])?.into_iter().map(name).collect())
}

fn shown(groups: &[(String, Vec<u16>)]) -> Vec<(&str, &[u16])> {
    groups.iter().map(|(name, regions)| (name.as_str(), &regions[..])).collect()
}

#[test]
fn who_owned_the_slots_before_comes_first() {
    let (low, high) = (slots(&[(0, 199)]), slots(&[(200, 399)]));
    let whole = || segment(&[("b", low.clone()), ("c", high.clone())], &[(0, 0), (1, 2)]);
    // `b` gives its second region to `a`, whose name and place come before its.
    let moved = segment(
        &[("a", slots(&[(100, 199)])), ("b", slots(&[(0, 99)]))],
        &[(0, 1), (1, 0), (1, 1), (0, ALL_REGIONS), (1, ALL_REGIONS)],
    );
    let found = groups(vec![whole(), moved.clone()], &SlotSet::all()).unwrap();
    let all = ALL_REGIONS;
    assert_eq!(shown(&found), [("b", &[0][..]), ("c", &[2]), ("b", &[0, 1, all]), ("a", &[1, all])]);
    // Of one region: the chunks of it, and what its nodes, old and new, did to several.
    let found = groups(vec![whole(), moved], &slots(&[(120, 130)])).unwrap();
    assert_eq!(shown(&found), [("b", &[1, all][..]), ("a", &[1, all])]);
}

#[test]
fn slots_that_nodes_gave_to_each_other_are_taken_one_after_the_other() {
    let (low, high) = (slots(&[(0, 99)]), slots(&[(100, 199)]));
    let before = || segment(&[("a", low.clone()), ("b", high.clone())], &[]);
    let swapped = |chunks: &[(u16, u16)]| segment(&[("a", high.clone()), ("b", low.clone())], chunks);
    let all = ALL_REGIONS;
    let log = vec![before(), swapped(&[(0, 0), (1, 0), (0, 1), (1, 1), (0, all)])];
    let found = groups(log.clone(), &SlotSet::all()).unwrap();
    assert_eq!(shown(&found), [("a", &[0, all][..]), ("b", &[0]), ("b", &[1]), ("a", &[1, all])]);
    let parts = LogParts::of_segments(log, EACH);
    let each: Vec<_> = parts.groups(&SlotSet::all(), &[]).unwrap().into_iter().map(|g| g.slots).collect();
    let set = |counted: &SlotSet| GroupSlots { counted: counted.clone(), emptied: counted.clone() };
    // Slots that nobody has are of the first set.
    let (first, second) = (SlotSet::all().minus(&high), set(&high));
    assert_eq!(each[1].counted, first);
    assert_eq!((&each[0].emptied, &each[2], &each[3]), (&low, &second, &second));
    assert!(parts.were_exchanged(&SlotSet::all(), &[]).unwrap() && !parts.were_exchanged(&low, &[]).unwrap());
}

#[test]
fn who_has_slots_again_comes_behind_those_that_had_them_meanwhile() {
    let (whole, low, high) = (slots(&[(0, 199)]), slots(&[(0, 99)]), slots(&[(100, 199)]));
    let at = |a: &SlotSet, chunks: &[(u16, u16)]| segment(&[("a", a.clone()), ("b", whole.minus(a))], chunks);
    // Slot 100 and those behind it go to `b` and come back; both have commands for them in several segments.
    let (both, own) = ([(0, 0), (0, 1), (1, 1)], [(0, 0), (0, 1)]);
    let log = || vec![at(&whole, &own), at(&whole, &both), at(&low, &both), at(&low, &both), at(&whole, &both)];
    let order = |log: Vec<Segment>| {
        let found = groups(log, &high).unwrap();
        found.into_iter().map(|(name, _)| name).collect::<String>()
    };
    assert_eq!(order(log()), "bbbbaaaaa");
    assert_eq!(order(log()[..4].to_vec()), "aaaabbb");
    // As long as it was not told who has them, `b` comes last that never had them.
    let nobody = [at(&whole, &own), segment(&[("a", low.clone()), ("b", SlotSet::EMPTY)], &both)];
    assert_eq!(order(nobody.to_vec()), "aab");
    // Both claim them: who got them last has them.
    let claimed = [at(&whole, &own), segment(&[("a", whole.clone()), ("b", high.clone())], &both)];
    assert_eq!(order(claimed.to_vec()), "aab");
}

#[test]
fn what_a_node_owns_behind_the_time_does_not_count() {
    let (low, high) = (slots(&[(0, 99)]), slots(&[(100, 199)]));
    let nodes = |a: &SlotSet, b: &SlotSet| [("a", a.clone()), ("b", b.clone())];
    let mut log = vec![
        segment(&nodes(&low.union(&high), &SlotSet::EMPTY), &[]),
        segment(&nodes(&low, &high), &[(0, 1), (1, 1)]),
        segment(&nodes(&low.union(&high), &SlotSet::EMPTY), &[(0, 1), (1, 1)]),
    ];
    log[2].nodes.iter_mut().for_each(|node| node.closed = Timestamp(100));
    log[2].chunks.iter_mut().for_each(|chunk| (chunk.first, chunk.last) = (Timestamp(50), Timestamp(60)));
    let order = |at: u64| {
        let parts = LogParts::until(log.clone(), EACH, Timestamp(at));
        let found = parts.groups(&high, &[]).unwrap();
        let name = |g: &Group| parts.chunk(g.pieces[0]).1.node;
        found.iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!((order(40), order(100)), (vec![0, 1], vec![1, 1, 0, 0]));
    // What `a` says of a time before the backup is not what it owned at it.
    let base = [(&"a".parse().unwrap(), &low), (&"b".parse().unwrap(), &high)];
    let mut stale = log[0].clone();
    stale.nodes.truncate(1);
    let of = |after| {
        Owners::new(std::slice::from_ref(&stale), base, (Timestamp(after), Timestamp(40))).nodes[0][0].clone()
    };
    assert_eq!((of(0).owned, of(1).owned), (low.union(&high), low.clone()));
}

#[test]
fn a_failover_and_its_way_back_are_one_chain() {
    let all = SlotSet::all();
    let one = |name: &str, from: u64, begins: u8| {
        let mut segment = segment(&[(name, all.clone())], &[(0, 0)]);
        (segment.nodes[0].from, segment.nodes[0].to, segment.nodes[0].begins) = (from, from + 10, begins);
        segment
    };
    let log = [one("a", 10, 0), one("r", 20, BEGINS_BRANCH), one("a", 30, BEGINS_BRANCH), one("a", 40, 0)];
    let names = |log: &[Segment]| {
        let found = groups(log.to_vec(), &all).unwrap();
        found.into_iter().map(|(name, _)| name).collect::<String>()
    };
    assert_eq!(names(&log), "araa");
    // The replica takes over from a node that only the backup knows.
    let parts = LogParts::of_segments(log[1..].to_vec(), EACH);
    let owners = Owners::new(&parts.segments, [(&"a".parse().unwrap(), &all)], (Timestamp::ZERO, Timestamp::MAX));
    assert!(owners.nodes.iter().flatten().all(|of| of.chain == 0), "{owners:?}");
    // The way back alone: the backup knows the node, the log begins with its replica.
    let back = [one("r", 20, 0), one("a", 30, BEGINS_BRANCH), one("a", 40, 0)];
    let parts = LogParts::of_segments(back.to_vec(), EACH);
    let owners = Owners::new(&parts.segments, [(&"a".parse().unwrap(), &all)], (Timestamp::ZERO, Timestamp::MAX));
    let chains: Vec<usize> = owners.nodes.iter().flatten().map(|of| of.chain).collect();
    assert!(chains.iter().all(|chain| *chain == chains[0]), "{owners:?}");
    // A node of its own that gets the slots key by key.
    let own = [one("a", 10, 0), one("r", 99, 0), one("a", 20, BEGINS_BRANCH)];
    assert_eq!(names(&own), "aar");
}

#[test]
fn a_slot_that_went_and_came_back_is_as_its_owner_left_it() {
    let (low, high) = (slots(&[(0, 99)]), slots(&[(100, 199)]));
    let nodes = [("a", low.clone()), ("b", high.clone())];
    // Slots of `a` were at `b` meanwhile; both have run commands on several slots.
    let all = ALL_REGIONS;
    let chunks = [(0, 0), (1, 0), (1, 1), (0, all), (1, all)];
    let log = vec![segment(&nodes, &[]), segment(&nodes, &chunks)];
    let found = groups(log.clone(), &SlotSet::all()).unwrap();
    assert_eq!(shown(&found), [("b", &[0, 1, all][..]), ("a", &[0, all])]);
    assert_eq!(shown(&groups(log, &low).unwrap()), [("b", &[0][..]), ("a", &[0, all])]);
    // Through `c`, from `a` to `b`.
    let three = |a: &SlotSet, b: &SlotSet| [("a", a.clone()), ("b", b.clone()), ("c", slots(&[(900, 999)]))];
    let (none, both) = (SlotSet::EMPTY, low.union(&high));
    let passed = segment(&three(&none, &both), &[(0, 0), (1, 0), (2, 0)]);
    let found = groups(vec![segment(&three(&low, &high), &[]), passed], &SlotSet::all()).unwrap();
    assert_eq!(shown(&found), [("c", &[0][..]), ("a", &[0]), ("b", &[0])]);
    // Both had some of the other's: one after the other.
    let swapped = segment(&nodes, &[(0, 0), (0, 1), (1, 0), (1, 1)]);
    let found = groups(vec![segment(&nodes, &[]), swapped], &SlotSet::all()).unwrap();
    assert_eq!(shown(&found), [("b", &[0][..]), ("a", &[0]), ("a", &[1]), ("b", &[1])]);
}

#[test]
fn who_has_given_its_slots_away_empties_nothing_more() {
    let (low, high) = (slots(&[(0, 99)]), slots(&[(100, 199)]));
    let first = segment(&[("a", low.union(&high)), ("b", SlotSet::EMPTY)], &[]);
    let moved = segment(&[("a", low.clone()), ("b", high.clone())], &[(1, 1)]);
    let flush = segment(&[("a", low.clone())], &[(0, ALL_REGIONS)]);
    let found = groups(vec![first, moved, flush], &high).unwrap();
    assert_eq!(shown(&found), [("b", &[1][..])]);
}
