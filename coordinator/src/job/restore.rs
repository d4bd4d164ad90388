//! Restore jobs: a plan is a printable value, then an idempotent job that carries it out.

mod driver;
mod plan;
mod ready;
mod share;
mod sums;

pub use driver::run;
pub use plan::{Candidate, PlanNode, RestorePlan, RestoreRequest, find_backup, open_manifest, plan, plan_onto};
pub use share::{Batch, Share};
pub use sums::{Loaded, Sums};
