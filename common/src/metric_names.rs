//! Names of the metrics that this crate emits. Labels are bounded.

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
