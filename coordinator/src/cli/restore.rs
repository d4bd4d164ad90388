//! `tidemark restore`.

use clap::{Args, Subcommand, ValueEnum};
use tidemark_common::expiry::ExpiryMode;
use tidemark_proto::{ClusterName, Result, SlotSet, Timestamp};

use super::confirm::ConfirmArgs;
use super::connect::{ClusterArg, GlobalArgs};
use super::follow::WaitArgs;
use super::output::count;
use super::time::TimeArg;
use super::{jobs, report, time};
use crate::client::ApiClient;
use crate::job::JobKind;
use crate::job::restore::{RestorePlan, RestoreRequest};

/// `tidemark restore`.
#[derive(Debug, Subcommand)]
pub(crate) enum RestoreCommand {
    /// Say what a restore would do; nothing changes
    #[command(after_help = EXAMPLES)]
    Plan(What),
    /// Restore a backup
    #[command(after_help = EXAMPLES)]
    Run(Box<Run>),
    /// Show a restore
    Status {
        /// The job: id or a unique beginning of it; without one, the one that runs or else the last
        job: Option<String>,
        /// Only of this cluster
        #[arg(short = 'C', long)]
        cluster: Option<ClusterName>,
        /// Follow it to its end
        #[arg(long)]
        wait: bool,
    },
    /// Cancel a running restore: every node is put back as it was
    Cancel {
        /// The job: id or a unique beginning of it; the running one where there is one alone
        job: Option<String>,
        /// Only of this cluster
        #[arg(short = 'C', long)]
        cluster: Option<ClusterName>,
    },
}

const EXAMPLES: &str = "Examples:
  tidemark restore plan latest --cluster orders --target orders-copy
  tidemark restore run latest --cluster orders --target orders-copy
  tidemark restore run --at 2026-10-04T09:30:00Z --cluster orders --target orders-copy
  tidemark restore run 3f2a91c0 --cluster orders --in-place --keys 'user:*' --keys '!user:test:*'
  tidemark restore run latest --cluster sessions --target sessions-copy --slots 0-5460 --expiry shift";

/// When restored keys expire.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Expiry {
    /// When they did; those whose time has come are left out and counted
    #[default]
    Absolute,
    /// As long after the restore as they would have after the cut
    Shift,
    /// Never
    Drop,
}

impl From<Expiry> for ExpiryMode {
    fn from(expiry: Expiry) -> Self {
        match expiry {
            Expiry::Absolute => Self::Absolute,
            Expiry::Shift => Self::Shift,
            Expiry::Drop => Self::Drop,
        }
    }
}

/// What is restored, and where to.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["backup", "at"])))]
pub(crate) struct What {
    /// The backup: id, a unique beginning of it, or `latest`
    backup: Option<String>,
    /// A time instead of a backup, where a log is kept (`tidemark pitr`): the newest restore point at or before it. As
    /// 2026-10-04T09:30:00Z, -5m, -2h30m, `now`, or a raw timestamp
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<TimeArg>,
    /// Take that very time, by the clocks of the nodes, and not the restore point before it (Redis and Valkey): what one node did
    /// may be there without what another one did before
    #[arg(long, requires = "at")]
    inexact: bool,
    #[command(flatten)]
    cluster: ClusterArg,
    /// Cluster to restore onto; the same where it is left out
    #[arg(long)]
    target: Option<ClusterName>,
    /// Replace what the nodes hold now
    #[arg(long)]
    in_place: bool,
    /// Only keys that fit this pattern (`*`, `?`, `[a-z]`); `!` in front leaves them out; may be given several times. In
    /// place the nodes hold nothing else afterwards: to take some keys back, restore them onto other nodes
    #[arg(long, value_name = "GLOB")]
    keys: Vec<String>,
    /// Only keys of these slots, e.g. 0-5460,10000
    #[arg(long, value_name = "RANGES")]
    slots: Option<SlotSet>,
    /// Only keys of these databases, e.g. 0,3 (Redis and Valkey)
    #[arg(long = "db", value_name = "N,…", value_delimiter = ',')]
    dbs: Vec<u64>,
    /// When restored keys expire (Redis and Valkey)
    #[arg(long, value_enum, default_value_t)]
    expiry: Expiry,
    /// Do not back up the present state before it is replaced in place
    #[arg(long)]
    no_safety_backup: bool,
    /// Restore what is healthy of a damaged backup. Every block is read first; the regions that are missing are listed, and
    /// the exit code is 6
    #[arg(long)]
    salvage: bool,
    /// Set the users of the backup as well (Redis and Valkey), on primaries and replicas, when the restore has ended: those of
    /// the backup and no others. The agent's own user stays as it is
    #[arg(long)]
    with_users: bool,
}

/// Options of `restore run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    what: What,
    /// Print the plan and stop
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    confirm: ConfirmArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

impl What {
    async fn plan(self, client: &ApiClient) -> Result<RestorePlan> {
        // Relative to the coordinator's clock: it is its time that is restored.
        let now = match self.at {
            Some(at) if at.is_relative() => Timestamp(client.status().await?.now).millis(),
            _ => 0,
        };
        let request = RestoreRequest {
            cluster: self.cluster.resolve(client).await?,
            backup: self.backup.unwrap_or_default(),
            at: self.at.map(|at| at.resolve(now)).transpose()?.map(|at| at.0),
            inexact: self.inexact,
            target: self.target,
            in_place: self.in_place,
            keys: self.keys,
            slots: self.slots,
            dbs: self.dbs,
            expiry: self.expiry.into(),
            no_safety_backup: self.no_safety_backup,
            salvage: self.salvage,
            with_users: self.with_users,
        };
        client.plan_restore(&request).await
    }
}

impl RestoreCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        let (client, output) = (global.client()?, global.output);
        match self {
            Self::Plan(what) => output.print(&what.plan(&client).await?, report::plan),
            Self::Run(run) => run.run(&client, global).await,
            Self::Status { job, cluster, wait } => {
                jobs::status(&client, Some(JobKind::Restore), job.as_deref(), cluster.as_ref(), wait, output).await
            }
            Self::Cancel { job, cluster } => {
                jobs::cancel(&client, Some(JobKind::Restore), job.as_deref(), cluster.as_ref(), output).await
            }
        }
    }
}

impl Run {
    async fn run(self, client: &ApiClient, global: &GlobalArgs) -> Result<()> {
        let plan = self.what.plan(client).await?;
        if self.dry_run {
            return global.output.print(&plan, report::plan);
        }
        if plan.request.in_place && plan.problems.is_empty() {
            self.confirm.confirm(&question(&plan))?;
        }
        // With problems the coordinator refuses and says why.
        let info = client.create_restore(&plan.pinned()).await?;
        self.wait.end(client, info, global.output).await
    }
}

fn question(plan: &RestorePlan) -> String {
    let target = plan.request.target.as_ref().unwrap_or(&plan.request.cluster);
    let present: u64 = plan.targets.iter().map(|t| t.present_records).sum();
    let some = match report::wanted(&plan.request) {
        wanted if wanted.is_empty() => String::new(),
        wanted => format!(" (only {wanted}: every other key is gone afterwards)"),
    };
    let salvage = match plan.request.salvage {
        true => " as far as it is healthy, without what is damaged",
        false => "",
    };
    format!(
        "Replace all {} records that cluster {target} holds now by those of backup {}{salvage}{some}, the state of {}?",
        count(present),
        plan.backup,
        time::exact(plan.state())
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::restore::PlanNode;

    fn plan() -> RestorePlan {
        let node = PlanNode {
            node: "b1".parse().unwrap(),
            slots: tidemark_proto::SlotSet::all(),
            parts: 3,
            bytes: 2048,
            disk_bytes: 4096,
            present_records: 1500,
        };
        serde_json::from_value(serde_json::json!({
            "request": {"cluster": "orders", "backup": "latest", "target": "copy", "in_place": true, "keys": ["user:*"]},
            "backup": "0123456789abcdef0123456789abcdef",
            "cut": 1u64 << 58,
            "source_nodes": 3,
            "targets": [node],
            "records": 1_500_000,
            "bytes": 1u64 << 30,
            "stored_bytes": 1u64 << 29,
            "estimated_seconds": 11,
            "problems": ["node b1 is busy"],
        }))
        .unwrap()
    }

    #[test]
    fn the_question_names_what_is_lost() {
        let text = question(&plan());
        for word in ["1,500 records", "cluster copy", "0123456789abcdef", "user:*", "every other key is gone"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn a_plan_says_what_stands_against_it() {
        let text = report::plan(&plan());
        for word in
            ["1,500,000 records, 1.0 GiB", "512.0 MiB from", "about 11.0 s", "user:*", "b1", "node b1 is busy"]
        {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn what_runs_is_the_backup_that_was_planned() {
        assert_eq!(plan().pinned().backup, "0123456789abcdef0123456789abcdef");
    }
}
