//! Opening the live incarnation of a store.

use std::ops::ControlFlow;
use std::sync::Arc;

use tidemark_proto::{Error, Incarnation, Result, SlotSet, Timestamp};

use super::Options;
use super::generation::{Commits, Generation};
use super::layout::{Current, Layout};
use super::read::View;
use crate::engine::{ScanRange, Snapshot as _};

/// Opens the live incarnation, makes the first one in a new directory, and removes what crashes left.
pub(super) fn open_current(layout: &Layout, options: &Options) -> Result<(Arc<Generation>, Commits)> {
    let mut current = match layout.current()? {
        Some(current) => current,
        None => {
            let fresh = Current { incarnation: new_incarnation(), slots: options.slots.clone() };
            layout.set_current(&fresh)?;
            fresh
        }
    };
    let mut keep = vec![current.incarnation];
    match layout.restoring()? {
        Some(r) if r.staged == current.incarnation => layout.clear_restoring()?,
        Some(r) => keep.push(r.staged),
        None => {}
    }
    layout.clean(&keep)?;
    let dir = layout.data(current.incarnation);
    let open = |slots: SlotSet| Generation::open(&dir, current.incarnation, slots, options.cache_bytes);
    let generation = Arc::new(open(options.slots.clone())?);
    let commits = generation.commits()?;
    if current.slots != options.slots {
        refuse_outside(&generation, commits, &current.slots, &options.slots)?;
        current.slots = options.slots.clone();
        layout.set_current(&current)?;
    }
    Ok((generation, commits))
}

/// `Config` when live records lie outside the slots that the node is told to serve.
fn refuse_outside(g: &Arc<Generation>, commits: Commits, was: &SlotSet, now: &SlotSet) -> Result<()> {
    let newest = |safe: Timestamp| commits.highest.max(safe);
    let mut views = vec![View::new(Arc::clone(g), newest(g.safe_point()))?];
    for overlay in g.clones() {
        let at = newest(overlay.safe_point());
        views.push(View::of_clone(Arc::clone(g), overlay, at)?);
    }
    let mut found = None;
    for view in views {
        view.scan(&ScanRange::slots(SlotSet::all().minus(now)), &mut |record| {
            found = Some(record.slot);
            Ok(ControlFlow::Break(()))
        })?;
    }
    found.map_or(Ok(()), |slot| {
        Err(Error::config(format!(
            "the store holds records of slot {slot}, but the configuration gives this node the slots {now}: \
             set them back to {was}, or restore a backup into the new ones"
        )))
    })
}

/// Whether `generation` holds no live record.
pub(super) fn is_empty(generation: &Arc<Generation>, commits: Commits) -> Result<bool> {
    let view = View::new(Arc::clone(generation), commits.highest.max(generation.safe_point()))?;
    let mut empty = true;
    view.scan(&ScanRange::slots(SlotSet::all()), &mut |_| {
        empty = false;
        Ok(ControlFlow::Break(()))
    })?;
    Ok(empty)
}

pub(super) fn new_incarnation() -> Incarnation {
    Incarnation::from_u128(rand::random())
}
