//! How whoever starts a daemon learns the ports that it took: with `--announce` it prints one line of JSON to standard
//! output once its ports are open, and nothing else there, ever. An end without a line means that it did not start.

use std::io::Write;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tidemark_proto::{ErrorKind, Result, error::ResultExt};

/// The line of a coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorPorts {
    /// UDP address for agents.
    pub agents: SocketAddr,
    /// TCP address of the HTTP API.
    pub api: SocketAddr,
    /// TCP address of `/metrics`, `/healthz` and `/readyz`, if they are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<SocketAddr>,
}

/// The line of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentPorts {
    /// Where clients of the store reach it.
    pub data: String,
    /// TCP address of `/metrics`, `/healthz` and `/readyz`, if they are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<SocketAddr>,
}

/// Prints the line.
pub fn announce(ports: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(ports).or_kind(ErrorKind::Bug, "announcement")?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .or_kind(ErrorKind::Config, "--announce: standard output cannot be written")
}
