//! Restore jobs: a plan is a printable value, then an idempotent job that carries it out.

mod begun;
mod driver;
mod kept;
mod load;
mod moving;
mod options;
mod plan;
mod ready;
mod request;
mod share;
mod shares;
mod sums;
mod switch;
mod types;

pub use begun::LeftRestore;
pub use driver::{resume, run};
pub use kept::libraries;
pub use plan::{Candidate, PlanNode, RestorePlan, open_manifest, plan, plan_onto};
pub use request::{RestoreRequest, find_backup};
pub use share::{Batch, Share};
pub use sums::{Loaded, Sums};
pub use switch::{abort_all, open_jobs, resume_switch, switch_node};
