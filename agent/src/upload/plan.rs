//! Which parts to send, and how.

use std::path::PathBuf;

use tidemark_proto::slot::RegionMap;
use tidemark_proto::wire::control::{CommandHead, PartParent, Upload};
use tidemark_proto::{Error, ErrorKind, Result, Timestamp};

use super::early::EarlyPart;
use crate::agent::Agent;
use crate::config::DeltaMethod;
use crate::engine::ScanRange;
use crate::snapshot::Method;

/// When a part is sent, and what it stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// After the cut.
    AtCut,
    /// Before the cut: a part of a base.
    Before,
    /// After the cut, what differs from the part that was sent before it under this tag.
    Over([u8; 16]),
}

/// A part to send.
#[derive(Debug, Clone)]
pub(super) struct PlannedPart {
    pub(super) region: u16,
    pub(super) range: ScanRange,
    pub(super) method: Method,
    pub(super) when: When,
    /// Where its new key index waits until the backup is committed.
    pub(super) new_index: Option<PathBuf>,
}

impl PlannedPart {
    fn new(agent: &Agent, head: &CommandHead, region: u16, range: ScanRange, method: Method) -> Self {
        let new_index = agent.indexes.as_ref().map(|i| i.waiting(head.job, region, &range.lower));
        Self { region, range, method, when: When::AtCut, new_index }
    }

    /// A part of a base, before the cut; the index of what is sent goes to `index`.
    pub(super) fn early(region: u16, range: ScanRange, index: PathBuf) -> Self {
        Self { region, range, method: Method::Full, when: When::Before, new_index: Some(index) }
    }

    /// A part whose parent the repository holds.
    fn delta(agent: &Agent, head: &CommandHead, parent: &PartParent, since: Option<Timestamp>) -> Self {
        let (slots, lower, upper) = (parent.slots.clone(), parent.lower.clone(), parent.upper.clone());
        Self::new(agent, head, parent.region, ScanRange { slots, lower, upper }, method(agent, parent, since))
    }

    /// What differs from a part that was sent before the cut.
    fn over(agent: &Agent, head: &CommandHead, early: &EarlyPart) -> Self {
        let part = Self::new(agent, head, early.region, early.range.clone(), Method::Over(early.index.clone()));
        Self { when: When::Over(early.run_tag), ..part }
    }

    /// Whether the error only says that a delta is not possible.
    pub(super) fn falls_back_to_full(&self, error: &Error) -> bool {
        self.method != Method::Full
            && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::Damaged)
    }

    /// Sends every record. The range stays: its parent's bounds are those of the part.
    pub(super) fn make_full(&mut self) {
        (self.method, self.when) = (Method::Full, When::AtCut);
    }

    /// The part after one that ended before `next`.
    pub(super) fn following(&self, agent: &Agent, head: &CommandHead, next: Vec<u8>) -> Self {
        let range = ScanRange { lower: next, ..self.range.clone() };
        Self::new(agent, head, self.region, range, Method::Full)
    }
}

fn method(agent: &Agent, parent: &PartParent, since: Option<Timestamp>) -> Method {
    match (since, &agent.indexes) {
        (Some(at), _) => Method::Changes(at),
        (None, Some(indexes)) if agent.config.delta != DeltaMethod::Full => {
            Method::KeyIndex(indexes.current(&parent.hash))
        }
        (None, _) => Method::Full,
    }
}

/// The parts of `command`, those with a usable parent as deltas, and those that were sent `early` by what differs. `rest` names
/// where parts that an earlier attempt has stored end although no parent part begins there: the region goes on from there.
pub(super) fn plan(
    agent: &Agent,
    head: &CommandHead,
    command: &Upload,
    (rest, early): (&[(u16, Vec<u8>)], &[EarlyPart]),
) -> Result<Vec<PlannedPart>> {
    let map = RegionMap::new(command.slots_per_region)?;
    if !command.slots.is_canonical() || command.parents.iter().any(|p| !p.slots.is_canonical()) {
        return Err(Error::request("upload: a slot set is not in order"));
    }
    let (incarnation, changes_since) = agent.engine.identity()?;
    let same = incarnation == command.parent_incarnation && command.parent_at != Timestamp::ZERO;
    let by_changes = changes_since && agent.config.delta == DeltaMethod::Auto;
    let since = by_changes.then_some(command.parent_at);
    let mut parts = Vec::new();
    for region in 0..map.count() {
        let slots = map.slots(region).intersect(&command.slots);
        if slots.is_empty() {
            continue;
        }
        let early = early.iter().filter(|e| e.region == region && e.range.slots == slots);
        let mut before: Vec<_> = early.map(|e| PlannedPart::over(agent, head, e)).collect();
        if !covers(&before) {
            let parents = command.parents.iter().filter(|p| same && p.region == region && p.slots == slots);
            before = parents.map(|p| PlannedPart::delta(agent, head, p, since)).collect();
        }
        if !covers(&before) {
            before.clear();
        }
        for (_, lower) in rest.iter().filter(|(r, _)| *r == region) {
            // A part that was written anew and cut short by its size goes on up to where its parent ended.
            let ends = before.iter().map(|p| &p.range.lower).filter(|l| *l >= lower).min();
            if ends == Some(lower) {
                continue;
            }
            let (slots, upper) = (slots.clone(), ends.cloned().unwrap_or_default());
            let range = ScanRange { slots, lower: lower.clone(), upper };
            parts.push(PlannedPart::new(agent, head, region, range, Method::Full));
        }
        match before.is_empty() {
            true => parts.push(PlannedPart::new(agent, head, region, ScanRange::slots(slots), Method::Full)),
            false => parts.extend(before),
        }
    }
    parts.retain(|p| !command.stored.iter().any(|(r, lower)| *r == p.region && *lower == p.range.lower));
    Ok(parts)
}

/// Whether the parts cover their region's keys without a gap.
fn covers(parts: &[PlannedPart]) -> bool {
    let mut sorted: Vec<&ScanRange> = parts.iter().map(|p| &p.range).collect();
    sorted.sort_by(|a, b| a.lower.cmp(&b.lower));
    sorted.first().is_some_and(|p| p.lower.is_empty())
        && sorted.last().is_some_and(|p| p.upper.is_empty())
        && sorted.windows(2).all(|w| !w[0].upper.is_empty() && w[0].upper == w[1].lower)
}

#[cfg(test)]
mod tests {
    use tidemark_proto::SlotSet;

    use super::*;

    fn part(lower: &str, upper: &str) -> PlannedPart {
        let range = ScanRange { slots: SlotSet::range(0, 63), lower: lower.into(), upper: upper.into() };
        PlannedPart { region: 0, range, method: Method::Full, when: When::AtCut, new_index: None }
    }

    #[test]
    fn parts_must_cover_without_a_gap() {
        let cover = |list: &[(&str, &str)]| covers(&list.iter().map(|(a, b)| part(a, b)).collect::<Vec<_>>());
        assert!(cover(&[("", "")]));
        assert!(cover(&[("m", ""), ("", "m")]));
        for bad in [&[][..], &[("", "m")], &[("m", "")], &[("", "m"), ("n", "")], &[("", ""), ("", "")]] {
            assert!(!cover(bad), "{bad:?}");
        }
    }
}
