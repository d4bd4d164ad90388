//! The agent's configuration: a TOML file, every key documented in `deploy/config/agent.example.toml`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidemark_common::config::auto_or_count;
use tidemark_common::pki::PkiPaths;
use tidemark_common::rate::Rate;
use tidemark_common::telemetry::TelemetryConfig;
use tidemark_proto::stored::run::PART_TARGET;
use tidemark_proto::{ClusterName, Error, NodeName, Result, SlotSet};

use crate::data::{BUDGET, LEAST_BUDGET};

mod redis;

pub use redis::{RedisConfig, ServerTls};

/// The whole file. Nothing in it is secret: keys are named by their files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Cluster of the node; must be that of the certificate.
    pub cluster: ClusterName,
    /// Name of the node; must be that of the certificate.
    pub node: NodeName,
    /// Addresses of the coordinator (`host:port`), the first that answers is used.
    pub coordinators: Vec<String>,
    /// Folder for the agent's own state: epochs seen, key indexes, spill files.
    pub state_dir: PathBuf,
    /// Certificates.
    pub tls: PkiPaths,
    /// The store.
    pub engine: EngineConfig,
    /// How deltas are found.
    #[serde(default)]
    pub delta: DeltaMethod,
    /// Parts sent or loaded at once; `auto` (0): as many as the machine has cores, at most 8.
    #[serde(default, with = "auto_or_count")]
    pub concurrency: u32,
    /// A full run is closed at about this many bytes of records.
    #[serde(default = "default_part_bytes")]
    pub part_bytes: u64,
    /// Bounds of memory.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// The node's own limits.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Metrics and health.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Logging.
    #[serde(default)]
    pub log: tidemark_common::log::LogConfig,
}

/// The `[limits]` section: what the owner of the node sets, whatever the coordinator's limits are.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Bytes that the node sends for backups and fetches for restores in a second, e.g. `50MB`; `none` for no limit.
    pub bytes_per_second: Rate,
}

/// The `[memory]` section. Beside it a part that is sent or loaded takes a few MiB, so `concurrency` bounds the rest, and
/// the embedded store has a budget of its own (`engine.cache_mib`).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// Memory for requests and answers of the store's clients that are in flight, in MiB.
    pub requests_mib: u64,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { requests_mib: BUDGET as u64 >> 20 }
    }
}

impl MemoryConfig {
    /// In bytes.
    pub fn requests_bytes(&self) -> usize {
        usize::try_from(self.requests_mib << 20).unwrap_or(usize::MAX)
    }
}

/// The kind of store.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum EngineConfig {
    /// The embedded store.
    Embedded {
        /// Folder of the data.
        data_dir: PathBuf,
        /// Slots of this node, e.g. `0-5460`.
        slots: SlotSet,
        /// Address at which clients of the store are served (`host:port`; port 0 takes a free one).
        listen: String,
        /// Address told to clients, if it is another than `listen`.
        #[serde(default)]
        advertise: String,
        /// Old versions are kept this long, in seconds, beside what pins keep.
        #[serde(default = "default_retention")]
        retention_seconds: u64,
        /// Memory for cached blocks, in MiB.
        #[serde(default = "default_cache")]
        cache_mib: u64,
    },
    /// The reference store in memory: for trying and for tests; lost with the process.
    Memory {
        /// Slots of this node.
        slots: SlotSet,
        /// Address at which clients of the store are served.
        listen: String,
        /// Address told to clients, if it is another than `listen`.
        #[serde(default)]
        advertise: String,
    },
    /// A server of Redis or Valkey.
    Redis(RedisConfig),
    /// RDB files, which can only be backed up: `tidemark import` starts an agent of them.
    Rdb {
        /// The files: of one server, or one of each shard of a Cluster.
        files: Vec<PathBuf>,
        /// Times to live count from the import on instead of from when the file was written.
        #[serde(default)]
        shift_expiry: bool,
    },
}

impl EngineConfig {
    /// Address at which the agent serves clients of the store, and the one that they are told; `None` where the store
    /// is a server of its own.
    pub fn served(&self) -> Option<(&str, &str)> {
        match self {
            Self::Embedded { listen, advertise, .. } | Self::Memory { listen, advertise, .. } => {
                Some((listen, advertise))
            }
            Self::Redis(_) | Self::Rdb { .. } => None,
        }
    }
}

/// How deltas are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeltaMethod {
    /// From the engine's changes where it keeps them, else by a key index.
    #[default]
    Auto,
    /// By a key index, also where the engine keeps changes.
    KeyIndex,
    /// Never: every backup is full.
    Full,
}

fn default_part_bytes() -> u64 {
    PART_TARGET
}

fn default_retention() -> u64 {
    600
}

fn default_cache() -> u64 {
    32
}

/// Most parts at once that "auto" chooses.
const MAX_AUTO_CONCURRENCY: usize = 8;
/// Largest budget that may be configured, in MiB.
const MAX_BUDGET_MIB: u64 = 1 << 20;
/// Smallest size of a part that may be configured, in bytes.
const MIN_PART_BYTES: u64 = 64 << 10;

impl AgentConfig {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self> {
        let config: Self = tidemark_common::config::load(path)?;
        config.check().map_err(|e| e.context(path.display()))?;
        Ok(config)
    }

    /// Checks what the types cannot say.
    pub fn check(&self) -> Result<()> {
        if self.coordinators.is_empty() {
            return Err(Error::config("coordinators: name at least one address, e.g. [\"coordinator:7400\"]"));
        }
        self.telemetry.check()?;
        if let EngineConfig::Redis(redis) = &self.engine {
            redis.check()?;
        }
        let least = LEAST_BUDGET as u64 >> 20;
        if !(least..=MAX_BUDGET_MIB).contains(&self.memory.requests_mib) {
            return Err(Error::config(format!("memory.requests_mib: {least} to {MAX_BUDGET_MIB} MiB")));
        }
        if self.part_bytes < MIN_PART_BYTES {
            return Err(Error::config(format!("part_bytes: at least {MIN_PART_BYTES}")));
        }
        Ok(())
    }

    /// Parts at once.
    pub fn concurrency(&self) -> usize {
        if self.concurrency > 0 {
            return self.concurrency as usize;
        }
        std::thread::available_parallelism().map_or(1, usize::from).min(MAX_AUTO_CONCURRENCY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_good_and_unknown_keys_are_named() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/agent.example.toml");
        let _ = AgentConfig::load(&path).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let wrong = dir.path().join("wrong.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&wrong, text.replace("[log]", "[log]\ncolour = true")).unwrap();
        let err = AgentConfig::load(&wrong).unwrap_err();
        assert!(
            err.report().contains("colour") && err.kind() == tidemark_proto::ErrorKind::Config,
            "{}",
            err.report()
        );
    }
}
