//! Answers in any order, with any mixture of faults, late answers and a cancel somewhere. A model beside the core sees
//! every event and action and knows what may never happen.

use proptest::prelude::*;

use super::*;

/// What a node does when it is asked.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Honest,
    Retry,
    Damaged,
    Moved,
    Replaced,
    OtherOwner,
    /// Delivers an earlier answer once more, before the honest one.
    Again(usize),
    Cancel,
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        24 => Just(Turn::Honest),
        1 => Just(Turn::Retry),
        1 => Just(Turn::Damaged),
        3 => Just(Turn::Moved),
        1 => Just(Turn::Replaced),
        1 => Just(Turn::OtherOwner),
        4 => any::<usize>().prop_map(Turn::Again),
        1 => Just(Turn::Cancel),
    ]
}

#[derive(Debug, Default)]
struct Model {
    /// Timestamps reported by nodes that held in the present attempt.
    held: Vec<Option<Timestamp>>,
    attempt: u32,
    budgets: Duration,
    clock: u64,
    open: Vec<Action>,
    answered: Vec<Action>,
    holds: Vec<(usize, u32)>,
    cut: Option<Cut>,
    uploaded: Vec<bool>,
    stored: bool,
    committed: bool,
    settled: Option<bool>,
}

impl Model {
    fn emitted(&mut self, action: &Action, settings: &Settings) {
        assert!(self.settled.is_none(), "{action:?} after the end");
        match action {
            Action::Hold(n, attempt, budget) => {
                if *attempt != self.attempt {
                    assert_eq!(*attempt, self.attempt + 1);
                    self.attempt = *attempt;
                    self.held = vec![None; settings.nodes.len()];
                    self.budgets += *budget;
                    assert!(self.budgets <= settings.budget, "the pause budget was passed");
                }
                self.holds.push((*n, *attempt));
            }
            Action::Seal(_, attempt, at) => {
                assert_eq!(*attempt, self.attempt);
                let reported = self.held.iter().map(|h| h.expect("a seal before the last held"));
                assert!(reported.max().is_none_or(|most| *at > most) && *at > settings.last_cut, "T is too low");
            }
            Action::Release(n, attempt) => self.holds.retain(|h| h != &(*n, *attempt)),
            Action::CutDone(cut) => {
                assert!(self.holds.is_empty() && self.cut.is_none() && cut.attempt == self.attempt);
                for (n, node) in cut.nodes.iter().enumerate() {
                    assert_eq!(node.held.position, position(n, cut.attempt), "a reading of another attempt");
                    assert_eq!(node.sealed.position, node.held.position, "a node moved");
                    assert_eq!(node.released.ownership, node.held.ownership, "an owner changed");
                }
                self.cut = Some((**cut).clone());
            }
            Action::Upload(_) => assert!(self.cut.is_some()),
            Action::Store => assert!(self.uploaded.iter().all(|u| *u)),
            Action::Commit => assert!(self.stored),
            Action::Settle(committed) => self.settled = Some(*committed),
            Action::Describe(_) | Action::Wait(_) => {}
            other => panic!("{other:?} in a fleet without bases"),
        }
        if !matches!(action, Action::CutDone(_) | Action::Settle(_)) {
            self.open.push(action.clone());
        }
    }

    fn delivered(&mut self, event: &Event) {
        match event {
            Event::Held(n, a, Ok(h)) if *a == self.attempt => self.held[*n] = Some(h.max_timestamp),
            Event::Uploaded(n, Ok(())) => self.uploaded[*n] = true,
            Event::Stored(Ok(())) => self.stored = true,
            Event::Committed(Ok(())) => self.committed = true,
            _ => {}
        }
    }
}

fn answer(action: &Action, turn: Turn, slots: &[SlotSet]) -> Event {
    let error = match turn {
        Turn::Retry => Some(Error::retry("no word")),
        Turn::Damaged => Some(Error::damaged("nonsense")),
        _ => None,
    };
    let other = ownership(&SlotSet::range(1, 2));
    match (honest(action, slots).expect("only open actions are answered"), error) {
        (Event::Described(n, _), Some(e)) => Event::Described(n, Err(e)),
        (Event::Held(n, a, _), Some(e)) => Event::Held(n, a, Err(e)),
        (Event::Sealed(n, a, _), Some(e)) => Event::Sealed(n, a, Err(e)),
        (Event::Released(n, a, _), Some(e)) => Event::Released(n, a, Err(e)),
        (Event::Uploaded(n, _), Some(e)) => Event::Uploaded(n, Err(e)),
        (Event::Stored(_), Some(e)) => Event::Stored(Err(e)),
        (Event::Committed(_), Some(e)) => Event::Committed(Err(e)),
        (Event::Sealed(n, a, _), None) if matches!(turn, Turn::Moved) => moved(n, a),
        (Event::Held(n, a, Ok(h)), None) => match turn {
            Turn::Replaced => Event::Held(n, a, Ok(Held { incarnation: Incarnation::from_u128(1 << 99), ..h })),
            Turn::OtherOwner => Event::Held(n, a, Ok(Held { ownership: other, ..h })),
            _ => Event::Held(n, a, Ok(h)),
        },
        (Event::Released(n, a, Ok(r)), None) if matches!(turn, Turn::OtherOwner) => {
            Event::Released(n, a, Ok(Released { ownership: other, ..r }))
        }
        (event, _) => event,
    }
}

fn play(nodes: u16, budget: u64, first_without_pause: bool, turns: &[(usize, Turn)]) -> Model {
    let budget = Duration::from_millis(budget);
    let settings = Settings { budget, first_without_pause, ..settings(nodes) };
    let slots: Vec<SlotSet> = (0..nodes).map(|i| even_share(i, nodes)).collect();
    let mut core = Core::new(settings.clone());
    let mut model = Model { uploaded: vec![false; usize::from(nodes)], ..Model::default() };
    let deliver = |core: &mut Core, model: &mut Model, event: Event| {
        model.delivered(&event);
        model.clock += 1;
        let now = Timestamp(NOW.0 + model.clock);
        let actions = core.step(event, now);
        if let Some(Action::Seal(_, _, at)) = actions.first() {
            assert!(*at > now, "T is not above the clock");
        }
        actions.iter().for_each(|a| model.emitted(a, &settings));
    };
    deliver(&mut core, &mut model, Event::Start);
    let mut turns = turns.iter().copied().chain(std::iter::repeat((0, Turn::Honest)));
    while model.settled.is_none() {
        assert!(!model.open.is_empty(), "nothing is asked and the job has not ended");
        let (pick, turn) = turns.next().expect("endless");
        match turn {
            Turn::Cancel => deliver(&mut core, &mut model, Event::Cancel),
            Turn::Again(which) if !model.answered.is_empty() => {
                let old = model.answered[which % model.answered.len()].clone();
                // Answers of the present phase may come twice as well, those of a phase that ends the job may not:
                // its driver has one task for each.
                if matches!(old, Action::Hold(..) | Action::Seal(..) | Action::Release(..) | Action::Describe(_)) {
                    deliver(&mut core, &mut model, answer(&old, Turn::Honest, &slots));
                }
            }
            _ => {
                let action = model.open.swap_remove(pick % model.open.len());
                model.answered.push(action.clone());
                deliver(&mut core, &mut model, answer(&action, turn, &slots));
            }
        }
    }
    let outcome = core.take_outcome().expect("an outcome");
    assert_eq!(model.settled, Some(outcome.is_ok()));
    assert!(model.holds.is_empty(), "not released: {:?}", model.holds);
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_order_and_no_fault_breaks_the_promises(
        nodes in 1u16..5,
        budget in 0u64..500,
        first_without_pause in any::<bool>(),
        turns in proptest::collection::vec((any::<usize>(), turn()), 0..120),
    ) {
        let model = play(nodes, budget, first_without_pause, &turns);
        prop_assert_eq!(model.settled, Some(model.committed));
        if model.committed {
            prop_assert!(model.cut.is_some() && model.stored && model.uploaded.iter().all(|u| *u));
        }
    }
}
