//! What the nodes of a backup keep beside their records, as people may see it: nothing here holds a password or its hash.

use std::collections::BTreeMap;

use tidemark_common::kept::{library_head, normal_user, user_and_rules};
use tidemark_common::scrub;
use tidemark_proto::stored::kept::KeptThings;

/// What is kept beside the records of a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct KeptSummary {
    /// Users with their rights; equal ones of several nodes stand once.
    pub users: Vec<KeptUser>,
    /// Libraries of functions; equal ones of several nodes stand once.
    pub libraries: Vec<KeptLibrary>,
    /// Settings of each node, without secrets.
    pub settings: Vec<KeptSettings>,
    /// The nodes of the store's own cluster, each as it described itself; replicas as their primaries did.
    pub topology: Vec<KeptNode>,
    /// What is not kept, and why.
    pub missing: Vec<KeptMissing>,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct KeptUser {
    /// Its name.
    pub name: String,
    /// Its rules, hashes of passwords taken out.
    pub rules: String,
    /// Nodes that have it so.
    pub nodes: Vec<String>,
}

/// A library of functions.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct KeptLibrary {
    /// Its name.
    pub name: String,
    /// What runs it, e.g. `lua`.
    pub engine: String,
    /// Bytes of its code.
    pub bytes: u64,
    /// Nodes that have it so.
    pub nodes: Vec<String>,
}

/// The settings of a node.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct KeptSettings {
    /// The node.
    pub node: String,
    /// Name and value.
    pub values: BTreeMap<String, String>,
}

/// A node of a store's own cluster.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct KeptNode {
    /// The node of the backup that told of it.
    pub node: String,
    /// Its id in that cluster; empty where there are none.
    pub id: String,
    /// Where it is reached; empty where that is not told.
    pub address: String,
    /// `primary` or `replica`.
    pub role: String,
    /// Id of the primary that it follows.
    pub follows: String,
    /// Its slots.
    pub slots: String,
    /// Version of its slots.
    pub config_epoch: u64,
}

/// Something that is not kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct KeptMissing {
    /// The node; empty for all.
    pub node: String,
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

impl KeptSummary {
    /// Of what was stored.
    pub fn of(things: &KeptThings) -> Self {
        let mut summary = Self::default();
        let (mut lines, mut codes) = (Vec::<Vec<u8>>::new(), Vec::<&[u8]>::new());
        for of in &things.nodes {
            let (node, kept) = (of.node.to_string(), &of.kept);
            for user in &kept.users {
                let line = normal_user(&user.0);
                match lines.iter().position(|other| *other == line) {
                    Some(at) => summary.users[at].nodes.push(node.clone()),
                    None => {
                        lines.push(line);
                        summary.users.push(user_of(&user.0, &node));
                    }
                }
            }
            for code in &kept.libraries {
                match codes.iter().position(|other| *other == code) {
                    Some(at) => summary.libraries[at].nodes.push(node.clone()),
                    None => {
                        codes.push(code);
                        let (engine, name) = library_head(code);
                        let (bytes, nodes) = (code.len() as u64, vec![node.clone()]);
                        summary.libraries.push(KeptLibrary { name, engine, bytes, nodes });
                    }
                }
            }
            if !kept.settings.is_empty() {
                let values = kept.settings.iter().map(|s| (s.name.clone(), s.value.clone())).collect();
                summary.settings.push(KeptSettings { node: node.clone(), values });
            }
            let missing = kept.missing.iter();
            summary.missing.extend(missing.map(|m| KeptMissing {
                node: node.clone(),
                what: m.what.clone(),
                why: m.why.clone(),
            }));
        }
        summary.topology = topology(things);
        summary
    }

    /// Of what cannot be read.
    pub fn unreadable(why: String) -> Self {
        let missing = vec![KeptMissing { node: String::new(), what: "everything".into(), why }];
        Self { missing, ..Self::default() }
    }
}

fn user_of(line: &[u8], node: &str) -> KeptUser {
    let (name, rules) = match user_and_rules(line) {
        Some((name, rules)) => (name, rules.collect::<Vec<_>>().join(&b' ')),
        None => (&b""[..], Vec::new()),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    KeptUser { name: text(name), rules: scrub::rules(&text(&rules)), nodes: vec![node.to_owned()] }
}

fn topology(things: &KeptThings) -> Vec<KeptNode> {
    let mut nodes = Vec::new();
    for of in &things.nodes {
        let told = &of.kept.topology;
        let own = told.iter().find(|n| n.myself != 0).map(|n| n.id.as_str()).unwrap_or_default();
        let of_it = told.iter().filter(|n| n.myself != 0 || (n.role != "primary" && n.follows == own));
        nodes.extend(of_it.map(|n| KeptNode {
            node: of.node.to_string(),
            id: n.id.clone(),
            address: n.address.clone(),
            role: n.role.clone(),
            follows: n.follows.clone(),
            slots: n.slots.to_string(),
            config_epoch: n.config_epoch,
        }));
    }
    nodes
}

#[cfg(test)]
mod tests {
    use tidemark_proto::stored::kept::KeptOf;
    use tidemark_proto::wire::control::{Kept, NotKept, SecretBytes, Setting, TopologyNode};
    use tidemark_proto::{SlotSet, id::JobId};

    use super::*;

    #[test]
    fn equal_things_stand_once_and_hashes_nowhere() {
        let node = |id: &str, role: &str, follows: &str, myself| TopologyNode {
            id: id.into(),
            address: String::new(),
            role: role.into(),
            follows: follows.into(),
            slots: SlotSet::EMPTY,
            config_epoch: 1,
            myself,
        };
        let of = |name: &str, user: &str, topology| KeptOf {
            node: name.parse().unwrap(),
            kept: Kept {
                users: vec![SecretBytes(b"user app on #98c1 ~* +get".to_vec()), SecretBytes(user.into())],
                libraries: vec![b"#!lua name=l\n1".to_vec()],
                settings: vec![Setting { name: "save".into(), value: String::new() }],
                topology,
                missing: vec![NotKept { what: "x".into(), why: "y".into() }],
                read_millis: 1,
            },
        };
        let all = || vec![node("a", "primary", "", 0), node("b", "primary", "", 0), node("r", "replica", "a", 0)];
        let (mut of_a, mut of_b) = (all(), all());
        (of_a[0].myself, of_b[1].myself) = (1, 1);
        let nodes = vec![of("n0", "user x on #11 +get", of_a), of("n1", "user x on #22 +get", of_b)];
        let summary = KeptSummary::of(&KeptThings { job: JobId::default(), nodes });
        let users: Vec<_> = summary.users.iter().map(|u| (&u.name[..], u.nodes.len(), &u.rules[..])).collect();
        let hidden = "on #(hidden) ~* +get";
        assert_eq!(users[0], ("app", 2, hidden));
        assert_eq!((users.len(), users[1], users[2].1), (3, ("x", 1, "on #(hidden) +get"), 1));
        assert_eq!((summary.libraries.len(), &summary.libraries[0].engine[..]), (1, "lua"));
        let ids: Vec<_> = summary.topology.iter().map(|n| (&n.node[..], &n.id[..])).collect();
        assert_eq!(ids, [("n0", "a"), ("n0", "r"), ("n1", "b")]);
        assert_eq!((summary.settings.len(), summary.missing.len()), (2, 2));
        let json = serde_json::to_string(&summary).unwrap();
        assert!(!json.contains("98c1") && !json.contains("22"), "{json}");
    }
}
