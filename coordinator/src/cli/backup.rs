//! `tidemark backup`.

use clap::{Args, Subcommand};
use tidemark_proto::{ClusterName, Result, Timestamp};

use super::confirm::ConfirmArgs;
use super::connect::{ClusterArg, GlobalArgs};
use super::follow::WaitArgs;
use super::jobs;
use super::output::{Format, duration, listing, short, size};
use super::report;
use super::time;
use crate::api::CreateBackup;
use crate::catalog::BackupItem;
use crate::job::JobKind;

/// `tidemark backup`.
#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Take a backup
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// List the backups of a cluster, newest first
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        cluster: ClusterArg,
    },
    /// Show one backup with the evidence of its cut
    Show {
        /// The backup: id, a unique beginning of it, or `latest`
        #[arg(default_value = "latest")]
        backup: String,
        #[command(flatten)]
        cluster: ClusterArg,
    },
    /// Delete a backup: it is no restore point any more
    Delete {
        /// The backup: id or a unique beginning of it
        backup: String,
        #[command(flatten)]
        cluster: ClusterArg,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
    /// Cancel a running backup
    Cancel {
        /// The job: id or a unique beginning of it; the running one where there is one alone
        job: Option<String>,
        /// Only of this cluster
        #[arg(short = 'C', long)]
        cluster: Option<ClusterName>,
    },
}

const CREATE_EXAMPLES: &str = "Examples:
  tidemark backup create --cluster orders
  tidemark backup create --cluster orders --full --no-wait
  tidemark backup create --cluster orders -o json | jq .result.cut";

/// Options of `backup create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    cluster: ClusterArg,
    /// Read and store everything anew, also what has not changed
    #[arg(long)]
    full: bool,
    /// Note it as made by a schedule, not by hand
    #[arg(long)]
    automatic: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

impl BackupCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        let (client, output) = (global.client()?, global.output);
        match self {
            Self::Create(c) => {
                let cluster = c.cluster.resolve(&client).await?;
                let wanted = CreateBackup { full: c.full, automatic: c.automatic };
                let info = client.create_backup(&cluster, &wanted).await?;
                c.wait.end(&client, info, output).await
            }
            Self::List { cluster } => {
                let cluster = cluster.resolve(&client).await?;
                output.print(&client.backups(&cluster).await?, |items| list(&cluster, items))
            }
            Self::Show { backup, cluster } => {
                let cluster = cluster.resolve(&client).await?;
                output.print(&client.backup(&cluster, &backup).await?, report::backup)
            }
            Self::Delete { backup, cluster, confirm } => {
                let cluster = cluster.resolve(&client).await?;
                // What was confirmed is deleted: by its whole id, not by what `latest` or a beginning means by then.
                let item = client.backup(&cluster, &backup).await?.item;
                let cut = time::exact(Timestamp(item.cut));
                confirm.confirm(&format!("Delete backup {} of cluster {cluster}, cut {cut}?", item.id))?;
                let item = client.delete_backup(&cluster, &item.id).await?;
                output.print(&item, |i| format!("backup {} of cluster {} is deleted", i.id, i.cluster))
            }
            Self::Cancel { job, cluster } => {
                jobs::cancel(&client, Some(JobKind::Backup), job.as_deref(), cluster.as_ref(), output).await
            }
        }
    }
}

/// A list of backups.
pub(crate) fn list(cluster: &ClusterName, items: &[BackupItem]) -> String {
    let ids: Vec<_> = items.iter().map(|i| i.id.as_str()).collect();
    let width = unique_width(&ids);
    let rows = items.iter().map(|i| {
        let complete = |text: String| if i.cut == 0 && i.state != "running" { "-".into() } else { text };
        [
            i.id.chars().take(width).collect(),
            report::capital(&i.made),
            i.state.clone(),
            time::seconds(i.started_millis),
            time::seconds(Timestamp(i.cut).millis()),
            if i.cut == 0 { "-".into() } else { i.cut.to_string() },
            duration(i.duration_millis),
            complete(size(i.data_bytes)),
            complete(size(i.new_bytes)),
            if i.nodes == 0 { "-".into() } else { i.nodes.to_string() },
        ]
    });
    let heading = ["ID", "TYPE", "STATE", "BEGAN", "CUT", "TIMESTAMP", "TOOK", "DATA", "NEW", "NODES"];
    let empty = format!("cluster {cluster} has no backup: `tidemark backup create` takes one");
    let mut out = listing(heading, rows, &empty);
    for failed in items.iter().filter(|i| !i.reason.is_empty()) {
        out.push_str(&format!("{} failed: {}\n", short(&failed.id), failed.reason));
    }
    out
}

/// Characters that tell all ids apart, at least those of [`short`].
fn unique_width(ids: &[&str]) -> usize {
    let least = short("0123456789abcdef0123456789abcdef").len();
    let longest = ids.iter().map(|i| i.len()).max().unwrap_or(least);
    let distinct = |width: usize| {
        let mut cut: Vec<_> = ids.iter().map(|i| &i[..width.min(i.len())]).collect();
        cut.sort_unstable();
        cut.windows(2).all(|w| w[0] != w[1])
    };
    (least..longest).find(|w| distinct(*w)).unwrap_or(longest)
}

/// Options of `tidemark verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyCommand {
    /// The backup: id, a unique beginning of it, or `latest`
    #[arg(default_value = "latest")]
    backup: String,
    #[command(flatten)]
    cluster: ClusterArg,
    /// Share of the parts to read, drawn at random, e.g. 5%
    #[arg(long, default_value = "100%", value_parser = percent)]
    sample: f64,
    #[command(flatten)]
    wait: WaitArgs,
}

impl VerifyCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        let client = global.client()?;
        let cluster = self.cluster.resolve(&client).await?;
        let request = crate::job::verify::VerifyRequest { cluster, backup: self.backup, sample: self.sample };
        let info = client.verify(&request).await?;
        self.wait.end(&client, info, global.output).await
    }
}

/// `5%`, `0.5%`; the sign may be left out.
fn percent(text: &str) -> std::result::Result<f64, String> {
    let value: Option<f64> = text.strip_suffix('%').unwrap_or(text).trim().parse().ok();
    value
        .filter(|v| *v > 0.0 && *v <= 100.0)
        .ok_or_else(|| "write a share such as 5%, over 0% and at most 100%".into())
}

/// Prints the end of each of several jobs; the first that failed decides.
pub(crate) async fn end_all(
    client: &crate::client::ApiClient,
    jobs: Vec<crate::job::JobInfo>,
    wait: WaitArgs,
    output: Format,
) -> Result<()> {
    if jobs.is_empty() {
        return output.print(&jobs, |_| "the repository holds no cluster yet: nothing to do".into());
    }
    if !wait.waits() {
        return output.print(&jobs, |jobs| jobs.iter().map(|j| format!("job {} has begun\n", j.id)).collect());
    }
    let mut ended = Vec::new();
    for job in jobs {
        ended.push(super::follow::follow(client, job, output).await?);
    }
    let good = ended.iter().filter(|i| super::follow::check(i).is_ok());
    match output {
        Format::Json => output.print(&ended, |_| String::new())?,
        Format::Text => super::output::say(&good.map(report::result).collect::<String>())?,
    }
    ended.iter().try_for_each(super::follow::check)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str, state: &str, cut: u64) -> BackupItem {
        BackupItem {
            id: id.into(),
            cluster: "orders".into(),
            made: "manual".into(),
            state: state.into(),
            cut,
            started_millis: 1_800_000_000_000,
            duration_millis: 1500,
            data_bytes: 3 << 20,
            new_bytes: 1 << 20,
            records: 10,
            nodes: if cut == 0 { 0 } else { 3 },
            reason: String::new(),
        }
    }

    #[test]
    fn the_list_shows_what_an_operator_asks_for() {
        let cut = Timestamp::new(1_800_000_000_500, 3);
        let mut failed = item("fedcba9876543210fedcba9876543210", "failed", 0);
        failed.reason = "no cut".into();
        let items = [item("0123456789abcdef0123456789abcdef", "complete", cut.0), failed];
        let text = list(&"orders".parse().unwrap(), &items);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        for word in ["01234567 ", "Manual", "complete", "1.5 s", "3.0 MiB", "1.0 MiB", &cut.to_string()] {
            assert!(lines[1].contains(word), "{word}: {text}");
        }
        assert!(lines[2].contains("failed") && !lines[2].contains("MiB"), "{text}");
        assert_eq!(lines[3], "fedcba98 failed: no cut");
    }

    #[test]
    fn ids_are_as_long_as_it_takes() {
        let long = "0123456789abcdef0123456789abcdef";
        assert_eq!(unique_width(&[long]), 8);
        assert_eq!(unique_width(&[long, "0123456789ffffff0123456789abcdef"]), 11);
        assert_eq!(unique_width(&[]), 8);
    }

    #[test]
    fn shares_are_percent() {
        assert_eq!((percent("5%"), percent("0.5"), percent("100 %")), (Ok(5.0), Ok(0.5), Ok(100.0)));
        for bad in ["0", "101%", "-1%", "half", "", "NaN"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
