//! The coordinator's configuration: a TOML file, every key documented in `deploy/config/coordinator.example.toml`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use tidemark_common::config::auto_or_count;
use tidemark_common::log::LogConfig;
use tidemark_common::pki::PkiPaths;
use tidemark_common::rate::Rate;
use tidemark_common::telemetry::TelemetryConfig;
use tidemark_proto::slot::RegionMap;
use tidemark_proto::{Error, Result};

use crate::ingest::GRANT_COST;
use crate::repository::{MasterKey, StoreConfig, StoreOptions};

/// The whole file. Serialised it is what may be shown: without what the options of the store hold.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Name of this coordinator, for the ledger and for people.
    pub name: String,
    /// UDP address for agents (`host:port`; port 0 takes a free one).
    pub listen: String,
    /// Address told to agents for their data, if it is another than `listen`.
    #[serde(default)]
    pub advertise: String,
    /// TCP address of the HTTP API.
    pub api_listen: String,
    /// Certificates.
    pub tls: PkiPaths,
    /// The repository.
    pub repository: RepositoryConfig,
    /// Backups.
    #[serde(default)]
    pub backup: BackupConfig,
    /// The log.
    #[serde(default)]
    pub pitr: PitrConfig,
    /// Bounds of memory.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// Limits of rates, where no operator has set others.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Metrics and health.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Seconds for running jobs to end at shutdown before they are cancelled.
    #[serde(default = "default_grace")]
    pub shutdown_grace_seconds: u64,
    /// Events of jobs are collected when they are older than this many days.
    #[serde(default = "default_events_keep_days")]
    pub events_keep_days: u64,
    /// Logging.
    #[serde(default)]
    pub log: LogConfig,
}

/// The `[repository]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// URL; see [`StoreConfig`].
    #[serde(serialize_with = "shown")]
    pub url: String,
    /// Options of the store's client.
    #[serde(default)]
    pub options: StoreOptions,
    /// Time for one request to the store in seconds, its body included; 0 takes the default of 60.
    #[serde(default)]
    pub request_timeout_seconds: u64,
    /// File of the master key. Without one the environment is asked.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
}

/// Written without user, password and query.
fn shown<S: Serializer>(url: &str, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&crate::repository::shown_url(url))
}

impl RepositoryConfig {
    /// The store's part.
    pub fn store(&self) -> StoreConfig {
        StoreConfig {
            url: self.url.clone(),
            request_timeout_seconds: self.request_timeout_seconds,
            options: self.options.clone(),
        }
    }

    /// The master key, if there is one.
    pub fn master_key(&self) -> Result<Option<MasterKey>> {
        MasterKey::load(self.key_file.as_deref())
    }
}

/// The `[backup]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackupConfig {
    /// Writes are held at most this long for a backup, over all attempts, in milliseconds.
    pub pause_budget_ms: u64,
    /// Whether the first attempt at a cut goes without a pause.
    pub first_attempt_without_pause: bool,
    /// Slots of one region for clusters that are protected for the first time.
    pub slots_per_region: u16,
    /// Parts that an agent sends at once; `auto` (0) lets it choose.
    #[serde(with = "auto_or_count")]
    pub agent_concurrency: u32,
    /// A node whose clock is further away than this many seconds is refused.
    pub max_clock_offset_seconds: u64,
    /// Bases that are taken at once on one host, where an engine takes them before the cut.
    pub max_parallel_bases: u32,
    /// Whether bases are taken from replicas that have an agent, so that primaries need not fork.
    pub prefer_replicas: bool,
    /// A job waits this long for a node that lost its connection to come back, in seconds.
    pub node_patience_seconds: u64,
}

impl Default for BackupConfig {
    fn default() -> Self {
        Self {
            pause_budget_ms: 200,
            first_attempt_without_pause: true,
            slots_per_region: RegionMap::DEFAULT_SLOTS_PER_REGION,
            agent_concurrency: 0,
            max_clock_offset_seconds: 60,
            max_parallel_bases: 1,
            prefer_replicas: true,
            node_patience_seconds: 60,
        }
    }
}

impl BackupConfig {
    /// How long a job waits for a node that lost its connection.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.node_patience_seconds)
    }
}

/// The `[pitr]` section: what a cluster's log gets unless `pitr enable` says otherwise.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PitrConfig {
    /// Longest time from one segment to the next while there is news, in milliseconds.
    pub interval_ms: u64,
    /// Bytes at which a segment is closed before that, in MiB.
    pub segment_mib: u64,
    /// Longest time between segments when nothing changes, in milliseconds: the window's end goes on by them.
    pub idle_ms: u64,
    /// Changes that a node keeps while they are not durable, at most, in MiB; beyond, the log breaks and begins anew.
    pub spool_mib: u64,
    /// Restore points of stores that have not any time as one (Redis and Valkey): a light cut this often, in milliseconds.
    pub point_interval_ms: u64,
    /// Writes are held for such a cut at most this long, in milliseconds. It ends as soon as all nodes have been read.
    pub point_budget_ms: u32,
    /// Whether light cuts hold writes.
    pub points: LightCuts,
    /// A restore to a time of Redis and Valkey: up to so many MiB of records and log together the coordinator works the log off,
    /// where a server's program is there; else the agents do, part by part.
    pub work_off_mib: u64,
}

/// Whether the light cuts of a log hold writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LightCuts {
    /// Where no blocking command hangs by it; on other servers there are restore points only while nothing is written.
    Auto,
    /// On every server.
    Always,
    /// There are none: only cuts of backups are restore points.
    Never,
}

impl Default for PitrConfig {
    fn default() -> Self {
        Self {
            interval_ms: 2000,
            segment_mib: 16,
            idle_ms: 30_000,
            spool_mib: 1024,
            point_interval_ms: 5000,
            point_budget_ms: 50,
            points: LightCuts::Auto,
            work_off_mib: 256,
        }
    }
}

impl PitrConfig {
    /// Bytes of changes that a node keeps at most.
    pub fn spool_bytes(&self) -> u64 {
        self.spool_mib << 20
    }

    fn check(&self) -> Result<()> {
        if !(100..=600_000).contains(&self.interval_ms) || self.idle_ms < self.interval_ms {
            return Err(Error::config("pitr.interval_ms: 100 to 600000; pitr.idle_ms: at least as long"));
        }
        if !(1..=64).contains(&self.segment_mib) {
            return Err(Error::config("pitr.segment_mib: 1 to 64"));
        }
        if self.spool_mib == 0 {
            return Err(Error::config("pitr.spool_mib: at least 1, or the log breaks with every change"));
        }
        if !(200..=3_600_000).contains(&self.point_interval_ms) || !(1..=500).contains(&self.point_budget_ms) {
            return Err(Error::config("pitr.point_interval_ms: 200 to 3600000; pitr.point_budget_ms: 1 to 500"));
        }
        Ok(())
    }
}

/// The `[memory]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// Memory for parts that are being received, in MiB.
    pub ingest_mib: u64,
    /// Memory for parts that are being given out, in MiB.
    pub serve_mib: u64,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { ingest_mib: 64, serve_mib: 64 }
    }
}

/// The `[limits]` section: bytes a second of blocks, sent and fetched together, e.g. `50MB`; `none` for no limit.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Of all agents together.
    pub fleet: Rate,
    /// Of each agent.
    pub per_agent: Rate,
}

fn default_events_keep_days() -> u64 {
    90
}

fn default_grace() -> u64 {
    30
}

impl CoordinatorConfig {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self> {
        let config: Self = tidemark_common::config::load(path)?;
        config.check().map_err(|e| e.context(path.display()))?;
        Ok(config)
    }

    /// Checks what the types cannot say.
    pub fn check(&self) -> Result<()> {
        self.telemetry.check()?;
        self.pitr.check()?;
        let _ = RegionMap::new(self.backup.slots_per_region)
            .map_err(|e| Error::config(format!("backup.slots_per_region: {}", e.message())))?;
        for (key, mib) in
            [("memory.ingest_mib", self.memory.ingest_mib), ("memory.serve_mib", self.memory.serve_mib)]
        {
            if mib << 20 < GRANT_COST {
                return Err(Error::config(format!("{key}: at least {} MiB", GRANT_COST.div_ceil(1 << 20))));
            }
        }
        if self.backup.max_parallel_bases == 0 {
            return Err(Error::config("backup.max_parallel_bases: at least 1, or no base would ever be taken"));
        }
        if self.backup.pause_budget_ms > 10_000 {
            return Err(Error::config(
                "backup.pause_budget_ms: writes would be held for over 10 s; use at most 10000",
            ));
        }
        Ok(())
    }

    /// Time for running jobs to end at shutdown.
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_secs(self.shutdown_grace_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_good_and_unknown_keys_are_named() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/coordinator.example.toml");
        let _ = CoordinatorConfig::load(&path).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let wrong = dir.path().join("wrong.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&wrong, text.replace("[log]", "[log]\ncolour = true")).unwrap();
        let err = CoordinatorConfig::load(&wrong).unwrap_err();
        assert!(
            err.report().contains("colour") && err.kind() == tidemark_proto::ErrorKind::Config,
            "{}",
            err.report()
        );
    }
}
