//! `tidemark serve`: a coordinator.

use std::path::PathBuf;

use clap::Args;
use tidemark_common::announce::{CoordinatorPorts, announce};
use tidemark_common::telemetry::Metrics;
use tidemark_proto::Result;

use crate::config::CoordinatorConfig;
use crate::daemon;

/// Run a coordinator.
#[derive(Debug, Args)]
pub(crate) struct ServeCommand {
    /// Configuration file
    #[arg(short, long, env = "TIDEMARK_CONFIG", default_value = "/etc/tidemark/coordinator.toml")]
    config: PathBuf,
    /// Print one line of JSON with the ports to standard output once they are open
    #[arg(long)]
    announce: bool,
}

impl ServeCommand {
    /// Runs until SIGTERM or SIGINT.
    pub(crate) fn run(self) -> Result<()> {
        let config = CoordinatorConfig::load(&self.config)?;
        let log = tidemark_common::log::init(&config.log)?;
        let metrics = Metrics::install("tidemark", env!("CARGO_PKG_VERSION"), crate::metric_names::ALL)?;
        super::block_on(async {
            let running = daemon::start(config, metrics, log).await?;
            if self.announce {
                let (agents, api) = (running.agent_address, running.api_address);
                announce(&CoordinatorPorts { agents, api, telemetry: running.telemetry_address })?;
            }
            running.until_signal().await
        })
    }
}
