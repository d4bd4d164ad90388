//! `tidemark kv`: the data of stores that Tidemark serves itself.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;
use tidemark_common::pki::Credentials;
use tidemark_common::transport::client_endpoint;
use tidemark_proto::wire::kv::{MAX_PAGE, MAX_VALUE, Write};
use tidemark_proto::{Error, ErrorKind, Result, Timestamp, error::ResultExt};
use tokio_util::sync::CancellationToken;

use super::Format;
use crate::kv::{CheckReport, LoadOptions, LoadReport, NodeRoute, Router, check, load};

/// Read and write keys of a store that Tidemark serves, make load on it, check it.
#[derive(Debug, Subcommand)]
pub enum KvCommand {
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
        /// As of this timestamp
        #[arg(long)]
        at: Option<Timestamp>,
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
        /// As of this timestamp
        #[arg(long)]
        at: Option<Timestamp>,
        /// Most records listed
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// Write records and causal chains
    Load(LoadArgs),
    /// Check what loads wrote: values, and that no effect is there without its cause
    Check {
        /// As of this timestamp
        #[arg(long)]
        at: Option<Timestamp>,
        /// Form of the output
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
}

/// Options of `kv load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
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
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
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

impl KvCommand {
    /// Does it on the nodes of `routes` and prints the result. `stop` ends a load early, with its report.
    pub async fn run(
        &self,
        credentials: &Credentials,
        routes: Vec<NodeRoute>,
        stop: CancellationToken,
    ) -> Result<()> {
        let endpoint = client_endpoint()?;
        let router = Router::new(&endpoint, credentials, env!("CARGO_PKG_VERSION"), routes)?;
        let done = self.run_on(&router, stop).await;
        drop(router);
        // Without a word the nodes would keep the connections until they time out.
        endpoint.close(quinn::VarInt::from_u32(0), b"");
        endpoint.wait_idle().await;
        done
    }

    async fn run_on(&self, router: &Router, stop: CancellationToken) -> Result<()> {
        match self {
            Self::Put { key, value, file } => put(router, key, value.as_deref(), file.as_ref()).await,
            Self::Get { key, at } => get(router, key, *at).await,
            Self::Delete { key } => write(router, key, None).await,
            Self::Scan { prefix, at, limit } => scan(router, prefix, *at, *limit).await,
            Self::Load(args) => {
                let report = load(router, &args.options()?, stop).await?;
                print_load(&report, args.output)
            }
            Self::Check { at, output } => {
                let report = check(router, *at).await?;
                print_check(&report, *output)
            }
        }
    }
}

async fn put(router: &Router, key: &str, value: Option<&str>, file: Option<&PathBuf>) -> Result<()> {
    let value = match file {
        Some(path) => {
            let at = path.display();
            let len = std::fs::metadata(path).or_kind(ErrorKind::Request, format!("{at}: cannot be read"))?.len();
            if len > MAX_VALUE as u64 {
                return Err(Error::request(format!("{at}: {len} bytes, a value has at most {MAX_VALUE}")));
            }
            std::fs::read(path).or_kind(ErrorKind::Request, format!("{at}: cannot be read"))?
        }
        None => value.unwrap_or_default().as_bytes().to_vec(),
    };
    write(router, key, Some(value)).await
}

async fn write(router: &Router, key: &str, value: Option<Vec<u8>>) -> Result<()> {
    let key = key.as_bytes().to_vec();
    let at = router.commit(router.node_of(&key), vec![Write { key, value }]).await?;
    println!("{at}");
    Ok(())
}

async fn get(router: &Router, key: &str, at: Option<Timestamp>) -> Result<()> {
    let record = router.get(key.as_bytes().to_vec(), at).await?;
    let record = record.ok_or_else(|| Error::not_found(format!("no key `{key}`")))?;
    let mut out = std::io::stdout().lock();
    out.write_all(&record.value).and_then(|()| out.write_all(b"\n")).or_kind(ErrorKind::Request, "output")
}

async fn scan(router: &Router, prefix: &str, at: Option<Timestamp>, limit: u64) -> Result<()> {
    let mut left = limit;
    let page = u32::try_from(limit.min(u64::from(MAX_PAGE))).unwrap_or(MAX_PAGE);
    let at = router
        .scan(prefix.as_bytes(), at, page, |record| {
            if left == 0 {
                return Ok(false);
            }
            left -= 1;
            println!("{}\t{}\t{}", record.timestamp, shown(&record.key), shown(&record.value));
            Ok(true)
        })
        .await?;
    eprintln!("as of {at}");
    Ok(())
}

/// Text as it is, without what could move a terminal's cursor; other bytes as hex.
fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("0x{}", HEXLOWER.encode(bytes)),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value).or_kind(ErrorKind::Bug, "JSON")?);
    Ok(())
}

fn print_load(r: &LoadReport, output: Format) -> Result<()> {
    if output == Format::Json {
        return print_json(r);
    }
    let millis = |micros: u64| micros as f64 / 1e3;
    println!("{} writes in {:.1} s: {:.0}/s", r.writes, r.seconds, r.writes_per_second);
    println!(
        "ack p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms; longest stall {:.2} ms",
        millis(r.ack_p50_micros),
        millis(r.ack_p99_micros),
        millis(r.ack_max_micros),
        millis(r.longest_stall_micros)
    );
    println!("{} chain steps, {} retries", r.chain_steps, r.retries);
    Ok(())
}

fn print_check(r: &CheckReport, output: Format) -> Result<()> {
    if output == Format::Json {
        print_json(r)?;
    } else {
        println!("as of {}: {} records, {} chain steps", r.at, r.records, r.chain_steps);
        println!("{} wrong values, {} violations of causality", r.wrong_values, r.violations);
        for fault in &r.faults {
            println!("  {fault}");
        }
    }
    if r.is_clean() {
        return Ok(());
    }
    Err(Error::damaged(format!("{} violations of causality, {} wrong values", r.violations, r.wrong_values)))
}
