//! Names of the metrics that this package emits. Labels are bounded. `deploy/metrics.md` documents all of them.

use metrics::Unit::{Bytes, Count, Seconds};

use crate::telemetry::Metric;

/// Counter: connections refused before or during the hello, by `reason` (see [`crate::transport::RefusalReason`]).
pub const HANDSHAKES_REFUSED: &str = "tidemark_handshakes_refused_total";
/// Counter: connections that passed the hello on the answering side, by `purpose` (`control`, `bulk`, `kv`).
pub const HANDSHAKES_ACCEPTED: &str = "tidemark_handshakes_accepted_total";
/// Gauge: seconds since 1970 at which the certificate in use ends.
pub const CERTIFICATE_NOT_AFTER: &str = "tidemark_certificate_not_after_seconds";
/// Counter: certificate files that changed and were taken into use.
pub const CERTIFICATE_RELOADS: &str = "tidemark_certificate_reloads_total";
/// Counter: certificate files that changed and could not be used; the old ones stay.
pub const CERTIFICATE_RELOAD_FAILURES: &str = "tidemark_certificate_reload_failures_total";
/// Gauge: always 1; `program` and `version` tell the build.
pub const BUILD_INFO: &str = "tidemark_build_info";
/// Gauge: seconds since 1970 at which the process began.
pub const PROCESS_START: &str = "tidemark_process_start_time_seconds";
/// Gauge: resident memory of the process.
pub const PROCESS_RESIDENT: &str = "tidemark_process_resident_memory_bytes";

/// Every metric of this package.
pub const ALL: &[Metric] = &[
    Metric::counter(HANDSHAKES_REFUSED, Count, &["reason"], "Connections refused before or during the hello"),
    Metric::counter(
        HANDSHAKES_ACCEPTED,
        Count,
        &["purpose"],
        "Connections that passed the hello on the answering side",
    ),
    Metric::gauge(CERTIFICATE_NOT_AFTER, Seconds, &[], "When the certificate in use ends, in seconds since 1970"),
    Metric::counter(CERTIFICATE_RELOADS, Count, &[], "Renewed certificate files that were taken into use"),
    Metric::counter(
        CERTIFICATE_RELOAD_FAILURES,
        Count,
        &[],
        "Changed certificate files that cannot be used; the old ones stay in use",
    ),
    Metric::gauge(BUILD_INFO, Count, &["program", "version"], "Always 1; the labels tell the build"),
    Metric::gauge(PROCESS_START, Seconds, &[], "When the process began, in seconds since 1970"),
    Metric::gauge(PROCESS_RESIDENT, Bytes, &[], "Resident memory of the process"),
];
