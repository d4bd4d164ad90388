//! Backup jobs: the core decides ([`core`]), the driver acts.

mod choose;
pub mod core;
mod driver;
pub mod entry;
mod finish;
mod keep;
mod manifest;
pub(crate) mod members;
mod parents;
mod prepare;
mod resume;
mod rounds;
pub mod tiling;
mod upload;

pub use driver::{BackupRequest, CUT_DEADLINE, run};
pub use manifest::node_entries;
pub use members::REPLICA;
pub use parents::{PartKey, most_runs};
pub use prepare::record_failure;
pub use resume::{LeftBackup, cut_of, resume};
pub use rounds::BASE_DEADLINE;
pub use upload::{UPLOAD_ATTEMPTS, UPLOAD_DEADLINE, UPLOAD_RETRY_WAIT};
