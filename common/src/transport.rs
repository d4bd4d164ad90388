//! QUIC between the parties of a fleet.
//!
//! Parties: agents and clients of the data protocol dial, coordinators and (for the data protocol) agents answer.
//! TLS 1.3 with certificates on both sides, see [`crate::tls`]. The dialling side opens the first stream for the hello
//! ([`tidemark_proto::wire::hello`]); what follows is the business of the ALPN.
//!
//! Streams carry frames ([`FrameReader`], [`FrameWriter`]). A stream that is not finished in words is reset: a writer
//! that is dropped resets its stream, so that a truncated stream never looks like a whole one. Reset, stop and close
//! codes are the codes of [`ErrorKind`](tidemark_proto::ErrorKind); 0 is "dropped without a word".
//!
//! Limits: every window, count and time-out is a constant of [`limits`]. Memory of one connection is bounded by its
//! receive window on one side and its send window on the other; of one stream by the stream window, so that a
//! receiver that bounds its streams (grants) bounds its memory, whatever the number of connections.

mod codes;
mod dialer;
mod endpoint;
mod frames;
mod hello;
pub mod limits;
mod refusal;

pub use codes::{Fault, close, error_of, reset, stop};
pub use dialer::{Backoff, Dialer};
pub use endpoint::{client_endpoint, server_endpoint};
pub use frames::{FrameReader, FrameWriter, accept_bi, open_bi};
pub use hello::{Accepted, Admission, Door, Greeting, Session, greet, peer_identity};
pub use refusal::{RefusalReason, count_refusal};

#[cfg(test)]
mod tests;
