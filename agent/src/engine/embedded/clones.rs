//! Clones as the store keeps them: made, listed, dropped, read and written.
//!
//! What holds: a clone at T is made only when no commit of the parent can come at or below T any more, also after a restart;
//! its writes go through the parent's committer, so that timestamps only grow over both and a cut holds both. Restores and
//! clones exclude each other: whoever comes second is refused before anything is changed.

use std::sync::Arc;

use tidemark_proto::wire::control::CloneInfo;
use tidemark_proto::{CloneName, Error, ErrorKind, Result, Timestamp};
use tokio::sync::oneshot;

use super::Shared;
use super::generation::Generation;
use super::overlay::{MAX_CLONES, Overlay};
use super::read::View;
use crate::kv::{KvStore, OpenedClone, ScanPage, Versioned, Write};

/// Makes a clone, or finds the same one; answers whether it was made.
pub(super) fn create(shared: &Shared, name: &CloneName, at: Timestamp) -> Result<(CloneInfo, bool)> {
    // Restores begin and end under the same lock.
    let _one = shared.staging.lock().expect("staging");
    let generation = shared.writable()?;
    if let Some(standing) = generation.clone_named(name) {
        if standing.at == at {
            return Ok((standing.info(), false));
        }
        return Err(Error::conflict(format!(
            "clone {name} stands already, as of {}: drop it first, or take another name",
            standing.at
        )));
    }
    if generation.clones().len() >= MAX_CLONES {
        return Err(Error::full(format!("{MAX_CLONES} clones stand on this node already: drop some first")));
    }
    let too_old = |e: Error| match e.kind() {
        ErrorKind::NotFound => Error::not_found(format!(
            "the store keeps nothing as of {at} any more, the oldest is {}: take a later time, or restore a backup \
             beside (`tidemark restore run --target`)",
            generation.safe_point()
        )),
        _ => e,
    };
    generation.check_not_too_old(at).map_err(too_old)?;
    let _closed = shared.gate.settle(&shared.hlc, at)?;
    let overlay = generation.add_clone(name, at, shared.hlc.wall_millis()).map_err(too_old)?;
    tracing::info!(clone = %name, %at, "clone made");
    Ok((overlay.info(), true))
}

/// Drops the clone of this name (with `at`: only if it is of that time) with all its writes; answers whether there was one.
pub(super) fn drop_clone(shared: &Shared, name: &CloneName, at: Option<Timestamp>) -> Result<bool> {
    let _one = shared.staging.lock().expect("staging");
    let generation = shared.writable()?;
    let standing = generation.clone_named(name).filter(|o| at.is_none_or(|at| at == o.at));
    let Some(overlay) = standing else { return Ok(false) };
    let _turn = overlay.collecting.lock().expect("collecting");
    generation.forget_clone(&overlay)?;
    {
        // Groups from here on leave its writes out, and the one under way is waited for.
        let state = shared.gate.lock();
        overlay.set_dropped();
        drop(shared.gate.wait_idle(state));
    }
    if let Err(e) = generation.delete_overlay(&overlay) {
        tracing::warn!(clone = %name, error = %e.report(), "the clone's files stay until the agent is started anew");
    }
    tracing::info!(clone = %name, at = %overlay.at, "clone dropped");
    Ok(true)
}

/// All clones, by name.
pub(super) fn list(shared: &Shared) -> Result<Vec<CloneInfo>> {
    Ok(shared.readable()?.clones().iter().map(|overlay| overlay.info()).collect())
}

/// `Conflict` while clones stand: a restore would take away what lies under them.
pub(super) fn refuse_restore(generation: &Generation) -> Result<()> {
    let names: Vec<_> = generation.clones().iter().map(|o| o.name.to_string()).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(Error::conflict(format!(
        "clones stand on this store ({}): drop them (`tidemark clone drop`), then restore",
        names.join(", ")
    )))
}

/// Opens a clone for clients.
pub(super) fn open(shared: &Arc<Shared>, name: &CloneName) -> Result<OpenedClone> {
    let overlay = shared.readable()?.clone_named(name).ok_or_else(|| {
        Error::not_found(format!("no clone {name} stands here: `tidemark clone list` tells which do"))
    })?;
    Ok(OpenedClone { at: overlay.at, store: Arc::new(CloneStore { shared: Arc::clone(shared), overlay }) })
}

/// A clone as its clients see it.
struct CloneStore {
    shared: Arc<Shared>,
    overlay: Arc<Overlay>,
}

impl CloneStore {
    /// The state at `at`, the newest for `None`.
    fn view(&self, at: Option<Timestamp>) -> Result<View> {
        let (shared, overlay) = (&self.shared, &self.overlay);
        overlay.check_standing()?;
        if let Some(at) = at {
            return View::of_clone(shared.gate.settle(&shared.hlc, at)?, Arc::clone(overlay), at);
        }
        loop {
            let (generation, newest) = {
                let state = shared.gate.lock();
                state.check_readable()?;
                (Arc::clone(&state.generation), state.commits.highest)
            };
            // An idle clone's safe point passes its last commit. If it moves just now, look again.
            let at = newest.max(overlay.safe_point());
            match View::of_clone(generation, Arc::clone(overlay), at) {
                Err(e) if e.kind() == ErrorKind::NotFound && !overlay.is_dropped() => {}
                other => return other,
            }
        }
    }
}

impl KvStore for CloneStore {
    fn commit(&self, writes: Vec<Write>, after: Timestamp) -> oneshot::Receiver<Result<Timestamp>> {
        self.shared.commit(Some(&self.overlay), writes, after)
    }

    fn get(&self, key: &[u8], at: Option<Timestamp>) -> Result<Option<Versioned>> {
        self.view(at)?.get_own(key)
    }

    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        at: Option<Timestamp>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<ScanPage> {
        self.view(at)?.page(prefix, from, limit, max_bytes)
    }
}
