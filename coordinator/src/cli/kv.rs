//! `tidemark kv`: the data of stores that Tidemark serves itself.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;
use tidemark_common::pki::Credentials;
use tidemark_common::transport::client_endpoint;
use tidemark_proto::wire::kv::{MAX_PAGE, MAX_VALUE, Record, Write};
use tidemark_proto::{CloneName, ClusterName, Error, ErrorKind, Result, Timestamp, error::ResultExt};
use tokio_util::sync::CancellationToken;

use super::connect::{ClusterArg, GlobalArgs};
use super::output::{Format, count, micros, say};
use super::time::{self, TimeArg};
use crate::client::ApiClient;
use crate::kv::{CheckReport, LoadOptions, LoadReport, NodeRoute, Router, check, load, routes};

/// `tidemark kv`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct KvArgs {
    /// The cluster; not needed where the coordinator knows one alone
    #[arg(short = 'C', long, env = "TIDEMARK_CLUSTER", global = true)]
    cluster: Option<ClusterName>,
    /// Work on this clone of the cluster (`tidemark clone`), not on the cluster itself
    #[arg(long, value_name = "NAME", global = true)]
    clone: Option<CloneName>,
    #[command(subcommand)]
    verb: KvCommand,
}

const EXAMPLES: &str = "Examples:
  tidemark kv put greeting hello
  tidemark kv get greeting --at -5m
  tidemark kv scan user: --at 2026-10-04T09:30:00Z
  tidemark kv put greeting hi --clone trial
  tidemark kv load --records 100000 --duration 30 --chains 4
  tidemark kv check";

/// Work on keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// Set a key
    Put {
        /// Key
        key: String,
        /// Value
        #[arg(required_unless_present = "file", conflicts_with = "file")]
        value: Option<String>,
        /// Take the value from a file
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Print the value of a key
    Get {
        /// Key
        key: String,
        /// As of this time: 2026-10-04T09:30:00Z, -5m, or a raw timestamp
        #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
        at: Option<TimeArg>,
    },
    /// Remove a key
    Delete {
        /// Key
        key: String,
    },
    /// List keys and values
    Scan {
        /// Keys must begin with this
        #[arg(default_value = "")]
        prefix: String,
        /// As of this time: 2026-10-04T09:30:00Z, -5m, or a raw timestamp
        #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
        at: Option<TimeArg>,
        /// Most records listed
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// Write records and causal chains
    Load(LoadArgs),
    /// Check what loads wrote: values, and that no effect is there without its cause
    Check {
        /// As of this time: 2026-10-04T09:30:00Z, -5m, or a raw timestamp
        #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
        at: Option<TimeArg>,
    },
}

/// Options of `kv load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Base records
    #[arg(long, default_value_t = 10_000)]
    records: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 128)]
    value_size: usize,
    /// Makes keys and values: the same seed writes the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes in a second; 0 is without a bound
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Clients at once
    #[arg(long, default_value_t = 4)]
    clients: u32,
    /// Writes of one commit
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Seconds in all; after the base records the rest is updates
    #[arg(long)]
    duration: Option<f64>,
    /// The base records are there already
    #[arg(long)]
    updates_only: bool,
    /// Causal chains at once
    #[arg(long, default_value_t = 0)]
    chains: u32,
}

impl LoadArgs {
    fn options(&self) -> Result<LoadOptions> {
        let duration = self
            .duration
            .map(Duration::try_from_secs_f64)
            .transpose()
            .or_kind(ErrorKind::Request, "--duration is no number of seconds")?;
        Ok(LoadOptions {
            records: self.records,
            value_size: self.value_size,
            seed: self.seed,
            rate: self.rate,
            clients: self.clients,
            batch: self.batch,
            duration,
            updates_only: self.updates_only,
            chains: self.chains,
            ..LoadOptions::default()
        })
    }
}

impl KvArgs {
    /// Does it on the nodes that the coordinator names.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        let client = global.client()?;
        let cluster = ClusterArg { cluster: self.cluster }.resolve(&client).await?;
        let routes = routes(&client.cluster(&cluster).await?)?;
        let at = self.verb.at(&client).await?;
        let stop = CancellationToken::new();
        let _stopper = tokio::spawn({
            let stop = stop.clone();
            async move {
                // Ctrl-C ends a load early, with its report.
                if tokio::signal::ctrl_c().await.is_ok() {
                    stop.cancel();
                }
            }
        });
        let on = Place { routes, clone: self.clone };
        self.verb.run(&global.credentials()?, on, at, global.output, stop).await
    }
}

/// What a command works on.
struct Place {
    routes: Vec<NodeRoute>,
    clone: Option<CloneName>,
}

impl KvCommand {
    /// The timestamp that reads are meant for.
    async fn at(&self, client: &ApiClient) -> Result<Option<Timestamp>> {
        let (Self::Get { at, .. } | Self::Scan { at, .. } | Self::Check { at }) = self else { return Ok(None) };
        time::resolve(*at, client).await
    }

    async fn run(
        &self,
        credentials: &Credentials,
        on: Place,
        at: Option<Timestamp>,
        output: Format,
        stop: CancellationToken,
    ) -> Result<()> {
        let endpoint = client_endpoint()?;
        let parent = Router::new(&endpoint, credentials, env!("CARGO_PKG_VERSION"), on.routes)?;
        let router = on.clone.map_or(parent.clone(), |clone| parent.of_clone(&clone));
        drop(parent);
        let is_load = matches!(self, Self::Load(_));
        let done = tokio::select! {
            done = self.run_on(&router, at, output, stop.clone()) => done,
            () = stop.cancelled(), if !is_load => Err(Error::cancelled("interrupted")),
        };
        drop(router);
        // Without a word the nodes would keep the connections until they time out.
        endpoint.close(quinn::VarInt::from_u32(0), b"");
        endpoint.wait_idle().await;
        done
    }

    async fn run_on(
        &self,
        router: &Router,
        at: Option<Timestamp>,
        output: Format,
        stop: CancellationToken,
    ) -> Result<()> {
        match self {
            Self::Put { key, value, file } => {
                let value = value_of(value.as_deref(), file.as_ref())?;
                write(router, key, Some(value), output).await
            }
            Self::Get { key, .. } => get(router, key, at, output).await,
            Self::Delete { key } => write(router, key, None, output).await,
            Self::Scan { prefix, limit, .. } => scan(router, prefix, at, *limit, output).await,
            Self::Load(args) => output.print(&load(router, &args.options()?, stop).await?, load_text),
            Self::Check { .. } => {
                let report = check(router, at).await?;
                output.print(&report, check_text)?;
                if report.is_clean() {
                    return Ok(());
                }
                let (wrong, violations) = (report.wrong_values, report.violations);
                Err(Error::damaged(format!("{violations} violations of causality, {wrong} wrong values")))
            }
        }
    }
}

fn value_of(value: Option<&str>, file: Option<&PathBuf>) -> Result<Vec<u8>> {
    let Some(path) = file else { return Ok(value.unwrap_or_default().as_bytes().to_vec()) };
    let at = path.display();
    let unreadable = || format!("{at}: cannot be read");
    let len = std::fs::metadata(path).or_kind(ErrorKind::Request, unreadable())?.len();
    if len > MAX_VALUE as u64 {
        return Err(Error::request(format!("{at}: {len} bytes, a value has at most {MAX_VALUE}")));
    }
    std::fs::read(path).or_kind(ErrorKind::Request, unreadable())
}

async fn write(router: &Router, key: &str, value: Option<Vec<u8>>, output: Format) -> Result<()> {
    let key = key.as_bytes().to_vec();
    let at = router.commit(router.node_of(&key), vec![Write { key, value }]).await?;
    output.print(&serde_json::json!({ "at": at }), |_| time::exact(at))
}

/// A record as JSON: keys and values that are no text stand as hex after `0x`.
fn record_json(record: &Record) -> serde_json::Value {
    serde_json::json!({
        "timestamp": record.timestamp, "key": shown(&record.key), "value": shown(&record.value),
    })
}

async fn get(router: &Router, key: &str, at: Option<Timestamp>, output: Format) -> Result<()> {
    let record = router.get(key.as_bytes().to_vec(), at).await?;
    let past = || at.map_or_else(String::new, |at| format!(" at {}", time::exact(at)));
    let record = record.ok_or_else(|| Error::not_found(format!("no key `{key}`{}", past())))?;
    if output == Format::Json {
        return output.print(&record_json(&record), |_| String::new());
    }
    // The bytes as they are: a value may be anything.
    let mut out = std::io::stdout().lock();
    out.write_all(&record.value).and_then(|()| out.write_all(b"\n")).or_kind(ErrorKind::Full, "output")
}

async fn scan(router: &Router, prefix: &str, at: Option<Timestamp>, limit: u64, output: Format) -> Result<()> {
    let mut left = limit;
    let page = u32::try_from(limit.min(u64::from(MAX_PAGE))).unwrap_or(MAX_PAGE).max(1);
    let mut records = Vec::new();
    let at = router
        .scan(prefix.as_bytes(), at, page, |record| {
            if left == 0 {
                return Ok(false);
            }
            left -= 1;
            match output {
                Format::Text => {
                    say(&format!("{}\t{}\t{}", record.timestamp, shown(&record.key), shown(&record.value)))?;
                }
                Format::Json => records.push(record_json(&record)),
            }
            Ok(true)
        })
        .await?;
    match output {
        Format::Text => eprintln!("as of {}", time::exact(at)),
        Format::Json => output.print(&serde_json::json!({ "at": at, "records": records }), |_| String::new())?,
    }
    Ok(())
}

/// Text as it is, without what could move a terminal's cursor; other bytes as hex.
fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("0x{}", HEXLOWER.encode(bytes)),
    }
}

fn load_text(r: &LoadReport) -> String {
    format!(
        "{} writes in {:.1} s: {}/s\nack p50 {}, p99 {}, max {}; longest stall {}\n{} chain steps, {} retries\n",
        count(r.writes),
        r.seconds,
        count(r.writes_per_second as u64),
        micros(r.ack_p50_micros),
        micros(r.ack_p99_micros),
        micros(r.ack_max_micros),
        micros(r.longest_stall_micros),
        count(r.chain_steps),
        count(r.retries)
    )
}

fn check_text(r: &CheckReport) -> String {
    let mut out = format!(
        "as of {}: {} records, {} chain steps\n{} wrong values, {} violations of causality\n",
        time::exact(r.at),
        count(r.records),
        count(r.chain_steps),
        r.wrong_values,
        r.violations
    );
    r.faults.iter().for_each(|fault| out.push_str(&format!("  {fault}\n")));
    out
}
