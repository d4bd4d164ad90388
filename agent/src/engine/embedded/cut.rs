//! The cut: hold, seal, release; see the contract of `Engine`.

use std::time::{Duration, Instant};

use tidemark_common::clock::Hlc;
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{Held, Ownership, Sealed};
use tidemark_proto::{Error, Result, Timestamp};

use super::commit::{Gate, Hold, Reading, State};
use super::{SEAL_LEASE, ownership, position};

/// Parks the committer for at most `budget` and reads where the store stands.
pub(super) fn hold(gate: &Gate, hlc: &Hlc, job: JobId, budget: Duration) -> Result<Held> {
    let mut state = gate.lock();
    state.check_open()?;
    let now = Instant::now();
    if budget.is_zero() {
        state.end_hold(now);
        gate.notify();
        return Ok(read(&mut state, hlc, job));
    }
    let deadline = now + budget;
    // Over a hold that still stands, writes have been held since that one began.
    let since = state.hold.as_ref().filter(|h| h.deadline > now).map_or(now, |h| h.since);
    state.hold = Some(Hold { job, since, deadline });
    // A parked committer waits for the old deadline, an idle one for work: both look again.
    gate.notify();
    let Some(mut state) = gate.wait_idle_until(state, deadline) else {
        let mut state = gate.lock();
        if state.hold.as_ref().is_some_and(|h| h.job == job) {
            state.end_hold(Instant::now());
        }
        drop(state);
        gate.notify();
        return Err(Error::retry(format!(
            "the commit under way did not end within the budget of {budget:?}: the disk is slow; \
             try again with a larger budget"
        )));
    };
    state.check_open()?;
    Ok(read(&mut state, hlc, job))
}

/// The first reading.
fn read(state: &mut State, hlc: &Hlc, job: JobId) -> Held {
    let (incarnation, offset) = (state.generation.incarnation, state.commits.position);
    state.reading = Some(Reading { job, incarnation, position: offset, highest: state.commits.highest });
    Held {
        position: position(incarnation, offset),
        max_timestamp: hlc.last().max(state.commits.highest),
        ownership: ownership(&state.generation.slots),
        incarnation,
        clock_millis: hlc.wall_millis(),
    }
}

/// The second reading: binds all later commits above `at`, then pins `at`.
pub(super) fn seal(gate: &Gate, hlc: &Hlc, job: JobId, at: Timestamp) -> Result<Sealed> {
    let generation = {
        let state = gate.lock();
        state.check_open()?;
        let reading = match &state.reading {
            Some(r) if r.job == job => r,
            _ => return Err(Error::conflict(format!("job {job} holds no reading of this store: hold first"))),
        };
        let (incarnation, position) = (state.generation.incarnation, state.commits.position);
        // A commit under way will move the position, and may have drawn a timestamp below `at`.
        let moves = state.busy && state.moving;
        if (reading.incarnation, reading.position) != (incarnation, position) || moves {
            return Err(Error::conflict(format!(
                "the store moved on since it was held (from {} to {position} or more commits): \
                 the cut is void, hold again with a larger budget",
                reading.position
            )));
        }
        // What was committed since is in clones, and may lie above.
        if at < reading.highest {
            return Err(Error::request(format!(
                "a cut at {at} is below the last commit at {}: draw its timestamp after all nodes have held",
                reading.highest
            )));
        }
        hlc.observe(at)?;
        std::sync::Arc::clone(&state.generation)
    };
    // From here on every commit is above `at`, so writing the pin may take its time.
    generation.pin(&crate::engine::job_pin(job), at, SEAL_LEASE, hlc.wall_millis())?;
    let offset = gate.lock().reading.as_ref().filter(|r| r.job == job).map(|r| r.position);
    let offset = offset.ok_or_else(|| Error::conflict("another hold replaced this one: the cut is void"))?;
    Ok(Sealed { position: position(generation.incarnation, offset) })
}

/// Ends the hold of `job` and tells for how long writes were held.
pub(super) fn release(gate: &Gate, job: JobId) -> Result<(Ownership, Duration)> {
    let mut state = gate.lock();
    if state.hold.as_ref().is_some_and(|h| h.job == job) {
        state.end_hold(Instant::now());
    }
    let held = state.ended.filter(|(of, _)| *of == job).map_or(Duration::ZERO, |(_, held)| held);
    let slots = ownership(&state.generation.slots);
    drop(state);
    gate.notify();
    Ok((slots, held))
}
