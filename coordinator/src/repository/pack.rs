//! Packs: objects of up to 64 MiB with random names that hold sealed blocks and indexes of many parts.
//!
//! A pack is an envelope: header, extents back to back, checksum. Base and delta blocks never share one, because they
//! die at different times. A pack is durable when [`PackSet::append`] or [`PackSet::flush`] has closed it; which are is
//! told by [`PackSet::is_durable`].

use std::collections::HashSet;

use bytes::Bytes;
use metrics::counter;
use object_store::{MultipartUpload, PutPayload};
use tidemark_proto::id::PackId;
use tidemark_proto::stored::envelope::{self, ObjectKind};
use tidemark_proto::stored::manifest::Extent;
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Error, Result};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::health;
use super::store::{Store, error_of};
use crate::metric_names::{STAGE_BYTES, stage};

/// A pack is closed when it passes this size, in bytes.
pub(super) const PACK_TARGET: u64 = 64 << 20;
/// Size of the pieces in which a pack is sent, in bytes.
const PIECE: usize = 8 << 20;
/// Pieces of one pack on their way at once.
const PIECES_IN_FLIGHT: usize = 2;
/// Version of the pack's envelope.
pub(super) const VERSION: u8 = 1;

/// What a pack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackKind {
    /// Full runs.
    Base,
    /// Delta runs.
    Delta,
}

/// The packs that one job is writing.
#[derive(Debug)]
pub struct PackSet {
    base: Mutex<Writer>,
    delta: Mutex<Writer>,
    durable: std::sync::Mutex<HashSet<PackId>>,
}

impl PackSet {
    /// Packs for a job of `cluster`.
    pub fn new(store: &Store, cluster: &ClusterName) -> Self {
        let writer = || Mutex::new(Writer { store: store.clone(), cluster: cluster.clone(), open: None });
        Self { base: writer(), delta: writer(), durable: std::sync::Mutex::default() }
    }

    fn writer(&self, kind: PackKind) -> &Mutex<Writer> {
        match kind {
            PackKind::Base => &self.base,
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
        for kind in [PackKind::Base, PackKind::Delta] {
            self.close(&mut *self.writer(kind).lock().await).await?;
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
    piece: Vec<u8>,
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
            upload: None,
            flying: JoinSet::new(),
        };
        open.add(&envelope::header(ObjectKind::Pack, VERSION, envelope::FLAG_SEALED));
        open
    }

    fn add(&mut self, bytes: &[u8]) {
        let _ = self.hasher.update(bytes);
        self.piece.extend_from_slice(bytes);
        self.len += bytes.len() as u64;
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

    async fn send_piece(&mut self, store: &Store, path: &str) -> Result<()> {
        if self.upload.is_none() {
            self.upload = Some(store.multipart(path).await?);
        }
        while self.flying.len() >= PIECES_IN_FLIGHT {
            self.land_one(path).await?;
        }
        let piece = PutPayload::from(std::mem::take(&mut self.piece));
        let upload = self.upload.as_mut().expect("begun above");
        let _ = self.flying.spawn(upload.put_part(piece));
        Ok(())
    }
}

impl Writer {
    async fn append(&mut self, pieces: &[Bytes]) -> Result<Extent> {
        let open = self.open.get_or_insert_with(Open::new);
        let extent = Extent { pack: open.id, offset: open.len, len: pieces.iter().map(|p| p.len() as u64).sum() };
        for bytes in pieces {
            open.add(bytes);
            if open.piece.len() >= PIECE {
                let path = paths::pack(&self.cluster, &open.id);
                if let Err(e) = open.send_piece(&self.store, &path).await {
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
        let sum = envelope::truncate(open.hasher.finalize());
        open.piece.extend_from_slice(&sum);
        let bytes = open.len + sum.len() as u64;
        let done = Self::finish(&self.store, open, &path).await;
        if done.is_err() {
            self.abandon().await;
        }
        self.open = None;
        if done.is_ok() {
            counter!(STAGE_BYTES, "stage" => stage::STORED).increment(bytes);
        }
        done.map(|()| Some(id))
    }

    async fn finish(store: &Store, open: &mut Open, path: &str) -> Result<()> {
        if open.upload.is_none() {
            return store.put(path, Bytes::from(std::mem::take(&mut open.piece))).await;
        }
        open.send_piece(store, path).await?;
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
