//! A fleet that is off in exactly one way, which the error must name.

use super::*;

/// Runs with one description or first reading changed, in every attempt.
fn refused(
    describe: impl Fn(usize, &mut Description),
    hold: impl Fn(usize, &mut Held),
    release: impl Fn(usize, &mut Released),
) -> (Error, Bench) {
    let mut bench = Bench::new(settings(3));
    let slots = bench.slots.clone();
    let error = bench
        .run(|action| match *action {
            Action::Describe(n) => {
                let mut d = description(n, &slots[n]);
                describe(n, &mut d);
                Some(Event::Described(n, Ok(d)))
            }
            Action::Hold(n, a, _) => {
                let mut h = held(n, a, &slots[n]);
                hold(n, &mut h);
                Some(Event::Held(n, a, Ok(h)))
            }
            Action::Release(n, a) => {
                let mut r = released(&slots[n]);
                release(n, &mut r);
                Some(Event::Released(n, a, Ok(r)))
            }
            _ => None,
        })
        .unwrap_err();
    assert!(bench.core.cut().is_none() && bench.count(|a| matches!(a, Action::Upload(_))) == 0);
    (error, bench)
}

#[test]
fn an_answer_that_lay_here_while_the_coordinator_slept_blames_no_clock() {
    let all = SlotSet::all();
    let read = |after_the_question: i64| Description {
        clock_millis: NOW.millis().strict_add_signed(after_the_question),
        ..description(0, &all)
    };
    let outcome = |clock: i64| {
        let mut core = Core::new(settings(1));
        let _ = core.step(Event::Start, NOW);
        let woken = Timestamp::new(NOW.millis() + 90_000, 0);
        let held = core.step(Event::Described(0, Ok(read(clock))), woken);
        core.take_outcome().map_or(Ok(held), |outcome| outcome.map(|()| Vec::new()))
    };
    // Read right after the question, at any time since, or by a clock that is off by no more than the limit.
    for clock in [-60_000, 0, 45_000, 90_000, 150_000] {
        assert!(matches!(outcome(clock).unwrap()[..], [Action::Hold(0, 1, _)]), "{clock}");
    }
    for clock in [-60_001, 150_001] {
        assert_eq!(outcome(clock).unwrap_err().kind(), ErrorKind::Config, "{clock}");
    }
}

#[test]
fn a_wrong_clock_is_refused_by_name() {
    for clock in [NOW.millis() - 60_001, NOW.millis() + 60_001] {
        let (error, bench) = refused(
            |n, d| {
                if n == 2 {
                    d.clock_millis = clock
                }
            },
            |_, _| (),
            |_, _| (),
        );
        assert!(error.kind() == ErrorKind::Config && error.message().contains("node-2"), "{error}");
        assert!(bench.budgets().is_empty(), "no node is held for a backup that cannot be");
        let (error, _) = refused(
            |_, _| (),
            |n, h| {
                if n == 1 {
                    h.clock_millis = clock
                }
            },
            |_, _| (),
        );
        assert!(error.kind() == ErrorKind::Config && error.message().contains("node-1"), "{error}");
    }
    let mut bench = Bench::new(settings(1));
    let all = SlotSet::all();
    let edge = Description { clock_millis: NOW.millis() + 60_000, ..description(0, &all) };
    let mut edge = Some(edge);
    bench.run(|a| matches!(a, Action::Describe(_)).then(|| Event::Described(0, Ok(edge.take().unwrap())))).unwrap();
}

#[test]
fn a_node_that_is_not_available_is_refused_by_name() {
    let (error, _) = refused(
        |n, d| {
            if n == 1 {
                d.state = "restoring".into()
            }
        },
        |_, _| (),
        |_, _| (),
    );
    assert!(error.kind() == ErrorKind::Conflict && error.message().contains("node-1 is restoring"), "{error}");
}

#[test]
fn holes_and_overlaps_are_refused_by_name() {
    let narrow = |n: usize, o: &mut Ownership| {
        if n == 1 {
            o.slots = o.slots.minus(&SlotSet::range(7000, 7001))
        }
    };
    let wide = |n: usize, o: &mut Ownership| {
        if n == 1 {
            o.slots = o.slots.union(&SlotSet::range(3, 4))
        }
    };
    let (error, bench) = refused(|n, d| narrow(n, &mut d.ownership), |_, _| (), |_, _| ());
    assert!(error.message().contains("7000-7001") && bench.budgets().is_empty(), "{error}");
    let (error, _) = refused(|n, d| wide(n, &mut d.ownership), |_, _| (), |_, _| ());
    assert!(["3-4", "node-0", "node-1"].iter().all(|w| error.message().contains(w)), "{error}");
    // The first reading decides, not what was said before it.
    let (error, _) = refused(|_, _| (), |n, h| narrow(n, &mut h.ownership), |n, r| narrow(n, &mut r.ownership));
    assert!(error.message().contains("7000-7001"), "{error}");
    let (error, _) = refused(|_, _| (), |n, h| wide(n, &mut h.ownership), |n, r| wide(n, &mut r.ownership));
    assert!(error.message().contains("3-4"), "{error}");
}

#[test]
fn a_node_that_is_away_is_named_with_its_slots() {
    let mut all = settings(3);
    let name = all.nodes.remove(2);
    let mut bench = Bench::new(all);
    bench.slots = (0..2).map(|i| even_share(i, 3)).collect();
    let error = bench.run(|_| None).unwrap_err();
    assert!(error.message().contains(&name) && error.message().contains("10923-16383"), "{error}");
}

#[test]
fn replaced_data_and_a_changed_owner_are_refused_by_name() {
    let (error, _) = refused(
        |_, _| (),
        |n, h| {
            if n == 1 {
                h.incarnation = Incarnation::from_u128(99)
            }
        },
        |_, _| (),
    );
    assert!(error.message().contains("node-1") && error.message().contains("replaced"), "{error}");
    let changes: [fn(&mut Ownership); 3] =
        [|o| o.role = "replica".into(), |o| o.config_epoch += 1, |o| o.moving = SlotSet::range(1, 1)];
    for change in changes {
        let (error, bench) = refused(
            |_, _| (),
            |_, _| (),
            |n, r| {
                if n == 2 {
                    change(&mut r.ownership)
                }
            },
        );
        assert!(error.message().contains("node-2") && error.kind() == ErrorKind::Conflict, "{error}");
        assert_eq!(bench.budgets(), [0, 50, 100, 50], "a changed owner may have settled by the next attempt");
    }
}

/// What a peer of another build could send: ranges out of order, which arithmetic on slots must not meet.
fn out_of_order() -> SlotSet {
    let good = tidemark_proto::frame::to_archive(&SlotSet::range(5, 9)).into_vec();
    let swapped = good.iter().map(|b| match b {
        5 => 9,
        9 => 5,
        other => *other,
    });
    let set: SlotSet = tidemark_proto::frame::from_archive(&swapped.collect::<Vec<_>>()).unwrap();
    assert!(!set.is_canonical());
    set
}

#[test]
fn slots_out_of_order_are_refused_by_name() {
    let (error, _) = refused(
        |_, _| (),
        |n, h| {
            if n == 1 {
                h.ownership.slots = out_of_order()
            }
        },
        |_, _| (),
    );
    assert!(error.kind() == ErrorKind::Damaged && error.message().contains("node-1"), "{error}");
}

#[test]
fn two_clocks_too_far_apart_are_told_of_before_any_seal() {
    let ahead = Timestamp::new(NOW.millis() + 50_000, 0);
    let (error, bench) = refused(
        |n, d| d.clock_millis = NOW.millis() - if n == 1 { 20_000 } else { 0 },
        |n, h| {
            h.clock_millis = NOW.millis() - if n == 1 { 20_000 } else { 0 };
            h.max_timestamp = h.max_timestamp.max(if n == 2 { ahead } else { Timestamp::ZERO });
        },
        |_, _| (),
    );
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.report().contains("node node-1 is 70000 ms behind the cut"), "{}", error.report());
    assert_eq!(bench.count(|a| matches!(a, Action::Seal(..))), 0);
    assert_eq!(bench.count(|a| matches!(a, Action::Release(..))), 3);
}
