//! Writing and reading manifests. Pages first, the root after them; the ledger entry that names the root is last and
//! not written here.

use std::collections::{BTreeMap, HashSet};

use tidemark_proto::frame;
use tidemark_proto::hash::Hash;
use tidemark_proto::id::PackId;
use tidemark_proto::stored::envelope::ObjectKind;
use tidemark_proto::stored::manifest::{PAGE_PARTS, Page, PageRef, PartEntry, Root, VERSION};
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, SlotSet};

use super::Repository;
use super::drawn::Scope;

const ROOT_NAME: &str = "root";
const PAGE_NAME: &str = "page";

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
}

impl<'r> ManifestWriter<'r> {
    /// A writer for a manifest of `cluster`; the names of root and pages go to `scope` before they are written.
    pub fn new(repository: &'r Repository, cluster: &ClusterName, scope: &'r Scope) -> Self {
        let (cluster, named, parts, pages) = (cluster.clone(), HashSet::new(), Vec::new(), Vec::new());
        Self { repository, cluster, scope, named, parts, pages, page_parts: PAGE_PARTS }
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
        let hash = self.put(ObjectKind::Page, PAGE_NAME, &frame::to_archive(&page)).await?;
        self.pages.push(PageRef { hash, parts: count });
        Ok(())
    }

    /// Writes the last page and the root (whose pages are filled in).
    pub async fn finish(mut self, mut root: Root) -> Result<Written> {
        self.flush().await?;
        root.pages = std::mem::take(&mut self.pages);
        let hash = self.put(ObjectKind::Root, ROOT_NAME, &frame::to_archive(&root)).await?;
        Ok(Written { hash, root, packs: self.named })
    }

    async fn put(&self, kind: ObjectKind, name: &str, body: &[u8]) -> Result<Hash> {
        let bytes = self.repository.seal_object(&self.cluster, kind, VERSION, name, body)?;
        let hash = Hash::of(&bytes);
        self.scope.root(hash);
        self.repository.store().put(&paths::root(&self.cluster, &hash), bytes.into()).await?;
        Ok(hash)
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
    kind: ObjectKind,
    name: &str,
    hash: &Hash,
) -> Result<Vec<u8>> {
    let path = paths::root(cluster, hash);
    // It is asked for because something names it.
    let bytes = repository.store().get(&path).await.map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::damaged(format!("{path} is missing")).with_source(e),
        _ => e,
    })?;
    if Hash::of(&bytes) != *hash {
        return Err(Error::damaged(format!("{path}: its bytes are not those that its name says")));
    }
    repository.open_object(cluster, kind, VERSION, name, &bytes).map_err(|e| e.context(path))
}

/// Reads a manifest root by its hash.
pub async fn read_root(repository: &Repository, cluster: &ClusterName, hash: &Hash) -> Result<Root> {
    let body = get(repository, cluster, ObjectKind::Root, ROOT_NAME, hash).await?;
    decode_root(&body).map_err(|e| e.context(paths::root(cluster, hash)))
}

/// Decodes the body of a root. `Damaged` when a set of slots is not in order, as all who read it rely on.
pub fn decode_root(body: &[u8]) -> Result<Root> {
    let root: Root = frame::from_archive(body)?;
    in_order(root.nodes.iter().map(|n| &n.slots))?;
    Ok(root)
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
    let body = get(repository, cluster, ObjectKind::Page, PAGE_NAME, &page.hash).await?;
    let read = decode_page(&body).map_err(|e| e.context(paths::root(cluster, &page.hash)))?;
    if read.parts.len() != page.parts as usize {
        return Err(Error::damaged(format!(
            "page {}: holds another number of parts than the root says",
            page.hash
        )));
    }
    Ok(read)
}
