//! What a server says of itself: `INFO`, `CLUSTER NODES`, and the rest of what the agent must know.

use std::collections::HashMap;

use tidemark_proto::slot::SLOT_COUNT;
use tidemark_proto::wire::control::{Ownership, Position};
use tidemark_proto::{Error, Result, SlotSet};

use super::conn::{Address, Connection};
use super::imports;
use super::resp::Reply;

/// Role of a node that serves writes.
pub const PRIMARY: &str = "primary";
/// Role of a node that follows another one.
pub const REPLICA: &str = "replica";

/// The fields of an answer to `INFO`.
#[derive(Debug, Clone, Default)]
pub struct Info(HashMap<String, String>);

impl Info {
    /// Reads the answer.
    pub fn parse(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Self(fields.map(|(name, value)| (name.to_owned(), value.trim_end().to_owned())).collect())
    }

    /// A field as text; empty when it is not there.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// A field as a number. `Unsupported` when it is not there: every server that can be backed up has it.
    pub fn number(&self, name: &str) -> Result<u64> {
        let value = self.text(name);
        // A replica that never had a link says -1.
        value.parse().map_err(|_| Error::unsupported(format!("INFO of the server holds `{name}:{value}`")))
    }

    /// Whether a field is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The fields whose names begin like this.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter(move |(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Number of keys in all databases (`db0:keys=3,expires=0,…`).
    pub fn keys(&self) -> u64 {
        let of = |value: &str| value.strip_prefix("keys=")?.split(',').next()?.parse::<u64>().ok();
        self.with_prefix("db").filter_map(|(_, value)| of(value)).sum()
    }

    /// Bytes that its data takes, by its own estimate; 0 where it does not know. It takes what it counts as overhead from the whole,
    /// and writes what is then below nothing as a number near 2^64.
    pub fn dataset(&self) -> u64 {
        let number = |name| self.number(name).unwrap_or(0);
        Some(number("used_memory_dataset")).filter(|data| *data <= number("used_memory")).unwrap_or(0)
    }

    /// Name and version of the server, e.g. `redis 7.0.15`, `valkey 8.0.1`.
    pub fn version(&self) -> String {
        match self.text("valkey_version") {
            "" => format!("redis {}", self.text("redis_version")),
            valkey => format!("valkey {valkey}"),
        }
    }

    /// The first two numbers of the version of the server's own kind: Valkey's where it is one.
    pub fn release(&self) -> (u32, u32) {
        let name = if self.has("valkey_version") { "valkey_version" } else { "redis_version" };
        let mut parts = self.text(name).split('.').map(|p| p.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    /// Whether the server is part of a Cluster.
    pub fn is_cluster(&self) -> bool {
        self.text("redis_mode") == "cluster" || self.text("cluster_enabled") == "1"
    }

    /// `primary` or `replica`.
    pub fn role(&self) -> &'static str {
        if self.text("role") == "master" { PRIMARY } else { REPLICA }
    }

    /// Where its stream of changes stands.
    pub fn position(&self) -> Result<Position> {
        Ok(Position { history: self.text("master_replid").to_owned(), offset: self.number("master_repl_offset")? })
    }
}

/// A node's line in `CLUSTER NODES`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNode {
    /// Its id.
    pub id: String,
    /// Where clients reach it.
    pub address: Address,
    /// Whether it is the node that was asked.
    pub myself: bool,
    /// Whether it serves writes.
    pub primary: bool,
    /// Whether it follows another one. One that is not known well does neither.
    pub replica: bool,
    /// Whether the node that was asked holds it for dead, or does not know it well.
    pub failing: bool,
    /// Id of the primary that it follows.
    pub follows: String,
    /// Version of its slots.
    pub config_epoch: u64,
    /// Its slots.
    pub slots: SlotSet,
    /// Slots that are on their way from it, as far as it says.
    pub leaving: SlotSet,
    /// Slots that are on their way to it, as far as it says.
    pub arriving: SlotSet,
}

/// Reads the answer to `CLUSTER NODES`.
pub fn cluster_nodes(text: &str) -> Result<Vec<ClusterNode>> {
    text.lines().filter(|l| !l.trim().is_empty()).map(cluster_node).collect()
}

fn cluster_node(line: &str) -> Result<ClusterNode> {
    let bad = || Error::unsupported(format!("CLUSTER NODES holds a line that is not understood: `{line}`"));
    let fields: Vec<&str> = line.split(' ').collect();
    let [id, address, flags, follows, _, _, epoch, _, slots @ ..] = &fields[..] else { return Err(bad()) };
    // host:port@busport,hostname
    let (address, name) = address.split_once(',').unwrap_or((address, ""));
    let address = address.split('@').next().unwrap_or_default();
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let host = if host.is_empty() { name.split(',').next().unwrap_or_default() } else { host };
    let flags: Vec<&str> = flags.split(',').collect();
    let has = |flag: &str| flags.contains(&flag);
    let (mut own, mut leaving, mut arriving) = (SlotSet::EMPTY, SlotSet::EMPTY, SlotSet::EMPTY);
    for slot in slots {
        let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n < SLOT_COUNT).ok_or_else(bad);
        if let Some(rest) = slot.strip_prefix('[') {
            // [93-<-nodeid] comes to it, [93->-nodeid] goes.
            let (n, way) = rest.split_once('-').ok_or_else(bad)?;
            let n = number(n)?;
            let moving = if way.starts_with('<') { &mut arriving } else { &mut leaving };
            *moving = moving.union(&SlotSet::range(n, n));
            continue;
        }
        let (from, to) = slot.split_once('-').unwrap_or((slot, slot));
        own = own.union(&SlotSet::range(number(from)?, number(to)?));
    }
    Ok(ClusterNode {
        id: (*id).to_owned(),
        address: Address::Tcp(format!("{host}:{port}")),
        myself: has("myself"),
        primary: has("master"),
        replica: has("slave"),
        failing: flags.iter().any(|f| matches!(*f, "fail" | "fail?" | "handshake" | "noaddr")),
        follows: (*follows).to_owned(),
        config_epoch: epoch.parse().map_err(|_| bad())?,
        slots: own,
        leaving,
        arriving,
    })
}

/// A server as it stood at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// `INFO`.
    pub info: Info,
    /// All nodes that it knows, when it is part of a Cluster.
    pub nodes: Vec<ClusterNode>,
    /// Slots that come to it as a whole; their owner is another one until they have come.
    pub importing: SlotSet,
    /// The server's clock, milliseconds since 1970.
    pub clock_millis: u64,
}

/// The requests behind a [`View`] of a server that says this of itself; of one that said nothing yet those that every server answers.
pub fn view_requests(info: &Info) -> Vec<&'static [&'static [u8]]> {
    let mut requests: Vec<&'static [&'static [u8]]> = vec![&[b"INFO"], &[b"TIME"]];
    if info.is_cluster() {
        requests.push(&[b"CLUSTER", b"NODES"]);
        requests.extend(imports::request(info));
    }
    requests
}

impl View {
    /// From the replies to [`view_requests`].
    pub fn of(replies: impl IntoIterator<Item = Reply>) -> Result<Self> {
        let mut replies = replies.into_iter();
        let mut next = || replies.next().unwrap_or(Reply::Nil);
        let info = Info::parse(&next().text("INFO")?);
        let time: Vec<i64> = next().list("TIME")?.into_iter().map(|r| r.int("TIME")).collect::<Result<_>>()?;
        let [seconds, micros] = time[..] else {
            return Err(Error::unsupported("TIME of the server is not understood"));
        };
        let nodes = match next() {
            Reply::Nil => Vec::new(),
            reply => cluster_nodes(&reply.text("CLUSTER NODES")?)?,
        };
        let importing = imports::importing(next())?;
        Ok(Self { info, nodes, importing, clock_millis: (seconds * 1000 + micros / 1000) as u64 })
    }

    /// Asks the server.
    pub fn read(connection: &mut Connection) -> Result<Self> {
        let view = Self::of(connection.pipeline(&view_requests(&Info::default()))?)?;
        match view.info.is_cluster() {
            true => Self::of(connection.pipeline(&view_requests(&view.info))?),
            false => Ok(view),
        }
    }

    /// The server's own line in the Cluster.
    pub fn myself(&self) -> Option<&ClusterNode> {
        self.nodes.iter().find(|n| n.myself)
    }

    /// What the server believes to own: its slots in a Cluster, everything as a primary of its own, nothing as a replica.
    pub fn ownership(&self) -> Result<Ownership> {
        let role = self.info.role().to_owned();
        if !self.info.is_cluster() {
            let slots = if role == PRIMARY { SlotSet::all() } else { SlotSet::EMPTY };
            return Ok(Ownership { role, slots, moving: SlotSet::EMPTY, config_epoch: 0 });
        }
        let own =
            self.myself().ok_or_else(|| Error::unsupported("CLUSTER NODES does not name the server itself"))?;
        let slots = if own.primary { own.slots.clone() } else { SlotSet::EMPTY };
        let moving = own.leaving.union(&own.arriving).union(&self.importing);
        Ok(Ownership { role, slots, moving, config_epoch: own.config_epoch })
    }

    /// Slots that are on their way to the server while another one owns them. It takes keys of these from whoever says
    /// `ASKING` before each command, as clients do whom the owner has sent here.
    pub fn arriving(&self) -> SlotSet {
        self.myself().map_or(SlotSet::EMPTY, |own| own.arriving.minus(&own.slots))
    }

    /// Slots of the server that are on their way to another one: it answers `ASK` to whoever names a key that it does not hold.
    pub fn leaving(&self) -> SlotSet {
        self.myself().map_or(SlotSet::EMPTY, |own| own.leaving.intersect(&own.slots))
    }

    /// Why the server cannot serve at present; `None` when it can.
    pub fn unready(&self) -> Option<String> {
        if self.info.text("loading") == "1" {
            return Some("the server is loading its data".to_owned());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_cluster() {
        let text = "aa 127.0.0.1:7001@17001,host-a myself,master - 0 0 3 connected 0-5460 5470 [93->-bb] [77-<-cc]\n\
                    bb :7002@17002,host-b,shard-id=x slave,fail? aa 0 170 3 connected\n";
        let nodes = cluster_nodes(text).unwrap();
        assert!(nodes[0].myself && nodes[0].primary && !nodes[0].failing);
        assert_eq!(
            (nodes[0].slots.to_string(), nodes[0].leaving.to_string(), nodes[0].arriving.to_string()),
            ("0-5460,5470".into(), "93".into(), "77".into())
        );
        assert_eq!((nodes[0].config_epoch, nodes[0].address.to_string()), (3, "127.0.0.1:7001".to_owned()));
        assert!(!nodes[1].primary && nodes[1].failing && nodes[1].follows == "aa");
        assert_eq!(nodes[1].address.to_string(), "host-b:7002");
        for bad in ["aa", "aa nowhere myself,master - 0 0 3 connected", "aa h:1@2 master - 0 0 3 connected 0-16384"]
        {
            assert!(cluster_nodes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_of_info() {
        let info = Info::parse(
            "# Server\r\nredis_version:7.2.4\r\nvalkey_version:8.0.1\r\nrole:slave\r\ndb0:keys=3,expires=1,avg_ttl=0\r\ndb7:keys=4,expires=0\r\nmaster_repl_offset:12\r\nmaster_replid:ab\r\n",
        );
        assert_eq!((info.version(), info.keys(), info.role()), ("valkey 8.0.1".to_owned(), 7, REPLICA));
        assert_eq!(info.position().unwrap(), Position { history: "ab".into(), offset: 12 });
        assert!(info.number("nothing").is_err());
        let dataset = |data: &str| Info::parse(&format!("used_memory:1000\r\n{data}")).dataset();
        assert_eq!((dataset("used_memory_dataset:600"), dataset("")), (600, 0));
        assert_eq!(dataset("used_memory_dataset:18446744073709551000"), 0);
    }
}
