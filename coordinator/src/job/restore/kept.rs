//! Giving nodes what a backup keeps beside its records: libraries of functions before the switch, users after it.
//!
//! Libraries come with every restore. Users come only where that was asked for, when everything else is done: what stands
//! against a single one is a warning, as the data is there and open by then.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemark_common::kept::{library_head, normal_user, user_and_rules};
use tidemark_proto::id::JobId;
use tidemark_proto::stored::kept::KeptThings;
use tidemark_proto::stored::paths;
use tidemark_proto::wire::control::{
    KEPT_LIBRARIES, KEPT_PROBE, KEPT_USERS, Kept, RestoreKept, RestoredKept, SecretBytes,
};
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result};

use super::plan::open_manifest;
use super::request::find_backup;
use crate::context::Context;
use crate::fleet::Member;
use crate::job::inspect::is_damage;
use crate::repository::{Ledger, Manifest};

/// Time for a node to take what is kept.
const KEPT_DEADLINE: Duration = Duration::from_secs(120);
/// Attempts at a node; each may be repeated.
const ATTEMPTS: u32 = 5;
/// Wait between two attempts: a server that lets its clients in again may refuse the agent for a moment.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// What a restore takes of all that the nodes of a backup keep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Takes {
    /// Whether libraries are known: those of before go, when data is replaced.
    pub(super) knows_libraries: bool,
    /// Libraries of functions, one of each name.
    pub(super) libraries: Vec<Vec<u8>>,
    /// Users, one of each name.
    pub(super) users: Vec<SecretBytes>,
    /// What is not as it was.
    pub(super) warnings: Vec<String>,
    /// Why there is no user.
    no_users: Vec<String>,
    /// What cannot be read: object and cause.
    pub(super) lost: Option<(String, String)>,
}

impl Takes {
    /// What the backup holds. Damage is told in [`Takes::lost`].
    pub(super) async fn read(manifest: &Manifest) -> Result<Self> {
        match manifest.kept().await {
            Ok(Some(things)) => Ok(Self::of(&things)),
            Ok(None) => Ok(Self::default()),
            Err(e) if is_damage(&e) => {
                let hash = manifest.kept_ref().map(|k| k.hash).unwrap_or_default();
                let lost = Some((paths::root(manifest.cluster(), &hash), e.report()));
                Ok(Self { lost, ..Self::default() })
            }
            Err(e) => Err(e),
        }
    }

    fn of(things: &KeptThings) -> Self {
        let mut takes = Self { knows_libraries: true, ..Self::default() };
        for of in &things.nodes {
            for missing in &of.kept.missing {
                let told = format!("node {}: {} are not in the backup: {}", of.node, missing.what, missing.why);
                match missing.what.as_str() {
                    "users" => takes.no_users.push(told),
                    "functions" => {
                        takes.knows_libraries = false;
                        takes.warnings.push(told);
                    }
                    "everything" => {
                        takes.knows_libraries = false;
                        takes.no_users.push(told.clone());
                        takes.warnings.push(told);
                    }
                    _ => {}
                }
            }
        }
        let library = |code: &Vec<u8>| library_head(code).1.into_bytes();
        let code_of = |kept: &Kept| kept.libraries.clone();
        takes.libraries = one_of_each(things, "library", code_of, library, |a, b| a == b, &mut takes.warnings);
        let user = |line: &Vec<u8>| user_and_rules(line).map(|(name, _)| name.to_vec()).unwrap_or_default();
        let line_of = |kept: &Kept| kept.users.iter().map(|u| u.0.clone()).collect();
        // Whoever restores without users need not hear of them.
        let mut of_users = Vec::new();
        let users =
            one_of_each(things, "user", line_of, user, |a, b| normal_user(a) == normal_user(b), &mut of_users);
        takes.users = users.into_iter().map(SecretBytes).collect();
        takes.no_users.extend(of_users);
        takes
    }

    /// What stands against a restore with users.
    pub(super) fn problem(&self, backup: JobId) -> Option<String> {
        if let Some((_, cause)) = &self.lost {
            return Some(format!("the users of backup {backup} cannot be read, leave out --with-users: {cause}"));
        }
        let why = match self.no_users.is_empty() {
            true => "stores of its kind have none".to_owned(),
            false => self.no_users.join("; "),
        };
        let none = || format!("backup {backup} holds no users, leave out --with-users ({why})");
        self.users.is_empty().then(none)
    }

    /// Warnings about users that nodes do not agree on, or lack.
    pub(super) fn about_users(&self) -> &[String] {
        &self.no_users
    }
}

/// Libraries of functions of a backup, one of each name, and what is to be told of them.
pub async fn libraries(manifest: &Manifest) -> Result<(Vec<Vec<u8>>, Vec<String>)> {
    let mut takes = Takes::read(manifest).await?;
    let lost =
        takes.lost.take().map(|(object, cause)| format!("libraries of functions are lost ({object}): {cause}"));
    takes.warnings.extend(lost);
    Ok((takes.libraries, takes.warnings))
}

/// One of each name: what most nodes have; of equally many, what the first of them has.
fn one_of_each(
    things: &KeptThings,
    what: &str,
    list: impl Fn(&Kept) -> Vec<Vec<u8>>,
    name: impl Fn(&Vec<u8>) -> Vec<u8>,
    same: impl Fn(&[u8], &[u8]) -> bool,
    warnings: &mut Vec<String>,
) -> Vec<Vec<u8>> {
    let mut order: Vec<Vec<u8>> = Vec::new();
    let mut found: BTreeMap<Vec<u8>, Vec<(Vec<u8>, u32)>> = BTreeMap::new();
    for item in things.nodes.iter().flat_map(|n| list(&n.kept)) {
        let forms = found.entry(name(&item)).or_insert_with_key(|name| {
            order.push(name.clone());
            Vec::new()
        });
        match forms.iter_mut().find(|(form, _)| same(form, &item)) {
            Some((_, nodes)) => *nodes += 1,
            None => forms.push((item, 1)),
        }
    }
    let mut taken = Vec::new();
    for name in order {
        let forms = found.remove(&name).unwrap_or_default();
        let most = forms.iter().map(|(_, nodes)| *nodes).max().unwrap_or(0);
        if forms.len() > 1 {
            let name = String::from_utf8_lossy(&name);
            warnings.push(format!(
                "{what} `{name}` was not the same on all nodes: the one that {most} of {} had is taken",
                forms.iter().map(|(_, nodes)| nodes).sum::<u32>()
            ));
        }
        taken.extend(forms.into_iter().find(|(_, nodes)| *nodes == most).map(|(form, _)| form));
    }
    taken
}

/// The nodes that take it.
pub(super) struct Takers<'a> {
    pub(super) context: &'a Context,
    pub(super) cluster: &'a ClusterName,
    pub(super) job: JobId,
    pub(super) nodes: Vec<NodeName>,
}

impl Takers<'_> {
    /// Whether users can be set on all of them: asked before anything is touched.
    pub(super) async fn probe(&self) -> Result<()> {
        let probe = RestoreKept {
            step: KEPT_PROBE,
            replace: 0,
            libraries: Vec::new(),
            users: vec![SecretBytes(Vec::new())],
        };
        let asked = futures::future::try_join_all(self.nodes.iter().map(|node| self.tell(node, &probe))).await;
        asked.map(drop).map_err(|e| e.context("nothing was touched; --with-users"))
    }

    /// Loads the libraries; answers warnings.
    pub(super) async fn load_libraries(&self, takes: &Takes, in_place: bool) -> Result<Vec<String>> {
        if !takes.knows_libraries || (takes.libraries.is_empty() && !in_place) {
            return Ok(Vec::new());
        }
        let (libraries, users) = (takes.libraries.clone(), Vec::new());
        let load = RestoreKept { step: KEPT_LIBRARIES, replace: u8::from(in_place), libraries, users };
        let one = |node: &NodeName| {
            let (node, load) = (node.clone(), &load);
            async move {
                match self.tell(&node, load).await {
                    Ok(done) => Ok(done.warnings),
                    Err(e) if e.kind() == ErrorKind::Unsupported && load.libraries.is_empty() => Ok(Vec::new()),
                    Err(e) if e.kind() == ErrorKind::Unsupported => {
                        Ok(vec![format!("libraries of functions were not loaded: {}", e.report())])
                    }
                    Err(e) => Err(e.context("libraries of functions")),
                }
            }
        };
        let done = futures::future::try_join_all(self.nodes.iter().map(one)).await?;
        Ok(done.into_iter().flatten().collect())
    }

    /// Sets the users; answers warnings.
    pub(super) async fn set_users(&self, takes: &Takes) -> Vec<String> {
        let set = RestoreKept { step: KEPT_USERS, replace: 0, libraries: Vec::new(), users: takes.users.clone() };
        let done = futures::future::join_all(self.nodes.iter().map(|node| self.tell(node, &set))).await;
        let mut warnings = takes.about_users().to_vec();
        for one in done {
            match one {
                Ok(done) => warnings.extend(done.warnings),
                Err(e) => warnings.push(format!("users were not set: {}", e.report())),
            }
        }
        warnings
    }

    async fn tell(&self, node: &NodeName, kept: &RestoreKept) -> Result<RestoredKept> {
        let (fleet, patience) = (&self.context.fleet, self.context.config.backup.patience());
        let member = Member { cluster: self.cluster.clone(), node: node.clone() };
        for attempt in 1.. {
            fleet.wait_for(std::slice::from_ref(&member), patience).await?;
            let head = self.context.head(self.job, attempt);
            match fleet.command(&member, head, kept, KEPT_DEADLINE, |_| ()).await {
                Err(e) if e.kind() == ErrorKind::Retry && attempt < ATTEMPTS => {
                    tracing::warn!(%member, attempt, error = %e.report(), "kept things are not taken yet: trying again");
                    tokio::time::sleep(RETRY_WAIT).await;
                }
                done => return done,
            }
        }
        unreachable!("the last attempt returns")
    }
}

/// Reads what a restore takes whose plan another coordinator made.
pub(super) async fn takes_of(context: &Context, cluster: &ClusterName, backup: JobId) -> Result<Takes> {
    let ledger = Ledger::load(&context.repository, cluster).await?;
    let record = find_backup(&ledger, &backup.to_string())?;
    let takes = Takes::read(&open_manifest(&context.repository, cluster, &record.backup).await?).await?;
    match takes.problem(backup) {
        Some(problem) => Err(Error::damaged(problem)),
        None => Ok(takes),
    }
}

#[cfg(test)]
mod tests {
    use tidemark_proto::stored::kept::KeptOf;
    use tidemark_proto::wire::control::NotKept;

    use super::*;

    fn things(nodes: &[(&[&str], &[&str])]) -> KeptThings {
        let of = |(n, (users, libraries)): (usize, &(&[&str], &[&str]))| KeptOf {
            node: format!("n{n}").parse().unwrap(),
            kept: Kept {
                users: users.iter().map(|u| SecretBytes(u.as_bytes().to_vec())).collect(),
                libraries: libraries.iter().map(|l| l.as_bytes().to_vec()).collect(),
                ..Kept::default()
            },
        };
        KeptThings { job: JobId::default(), nodes: nodes.iter().enumerate().map(of).collect() }
    }

    #[test]
    fn what_most_nodes_have_is_taken_and_differences_are_told() {
        let (old, new) = ("#!lua name=a\n1", "#!lua name=a\n2");
        let of = |user| ["user default on", user];
        let (one, two) = (of("user x on"), of("user x off"));
        let takes = Takes::of(&things(&[(&one, &[old]), (&two, &[new, "#!lua name=b\n"]), (&two, &[new])]));
        assert_eq!(takes.libraries, [new.as_bytes(), b"#!lua name=b\n"]);
        assert_eq!(takes.users, [SecretBytes(b"user default on".to_vec()), SecretBytes(b"user x off".to_vec())]);
        assert!(takes.warnings.len() == 1 && takes.warnings[0].contains("`a`"), "{:?}", takes.warnings);
        assert!(takes.about_users()[0].contains("2 of 3") && takes.problem(JobId::default()).is_none());
    }

    #[test]
    fn a_backup_without_users_says_why() {
        let mut nodes = things(&[(&[], &[])]);
        let told = |nodes: &KeptThings| Takes::of(nodes).problem(JobId::default()).unwrap();
        assert!(told(&nodes).contains("stores of its kind have none"));
        nodes.nodes[0].kept.missing.push(NotKept { what: "users".into(), why: "a right".into() });
        assert!(told(&nodes).contains("node n0: users are not in the backup: a right"), "{}", told(&nodes));
        assert!(Takes::of(&nodes).knows_libraries);
        nodes.nodes[0].kept.missing[0].what = "everything".into();
        assert!(!Takes::of(&nodes).knows_libraries);
    }
}
