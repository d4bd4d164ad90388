//! A state of the past, opened for reading.

use std::ops::ControlFlow;
use std::sync::Arc;

use futures::{FutureExt, StreamExt};
use tidemark_common::overlay::{LogSorter, Overlaid, Wanted};
use tidemark_common::record::redis_key;
use tidemark_common::run::{Entry, LongValue};
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::{ClusterName, Error, Result, Timestamp, slot_of};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::extract::{Laid, PartOver};
use crate::fold::REDIS_ENGINE;
use crate::job::restore::open_manifest;
use crate::log::{self, LogParts, Piece};
use crate::part::{self, LongValues};
use crate::repository::{Ledger, Manifest, Repository};

/// Memory for sorting the log of one part, in bytes.
const SORT_MEMORY: usize = 32 << 20;

/// Visits records; `Break` ends the walk.
pub(super) type Visit = Box<dyn FnMut(&Entry<'_>, Option<&LongValue>) -> Result<ControlFlow<()>> + Send>;

/// The state of a cluster at a restore point.
#[derive(Debug, Clone)]
pub struct Past {
    pub(super) repository: Repository,
    /// The restore point.
    pub at: Timestamp,
    /// The backup under it.
    pub manifest: Manifest,
    pub(super) log: Arc<LogParts>,
    /// What the log is, where it is one of commands.
    pub(super) laid: Option<Arc<Laid>>,
}

impl Past {
    /// Opens the newest restore point at or before `wanted`.
    pub async fn open(repository: &Repository, ledger: &Ledger, wanted: Timestamp) -> Result<Self> {
        let point = log::point(repository, ledger, wanted, None).boxed().await?;
        let manifest = open_manifest(repository, ledger.cluster(), &point.base.backup).await?;
        let log = match point.is_logged() {
            true => point.log(repository, ledger.cluster(), manifest.root().slots_per_region).boxed().await?,
            false => Arc::default(),
        };
        let laid = match point.is_logged() && manifest.root().engine == REDIS_ENGINE {
            true => {
                let dir = std::env::temp_dir();
                Some(Arc::new(Laid::of(&manifest, log.clone(), point.at, &dir, None).boxed().await?))
            }
            false => None,
        };
        Ok(Self { repository: repository.clone(), at: point.at, manifest, log, laid })
    }

    /// The cluster.
    pub(super) fn cluster(&self) -> &ClusterName {
        self.manifest.cluster()
    }

    /// Time up to which the log is in the backup.
    pub(super) fn base(&self) -> Timestamp {
        self.manifest.root().cut
    }

    /// Id of the backup.
    pub(super) fn backup(&self) -> String {
        self.manifest.root().job.to_string()
    }

    /// Whether its keys are in databases.
    pub(super) fn has_databases(&self) -> bool {
        self.manifest.root().engine == REDIS_ENGINE
    }

    /// The key of a record, as records of this engine have it, and its slot.
    pub(super) fn key(&self, db: u64, key: &[u8]) -> Result<(u16, Vec<u8>)> {
        let slot = slot_of(key);
        if self.has_databases() {
            let mut own = Vec::new();
            redis_key(db, key, &mut own);
            return Ok((slot, own));
        }
        match db {
            0 => Ok((slot, key.to_vec())),
            _ => {
                let engine = &self.manifest.root().engine;
                Err(Error::request(format!("stores of engine `{engine}` have no databases; leave --db out")))
            }
        }
    }

    /// The parts that `wanted` takes, in the order of the manifest.
    pub(super) async fn parts(&self, wanted: impl Fn(&PartEntry) -> bool) -> Result<Vec<PartEntry>> {
        let mut pages = self.manifest.pages();
        let mut parts = Vec::new();
        while let Some(page) = pages.next().await {
            parts.extend(page.page?.parts.into_iter().filter(&wanted));
        }
        Ok(parts)
    }

    /// Reads and opens pieces of the log, in their order; visits each raw chunk. To be called on a thread that may block.
    pub(super) fn each_chunk(&self, pieces: &[Piece], mut visit: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let sealed = Handle::current().block_on(self.log.read(&self.repository, pieces))?;
        for (piece, sealed) in pieces.iter().zip(&sealed) {
            visit(&self.log.open(&self.repository, *piece, sealed)?)?;
        }
        Ok(())
    }

    /// Walks the records of a part from sort key `from` on (empty: from its beginning); answers whether it went to the end,
    /// and gives the visitor back.
    pub(super) async fn walk(&self, part: PartEntry, from: Vec<u8>, mut visit: Visit) -> Result<(bool, Visit)> {
        let opened = part::open(&self.repository, self.cluster(), &part, LongValues::Spooled).await?;
        let pump = tokio::spawn(opened.pump);
        let (past, mut merge) = (self.clone(), opened.merge);
        let walked = tokio::task::spawn_blocking(move || {
            let PartOver { overlay, folded } = past.overlay(&part)?;
            let mut over = Overlaid::new(overlay)?;
            let mut give = |entry: Entry<'_>, long: Option<&LongValue>| {
                let before =
                    (&entry.slot.to_be_bytes()[..], entry.key) < from.split_at_checked(2).unwrap_or_default();
                if before { Ok(ControlFlow::Continue(())) } else { visit(&entry, long) }
            };
            let mut stopped = false;
            while !stopped && merge.advance()? {
                let entry = merge.current();
                let replaced = over.before(entry, |newer, long| {
                    stopped = stopped || give(newer, long)?.is_break();
                    Ok(())
                })?;
                if !stopped && !replaced && PartOver::keeps(folded.as_deref(), &entry)? {
                    stopped = give(entry, merge.long())?.is_break();
                }
            }
            if !stopped {
                over.rest(|newer, long| {
                    stopped = stopped || give(newer, long)?.is_break();
                    Ok(())
                })?;
            }
            Ok((!stopped, visit))
        });
        let walked = walked.await.map_err(|e| Error::bug("walking a part").with_source(e))?;
        pump.abort();
        walked
    }

    fn overlay(&self, part: &PartEntry) -> Result<PartOver> {
        if let Some(laid) = &self.laid {
            let never = CancellationToken::new();
            return Handle::current().block_on(laid.over(&self.repository, part, 1, &never));
        }
        let wanted = Wanted {
            after: self.base(),
            at: self.at,
            slots: part.slots.clone(),
            lower: part.lower.clone(),
            upper: part.upper.clone(),
        };
        let mut sorter = LogSorter::new(wanted, SORT_MEMORY, &std::env::temp_dir());
        for pieces in self.log.spans(part.region, crate::blocks::READ_SPAN) {
            self.each_chunk(pieces, |raw| sorter.push_chunk(raw))?;
        }
        Ok(PartOver { overlay: sorter.finish()?, folded: None })
    }
}
