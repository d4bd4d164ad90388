//! Speaking with servers of Redis and Valkey, and working a log of their commands off.

mod about;
pub mod conn;
pub mod fold;
mod folded;
pub mod keys;
pub mod log;
pub mod named;
pub mod resp;
pub mod scratch;
pub mod tied;
