//! The `[engine]` section of a Redis or Valkey server.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use crate::engine::redis::MAX_PAYLOAD;
use crate::engine::redis::conn::{Address, Login};

/// Longest password file, in bytes.
const MAX_PASSWORD: u64 = 64 << 10;
/// Permission bits of others than owner and group.
const OTHERS: u32 = 0o007;

/// A server of Redis or Valkey. Whether it is alone, has replicas or is part of a Cluster is found out. Passwords are
/// named by where they are, never written here.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// `host:port`, or `unix:/path/of/the/socket`.
    pub address: String,
    /// User of the server; empty for `default`.
    #[serde(default)]
    pub user: String,
    /// File with the password.
    #[serde(default)]
    pub password_file: PathBuf,
    /// Environment variable with the password, where there is no file.
    #[serde(default)]
    pub password_env: String,
    /// TLS to the server.
    #[serde(default)]
    pub tls: Option<ServerTls>,
    /// Folder for bases and logs of running backups; empty: in the state folder.
    #[serde(default)]
    pub dir: PathBuf,
    /// Program of the scratch server; empty: `redis-server` or `valkey-server`, whichever the source is.
    #[serde(default)]
    pub scratch_server: String,
    /// Take bases also from a server that counts its replicas before it accepts writes.
    #[serde(default)]
    pub allow_min_replicas: bool,
    /// Let bases go through the server's own RDB file: it writes that anew, and begins at once instead of waiting
    /// `repl-diskless-sync-delay` for further replicas.
    #[serde(default)]
    pub base_through_file: bool,
    /// Let the server begin with a base at once, where the user has the right `+config|set`: `repl-diskless-sync-delay` is 0 for the
    /// moment in which it forks.
    #[serde(default = "yes")]
    pub base_at_once: bool,
    /// Let the server write bases without compressing them itself, where the user has the right `+config|set`: `rdbcompression` is `no` for
    /// the moment in which it forks.
    #[serde(default = "yes")]
    pub base_uncompressed: bool,
    /// Values over this many bytes are restored by commands, piece by piece, and not as one payload.
    #[serde(default = "native_over_bytes")]
    pub native_over_bytes: u64,
}

fn yes() -> bool {
    true
}

fn native_over_bytes() -> u64 {
    MAX_PAYLOAD as u64
}

/// TLS to a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// Authorities of the server's certificate.
    pub ca: PathBuf,
    /// The agent's certificate, where the server asks for one.
    #[serde(default)]
    pub cert: PathBuf,
    /// Its key.
    #[serde(default)]
    pub key: PathBuf,
}

impl RedisConfig {
    /// Checks what the types cannot say.
    pub fn check(&self) -> Result<()> {
        let _: Address = self.address.parse().map_err(|e: Error| e.context("engine.address"))?;
        if !self.password_file.as_os_str().is_empty() && !self.password_env.is_empty() {
            return Err(Error::config("engine: name either password_file or password_env"));
        }
        if self.native_over_bytes > MAX_PAYLOAD as u64 {
            return Err(Error::config(format!(
                "engine.native_over_bytes: at most {MAX_PAYLOAD}, as servers take no longer payloads"
            )));
        }
        Ok(())
    }

    /// Reads password and certificates.
    pub fn login(&self) -> Result<Login> {
        let tls = match &self.tls {
            None => None,
            Some(tls) => {
                let own = (!tls.cert.as_os_str().is_empty()).then_some((tls.cert.as_path(), tls.key.as_path()));
                Some(tidemark_common::tls::store_client(&tls.ca, own).map_err(|e| e.context("engine.tls"))?)
            }
        };
        Ok(Login { user: self.user.clone(), password: self.password()?, tls })
    }

    fn password(&self) -> Result<String> {
        if !self.password_file.as_os_str().is_empty() {
            return read_password(&self.password_file).map_err(|e| e.context("engine.password_file"));
        }
        match self.password_env.as_str() {
            "" => Ok(String::new()),
            name => std::env::var(name)
                .map_err(|_| Error::config(format!("engine.password_env: the environment has no {name}"))),
        }
    }
}

fn read_password(path: &Path) -> Result<String> {
    let at = path.display();
    let metadata = std::fs::metadata(path).or_kind(ErrorKind::Config, format!("{at}: cannot be read"))?;
    if metadata.len() > MAX_PASSWORD {
        return Err(Error::config(format!("{at}: is too long for a password")));
    }
    if metadata.permissions().mode() & OTHERS != 0 {
        return Err(Error::config(format!("{at}: everybody on this machine can read it: chmod 600 it")));
    }
    // The text is left out of every error.
    let text = std::fs::read_to_string(path).map_err(|_| Error::config(format!("{at}: is no text")))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
