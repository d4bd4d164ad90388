//! `tidemark query`: looking into the past without a restore.

use clap::{Args, Subcommand};
use tidemark_proto::{ClusterName, Error, Result, Timestamp};

use super::connect::{ClusterArg, GlobalArgs};
use super::output::fields;
use super::time::{self, TimeArg};
use crate::client::ApiClient;
use crate::query::{
    DEFAULT_LIMIT, DiffQuery, Difference, Found, GetQuery, History, HistoryQuery, Page, ScanQuery, Where,
};

/// `tidemark query`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct QueryArgs {
    /// The cluster; not needed where the coordinator knows one alone
    #[arg(short = 'C', long, env = "TIDEMARK_CLUSTER", global = true)]
    cluster: Option<ClusterName>,
    /// Database of the keys (Redis and Valkey)
    #[arg(long, value_name = "N", default_value_t = 0, global = true)]
    db: u64,
    /// Keys and prefixes are given as base64
    #[arg(long, global = true)]
    base64: bool,
    #[command(subcommand)]
    verb: QueryCommand,
}

const EXAMPLES: &str = "Examples:
  tidemark query get user:4711 --cluster orders --at -5m
  tidemark query scan user: --cluster orders --at 2026-10-04T09:30:00Z --limit 20
  tidemark query diff --cluster orders --from -10m --to -5m --keys 'user:*'
  tidemark query history user:4711 --cluster orders -o json
A time means the newest restore point at or before it; the answer says which. Of Redis and Valkey a
time between two backups is worked off by redis-server or valkey-server on the coordinator's machine, and the history is of
commands.";

/// What is asked.
#[derive(Debug, Subcommand)]
pub(crate) enum QueryCommand {
    /// What a key held
    Get {
        /// The key
        key: String,
        /// When; the newest restore point where it is left out
        #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
        at: Option<TimeArg>,
    },
    /// Keys that begin with a prefix, and what they held
    Scan {
        /// The prefix; all keys where it is left out
        #[arg(default_value = "")]
        prefix: String,
        /// When; the newest restore point where it is left out
        #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
        at: Option<TimeArg>,
        /// Most records
        #[arg(long, default_value_t = DEFAULT_LIMIT)]
        limit: usize,
        /// Go on where an answer ended; give the time that it printed
        #[arg(long, default_value = "", hide_default_value = true)]
        cursor: String,
    },
    /// Keys that were added, changed or removed between two times
    Diff {
        /// The earlier time
        #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
        from: TimeArg,
        /// The later time; the newest restore point where it is left out
        #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
        to: Option<TimeArg>,
        /// Only keys that fit this pattern; `!` in front leaves them out; may be given several times
        #[arg(long, value_name = "GLOB")]
        keys: Vec<String>,
        /// Most keys
        #[arg(long, default_value_t = DEFAULT_LIMIT)]
        limit: usize,
    },
    /// Every version of a key that backups and the log know
    History {
        /// The key
        key: String,
    },
}

async fn resolved(client: &ApiClient, at: Option<TimeArg>) -> Result<Option<u64>> {
    let Some(at) = at else { return Ok(None) };
    // Relative to the coordinator's clock, as restores are.
    let now = if at.is_relative() { Timestamp(client.status().await?.now).millis() } else { 0 };
    at.resolve(now).map(|at| Some(at.0))
}

impl QueryArgs {
    /// Asks.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        let client = global.client()?;
        let cluster = ClusterArg { cluster: self.cluster }.resolve(&client).await?;
        let place = Where { cluster, db: self.db };
        let (output, base64) = (global.output, self.base64);
        match self.verb {
            QueryCommand::Get { key, at } => {
                let at = resolved(&client, at).await?;
                let found = client.query_get(&GetQuery { place, key: key.clone(), base64, at }).await?;
                output.print(&found, get)?;
                match found.record {
                    Some(_) => Ok(()),
                    None => Err(Error::not_found(format!("key `{key}` did not exist then"))),
                }
            }
            QueryCommand::Scan { prefix, at, limit, cursor } => {
                let at = resolved(&client, at).await?;
                let query = ScanQuery { place, prefix, base64, at, limit, cursor };
                output.print(&client.query_scan(&query).await?, scan)
            }
            QueryCommand::Diff { from, to, keys, limit } => {
                let from = resolved(&client, Some(from)).await?.unwrap_or_default();
                let to = resolved(&client, to).await?;
                output.print(&client.query_diff(&DiffQuery { place, from, to, keys, limit }).await?, diff)
            }
            QueryCommand::History { key } => {
                output.print(&client.query_history(&HistoryQuery { place, key, base64 }).await?, history)
            }
        }
    }
}

fn get(found: &Found) -> String {
    let written = match found.written_at {
        0 => "before the backup's cut".to_owned(),
        at => time::exact(Timestamp(at)),
    };
    let head = fields(&[
        ("state of", time::exact(Timestamp(found.at))),
        ("written", if found.record.is_some() { written } else { String::new() }),
    ]);
    let record = found.record.as_ref().map(|r| format!("{r}\n")).unwrap_or_default();
    format!("{head}{record}")
}

fn scan(page: &Page) -> String {
    let mut out = fields(&[("state of", time::exact(Timestamp(page.at)))]);
    for record in &page.records {
        out.push_str(&format!("{}\n", serde_json::Value::Object(record.record.clone())));
    }
    if !page.cursor.is_empty() {
        out.push_str(&format!("more: --at {} --cursor {}\n", page.at, page.cursor));
    }
    out
}

fn diff(found: &Difference) -> String {
    let mut out = fields(&[("from", time::exact(Timestamp(found.from))), ("to", time::exact(Timestamp(found.to)))]);
    for item in &found.changes {
        let sign = match item.change.as_str() {
            "added" => "+",
            "removed" => "-",
            _ => "~",
        };
        let record = |r: &Option<serde_json::Value>| r.as_ref().map(ToString::to_string).unwrap_or_default();
        let (before, after) = (record(&item.before), record(&item.after));
        out.push_str(&match sign {
            "~" => format!("~ {before}\n  {after}\n"),
            sign => format!("{sign} {before}{after}\n"),
        });
    }
    out.push_str(match (found.changes.is_empty(), found.more) {
        (true, _) => "nothing changed\n",
        (_, true) => "there are more: raise --limit or narrow --keys\n",
        _ => "",
    });
    out
}

fn history(found: &History) -> String {
    let mut out = String::new();
    for version in &found.versions {
        let by = match version.known_by.as_str() {
            "log" => String::new(),
            _ => format!("  (or before: as backup {} has it)", super::output::short(&version.backup)),
        };
        let record = match (&version.command, &version.record) {
            (Some(command), _) => format!("db {}: {}", command.db, command.words.join(" ")),
            (None, Some(record)) => record.to_string(),
            (None, None) => "deleted, or not there".into(),
        };
        out.push_str(&format!("{}{by}\n  {record}\n", time::exact(Timestamp(version.at))));
    }
    if found.versions.is_empty() {
        out.push_str("nothing is known of this key\n");
    }
    for (from, to) in &found.complete {
        let (from, to) = (time::exact(Timestamp(*from)), time::exact(Timestamp(*to)));
        out.push_str(&format!("every change is known from {from} to {to}\n"));
    }
    out
}
