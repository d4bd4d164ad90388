//! The rules of who takes part in a backup: of the connected nodes those that own slots, or that stand in for their primary.
//!
//! All nodes are of one engine. Where slots move by themselves, a node that does not answer is as if it were away; whether it
//! is missed, the slots tell. Of several nodes that can be backed up for the same slots one is chosen ([`Preference`]).

use tidemark_proto::wire::control::Description;
use tidemark_proto::{ClusterName, Error, NodeName, Result};

use super::core::needs_base;
use super::members::{AVAILABLE, Preference, REPLICA, Team};
use super::tiling;

type Answers = Vec<(NodeName, Result<Description>)>;

/// A node that could take part.
struct Candidate {
    node: NodeName,
    description: Description,
    /// Whether it is not the owner, but stands in for it.
    stands_in: bool,
}

impl Preference {
    /// The least rank is chosen.
    fn rank(&self, candidate: &Candidate) -> u32 {
        match () {
            () if self.before.contains(&candidate.node) => 0,
            () if !self.replicas && candidate.stands_in => 4,
            () if self.parent.contains(&candidate.node) => 1,
            () if candidate.stands_in => 2,
            () => 3,
        }
    }
}

/// Chooses from what the nodes said of themselves, and from what those that are no owners could stand in for.
pub(super) fn choose(
    cluster: &ClusterName,
    answers: Answers,
    sources: Answers,
    preference: &Preference,
) -> Result<Team> {
    let mut team = Team::default();
    let moves = answers.iter().any(|(_, a)| a.as_ref().is_ok_and(|d| needs_base(&d.engine)));
    let (mut described, mut away) = (Vec::new(), Vec::new());
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
            Err(e) if moves => away.push((node, format!("no answer: {}", e.report()))),
            Err(e) => return Err(e),
        }
    }
    refuse_newer_replicas(&described)?;
    let (mut groups, mut idle) = (Vec::<Vec<Candidate>>::new(), away);
    for (node, description) in described {
        match () {
            () if description.ownership.role == REPLICA => idle.push((node, "replica".to_owned())),
            () if moves && description.ownership.slots.is_empty() => {
                team.empty.push((node.clone(), description.engine_version));
                idle.push((node, "without slots".to_owned()));
            }
            () => groups.push(vec![Candidate { node, description, stands_in: false }]),
        }
    }
    let unused = add_stand_ins(&mut groups, sources);
    let mut chosen: Vec<Candidate> = groups.into_iter().filter_map(|g| best(&mut team, g, preference)).collect();
    chosen.sort_by(|a, b| a.node.cmp(&b.node));
    let owners = chosen.iter().map(|c| (c.node.as_str(), &c.description.ownership.slots));
    team.whole = tiling::slots(owners).is_ok() && chosen.iter().all(|c| c.description.state == AVAILABLE);
    for candidate in chosen {
        // What a node tells of itself is its own estimate.
        team.bytes = team.bytes.saturating_add(candidate.description.bytes);
        if candidate.stands_in {
            let _ = team.stand_ins.insert(candidate.node.clone());
        }
        team.versions.push(candidate.description.engine_version);
        team.nodes.push(candidate.node);
    }
    for (node, why) in idle {
        if !team.nodes.contains(&node) && !team.others.iter().any(|o| o.starts_with(&format!("{node} "))) {
            let unfit =
                unused.iter().find(|(n, _)| *n == node).map_or(String::new(), |(_, why)| format!(": {why}"));
            team.others.push(format!("{node} ({why}{unfit})"));
        }
    }
    if team.nodes.is_empty() {
        let others = team.others.join(", ");
        return Err(Error::conflict(format!(
            "no node of cluster {cluster} that owns slots is connected ({others}): start an agent beside each primary, \
             or beside a replica of it"
        )));
    }
    Ok(team)
}

/// Puts those that can stand in to the owners of the same slots, or among themselves where no owner is connected. Answers
/// those that cannot, with the reason.
fn add_stand_ins(groups: &mut Vec<Vec<Candidate>>, sources: Answers) -> Vec<(NodeName, String)> {
    let mut unused = Vec::new();
    for (node, answer) in sources {
        let description = match answer {
            Ok(d) if !d.ownership.slots.is_empty() => d,
            Ok(_) => continue,
            Err(e) => {
                unused.push((node, e.report()));
                continue;
            }
        };
        let slots = description.ownership.slots.clone();
        let candidate = Candidate { node, description, stands_in: true };
        let of = |group: &&mut Vec<Candidate>| group[0].description.ownership.slots == slots;
        if let Some(group) = groups.iter_mut().find(of) {
            group.push(candidate);
        } else if groups.iter().all(|g| g[0].description.ownership.slots.intersect(&slots).is_empty()) {
            groups.push(vec![candidate]);
        } else {
            unused.push((candidate.node, "its view of the slots is another one".to_owned()));
        }
    }
    unused
}

/// The one that is preferred; the others are told of with the reason.
fn best(team: &mut Team, mut group: Vec<Candidate>, preference: &Preference) -> Option<Candidate> {
    // An owner that is being restored, or loads, is not passed by: nobody backs its slots up before it has ended.
    let busy = |c: &Candidate| !c.stands_in && c.description.state != AVAILABLE;
    group.sort_by_key(|c| (!busy(c), preference.rank(c)));
    let mut group = group.into_iter();
    let best = group.next()?;
    for other in group {
        let why = match other.stands_in {
            true => format!("replica; {} is backed up", best.node),
            false => format!("{} stands in for it", best.node),
        };
        team.others.push(format!("{} ({why})", other.node));
    }
    Some(best)
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
    use std::collections::HashSet;

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
        choose(&ClusterName::new("c").unwrap(), answers, Vec::new(), &Preference::default())
    }

    /// Of three nodes that can be backed up for the same slots: the primary `a`, replicas `b` and `c`.
    fn preferred(before: &[&str], parent: &[&str], replicas: bool) -> Team {
        let names = |names: &[&str]| names.iter().map(|n| NodeName::new(*n).unwrap()).collect();
        let preference = Preference { before: names(before), parent: names(parent), replicas };
        let answers = vec![
            node("a", "primary", SlotSet::all(), 1),
            node("b", "replica", SlotSet::EMPTY, 1),
            node("c", "replica", SlotSet::EMPTY, 1),
        ];
        let sources = vec![node("b", "primary", SlotSet::all(), 1), node("c", "primary", SlotSet::all(), 1)];
        let team = choose(&ClusterName::new("c").unwrap(), answers, sources, &preference).unwrap();
        assert!(team.whole && team.others.len() == 2, "{:?}", team.others);
        team
    }

    #[test]
    fn of_several_for_the_same_slots_the_one_with_the_base_or_the_index_is_taken_then_a_replica() {
        let name = |team: Team| team.nodes[0].to_string();
        assert_eq!(name(preferred(&[], &[], true)), "b");
        assert_eq!(name(preferred(&[], &[], false)), "a");
        assert_eq!(name(preferred(&[], &["c"], true)), "c");
        assert_eq!(name(preferred(&[], &["c"], false)), "a");
        assert_eq!(name(preferred(&["a"], &["c"], true)), "a");
        assert_eq!(name(preferred(&["c"], &["a"], false)), "c");
        let team = preferred(&[], &[], true);
        assert_eq!(team.stand_ins, HashSet::from([NodeName::new("b").unwrap()]));
        assert_eq!(team.others, ["c (replica; b is backed up)", "a (b stands in for it)"]);
    }

    #[test]
    fn a_replica_does_not_stand_in_for_a_primary_that_is_being_restored() {
        let mut owner = node("a", "primary", SlotSet::all(), 1);
        owner.1.as_mut().unwrap().state = "restoring".into();
        let answers = vec![owner, node("b", "replica", SlotSet::EMPTY, 1)];
        let sources = vec![node("b", "primary", SlotSet::all(), 1)];
        let preference = Preference { replicas: true, ..Preference::default() };
        let team = choose(&ClusterName::new("c").unwrap(), answers, sources, &preference).unwrap();
        assert_eq!((team.whole, team.nodes[0].as_str()), (false, "a"));
    }

    #[test]
    fn a_replica_stands_in_for_a_primary_without_an_agent_unless_the_views_differ() {
        let cluster = ClusterName::new("c").unwrap();
        let half = SlotSet::range(0, 8191);
        let other = || node("a", "primary", SlotSet::range(8192, 16_383), 1);
        let answers = || vec![other(), node("b", "replica", SlotSet::EMPTY, 1)];
        let of = |slots: &SlotSet| vec![node("b", "primary", slots.clone(), 1)];
        let team = choose(&cluster, answers(), of(&half), &Preference::default()).unwrap();
        assert_eq!((team.whole, team.nodes.len(), team.others.len()), (true, 2, 0));
        let team = choose(&cluster, answers(), of(&SlotSet::range(0, 8192)), &Preference::default()).unwrap();
        assert_eq!(
            (team.whole, &team.others[..]),
            (false, &["b (replica: its view of the slots is another one)".to_owned()][..])
        );
        let late = vec![(NodeName::new("b").unwrap(), Err(Error::retry("the link is down")))];
        let team = choose(&cluster, answers(), late, &Preference::default()).unwrap();
        assert_eq!((team.whole, &team.others[..]), (false, &["b (replica: the link is down)".to_owned()][..]));
        // A store that is away, with an agent that goes on with the log of its shard.
        let down = vec![other(), (NodeName::new("b").unwrap(), Err(Error::retry("refused")))];
        let team = choose(&cluster, down, of(&half), &Preference::default()).unwrap();
        assert_eq!((team.whole, team.nodes.len(), team.others.len()), (true, 2, 0));
    }

    #[test]
    fn a_node_that_tells_nonsense_of_its_size_ends_nothing() {
        let sized = |name, slots, bytes| {
            let (name, description) = node(name, "primary", slots, 1);
            (name, description.map(|d| Description { bytes, ..d }))
        };
        let (half, rest) = (SlotSet::range(0, 9999), SlotSet::range(10_000, 16_383));
        let team = chosen(vec![sized("a", half, u64::MAX - 5), sized("b", rest, 10)]).unwrap();
        assert_eq!((team.bytes, team.nodes.len()), (u64::MAX, 2));
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
