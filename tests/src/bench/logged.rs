//! A server of Redis whose log is kept, as benches need it.

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_coordinator::log::PitrStatus;
use tidemark_proto::{SlotSet, Timestamp};

use crate::fleet::{AgentSpec, EngineKind, Fleet, eventually};
use crate::redis::Server;

/// The present, by this machine's clock.
pub fn now() -> Timestamp {
    Timestamp::new(SystemClock.millis(), 0)
}

/// Starts an agent beside a server, `n0` of a cluster of that name.
pub async fn protect(fleet: &mut Fleet, cluster: &str, server: &Server) {
    let mut spec = AgentSpec::new(cluster, "n0", SlotSet::EMPTY);
    spec.engine = EngineKind::Redis(format!("unix:{}", server.socket().display()), String::new());
    fleet.start_agent(spec);
    let _ = fleet.ready(cluster, 1).await;
}

/// The log of a cluster as it stands.
pub async fn log_status(fleet: &Fleet, cluster: &str) -> PitrStatus {
    fleet.api().get(&format!("clusters/{cluster}/pitr")).await.expect("status")
}

/// Waits for a restore point at or behind `at`, and answers the newest, a raw timestamp.
pub async fn point(fleet: &Fleet, cluster: &str, at: Timestamp) -> u64 {
    eventually("a restore point", async || {
        let status = log_status(fleet, cluster).await;
        status.windows.last().filter(|w| w.ended.is_empty() && w.latest >= at.0).map(|w| w.latest)
    })
    .await
}
