//! `tidemark import`: RDB files come into the repository as a backup of a cluster of their own.
//!
//! An agent is started beside this command that takes the files for its store; the coordinator backs it up as any other node.
//! What comes of it is a backup like any other: it is verified, searched, exported and restored the same way.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tidemark_common::announce::AgentPorts;
use tidemark_common::clock::SystemClock;
use tidemark_common::identity::Identity;
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result, error::ResultExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::connect::GlobalArgs;
use super::follow;
use crate::api::CreateBackup;
use crate::client::ApiClient;
use crate::pki::{Authority, Leaf};
use crate::process::{Process, agent_binary};

/// Name of the node that the files are.
const NODE: &str = "import";
/// Days that its certificate is good for.
const DAYS: u32 = 2;
/// Port of the coordinator for agents, where none is given.
const AGENTS_PORT: u16 = 7400;
/// Time for the agent to be connected.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between two looks at who is connected.
const LOOK_EVERY: Duration = Duration::from_millis(50);

const EXAMPLES: &str = "Examples:
  tidemark import --cluster sessions-2023 dump.rdb
  tidemark import --cluster old-orders shard1.rdb shard2.rdb shard3.rdb
  tidemark restore run latest --cluster old-orders --target orders-copy";

/// Options of `tidemark import`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ImportCommand {
    /// The files, as servers of Redis or Valkey write them: one of a server, or one of each shard of a Cluster
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Cluster under whose name they are kept: not one of running servers
    #[arg(short = 'C', long)]
    cluster: ClusterName,
    /// Keys that expire do so after the time that they had left when the file was written; else when they would have
    #[arg(long)]
    shift_expiry: bool,
    /// Folder of the fleet's authority, which issues a certificate for this command
    #[arg(long, value_name = "DIR", env = "TIDEMARK_PKI_DIR", default_value = "pki")]
    authority: PathBuf,
    /// Where the coordinator listens for agents [default: port 7400 of its API's host]
    #[arg(long, value_name = "HOST:PORT")]
    agents_address: Option<String>,
    /// Folder to sort the files in, which takes as much room as they have [default: a new one in the temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl ImportCommand {
    /// Does it and prints the backup.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        let client = global.client()?;
        refuse_live(&client, &self.cluster).await?;
        let mut builder = tempfile::Builder::new();
        // A private key lies in it.
        let builder =
            builder.prefix("tidemark-import-").permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
        let place = match &self.dir {
            Some(dir) => builder.tempdir_in(dir),
            None => builder.tempdir(),
        };
        let place = place.or_kind(ErrorKind::Full, "a folder to work in")?;
        let config = self.write_config(place.path(), &client)?;
        let log = place.path().join("agent.log");
        let binary = agent_binary()?;
        // Dies with this value, whatever happens.
        let (mut agent, _): (Process, AgentPorts) =
            Process::start("the agent of the files", &binary, &[], &config, log).await?;
        let done = self.back_up(&client, &mut agent, global).await;
        agent.stop().await;
        done
    }

    async fn back_up(&self, client: &ApiClient, agent: &mut Process, global: &GlobalArgs) -> Result<()> {
        connected(client, &self.cluster, agent).await?;
        let info = client.create_backup(&self.cluster, &CreateBackup { full: true, automatic: false }).await?;
        let id = info.id;
        let mut term = signal(SignalKind::terminate()).or_kind(ErrorKind::Bug, "signal handler")?;
        let followed = tokio::select! {
            followed = follow::follow(client, info, global.output) => followed,
            _ = term.recv() => Err(Error::cancelled("the import was ended")),
        };
        match followed {
            Ok(info) => follow::outcome(&info, global.output),
            Err(e) => {
                // Without the agent the job cannot go on: it is ended rather than left to wait for it.
                let _ = client.cancel_job(&id).await;
                Err(e)
            }
        }
    }

    fn write_config(&self, place: &Path, client: &ApiClient) -> Result<PathBuf> {
        let whole = |path: &PathBuf| {
            let path =
                std::fs::canonicalize(path).or_kind(ErrorKind::Request, format_args!("{}", path.display()))?;
            quoted(&path)
        };
        let files: Vec<String> = self.files.iter().map(whole).collect::<Result<_>>()?;
        let authority = Authority::open(&self.authority)?;
        let identity = Identity::agent(self.cluster.clone(), NodeName::new(NODE)?);
        let leaf = Leaf { identity, hosts: Vec::new(), days: DAYS };
        let issued = authority.issue(&leaf, place, false, SystemClock.time())?;
        let text = format!(
            "cluster = {}\nnode = {}\ncoordinators = [{}]\nstate_dir = {}\n\n[tls]\nca = {}\ncert = {}\nkey = {}\n\n\
             [engine]\nkind = \"rdb\"\nfiles = [{}]\nshift_expiry = {}\n",
            text_of(self.cluster.as_str()),
            text_of(NODE),
            text_of(&self.agents_address(client)?),
            quoted(&place.join("state"))?,
            quoted(&issued.ca)?,
            quoted(&issued.cert)?,
            quoted(&issued.key)?,
            files.join(", "),
            self.shift_expiry,
        );
        let path = place.join("agent.toml");
        std::fs::write(&path, text).or_kind(ErrorKind::Full, format_args!("{}", path.display()))?;
        Ok(path)
    }

    fn agents_address(&self, client: &ApiClient) -> Result<String> {
        if let Some(address) = &self.agents_address {
            return Ok(address.clone());
        }
        let url: url::Url = client.url().parse().or_kind(ErrorKind::Config, "the coordinator's URL")?;
        let host = url.host_str().ok_or_else(|| Error::config("the coordinator's URL names no host"))?;
        Ok(format!("{host}:{AGENTS_PORT}"))
    }
}

/// Files are kept under a name of their own: between backups of servers they would be taken for the servers' past.
async fn refuse_live(client: &ApiClient, cluster: &ClusterName) -> Result<()> {
    let detail = match client.cluster(cluster).await {
        Ok(detail) => detail,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    match detail.nodes.iter().find(|n| n.connected || n.node != NODE) {
        None => Ok(()),
        Some(node) if node.node == NODE => Err(Error::conflict(format!(
            "files are being imported as cluster {cluster} just now: wait for that to end"
        ))),
        Some(node) => Err(Error::conflict(format!(
            "cluster {cluster} is one of servers (node {}): import the files under another name",
            node.node
        ))),
    }
}

async fn connected(client: &ApiClient, cluster: &ClusterName, agent: &mut Process) -> Result<()> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        agent.check()?;
        match client.cluster(cluster).await {
            Ok(detail) if detail.nodes.iter().any(|n| n.connected && n.node == NODE) => return Ok(()),
            Ok(_) => {}
            // Nobody of it is connected yet.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        if Instant::now() >= deadline {
            return Err(Error::retry(format!(
                "the agent of the files did not come to the coordinator within {} s: is --agents-address right? Its log \
                 ends:\n{}",
                CONNECT_TIMEOUT.as_secs(),
                agent.log_tail()
            )));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// A TOML string; the escapes of JSON are those of TOML.
fn text_of(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str();
    let text = text.ok_or_else(|| Error::request(format!("{}: is no text: rename it", path.display())))?;
    Ok(text_of(text))
}
