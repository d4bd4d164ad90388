//! What is sent of a base before the cut, and over it what differs, is what a full run at the cut is.

use super::*;
use crate::engine::Next;

#[test]
fn what_differs_completes_what_was_sent_before() {
    let mut touched = Vec::new();
    for seed in 0..48 {
        let mut case = Case::new(seed);
        let (mut early, state) = (case.state("early", true), Arc::new(case.state("state", false)));
        (early.over, early.emptied) = Default::default();
        let early = Arc::new(early);
        let of = |name: &str| case.dir.path().join(name);
        let (sent, _, digest, live, _) = run_of(&early, 1 << 30, (&Method::Full, &of("index of early")));
        let over = Method::Over(of("index of early"));
        if case.emptied != Emptied::default() {
            let range = ScanRange::slots(SlotSet::all());
            let told = state.over(&range, &mut |_| Ok(Next::Go)).unwrap_err();
            assert_eq!(told.kind(), ErrorKind::Unsupported, "what was emptied stands nowhere key by key");
            continue;
        }
        // Sent again after a broken attempt, it is the same.
        for _ in 0..2 {
            let (run, entries, more, more_live, _) = run_of(&state, 1 << 30, (&over, &of("index of over")));
            let (whole, all, wanted, live_wanted, _) =
                run_of(&state, 1 << 30, (&Method::Full, &of("index of full")));
            assert_eq!((digest.plus(more), live.wrapping_add(more_live)), (wanted, live_wanted), "seed {seed}");
            assert_eq!(entries, all, "seed {seed}: the key index");
            assert!(run.iter().all(|(key, put)| sent.get(key) != Some(put)), "seed {seed}: sent in vain");
            touched.push(run.len());
            let mut merged = sent.clone();
            merged.extend(run);
            merged.retain(|_, put| put.is_some());
            assert_eq!(merged, whole, "seed {seed}");
        }
    }
    assert!(touched.contains(&0) && touched.iter().any(|n| *n > 20), "{touched:?}");
}
