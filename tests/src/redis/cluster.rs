//! Clusters of primaries.

use std::net::TcpListener;
use std::process::Command;

use tidemark_proto::slot::even_share;

use super::{Client, Flavor, Server, eventually};

/// A node's bus listens this far above its port.
const BUS: u16 = 10_000;
/// How often ports that looked free are tried anew when somebody else took one.
const TRIES: usize = 5;

/// Nodes on loopback ports, all of them primaries, with all slots among them.
pub struct Cluster {
    /// The nodes, with the port of each.
    pub nodes: Vec<(u16, Server)>,
}

impl Cluster {
    /// Starts `count` primaries and makes a Cluster of them, with the servers' own tool where that does it (from 3 on).
    pub fn start(flavor: Flavor, count: usize, options: &[&str]) -> Self {
        let nodes: Vec<_> = (0..count).map(|_| node(flavor, options)).collect();
        if count < 3 {
            return Self::by_hand(nodes);
        }
        let cli = match flavor {
            Flavor::Redis => "redis-cli",
            Flavor::Valkey => "valkey-cli",
        };
        let places = nodes.iter().map(|(port, _)| format!("127.0.0.1:{port}"));
        let made = Command::new(cli).args(["--cluster", "create"]).args(places).arg("--cluster-yes").output();
        let made = made.unwrap_or_else(|e| panic!("{cli}: {e}"));
        assert!(made.status.success(), "no Cluster: {}", String::from_utf8_lossy(&made.stdout));
        Self { nodes }.up(count)
    }

    /// Makes a Cluster of nodes that know nothing yet; where the servers' own tool refuses so few, or cannot reach them.
    pub fn by_hand(nodes: Vec<(u16, Server)>) -> Self {
        let count = nodes.len();
        for (n, (_, server)) in (0..).zip(&nodes) {
            let mut client = server.client();
            let slots: Vec<String> = even_share(n, count as u16).iter().map(|slot| slot.to_string()).collect();
            let _ = client.run(&format!("CLUSTER ADDSLOTS {}", slots.join(" ")));
            let _ = client.run(&format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1));
            let _ = client.run(&format!("CLUSTER MEET 127.0.0.1 {}", nodes[0].0));
        }
        Self { nodes }.up(count)
    }

    /// Waits until all nodes know each other.
    fn up(self, count: usize) -> Self {
        for (_, server) in &self.nodes {
            let mut client = server.client();
            eventually("the Cluster to be up", || {
                let info = client.run("CLUSTER INFO").text();
                let up = info.contains("cluster_state:ok") && info.contains(&format!("cluster_size:{count}"));
                up.then_some(())
            });
        }
        self
    }

    /// Adds a primary without slots, the last one of the nodes then, and waits until all know each other.
    pub fn add_primary(&mut self) {
        let (port, server) = node(self.nodes[0].1.flavor, &[]);
        let _ = server.client().run(&format!("CLUSTER MEET 127.0.0.1 {}", self.nodes[0].0));
        self.nodes.push((port, server));
        for (_, server) in &self.nodes {
            let mut client = server.client();
            eventually("the nodes to know the new one", || {
                let nodes = client.run("CLUSTER NODES").text();
                let known = nodes.lines().count() == self.nodes.len() && !nodes.contains("handshake");
                (known && client.run("CLUSTER INFO").text().contains("cluster_state:ok")).then_some(())
            });
        }
    }

    /// Adds a replica of the node of this number, the last one of the nodes then, and waits until it follows.
    pub fn add_replica(&mut self, of: usize, options: &[&str]) {
        self.follow(of, node(self.nodes[of].1.flavor, options));
    }

    /// As [`Self::add_replica`], of a node that knows nothing yet.
    pub fn follow(&mut self, of: usize, (port, server): (u16, Server)) {
        let (mut client, mut primary) = (server.client(), self.nodes[of].1.client());
        let _ = client.run(&format!("CLUSTER MEET 127.0.0.1 {}", self.nodes[of].0));
        let id = primary.run("CLUSTER MYID").text();
        eventually("the replica to know its primary", || {
            let known = client.ask(&["CLUSTER", "REPLICATE", &id]).ok()?;
            matches!(known, super::Reply::Status(_)).then_some(())
        });
        eventually("the replica to follow", || {
            client.run("INFO replication").text().contains("master_link_status:up").then_some(())
        });
        self.nodes.push((port, server));
    }

    /// A connection to each node, in their order.
    pub fn clients(&self) -> Vec<Client> {
        self.nodes.iter().map(|(_, server)| server.client()).collect()
    }

    /// The ports of the nodes.
    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|(port, _)| *port).collect()
    }

    /// The node that owns the slot of `key`.
    pub fn owner(&self, key: &[u8]) -> &Server {
        let mut client = self.nodes[0].1.client();
        let slot = client.call(&[&b"CLUSTER"[..], b"KEYSLOT", key]).integer();
        for range in client.run("CLUSTER SLOTS").array() {
            let range = range.array();
            if (range[0].integer()..=range[1].integer()).contains(&slot) {
                let named = range[2].clone().array();
                let (port, id) = (named[1].clone().integer(), named[2].clone().text());
                // From 7.2 on the port that is told depends on how the server was asked.
                let of_port = self.nodes.iter().find(|(p, _)| i64::from(*p) == port);
                let of_id = || self.nodes.iter().find(|(_, s)| s.client().run("CLUSTER MYID").text() == id);
                return &of_port.or_else(of_id).expect("a node of ours").1;
            }
        }
        panic!("nobody owns slot {slot}")
    }
}

/// Starts a node.
fn node(flavor: Flavor, options: &[&str]) -> (u16, Server) {
    let mut all = vec!["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
    all.extend_from_slice(options);
    listening(flavor, &all)
}

/// Starts a server that listens on a loopback port too. Between the look for a free port and its use somebody may take it:
/// then another one is tried.
pub fn listening(flavor: Flavor, options: &[&str]) -> (u16, Server) {
    listening_by(flavor, "--port", options)
}

/// As [`listening`], by this option (`--tls-port`).
pub fn listening_by(flavor: Flavor, option: &str, options: &[&str]) -> (u16, Server) {
    for _ in 0..TRIES {
        let port = free_port();
        let text = port.to_string();
        let mut all = vec![option, &text, "--bind", "127.0.0.1"];
        all.extend_from_slice(options);
        let started = std::panic::catch_unwind(|| Server::start(flavor, &all));
        if let Ok(server) = started {
            return (port, server);
        }
    }
    panic!("no free port in {TRIES} tries")
}

/// A port that is free, as is the one of its bus.
fn free_port() -> u16 {
    eventually("a free port", || {
        let listener = TcpListener::bind(("127.0.0.1", 0)).ok()?;
        let port = listener.local_addr().ok()?.port();
        let bus = port.checked_add(BUS)?;
        TcpListener::bind(("127.0.0.1", bus)).ok().map(|_| port)
    })
}
