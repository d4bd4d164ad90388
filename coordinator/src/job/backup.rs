//! Backup jobs: the core decides ([`core`]), the driver acts.

pub mod core;
mod driver;
mod finish;
mod manifest;
mod parents;
mod prepare;
mod resume;
pub mod tiling;

pub use driver::{BackupRequest, run};
pub use parents::{PartKey, most_runs};
pub use prepare::record_failure;
pub use resume::{LeftBackup, resume};
