//! What a server keeps beside its records, for a backup: users, libraries of functions, settings, the nodes of its Cluster.
//!
//! - Libraries are exact: the base holds them, and what the log says of them up to the cut was applied with it.
//! - Users and settings are in no stream: they are read as soon as writes go on after the cut.
//! - The nodes are those that the server named in the hold.
//!
//! A right that is missing costs what it is needed for, never the backup. Secrets among the settings are left out; rules of
//! users hold hashes of passwords, and are shown to nobody.

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{Kept, MAX_KEPT, NotKept, SecretBytes, Setting, TopologyNode};
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, Timestamp};

use super::Redis;
use super::conn::Connection;
use super::fence::replicas_of;
use super::resp::Reply;
use super::saved::{USER_PREFIX, user_and_rules};
use super::server::{PRIMARY, REPLICA, View};

/// Settings that are secrets, or name who logs in with one. Others are known by their names: [`SECRET_WORDS`].
const SECRET_SETTINGS: [&str; 8] = [
    "requirepass",
    "masterauth",
    "masteruser",
    "primaryauth",
    "primaryuser",
    "tls-key-file-pass",
    "tls-client-key-file-pass",
    "sentinel-pass",
];
/// A setting whose name holds one of these is left out as well: modules and newer servers have secrets of their own.
const SECRET_WORDS: [&str; 6] = ["pass", "auth", "secret", "token", "credential", "private"];
/// Bytes that an entry takes beside its text.
const ENTRY: usize = 32;

/// What is read once writes go on.
#[derive(Debug, Default)]
pub(super) struct Around {
    read_millis: u64,
    users: Vec<SecretBytes>,
    settings: Vec<Setting>,
    missing: Vec<NotKept>,
}

impl Around {
    /// Asks the server. What it refuses is missing, and nothing else fails.
    pub(super) fn read(redis: &Redis) -> Self {
        let mut around = Self { read_millis: SystemClock.millis(), ..Self::default() };
        match redis.ask_primary(users) {
            Ok(users) => around.users = users,
            Err(e) => around.missing.push(not_kept("users", "+acl|list", &e)),
        }
        match redis.ask_primary(settings) {
            Ok(settings) => around.settings = settings,
            Err(e) => around.missing.push(not_kept("settings", "+config|get", &e)),
        }
        around
    }
}

fn not_kept(what: &str, right: &str, error: &Error) -> NotKept {
    let why = match error.kind() {
        ErrorKind::Denied => format!("the agent's user needs the right {right}"),
        _ => error.report(),
    };
    NotKept { what: what.to_owned(), why }
}

fn users(connection: &mut Connection) -> Result<Vec<SecretBytes>> {
    let lines = connection.call(&[b"ACL", b"LIST"])?.list("ACL LIST")?;
    let lines: Vec<Vec<u8>> = lines.into_iter().map(|line| line.bytes("ACL LIST")).collect::<Result<_>>()?;
    // Those of restores are gone when these end.
    let lasting =
        |line: &Vec<u8>| user_and_rules(line).is_some_and(|(name, _)| !name.starts_with(USER_PREFIX.as_bytes()));
    Ok(lines.into_iter().filter(lasting).map(SecretBytes).collect())
}

fn settings(connection: &mut Connection) -> Result<Vec<Setting>> {
    let words = connection.call(&[b"CONFIG", b"GET", b"*"])?.list("CONFIG GET")?;
    let words: Vec<String> = words.into_iter().map(|w: Reply| w.text("CONFIG GET")).collect::<Result<_>>()?;
    let pairs = words.chunks_exact(2).filter(|pair| !is_secret(&pair[0]));
    let mut settings: Vec<_> =
        pairs.map(|pair| Setting { name: pair[0].clone(), value: pair[1].clone() }).collect();
    settings.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(settings)
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_SETTINGS.contains(&name.as_str()) || SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// The nodes that a server knows: those of its Cluster, or itself and its replicas.
pub(super) fn topology(view: &View) -> Vec<TopologyNode> {
    if view.info.is_cluster() {
        let node = |n: &super::server::ClusterNode| TopologyNode {
            id: n.id.clone(),
            address: n.address.to_string(),
            role: if n.primary { PRIMARY } else { REPLICA }.to_owned(),
            follows: if n.follows == "-" { String::new() } else { n.follows.clone() },
            slots: n.slots.clone(),
            config_epoch: n.config_epoch,
            myself: u8::from(n.myself),
        };
        return view.nodes.iter().map(node).collect();
    }
    let alone = |address: String, role: &str, slots, myself| TopologyNode {
        id: String::new(),
        address,
        role: role.to_owned(),
        follows: String::new(),
        slots,
        config_epoch: 0,
        myself,
    };
    let mut nodes = vec![alone(String::new(), view.info.role(), SlotSet::all(), 1)];
    let replicas = replicas_of(view).unwrap_or_default();
    nodes.extend(replicas.iter().map(|r| alone(r.to_string(), REPLICA, SlotSet::EMPTY, 0)));
    nodes
}

/// Room for what is kept; what does not fit is left out whole, as half of it would be another thing.
struct Room {
    left: usize,
    most: usize,
}

impl Room {
    fn fits<T>(
        &mut self,
        what: &str,
        list: Vec<T>,
        bytes: impl Fn(&T) -> usize,
        missing: &mut Vec<NotKept>,
    ) -> Vec<T> {
        let wanted: usize = list.iter().map(|one| bytes(one) + ENTRY).sum();
        if wanted <= self.left {
            self.left -= wanted;
            return list;
        }
        let why = format!("they take {wanted} bytes, and {} of {} are left", self.left, self.most);
        missing.push(NotKept { what: what.to_owned(), why });
        Vec::new()
    }
}

impl Redis {
    /// [`crate::engine::Engine::kept`].
    pub(super) fn kept_of(&self, job: JobId, at: Timestamp, most: usize) -> Result<Kept> {
        let shared = self.job(job)?;
        let mut this = shared.lock().expect("job");
        if this.cut.as_ref().is_none_or(|(cut, _)| *cut != at) {
            return Err(Error::not_found(format!(
                "no cut was taken here at {at}: the agent was started anew since"
            )));
        }
        // The log up to the cut decides about the libraries.
        let _ = self.state_of(&mut this)?;
        let around = this.around.as_ref().ok_or_else(|| Error::bug("kept things of a cut without a release"))?;
        let topology = this.hold.as_ref().map(|hold| hold.topology.clone()).unwrap_or_default();
        let most = most.min(MAX_KEPT as usize);
        let (mut room, mut missing) = (Room { left: most, most }, around.missing.clone());
        let libraries = room.fits("functions", this.libraries.clone(), Vec::len, &mut missing);
        let users = room.fits("users", around.users.clone(), |u| u.0.len(), &mut missing);
        let pair = |s: &Setting| s.name.len() + s.value.len();
        let settings = room.fits("settings", around.settings.clone(), pair, &mut missing);
        let node =
            |n: &TopologyNode| n.id.len() + n.address.len() + n.follows.len() + 8 * n.slots.ranges().len() + 64;
        let topology = room.fits("topology", topology, node, &mut missing);
        Ok(Kept { read_millis: around.read_millis, users, libraries, settings, topology, missing })
    }
}

#[cfg(test)]
mod tests {
    use super::super::server::{Info, cluster_nodes};
    use super::*;

    #[test]
    fn secrets_are_no_settings() {
        for secret in
            ["requirepass", "masteruser", "PrimaryAuth", "tls-key-file-pass", "x.api-token", "mod.secret-key"]
        {
            assert!(is_secret(secret), "{secret}");
        }
        assert!(!["maxmemory", "aclfile", "save", "tls-key-file"].into_iter().any(is_secret));
    }

    #[test]
    fn what_does_not_fit_is_left_out_whole_and_said() {
        let (mut room, mut missing) = (Room { left: 100, most: 100 }, Vec::new());
        assert_eq!(room.fits("a", vec![vec![0u8; 10]], Vec::len, &mut missing).len(), 1);
        assert!(room.fits("b", vec![vec![0u8; 10], vec![0u8; 10]], Vec::len, &mut missing).is_empty());
        assert_eq!(room.fits("c", vec![vec![0u8; 20]], Vec::len, &mut missing).len(), 1);
        assert_eq!((missing.len(), missing[0].what.as_str()), (1, "b"));
        assert!(missing[0].why.contains("84") && missing[0].why.contains("58 of 100"), "{}", missing[0].why);
    }

    #[test]
    fn nodes_of_a_cluster_and_of_a_server_of_its_own() {
        let known =
            "aa 192.0.2.1:1@2 myself,master - 0 0 3 connected 0-9\nbb 192.0.2.2:1@2 slave aa 0 0 3 connected\n";
        let view = |info: &str, nodes: &str| View {
            info: Info::parse(info),
            nodes: cluster_nodes(nodes).unwrap(),
            importing: SlotSet::EMPTY,
            clock_millis: 0,
        };
        let nodes = topology(&view("cluster_enabled:1\r\nrole:master", known));
        assert_eq!((nodes.len(), nodes[0].myself, &nodes[1].follows[..]), (2, 1, "aa"));
        assert_eq!((nodes[0].slots.to_string(), &nodes[1].role[..]), ("0-9".into(), "replica"));
        let nodes = topology(&view("role:master\r\nslave0:ip=192.0.2.1,port=6379,state=online\r\n", ""));
        assert_eq!((nodes.len(), &nodes[1].address[..]), (2, "192.0.2.1:6379"));
    }
}
