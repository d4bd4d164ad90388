//! Which node takes how much of a backup, found by reading its manifest once.

use futures::StreamExt;
use tidemark_proto::{Result, SlotSet};

use super::plan::{Candidate, PlanNode};
use crate::job::damage::PartSet;
use crate::repository::Manifest;

/// Disk that a loaded byte takes while old and new data lie side by side, in percent.
const DISK_PERCENT: u64 = 130;

/// Who takes what.
pub(super) struct Shares {
    /// What each node takes.
    pub(super) nodes: Vec<PlanNode>,
    /// The pages in which it finds that.
    pub(super) pages: Vec<Vec<u32>>,
    /// Parts of which no slot is wanted.
    pub(super) unwanted: PartSet,
}

/// What each node takes of the parts with some of the slots `wanted`.
pub(super) async fn shares(
    manifest: &Manifest,
    candidates: &[Candidate],
    bad: &PartSet,
    wanted: &SlotSet,
) -> Result<Shares> {
    let node = |c: &Candidate| PlanNode {
        node: c.node.clone(),
        slots: c.slots.clone(),
        parts: 0,
        bytes: 0,
        disk_bytes: 0,
        present_records: c.records,
    };
    let mut nodes: Vec<PlanNode> = candidates.iter().map(node).collect();
    let mut needed: Vec<Vec<u32>> = vec![Vec::new(); nodes.len()];
    let (mut pages, mut unwanted) = (manifest.pages(), PartSet::default());
    // Parts of one region follow each other: who takes its slots is looked up once.
    let mut slots = SlotSet::EMPTY;
    let mut takers: Vec<(usize, u32)> = Vec::new();
    while let Some(page) = pages.next().await {
        let (index, lost) = (page.index, bad.contains(page.first));
        let numbered = match page.numbered() {
            Err(_) if lost => continue,
            numbered => numbered?,
        };
        for (number, part) in numbered.filter(|(number, _)| !bad.contains(*number)) {
            if part.slots.intersect(wanted).is_empty() {
                unwanted.insert(number);
                continue;
            }
            if part.slots != slots {
                slots.clone_from(&part.slots);
                let share = nodes.iter().map(|n| n.slots.intersect(&slots).len()).enumerate();
                takers = share.filter(|(_, share)| *share > 0).collect();
            }
            for &(taker, share) in &takers {
                nodes[taker].parts += 1;
                let live = part.live();
                let whole = u128::from(live) * u128::from(share);
                nodes[taker].bytes += (whole / u128::from(slots.len().max(1))) as u64;
                if needed[taker].last() != Some(&index) {
                    needed[taker].push(index);
                }
            }
        }
    }
    for node in &mut nodes {
        node.disk_bytes = node.bytes * DISK_PERCENT / 100;
    }
    Ok(Shares { nodes, pages: needed, unwanted })
}
