//! Stored formats. Every object is an [`envelope`]; where it lies is said in [`paths`].

pub mod envelope;
pub mod events;
pub mod job;
pub mod kept;
pub mod ledger;
pub mod limits;
pub mod log;
pub mod manifest;
pub mod paths;
pub mod repository;
pub mod run;

#[cfg(test)]
mod tests;
