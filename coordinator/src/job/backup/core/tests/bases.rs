//! Fleets whose nodes take bases before the cut, and whose roles and slots change.

use super::*;

fn redis(n: usize, slots: &SlotSet) -> Description {
    Description { engine: "redis".into(), ..description(n, slots) }
}

/// An honest fleet of Redis nodes; `twist` goes first.
fn play(bench: &mut Bench, mut twist: impl FnMut(&Action) -> Option<Event>) {
    let slots = bench.slots.clone();
    bench.step(Event::Start);
    let mut answer = |action: &Action| {
        twist(action).or_else(|| match *action {
            Action::Describe(n) => Some(Event::Described(n, Ok(redis(n, &slots[n])))),
            _ => None,
        })
    };
    while bench.answer(&mut answer) {}
}

/// Runs a job over its rounds, the same nodes in each, and answers the actions of all.
fn rounds(nodes: u16, mut twist: impl FnMut(&Action) -> Option<Event>) -> (Vec<Action>, Result<()>) {
    let (mut sent, mut used) = (Vec::new(), Used::default());
    for _ in 0..=MAX_REPEATS {
        let mut bench = Bench::new(Settings { used, ..settings(nodes) });
        play(&mut bench, &mut twist);
        sent.append(&mut bench.sent);
        if sent.last() != Some(&Action::Again) {
            return (sent, bench.core.take_outcome().expect("an outcome"));
        }
        assert!(bench.core.take_outcome().is_none(), "a round that another one follows has no outcome");
        used = bench.core.used();
    }
    panic!("a job begins again without end");
}

fn count(sent: &[Action], is: impl Fn(&Action) -> bool) -> usize {
    sent.iter().filter(|a| is(a)).count()
}

fn pauses(sent: &[Action]) -> Vec<(u32, u128)> {
    let first = |a: &Action| match a {
        Action::Hold(0, attempt, budget) => Some((*attempt, budget.as_millis())),
        _ => None,
    };
    sent.iter().filter_map(first).collect()
}

#[test]
fn every_base_stands_before_the_first_hold() {
    let mut bench = Bench::new(settings(3));
    play(&mut bench, |_| None);
    bench.end().unwrap();
    let last_base = bench.sent.iter().rposition(|a| matches!(a, Action::Prepare(_))).unwrap();
    let first_hold = bench.sent.iter().position(|a| matches!(a, Action::Hold(..))).unwrap();
    assert!(last_base < first_hold && bench.count(|a| matches!(a, Action::Prepare(_))) == 3);
    // No round trip where no base is needed.
    let mut bench = Bench::new(settings(3));
    bench.run(|_| None).unwrap();
    assert_eq!(bench.count(|a| matches!(a, Action::Prepare(_))), 0);
}

/// The most bases that were under way on one host, when each takes as long as the others can begin.
fn most_at_once(hosts: [&str; 4], max_parallel_bases: usize) -> (usize, usize) {
    let hosts: Vec<String> = hosts.map(String::from).into();
    let mut bench = Bench::new(Settings { hosts: hosts.clone(), max_parallel_bases, ..settings(4) });
    bench.step(Event::Start);
    let slots = bench.slots.clone();
    for (n, own) in slots.iter().enumerate() {
        bench.step(Event::Described(n, Ok(redis(n, own))));
    }
    let (mut done, mut host, mut fleet) = (Vec::new(), 0, 0);
    let early = |a: &Action| if let Action::PrepareEarly(n) = a { Some(*n) } else { None };
    while bench.count(|a| matches!(a, Action::Hold(..))) == 0 {
        let asked = |a: &Action| if let Action::Prepare(n) = a { Some(*n) } else { None };
        let open: Vec<usize> = bench.sent.iter().filter_map(asked).filter(|n| !done.contains(n)).collect();
        let of = |h: &String| open.iter().filter(|n| hosts[**n] == *h).count();
        host = host.max(hosts.iter().map(of).max().unwrap());
        fleet = fleet.max(open.len());
        // Who comes next knows it, as many as may begin at once, and all before their turn.
        let begun: Vec<usize> = bench.sent.iter().filter_map(asked).collect();
        let next: Vec<usize> = bench.sent.iter().filter_map(early).filter(|n| !begun.contains(n)).collect();
        for name in &hosts {
            let left = (0..4).filter(|n| hosts[*n] == *name && !begun.contains(n));
            let told: Vec<usize> = next.iter().copied().filter(|n| hosts[*n] == *name).collect();
            assert_eq!(told, left.take(max_parallel_bases.max(1)).collect::<Vec<_>>());
        }
        done.push(open[0]);
        bench.step(Event::Prepared(open[0], Ok(())));
    }
    assert_eq!(done.len(), 4);
    let mut told: Vec<usize> = bench.sent.iter().filter_map(early).collect();
    told.sort_unstable();
    assert!(told.windows(2).all(|n| n[0] < n[1]), "a node is told once: {told:?}");
    let sends = |a: &Action| if let Action::UploadEarly(n, own) = a { Some((*n, own.clone())) } else { None };
    let sends: Vec<_> = bench.sent.iter().filter_map(sends).collect();
    let wanted: Vec<_> = done[..3].iter().map(|n| (*n, slots[*n].clone())).collect();
    assert_eq!(sends, wanted, "who waits for the bases of others sends of its own");
    (host, fleet)
}

#[test]
fn bases_are_staggered_by_host() {
    assert_eq!(most_at_once(["a", "a", "a", "a"], 1), (1, 1));
    assert_eq!(most_at_once(["a", "a", "b", "b"], 1), (1, 2));
    assert_eq!(most_at_once(["a", "b", "c", "d"], 1), (1, 4));
    assert_eq!(most_at_once(["a", "a", "a", "b"], 2), (2, 3));
    assert_eq!(most_at_once(["a", "a", "a", "a"], 0), (1, 1), "no setting stops a job for ever");
}

#[test]
fn a_base_that_cannot_be_ends_the_job_at_once() {
    let (sent, outcome) = rounds(3, |a| match *a {
        Action::Prepare(1) => Some(Event::Prepared(1, Err(Error::config("the user lacks +psync")))),
        _ => None,
    });
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(sent.last(), Some(&Action::Settle(false)));
    assert!(pauses(&sent).is_empty());
}

#[test]
fn a_lost_base_leads_to_another_round_within_the_budget() {
    let mut lost = 1;
    let (sent, outcome) = rounds(3, |a| match *a {
        Action::Hold(1, at, _) if lost > 0 => {
            lost -= 1;
            Some(Event::Held(1, at, Err(Error::conflict("no base: the log was lost"))))
        }
        _ => None,
    });
    outcome.unwrap();
    assert_eq!(pauses(&sent), [(1, 0), (2, 50)], "attempts and budgets are counted over the rounds");
    assert_eq!(count(&sent, |a| matches!(a, Action::Prepare(1))), 2);
    assert_eq!(count(&sent, |a| matches!(a, Action::Release(_, 1))), 3);
}

#[test]
fn rounds_end_and_never_pass_the_pause_budget() {
    let (sent, outcome) = rounds(2, |a| match *a {
        Action::Hold(1, at, _) => Some(Event::Held(1, at, Err(Error::conflict("no base")))),
        _ => None,
    });
    let error = outcome.unwrap_err();
    assert!(error.report().contains("after 4 attempts and 200 ms"), "{}", error.report());
    assert_eq!(pauses(&sent), [(1, 0), (2, 50), (3, 100), (4, 50)]);
    // Without a hold it is the number of rounds that ends it.
    let (sent, outcome) = rounds(2, |a| match *a {
        Action::Prepare(1) => Some(Event::Prepared(1, Err(Error::retry("the link broke")))),
        _ => None,
    });
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Retry);
    assert_eq!(count(&sent, |a| *a == Action::Again), MAX_REPEATS as usize);
    assert!(pauses(&sent).is_empty());
}

#[test]
fn a_moved_position_alone_needs_no_other_round() {
    let (sent, outcome) = rounds(3, moving(1));
    outcome.unwrap();
    assert_eq!((count(&sent, |a| *a == Action::Again), pauses(&sent).len()), (0, 2));
}

#[test]
fn a_failover_at_the_cut_leads_to_another_round() {
    let mut failed = false;
    let slots: Vec<SlotSet> = (0..3).map(|i| even_share(i, 3)).collect();
    let (sent, outcome) = rounds(3, |a| match *a {
        Action::Release(2, at) if !std::mem::replace(&mut failed, true) => {
            let other = Ownership { role: "replica".into(), ..ownership(&slots[2]) };
            Some(Event::Released(2, at, Ok(Released { ownership: other, held_micros: 1 })))
        }
        _ => None,
    });
    outcome.unwrap();
    assert_eq!(count(&sent, |a| *a == Action::Again), 1);
    // Nodes that need no base have their slots by configuration: they are held again, as ever.
    let mut bench = Bench::new(settings(3));
    let own = bench.slots[2].clone();
    let mut failed = false;
    bench
        .run(|a| match *a {
            Action::Release(2, at) if !std::mem::replace(&mut failed, true) => {
                let other = Ownership { config_epoch: 9, ..ownership(&own) };
                Some(Event::Released(2, at, Ok(Released { ownership: other, held_micros: 1 })))
            }
            _ => None,
        })
        .unwrap();
    assert_eq!(bench.count(|a| *a == Action::Again), 0);
}

#[test]
fn slots_that_move_are_waited_for_before_any_hold() {
    let mut looks = 0;
    let slots: Vec<SlotSet> = (0..2).map(|i| even_share(i, 2)).collect();
    let (sent, outcome) = rounds(2, |a| match *a {
        Action::Describe(0) => {
            looks += 1;
            let mut d = redis(0, &slots[0]);
            d.ownership.moving = if looks < 5 { SlotSet::range(7, 9) } else { SlotSet::EMPTY };
            Some(Event::Described(0, Ok(d)))
        }
        _ => None,
    });
    outcome.unwrap();
    // Four looks find them moving, one finds them moved, and two more are to find them where they were.
    assert_eq!(count(&sent, |a| matches!(a, Action::WaitForSlots(_))), 4 + 1 + 2);
    assert_eq!(pauses(&sent), [(1, 0)], "waiting costs no pause");
}

#[test]
fn slots_that_move_for_ever_are_named() {
    let mut core = Core::new(settings(1));
    let (mut now, mut actions) = (NOW, core.step(Event::Start, NOW));
    while !matches!(actions[..], [Action::Settle(false)]) {
        let event = match actions[..] {
            [Action::Describe(n)] => {
                let mut d = redis(n, &SlotSet::all());
                d.clock_millis = now.millis();
                d.ownership.moving = SlotSet::range(70, 71);
                Event::Described(n, Ok(d))
            }
            [Action::WaitForSlots(_)] => Event::Waited,
            ref other => panic!("{other:?}"),
        };
        now = Timestamp::new(now.millis() + 500, 0);
        actions = core.step(event, now);
    }
    let waited = now.millis() - NOW.millis();
    assert!(u128::from(waited).abs_diff(SLOTS_PATIENCE.as_millis()) < 2_000, "{waited}");
    let error = core.take_outcome().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.report().contains("70-71") && error.report().contains("node-0"), "{}", error.report());
}

#[test]
fn a_cut_that_meets_moving_slots_is_void_also_when_both_readings_agree() {
    let slots: Vec<SlotSet> = (0..2).map(|i| even_share(i, 2)).collect();
    let (sent, outcome) = rounds(2, |a| match *a {
        Action::Hold(1, 1, _) => {
            let mut h = held(1, 1, &slots[1]);
            h.ownership.moving = SlotSet::range(9000, 9000);
            Some(Event::Held(1, 1, Ok(h)))
        }
        Action::Release(1, 1) => {
            let mut r = released(&slots[1]);
            r.ownership.moving = SlotSet::range(9000, 9000);
            Some(Event::Released(1, 1, Ok(r)))
        }
        _ => None,
    });
    outcome.unwrap();
    assert_eq!(count(&sent, |a| matches!(a, Action::Seal(_, 1, _))), 0);
    assert_eq!(count(&sent, |a| matches!(a, Action::Describe(_))), 4, "it looks again before the next hold");
    assert_eq!(count(&sent, |a| *a == Action::Again), 0);
    // A move that begins inside the cut.
    let (sent, outcome) = rounds(2, |a| match *a {
        Action::Release(1, 1) => {
            let mut r = released(&slots[1]);
            r.ownership.moving = SlotSet::range(9000, 9000);
            Some(Event::Released(1, 1, Ok(r)))
        }
        _ => None,
    });
    outcome.unwrap();
    assert_eq!(pauses(&sent).len(), 2);
}

#[test]
fn a_shard_without_an_agent_and_two_owners_are_named() {
    let mut bench =
        Bench::new(Settings { others: vec!["node-9 (replica)".into()], required: Vec::new(), ..settings(2) });
    bench.slots[1] = SlotSet::range(8192, 16_000);
    play(&mut bench, |_| None);
    let error = bench.end().unwrap_err();
    for word in ["16001-16383", "node-9 (replica)", "an agent beside a primary is missing"] {
        assert!(error.report().contains(word), "{}", error.report());
    }
    let mut bench = Bench::new(settings(2));
    bench.slots[1] = SlotSet::range(8000, 16_383);
    let own = bench.slots[1].clone();
    play(&mut bench, |a| match *a {
        Action::Describe(1) => {
            let mut d = redis(1, &own);
            d.ownership.config_epoch = 12;
            Some(Event::Described(1, Ok(d)))
        }
        _ => None,
    });
    let error = bench.end().unwrap_err();
    for word in ["8000-8191", "node-0 (config epoch 1)", "node-1 (config epoch 12)"] {
        assert!(error.report().contains(word), "{}", error.report());
    }
}

#[test]
fn cancel_while_bases_are_taken_settles_with_every_node() {
    let mut bench = Bench::new(settings(2));
    bench.step(Event::Start);
    let slots = bench.slots.clone();
    for (n, own) in slots.iter().enumerate() {
        bench.step(Event::Described(n, Ok(redis(n, own))));
    }
    assert_eq!(bench.core.phase_name(), "taking bases");
    bench.step(Event::Cancel);
    assert_eq!(bench.sent.last(), Some(&Action::Settle(false)));
    bench.step(Event::Prepared(0, Ok(())));
    bench.todo.clear();
    assert_eq!(bench.end().unwrap_err().kind(), ErrorKind::Cancelled);
}
