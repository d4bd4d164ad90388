//! Whether a server can be backed up as it is: tried without changing anything.

use std::fmt::Write as _;

use tidemark_proto::{Error, ErrorKind, Result};

use super::conn::Connection;
use super::resp::Reply;
use super::scratch;
use super::server::{PRIMARY, View};
use super::settings::Settings;
use super::{Options, free_space, through_file, tuned};

/// What the agent's user must be allowed, as it is done.
const NEEDED: [&[&[u8]]; 9] = [
    &[b"PING"],
    &[b"INFO"],
    &[b"TIME"],
    &[b"CLIENT", b"SETNAME", b"a"],
    &[b"CLIENT", b"PAUSE", b"1", b"WRITE"],
    &[b"CLIENT", b"UNPAUSE"],
    &[b"CLUSTER", b"NODES"],
    &[b"REPLCONF", b"ACK", b"0"],
    &[b"PSYNC", b"?", b"-1"],
];

/// What is kept beside the records, and what the agent's user must be allowed for it. A backup is one without these too.
const WANTED: [(&str, &[&[u8]]); 2] = [("users", &[b"ACL", b"LIST"]), ("settings", &[b"CONFIG", b"GET", b"*"])];
/// What the log needs beside it.
const LOG_NEEDS: &[&[u8]] = &[b"COMMAND"];

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// What is there, line by line.
    pub told: Vec<String>,
    /// What must be changed before a backup can be taken.
    pub wrong: Vec<String>,
}

impl Findings {
    /// As text; an error when something is wrong.
    pub fn judge(self) -> Result<String> {
        let mut text = self.told.join("\n");
        if self.wrong.is_empty() {
            return Ok(text);
        }
        let _ =
            write!(text, "\n{}", self.wrong.iter().map(|w| format!("WRONG: {w}")).collect::<Vec<_>>().join("\n"));
        Err(Error::config(text))
    }
}

/// Looks at the server and at this machine.
pub fn check(options: &Options) -> Result<Findings> {
    let mut connection = Connection::open(&options.address, &options.login)?;
    let mut found = Findings::default();
    if let Some(settings) = tuned::left(&options.dir)? {
        found.told.push(format!("changed for a base and not back yet, which the agent sees to: {settings}"));
    }
    rights(&mut connection, options, &mut found)?;
    // Without these rights there is nothing else to find out.
    if found.wrong.is_empty() {
        let view = View::read(&mut connection)?;
        server(&view, options, &mut found)?;
        found.told.extend(buffer_limit(&mut connection)?);
        found.told.extend(tuning(&mut connection, options)?);
        if options.base_through_file {
            found.wrong.extend(through_file::trouble(&mut connection)?.map(str::to_owned));
        }
        found.told.extend(stand_in(&view, options));
    }
    match scratch::find(&options.scratch_server) {
        Some(program) => found.told.push(format!("scratch server: {program}")),
        None => found.wrong.push(scratch::not_there(&options.scratch_server).message().to_owned()),
    }
    Ok(found)
}

/// What is changed while the server forks for a base; `None` where nothing is to be, or nobody may know.
fn tuning(connection: &mut Connection, options: &Options) -> Result<Option<String>> {
    let wanted = tuned::wanted(connection, options)?.join(", ");
    let user = options.login.user_name();
    if wanted.is_empty() {
        return Ok(None);
    }
    let told = match may(connection, user, &tuned::CHANGE, &mut Findings::default())? {
        None => return Ok(None),
        Some(true) => format!("while the server forks for a base, and no longer, it has: {wanted}"),
        Some(false) => format!(
            "bases would take less time if the server had, while it forks: {wanted} (ACL SETUSER {user} +config|set lets the agent \
             see to that)"
        ),
    };
    Ok(Some(told))
}

/// How much a server holds back for a reader of its stream before it ends the link; `None` where that may not be asked.
fn buffer_limit(connection: &mut Connection) -> Result<Option<String>> {
    const LIMITS: &str = "client-output-buffer-limit";
    let settings = Settings::read(connection, &[LIMITS])?;
    let Some(limits) = settings.as_ref().and_then(|settings| settings.get(LIMITS)) else { return Ok(None) };
    let words: Vec<&str> = limits.split(' ').collect();
    let of_replicas = words.windows(4).find(|w| matches!(w[0], "slave" | "replica"));
    Ok(of_replicas.map(|w| {
        format!(
            "what is written while a base is sent may take {} bytes, and no more than {} for {} s, before the server ends \
             the link (client-output-buffer-limit, 0: no limit)",
            w[1], w[2], w[3]
        )
    }))
}

/// Whether this replica can stand in for its primary: the agent cuts there.
fn stand_in(view: &View, options: &Options) -> Option<String> {
    if view.info.role() == PRIMARY {
        return None;
    }
    let primary = view.info.primary()?;
    let asked = Connection::open(&primary, &options.login).and_then(|mut c| View::read(&mut c));
    Some(match (asked, view.out_of_step()) {
        (Ok(_), None) => format!("stands in for its primary {primary} in backups"),
        (Ok(_), Some(why)) => format!("does not stand in for its primary {primary} at present: {why}"),
        (Err(e), _) => format!("cannot stand in for its primary {primary}, where the cut is taken: {}", e.report()),
    })
}

fn server(view: &View, options: &Options, found: &mut Findings) -> Result<()> {
    let (info, role) = (&view.info, view.info.role());
    let kind = if info.is_cluster() { "of a Cluster" } else { "of its own" };
    found.told.push(format!("server: {}, {role} {kind}, {} keys", info.version(), info.keys()));
    if info.is_cluster() {
        found.told.push(format!("slots: {}", view.ownership()?.slots));
    }
    let replicas = info.text("connected_slaves");
    let backlog = info.text("repl_backlog_size");
    found.told.push(format!("replicas: {replicas}; backlog: {backlog} bytes"));
    if role == PRIMARY && info.has("min_slaves_good_slaves") && !options.allow_min_replicas {
        found.wrong.push(
            "min-replicas-to-write is set, and the agent would be counted: set engine.allow_min_replicas = true to go on \
             all the same"
                .to_owned(),
        );
    }
    let (free, used) = (free_space(&options.dir)?, info.number("used_memory").unwrap_or(0));
    let told = format!("room for the base in {}: {free} bytes, the server uses {used}", options.dir.display());
    if free < used {
        found.wrong.push(told)
    } else {
        found.told.push(told)
    }
    Ok(())
}

/// Asks the server what the user may do; servers before 7.0 cannot tell.
fn rights(connection: &mut Connection, options: &Options, found: &mut Findings) -> Result<()> {
    let user = options.login.user_name();
    let mut missing = Vec::new();
    for command in NEEDED {
        match may(connection, user, command, found)? {
            None => return Ok(()),
            Some(true) => {}
            Some(false) => missing.push(format!("+{}", name_of(command))),
        }
    }
    for (what, command) in WANTED {
        match may(connection, user, command, found)? {
            Some(false) => found.told.push(format!(
                "backups will not keep the {what} of this server: ACL SETUSER {user} +{}",
                name_of(command)
            )),
            _ => found.told.push(format!("backups keep the {what} of this server")),
        }
    }
    if may(connection, user, LOG_NEEDS, found)? == Some(false) {
        let right = name_of(LOG_NEEDS);
        found
            .told
            .push(format!("no log can be kept of this server (`tidemark pitr`): ACL SETUSER {user} +{right}"));
    }
    match missing.is_empty() {
        true => found.told.push(format!("rights of user {user}: all that a backup needs")),
        false => found.wrong.push(format!("ACL SETUSER {user} {}", missing.join(" "))),
    }
    Ok(())
}

/// Whether the user may do this; `None` where the server does not tell.
fn may(connection: &mut Connection, user: &str, command: &[&[u8]], found: &mut Findings) -> Result<Option<bool>> {
    let mut ask: Vec<&[u8]> = vec![b"ACL", b"DRYRUN", user.as_bytes()];
    ask.extend(command);
    Ok(match connection.call(&ask)? {
        Reply::Status(ok) if ok == "OK" => Some(true),
        Reply::Error(e) if e.starts_with("NOPERM") => {
            found.told.push("rights: cannot be tried without +acl|dryrun".to_owned());
            None
        }
        Reply::Error(e) if e.contains("unknown") || e.contains("Unknown") => {
            found.told.push("rights: this server cannot be asked (7.0 and later can)".to_owned());
            None
        }
        Reply::Error(e) if e.starts_with("NOAUTH") => {
            return Err(Error::new(
                ErrorKind::Denied,
                "the server wants a password: name it in engine.password_file or engine.password_env",
            ));
        }
        // It says in words why not.
        _ => Some(false),
    })
}

/// A command as a rule names it.
fn name_of(command: &[&[u8]]) -> String {
    String::from_utf8_lossy(&command[..words(command)].join(&b'|')).to_lowercase()
}

/// How many words of a command name it in a rule.
fn words(command: &[&[u8]]) -> usize {
    if matches!(command[0], b"CLIENT" | b"CLUSTER" | b"ACL" | b"CONFIG") { 2 } else { 1 }
}
