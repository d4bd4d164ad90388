//! Restore jobs: a plan is a printable value, then an idempotent job that carries it out.

mod driver;
mod plan;

pub use driver::run;
pub use plan::{PlanNode, RestorePlan, RestoreRequest, find_backup, plan, read_parts};
