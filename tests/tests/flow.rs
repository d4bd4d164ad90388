//! The flow tier.
