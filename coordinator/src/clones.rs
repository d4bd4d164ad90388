//! Clones of a cluster: made on all of its nodes as of one timestamp, or on none.
//!
//! What holds: a clone is told of as made only when every node that owns slots has it; where one cannot make it, those that
//! were made for it are dropped again. Nothing is kept of clones but what the nodes have: what a coordinator that died, or a
//! node that went away, left on some of them is shown as incomplete, until it is dropped or made again as of the same time.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{
    CloneCreated, CloneDropped, CloneInfo, Clones, CreateClone, DropClone, ListClones,
};
use tidemark_proto::{CloneName, ClusterName, Error, ErrorKind, NodeName, Result, SlotSet, Timestamp};

use crate::context::Context;
use crate::fleet::{DESCRIBE_DEADLINE, Member};
use crate::job::backup::tiling;
use crate::repository::Ledger;

/// Time for a node to make or drop a clone.
const CLONE_DEADLINE: Duration = Duration::from_secs(30);
/// The engine that has clones.
const EMBEDDED: &str = "embedded";

/// A clone as it is asked for.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneRequest {
    /// Its name: 1 to 63 of `a-z 0-9 - _ .`, beginning with a letter or digit.
    #[schema(value_type = String)]
    pub name: CloneName,
    /// The state that it begins with, a raw timestamp; now where absent.
    #[serde(default)]
    pub at: Option<u64>,
}

/// A clone of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct CloneItem {
    /// Its name.
    pub name: String,
    /// The state that it began with, a raw timestamp.
    pub at: u64,
    /// When it was made, milliseconds since 1970.
    pub created_millis: u64,
    /// Bytes of its own writes on disk, without those that are still in memory.
    pub bytes: u64,
    /// `complete`; `incomplete` where nodes lack it; `unknown` where all that could be asked have it.
    pub state: String,
    /// Nodes that have it.
    pub nodes: Vec<String>,
    /// Nodes that lack it.
    pub missing: Vec<String>,
    /// Nodes that are away or do not answer.
    pub away: Vec<String>,
}

/// A clone that was dropped.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct DroppedClone {
    /// Its name.
    pub name: String,
    /// Nodes that had it.
    pub nodes: Vec<String>,
}

/// A node and what it says of its clones.
struct Asked {
    node: NodeName,
    slots: SlotSet,
    clones: Result<Clones>,
}

/// The nodes of a cluster.
struct Nodes {
    cluster: ClusterName,
    asked: Vec<Asked>,
    /// Nodes of its policy that are not connected, while slots have no owner.
    away: Vec<String>,
    /// Why the connected nodes are not all, if they are not.
    hole: Option<Error>,
}

impl Nodes {
    /// Asks every connected node. `NotFound` for a cluster that nobody knows, `Unsupported` where its store has no clones.
    async fn ask(context: &Context, cluster: &ClusterName) -> Result<Self> {
        let members = context.fleet.members(Some(cluster));
        let ledger = Ledger::load(&context.repository, cluster).await?;
        if members.is_empty() && ledger.entries().is_empty() {
            return Err(Error::not_found(format!("no cluster {cluster} is connected or has backups")));
        }
        let mut asked = join_all(members.into_iter().map(|(member, _)| ask(context, member))).await;
        let no_clones = |a: &Asked| a.clones.as_ref().is_err_and(|e| e.kind() == ErrorKind::Unsupported);
        if let Some(place) = asked.iter().position(no_clones) {
            let refused = asked.swap_remove(place).clones.err();
            return Err(refused.unwrap_or_else(|| Error::bug("a node that refuses and does not")));
        }
        let hole = tiling::slots(asked.iter().map(|a| (a.node.as_str(), &a.slots))).err();
        let expected = ledger.policy().map(|p| p.nodes.clone()).unwrap_or_default();
        let missed = |n: &String| hole.is_some() && asked.iter().all(|a| a.node.as_str() != n);
        let away = expected.into_iter().filter(missed).collect();
        Ok(Self { cluster: cluster.clone(), asked, away, hole })
    }

    /// All nodes with their clones; an error that names those that are away or do not answer.
    fn whole(self) -> Result<Vec<(NodeName, Clones)>> {
        if let Some(hole) = self.hole {
            let (cluster, away) = (&self.cluster, self.away.join(", "));
            let told = if away.is_empty() { String::new() } else { format!(": {away} away") };
            return Err(Error::retry(format!(
                "cluster {cluster} is not whole{told} ({}): start the agents that are away",
                hole.message()
            )));
        }
        self.asked.into_iter().map(|a| a.clones.map(|clones| (a.node, clones))).collect()
    }

    fn items(&self) -> Vec<CloneItem> {
        let mut found: BTreeMap<(String, Timestamp), CloneItem> = BTreeMap::new();
        let mut away = self.away.clone();
        away.extend(self.asked.iter().filter(|a| a.clones.is_err()).map(|a| a.node.to_string()));
        let answers = || self.asked.iter().filter_map(|a| Some((&a.node, a.clones.as_ref().ok()?)));
        for (node, clones) in answers() {
            for clone in &clones.clones {
                let item = found.entry((clone.name.clone(), clone.at)).or_insert_with(|| item(clone, &away));
                item.nodes.push(node.to_string());
                item.bytes += clone.bytes;
                item.created_millis = item.created_millis.min(clone.created_millis);
            }
        }
        for item in found.values_mut() {
            let lacks = answers().map(|(node, _)| node.to_string()).filter(|n| !item.nodes.contains(n));
            item.missing = lacks.collect();
            item.state = match () {
                () if !item.missing.is_empty() => "incomplete",
                () if !item.away.is_empty() => "unknown",
                () => "complete",
            }
            .into();
        }
        found.into_values().collect()
    }
}

fn item(clone: &CloneInfo, away: &[String]) -> CloneItem {
    CloneItem {
        name: clone.name.clone(),
        at: clone.at.0,
        created_millis: clone.created_millis,
        bytes: 0,
        state: String::new(),
        nodes: Vec::new(),
        missing: Vec::new(),
        away: away.to_vec(),
    }
}

async fn ask(context: &Context, member: Member) -> Asked {
    let head = || context.head(JobId::default(), 0);
    let list = context.fleet.command(&member, head(), &ListClones {}, DESCRIBE_DEADLINE, |_| ());
    let (described, clones) = futures::join!(context.fleet.describe(&member, head()), list);
    // What it owned when it last answered counts on where it does not answer now.
    let known = context.fleet.members(Some(&member.cluster)).into_iter().find(|(m, _)| *m == member);
    let known = described.ok().or_else(|| known.and_then(|(_, agent)| agent.description));
    let slots = known.map_or(SlotSet::EMPTY, |d| d.ownership.slots);
    Asked { node: member.node, slots, clones }
}

/// All clones of a cluster, by name.
pub async fn list(context: &Context, cluster: &ClusterName) -> Result<Vec<CloneItem>> {
    Ok(Nodes::ask(context, cluster).await?.items())
}

/// Makes a clone on all nodes of a cluster; answers it, and whether it was made just now. The same name and time is the same
/// clone, and makes one whole that is incomplete. `Conflict` for another time under a name that stands.
pub async fn create(context: &Context, cluster: &ClusterName, request: &CloneRequest) -> Result<(CloneItem, bool)> {
    context.check_fenced()?;
    let _one = context.clones.lock().await;
    let nodes = Nodes::ask(context, cluster).await?.whole()?;
    let at = time(context, &nodes, request.at)?;
    let name = request.name.to_string();
    let standing = |clones: &Clones| clones.clones.iter().find(|c| c.name == name).map(|c| c.at);
    if let Some((node, other)) = nodes.iter().find_map(|(n, c)| Some((n, standing(c).filter(|o| *o != at)?))) {
        return Err(Error::conflict(format!(
            "clone {name} of cluster {cluster} stands already, on node {node} as of {other}: drop it first \
             (`tidemark clone drop {name}`), take another name, or give its time (--at {other})"
        )));
    }
    let command = CreateClone { name: name.clone(), at };
    let make = nodes.iter().map(|(node, _)| {
        let (member, command) = (Member { cluster: cluster.clone(), node: node.clone() }, &command);
        let head = context.head(JobId::default(), 0);
        async move {
            context.fleet.command::<_, CloneCreated>(&member, head, command, CLONE_DEADLINE, |_| ()).await
        }
    });
    let made = join_all(make).await;
    if made.iter().any(Result::is_err) {
        // What stood before stays, and what failed may have been made all the same.
        let doubtful = |m: &Result<CloneCreated>| m.as_ref().map_or(true, |m| m.fresh != 0);
        let undo = nodes.iter().zip(&made).filter(|((_, c), m)| standing(c).is_none() && doubtful(m));
        let undo: Vec<_> = undo.map(|((node, _), _)| node.clone()).collect();
        return Err(undone(context, cluster, &request.name, at, &undo, made).await);
    }
    let fresh = made.iter().flatten().any(|m| m.fresh != 0);
    let asked = nodes.into_iter().zip(made).map(|((node, before), made)| {
        let clones = made.map(|m| Clones { clones: vec![m.clone], highest: before.highest });
        Asked { node, slots: SlotSet::EMPTY, clones }
    });
    let all = Nodes { cluster: cluster.clone(), asked: asked.collect(), away: Vec::new(), hole: None };
    let item = all.items().pop().ok_or_else(|| Error::bug("a cluster without a node"))?;
    tracing::info!(%cluster, clone = %name, %at, fresh, "clone stands on all nodes");
    Ok((item, fresh))
}

/// The time of a clone: what was asked for, or now, above all that any node has issued.
fn time(context: &Context, nodes: &[(NodeName, Clones)], wanted: Option<u64>) -> Result<Timestamp> {
    for (node, clones) in nodes {
        context.clock.observe(clones.highest).map_err(|e| e.context(format_args!("node {node}")))?;
    }
    let now = context.clock.now();
    match wanted.map(Timestamp) {
        None => Ok(now),
        Some(at) if at <= now => Ok(at),
        Some(at) => Err(Error::request(format!(
            "a clone as of {at} lies in the future (now is {now}): take a time that has passed, or leave it out for now"
        ))),
    }
}

/// Drops what was made of a clone that could not be made everywhere; answers the error to tell.
async fn undone(
    context: &Context,
    cluster: &ClusterName,
    name: &CloneName,
    at: Timestamp,
    nodes: &[NodeName],
    made: Vec<Result<CloneCreated>>,
) -> Error {
    let dropped = drop_on(context, cluster, name, at, nodes).await;
    let left = nodes.iter().zip(&dropped).filter(|(_, d)| d.is_err()).map(|(node, _)| node.as_str());
    let left = left.collect::<Vec<_>>().join(", ");
    let failed: Vec<Error> = made.into_iter().filter_map(Result::err).collect();
    let kind = failed.first().map_or(ErrorKind::Bug, Error::kind);
    let why = joined(failed.iter().map(Error::report));
    let told = if left.is_empty() {
        "no node keeps anything of it".to_owned()
    } else {
        format!(
            "it may be left on {left}: `tidemark clone list` tells, `tidemark clone drop {name}` removes it when they are back"
        )
    };
    Error::new(kind, format!("clone {name} of cluster {cluster} was not made ({why}); {told}"))
}

/// What nodes report, each reason once: `node a, node b: why`.
fn joined(reports: impl Iterator<Item = String>) -> String {
    let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
    for report in reports {
        let (who, why) = match report.split_once(": ").filter(|(who, _)| who.starts_with("node ")) {
            Some((who, why)) => (vec![who.to_owned()], why.to_owned()),
            None => (Vec::new(), report),
        };
        match reasons.iter_mut().find(|(known, _)| *known == why) {
            Some((_, nodes)) => nodes.extend(who),
            None => reasons.push((why, who)),
        }
    }
    let told = reasons.into_iter().map(|(why, who)| match who.is_empty() {
        true => why,
        false => format!("{}: {why}", who.join(", ")),
    });
    told.collect::<Vec<_>>().join("; ")
}

async fn drop_on(
    context: &Context,
    cluster: &ClusterName,
    name: &CloneName,
    at: Timestamp,
    nodes: &[NodeName],
) -> Vec<Result<CloneDropped>> {
    let command = DropClone { name: name.to_string(), at };
    let each = nodes.iter().map(|node| {
        let (member, command) = (Member { cluster: cluster.clone(), node: node.clone() }, &command);
        let head = context.head(JobId::default(), 0);
        async move { context.fleet.command(&member, head, command, CLONE_DEADLINE, |_| ()).await }
    });
    join_all(each).await
}

/// Drops a clone on all nodes. `NotFound` where none has it; `Retry` names nodes that are away: it is dropped on the others.
pub async fn drop_clone(context: &Context, cluster: &ClusterName, name: &CloneName) -> Result<DroppedClone> {
    context.check_fenced()?;
    let _one = context.clones.lock().await;
    let all = Nodes::ask(context, cluster).await?;
    let nodes: Vec<_> = all.asked.iter().map(|a| a.node.clone()).collect();
    let dropped = drop_on(context, cluster, name, Timestamp::ZERO, &nodes).await;
    let (mut had, mut failed) = (Vec::new(), Vec::new());
    for (node, dropped) in nodes.iter().zip(dropped) {
        match dropped {
            Ok(d) if d.dropped != 0 => had.push(node.to_string()),
            Ok(_) => {}
            Err(e) => failed.push(e.report()),
        }
    }
    failed.extend(all.away.iter().map(|node| format!("node {node} is away")));
    if !failed.is_empty() {
        let on = if had.is_empty() { "no node".to_owned() } else { had.join(", ") };
        return Err(Error::retry(format!(
            "clone {name} of cluster {cluster} was dropped on {on}, but {}: drop it again when they are back",
            failed.join("; ")
        )));
    }
    if had.is_empty() {
        return Err(Error::not_found(format!(
            "cluster {cluster} has no clone {name}: `tidemark clone list` tells which stand"
        )));
    }
    tracing::info!(%cluster, clone = %name, "clone dropped");
    Ok(DroppedClone { name: name.to_string(), nodes: had })
}

/// What stands against a restore onto these nodes (name, engine): a restore replaces what lies under clones. Nodes that
/// do not answer refuse by themselves when it begins.
pub async fn in_the_way(context: &Context, cluster: &ClusterName, nodes: &[(NodeName, String)]) -> Option<String> {
    let embedded = nodes.iter().filter(|(_, engine)| engine == EMBEDDED);
    let each = embedded.map(|(node, _)| {
        let member = Member { cluster: cluster.clone(), node: node.clone() };
        async move {
            let head = context.head(JobId::default(), 0);
            context.fleet.command::<_, Clones>(&member, head, &ListClones {}, DESCRIBE_DEADLINE, |_| ()).await
        }
    });
    let answers = join_all(each).await;
    let mut names: Vec<_> = answers.into_iter().flatten().flat_map(|a| a.clones).map(|c| c.name).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return None;
    }
    let names = names.join(", ");
    Some(format!(
        "clones of cluster {cluster} stand ({names}): drop them (`tidemark clone drop`), or restore onto other nodes"
    ))
}

#[cfg(test)]
mod tests {
    use super::joined;

    #[test]
    fn a_reason_is_told_once() {
        let reports = ["node d/a: too old: 7", "node d/b: too old: 7", "node d/c: away", "the link: broke"];
        let told = joined(reports.into_iter().map(str::to_owned));
        assert_eq!(told, "node d/a, node d/b: too old: 7; node d/c: away; the link: broke");
    }
}
