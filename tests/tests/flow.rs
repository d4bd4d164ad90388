//! The flow tier: backup and restore as users run them, with the built binaries as processes.

#[path = "flow/broken.rs"]
mod broken;
#[path = "flow/clones.rs"]
mod clones;
#[path = "flow/collect.rs"]
mod collect;
#[path = "flow/crash.rs"]
mod crash;
#[path = "flow/damage.rs"]
mod damage;
#[path = "flow/delta.rs"]
mod delta;
#[path = "flow/direct.rs"]
mod direct;
#[path = "flow/extract_at.rs"]
mod extract_at;
#[path = "flow/identity.rs"]
mod identity;
#[path = "flow/in_place.rs"]
mod in_place;
#[path = "flow/limits.rs"]
mod limits;
#[path = "flow/log.rs"]
mod log;
#[path = "flow/log_broken.rs"]
mod log_broken;
#[path = "flow/model.rs"]
mod model;
#[path = "flow/pitr.rs"]
mod pitr;
#[path = "flow/query.rs"]
mod query;
#[path = "flow/repository.rs"]
mod repository;
#[path = "flow/salvage.rs"]
mod salvage;
#[path = "flow/shape.rs"]
mod shape;
#[path = "flow/shards.rs"]
mod shards;
#[path = "flow/steps.rs"]
mod steps;
#[path = "flow/store.rs"]
mod store;
#[path = "flow/telemetry.rs"]
mod telemetry;
