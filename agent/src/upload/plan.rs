//! Which parts to send, and how.

use std::path::PathBuf;

use tidemark_proto::slot::RegionMap;
use tidemark_proto::wire::control::{CommandHead, PartParent, Upload};
use tidemark_proto::{Error, ErrorKind, Result, Timestamp};

use crate::agent::Agent;
use crate::config::DeltaMethod;
use crate::engine::ScanRange;
use crate::snapshot::Method;

/// A part to send.
#[derive(Debug, Clone)]
pub(super) struct PlannedPart {
    pub(super) region: u16,
    pub(super) range: ScanRange,
    pub(super) method: Method,
    /// Where its new key index waits until the backup is committed.
    pub(super) new_index: Option<PathBuf>,
}

impl PlannedPart {
    fn new(agent: &Agent, head: &CommandHead, region: u16, range: ScanRange, method: Method) -> Self {
        let new_index = agent.indexes.as_ref().map(|i| i.waiting(head.job, region, &range.lower));
        Self { region, range, method, new_index }
    }

    /// Whether the error only says that a delta is not possible.
    pub(super) fn falls_back_to_full(&self, error: &Error) -> bool {
        self.method != Method::Full
            && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::Damaged)
    }

    /// Sends every record. The range stays: its parent's bounds are those of the part.
    pub(super) fn make_full(&mut self) {
        self.method = Method::Full;
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

/// The parts of `command`, those with a usable parent as deltas. `rest` names where parts that an earlier attempt has
/// stored end although no parent part begins there: the region goes on from there.
pub(super) fn plan(
    agent: &Agent,
    head: &CommandHead,
    command: &Upload,
    rest: &[(u16, Vec<u8>)],
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
        let parents: Vec<&PartParent> =
            command.parents.iter().filter(|p| p.region == region && p.slots == slots).collect();
        let covered = same && covers(&parents);
        for (_, lower) in rest.iter().filter(|(r, _)| *r == region) {
            // A part that was written anew and cut short by its size goes on up to where its parent ended.
            let ends = parents.iter().map(|p| &p.lower).filter(|l| covered && *l >= lower).min();
            if ends == Some(lower) {
                continue;
            }
            let (slots, upper) = (slots.clone(), ends.cloned().unwrap_or_default());
            let range = ScanRange { slots, lower: lower.clone(), upper };
            parts.push(PlannedPart::new(agent, head, region, range, Method::Full));
        }
        if covered {
            parts.extend(parents.into_iter().map(|p| {
                let range = ScanRange { slots: slots.clone(), lower: p.lower.clone(), upper: p.upper.clone() };
                PlannedPart::new(agent, head, region, range, method(agent, p, since))
            }));
        } else {
            parts.push(PlannedPart::new(agent, head, region, ScanRange::slots(slots), Method::Full));
        }
    }
    parts.retain(|p| !command.stored.iter().any(|(r, lower)| *r == p.region && *lower == p.range.lower));
    Ok(parts)
}

/// Whether the parents cover the region's keys without a gap.
fn covers(parents: &[&PartParent]) -> bool {
    let mut sorted: Vec<_> = parents.to_vec();
    sorted.sort_by(|a, b| a.lower.cmp(&b.lower));
    let ends_open = |p: &PartParent| p.upper.is_empty();
    sorted.first().is_some_and(|p| p.lower.is_empty())
        && sorted.last().is_some_and(|p| ends_open(p))
        && sorted.windows(2).all(|w| !w[0].upper.is_empty() && w[0].upper == w[1].lower)
}

#[cfg(test)]
mod tests {
    use tidemark_proto::SlotSet;
    use tidemark_proto::hash::Hash;

    use super::*;

    fn parent(lower: &str, upper: &str) -> PartParent {
        let (slots, hash) = (SlotSet::range(0, 63), Hash::ZERO);
        PartParent { region: 0, slots, lower: lower.into(), upper: upper.into(), hash }
    }

    #[test]
    fn parents_must_cover_without_a_gap() {
        let cover = |list: &[(&str, &str)]| {
            let parents: Vec<_> = list.iter().map(|(a, b)| parent(a, b)).collect();
            covers(&parents.iter().collect::<Vec<_>>())
        };
        assert!(cover(&[("", "")]));
        assert!(cover(&[("m", ""), ("", "m")]));
        for bad in [&[][..], &[("", "m")], &[("m", "")], &[("", "m"), ("n", "")], &[("", ""), ("", "")]] {
            assert!(!cover(bad), "{bad:?}");
        }
    }
}
