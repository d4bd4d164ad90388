//! The shard around a server: where its primary is, and which servers hold the same stream.
//!
//! A base may come from a replica, so that the primary need not fork. The cut is always the primary's: the agent beside the
//! replica pauses and reads there. Offsets and bytes of the stream are the same on all servers of a shard, so what was
//! read there is a position in the replica's stream as well.

use std::sync::{Arc, Mutex};

use tidemark_proto::wire::control::Description;
use tidemark_proto::{Error, Result};

use super::Redis;
use super::conn::{Address, CLIENT_NAME, Connection};
use super::server::{Info, PRIMARY, View};

/// Most servers of a shard that are remembered.
const MOST_SERVERS: usize = 64;

/// The other servers of a shard, as the own one told last.
#[derive(Debug, Default, Clone)]
pub(super) struct Servers(Arc<Mutex<Vec<Address>>>);

impl Servers {
    /// Their addresses.
    pub(super) fn list(&self) -> Vec<Address> {
        self.0.lock().expect("servers").clone()
    }
}

/// What is known of the shard.
#[derive(Debug, Default)]
pub(super) struct Shard {
    pub(super) servers: Servers,
    /// Connection to its primary, where that is not the own server.
    primary: Mutex<Option<Connection>>,
}

impl Shard {
    /// Remembers the servers of the shard; a server that names none (it may have just lost them) changes nothing.
    pub(super) fn note(&self, view: &View) {
        let mut found = view.shard();
        found.truncate(MOST_SERVERS);
        if !found.is_empty() {
            *self.servers.0.lock().expect("servers") = found;
        }
    }
}

/// `host:port`, an IPv6 address in brackets.
fn tcp(host: &str, port: &str) -> Option<Address> {
    let known = !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0);
    known.then(|| match host.contains(':') && !host.starts_with('[') {
        true => Address::Tcp(format!("[{host}]:{port}")),
        false => Address::Tcp(format!("{host}:{port}")),
    })
}

impl Info {
    /// The primary that a replica follows.
    pub(super) fn primary(&self) -> Option<Address> {
        tcp(self.text("master_host"), self.text("master_port"))
    }

    /// Replicas that follow the server (`slave0:ip=…,port=…`). Other readers of its stream have port 0.
    fn replicas(&self) -> impl Iterator<Item = Address> {
        self.with_prefix("slave").filter_map(|(_, value)| {
            let field = |name: &str| value.split(',').find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
            tcp(field("ip")?, field("port")?)
        })
    }
}

impl View {
    /// The other servers of the shard that this one knows.
    fn shard(&self) -> Vec<Address> {
        let mut found: Vec<Address> = self.info.primary().into_iter().chain(self.info.replicas()).collect();
        if let Some(own) = self.myself() {
            let leader = if own.primary { &own.id } else { &own.follows };
            let in_shard = self.nodes.iter().filter(|n| !n.myself && (n.id == *leader || n.follows == *leader));
            found.extend(in_shard.map(|n| n.address.clone()));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Why nothing may be built on this replica at present; `None` when it is in step with its primary.
    pub(super) fn out_of_step(&self) -> Option<String> {
        let link = self.info.text("master_link_status");
        match () {
            () if self.unready().is_some() => self.unready(),
            () if self.info.text("master_sync_in_progress") == "1" => {
                Some("the replica is being filled by its primary".to_owned())
            }
            () if link != "up" => Some(format!("the replica's link to its primary is {link}")),
            () => None,
        }
    }
}

impl Redis {
    /// Where the primary of the shard is; `None` when it is the own server.
    fn primary(&self) -> Result<Option<Address>> {
        match self.ask(|c| Ok(Info::parse(&c.call(&[b"INFO", b"replication"])?.text("INFO")?))) {
            Ok(info) if info.role() == PRIMARY => Ok(None),
            Ok(info) => {
                let primary = info.primary();
                primary
                    .map(Some)
                    .ok_or_else(|| Error::conflict("the replica does not say which primary it follows"))
            }
            // The own server is away: one of the others may have been promoted.
            Err(away) => {
                let leads = |address: &Address| {
                    let view = self.at(address).and_then(|mut c| View::read(&mut c));
                    view.is_ok_and(|v| v.info.role() == PRIMARY)
                };
                self.shard.servers.list().into_iter().find(leads).map(Some).ok_or(away)
            }
        }
    }

    fn at(&self, address: &Address) -> Result<Connection> {
        Connection::open(address, &self.options.login)
    }

    /// Runs `work` on a connection to the primary of the shard; one that failed is not kept.
    pub(super) fn ask_primary<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        let Some(address) = self.primary()? else { return self.ask(work) };
        let mut kept = self.shard.primary.lock().expect("connection");
        let alive = kept.take().filter(|c| *c.address() == address).and_then(Connection::if_alive);
        let mut connection = match alive {
            Some(connection) => connection,
            None => self.at(&address).map_err(|e| e.context("the primary of the shard"))?,
        };
        let done = work(&mut connection)?;
        *kept = Some(connection);
        Ok(done)
    }

    /// [`crate::engine::Engine::describe_source`].
    pub(super) fn source(&self) -> Result<Description> {
        use crate::engine::Engine;
        let own = match self.view() {
            Ok(view) if view.info.role() == PRIMARY => return self.describe(),
            Ok(view) => Some(view),
            Err(e) if !self.has_base() => return Err(e),
            Err(_) => None,
        };
        if self.restoring()?.is_some() {
            return Err(Error::conflict("a restore is under way here"));
        }
        if let Some(why) = own.as_ref().and_then(View::out_of_step) {
            return Err(Error::retry(why));
        }
        let primary = self.ask_primary(|connection| {
            // A server that is being restored leaves the agents' user the right to look, and this one not.
            let named = connection.call(&[b"CLIENT", b"SETNAME", CLIENT_NAME.as_bytes()])?.ok("CLIENT SETNAME");
            let _ = named.map_err(|e| e.context("the primary does not take the agent: is it being restored?"))?;
            View::read(connection)
        })?;
        if primary.info.role() != PRIMARY {
            return Err(Error::retry("what the replica follows is no primary"));
        }
        if let Some(own) = &own
            && own.info.position()?.history != primary.info.position()?.history
        {
            return Err(Error::retry("the replica has another history than its primary"));
        }
        let mut described = self.described(&primary, "available")?;
        if let Some(own) = &own {
            self.shard.note(own);
            described.engine_version = own.info.version();
        }
        if let Some(why) = primary.unready() {
            return Err(Error::retry(why));
        }
        Ok(described)
    }

    /// Whether the base of some job stands. One that is just being taken does not, and is not waited for.
    fn has_base(&self) -> bool {
        let jobs: Vec<_> = self.jobs.lock().expect("jobs").values().cloned().collect();
        jobs.iter().any(|job| job.try_lock().is_ok_and(|job| job.has_base()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::server::cluster_nodes;
    use super::*;
    use tidemark_proto::SlotSet;

    fn texts(view: &View) -> Vec<String> {
        view.shard().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_of_a_shard() {
        let info = Info::parse(
            "role:master\r\nslave0:ip=10.0.0.2,port=6380,state=online,offset=1,lag=0\r\n\
             slave1:ip=10.0.0.9,port=0,state=online,offset=0,lag=1\r\nslave_priority:100\r\n",
        );
        let view = View { info, nodes: Vec::new(), importing: SlotSet::EMPTY, clock_millis: 0 };
        assert_eq!(texts(&view), ["10.0.0.2:6380"]);
        let info = Info::parse("role:slave\r\nmaster_host:::1\r\nmaster_port:6379\r\nmaster_link_status:up\r\n");
        let view = View { info, nodes: Vec::new(), importing: SlotSet::EMPTY, clock_millis: 0 };
        assert_eq!((texts(&view), view.out_of_step()), (vec!["[::1]:6379".to_owned()], None));
    }

    #[test]
    fn servers_of_a_shard_in_a_cluster() {
        let nodes = "aa h:1@2 master - 0 0 1 connected 0-9\nbb h:3@4 myself,slave aa 0 0 1 connected\n\
                     cc h:5@6 slave aa 0 0 1 connected\ndd h:7@8 master - 0 0 1 connected 10-16383\n";
        let info = Info::parse("role:slave\r\nmaster_host:h\r\nmaster_port:1\r\nmaster_link_status:down\r\n");
        let view = View { info, nodes: cluster_nodes(nodes).unwrap(), importing: SlotSet::EMPTY, clock_millis: 0 };
        assert_eq!(texts(&view), ["h:1", "h:5"]);
        assert!(view.out_of_step().is_some_and(|why| why.contains("down")));
    }
}
