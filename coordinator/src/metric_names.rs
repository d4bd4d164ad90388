//! Names of the metrics that this package emits. Labels are bounded. `deploy/metrics.md` documents all of them.

use metrics::Unit::{Bytes, Count, Seconds};
use tidemark_common::telemetry::{FRACTIONS_OF_A_SECOND, Metric, SECONDS};

/// Gauge: epoch of this coordinator.
pub const EPOCH: &str = "tidemark_coordinator_epoch";
/// Gauge: connected agents, by `cluster`.
pub const AGENTS: &str = "tidemark_coordinator_connected_agents";
/// Gauge: largest distance between a node's clock and this one, by `cluster`.
pub const CLOCK_OFFSET: &str = "tidemark_coordinator_clock_offset_seconds";
/// Counter: bytes by `stage`, see [`stage`].
pub const STAGE_BYTES: &str = "tidemark_coordinator_stage_bytes_total";
/// Counter: bytes on the network of agents' bulk connections as UDP payload, by `direction` (`received`, `sent`).
pub const NETWORK_BYTES: &str = "tidemark_coordinator_network_bytes_total";
/// Histogram: time from grant to the last byte of a part (`receive`), or of giving out one run (`serve`), by `kind`.
pub const PART_SECONDS: &str = "tidemark_coordinator_part_seconds";
/// Histogram: how long each node's writes were held for the cut of a backup, by `cluster`.
pub const HOLD_SECONDS: &str = "tidemark_coordinator_hold_seconds";
/// Counter: attempts at a cut, by `cluster` and `outcome` (`held`, `void`).
pub const CUT_ATTEMPTS: &str = "tidemark_coordinator_cut_attempts_total";
/// Gauge: parts by `state`: `waiting` for a grant, `granted`, `unflushed` (received, their packs are open).
pub const PARTS: &str = "tidemark_coordinator_parts";
/// Gauge: a budget of memory, by `budget` (`ingest`, `serve`).
pub const BUDGET: &str = "tidemark_coordinator_memory_budget_bytes";
/// Gauge: what of a budget of memory is in use, by `budget`.
pub const BUDGET_USED: &str = "tidemark_coordinator_memory_used_bytes";
/// Counter: attempts at requests to the object store, by `outcome`, see [`outcome`].
pub const STORE_ATTEMPTS: &str = "tidemark_coordinator_store_attempts_total";
/// Histogram: time of one attempt at a request to the object store.
pub const STORE_SECONDS: &str = "tidemark_coordinator_store_seconds";
/// Gauge: running jobs, by `kind`.
pub const JOBS_RUNNING: &str = "tidemark_coordinator_jobs_running";
/// Counter: ended jobs, by `kind` and `state` (`succeeded`, `failed`, `cancelled`).
pub const JOBS_ENDED: &str = "tidemark_coordinator_jobs_ended_total";
/// Histogram: time of a job that succeeded, by `kind`.
pub const JOB_SECONDS: &str = "tidemark_coordinator_job_seconds";
/// Gauge: when the newest backup was committed, by `cluster`; from the ledger, so that it survives a restart.
pub const LAST_SUCCESS: &str = "tidemark_coordinator_last_success_timestamp_seconds";
/// Gauge: cut of the newest backup, by `cluster`; from the ledger.
pub const LAST_CUT: &str = "tidemark_coordinator_last_cut_timestamp_seconds";
/// Gauge: when a backup last failed, by `cluster`; from the ledger, 0 for never.
pub const LAST_FAILURE: &str = "tidemark_coordinator_last_failure_timestamp_seconds";
/// Gauge: backups that stand in the ledger, by `cluster`.
pub const BACKUPS: &str = "tidemark_coordinator_backups";
/// Gauge: limit by `scope` (`fleet`, `agent`), 0 for none.
pub const LIMIT: &str = "tidemark_coordinator_limit_bytes_per_second";
/// Counter: time that data waited for a limit.
pub const LIMITED_SECONDS: &str = "tidemark_coordinator_limited_seconds_total";
/// Counter: events of jobs that could not be kept.
pub const EVENTS_LOST: &str = "tidemark_coordinator_events_lost_total";

/// Values of the label of [`STAGE_BYTES`].
pub mod stage {
    /// Sealed blocks and indexes received from agents.
    pub const RECEIVED: &str = "received";
    /// Bytes of packs that are durable.
    pub const STORED: &str = "stored";
    /// Sealed blocks and indexes given out to agents.
    pub const SERVED: &str = "served";
}

/// Values of the label of [`STORE_ATTEMPTS`].
pub mod outcome {
    /// Done.
    pub const OK: &str = "ok";
    /// Failed in passing; tried again.
    pub const RETRY: &str = "retry";
    /// The store asked for fewer requests.
    pub const THROTTLED: &str = "throttled";
    /// The object was there already.
    pub const CONFLICT: &str = "conflict";
    /// The object is not there.
    pub const NOT_FOUND: &str = "not_found";
    /// Failed for good.
    pub const FAILED: &str = "failed";
    /// No answer in time.
    pub const TIMEOUT: &str = "timeout";
    /// All of them.
    pub const ALL: [&str; 7] = [OK, RETRY, THROTTLED, CONFLICT, NOT_FOUND, FAILED, TIMEOUT];
}

/// Counter: log segments stored, by `cluster`.
pub const LOG_SEGMENTS: &str = "tidemark_coordinator_log_segments_total";
/// Counter: bytes of log segments stored, by `cluster`.
pub const LOG_BYTES: &str = "tidemark_coordinator_log_bytes_total";
/// Gauge: age of the newest change of a node's log that is durable, by `cluster` and `node`.
pub const LOG_LAG: &str = "tidemark_coordinator_log_lag_seconds";
/// Gauge: what would be lost if all nodes were lost now, by `cluster`: the largest lag.
pub const LOG_RPO: &str = "tidemark_coordinator_log_rpo_seconds";
/// Gauge: begin of the newest restorable window, by `cluster`; 0 for none.
pub const WINDOW_START: &str = "tidemark_coordinator_window_start_timestamp_seconds";
/// Gauge: its end, by `cluster`; 0 for none.
pub const WINDOW_END: &str = "tidemark_coordinator_window_end_timestamp_seconds";

/// Every metric of this package.
pub const ALL: &[Metric] = &[
    Metric::gauge(EPOCH, Count, &[], "Epoch of this coordinator"),
    Metric::gauge(AGENTS, Count, &["cluster"], "Connected agents"),
    Metric::gauge(CLOCK_OFFSET, Seconds, &["cluster"], "Largest distance of a node's clock from the coordinator's"),
    Metric::counter(STAGE_BYTES, Bytes, &["stage"], "Bytes that passed a stage of backup or restore here"),
    Metric::counter(
        NETWORK_BYTES,
        Bytes,
        &["direction"],
        "UDP payload of agents' data connections: blocks with headers, acknowledgements and repeats",
    ),
    Metric::seconds(PART_SECONDS, SECONDS, &["kind"], "Time to receive a part or to give out a run of one"),
    Metric::seconds(
        HOLD_SECONDS,
        FRACTIONS_OF_A_SECOND,
        &["cluster"],
        "How long the writes of each node were held for the cut of a backup",
    ),
    Metric::counter(CUT_ATTEMPTS, Count, &["cluster", "outcome"], "Attempts at the cut of a backup"),
    Metric::gauge(PARTS, Count, &["state"], "Parts that wait for a grant, are received, or wait for their packs"),
    Metric::gauge(BUDGET, Bytes, &["budget"], "Budget of memory for data under way"),
    Metric::gauge(BUDGET_USED, Bytes, &["budget"], "What of a budget of memory is in use"),
    Metric::counter(STORE_ATTEMPTS, Count, &["outcome"], "Attempts at requests to the object store"),
    Metric::seconds(STORE_SECONDS, SECONDS, &[], "Time of one attempt at a request to the object store"),
    Metric::gauge(JOBS_RUNNING, Count, &["kind"], "Jobs at work"),
    Metric::counter(JOBS_ENDED, Count, &["kind", "state"], "Jobs that ended since the start"),
    Metric::seconds(JOB_SECONDS, SECONDS, &["kind"], "Time of a job that succeeded"),
    Metric::gauge(
        LAST_SUCCESS,
        Seconds,
        &["cluster"],
        "When the newest backup was committed, in seconds since 1970; read from the ledger",
    ),
    Metric::counter(LOG_SEGMENTS, Count, &["cluster"], "Log segments stored"),
    Metric::counter(LOG_BYTES, Bytes, &["cluster"], "Bytes of log segments stored"),
    Metric::gauge(
        LOG_LAG,
        Seconds,
        &["cluster", "node"],
        "Age of the newest durable change of a node's log; NaN while none is streamed",
    ),
    Metric::gauge(
        LOG_RPO,
        Seconds,
        &["cluster"],
        "What would be lost if all nodes were lost now: the largest lag; NaN while no log is streamed",
    ),
    Metric::gauge(
        WINDOW_START,
        Seconds,
        &["cluster"],
        "Begin of the newest restorable window, in seconds since 1970; 0 for none",
    ),
    Metric::gauge(
        WINDOW_END,
        Seconds,
        &["cluster"],
        "End of the newest restorable window, in seconds since 1970; 0 for none",
    ),
    Metric::gauge(
        LAST_CUT,
        Seconds,
        &["cluster"],
        "Cut of the newest backup, in seconds since 1970; read from the ledger",
    ),
    Metric::gauge(
        LAST_FAILURE,
        Seconds,
        &["cluster"],
        "When a backup last failed, in seconds since 1970, 0 for never; read from the ledger",
    ),
    Metric::gauge(BACKUPS, Count, &["cluster"], "Backups that stand in the ledger"),
    Metric::gauge(LIMIT, Bytes, &["scope"], "Limit in bytes a second, of the fleet and of each agent; 0 for none"),
    Metric::counter(LIMITED_SECONDS, Seconds, &[], "Time that data waited for a limit, all streams together"),
    Metric::counter(EVENTS_LOST, Count, &[], "Events of jobs that could not be kept"),
];
