//! Windows from chains of segments.

use tidemark_proto::stored::log::SegmentRange;

use super::*;

fn node(name: &str, slots: (u16, u16), incarnation: u128, from: u64, to: u64, begins: bool) -> NodeSpan {
    NodeSpan {
        node: NodeName::new(name).unwrap(),
        incarnation: Incarnation::from_u128(incarnation),
        slots: SlotSet::range(slots.0, slots.1),
        from,
        to,
        closed: Timestamp(to),
        begins,
        branches: false,
    }
}

const LOW: (u16, u16) = (0, 8191);
const HIGH: (u16, u16) = (8192, 16383);

fn of(segments: Vec<Vec<NodeSpan>>) -> Windows {
    let mut chains = Chains::default();
    for (i, nodes) in segments.into_iter().enumerate() {
        let (range, epoch) = (SegmentRange::one(i as u64 + 1), 1);
        chains.push(&SegmentInfo { range, epoch, nodes, ..SegmentInfo::default() });
    }
    chains.windows()
}

fn spans(windows: &Windows) -> Vec<(u64, u64)> {
    windows.intervals.iter().map(|i| (i.start.0, i.end.0)).collect()
}

#[test]
fn the_end_is_what_all_have_closed() {
    let windows = of(vec![
        vec![node("a", LOW, 1, 10, 10, true)],
        vec![node("b", HIGH, 2, 12, 12, true), node("a", LOW, 1, 10, 20, false)],
        vec![node("a", LOW, 1, 20, 30, false)],
        vec![node("b", HIGH, 2, 12, 25, false)],
    ]);
    assert_eq!(spans(&windows), [(12, 25)]);
    assert_eq!(windows.intervals[0].ended, None);
    let at = |n| JobId::from_u128(n);
    let cuts = [(Timestamp(11), at(1)), (Timestamp(15), at(2)), (Timestamp(24), at(3)), (Timestamp(26), at(4))];
    let restorable = windows.restorable(&cuts);
    assert_eq!((restorable[0].earliest.0, restorable[0].latest.0, restorable[0].bases.len()), (15, 25, 2));
    assert!(windows.restorable(&cuts[..1]).is_empty(), "a backup before the log");
}

#[test]
fn gaps_new_data_and_lost_segments_end_an_interval() {
    let whole = |from, to, begins| vec![node("a", (0, 16383), 1, from, to, begins)];
    assert_eq!(spans(&of(vec![whole(5, 5, true), whole(5, 9, false), whole(10, 20, false)])), [(5, 9), (20, 20)]);
    let other = vec![node("a", (0, 16383), 2, 9, 20, false)];
    assert_eq!(spans(&of(vec![whole(5, 9, true), other])), [(9, 9), (20, 20)]);

    let mut chains = Chains::default();
    chains.push(&SegmentInfo {
        range: SegmentRange::one(1),
        epoch: 2,
        nodes: whole(5, 5, true),
        ..SegmentInfo::default()
    });
    chains.push(&SegmentInfo {
        range: SegmentRange::one(2),
        epoch: 1,
        nodes: whole(5, 50, false),
        ..SegmentInfo::default()
    });
    assert_eq!(spans(&chains.windows()), [(5, 5)], "the late write of a fenced coordinator");
    chains.lose("segment 3: gone");
    assert_eq!(chains.windows().intervals[0].ended.as_deref(), Some("segment 3: gone"));
    assert!(chains.open().is_none() && chains.chains().is_empty());
}

#[test]
fn who_takes_slots_over_ends_the_log_of_their_old_owner() {
    let windows = of(vec![
        vec![node("a", (0, 16383), 1, 5, 5, true)],
        vec![node("b", HIGH, 2, 7, 7, true)],
        vec![node("a", LOW, 1, 9, 9, true)],
        vec![node("a", LOW, 1, 9, 15, false), node("b", HIGH, 2, 7, 13, false)],
    ]);
    assert_eq!(spans(&windows), [(5, 5), (9, 13)]);
}

fn pointed(segments: Vec<(Vec<NodeSpan>, &[u64])>) -> Windows {
    let mut chains = Chains::default();
    for (i, (nodes, points)) in segments.into_iter().enumerate() {
        let points = Some(points.iter().map(|at| Timestamp(*at)).collect());
        let range = SegmentRange::one(i as u64 + 1);
        chains.push(&SegmentInfo { range, epoch: 1, nodes, points, ..SegmentInfo::default() });
    }
    chains.windows()
}

fn points_of(interval: &Interval) -> &[Timestamp] {
    interval.points.as_ref().unwrap().newest()
}

fn branch(node: NodeSpan) -> NodeSpan {
    NodeSpan { branches: true, ..node }
}

#[test]
fn points_are_those_inside_and_backups_count_where_they_are_one() {
    let windows = pointed(vec![
        (vec![node("a", LOW, 1, 10, 10, true)], &[9]),
        (vec![node("b", HIGH, 2, 12, 12, true), node("a", LOW, 1, 10, 20, false)], &[11, 12]),
        (vec![node("a", LOW, 1, 20, 30, false), node("b", HIGH, 2, 12, 26, false)], &[25]),
        // The cut of a backup, which the session heard of a moment later.
        (vec![node("b", HIGH, 2, 26, 28, false)], &[15]),
    ]);
    let interval = &windows.intervals[0];
    assert_eq!(points_of(interval), [12, 15, 25].map(Timestamp), "ascending, from the begin on");
    assert_eq!(interval.latest(Timestamp(24)), Some(Timestamp(15)));
    assert_eq!(interval.latest(Timestamp(11)), None);
    let at = |n| JobId::from_u128(n);
    let restorable = windows.restorable(&[(Timestamp(14), at(1)), (Timestamp(15), at(2))]);
    assert_eq!((restorable[0].earliest.0, restorable[0].latest.0, restorable[0].bases.len()), (15, 25, 1));
}

#[test]
fn a_log_goes_on_in_another_history_on_another_node_and_with_other_slots() {
    let all = (0, 16383);
    let failover = pointed(vec![
        (vec![node("a", all, 1, 10, 10, true)], &[]),
        (vec![branch(node("a", all, 2, 10, 20, false))], &[20]),
        (vec![branch(node("b", all, 2, 20, 30, false))], &[30]),
        (vec![node("b", all, 2, 30, 40, false)], &[40]),
    ]);
    assert_eq!(spans(&failover), [(10, 40)]);
    let gap = pointed(vec![
        (vec![node("a", all, 1, 10, 10, true)], &[]),
        (vec![branch(node("b", all, 2, 11, 30, false))], &[30]),
    ]);
    assert_eq!(spans(&gap), [(10, 10), (30, 30)], "nothing connects them");
    let moved = pointed(vec![
        (vec![node("a", LOW, 1, 5, 5, true), node("b", HIGH, 2, 5, 5, true)], &[]),
        (vec![branch(node("a", (0, 99), 1, 5, 9, false)), branch(node("b", (100, 16383), 2, 5, 9, false))], &[9]),
    ]);
    assert_eq!(spans(&moved), [(5, 9)]);
}

#[test]
fn nodes_without_slots_hold_nothing_up_and_begin_before_slots_come() {
    let mut empty = node("c", LOW, 3, 7, 7, true);
    empty.slots = SlotSet::EMPTY;
    let windows = pointed(vec![
        (vec![node("a", LOW, 1, 5, 5, true), node("b", HIGH, 2, 5, 5, true)], &[]),
        (vec![empty], &[]),
        (vec![node("a", LOW, 1, 5, 20, false), node("b", HIGH, 2, 5, 20, false)], &[20]),
        (vec![branch(node("c", (0, 99), 3, 7, 30, false)), branch(node("a", (100, 8191), 1, 20, 30, false))], &[]),
        (vec![node("b", HIGH, 2, 20, 31, false)], &[30]),
    ]);
    assert_eq!(spans(&windows), [(5, 30)]);
    assert_eq!(points_of(&windows.intervals[0]), [20, 30].map(Timestamp));
}
