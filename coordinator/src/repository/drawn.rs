//! Names that running jobs have drawn: objects that may be in the store already while no ledger entry names them yet.
//!
//! Collection runs beside jobs. What a job of this process writes is told here before it is put, so that collection can
//! leave it alone; what a crashed job wrote is in nobody's scope and is garbage. A coordinator elsewhere needs no such
//! word: its epoch is over once collection has read the ledger, and it commits nothing any more.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, Weak};

use tidemark_proto::hash::Hash;
use tidemark_proto::id::PackId;

/// Names of objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Packs.
    pub packs: HashSet<PackId>,
    /// Manifest roots and pages.
    pub roots: HashSet<Hash>,
    /// Roots of backups that are built on: all that these name is needed too.
    pub parents: HashSet<Hash>,
}

/// The names of one job, until it is dropped.
#[derive(Debug, Default)]
pub struct Scope {
    names: Mutex<Names>,
}

impl Scope {
    /// A pack is about to be written.
    pub(super) fn pack(&self, id: PackId) {
        let _ = self.names.lock().expect("names").packs.insert(id);
    }

    /// A root or page is about to be written.
    pub(super) fn root(&self, hash: Hash) {
        let _ = self.names.lock().expect("names").roots.insert(hash);
    }

    /// The job builds on the backup with this root.
    pub fn builds_on(&self, root: Hash) {
        let _ = self.names.lock().expect("names").parents.insert(root);
    }
}

/// The scopes of all jobs of this process.
#[derive(Debug, Default)]
pub(super) struct Drawn {
    scopes: Mutex<Vec<Weak<Scope>>>,
}

impl Drawn {
    /// A scope for a new job.
    pub(super) fn open(&self) -> Arc<Scope> {
        let scope = Arc::new(Scope::default());
        let mut scopes = self.scopes.lock().expect("scopes");
        scopes.retain(|s| s.strong_count() > 0);
        scopes.push(Arc::downgrade(&scope));
        scope
    }

    /// All names of jobs that still run.
    pub(super) fn names(&self) -> Names {
        let mut all = Names::default();
        for scope in self.scopes.lock().expect("scopes").iter().filter_map(Weak::upgrade) {
            let names = scope.names.lock().expect("names");
            all.packs.extend(&names.packs);
            all.roots.extend(&names.roots);
            all.parents.extend(&names.parents);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_that_is_dropped_names_nothing() {
        let drawn = Drawn::default();
        let (a, b) = (drawn.open(), drawn.open());
        a.pack(PackId([1; 16]));
        b.root(Hash::of(b"root"));
        b.builds_on(Hash::of(b"parent"));
        let names = drawn.names();
        assert_eq!((names.packs.len(), names.roots.len(), names.parents.len()), (1, 1, 1));
        drop(b);
        let names = drawn.names();
        assert_eq!((names.packs.len(), names.roots.len(), names.parents.len()), (1, 0, 0));
    }
}
