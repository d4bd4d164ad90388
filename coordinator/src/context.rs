//! What the parts of a running coordinator share.

use std::sync::{Arc, OnceLock};

use tidemark_common::clock::Hlc;
use tidemark_common::log::LogRing;
use tidemark_common::telemetry::Metrics;
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::CommandHead;
use tidemark_proto::{ClusterName, Error, ErrorKind, Result};

use tokio_util::sync::CancellationToken;

use crate::config::CoordinatorConfig;
use crate::fleet::Fleet;
use crate::history::History;
use crate::ingest::Ingest;
use crate::job::Jobs;
use crate::limits::Limits;
use crate::log::Logs;
use crate::repository::{Ledger, Repository};
use crate::serve::Serve;

/// A running coordinator.
#[derive(Debug)]
pub struct Context {
    /// Its configuration.
    pub config: CoordinatorConfig,
    /// The repository.
    pub repository: Repository,
    /// Its epoch.
    pub epoch: u64,
    /// Its clock.
    pub clock: Hlc,
    /// Connected agents.
    pub fleet: Fleet,
    /// Receives parts.
    pub ingest: Ingest,
    /// The logs of clusters.
    pub logs: Logs,
    /// What anybody was told of the ledgers.
    pub history: History,
    /// Gives parts out.
    pub serve: Serve,
    /// Limits of rates.
    pub limits: Arc<Limits>,
    /// Jobs.
    pub jobs: Jobs,
    /// Held while a clone is made or dropped: one at a time.
    pub clones: tokio::sync::Mutex<()>,
    /// Address at which agents reach ingest and serve.
    pub bulk_address: String,
    /// Metrics of this process.
    pub metrics: Metrics,
    /// Its last log lines.
    pub log: LogRing,
    /// When it started, milliseconds since 1970.
    pub started_millis: u64,
    /// Ends what runs as long as the coordinator does.
    pub shutdown: CancellationToken,
    /// Why it may write no more, once another coordinator has taken over.
    pub fenced: OnceLock<String>,
}

/// A shared context.
pub type Shared = Arc<Context>;

impl Context {
    /// Milliseconds since 1970.
    pub fn now_millis(&self) -> u64 {
        self.clock.wall_millis()
    }

    /// The head of a command.
    pub fn head(&self, job: JobId, attempt: u32) -> CommandHead {
        CommandHead { epoch: self.epoch, job, attempt }
    }

    /// Takes note of an error: after `Fenced` this coordinator begins nothing any more.
    pub fn note(&self, error: &Error) {
        if error.kind() == ErrorKind::Fenced && self.fenced.set(error.report()).is_ok() {
            tracing::error!(error = %error.report(), "another coordinator has taken over: this one writes no more");
        }
    }

    /// `Fenced` once another coordinator has taken over.
    pub fn check_fenced(&self) -> Result<()> {
        self.fenced.get().map_or(Ok(()), |why| Err(Error::fenced(why.clone())))
    }

    /// The ledger of a cluster for writing: fenced under this coordinator's epoch, so that its tail is final.
    pub async fn ledger(&self, cluster: &ClusterName) -> Result<Ledger> {
        self.check_fenced()?;
        // The ledger decides, by its fence. This look also stops a coordinator whose clusters the new one has not met.
        let highest = self.repository.highest_epoch().await?;
        if highest > self.epoch {
            let fenced = Error::fenced(format!("epoch {} is over: epoch {highest} has been taken", self.epoch));
            self.note(&fenced);
            return Err(fenced);
        }
        let ledger = self.fence(cluster).await;
        ledger.inspect_err(|e| self.note(e))
    }

    async fn fence(&self, cluster: &ClusterName) -> Result<Ledger> {
        let mut ledger = Ledger::load(&self.repository, cluster).await?;
        ledger.take_over(self.epoch, self.now_millis(), &self.config.name).await?;
        Ok(ledger)
    }
}
