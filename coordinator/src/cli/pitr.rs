//! `tidemark pitr`: the log of a cluster, so that any second can be restored.

use clap::{Args, Subcommand};
use tidemark_proto::{Result, Timestamp};

use super::connect::{ClusterArg, GlobalArgs};
use super::output::{count, fields, listing, short, size};
use super::time;
use crate::log::{EnablePitr, PitrStatus, WindowItem};

/// `tidemark pitr`.
#[derive(Debug, Subcommand)]
pub(crate) enum PitrCommand {
    /// Keep the log of a cluster from now on: any second since then can be restored. Takes a backup where one is needed
    Enable(EnableArgs),
    /// Keep no log any more; what is stored can be restored until it is collected
    Disable(ClusterArg),
    /// Stream nothing for a while: nodes keep their changes, and the log goes on with `resume`
    Pause(ClusterArg),
    /// Go on
    Resume(ClusterArg),
    /// Show what can be restored, and how far the log of each node is behind
    Status(ClusterArg),
}

/// `tidemark pitr enable`.
#[derive(Debug, Args)]
pub(crate) struct EnableArgs {
    #[command(flatten)]
    cluster: ClusterArg,
    /// Longest time from one segment to the next while there is news, in milliseconds
    #[arg(long, value_name = "MS")]
    interval_ms: Option<u64>,
    /// Size at which a segment is closed before that, in MiB
    #[arg(long, value_name = "MIB")]
    segment_mib: Option<u64>,
    /// Longest time between segments when nothing changes, in milliseconds
    #[arg(long, value_name = "MS")]
    idle_ms: Option<u64>,
}

impl PitrCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        let client = global.client()?;
        let status = match self {
            Self::Enable(args) => {
                let cluster = args.cluster.resolve(&client).await?;
                let wanted = EnablePitr {
                    interval_millis: args.interval_ms,
                    segment_bytes: args.segment_mib.map(|mib| mib.saturating_mul(1 << 20)),
                    idle_millis: args.idle_ms,
                };
                client.enable_pitr(&cluster, &wanted).await?
            }
            Self::Disable(cluster) => client.change_pitr(&cluster.resolve(&client).await?, "disable").await?,
            Self::Pause(cluster) => client.change_pitr(&cluster.resolve(&client).await?, "pause").await?,
            Self::Resume(cluster) => client.change_pitr(&cluster.resolve(&client).await?, "resume").await?,
            Self::Status(cluster) => client.pitr(&cluster.resolve(&client).await?).await?,
        };
        global.output.print(&status, text)
    }
}

/// A window as one line.
pub(crate) fn window(w: &WindowItem) -> String {
    let to = if w.ended.is_empty() { "to" } else { "to (ended)" };
    format!(
        "{} {to} {}",
        time::seconds(Timestamp(w.earliest).millis()),
        time::seconds(Timestamp(w.latest).millis())
    )
}

fn lag(millis: u64) -> String {
    format!("{}.{} s", millis / 1000, millis % 1000 / 100)
}

/// What would be lost with all nodes; empty while that is not known.
fn lost(s: &PitrStatus) -> String {
    match s.nodes.iter().any(|n| n.safe == 0) {
        true => "everything: neither the log nor a backup holds anything yet".into(),
        false if s.nodes.is_empty() => String::new(),
        false => lag(s.rpo_millis),
    }
}

fn text(s: &PitrStatus) -> String {
    let state = match (s.state.as_str(), s.healthy) {
        ("on", true) => "on".to_owned(),
        ("on", false) if s.broken_since > 0 => {
            format!("on, broken since {}", time::exact(Timestamp(s.broken_since)))
        }
        ("on", false) if s.windows.is_empty() => "on, nothing can be restored from it yet".to_owned(),
        ("on", false) => "on, not healthy".to_owned(),
        (other, _) => other.to_owned(),
    };
    let on = s.state == "on";
    let head = fields(&[
        ("cluster", s.cluster.clone()),
        ("log", state),
        ("trouble", s.trouble.clone()),
        ("lost if all were lost now", if on { lost(s) } else { String::new() }),
        ("segments", format!("{}, {}", count(s.segments), size(s.bytes))),
        (
            "a segment every",
            format!("{} ms, or {}, or {} ms when idle", s.interval_millis, size(s.segment_bytes), s.idle_millis),
        ),
    ]);
    let windows = s.windows.iter().map(|w| {
        let bases: Vec<String> = w.bases.iter().map(|b| short(b)).collect();
        [
            time::exact(Timestamp(w.earliest)),
            time::exact(Timestamp(w.latest)),
            bases.join(" "),
            if w.points > 0 { count(w.points) } else { "any".into() },
            if w.ended.is_empty() { "goes on".into() } else { w.ended.clone() },
        ]
    });
    let windows = listing(
        ["RESTORABLE FROM", "TO", "BACKUPS", "POINTS", "THEN"],
        windows,
        "nothing can be restored from the log",
    );
    let mut out = format!("{head}\n{windows}");
    if !s.nodes.is_empty() {
        let nodes = s.nodes.iter().map(|n| {
            let state = if n.streaming { "streaming" } else { "not streaming" };
            let behind = if n.safe == 0 { "everything".into() } else { lag(n.lag_millis) };
            [n.node.clone(), state.into(), behind, size(n.behind_bytes), n.error.clone()]
        });
        out.push_str(&format!("\n{}", listing(["NODE", "LOG", "BEHIND", "WAITING", "WHY"], nodes, "")));
    }
    out
}
