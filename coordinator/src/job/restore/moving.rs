//! Slots that are on their way from one node to another while a restore is planned, or that move while it runs.
//!
//! A store that moves slots by itself (a Redis Cluster) sends clients that name a key which the owner does not hold to the
//! node that the slot is on its way to. Who is restored to holds no key yet, so that all records of such a slot belong
//! there: that node takes them, and the slot can be handed over at any time, by whoever moves it, without one of them. So
//! each slot is one node's from the plan to the end of the restore.
//!
//! Where clients are not kept off, slots may begin to move later. Then what was loaded may be anywhere: the nodes are emptied
//! and all is loaded anew, once the slots have come to rest.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemark_proto::{ClusterName, Error, NodeName, Result, SlotSet};

use super::driver::Driver;
use super::plan::{Candidate, candidates};
use crate::context::Context;
use crate::job::backup::tiling;

/// How often a restore begins anew because slots have moved.
pub(super) const MOST_MOVES: u32 = 5;
/// Wait between two looks at slots that move.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many looks in a row must find all slots where they were.
const CALM_LOOKS: u32 = 3;
/// Looks at most: five minutes.
const MOST_LOOKS: u32 = 300;

/// Gives slots that are on their way to the nodes that they go to. Answers what stands against a restore (a slot that leaves
/// its node and arrives at none, or at several), and what an operator should know.
pub(super) fn settle(candidates: &mut [Candidate]) -> (Vec<String>, Vec<String>) {
    let (mut problems, mut told) = (Vec::new(), Vec::new());
    let leaving: Vec<_> = candidates.iter().map(|c| c.moving.intersect(&c.slots)).collect();
    let arriving: Vec<_> = candidates.iter().map(|c| c.moving.minus(&c.slots)).collect();
    for (from, leaving) in leaving.iter().enumerate() {
        let name = candidates[from].node.clone();
        let mut taken = SlotSet::EMPTY;
        // What arrives somewhere and does not leave its owner is the owner's: it sends nobody away.
        for (to, arriving) in arriving.iter().enumerate() {
            let coming = arriving.intersect(leaving);
            let (twice, coming) = (coming.intersect(&taken), coming.minus(&taken));
            if !twice.is_empty() {
                problems.push(format!("slots {twice} are moving from node {name} to several nodes: {REPAIR}"));
            }
            if coming.is_empty() {
                continue;
            }
            told.push(format!(
                "slots {coming} are moving from node {name} to node {}: their records go to the latter, where clients are sent \
                 for them; end the migration afterwards (redis-cli --cluster fix)",
                candidates[to].node
            ));
            candidates[from].slots = candidates[from].slots.minus(&coming);
            candidates[to].slots = candidates[to].slots.union(&coming);
            taken = taken.union(&coming);
        }
        let left = leaving.minus(&taken);
        if !left.is_empty() {
            problems.push(format!("slots {left} are moving from node {name} to none that takes them: {REPAIR}"));
        }
    }
    (problems, told)
}

/// What to do about slots whose records nobody would take.
const REPAIR: &str = "repair the migration (redis-cli --cluster fix), then restore";

/// Which slots each node takes.
type Takes = BTreeMap<NodeName, SlotSet>;

/// Which slots each node would take now.
async fn takes(context: &Context, target: &ClusterName) -> Result<Takes> {
    let mut found = candidates(context, target).await?;
    found.retain(|c| !c.replica);
    let _ = settle(&mut found);
    Ok(found.into_iter().map(|c| (c.node, c.slots)).collect())
}

impl Driver {
    /// After the restore has failed with `error`: whether nodes would take other slots by now than it was planned for. Then
    /// it can begin anew, and this waits until they have come to rest.
    pub(super) async fn slots_have_moved(&self, error: &Error) -> bool {
        if self.plan.request.in_place {
            // Clients are kept off, and tools that move slots are clients: it was something else.
            return false;
        }
        let planned: Takes = self.plan.targets.iter().map(|t| (t.node.clone(), t.slots.clone())).collect();
        let Ok(mut before) = takes(&self.context, &self.target).await else { return false };
        // Where a node is away, that is what must be told.
        if before == planned || !before.keys().eq(planned.keys()) {
            return false;
        }
        tracing::warn!(error = %error.report(), "slots have moved since the restore was planned: it begins anew");
        let told = format!("slots have moved: beginning anew when they have come to rest: {}", error.report());
        self.job.log.note("moved", "", told);
        self.job.phase("waiting for slots that move");
        let mut calm = 0;
        for _ in 0..MOST_LOOKS {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.job.cancel.cancelled() => return false,
            }
            // Nodes answer one after the other: a slot that is handed over meanwhile is nobody's, or of two.
            let now = takes(&self.context, &self.target).await.unwrap_or_default();
            let whole = tiling::slots(now.iter().map(|(node, slots)| (node.as_str(), slots))).is_ok();
            calm = if now == before && whole { calm + 1 } else { 0 };
            before = now;
            if calm >= CALM_LOOKS {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, slots: SlotSet, moving: SlotSet) -> Candidate {
        Candidate {
            node: name.parse().expect("name"),
            engine: "redis".into(),
            engine_version: "redis 7.0.15".into(),
            replica: false,
            slots,
            moving,
            records: 0,
        }
    }

    fn slots(nodes: &[Candidate]) -> Vec<String> {
        nodes.iter().map(|n| n.slots.to_string()).collect()
    }

    #[test]
    fn slots_on_their_way_belong_where_they_go() {
        let two = SlotSet::range(5, 5).union(&SlotSet::range(9, 9));
        let mut nodes = [
            node("a", SlotSet::range(0, 99), two),
            node("b", SlotSet::range(100, 199), SlotSet::range(5, 5)),
            // What arrives and does not leave its owner stays there.
            node("c", SlotSet::range(200, 299), SlotSet::range(9, 9).union(&SlotSet::range(150, 150))),
        ];
        let (problems, told) = settle(&mut nodes);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(slots(&nodes), ["0-4,6-8,10-99", "5,100-199", "9,200-299"]);
        assert!(told.len() == 2 && told[0].contains("slots 5 ") && told[0].contains("node b"), "{told:?}");
    }

    #[test]
    fn slots_that_go_nowhere_or_to_several_nodes_are_named() {
        let of = |moving| node("a", SlotSet::range(0, 99), moving);
        let mut nodes = [of(SlotSet::range(7, 8)), node("b", SlotSet::range(100, 199), SlotSet::range(8, 8))];
        let (problems, _) = settle(&mut nodes);
        assert!(problems.len() == 1 && problems[0].contains("slots 7 ") && problems[0].contains("node a"));
        let takes = |name| node(name, SlotSet::EMPTY, SlotSet::range(7, 7));
        let mut nodes = [takes("b"), of(SlotSet::range(7, 7)), takes("c")];
        let (problems, _) = settle(&mut nodes);
        assert!(problems.len() == 1 && problems[0].contains("slots 7 ") && problems[0].contains("several"));
    }
}
