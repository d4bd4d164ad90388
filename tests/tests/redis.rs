//! The engine `redis` against real servers, through the engine trait.

#[path = "redis/cut.rs"]
mod cut;
#[path = "redis/load.rs"]
mod load;
