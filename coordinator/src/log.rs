//! The log of clusters: streaming it from the nodes into segments, and what can be restored from what is durable.
//!
//! What holds: a segment is put only after the one before it is durable, under the next number, by create-if-absent; a
//! coordinator that takes over first puts a fence at the next free number and so knows the end. A node's positions are
//! chained from segment to segment; where a chain is broken, the window ends, whatever anybody intended.

mod groups;
mod index;
mod leading;
mod lines;
mod listing;
mod member;
mod merge;
mod node;
mod operate;
mod point;
mod points;
mod session;
mod sessions;
mod state;
mod take_over;
mod trim;
mod upkeep;
mod window;

pub use groups::Group;
pub use index::{Found, NodeSpan, SegmentInfo, Walk};
pub use operate::{EnablePitr, PitrChange, PitrStatus, WindowItem, change, cuts, status, windows};
pub use point::{LogParts, Piece, Point, between, point, point_of};
pub use sessions::Logs;
pub use state::{NodeLag, SessionState};
pub use trim::{Trimmable, check_segments, enter_trim, give_up, trimmable};
pub use window::{Chains, Interval, RestorePoints, Window, Windows};
