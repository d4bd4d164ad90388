//! Collection of old versions.
//!
//! The change index says which keys have versions that may go: those written at or below the safe point. For each the
//! newest version at or below the safe point stays (unless it is a delete: then it goes with everything older), all
//! older ones go, and so do the index entries. The safe point is durable before anything goes. A key's delete marker
//! goes last, so that a crash never uncovers what it hid.
//!
//! The writes of clones are collected in the same way, each clone up to its own safe point. A delete there stays while the
//! parent holds the key that it hides.
//!
//! A pass works in chunks with pauses between them and keeps its place, so that it never holds commits up for long.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use fjall::{Keyspace, OwnedWriteBatch, Readable, UserKey};
use tidemark_common::clock::Hlc;
use tidemark_proto::slot::SLOT_COUNT;
use tidemark_proto::{Result, Timestamp};

use super::commit::{Gate, Mode};
use super::generation::{Collected, Generation};
use super::log::{LOG_PIN, excess_of};
use super::overlay::Overlay;
use super::{fault, key, value};

/// Time between two looks for work.
const EVERY: Duration = Duration::from_secs(5);
/// Pause between two chunks.
const PAUSE: Duration = Duration::from_millis(5);
/// Change index entries of one chunk.
const CHUNK: usize = 512;
/// Removals in one write.
const BATCH: usize = 2048;

/// What one pass took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CollectReport {
    /// Versions removed.
    pub versions: u64,
    /// Change index entries removed.
    pub entries: u64,
    /// The safe point now.
    pub safe_point: Timestamp,
}

/// Ends the collector's waits.
#[derive(Debug, Default)]
pub(super) struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(super) fn stop(&self) {
        *self.stopped.lock().expect("stop") = true;
        self.changed.notify_all();
    }

    fn is_stopped(&self) -> bool {
        *self.stopped.lock().expect("stop")
    }

    /// Waits; answers whether it is time to stop.
    fn wait(&self, time: Duration) -> bool {
        let stopped = self.stopped.lock().expect("stop");
        *self.changed.wait_timeout_while(stopped, time, |s| !*s).expect("stop").0
    }
}

/// Takes away what nobody may read any more.
pub(super) struct Collector {
    pub(super) gate: Arc<Gate>,
    pub(super) hlc: Hlc,
    pub(super) retention: Duration,
    pub(super) stop: Stop,
    /// One pass at a time.
    pub(super) passing: Mutex<()>,
}

impl Collector {
    /// The thread: passes until it is stopped. An idle store is left alone.
    pub(super) fn run(&self) {
        let mut idle_at = None;
        while !self.stop.wait(EVERY) {
            let seen = {
                let state = self.gate.lock();
                (state.mode == Mode::Open).then(|| (state.generation.incarnation, state.commits.highest))
            };
            if seen.is_none() || seen == idle_at {
                continue;
            }
            match self.pass() {
                Ok((_, whole)) => idle_at = if whole { seen } else { None },
                Err(e) => tracing::warn!(error = %e.report(), "collection of old versions failed; trying again"),
            }
        }
    }

    /// Lets go of the log when it takes more than its spool may: a coordinator that is away must not fill the disk.
    fn bound_the_log(&self) -> Result<()> {
        let now = self.hlc.now();
        let generation = self.gate.settle(&self.hlc, now)?;
        if !generation.pins(self.hlc.wall_millis()).iter().any(|(name, _)| name == LOG_PIN) {
            return Ok(());
        }
        let excess = excess_of(&self.gate, &generation, now, &|| self.stop.is_stopped())?;
        if excess > 0 {
            tracing::warn!(excess, "the log's spool is full: what was kept for the log is dropped, it begins anew");
            generation.unpin(LOG_PIN)?;
        }
        Ok(())
    }

    /// One pass over all slots. The second answer tells whether nothing is left that time alone will make due.
    pub(super) fn pass(&self) -> Result<(CollectReport, bool)> {
        let _one = self.passing.lock().expect("collector");
        let now = self.hlc.wall_millis();
        let retention = u64::try_from(self.retention.as_millis()).unwrap_or(u64::MAX);
        let wanted = Timestamp::new(now.saturating_sub(retention), 0);
        // No commit may come to lie below the safe point after it has moved.
        let generation = self.gate.settle(&self.hlc, wanted)?;
        self.bound_the_log()?;
        let safe = generation.move_safe_point(wanted, now)?;
        let mut report = CollectReport { safe_point: safe, ..CollectReport::default() };
        let mut whole = true;
        let mut stopped = self.space(&Space::parent(&generation), safe, &mut report, &mut whole)?;
        for overlay in generation.clones() {
            stopped = stopped || self.clone(&generation, &overlay, wanted, &mut report, &mut whole)?;
        }
        Ok((report, whole && !stopped))
    }

    /// One pass over a clone; answers whether it is time to stop.
    fn clone(
        &self,
        generation: &Arc<Generation>,
        overlay: &Overlay,
        wanted: Timestamp,
        report: &mut CollectReport,
        whole: &mut bool,
    ) -> Result<bool> {
        let space = Space::of_clone(generation, overlay);
        let mut due = true;
        if next_chunk(&space, wanted, &mut Place::default(), &mut due)?.is_empty() {
            *whole &= due;
            return Ok(false);
        }
        // The clone's record must not come back after it was dropped.
        let safe = {
            let _turn = overlay.collecting.lock().expect("collecting");
            if overlay.is_dropped() {
                return Ok(false);
            }
            generation.move_clone_safe_point(overlay, wanted)?
        };
        self.space(&space, safe, report, whole)
    }

    /// Takes away what `safe` makes superfluous in one space; answers whether it is time to stop.
    fn space(
        &self,
        space: &Space<'_>,
        safe: Timestamp,
        report: &mut CollectReport,
        whole: &mut bool,
    ) -> Result<bool> {
        let mut place = Place::default();
        loop {
            let chunk = next_chunk(space, safe, &mut place, whole)?;
            let turn = space.overlay.map(|o| o.collecting.lock().expect("collecting"));
            if chunk.is_empty() || space.overlay.is_some_and(Overlay::is_dropped) {
                return Ok(false);
            }
            collect_chunk(space, safe, &chunk, report)?;
            drop(turn);
            if self.stop.wait(PAUSE) {
                return Ok(true);
            }
        }
    }
}

/// Versions and their change index: of the parent, or of a clone.
struct Space<'a> {
    generation: &'a Arc<Generation>,
    data: &'a Keyspace,
    changes: &'a Keyspace,
    overlay: Option<&'a Overlay>,
}

impl<'a> Space<'a> {
    fn parent(generation: &'a Arc<Generation>) -> Self {
        Self { generation, data: &generation.data, changes: &generation.changes, overlay: None }
    }

    fn of_clone(generation: &'a Arc<Generation>, overlay: &'a Overlay) -> Self {
        Self { generation, data: &overlay.data, changes: &overlay.changes, overlay: Some(overlay) }
    }

    /// Whether a delete must stay for what it hides.
    fn hides(&self, prefix: &[u8]) -> Result<bool> {
        self.overlay.map_or(Ok(false), |overlay| self.generation.lies_under(overlay, prefix))
    }
}

/// Where a pass stands in the change index: go on after this entry.
type Place = (u16, Timestamp, Vec<u8>);

/// The next entries at or below `safe`, in index order. `whole` turns false when later entries remain.
fn next_chunk(space: &Space<'_>, safe: Timestamp, place: &mut Place, whole: &mut bool) -> Result<Vec<UserKey>> {
    let (mut out, mut from) = (Vec::new(), Vec::new());
    let snapshot = space.generation.db.snapshot();
    while out.len() < CHUNK && place.0 < SLOT_COUNT {
        key::change(&mut from, place.0, place.1, &place.2);
        let mut jump = None;
        for item in snapshot.range(space.changes, &from[..]..) {
            let entry = item.key().map_err(fault::fjall("read the change index"))?;
            let (slot, at, raw) = key::split_change(&entry)?;
            if at > safe {
                // The rest of this slot is later still.
                *whole = false;
                jump = Some(slot + 1);
                break;
            }
            *place = (slot, at, [raw, &[0]].concat());
            out.push(entry);
            if out.len() >= CHUNK {
                return Ok(out);
            }
        }
        *place = (jump.unwrap_or(SLOT_COUNT), Timestamp::ZERO, Vec::new());
    }
    Ok(out)
}

fn collect_chunk(
    space: &Space<'_>,
    safe: Timestamp,
    entries: &[UserKey],
    report: &mut CollectReport,
) -> Result<()> {
    let mut prefixes = BTreeSet::new();
    for entry in entries {
        let (slot, _, raw) = key::split_change(entry)?;
        let mut prefix = Vec::new();
        key::encode_prefix(&mut prefix, slot, raw);
        let _ = prefixes.insert(prefix);
    }
    let mut writer = Writer::new(space);
    for prefix in prefixes {
        report.versions += collect_key(&mut writer, &prefix, safe)?;
    }
    for entry in entries {
        writer.batch.remove(space.changes, entry.clone());
    }
    report.entries += entries.len() as u64;
    writer.write()
}

/// Removes what `safe` makes superfluous of one key; answers the number of versions.
fn collect_key(writer: &mut Writer<'_>, prefix: &[u8], safe: Timestamp) -> Result<u64> {
    let space = writer.space;
    let mut from = prefix.to_vec();
    key::push_time(&mut from, safe);
    let (mut newest, mut removed) = (None, 0);
    for item in space.generation.db.snapshot().range(space.data, from..key::end_of_versions(prefix)) {
        let (encoded, stored) = item.into_inner().map_err(fault::fjall("read old versions"))?;
        let live = value::read(&stored)?;
        if newest.is_none() {
            newest = Some(live.is_none().then_some(encoded));
            continue;
        }
        if let Some(value) = live {
            let mut scratch = Vec::new();
            let raw = key::decode(prefix, &mut scratch)?.1.len();
            writer.collected.records += 1;
            writer.collected.bytes += (raw + value.len()) as u64;
        }
        removed += 1;
        writer.remove(encoded)?;
    }
    if let Some(Some(delete)) = newest
        && !space.hides(prefix)?
    {
        removed += 1;
        writer.remove(delete)?;
    }
    Ok(removed)
}

/// Writes removals in batches of bounded size. They need no fsync: what a crash brings back is removed again.
struct Writer<'a> {
    space: &'a Space<'a>,
    batch: OwnedWriteBatch,
    collected: Collected,
}

impl<'a> Writer<'a> {
    fn new(space: &'a Space<'a>) -> Self {
        let generation = space.generation;
        Self { space, batch: generation.db.batch(), collected: generation.collected() }
    }

    fn remove(&mut self, encoded: UserKey) -> Result<()> {
        self.batch.remove(self.space.data, encoded);
        if self.batch.len() >= BATCH { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let generation = self.space.generation;
        let mut batch = std::mem::replace(&mut self.batch, generation.db.batch());
        // What clones hold is not counted as the store's.
        if self.space.overlay.is_none() {
            generation.put_collected(&mut batch, self.collected);
        }
        batch.commit().map_err(fault::fjall("remove old versions"))
    }
}
