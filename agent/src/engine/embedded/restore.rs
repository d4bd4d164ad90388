//! Restores: from `begin` until `commit` or `abort` the store serves nobody else, also over restarts.
//! What a crash leaves stands in [`super::layout`].

use std::sync::Arc;
use std::time::Instant;

use tidemark_proto::hash::SetDigest;
use tidemark_proto::id::JobId;
use tidemark_proto::{Error, Incarnation, Result, SlotSet, Timestamp};

use super::commit::{self, Mode};
use super::generation::{Commits, Generation};
use super::layout::{Current, Restoring};
use super::load::Staging;
use super::open::{is_empty, new_incarnation};
use super::{Shared, clones};
use crate::engine::{Loader, PartLoader};

/// Block cache of a staged incarnation while it is loaded, in bytes. Once live it gets the full size at a restart.
const STAGING_CACHE: u64 = 8 << 20;

struct StagedLoader {
    shared: Arc<Shared>,
    staging: Arc<Staging>,
}

/// Begins the restore of `job`, or takes it up again.
pub(super) fn begin(shared: &Arc<Shared>, job: JobId, slots: SlotSet, in_place: bool) -> Result<Box<dyn Loader>> {
    let mut staged = shared.staging.lock().expect("staging");
    let (old, commits) = {
        let mut state = shared.gate.lock();
        match state.mode {
            Mode::Restoring(other) if other != job => return Err(commit::restoring(other)),
            Mode::Restoring(_) => {
                drop(state);
                let staging = resume(shared, &mut staged, job, &slots)?;
                return Ok(Box::new(StagedLoader { shared: Arc::clone(shared), staging }));
            }
            _ => state.check_open()?,
        }
        clones::refuse_restore(&state.generation)?;
        if slots.is_empty() {
            return Err(Error::request("a restore into no slots: leave this node out of the plan"));
        }
        // Clients stop here; the group under way is the last.
        state.mode = Mode::Restoring(job);
        state.end_hold(Instant::now());
        state.reading = None;
        shared.gate.refuse_queue(&mut state, || commit::restoring(job));
        shared.gate.notify();
        let state = shared.gate.wait_idle(state);
        (Arc::clone(&state.generation), state.commits)
    };
    let begun = check_target(&old, commits, in_place).and_then(|()| {
        let r = Restoring { job, staged: new_incarnation(), slots };
        let staging = open_staging(shared, &r)?;
        shared.layout.set_restoring(&r)?;
        Ok(staging)
    });
    match begun {
        Ok(staging) => {
            *staged = Some(Arc::clone(&staging));
            Ok(Box::new(StagedLoader { shared: Arc::clone(shared), staging }))
        }
        Err(e) => {
            // Without its file the restore has not begun.
            if shared.layout.restoring().is_ok_and(|r| r.is_none()) {
                reopen(shared, job);
            }
            Err(e)
        }
    }
}

fn check_target(old: &Arc<Generation>, commits: Commits, in_place: bool) -> Result<()> {
    if in_place || is_empty(old, commits)? {
        return Ok(());
    }
    Err(Error::conflict("the store holds records: restore in place if they may be replaced, or into an empty node"))
}

fn open_staging(shared: &Shared, r: &Restoring) -> Result<Arc<Staging>> {
    let dir = shared.layout.data(r.staged);
    let cache = STAGING_CACHE.min(shared.cache_bytes);
    let generation = Generation::open(&dir, r.staged, r.slots.clone(), cache)?;
    Ok(Arc::new(Staging::open(r.job, Arc::new(generation))?))
}

fn resume(shared: &Shared, staged: &mut Option<Arc<Staging>>, job: JobId, slots: &SlotSet) -> Result<Arc<Staging>> {
    let staging = match staged {
        Some(staging) => Arc::clone(staging),
        None => {
            let r = shared.layout.restoring()?.ok_or_else(|| {
                Error::bug(format!("the store is restoring job {job} without a record of it: report this"))
            })?;
            let staging = open_staging(shared, &r)?;
            *staged = Some(Arc::clone(&staging));
            staging
        }
    };
    if staging.generation.slots != *slots {
        return Err(Error::conflict(format!(
            "the restore of job {job} began with the slots {}: abort it, or go on with those",
            staging.generation.slots
        )));
    }
    Ok(staging)
}

/// Serves clients again.
fn reopen(shared: &Shared, job: JobId) {
    let mut state = shared.gate.lock();
    if state.mode == Mode::Restoring(job) {
        state.mode = Mode::Open;
    }
    drop(state);
    shared.gate.notify();
}

impl StagedLoader {
    /// Up to the switch: all of it can be done again.
    fn prepare(&self, at: Timestamp) -> Result<Commits> {
        self.shared.hlc.observe(at)?;
        let commits = Commits { highest: at, ..self.staging.end()? };
        self.staging.generation.set_base(at, commits).inspect_err(|_| self.staging.reopen())?;
        Ok(commits)
    }
}

impl Loader for StagedLoader {
    fn loaded(&self) -> Result<Vec<(u32, SetDigest, SetDigest)>> {
        Ok(self.staging.loaded())
    }

    fn part(&self, number: u32) -> Result<Box<dyn PartLoader>> {
        self.staging.part(number)
    }

    fn in_rows(&self) -> bool {
        true
    }

    fn verify(&self) -> Result<SetDigest> {
        self.staging.verify()
    }

    fn commit(&self, at: Timestamp) -> Result<Incarnation> {
        let (shared, staging) = (&self.shared, &self.staging);
        let mut staged = shared.staging.lock().expect("staging");
        let commits = self.prepare(at)?;
        let generation = Arc::clone(&staging.generation);
        let current = Current { incarnation: generation.incarnation, slots: generation.slots.clone() };
        if let Err(e) = shared.layout.set_current(&current) {
            // The rename may have happened: only a restart tells.
            shared.gate.lock().mode = Mode::Failed(e.report());
            return Err(e.context("the switch to the restored data may or may not stand, restart the agent to see"));
        }
        let cleared = shared.layout.clear_restoring();
        *staged = None;
        let old = {
            let mut state = shared.gate.lock();
            let old = std::mem::replace(&mut state.generation, generation);
            state.commits = commits;
            state.mode = Mode::Open;
            old
        };
        shared.gate.notify();
        old.doom();
        if let Err(e) = cleared {
            tracing::warn!(error = %e.report(), "the restore is finished, its marker goes at the next start");
        }
        Ok(current.incarnation)
    }

    fn abort(&self) -> Result<()> {
        let mut staged = self.shared.staging.lock().expect("staging");
        let _ = self.staging.end()?;
        self.shared.layout.clear_restoring().inspect_err(|_| self.staging.reopen())?;
        *staged = None;
        self.staging.generation.doom();
        reopen(&self.shared, self.staging.job);
        Ok(())
    }
}
