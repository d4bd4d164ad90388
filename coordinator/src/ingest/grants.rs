//! Grants: what bounds the memory of parts under way, and the pace at which they are read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use metrics::counter;
use tidemark_proto::{Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::GRANT_COST;
use crate::fleet::Member;
use crate::limits::Limits;
use crate::metric_names::{STAGE_BYTES, stage};

/// How much ingest has to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IngestLoad {
    /// Parts that wait for a grant.
    pub waiting: usize,
    /// Parts that are granted.
    pub granted: usize,
    /// Parts that were received and whose packs are open.
    pub unflushed: usize,
    /// Memory for granted parts.
    pub budget_bytes: u64,
    /// What of it is taken.
    pub used_bytes: u64,
}

/// Gives out grants, as many as the budget of memory has room for.
#[derive(Debug)]
pub(super) struct Grants {
    room: Arc<Semaphore>,
    total: usize,
    waiting: AtomicUsize,
}

/// A part that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let _ = self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Grants {
    /// As many as `budget` bytes have room for, at least one.
    pub(super) fn within(budget: u64) -> Self {
        let total = (budget / GRANT_COST).max(1) as usize;
        Self { room: Arc::new(Semaphore::new(total)), total, waiting: AtomicUsize::new(0) }
    }

    /// Waits for a grant, which ends when it is dropped.
    pub(super) async fn take(&self) -> Result<OwnedSemaphorePermit> {
        let _ = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        self.room.clone().acquire_owned().await.map_err(|_| Error::cancelled("ingest is closed"))
    }

    /// How many are out and waited for; `unflushed` is passed on.
    pub(super) fn load(&self, unflushed: usize) -> IngestLoad {
        let granted = self.total.saturating_sub(self.room.available_permits());
        IngestLoad {
            waiting: self.waiting.load(Ordering::Relaxed),
            granted,
            unflushed,
            budget_bytes: self.total as u64 * GRANT_COST,
            used_bytes: granted as u64 * GRANT_COST,
        }
    }
}

/// A part under way, until it is dropped.
pub(super) struct UnderWay<'a>(pub(super) &'a watch::Sender<usize>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// The pace at which a part of an agent is read.
pub(crate) struct Pace<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) member: Member,
}

impl Pace<'_> {
    /// Counts what was read, and waits before more is.
    pub(crate) async fn passed(&self, bytes: usize) {
        counter!(STAGE_BYTES, "stage" => stage::RECEIVED).increment(bytes as u64);
        self.limits.pass(&self.member, bytes as u64).await;
    }
}
