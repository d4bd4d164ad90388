//! Names of the metrics that this package emits. Labels are bounded. `deploy/metrics.md` documents all of them.

use metrics::Unit::{Bytes, Count};
use tidemark_common::telemetry::{FRACTIONS_OF_A_SECOND, Metric, SECONDS};

/// Counter: bytes by `stage`, see [`stage`].
pub const STAGE_BYTES: &str = "tidemark_agent_stage_bytes_total";
/// Histogram: time for one part, by `kind` (`upload`, `load`); attempts that failed are not in it.
pub const PART_SECONDS: &str = "tidemark_agent_part_seconds";
/// Counter: attempts at parts, by `kind` (`upload`, `load`) and `outcome` (`ok`, `failed`).
pub const PART_ATTEMPTS: &str = "tidemark_agent_part_attempts_total";
/// Gauge: parts at work, by `kind`.
pub const PARTS_RUNNING: &str = "tidemark_agent_parts_running";
/// Histogram: how long writes were held for a cut.
pub const HOLD_SECONDS: &str = "tidemark_agent_hold_seconds";
/// Gauge: 1 while there is a control connection to a coordinator.
pub const CONNECTED: &str = "tidemark_agent_connected";
/// Gauge: clones of the store that stand.
pub const CLONES: &str = "tidemark_agent_clones";
/// Gauge: the node's own limit, 0 for none.
pub const LIMIT: &str = "tidemark_agent_limit_bytes_per_second";
/// Counter: time that parts waited for the node's own limit.
pub const LIMITED_SECONDS: &str = "tidemark_agent_limited_seconds_total";

/// Values of the label of [`STAGE_BYTES`].
pub mod stage {
    /// Keys and values read from the store for a backup.
    pub const READ: &str = "read";
    /// Bytes of a base taken from the store before a cut.
    pub const BASE: &str = "base";
    /// Blocks, compressed and sealed.
    pub const SEALED: &str = "sealed";
    /// Sealed blocks handed to the transport.
    pub const SENT: &str = "sent";
    /// Sealed chunks of the log handed to the transport.
    pub const LOG: &str = "log";
    /// Sealed blocks fetched for a restore.
    pub const FETCHED: &str = "fetched";
    /// Keys and values of a restore that were merged.
    pub const LOADED: &str = "loaded";
}

/// Every metric of this package.
pub const ALL: &[Metric] = &[
    Metric::counter(STAGE_BYTES, Bytes, &["stage"], "Bytes that passed a stage of backup or restore on this node"),
    Metric::seconds(PART_SECONDS, SECONDS, &["kind"], "Time to send or load one part"),
    Metric::counter(PART_ATTEMPTS, Count, &["kind", "outcome"], "Attempts at sending or loading parts"),
    Metric::gauge(PARTS_RUNNING, Count, &["kind"], "Parts being sent or loaded"),
    Metric::seconds(HOLD_SECONDS, FRACTIONS_OF_A_SECOND, &[], "How long writes were held for a cut"),
    Metric::gauge(CONNECTED, Count, &[], "1 while there is a control connection to a coordinator"),
    Metric::gauge(CLONES, Count, &[], "Clones of the store that stand; each keeps all versions since it was made"),
    Metric::gauge(LIMIT, Bytes, &[], "The node's own limit in bytes a second; 0 for none"),
    Metric::counter(
        LIMITED_SECONDS,
        metrics::Unit::Seconds,
        &[],
        "Time that parts waited for the node's own limit, all parts together",
    ),
];
