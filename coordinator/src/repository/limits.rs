//! Limits of rates as operators set them, kept in the repository: whichever coordinator comes next finds them, on
//! whatever machine. They are not of one cluster, so no ledger is their place. Like epochs they are not sealed: they
//! hold no secret, and who can write to the store can do worse.

use tidemark_proto::frame;
use tidemark_proto::stored::envelope::{self, ObjectKind};
use tidemark_proto::stored::limits::{self, Limits};
use tidemark_proto::stored::paths;
use tidemark_proto::{ErrorKind, Result};

use super::Repository;

/// Limits and their number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsRecord {
    /// Number of the object; the highest counts.
    pub number: u64,
    /// What it says.
    pub limits: Limits,
}

async fn last_number(repository: &Repository) -> Result<u64> {
    let listed = repository.store().list(paths::LIMITS).await?;
    Ok(listed.iter().filter_map(|(path, _)| paths::number(path)).max().unwrap_or(0))
}

/// The limits that count; `None` when none were ever set.
pub async fn read_limits(repository: &Repository) -> Result<Option<LimitsRecord>> {
    let number = last_number(repository).await?;
    if number == 0 {
        return Ok(None);
    }
    let path = paths::limits(number);
    let bytes = repository.store().get(&path).await?;
    let opened = envelope::unwrap(ObjectKind::Limits, limits::VERSION, &bytes).map_err(|e| e.context(&path))?;
    let limits = frame::from_archive(opened.body).map_err(|e| e.context(&path))?;
    Ok(Some(LimitsRecord { number, limits }))
}

/// Keeps limits, durable on return. Of two that are written at once the later number counts.
pub async fn write_limits(repository: &Repository, limits: &Limits) -> Result<u64> {
    let body = envelope::wrap(ObjectKind::Limits, limits::VERSION, 0, &frame::to_archive(limits));
    let mut number = last_number(repository).await?;
    loop {
        number += 1;
        match repository.store().create(&paths::limits(number), body.clone().into()).await {
            Ok(()) => return Ok(number),
            Err(e) if e.kind() == ErrorKind::Conflict => {}
            Err(e) => return Err(e.context("keeping limits")),
        }
    }
}
