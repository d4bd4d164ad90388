//! Who takes part in a backup: of the connected nodes those that own slots. Replicas are known and left out: what they
//! hold, their primary holds too.

use std::time::Duration;

use tidemark_proto::wire::control::Description;
use tidemark_proto::{ClusterName, Error, NodeName, Result};

use super::core::needs_base;
use super::tiling;
use crate::context::Context;
use crate::fleet::Member;
use crate::job::Job;

/// Wait before the nodes are asked again, while slots have no owner that is connected.
const GATHER_AGAIN: Duration = Duration::from_secs(1);

/// State of a node that can be backed up.
pub(super) const AVAILABLE: &str = "available";
/// Role of a node that follows another one.
pub const REPLICA: &str = "replica";

/// The nodes of a backup.
#[derive(Debug, Default)]
pub(super) struct Team {
    /// Those that take part.
    pub(super) nodes: Vec<NodeName>,
    /// Where their agents run.
    pub(super) hosts: Vec<String>,
    /// Those that are connected and take no part, with the reason.
    pub(super) others: Vec<String>,
    /// Their engine.
    pub(super) engine: String,
    /// Live bytes that they hold together, estimated.
    pub(super) bytes: u64,
    /// Whether they are available and their slots are all slots, each once.
    pub(super) whole: bool,
}

/// Asks all connected nodes of the cluster what they are, and chooses.
pub(super) async fn gather(context: &Context, job: &Job, cluster: &ClusterName) -> Result<Team> {
    let members = context.fleet.members(Some(cluster));
    if members.is_empty() {
        return Err(Error::conflict(format!("no node of cluster {cluster} is connected")));
    }
    let asked = members.iter().map(|(member, _)| context.fleet.describe(member, context.head(job.id(), 0)));
    let answers = futures::future::join_all(asked).await;
    let answers = members.into_iter().map(|(member, _)| member.node).zip(answers).collect();
    let mut team = choose(cluster, answers)?;
    let host = |node: &NodeName| context.fleet.host(&Member { cluster: cluster.clone(), node: node.clone() });
    team.hosts = team.nodes.iter().map(host).collect();
    Ok(team)
}

/// As [`gather`], until the connected nodes own all slots or `patience` has passed: a failover or a move of slots takes a
/// while. Then as they are.
pub(super) async fn gather_whole(
    context: &Context,
    job: &Job,
    cluster: &ClusterName,
    patience: Duration,
) -> Result<Team> {
    let whole = async {
        loop {
            // What made the round end needs a moment, also where the nodes look whole: no round is spent on it at once.
            tokio::time::sleep(GATHER_AGAIN).await;
            match gather(context, job, cluster).await {
                Ok(team) if team.whole => return team,
                Ok(_) => {}
                Err(e) => tracing::debug!(error = %e.report(), "the nodes are not yet known again"),
            }
        }
    };
    tokio::select! {
        biased;
        () = job.cancel.cancelled() => Err(Error::cancelled("the backup was cancelled")),
        whole = tokio::time::timeout(patience, whole) => match whole {
            Ok(team) => Ok(team),
            Err(_) => gather(context, job, cluster).await,
        },
    }
}

/// The rule of [`gather`]: all nodes are of one engine. Where slots move by themselves, a node that does not answer is as if
/// it were away; whether it is missed, the slots tell.
fn choose(cluster: &ClusterName, answers: Vec<(NodeName, Result<Description>)>) -> Result<Team> {
    let mut team = Team::default();
    let moves = answers.iter().any(|(_, a)| a.as_ref().is_ok_and(|d| needs_base(&d.engine)));
    let mut described = Vec::new();
    for (node, answer) in answers {
        match answer {
            Ok(d) => {
                if !team.engine.is_empty() && team.engine != d.engine {
                    let (one, other) = (&team.engine, &d.engine);
                    return Err(Error::conflict(format!("cluster {cluster} mixes engines {one} and {other}")));
                }
                team.engine.clone_from(&d.engine);
                described.push((node, d));
            }
            Err(e) if moves => team.others.push(format!("{node} (no answer: {})", e.report())),
            Err(e) => return Err(e),
        }
    }
    refuse_newer_replicas(&described)?;
    let (mut owners, mut available) = (Vec::new(), true);
    for (node, d) in described {
        match () {
            () if d.ownership.role == REPLICA => team.others.push(format!("{node} (replica)")),
            () if moves && d.ownership.slots.is_empty() => team.others.push(format!("{node} (without slots)")),
            () => {
                team.bytes += d.bytes;
                available &= d.state == AVAILABLE;
                team.nodes.push(node.clone());
                owners.push((node, d.ownership.slots));
            }
        }
    }
    if team.nodes.is_empty() {
        let others = team.others.join(", ");
        return Err(Error::conflict(format!(
            "no node of cluster {cluster} that owns slots is connected ({others}): start an agent beside each primary"
        )));
    }
    team.whole = available && tiling::slots(owners.iter().map(|(n, s)| (n.as_str(), s))).is_ok();
    Ok(team)
}

/// Of two that claim a slot the primary counts, unless the replica's view of the owners is the newer one.
fn refuse_newer_replicas(described: &[(NodeName, Description)]) -> Result<()> {
    let (replicas, primaries): (Vec<_>, Vec<_>) = described.iter().partition(|(_, d)| d.ownership.role == REPLICA);
    for (replica, r) in replicas {
        for (primary, p) in &primaries {
            let (r, p) = (&r.ownership, &p.ownership);
            let both = r.slots.intersect(&p.slots);
            if !both.is_empty() && r.config_epoch > p.config_epoch {
                return Err(Error::conflict(format!(
                    "slots {both} are owned by both {primary} (primary, config epoch {}) and {replica} (replica, config \
                     epoch {}): wait until the cluster agrees, then take the backup again",
                    p.config_epoch, r.config_epoch
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidemark_proto::hash::Hash;
    use tidemark_proto::wire::control::{Ownership, Position};
    use tidemark_proto::{ErrorKind, Incarnation, SlotSet};

    use super::*;

    fn node(name: &str, role: &str, slots: SlotSet, config_epoch: u64) -> (NodeName, Result<Description>) {
        let description = Description {
            engine: "redis".into(),
            engine_version: "7.0.15".into(),
            incarnation: Incarnation::from_u128(1),
            state: "available".into(),
            position: Position { history: "h".into(), offset: 1 },
            ownership: Ownership { role: role.into(), slots, moving: SlotSet::EMPTY, config_epoch },
            clock_millis: 0,
            records: 0,
            bytes: 10,
            changes_since: false,
            data_address: String::new(),
            ledger_number: 0,
            ledger_hash: Hash::ZERO,
        };
        (NodeName::new(name).unwrap(), Ok(description))
    }

    fn chosen(answers: Vec<(NodeName, Result<Description>)>) -> Result<Team> {
        choose(&ClusterName::new("c").unwrap(), answers)
    }

    #[test]
    fn replicas_and_primaries_without_slots_take_no_part() {
        let team = chosen(vec![
            node("a", "primary", SlotSet::range(0, 9999), 1),
            node("b", "replica", SlotSet::EMPTY, 1),
            node("c", "primary", SlotSet::range(10_000, 16_383), 2),
            node("d", "primary", SlotSet::EMPTY, 3),
        ])
        .unwrap();
        let names: Vec<_> = team.nodes.iter().map(|n| n.as_str()).collect();
        assert_eq!((names, team.whole, team.bytes), (vec!["a", "c"], true, 20));
        assert_eq!(team.others, ["b (replica)", "d (without slots)"]);
    }

    #[test]
    fn a_node_whose_server_is_down_is_missed_only_where_its_slots_are() {
        let down = || (NodeName::new("a").unwrap(), Err(Error::retry("connection refused")));
        let team = chosen(vec![down(), node("b", "primary", SlotSet::all(), 2)]).unwrap();
        assert!(team.whole && team.others[0].contains("a (no answer: connection refused"), "{:?}", team.others);
        let mut loading = node("b", "primary", SlotSet::all(), 2);
        loading.1.as_mut().unwrap().state = "loading".into();
        assert!(!chosen(vec![down(), loading]).unwrap().whole);
        let half = node("b", "primary", SlotSet::range(0, 99), 2);
        assert!(!chosen(vec![down(), half]).unwrap().whole);
        // Slots of an embedded store are configuration: each node counts.
        let mut embedded = node("b", "primary", SlotSet::all(), 0);
        embedded.1.as_mut().unwrap().engine = "embedded".into();
        assert_eq!(chosen(vec![down(), embedded]).unwrap_err().kind(), ErrorKind::Retry);
    }

    #[test]
    fn of_two_that_claim_a_slot_only_an_older_replica_gives_way() {
        let both = |replica_epoch| {
            chosen(vec![
                node("a", "replica", SlotSet::range(0, 5), replica_epoch),
                node("b", "primary", SlotSet::all(), 7),
            ])
        };
        assert!(both(7).unwrap().whole);
        let e = both(8).unwrap_err();
        for word in ["0-5", "a (replica, config epoch 8)", "b (primary, config epoch 7)"] {
            assert!(e.message().contains(word), "{e}");
        }
        let two = vec![node("a", "primary", SlotSet::range(0, 5), 8), node("b", "primary", SlotSet::all(), 7)];
        assert!(!chosen(two).unwrap().whole);
    }

    #[test]
    fn replicas_alone_are_no_backup() {
        let e = chosen(vec![node("a", "replica", SlotSet::EMPTY, 1)]).err().unwrap();
        assert!(e.message().contains("a (replica)") && e.message().contains("beside each primary"), "{e}");
    }
}
