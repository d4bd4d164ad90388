//! `tidemark limits`: rates of backups and restores.

use clap::{Args, Subcommand};
use tidemark_proto::Result;

use super::connect::GlobalArgs;
use super::output::fields;
use super::time;
use crate::limits::{LimitInfo, LimitsInfo, SetLimits};

/// `tidemark limits`.
#[derive(Debug, Subcommand)]
pub(crate) enum LimitsCommand {
    /// Show the limits in force
    Show,
    /// Change limits: they count at once, also for running jobs, and outlive the coordinator
    Set(SetArgs),
}

/// What to change. A RATE is in bytes a second: 50MB, 64MiB, 1.5GB; `none` for no limit, `default` for what the
/// coordinator's configuration says.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct SetArgs {
    /// Of all agents together: 50MB, 64MiB, 1.5GB (a second), none, or default (what the configuration says)
    #[arg(long, value_name = "RATE")]
    fleet: Option<String>,
    /// Of each agent, in the same words
    #[arg(long, value_name = "RATE")]
    per_agent: Option<String>,
}

impl LimitsCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        let limits = match self {
            Self::Show => global.client()?.limits().await?,
            Self::Set(SetArgs { fleet, per_agent }) => {
                let change = SetLimits { fleet, per_agent };
                change.check()?;
                global.client()?.set_limits(&change).await?
            }
        };
        global.output.print(&limits, text)
    }
}

fn text(limits: &LimitsInfo) -> String {
    let line = |limit: &LimitInfo| {
        let unit = if limit.bytes_per_second.is_some() { "/s" } else { "" };
        let source = if limit.source == "config" { "by the configuration" } else { "set by an operator" };
        format!("{}{unit}, {source}", limit.rate)
    };
    let set = if limits.set_millis > 0 { time::seconds(limits.set_millis) } else { String::new() };
    fields(&[("fleet", line(&limits.fleet)), ("each agent", line(&limits.per_agent)), ("last set", set)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_lines() {
        let limit = |bytes: Option<u64>, rate: &str, source: &str| LimitInfo {
            bytes_per_second: bytes,
            rate: rate.into(),
            source: source.into(),
        };
        let limits = LimitsInfo {
            fleet: limit(Some(50_000_000), "50MB", "operator"),
            per_agent: limit(None, "none", "config"),
            set_millis: 0,
        };
        let expected = "fleet       50MB/s, set by an operator\neach agent  none, by the configuration\n";
        assert_eq!(text(&limits), expected);
    }
}
