//! `tidemark clone`: writable branches of a cluster on its own nodes.

mod run;

use clap::{Args, Subcommand};
use tidemark_proto::{CloneName, ClusterName, Result, Timestamp};

use super::confirm::ConfirmArgs;
use super::connect::{ClusterArg, GlobalArgs};
use super::output::{listing, size};
use super::time::{self, TimeArg};
use crate::clones::{CloneItem, CloneRequest};

/// `tidemark clone`.
#[derive(Debug, Subcommand)]
pub(crate) enum CloneCommand {
    /// Make a clone: a writable branch of a cluster's data on its own nodes, at once whatever the size
    #[command(after_help = CREATE_HELP)]
    Create(Create),
    /// Run a throw-away server of Redis or Valkey on this machine with the data of a time, straight from the repository
    #[command(after_help = run::RUN_HELP)]
    Run(Box<run::Run>),
    /// Say how a clone of Redis or Valkey takes over
    Promote,
    /// List the clones of a cluster
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        cluster: ClusterArg,
    },
    /// Drop a clone with all that was written in it
    Drop {
        /// Its name
        name: CloneName,
        #[command(flatten)]
        cluster: ClusterArg,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
}

const CREATE_HELP: &str = "\
A clone holds the cluster's data as of its time. What is written in it stays in it, and
what the cluster writes later does not show in it. While it stands the nodes keep every
version since its time, and refuse restores. Clones are not backed up. Stores: embedded.

Examples:
  tidemark clone create trial --cluster orders
  tidemark clone create before --cluster orders --at -5m
  tidemark kv scan --cluster orders --clone trial
  tidemark clone drop trial --cluster orders";

const PROMOTE: &str = "\
A clone that is to take over is a restore onto servers of its own, which stay:

  1  start empty servers (a Cluster of any shape, or one), an agent beside each, under a new cluster name:
       tidemark cluster show orders-new
  2  restore the time onto them:
       tidemark restore run --cluster orders --target orders-new --at 2026-10-04T09:30:00Z --with-users
  3  let clients read there and compare
  4  hold writes on the old servers (CLIENT PAUSE <ms> WRITE, or take the writers away), then point what clients
     find them by to the new ones: the DNS name, the proxy's upstream, the service's endpoints, Sentinel's master.
     What was written to the old ones after the time is on the old ones alone: export it, or choose the time
     after the last write (`tidemark pitr status` says up to when)
  5  protect the new cluster: tidemark backup create --cluster orders-new; tidemark pitr enable --cluster orders-new
  6  keep the old servers until nobody asks them any more

Nothing of this is done by Tidemark itself: which address clients use is known to the operator alone.
A clone that is only to be looked at: tidemark clone run.
";

/// Options of `clone create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name: a-z, 0-9, '-', '_', '.'
    name: CloneName,
    #[command(flatten)]
    cluster: ClusterArg,
    /// As of this time: 2026-10-04T09:30:00Z, -5m, or a raw timestamp; now without it
    #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
    at: Option<TimeArg>,
}

impl CloneCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        match self {
            Self::Run(run) => return run.run(global.output).await,
            Self::Promote => {
                print!("{PROMOTE}");
                return Ok(());
            }
            _ => {}
        }
        let (client, output) = (global.client()?, global.output);
        match self {
            Self::Run(_) | Self::Promote => Ok(()),
            Self::Create(c) => {
                let cluster = c.cluster.resolve(&client).await?;
                let at = time::resolve(c.at, &client).await?.map(|at| at.0);
                let made = client.create_clone(&cluster, &CloneRequest { name: c.name, at }).await?;
                output.print(&made, |clone| created(&cluster, clone))
            }
            Self::List { cluster } => {
                let cluster = cluster.resolve(&client).await?;
                output.print(&client.clones(&cluster).await?, |items| list(&cluster, items))
            }
            Self::Drop { name, cluster, confirm } => {
                let cluster = cluster.resolve(&client).await?;
                confirm
                    .confirm(&format!("Drop clone {name} of cluster {cluster} with all that was written in it?"))?;
                let dropped = client.drop_clone(&cluster, &name).await?;
                output.print(&dropped, |d| format!("clone {} of cluster {cluster} is dropped", d.name))
            }
        }
    }
}

fn created(cluster: &ClusterName, clone: &CloneItem) -> String {
    let (name, at) = (&clone.name, time::exact(Timestamp(clone.at)));
    format!(
        "clone {name} of cluster {cluster} stands, as of {at}\nread and write it: tidemark kv --cluster {cluster} --clone {name} scan"
    )
}

/// How a clone stands, in words.
fn state(clone: &CloneItem) -> String {
    let mut out = clone.state.clone();
    if !clone.missing.is_empty() {
        out.push_str(&format!(": not on {}", clone.missing.join(", ")));
    }
    if !clone.away.is_empty() {
        out.push_str(&format!("; {} away", clone.away.join(", ")));
    }
    out
}

fn list(cluster: &ClusterName, items: &[CloneItem]) -> String {
    let rows = items.iter().map(|c| {
        [c.name.clone(), time::exact(Timestamp(c.at)), time::seconds(c.created_millis), size(c.bytes), state(c)]
    });
    let empty = format!("cluster {cluster} has no clone: `tidemark clone create NAME` makes one");
    listing(["NAME", "AS OF", "MADE", "OWN WRITES", "STATE"], rows, &empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let clone = |state: &str, missing: &[&str], away: &[&str]| CloneItem {
            name: "trial".into(),
            at: Timestamp::new(1_800_000_000_000, 1).0,
            created_millis: 1_800_000_000_000,
            bytes: 2048,
            state: state.into(),
            nodes: vec!["n0".into()],
            missing: missing.iter().map(ToString::to_string).collect(),
            away: away.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(state(&clone("complete", &[], &[])), "complete");
        assert_eq!(state(&clone("incomplete", &["n1", "n2"], &["n3"])), "incomplete: not on n1, n2; n3 away");
        let cluster: ClusterName = "orders".parse().unwrap();
        let shown = list(&cluster, &[clone("unknown", &[], &["n1"])]);
        assert!(shown.contains("2.0 KiB") && shown.ends_with("unknown; n1 away\n"), "{shown}");
        assert!(list(&cluster, &[]).contains("no clone"));
    }
}
