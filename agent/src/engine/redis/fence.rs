//! Keeps clients off a server while its data is replaced, and lets them in again as they were.
//!
//! Every user is narrowed to what replication needs, and every connection of a client is ended; the restore works as a user
//! of its own, with a random password. That holds on the replicas too: they answer readers, and may be promoted.
//!
//! ```text
//! raise   rules of all users kept on disk -> temporary user -> every other user narrowed -> connections ended -> fence noted
//! lower   every user's kept rule -> temporary user dropped -> kept rules dropped
//! ```
//!
//! Every step may be taken again. A crash before the temporary user is there leaves a server that was not changed; from then on
//! the kept rules undo whatever was done.

use std::path::PathBuf;

use tidemark_common::crash;
use tidemark_proto::{Error, ErrorKind, Result};

use super::Options;
use super::conn::{Address, Connection, Login};
use super::imports;
use super::resp::Reply;
use super::saved::{Saved, USER_PREFIX, user_and_rules};
use super::server::View;
use super::take::has_functions;

/// What is left to every user.
const NARROW: [&[u8]; 5] = [b"-@all", b"+psync", b"+replconf", b"+ping", b"+sync"];
/// What is left beside to the agents' user, so that agents beside replicas can describe them. No data shows by it.
const NARROW_AGENT: [&[u8]; 3] = [b"+info", b"+time", b"+cluster|nodes"];
/// What the temporary user may do; a value that is too long for a payload is written by any command that makes data.
const RIGHTS: &str = "~* &* -@all +ping +psync +replconf +info +time +client|setname +client|list +client|kill +cluster|nodes \
                      +acl|list +acl|setuser +acl|save +config|rewrite +flushall +restore +asking +select +@write";
/// The same for libraries of functions, where the server knows them.
const RIGHTS_TO_FUNCTIONS: [&[u8]; 3] = [b"+function|load", b"+function|flush", b"+function|delete"];

/// The fences that this agent keeps.
#[derive(Debug)]
pub(super) struct Fences {
    dir: PathBuf,
    own: Login,
}

impl Fences {
    /// Those of an engine.
    pub(super) fn of(options: &Options) -> Self {
        Self { dir: options.dir.join("restore-fence"), own: options.login.clone() }
    }

    /// All servers of which something is kept.
    pub(super) fn servers(&self) -> Result<Vec<Saved>> {
        Saved::all(&self.dir)
    }

    /// What is kept of one.
    pub(super) fn saved(&self, address: &Address) -> Result<Option<Saved>> {
        Saved::find(&self.dir, address)
    }

    /// How to log in now: as the temporary user where the server is fenced.
    pub(super) fn login(&self, address: &Address) -> Result<Login> {
        Ok(self.saved(address)?.map_or_else(|| self.own.clone(), |saved| saved.login(&self.own)))
    }

    /// Connects, fenced or not.
    pub(super) fn connect(&self, address: &Address) -> Result<Connection> {
        let Some(saved) = self.saved(address)? else { return Connection::open(address, &self.own) };
        match Connection::open(address, &saved.login(&self.own)) {
            // Not there yet, not there any more, or forgotten when the server was started anew.
            Err(e) if e.kind() == ErrorKind::Denied => Connection::open(address, &self.own),
            opened => opened,
        }
    }

    fn own_user(&self) -> &[u8] {
        self.own.user_name().as_bytes()
    }

    /// Fences a server, or makes sure that it is; answers it as it was found. `Denied` names a right that is missing.
    pub(super) fn raise(&self, address: &Address) -> Result<View> {
        self.try_raise(address).map_err(|e| e.context(format_args!("keeping clients off server {address}")))
    }

    fn try_raise(&self, address: &Address) -> Result<View> {
        let mut connection = self.connect(address)?;
        let view = View::read(&mut connection)?;
        if let Some(why) = view.unready() {
            return Err(Error::retry(why));
        }
        let users = list_users(&mut connection)?;
        let is_there = |name: &str| users.iter().any(|line| name_of(line) == name.as_bytes());
        let kept = self.saved(address)?.filter(|saved| saved.up || is_there(&saved.user));
        let mut saved = kept.unwrap_or_else(|| Saved::new(&self.dir, address));
        let foreign = |line: &&Vec<u8>| {
            let name = name_of(line);
            name.starts_with(USER_PREFIX.as_bytes()) && name != saved.user.as_bytes()
        };
        if let Some(line) = users.iter().find(foreign) {
            return Err(Error::conflict(format!(
                "another restore keeps clients off it already: its user is `{}` (drop that user when no restore is under \
                 way, and give the others their rules back)",
                String::from_utf8_lossy(name_of(line))
            )));
        }
        let ours = saved.user.clone();
        let others = || users.iter().filter(|line| name_of(line) != ours.as_bytes());
        // A user of whom nothing is kept was never narrowed: it came with a restart of the server.
        let new: Vec<_> = others().filter(|line| !saved.knows(name_of(line))).cloned().collect();
        saved.rules.extend(new);
        saved.run_id = view.info.text("run_id").to_owned();
        if !is_there(&saved.user) {
            // Tried while nothing has changed: without this right the fence could not be taken down.
            let _ = allowed(connection.call(&[b"ACL", b"DELUSER", saved.user.as_bytes()])?, "acl|deluser")?;
        }
        saved.write()?;
        crash::point("agent.fence-saved");
        self.make_user(&mut connection, &view, &saved)?;
        crash::point("agent.fence-user");
        let mut connection = Connection::open(address, &saved.login(&self.own))?;
        for line in others() {
            self.narrow(&mut connection, &view, name_of(line))?;
        }
        end_clients(&mut connection, &saved.user)?;
        let _ = persist(&mut connection);
        saved.up = true;
        saved.write()?;
        Ok(view)
    }

    fn make_user(&self, connection: &mut Connection, view: &View, saved: &Saved) -> Result<()> {
        let password = saved.password_rule();
        let mut args: Vec<&[u8]> = vec![b"ACL", b"SETUSER", saved.user.as_bytes(), b"reset", b"on"];
        args.push(password.as_bytes());
        args.extend(RIGHTS.split_ascii_whitespace().map(str::as_bytes));
        args.extend(imports::right(&view.info));
        if has_functions(view) {
            args.extend(RIGHTS_TO_FUNCTIONS);
        }
        allowed(connection.call(&args)?, "acl|setuser").map(drop)
    }

    fn narrow(&self, connection: &mut Connection, view: &View, user: &[u8]) -> Result<()> {
        let mut args: Vec<&[u8]> = vec![b"ACL", b"SETUSER", user];
        if view.info.release() >= (7, 0) {
            // Rights of their own, which the others would not take away.
            args.push(b"clearselectors");
        }
        args.extend(NARROW);
        if view.info.has("valkey_version") && view.info.release() >= (9, 0) {
            args.push(b"+cluster|syncslots");
        }
        if user == self.own_user() {
            args.extend(NARROW_AGENT);
            args.extend(imports::right(&view.info));
        }
        connection.call(&args)?.ok("ACL SETUSER").map(drop)
    }

    /// Gives every user of a server its rule back and drops the temporary one. One that is not fenced is no error.
    pub(super) fn lower(&self, address: &Address) -> Result<()> {
        self.try_lower(address).map_err(|e| e.context(format_args!("letting clients into server {address} again")))
    }

    fn try_lower(&self, address: &Address) -> Result<()> {
        let Some(saved) = self.saved(address)? else { return Ok(()) };
        let mut connection = self.connect(address)?;
        let view = View::read(&mut connection)?;
        let restarted = view.info.text("run_id") != saved.run_id;
        let users = list_users(&mut connection)?;
        let fenced = users.iter().any(|line| name_of(line) == saved.user.as_bytes());
        // Without its user a fence was never begun, or was taken down but for the file: unless the server forgot it.
        if fenced || (saved.up && restarted) {
            saved.rules.iter().try_for_each(|line| give_back(&mut connection, &view, line))?;
        }
        crash::point("agent.fence-lowered");
        if fenced || saved.up {
            let mut own = Connection::open(address, &self.own)?;
            let _ = allowed(own.call(&[b"ACL", b"DELUSER", saved.user.as_bytes()])?, "acl|deluser")?;
            let _ = persist(&mut own);
        }
        saved.remove()
    }
}

/// Gives a user the rights of a line of `ACL LIST`. Everything that such a line says is taken away first, and nothing else:
/// `reset` would set the flag `sanitize-payload` too, which older users do not have.
fn give_back(connection: &mut Connection, view: &View, line: &[u8]) -> Result<()> {
    let Some((name, rules)) = user_and_rules(line) else { return Ok(()) };
    let mut args: Vec<&[u8]> =
        vec![b"ACL", b"SETUSER", name, b"resetpass", b"resetkeys", b"resetchannels", b"-@all"];
    if view.info.release() >= (7, 0) {
        args.push(b"clearselectors");
    }
    args.extend(rules);
    connection.call(&args)?.ok("ACL SETUSER").map(drop)
}

fn name_of(line: &[u8]) -> &[u8] {
    user_and_rules(line).map_or(b"", |(name, _)| name)
}

/// A reply, or which right is missing.
fn allowed(reply: Reply, right: &str) -> Result<Reply> {
    match reply {
        Reply::Error(e) if e.starts_with("NOPERM") => Err(Error::new(
            ErrorKind::Denied,
            format!(
                "a restore in place needs the right +{right} for the agent's user (all of them stand in \
                 agent.example.toml)"
            ),
        )),
        reply => reply.ok(right),
    }
}

fn list_users(connection: &mut Connection) -> Result<Vec<Vec<u8>>> {
    let lines = allowed(connection.call(&[b"ACL", b"LIST"])?, "acl|list")?.list("ACL LIST")?;
    lines.into_iter().map(|line| line.bytes("ACL LIST")).collect()
}

/// Ends every connection but those of replication and of `user`.
fn end_clients(connection: &mut Connection, user: &str) -> Result<()> {
    let list = connection.call(&[b"CLIENT", b"LIST"])?.text("CLIENT LIST")?;
    for line in list.lines() {
        let field = |name: &str| line.split(' ').find_map(|f| f.strip_prefix(name)).unwrap_or_default();
        if field("flags=").contains(['S', 'M']) || field("user=") == user {
            continue;
        }
        // One that has left by itself is none to end.
        let _ = connection.call(&[b"CLIENT", b"KILL", b"ID", field("id=").as_bytes()])?;
    }
    Ok(())
}

/// Keeps the users over a restart of the server, where it has a file for them; answers whether it does.
pub(super) fn persist(connection: &mut Connection) -> bool {
    for command in [[&b"ACL"[..], b"SAVE"], [b"CONFIG", b"REWRITE"]] {
        match connection.call(&command).map(|reply| reply.ok("keeping users over a restart")) {
            Ok(Ok(_)) => return true,
            Ok(Err(e)) | Err(e) => tracing::debug!(error = %e.report(), "the server keeps no users over a restart"),
        }
    }
    false
}

/// The replicas that follow a server, as it says. `Retry` while it does not know of one whom that follows.
pub(super) fn replicas_of(view: &View) -> Result<Vec<Address>> {
    if let Some(own) = view.myself() {
        let mut replicas = view.nodes.iter().filter(|n| n.replica && !n.myself);
        if let Some(node) = replicas.clone().find(|n| n.follows == "-") {
            return Err(Error::retry(format!(
                "the Cluster does not know yet whom its replica {} follows, so that clients cannot be kept off it: try again \
                 in a moment, or let the nodes forget it (CLUSTER FORGET)",
                node.address
            )));
        }
        let own_ones = replicas.by_ref().filter(|n| n.follows == own.id);
        return Ok(own_ones.map(|n| n.address.clone()).collect());
    }
    let address = |value: &str| {
        let field = |name: &str| value.split(',').find_map(|f| f.strip_prefix(name));
        // What listens nowhere, as the agents, serves nobody.
        let port = field("port=").filter(|port| *port != "0")?;
        let host = field("ip=")?;
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Some(Address::Tcp(format!("{host}:{port}")))
    };
    let mut found: Vec<_> = view
        .info
        .with_prefix("slave")
        .filter(|(name, _)| name["slave".len()..].parse::<u32>().is_ok())
        .filter_map(|(_, value)| address(value))
        .collect();
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::server::{Info, cluster_nodes};
    use super::*;
    use tidemark_proto::SlotSet;

    fn view(info: &str, nodes: &str) -> View {
        View {
            info: Info::parse(info),
            nodes: cluster_nodes(nodes).unwrap(),
            importing: SlotSet::EMPTY,
            clock_millis: 0,
        }
    }

    #[test]
    fn replicas_that_must_be_fenced() {
        let alone = "slave0:ip=192.0.2.1,port=6379,state=online,offset=1\r\nslave1:ip=::1,port=7000,state=online\r\n\
                     slave2:ip=192.0.2.3,port=0,state=online\r\nslave_priority:100\r\n";
        let told = |addresses: Vec<Address>| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(told(replicas_of(&view(alone, "")).unwrap()), ["192.0.2.1:6379", "[::1]:7000"]);
        let known = "aa 192.0.2.1:1@2 myself,master - 0 0 3 connected 0-9\nbb 192.0.2.2:1@2 slave aa 0 0 3 connected\n\
                     cc 192.0.2.3:1@2 slave,fail dd 0 0 3 connected\ndd 192.0.2.4:1@2 master - 0 0 3 connected\n";
        assert_eq!(told(replicas_of(&view("", known)).unwrap()), ["192.0.2.2:1"]);
        let unknown = format!("{known}ee 192.0.2.5:1@2 slave,fail - 0 0 3 connected\n");
        assert!(replicas_of(&view("", &unknown)).unwrap_err().message().contains("192.0.2.5:1"));
    }
}
