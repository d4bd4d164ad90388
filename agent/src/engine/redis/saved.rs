//! What is kept of a server while clients are fenced off: its users' rules as they were, and the login of the restore.
//!
//! The file holds password hashes and a password: its folder and itself are readable by their owner alone, and nothing of it
//! is shown, logged or sent anywhere but to that server.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub(super) use tidemark_common::kept::user_and_rules;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::conn::{Address, Login};

/// Beginning of the names of temporary users.
pub(super) const USER_PREFIX: &str = "tidemark-restore-";
/// First line of a file.
const HEAD: &[u8] = b"tidemark-fence 1";

/// The users of one server before it was fenced.
pub(super) struct Saved {
    path: PathBuf,
    /// The server.
    pub(super) address: Address,
    /// Which life of the server's process was fenced last; it has another one after a restart.
    pub(super) run_id: String,
    /// The temporary user, and its password.
    pub(super) user: String,
    password: String,
    /// Whether the fence stood whole once: from then on these rules count, whatever the server says of its users.
    pub(super) up: bool,
    /// The lines of `ACL LIST`, in order.
    pub(super) rules: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved").field("address", &self.address).field("up", &self.up).finish_non_exhaustive()
    }
}

fn path_of(dir: &Path, address: &Address) -> PathBuf {
    dir.join(blake3::hash(address.to_string().as_bytes()).to_hex().as_str())
}

impl Saved {
    /// Nothing yet, with a temporary user of its own; [`Saved::write`] keeps it.
    pub(super) fn new(dir: &Path, address: &Address) -> Self {
        let random = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        let (name, secret): ([u8; 32], [u8; 32]) = (rand::random(), rand::random());
        Self {
            path: path_of(dir, address),
            address: address.clone(),
            run_id: String::new(),
            user: format!("{USER_PREFIX}{}", &random(&name)[..16]),
            password: random(&secret),
            up: false,
            rules: Vec::new(),
        }
    }

    /// What is kept of the server at `address`.
    pub(super) fn find(dir: &Path, address: &Address) -> Result<Option<Self>> {
        Self::read(&path_of(dir, address))
    }

    /// All that is kept.
    pub(super) fn all(dir: &Path) -> Result<Vec<Self>> {
        let entries = match std::fs::read_dir(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.or_kind(ErrorKind::Retry, "folder of the fence")?,
        };
        // One that was being written when the agent died has an ending.
        let whole = entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_none());
        whole.filter_map(|path| Self::read(&path).transpose()).collect()
    }

    fn read(path: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.or_kind(ErrorKind::Retry, "the users of a fenced server")?,
        };
        let damaged = || Error::damaged(format!("{}: the saved users of a fenced server", path.display()));
        let mut lines = bytes.split(|b| *b == b'\n');
        let mut next = || lines.next().ok_or_else(damaged);
        if next()? != HEAD {
            return Err(damaged());
        }
        let mut text = || Ok(String::from_utf8_lossy(next()?).into_owned());
        let (address, run_id, user, password, up) = (text()?, text()?, text()?, text()?, text()? == "up");
        let rules = lines.filter(|l| !l.is_empty()).map(<[u8]>::to_vec).collect();
        let address = address.parse().map_err(|_| damaged())?;
        Ok(Some(Self { path: path.to_owned(), address, run_id, user, password, up, rules }))
    }

    /// Keeps it, durably.
    pub(super) fn write(&self) -> Result<()> {
        let dir = self.path.parent().ok_or_else(|| Error::bug("a file without a folder"))?;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.or_kind(ErrorKind::Full, format_args!("{}", dir.display()))?;
        let up = if self.up { "up" } else { "" };
        let address = self.address.to_string();
        let head = [&address, &self.run_id, &self.user, &self.password, up].map(str::as_bytes);
        let lines: Vec<&[u8]> =
            [HEAD].into_iter().chain(head).chain(self.rules.iter().map(Vec::as_slice)).collect();
        let beside = self.path.with_extension("new");
        let write = || {
            let mut file =
                std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
            std::io::Write::write_all(&mut file, &lines.join(&b'\n'))?;
            file.sync_all()?;
            std::fs::rename(&beside, &self.path)?;
            std::fs::File::open(dir)?.sync_all()
        };
        write().or_kind(ErrorKind::Full, format_args!("writing {}", self.path.display()))
    }

    /// Keeps nothing any more.
    pub(super) fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).or_kind(ErrorKind::Retry, "the saved users of a fenced server")
    }

    /// The rule that gives the temporary user its password.
    pub(super) fn password_rule(&self) -> String {
        format!(">{}", self.password)
    }

    /// How to log in as the temporary user where the agent logs in like `own`.
    pub(super) fn login(&self, own: &Login) -> Login {
        Login { user: self.user.clone(), password: self.password.clone(), tls: own.tls.clone() }
    }

    /// Puts a line of `ACL LIST` in place of the one of the same user.
    pub(super) fn put_rule(&mut self, line: &[u8]) {
        let Some((name, _)) = user_and_rules(line) else { return };
        let same = |kept: &&mut Vec<u8>| user_and_rules(kept).is_some_and(|(other, _)| other == name);
        match self.rules.iter_mut().find(same) {
            Some(kept) => *kept = line.to_vec(),
            None => self.rules.push(line.to_vec()),
        }
    }

    /// Whether a rule of this user is kept.
    pub(super) fn knows(&self, user: &[u8]) -> bool {
        self.rules.iter().any(|line| user_and_rules(line).is_some_and(|(name, _)| name == user))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_shown_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, address) = (dir.path().join("fence"), "127.0.0.1:7001".parse().unwrap());
        assert!(Saved::find(&dir, &address).unwrap().is_none() && Saved::all(&dir).unwrap().is_empty());
        let mut saved = Saved::new(&dir, &address);
        saved.rules =
            vec![b"user default on nopass ~* &* +@all".to_vec(), b"user a\xff on #00 (~x +get) -@all".to_vec()];
        (saved.up, saved.run_id) = (true, "abc".into());
        saved.write().unwrap();
        let read = Saved::find(&dir, &address).unwrap().unwrap();
        assert_eq!((&read.rules, &read.user, &read.run_id), (&saved.rules, &saved.user, &saved.run_id));
        assert!(read.up && read.knows(b"a\xff") && !read.knows(b"a"));
        assert_eq!(std::fs::metadata(&read.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{read:?}").contains(&read.password));
        assert_eq!(Saved::all(&dir).unwrap().len(), 1);
        saved.put_rule(b"user default off");
        saved.put_rule(b"user new on");
        assert_eq!((&saved.rules[0][..], saved.rules.len()), (&b"user default off"[..], 3));
        std::fs::write(&read.path, "something else").unwrap();
        assert!(Saved::find(&dir, &address).is_err());
    }
}
