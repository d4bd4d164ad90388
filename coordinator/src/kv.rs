//! The data protocol from the operator's side: routing keys to nodes, a writer that makes load, and the check that
//! finds broken causality.
//!
//! The load writes two kinds of keys. `load:<seed>:<n>` are records whose value follows from seed, key and version, so
//! that they can be verified. `chain:<seed>:<chain>.<run>:<step>#<salt>` are causal chains: step n is sent after step n-1 was
//! acknowledged, by another node where there is one, and its value names the key and timestamp of step n-1. A state
//! that holds step n without step n-1 at that timestamp or later is not a consistent cut.

mod chain;
mod check;
mod load;
mod pace;
mod route;
mod value;
mod writer;

pub use check::{CheckReport, check};
pub use load::{LoadOptions, LoadReport, load};
pub use route::{NodeRoute, Router, routes};
