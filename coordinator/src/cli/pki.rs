//! `tidemark pki`: the fleet's certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};
use tidemark_common::clock::SystemClock;
use tidemark_common::identity::Identity;
use tidemark_proto::{ClusterName, ErrorKind, NodeName, Result, error::ResultExt};

use super::output::{Format, fields, listing};
use crate::pki::{Authority, CA_DAYS, CertificateInfo, Issued, LEAF_DAYS, Leaf, inspect};

/// Make the fleet's authority, issue certificates and show them.
#[derive(Debug, Args)]
pub(crate) struct PkiCommand {
    /// Folder of the authority
    #[arg(long, env = "TIDEMARK_PKI_DIR", default_value = "pki", global = true)]
    dir: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the authority of a fleet
    Init {
        /// Name of the fleet, shown in its certificates
        #[arg(long, default_value = "tidemark")]
        fleet: String,
        /// Days that the authority is good for
        #[arg(long, default_value_t = CA_DAYS)]
        days: u32,
        /// Replace an authority that is there: all that it issued is void
        #[arg(long)]
        force: bool,
    },
    /// Issue a certificate
    #[command(subcommand)]
    Issue(Issue),
    /// Show certificates
    Show {
        /// Certificate files; all of the folder if none is named
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Folder to write to; the authority's own if none is named
    #[arg(long)]
    out: Option<PathBuf>,
    /// Days that the certificate is good for
    #[arg(long, default_value_t = LEAF_DAYS)]
    days: u32,
    /// Replace a certificate that is there
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Subcommand)]
enum Issue {
    /// For the agent of one node
    Agent {
        /// Cluster of the node
        #[arg(long)]
        cluster: ClusterName,
        /// The node
        #[arg(long)]
        node: NodeName,
        #[command(flatten)]
        common: Common,
    },
    /// For a coordinator
    Coordinator {
        /// Name of the coordinator
        #[arg(long, default_value = "coordinator")]
        name: String,
        /// Host names and addresses of its HTTPS API [default: localhost, 127.0.0.1, ::1 and this host's name]
        #[arg(long = "host")]
        hosts: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// For a person or script that works the fleet
    Operator {
        /// Name that the audit log shows
        #[arg(long, default_value = "operator")]
        name: String,
        #[command(flatten)]
        common: Common,
    },
}

impl PkiCommand {
    /// Does it and prints the result.
    pub(crate) fn run(&self, output: Format) -> Result<()> {
        let now = SystemClock.time();
        match &self.verb {
            Verb::Init { fleet, days, force } => {
                output.print(&Authority::create(&self.dir, fleet, *days, *force, now)?, report)
            }
            Verb::Issue(issue) => self.issue(issue, output, now),
            Verb::Show { files } => self.show(files, output, now),
        }
    }

    fn issue(&self, issue: &Issue, output: Format, now: SystemTime) -> Result<()> {
        let (identity, hosts, common) = match issue {
            Issue::Agent { cluster, node, common } => {
                (Identity::agent(cluster.clone(), node.clone()), Vec::new(), common)
            }
            Issue::Coordinator { name, hosts, common } => {
                let hosts = if hosts.is_empty() { default_hosts() } else { hosts.clone() };
                (Identity::coordinator(name)?, hosts, common)
            }
            Issue::Operator { name, common } => (Identity::operator(name)?, Vec::new(), common),
        };
        let leaf = Leaf { identity, hosts, days: common.days };
        let out = common.out.as_deref().unwrap_or(&self.dir);
        output.print(&Authority::open(&self.dir)?.issue(&leaf, out, common.force, now)?, report)
    }

    fn show(&self, files: &[PathBuf], output: Format, now: SystemTime) -> Result<()> {
        let found;
        let files = if files.is_empty() {
            found = certificates_of(&self.dir)?;
            &found
        } else {
            files
        };
        let mut infos = Vec::new();
        for file in files {
            infos.extend(inspect(file, now)?);
        }
        output.print(&infos, |infos| text(infos))
    }
}

fn report(issued: &Issued) -> String {
    fields(&[
        ("certificate", issued.cert.display().to_string()),
        ("key", issued.key.display().to_string()),
        ("authority", issued.ca.display().to_string()),
    ])
}

fn default_hosts() -> Vec<String> {
    let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).into();
    let own = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok());
    // A host name that no certificate can carry is left out; `--host` names others.
    let usable = |h: &String| h.is_ascii() && !h.is_empty() && !hosts.contains(h);
    let own = own.filter(usable);
    hosts.extend(own);
    hosts
}

fn certificates_of(dir: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("{}: cannot be read: `tidemark pki init` makes an authority", dir.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).or_kind(ErrorKind::NotFound, unreadable())? {
        let path = entry.or_kind(ErrorKind::Config, unreadable())?.path();
        if path.extension().is_some_and(|e| e == "crt") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn text(infos: &[CertificateInfo]) -> String {
    let rows = infos.iter().map(|i| {
        [
            i.role.clone(),
            i.identity.clone(),
            i.not_before.clone(),
            i.not_after.clone(),
            i.days_left.to_string(),
            i.fingerprint.clone(),
            i.file.clone(),
        ]
    });
    let heading = ["ROLE", "IDENTITY", "NOT BEFORE", "NOT AFTER", "DAYS LEFT", "SHA-256", "FILE"];
    listing(heading, rows, "no certificate: `tidemark pki init` makes an authority")
}
