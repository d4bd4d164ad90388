//! Writing and reading manifests. Pages first, the root after them; the ledger entry that names the root is last and
//! not written here.

use std::collections::{BTreeMap, HashSet};

use tidemark_proto::frame;
use tidemark_proto::hash::Hash;
use tidemark_proto::id::PackId;
use tidemark_proto::stored::envelope::{ObjectKind, version_of};
use tidemark_proto::stored::kept::{self, KeptThings};
use tidemark_proto::stored::manifest::{
    KeptRef, PAGE_PARTS, Page, PageRef, PartEntry, Root, RootWithKept, VERSION, VERSION_WITH_KEPT,
};
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, SlotSet};

use super::Repository;
use super::drawn::Scope;

const ROOT_NAME: &str = "root";
const PAGE_NAME: &str = "page";
const KEPT_NAME: &str = "kept";

/// Streams part entries into pages, so that a manifest is never whole in memory.
#[derive(Debug)]
pub struct ManifestWriter<'r> {
    repository: &'r Repository,
    cluster: ClusterName,
    scope: &'r Scope,
    named: HashSet<PackId>,
    parts: Vec<PartEntry>,
    pages: Vec<PageRef>,
    page_parts: usize,
    kept: Option<KeptRef>,
}

impl<'r> ManifestWriter<'r> {
    /// A writer for a manifest of `cluster`; the names of root and pages go to `scope` before they are written.
    pub fn new(repository: &'r Repository, cluster: &ClusterName, scope: &'r Scope) -> Self {
        let (cluster, named, parts, pages) = (cluster.clone(), HashSet::new(), Vec::new(), Vec::new());
        Self { repository, cluster, scope, named, parts, pages, page_parts: PAGE_PARTS, kept: None }
    }

    /// With pages of at most so many entries: what tests need for manifests of several pages.
    #[must_use]
    pub fn with_pages_of(mut self, parts: usize) -> Self {
        self.page_parts = parts.clamp(1, PAGE_PARTS);
        self
    }

    /// Adds the next entry; entries ascend by (first slot, lower).
    pub async fn push(&mut self, part: PartEntry) -> Result<()> {
        self.parts.push(part);
        if self.parts.len() >= self.page_parts { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<()> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let parts = std::mem::take(&mut self.parts);
        let mut live = BTreeMap::new();
        for run in parts.iter().flat_map(|p| &p.runs) {
            for extent in run.extents.iter().chain([&run.index]) {
                *live.entry(extent.pack).or_insert(0) += extent.len;
            }
        }
        let count = parts.len() as u32;
        self.named.extend(live.keys());
        let page = Page { parts, packs: live.into_iter().collect() };
        let (hash, _) = self.put(ObjectKind::Page, VERSION, PAGE_NAME, &frame::to_archive(&page)).await?;
        self.pages.push(PageRef { hash, parts: count });
        Ok(())
    }

    /// Writes what the nodes keep beside their records; the root will name it.
    pub async fn keep(&mut self, things: &KeptThings) -> Result<()> {
        let body = frame::to_archive(things);
        let (hash, bytes) = self.put(ObjectKind::Kept, kept::VERSION, KEPT_NAME, &body).await?;
        self.kept = Some(KeptRef { hash, bytes });
        Ok(())
    }

    /// Writes the last page and the root (whose pages are filled in).
    pub async fn finish(mut self, mut root: Root) -> Result<Written> {
        self.flush().await?;
        root.pages = std::mem::take(&mut self.pages);
        let (hash, root) = match self.kept {
            // What older builds read as well.
            None => {
                let (hash, _) = self.put(ObjectKind::Root, VERSION, ROOT_NAME, &frame::to_archive(&root)).await?;
                (hash, root)
            }
            Some(kept) => {
                let whole = RootWithKept { root, kept };
                let body = frame::to_archive(&whole);
                let (hash, _) = self.put(ObjectKind::Root, VERSION_WITH_KEPT, ROOT_NAME, &body).await?;
                (hash, whole.root)
            }
        };
        Ok(Written { hash, root, packs: self.named })
    }

    async fn put(&self, kind: ObjectKind, version: u8, name: &str, body: &[u8]) -> Result<(Hash, u64)> {
        let bytes = self.repository.seal_object(&self.cluster, kind, version, name, body)?;
        let (hash, len) = (Hash::of(&bytes), bytes.len() as u64);
        self.scope.root(hash);
        self.repository.store().put(&paths::root(&self.cluster, &hash), bytes.into()).await?;
        Ok((hash, len))
    }
}

/// A manifest that stands in the store; no backup yet.
#[derive(Debug)]
pub struct Written {
    /// Hash of the root.
    pub hash: Hash,
    /// The root.
    pub root: Root,
    /// Every pack that its pages name.
    pub packs: HashSet<PackId>,
}

async fn get(
    repository: &Repository,
    cluster: &ClusterName,
    (kind, max_version): (ObjectKind, u8),
    name: &str,
    hash: &Hash,
) -> Result<(u8, Vec<u8>)> {
    let path = paths::root(cluster, hash);
    // It is asked for because something names it.
    let bytes = repository.store().get(&path).await.map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::damaged(format!("{path} is missing")).with_source(e),
        _ => e,
    })?;
    if Hash::of(&bytes) != *hash {
        return Err(Error::damaged(format!("{path}: its bytes are not those that its name says")));
    }
    let body = repository.open_object(cluster, kind, max_version, name, &bytes);
    Ok((version_of(&bytes), body.map_err(|e| e.context(path))?))
}

/// Reads a manifest root by its hash.
pub async fn read_root(repository: &Repository, cluster: &ClusterName, hash: &Hash) -> Result<Root> {
    read_root_with_kept(repository, cluster, hash).await.map(|(root, _)| root)
}

/// Reads a manifest root of any version by its hash, and which kept things it names.
pub async fn read_root_with_kept(
    repository: &Repository,
    cluster: &ClusterName,
    hash: &Hash,
) -> Result<(Root, Option<KeptRef>)> {
    let (version, body) = get(repository, cluster, (ObjectKind::Root, VERSION_WITH_KEPT), ROOT_NAME, hash).await?;
    let read = match version {
        VERSION => decode_root(&body).map(|root| (root, None)),
        _ => decode_root_with_kept(&body).map(|(root, kept)| (root, Some(kept))),
    };
    read.map_err(|e| e.context(paths::root(cluster, hash)))
}

/// Decodes the body of a root. `Damaged` when a set of slots is not in order, as all who read it rely on.
pub fn decode_root(body: &[u8]) -> Result<Root> {
    let root: Root = frame::from_archive(body)?;
    in_order(root.nodes.iter().map(|n| &n.slots))?;
    Ok(root)
}

/// Decodes the body of a root of version 2; as [`decode_root`].
pub fn decode_root_with_kept(body: &[u8]) -> Result<(Root, KeptRef)> {
    let RootWithKept { root, kept } = frame::from_archive(body)?;
    in_order(root.nodes.iter().map(|n| &n.slots))?;
    Ok((root, kept))
}

/// Reads kept things.
pub async fn read_kept(repository: &Repository, cluster: &ClusterName, kept: &KeptRef) -> Result<KeptThings> {
    let (_, body) = get(repository, cluster, (ObjectKind::Kept, kept::VERSION), KEPT_NAME, &kept.hash).await?;
    decode_kept(&body).map_err(|e| e.context(paths::root(cluster, &kept.hash)))
}

/// Decodes the body of kept things. `Damaged` when a set of slots is not in order.
pub fn decode_kept(body: &[u8]) -> Result<KeptThings> {
    let things: KeptThings = frame::from_archive(body)?;
    in_order(things.nodes.iter().flat_map(|n| &n.kept.topology).map(|n| &n.slots))?;
    Ok(things)
}

/// Decodes the body of a page. `Damaged` when a set of slots is not in order, as all who read it rely on.
pub fn decode_page(body: &[u8]) -> Result<Page> {
    let page: Page = frame::from_archive(body)?;
    in_order(page.parts.iter().map(|p| &p.slots))?;
    Ok(page)
}

fn in_order<'a>(mut sets: impl Iterator<Item = &'a SlotSet>) -> Result<()> {
    match sets.all(SlotSet::is_canonical) {
        true => Ok(()),
        false => Err(Error::damaged("a slot set is not in order")),
    }
}

/// Reads a page of a manifest.
pub async fn read_page(repository: &Repository, cluster: &ClusterName, page: &PageRef) -> Result<Page> {
    let (_, body) = get(repository, cluster, (ObjectKind::Page, VERSION), PAGE_NAME, &page.hash).await?;
    let read = decode_page(&body).map_err(|e| e.context(paths::root(cluster, &page.hash)))?;
    if read.parts.len() != page.parts as usize {
        return Err(Error::damaged(format!(
            "page {}: holds another number of parts than the root says",
            page.hash
        )));
    }
    Ok(read)
}
