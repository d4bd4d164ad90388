//! `tidemark check-config`: what a coordinator would stumble over, without running one.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tidemark_common::clock::SystemClock;
use tidemark_common::pki::Credentials;
use tidemark_proto::{Error, Result};

use super::output::{Format, fields};
use crate::config::CoordinatorConfig;
use crate::pki::inspect;
use crate::repository::{Repository, Store};

/// A certificate that ends within this many days is warned of.
const WARN_DAYS: i64 = 30;

/// `tidemark check-config`.
#[derive(Debug, Args)]
pub(crate) struct CheckConfigCommand {
    /// Configuration file of a coordinator (for an agent's: `tidemark-agent check-config`)
    #[arg(env = "TIDEMARK_CONFIG", default_value = "/etc/tidemark/coordinator.toml")]
    file: PathBuf,
    /// Do not reach for the repository
    #[arg(long)]
    offline: bool,
}

/// What was found good.
#[derive(Debug, Serialize)]
struct Checked {
    file: String,
    identity: String,
    certificate_days_left: i64,
    agents_at: String,
    api_at: String,
    repository: String,
    repository_id: String,
    encrypted: bool,
    warnings: Vec<String>,
}

impl CheckConfigCommand {
    /// Checks it; the first thing that is wrong is the error.
    pub(crate) async fn run(self, output: Format) -> Result<()> {
        let config = CoordinatorConfig::load(&self.file)?;
        let (agents_at, api_at) = crate::daemon::addresses(&config).await?;
        let credentials = Credentials::load(config.tls.clone())?;
        crate::daemon::check_identity(&credentials)?;
        let days_left = inspect(&config.tls.cert, SystemClock.time())?.first().map_or(0, |c| c.days_left);
        let mut warnings = Vec::new();
        if days_left < 0 {
            return Err(Error::config(format!(
                "tls.cert: {} has ended: issue a new one with `tidemark pki issue coordinator --force`",
                config.tls.cert.display()
            )));
        }
        if days_left < WARN_DAYS {
            warnings.push(format!("the certificate ends in {days_left} days: issue a new one soon"));
        }
        let (mut repository_id, mut encrypted) = (String::new(), config.repository.master_key()?.is_some());
        let store = Store::open(&config.repository.store())?;
        if !self.offline && !store.is_of_this_process() {
            let repository = Repository::open(store, config.repository.master_key()?.as_ref())
                .await
                .map_err(|e| e.context("repository"))?;
            (repository_id, encrypted) = (repository.id().to_string(), repository.keys().encrypts());
            if !encrypted {
                warnings.push("the repository is not encrypted: whoever reads the store reads the data".into());
            }
        }
        let checked = Checked {
            file: self.file.display().to_string(),
            identity: credentials.identity().to_string(),
            certificate_days_left: days_left,
            agents_at: agents_at.to_string(),
            api_at: api_at.to_string(),
            repository: config.repository.url.clone(),
            repository_id,
            encrypted,
            warnings,
        };
        output.print(&checked, text)
    }
}

fn text(c: &Checked) -> String {
    let sealed = if c.encrypted { "encrypted" } else { "not encrypted" };
    let repository = match c.repository_id.as_str() {
        "" => format!("{}, not asked", c.repository),
        id => format!("{}, answers, id {id}, {sealed}", c.repository),
    };
    let mut out = fields(&[
        ("file", c.file.clone()),
        ("certificate", format!("{}, {} days left", c.identity, c.certificate_days_left)),
        ("agents at", c.agents_at.clone()),
        ("API at", c.api_at.clone()),
        ("repository", repository),
    ]);
    for warning in &c.warnings {
        out.push_str(&format!("warning: {warning}\n"));
    }
    out.push_str("good\n");
    out
}
