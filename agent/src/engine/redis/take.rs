//! Giving a server what a backup keeps beside its records.
//!
//! Libraries of functions are loaded once all records were read back and before clients are let in: from the primary they
//! reach its replicas. Users are in no stream: each server gets them by itself, when the restore has ended and every user
//! has the rights of before again. The agent's own user is never changed: it would lock the agent out.

use tidemark_common::kept::library_head;
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{
    KEPT_LIBRARIES, KEPT_PROBE, KEPT_USERS, RestoreKept, RestoredKept, SecretBytes,
};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::Redis;
use super::conn::{Address, Connection};
use super::fence::{Fences, persist, replicas_of};
use super::marker::Marker;
use super::resp::{Reply, error_of};
use super::saved::{USER_PREFIX, user_and_rules};
use super::server::View;
use crate::fsutil;

/// The first release with functions.
const FUNCTIONS_SINCE: (u32, u32) = (7, 0);
/// File in the folder of a restore's parts: libraries that it has loaded, by name.
const LOADED: &str = "libraries";
/// A rule that no server takes: whoever may set users hears so.
const NO_RULE: &[u8] = b"+@tidemark-no-such-category";

/// Whether a server knows functions.
pub(super) fn has_functions(view: &View) -> bool {
    view.info.release() >= FUNCTIONS_SINCE
}

impl Redis {
    /// [`crate::engine::Engine::restore_kept`].
    pub(super) fn take_kept(&self, job: JobId, kept: &RestoreKept) -> Result<RestoredKept> {
        match kept.step {
            KEPT_PROBE => self.may_set_users(),
            KEPT_LIBRARIES => self.load_libraries(job, kept),
            KEPT_USERS => self.set_users(&kept.users),
            step => Err(Error::unsupported(format!("step {step} of kept things is newer than this agent"))),
        }
    }

    fn load_libraries(&self, job: JobId, kept: &RestoreKept) -> Result<RestoredKept> {
        if Marker::read(&self.options.dir)?.is_none_or(|m| m.job != job) {
            return Err(Error::conflict("libraries of functions without their restore: it is over"));
        }
        let names: Vec<String> = kept.libraries.iter().map(|code| library_head(code).1).collect();
        let mut done = RestoredKept::default();
        let view = self.view()?;
        let address = &self.options.address;
        if !has_functions(&view) {
            if !names.is_empty() {
                let version = view.info.version();
                let names = names.join("`, `");
                done.warnings
                    .push(format!("server {address} ({version}) knows no functions: `{names}` not loaded"));
            }
            return Ok(done);
        }
        if kept.replace != 0 {
            let _ = allowed(self.ask(|c| c.call(&[b"FUNCTION", b"FLUSH", b"SYNC"]))?, "function|flush")?;
        }
        if names.is_empty() {
            return Ok(done);
        }
        // Before they are there: a restore that is called off takes them away again.
        fsutil::replace(&self.note_of_libraries(), names.join("\n").as_bytes())?;
        for (code, name) in kept.libraries.iter().zip(&names) {
            match self.ask(|c| c.call(&[b"FUNCTION", b"LOAD", b"REPLACE", code]))? {
                // Its code is not for this server; all else may pass, or is for the operator.
                Reply::Error(e) if error_of(&e).kind() == ErrorKind::Request => {
                    done.warnings.push(format!("library `{name}` was not loaded onto server {address}: {e}"));
                }
                reply => {
                    let _ = allowed(reply, "function|load")?;
                    done.libraries += 1;
                }
            }
        }
        Ok(done)
    }

    fn note_of_libraries(&self) -> std::path::PathBuf {
        self.options.dir.join("restore-parts").join(LOADED)
    }

    /// Takes away what [`KEPT_LIBRARIES`] loaded, when the restore is called off.
    pub(super) fn unload_libraries(&self) -> Result<()> {
        let names = match std::fs::read_to_string(self.note_of_libraries()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            names => names.or_kind(ErrorKind::Retry, "note of loaded libraries")?,
        };
        for name in names.lines() {
            // One that was never loaded is none to take away.
            let _ = self.ask(|c| c.call(&[b"FUNCTION", b"DELETE", name.as_bytes()]))?;
        }
        Ok(())
    }

    /// The server and its replicas.
    fn servers(&self) -> Result<Vec<Address>> {
        let mut servers = vec![self.options.address.clone()];
        servers.extend(replicas_of(&self.view()?)?);
        Ok(servers)
    }

    fn may_set_users(&self) -> Result<RestoredKept> {
        let probe = format!("{USER_PREFIX}probe");
        for address in self.servers()? {
            // One that is away may be back by then; else it is told of at the end.
            let Ok(mut connection) = Fences::of(&self.options).connect(&address) else { continue };
            match connection.call(&[b"ACL", b"SETUSER", probe.as_bytes(), NO_RULE])? {
                Reply::Error(e) if e.starts_with("NOPERM") => {
                    return Err(missing_right("acl|setuser").context(format_args!("server {address}")));
                }
                _ => {}
            }
        }
        Ok(RestoredKept::default())
    }

    fn set_users(&self, users: &[SecretBytes]) -> Result<RestoredKept> {
        // Brings a restore that stands to its end: the rules of before are back then.
        if let Some(job) = crate::engine::Engine::restoring(self)? {
            return Err(Error::conflict(format!("restore {job} is under way: its users come when it has ended")));
        }
        let own = self.options.login.user_name().as_bytes();
        let foreign = |user: &&SecretBytes| {
            user_and_rules(&user.0)
                .is_some_and(|(name, _)| name != own && !name.starts_with(USER_PREFIX.as_bytes()))
        };
        let users: Vec<&SecretBytes> = users.iter().filter(foreign).collect();
        let mut done = RestoredKept::default();
        for (n, address) in self.servers()?.into_iter().enumerate() {
            match self.set_users_of(&address, &users, &mut done.warnings) {
                Ok(set) if n == 0 => done.users = set,
                Ok(_) => {}
                // The server itself is asked again; a replica that is away keeps nobody else waiting.
                Err(e) if n == 0 => return Err(e.context(format_args!("users of server {address}"))),
                Err(e) => done.warnings.push(format!("replica {address} has not got the users: {}", e.report())),
            }
        }
        self.drop_connection();
        Ok(done)
    }

    fn set_users_of(&self, address: &Address, users: &[&SecretBytes], warnings: &mut Vec<String>) -> Result<u32> {
        // A replica that was away at the end of the restore is opened later, with what is kept of it.
        if let Some(mut saved) = Fences::of(&self.options).saved(address)? {
            users.iter().for_each(|user| saved.put_rule(&user.0));
            saved.write()?;
        }
        let mut connection = Connection::open(address, &self.options.login)?;
        let mut set = 0;
        for user in users {
            let Some((name, rules)) = user_and_rules(&user.0) else { continue };
            let mut args: Vec<&[u8]> = vec![b"ACL", b"SETUSER", name, b"reset"];
            args.extend(rules);
            match connection.call(&args)? {
                Reply::Error(e) => {
                    // The server names the word that it refuses, which may be a hash.
                    let refused = tidemark_common::scrub::rules(&e);
                    let name = String::from_utf8_lossy(name);
                    warnings.push(format!("user `{name}` was not set on server {address}: {refused}"));
                }
                _ => set += 1,
            }
        }
        if set > 0 && !persist(&mut connection) {
            warnings.push(format!(
                "server {address} has no file of users: those of the backup last until it is started anew"
            ));
        }
        Ok(set)
    }
}

fn missing_right(right: &str) -> Error {
    let told = format!("the agent's user needs the right +{right} (all of them stand in agent.example.toml)");
    Error::new(ErrorKind::Denied, told)
}

fn allowed(reply: Reply, right: &str) -> Result<Reply> {
    match reply {
        Reply::Error(e) if e.starts_with("NOPERM") => Err(missing_right(right)),
        reply => reply.ok(right),
    }
}
