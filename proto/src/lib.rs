//! Words, wire messages and stored formats of Tidemark.
//!
//! Nothing here does IO: the same bytes are read and written by agent, coordinator and tests. Types under a `v1`
//! module are frozen: once a build has written them they never change; a change is a new type with a new version.

pub mod error;
pub mod frame;
pub mod hash;
pub mod id;
pub mod slot;
pub mod stored;
pub mod time;
pub mod wire;

pub use error::{Error, ErrorKind, Result};
pub use id::{CloneName, ClusterName, Incarnation, NodeName};
pub use slot::{SlotSet, slot_of};
pub use time::Timestamp;
