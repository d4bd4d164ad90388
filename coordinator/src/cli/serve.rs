//! `tidemark serve`: a coordinator.

use std::path::PathBuf;

use clap::Args;
use tidemark_proto::Result;

use crate::config::CoordinatorConfig;
use crate::daemon;

/// Run a coordinator.
#[derive(Debug, Args)]
pub(crate) struct ServeCommand {
    /// Configuration file
    #[arg(short, long, env = "TIDEMARK_CONFIG", default_value = "/etc/tidemark/coordinator.toml")]
    config: PathBuf,
}

impl ServeCommand {
    /// Runs until SIGTERM or SIGINT.
    pub(crate) fn run(self) -> Result<()> {
        let config = CoordinatorConfig::load(&self.config)?;
        tidemark_common::log::init(&config.log)?;
        super::block_on(async { daemon::start(config).await?.until_signal().await })
    }
}
