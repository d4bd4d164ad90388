//! What any process tells of itself.

use metrics::gauge;

use crate::clock::{SystemClock, WallClock};
use crate::metric_names;

/// Notes the start.
pub(super) fn started() {
    gauge!(metric_names::PROCESS_START).set(SystemClock.millis() as f64 / 1e3);
}

/// Sets what is only known now.
pub(super) fn observe() {
    if let Some(bytes) = resident_bytes() {
        gauge!(metric_names::PROCESS_RESIDENT).set(bytes as f64);
    }
}

/// Resident memory in bytes, where the system tells.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_knows_its_memory() {
        let bytes = super::resident_bytes().expect("procfs");
        assert!((100 << 10..1 << 40).contains(&bytes), "{bytes}");
    }
}
