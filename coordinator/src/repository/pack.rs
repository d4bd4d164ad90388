//! Packs: objects of up to 64 MiB with random names that hold sealed blocks and indexes of many parts.
//!
//! A pack is an envelope: header, extents back to back, checksum. Base and delta blocks never share one, because they
//! die at different times. A pack is durable when [`PackSet::append`] or [`PackSet::flush`] has closed it; which are is
//! told by [`PackSet::is_durable`].

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use metrics::counter;
use object_store::{MultipartUpload, PutPayload};
use tidemark_proto::id::PackId;
use tidemark_proto::stored::envelope::{self, ObjectKind};
use tidemark_proto::stored::manifest::Extent;
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, error::ResultExt};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::drawn::Scope;
use super::health;
use super::store::{Store, error_of};
use crate::metric_names::{STAGE_BYTES, stage};

/// A pack is closed when it passes this size, in bytes.
pub(super) const PACK_TARGET: u64 = 64 << 20;
/// Size of the pieces in which a pack is sent, in bytes; a smaller pack goes as a whole.
const PIECE: usize = 8 << 20;
/// The same of all but the first, where the store is a folder: what was written gives its memory to what comes.
const FOLDER_PIECE: usize = 1 << 20;
/// Pieces of all packs of one job on their way at once.
const PIECES_IN_FLIGHT: usize = 4;
/// Packs of full runs that are open at once, by how long their runs will be needed.
pub(super) const BASE_CLASSES: usize = 4;
/// Version of the pack's envelope.
pub(super) const VERSION: u8 = 1;

/// What a pack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackKind {
    /// Full runs of one class (any number; taken modulo the number of classes): those that will be written anew at about the
    /// same time, so that their pack dies as a whole.
    Base(usize),
    /// Delta runs.
    Delta,
}

/// The packs that one job is writing.
#[derive(Debug)]
pub struct PackSet {
    base: [Mutex<Writer>; BASE_CLASSES],
    delta: Mutex<Writer>,
    durable: std::sync::Mutex<HashSet<PackId>>,
}

impl PackSet {
    /// Packs for a job of `cluster`, whose names go to `scope` before they are written.
    pub fn new(store: &Store, cluster: &ClusterName, scope: &Arc<Scope>) -> Self {
        let flights = Arc::new(Semaphore::new(PIECES_IN_FLIGHT));
        let writer = || {
            let (store, cluster) = (store.clone(), cluster.clone());
            Mutex::new(Writer { store, cluster, scope: scope.clone(), flights: flights.clone(), open: None })
        };
        Self { base: std::array::from_fn(|_| writer()), delta: writer(), durable: std::sync::Mutex::default() }
    }

    fn writer(&self, kind: PackKind) -> &Mutex<Writer> {
        match kind {
            PackKind::Base(class) => &self.base[class % BASE_CLASSES],
            PackKind::Delta => &self.delta,
        }
    }

    /// Appends `pieces` as one extent; closes the pack when it is full.
    pub async fn append(&self, kind: PackKind, pieces: &[Bytes]) -> Result<Extent> {
        let mut writer = self.writer(kind).lock().await;
        let extent = writer.append(pieces).await?;
        if extent.offset + extent.len >= PACK_TARGET {
            self.close(&mut writer).await?;
        }
        Ok(extent)
    }

    /// Closes what is open.
    pub async fn flush(&self) -> Result<()> {
        for writer in self.base.iter().chain([&self.delta]) {
            self.close(&mut *writer.lock().await).await?;
        }
        Ok(())
    }

    async fn close(&self, writer: &mut Writer) -> Result<()> {
        if let Some(id) = writer.close().await? {
            let _ = self.durable.lock().expect("no panic while held").insert(id);
        }
        Ok(())
    }

    /// Whether the pack has been closed.
    pub fn is_durable(&self, pack: &PackId) -> bool {
        self.durable.lock().expect("no panic while held").contains(pack)
    }
}

struct Writer {
    store: Store,
    cluster: ClusterName,
    scope: Arc<Scope>,
    flights: Arc<Semaphore>,
    open: Option<Open>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

struct Open {
    id: PackId,
    hasher: blake3::Hasher,
    /// Bytes so far, header included.
    len: u64,
    /// What gathers for the next piece: the blocks as they came, copied by nobody before they are written or sent.
    piece: Vec<Bytes>,
    piece_len: usize,
    upload: Option<Box<dyn MultipartUpload>>,
    flying: JoinSet<object_store::Result<()>>,
}

impl Open {
    fn new() -> Self {
        let mut open = Self {
            id: PackId(rand::random()),
            hasher: blake3::Hasher::new(),
            len: 0,
            piece: Vec::new(),
            piece_len: 0,
            upload: None,
            flying: JoinSet::new(),
        };
        let header = envelope::header(ObjectKind::Pack, VERSION, envelope::FLAG_SEALED);
        open.add(Bytes::copy_from_slice(&header));
        open
    }

    fn add(&mut self, bytes: Bytes) {
        let _ = self.hasher.update(&bytes);
        self.len += bytes.len() as u64;
        self.gather(bytes);
    }

    fn gather(&mut self, bytes: Bytes) {
        self.piece_len += bytes.len();
        self.piece.push(bytes);
    }

    /// Size of the piece that gathers.
    fn wanted(&self, store: &Store) -> usize {
        if self.upload.is_some() && store.is_folder() { FOLDER_PIECE } else { PIECE }
    }

    fn take_piece(&mut self) -> PutPayload {
        self.piece_len = 0;
        self.piece.drain(..).collect()
    }

    async fn land_one(&mut self, path: &str) -> Result<()> {
        match self.flying.join_next().await {
            Some(Ok(done)) => {
                let done = done.map_err(|e| error_of(path, e));
                health::count_piece(&done);
                done
            }
            Some(Err(e)) => Err(Error::bug("a piece of a pack").with_source(e)),
            None => Ok(()),
        }
    }

    async fn send_piece(&mut self, store: &Store, path: &str, flight: OwnedSemaphorePermit) -> Result<()> {
        if self.upload.is_none() {
            self.upload = Some(store.multipart(path).await?);
        }
        // What has landed meanwhile: a failure shows at the next piece, not at the end of the pack.
        while let Some(landed) = self.flying.try_join_next() {
            landed.or_kind(ErrorKind::Bug, "a piece of a pack")?.map_err(|e| error_of(path, e))?;
        }
        let piece = self.take_piece();
        let upload = self.upload.as_mut().expect("begun above");
        let put = upload.put_part(piece);
        let _ = self.flying.spawn(async move {
            let _flight = flight;
            put.await
        });
        Ok(())
    }
}

impl Writer {
    /// Room for one more piece on its way. Pieces that fly give theirs back by themselves, so this waits for no lock.
    async fn flight(flights: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
        flights.clone().acquire_owned().await.or_kind(ErrorKind::Bug, "pieces in flight")
    }

    async fn append(&mut self, pieces: &[Bytes]) -> Result<Extent> {
        let open = self.open.get_or_insert_with(|| {
            let open = Open::new();
            self.scope.pack(open.id);
            open
        });
        let extent = Extent { pack: open.id, offset: open.len, len: pieces.iter().map(|p| p.len() as u64).sum() };
        for bytes in pieces {
            open.add(bytes.clone());
            if open.piece_len >= open.wanted(&self.store) {
                let path = paths::pack(&self.cluster, &open.id);
                let flight = Self::flight(&self.flights).await?;
                if let Err(e) = open.send_piece(&self.store, &path, flight).await {
                    self.abandon().await;
                    return Err(e);
                }
            }
        }
        Ok(extent)
    }

    /// Puts the open pack; answers its id, `None` when none was open.
    async fn close(&mut self) -> Result<Option<PackId>> {
        let Some(open) = &mut self.open else { return Ok(None) };
        let (id, path) = (open.id, paths::pack(&self.cluster, &open.id));
        tidemark_common::crash::point("pack.closing");
        let sum = envelope::truncate(open.hasher.finalize());
        open.gather(Bytes::copy_from_slice(&sum));
        let bytes = open.len + sum.len() as u64;
        let done = Self::finish(&self.store, &self.flights, open, &path).await;
        if done.is_err() {
            self.abandon().await;
        }
        self.open = None;
        if done.is_ok() {
            counter!(STAGE_BYTES, "stage" => stage::STORED).increment(bytes);
        }
        done.map(|()| Some(id))
    }

    async fn finish(store: &Store, flights: &Arc<Semaphore>, open: &mut Open, path: &str) -> Result<()> {
        if open.upload.is_none() {
            return store.put(path, open.take_piece().into()).await;
        }
        open.send_piece(store, path, Self::flight(flights).await?).await?;
        while !open.flying.is_empty() {
            open.land_one(path).await?;
        }
        let upload = open.upload.as_mut().expect("checked above");
        let done = upload.complete().await.map(drop).map_err(|e| error_of(path, e));
        health::count_piece(&done);
        done
    }

    async fn abandon(&mut self) {
        if let Some(mut open) = self.open.take() {
            open.flying.shutdown().await;
            if let Some(mut upload) = open.upload.take()
                && let Err(e) = upload.abort().await
            {
                tracing::warn!(pack = %open.id, error = %e, "could not abort the upload of a pack; the store may keep its pieces");
            }
        }
    }
}
