//! `tidemark status` and `tidemark cluster`.

use clap::{Args, Subcommand};
use tidemark_proto::{ClusterName, Result, Timestamp};

use super::connect::{ClusterArg, GlobalArgs};
use super::jobs;
use super::output::{count, fields, listing, short, size};
use super::time;
use crate::api::{ClusterDetail, ClusterItem, Status};
use crate::log::PitrStatus;

/// `tidemark status`.
#[derive(Debug, Args)]
pub(crate) struct StatusCommand {}

impl StatusCommand {
    /// Shows it.
    pub(crate) async fn run(&self, global: &GlobalArgs) -> Result<()> {
        global.output.print(&global.client()?.status().await?, status)
    }
}

/// `tidemark cluster`.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// List the clusters that are connected or have backups
    #[command(visible_alias = "ls")]
    List,
    /// Show a cluster, its nodes and its newest backup
    Show {
        /// The cluster; not needed where the coordinator knows one alone
        cluster: Option<ClusterName>,
    },
}

impl ClusterCommand {
    /// Shows it.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        let client = global.client()?;
        match self {
            Self::List => global.output.print(&client.clusters().await?, |c| clusters(c)),
            Self::Show { cluster } => {
                let cluster = ClusterArg { cluster }.resolve(&client).await?;
                global.output.print(&client.cluster(&cluster).await?, detail)
            }
        }
    }
}

/// A fenced coordinator still answers, but writes no more.
fn fenced(s: &Status) -> String {
    if s.fenced.is_empty() { String::new() } else { format!(", FENCED: {}", s.fenced) }
}

fn status(s: &Status) -> String {
    let head = fields(&[
        ("coordinator", format!("{}, tidemark {}, epoch {}{}", s.name, s.version, s.epoch, fenced(s))),
        ("up since", time::seconds(s.started_millis)),
        ("clock", time::exact(Timestamp(s.now))),
        ("repository", s.repository.clone()),
    ]);
    let mut out = format!("{head}\n{}", clusters(&s.clusters));
    if !s.running_jobs.is_empty() {
        out.push_str(&format!("\n{}", jobs::list(&s.running_jobs, Timestamp(s.now).millis())));
    }
    out
}

fn clusters(items: &[ClusterItem]) -> String {
    let rows = items.iter().map(|c| {
        [
            c.cluster.clone(),
            c.engine.clone(),
            c.state.clone(),
            format!("{}/{}", c.connected, c.expected),
            c.backups.to_string(),
            time::seconds(Timestamp(c.last_cut).millis()),
        ]
    });
    let empty = "no cluster is connected or has backups: start agents (`tidemark-agent --config FILE`)";
    listing(["CLUSTER", "ENGINE", "STATE", "NODES", "BACKUPS", "NEWEST CUT"], rows, empty)
}

/// The log in one line.
fn restorable(s: &PitrStatus) -> String {
    let windows: Vec<String> = s.windows.iter().rev().take(3).map(super::pitr::window).collect();
    match windows.is_empty() {
        true => format!("{}, nothing can be restored from it", s.state),
        false => format!("{}, restorable: {}", s.state, windows.join(", ")),
    }
}

fn detail(d: &ClusterDetail) -> String {
    let c = &d.item;
    let regions = match d.slots_per_region {
        0 => "chosen with the first backup".into(),
        slots => format!("{slots} slots each"),
    };
    let last = d.last_backup.as_ref().map_or_else(
        || "none: `tidemark backup create` takes one".into(),
        |b| format!("{}, cut {}", short(&b.id), time::exact(Timestamp(b.cut))),
    );
    let head = fields(&[
        ("cluster", c.cluster.clone()),
        ("engine", c.engine.clone()),
        ("state", format!("{}, {} of {} nodes connected", c.state, c.connected, c.expected)),
        ("regions", regions),
        ("backups", c.backups.to_string()),
        ("newest", last),
        ("log", d.pitr.as_ref().map(restorable).unwrap_or_default()),
    ]);
    let nodes = d.nodes.iter().map(|n| {
        let state = if n.connected { n.state.clone() } else { "away".into() };
        let role = match &n.follows[..] {
            "" => n.role.clone(),
            primary => format!("{} of {primary}", n.role),
        };
        [
            n.node.clone(),
            state,
            role,
            n.slots.clone(),
            count(n.records),
            size(n.bytes),
            n.data_address.clone(),
            short(&n.incarnation),
            n.build.clone(),
        ]
    });
    let heading = ["NODE", "STATE", "ROLE", "SLOTS", "RECORDS", "BYTES", "SERVES AT", "DATA", "AGENT"];
    format!("{head}\n{}", listing(heading, nodes, "no node"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_without_clusters_says_what_to_do() {
        assert!(clusters(&[]).contains("start agents"));
    }

    #[test]
    fn clusters_are_lines() {
        let item = ClusterItem {
            cluster: "orders".into(),
            engine: "embedded".into(),
            connected: 2,
            expected: 3,
            state: "degraded".into(),
            backups: 4,
            last_cut: 0,
        };
        let text = clusters(&[item]);
        assert!(
            text.lines().nth(1).unwrap().starts_with("orders   embedded  degraded  2/3    4        -"),
            "{text}"
        );
    }
}
