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
    SlotsMove,
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
        1 => Just(Turn::SlotsMove),
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
    /// Nodes whose base stands in this round; `None` where no node needs one.
    based: Option<Vec<bool>>,
    rounds: u32,
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
                assert!(self.based.as_ref().is_none_or(|b| b[*n]), "node {n} is held without a base");
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
                    assert!(node.held.ownership.moving.is_empty(), "a slot was moving");
                }
                self.cut = Some((**cut).clone());
            }
            Action::Upload(_) => assert!(self.cut.is_some()),
            Action::Store => assert!(self.uploaded.iter().all(|u| *u)),
            Action::Commit => assert!(self.stored),
            Action::Settle(committed) => self.settled = Some(*committed),
            Action::Describe(_) | Action::Wait(_) => {}
            Action::Prepare(_) | Action::PrepareEarly(_) => {
                assert!(self.based.is_some() && self.holds.is_empty());
            }
            Action::UploadEarly(n, _) => {
                assert!(self.based.as_ref().expect("asked")[*n] && self.holds.is_empty(), "sent without a base");
            }
            Action::WaitForSlots(_) => assert!(self.holds.is_empty(), "a pause while slots are waited for"),
            Action::Again => {
                assert!(self.holds.is_empty() && self.cut.is_none() && self.based.is_some());
                self.rounds += 1;
                assert!(self.rounds <= MAX_REPEATS);
            }
        }
        use Action::{Again, CutDone, PrepareEarly, Settle, UploadEarly};
        if !matches!(action, CutDone(_) | Settle(_) | Again | PrepareEarly(_) | UploadEarly(..)) {
            self.open.push(action.clone());
        }
    }

    fn delivered(&mut self, event: &Event) {
        match event {
            Event::Held(n, a, Ok(h)) if *a == self.attempt => self.held[*n] = Some(h.max_timestamp),
            Event::Prepared(n, Ok(())) => self.based.as_mut().expect("asked")[*n] = true,
            Event::Uploaded(n, Ok(())) => self.uploaded[*n] = true,
            Event::Stored(Ok(())) => self.stored = true,
            Event::Committed(Ok(())) => self.committed = true,
            _ => {}
        }
    }
}

fn answer(action: &Action, turn: Turn, slots: &[SlotSet], bases: bool) -> Event {
    let error = match turn {
        Turn::Retry => Some(Error::retry("no word")),
        Turn::Damaged => Some(Error::damaged("nonsense")),
        _ => None,
    };
    let other = ownership(&SlotSet::range(1, 2));
    match (honest(action, slots).expect("only open actions are answered"), error) {
        (Event::Described(n, _), Some(e)) => Event::Described(n, Err(e)),
        (Event::Prepared(n, _), Some(e)) => Event::Prepared(n, Err(e)),
        (Event::Described(n, Ok(d)), None) if bases => {
            let mut d = Description { engine: "redis".into(), ..d };
            if matches!(turn, Turn::SlotsMove) {
                d.ownership.moving = SlotSet::range(1, 2);
            }
            Event::Described(n, Ok(d))
        }
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
            Turn::SlotsMove => {
                let moving = Ownership { moving: SlotSet::range(1, 2), ..h.ownership.clone() };
                Event::Held(n, a, Ok(Held { ownership: moving, ..h }))
            }
            _ => Event::Held(n, a, Ok(h)),
        },
        (Event::Released(n, a, Ok(r)), None) if matches!(turn, Turn::OtherOwner) => {
            Event::Released(n, a, Ok(Released { ownership: other, ..r }))
        }
        (event, _) => event,
    }
}

fn play(nodes: u16, budget: u64, (first_without_pause, bases): (bool, bool), turns: &[(usize, Turn)]) -> Model {
    let budget = Duration::from_millis(budget);
    let settings = Settings { budget, first_without_pause, ..settings(nodes) };
    let slots: Vec<SlotSet> = (0..nodes).map(|i| even_share(i, nodes)).collect();
    let mut core = Core::new(settings.clone());
    let based = bases.then(|| vec![false; usize::from(nodes)]);
    let mut model = Model { uploaded: vec![false; usize::from(nodes)], based, ..Model::default() };
    let deliver = |core: &mut Core, model: &mut Model, event: Event| {
        model.delivered(&event);
        model.clock += 1;
        let now = Timestamp(NOW.0 + model.clock);
        let actions = core.step(event, now);
        if let Some(Action::Seal(_, _, at)) = actions.first() {
            assert!(*at > now, "T is not above the clock");
        }
        actions.iter().for_each(|a| model.emitted(a, &settings));
        actions.last() == Some(&Action::Again)
    };
    let mut again = deliver(&mut core, &mut model, Event::Start);
    let mut turns = turns.iter().copied().chain(std::iter::repeat((0, Turn::Honest)));
    while model.settled.is_none() {
        if again {
            // The driver ends what is under way, and its answers with it.
            model.open.clear();
            model.answered.clear();
            model.based.as_mut().expect("only for bases").fill(false);
            core = Core::new(Settings { used: core.used(), ..settings.clone() });
            again = deliver(&mut core, &mut model, Event::Start);
            continue;
        }
        assert!(!model.open.is_empty(), "nothing is asked and the job has not ended");
        let (pick, turn) = turns.next().expect("endless");
        match turn {
            Turn::Cancel => again = deliver(&mut core, &mut model, Event::Cancel),
            Turn::Again(which) if !model.answered.is_empty() => {
                let old = model.answered[which % model.answered.len()].clone();
                // Answers of the present phase may come twice as well, those of a phase that ends the job may not:
                // its driver has one task for each.
                if matches!(old, Action::Hold(..) | Action::Seal(..) | Action::Release(..) | Action::Describe(_)) {
                    again = deliver(&mut core, &mut model, answer(&old, Turn::Honest, &slots, bases));
                }
            }
            _ => {
                let action = model.open.swap_remove(pick % model.open.len());
                model.answered.push(action.clone());
                again = deliver(&mut core, &mut model, answer(&action, turn, &slots, bases));
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
        ways in any::<(bool, bool)>(),
        turns in proptest::collection::vec((any::<usize>(), turn()), 0..120),
    ) {
        let model = play(nodes, budget, ways, &turns);
        prop_assert_eq!(model.settled, Some(model.committed));
        if model.committed {
            prop_assert!(model.cut.is_some() && model.stored && model.uploaded.iter().all(|u| *u));
        }
    }
}
