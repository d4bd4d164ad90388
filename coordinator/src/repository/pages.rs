//! Reading a manifest page by page.
//!
//! Invariant: whoever reads a manifest holds a few pages of it, never all of them. A part's number is its place among
//! all part entries of the backup, in the order of the pages.

use std::sync::Arc;

use futures::{FutureExt, Stream, StreamExt};
use tidemark_proto::hash::Hash;
use tidemark_proto::stored::kept::KeptThings;
use tidemark_proto::stored::manifest::{KeptRef, PAGE_PARTS, Page, PartEntry, Root};
use tidemark_proto::{ClusterName, Error, Result};

use super::{Repository, read_kept, read_page, read_root_with_kept};

/// Pages read at once.
const PARALLEL_PAGES: usize = 4;

/// The manifest of one backup: its root in memory, its pages on demand.
#[derive(Debug, Clone)]
pub struct Manifest {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    repository: Repository,
    cluster: ClusterName,
    hash: Hash,
    root: Root,
    kept: Option<KeptRef>,
    /// Number of the first part of each page; one more for the end.
    firsts: Vec<u32>,
}

/// A page with its place in the manifest.
#[derive(Debug)]
pub struct PageRead {
    /// Its number, from 0.
    pub index: u32,
    /// Number of its first part.
    pub first: u32,
    /// Number of its parts, by the root.
    pub parts: u32,
    /// What is in it. An error names the object.
    pub page: Result<Page>,
}

impl PageRead {
    /// The part entries with their numbers; the error of a page that cannot be read.
    pub fn numbered(self) -> Result<impl Iterator<Item = (u32, PartEntry)>> {
        let first = self.first;
        self.page.map(|page| page.parts.into_iter().enumerate().map(move |(i, part)| (first + i as u32, part)))
    }
}

impl Manifest {
    /// Reads the root of a manifest. `Damaged` or `NotFound` name the object.
    pub async fn open(repository: &Repository, cluster: &ClusterName, hash: &Hash) -> Result<Self> {
        let (root, kept) = read_root_with_kept(repository, cluster, hash).await?;
        let mut firsts = vec![0u32];
        for page in &root.pages {
            let end = firsts[firsts.len() - 1].checked_add(page.parts);
            let end = end.filter(|_| page.parts > 0 && page.parts as usize <= PAGE_PARTS);
            firsts.push(end.ok_or_else(|| {
                Error::damaged(format!("manifest root {hash}: a page of {} parts cannot be", page.parts))
            })?);
        }
        let (repository, cluster, hash) = (repository.clone(), cluster.clone(), *hash);
        Ok(Self { inner: Arc::new(Inner { repository, cluster, hash, root, kept, firsts }) })
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.inner.repository
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.inner.cluster
    }

    /// Hash and name of the root.
    pub fn hash(&self) -> &Hash {
        &self.inner.hash
    }

    /// The root.
    pub fn root(&self) -> &Root {
        &self.inner.root
    }

    /// Which kept things the backup names; `None` for stores that keep nothing beside their records.
    pub fn kept_ref(&self) -> Option<&KeptRef> {
        self.inner.kept.as_ref()
    }

    /// Reads what the nodes keep beside their records. `Damaged` names the object.
    pub async fn kept(&self) -> Result<Option<KeptThings>> {
        let Some(kept) = self.kept_ref() else { return Ok(None) };
        read_kept(self.repository(), self.cluster(), kept).await.map(Some)
    }

    /// Number of parts.
    pub fn parts(&self) -> u32 {
        self.inner.firsts[self.inner.root.pages.len()]
    }

    /// Every page, in order.
    pub fn pages(&self) -> impl Stream<Item = PageRead> + Send + use<> {
        self.some_pages((0..self.inner.root.pages.len() as u32).collect())
    }

    /// The pages of these numbers, in that order; a few are read ahead.
    pub fn some_pages(&self, wanted: Vec<u32>) -> impl Stream<Item = PageRead> + Send + use<> {
        let manifest = self.clone();
        futures::stream::iter(wanted)
            .map(move |index| {
                let manifest = manifest.clone();
                async move { manifest.page(index).await }.boxed()
            })
            .buffered(PARALLEL_PAGES)
    }

    async fn page(&self, index: u32) -> PageRead {
        let Inner { repository, cluster, root, firsts, .. } = &*self.inner;
        let at = index as usize;
        let page = read_page(repository, cluster, &root.pages[at]).await;
        PageRead { index, first: firsts[at], parts: root.pages[at].parts, page }
    }
}
