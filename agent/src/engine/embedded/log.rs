//! The log of the embedded store: its change index, read slot by slot, with the versions that it names.
//!
//! Nothing is written for the log: versions after a pin are all kept, so that the store itself is the spool, also over
//! restarts. A position is a timestamp: a read ends at one below which nothing is committed any more.

use std::sync::Arc;
use std::time::Duration;

use fjall::Readable;
use tidemark_proto::stored::log::{EntryKind, LogEntry};
use tidemark_proto::{ErrorKind, Result, Timestamp};

use super::commit::Gate;
use super::generation::Generation;
use super::read::View;
use super::{Embedded, fault, key, value};
use crate::engine::{LogReached, LogSink, LogSource, LogWanted};

/// Name of the log's pin.
pub(super) const LOG_PIN: &str = "log";
/// How long the log is kept when nobody reads it: longer than a coordinator is away.
const LOG_LEASE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The pin follows what is durable by steps of this, as each costs a write to disk.
const PIN_STEP: Duration = Duration::from_secs(10);
/// And by this share of the spool, so that a store that is opened anew knows what it keeps about as well.
const PIN_SHARE: u64 = 8;
/// Most bytes that are kept where nobody has said how many may be.
const UNTOLD_SPOOL: u64 = 1 << 30;
/// A read that passes what was asked for by this factor is begun anew with half the time.
const TOO_MUCH: u64 = 2;

/// Where a read ended.
struct Ended {
    to: Timestamp,
    behind: u64,
}

impl LogSource for Embedded {
    fn read_log(&self, wanted: &LogWanted, sink: &mut dyn LogSink) -> Result<LogReached> {
        let shared = &self.shared;
        shared.hlc.observe(wanted.now)?;
        // All at or below this is visible, and nothing more comes there.
        let now = shared.hlc.now();
        let generation = shared.gate.settle(&shared.hlc, now)?;
        let from = Timestamp(wanted.from);
        let reached = |from: Timestamp, ended: Ended, begins| LogReached {
            incarnation: generation.incarnation,
            slots: generation.slots.clone(),
            from: from.0,
            to: ended.to.0,
            closed: ended.to,
            begins,
            branches: false,
            behind: ended.behind,
        };
        let known = wanted.from != 0 && wanted.incarnation == generation.incarnation && from <= now;
        generation.set_spool(wanted.spool)?;
        if known && self.spool_holds(&generation, now, wanted)? {
            match self
                .keep(&generation, Timestamp(wanted.durable), wanted.spool)
                .and_then(|()| View::new(generation.clone(), now))
            {
                Ok(view) if from >= view.floor => {
                    let ended = self.entries(&view, from, wanted.most, sink)?;
                    return Ok(reached(from, ended, false));
                }
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        generation.pin(LOG_PIN, now, LOG_LEASE, shared.hlc.wall_millis())?;
        shared.gate.trail(&generation, now, |trail| trail.keep(now, wanted.spool));
        Ok(reached(now, Ended { to: now, behind: 0 }, true))
    }

    fn stop_log(&self) -> Result<()> {
        let now = self.shared.hlc.now();
        let generation = self.shared.gate.settle(&self.shared.hlc, now)?;
        self.shared.gate.trail(&generation, now, |trail| trail.let_go());
        generation.unpin(LOG_PIN)
    }
}

impl Embedded {
    /// Whether the spool is within its bounds; else what it holds is dropped.
    fn spool_holds(&self, generation: &Arc<Generation>, now: Timestamp, wanted: &LogWanted) -> Result<bool> {
        let gate = &self.shared.gate;
        let excess = gate.trail(generation, now, |trail| {
            trail.keep(Timestamp(wanted.durable), wanted.spool);
            trail.excess()
        });
        // Of what was counted when the store was opened a part may be durable by now.
        Ok(excess == 0 || excess_of(gate, generation, now, &|| false)? == 0)
    }

    /// Moves the pin up to what is durable, where that is worth a write.
    fn keep(&self, generation: &Generation, durable: Timestamp, spool: u64) -> Result<()> {
        let now = self.shared.hlc.wall_millis();
        let pinned = generation.pins(now).into_iter().find(|(name, _)| name == LOG_PIN).map(|(_, at)| at);
        if let Some(at) = pinned {
            let step = durable.millis() >= at.millis() + PIN_STEP.as_millis() as u64;
            let bytes = self.shared.gate.trail(generation, durable, |trail| trail.bytes_between(at, durable));
            if !step && bytes < (spool / PIN_SHARE).max(1) {
                return Ok(());
            }
        }
        generation.pin(LOG_PIN, durable, LOG_LEASE, now)
    }

    /// Gives out the entries after `from`, about `most` bytes of them.
    fn entries(&self, view: &View, from: Timestamp, most: u64, sink: &mut dyn LogSink) -> Result<Ended> {
        let found = self.shared.gate.trail(&view.generation, view.at, |trail| {
            trail.covers(from).then(|| (trail.slots(from), trail.reach(from, most)))
        });
        if let Some((slots, (end, behind))) = found {
            let to = end.unwrap_or(view.at).min(view.at);
            for slot in slots {
                let _ = view.log_of_slot(slot, from, to, sink)?;
            }
            return Ok(Ended { to, behind });
        }
        // From before this process began: by the change index alone, and how much it is shows only as it is read.
        let mut to = view.at;
        loop {
            match view.log_of_all(from, to, most.saturating_mul(TOO_MUCH), sink)? {
                true => return Ok(Ended { to, behind: if to < view.at { most } else { 0 } }),
                false => {
                    sink.restart();
                    to = Timestamp(from.0 + ((to.0 - from.0) / 2).max(1));
                }
            }
        }
    }
}

/// From when on a store that is opened keeps its log, and in how many bytes: some of it may be durable already.
pub(super) fn kept(generation: &Generation) -> Option<(Timestamp, u64)> {
    let (_, at) = generation.pins(0).into_iter().find(|(name, _)| name == LOG_PIN)?;
    let spool = generation.spool().unwrap_or(UNTOLD_SPOOL);
    Some((at, spool.saturating_add(spool / PIN_SHARE)))
}

/// Bytes that are kept for the log beyond what it may take. What was kept when the store was opened is counted in its change index.
pub(super) fn excess_of(
    gate: &Gate,
    generation: &Arc<Generation>,
    now: Timestamp,
    stopped: &dyn Fn() -> bool,
) -> Result<u64> {
    if let Some((from, to, most)) = gate.trail(generation, now, |trail| trail.uncounted()) {
        let bytes = View::new(generation.clone(), now)?.log_bytes(from, to, most, stopped)?;
        tracing::debug!(bytes, %from, "counted what is kept for the log since before the store was opened");
        gate.trail(generation, now, |trail| trail.counted(from, bytes));
    }
    Ok(gate.trail(generation, now, |trail| trail.excess()))
}

impl View {
    /// Bytes of the entries in (`from`, `to`], counted until they are more than `most`.
    fn log_bytes(&self, from: Timestamp, to: Timestamp, most: u64, stopped: &dyn Fn() -> bool) -> Result<u64> {
        let (mut bytes, mut slot, mut encoded) = (0, 0, Vec::new());
        let end = key::slot_start(tidemark_proto::slot::SLOT_COUNT);
        while let Some(next) = self.next_changed_slot(slot, from, &end)? {
            let (first, last) = (key::change_start(next, from.next()), key::change_start(next, to.next()));
            for item in self.snapshot.range(&self.generation.changes, first..last) {
                let change = item.key().map_err(fault::fjall("read the change index"))?;
                let (_, at, raw) = key::split_change(&change)?;
                key::encode(&mut encoded, next, raw, at);
                let size = self.snapshot.size_of(&self.generation.data, &encoded);
                bytes += raw.len() as u64 + u64::from(size.map_err(fault::fjall("read a version"))?.unwrap_or(0));
                if bytes > most || stopped() {
                    return Ok(bytes);
                }
            }
            slot = next + 1;
        }
        Ok(bytes)
    }

    /// Everything in (`from`, `to`]; `false`, and not all of it, when it is more than `most` bytes and can be divided.
    fn log_of_all(&self, from: Timestamp, to: Timestamp, most: u64, sink: &mut dyn LogSink) -> Result<bool> {
        let (mut bytes, mut slot) = (0, 0);
        let end = key::slot_start(tidemark_proto::slot::SLOT_COUNT);
        while let Some(next) = self.next_changed_slot(slot, from, &end)? {
            bytes += self.log_of_slot(next, from, to, sink)?;
            if bytes > most && to > from.next() {
                return Ok(false);
            }
            slot = next + 1;
        }
        Ok(true)
    }

    /// The entries of one slot in (`from`, `to`]; answers their bytes.
    fn log_of_slot(&self, slot: u16, from: Timestamp, to: Timestamp, sink: &mut dyn LogSink) -> Result<u64> {
        let (first, last) = (key::change_start(slot, from.next()), key::change_start(slot, to.next()));
        let (mut encoded, mut bytes) = (Vec::new(), 0);
        for item in self.snapshot.range(&self.generation.changes, first..last) {
            let change = item.key().map_err(fault::fjall("read the change index"))?;
            let (_, at, raw) = key::split_change(&change)?;
            key::encode(&mut encoded, slot, raw, at);
            let stored =
                self.snapshot.get(&self.generation.data, &encoded).map_err(fault::fjall("read a version"))?;
            let stored = stored.ok_or_else(|| {
                tidemark_proto::Error::damaged(format!(
                    "slot {slot}: the change index names a version at {at} that is not there: restore this node from a backup"
                ))
            })?;
            let value = value::read(&stored)?;
            bytes += (raw.len() + stored.len()) as u64;
            sink.entry(LogEntry { slot, at, key: raw, put: value.map(|v| (&[][..], v)), kind: EntryKind::Record })?;
        }
        Ok(bytes)
    }
}
