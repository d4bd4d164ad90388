//! Clients that write all the time, with causal chains.

use std::time::Duration;

use tidemark_proto::Result;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::kv::{LoadOptions, LoadReport, Router, load};

/// Clients that write records.
const CLIENTS: u32 = 4;
/// Causal chains.
const CHAINS: u32 = 3;
/// Writes in a second while backups are taken.
const RATE: u64 = 2000;
/// Writes of one commit.
const BATCH: usize = 8;
/// Writes of one commit of the base records.
const BASE_BATCH: usize = 128;
/// Longer than any demo takes.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// Writes the base records.
pub(super) async fn load_base(router: &Router, records: u64) -> Result<LoadReport> {
    let options = LoadOptions { records, clients: CLIENTS, batch: BASE_BATCH, ..LoadOptions::default() };
    load(router, &options, CancellationToken::new()).await
}

/// Running writers; they end when dropped.
#[derive(Debug)]
pub(super) struct Writers {
    stop: CancellationToken,
    tasks: JoinSet<Result<LoadReport>>,
}

impl Writers {
    /// Starts updates of `records` base records, and chains.
    pub(super) fn start(router: &Router, records: u64) -> Self {
        let options = LoadOptions {
            records,
            clients: CLIENTS,
            chains: CHAINS,
            rate: RATE,
            batch: BATCH,
            updates_only: true,
            duration: Some(FOREVER),
            ..LoadOptions::default()
        };
        let (stop, router) = (CancellationToken::new(), router.another_client());
        let mut tasks = JoinSet::new();
        let token = stop.clone();
        let _ = tasks.spawn(async move { load(&router, &options, token).await });
        Self { stop, tasks }
    }

    /// Ends them; answers the number of acknowledged writes, chain steps included.
    pub(super) async fn stop(mut self) -> u64 {
        self.stop.cancel();
        match self.tasks.join_next().await {
            Some(Ok(Ok(report))) => report.writes + report.chain_steps,
            // Writers of a killed fleet may end with an error; what they had counted is gone with them.
            _ => 0,
        }
    }
}
