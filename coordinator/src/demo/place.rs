//! The folder of a demo: authority, master key, repository, configurations, data, logs.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::identity::Identity;
use tidemark_common::pki::{Credentials, PkiPaths};
use tidemark_proto::slot::even_share;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};
use url::Url;

use super::CLUSTER;
use crate::pki::{Authority, Issued, LEAF_DAYS, Leaf};
use crate::repository::{MasterKey, Repository, Store, StoreConfig};

/// Days that the authority of a demo is good for.
const AUTHORITY_DAYS: u32 = LEAF_DAYS + 1;
/// The configuration of the command line for this fleet.
const CLI_CONFIG: &str = "cli.toml";
const LOOPBACK: &str = "127.0.0.1:0";

/// The folder; removed when dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct Place {
    root: PathBuf,
    authority: Authority,
    operator: Credentials,
    operator_files: Issued,
    repository: Url,
    keep: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.keep
            && let Err(e) = fs::remove_dir_all(&self.root)
        {
            eprintln!("tidemark: {} could not be removed: {e}", self.root.display());
        }
    }
}

/// Takes the folder away again if making it fails half way.
struct HalfMade(Option<PathBuf>);

impl Drop for HalfMade {
    fn drop(&mut self) {
        // The failure that led here is what is told.
        let _ = self.0.take().map(fs::remove_dir_all);
    }
}

impl Place {
    /// Makes the folder with everything that daemons need. `dir` must not be there, or be empty.
    pub(super) async fn create(dir: Option<&Path>, now: SystemTime) -> Result<Self> {
        let root = make_root(dir)?;
        let mut half = HalfMade(Some(root.clone()));
        let pki = root.join("pki");
        let _ = Authority::create(&pki, CLUSTER, AUTHORITY_DAYS, false, now)?;
        let authority = Authority::open(&pki)?;
        let operator = Leaf { identity: Identity::operator("demo")?, hosts: Vec::new(), days: LEAF_DAYS };
        let operator_files = authority.issue(&operator, &pki, false, now)?;
        let coordinator = Leaf {
            identity: Identity::coordinator("demo")?,
            hosts: vec!["localhost".into(), "127.0.0.1".into()],
            days: LEAF_DAYS,
        };
        let coordinator = authority.issue(&coordinator, &pki, false, now)?;
        let master = MasterKey::generate();
        write_secret(&root.join("master.key"), &master.to_text())?;
        let folder = root.join("repository");
        let repository = Url::from_directory_path(&folder)
            .map_err(|()| Error::request(format!("--dir {}: give a whole path", root.display())))?;
        for sub in [&folder, &root.join("logs")] {
            fs::create_dir(sub).or_kind(ErrorKind::Full, format_args!("{}: cannot be made", sub.display()))?;
        }
        let store = StoreConfig { url: repository.to_string(), ..StoreConfig::default() };
        let _ = Repository::init(Store::open(&store)?, Some(&master), SystemClock.millis()).await?;
        let credentials = Credentials::load(paths(&operator_files))?;
        half.0 = None;
        let place = Self { root, authority, operator: credentials, operator_files, repository, keep: false };
        let _ = place.write("coordinator.toml", &place.coordinator_config(&coordinator)?)?;
        Ok(place)
    }

    /// The operator of this fleet.
    pub(super) fn operator(&self) -> &Credentials {
        &self.operator
    }

    /// The folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Configuration of the coordinator.
    pub(super) fn coordinator_file(&self) -> PathBuf {
        self.root.join("coordinator.toml")
    }

    /// Log of a process.
    pub(super) fn log_file(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Writes the configuration of node `i` of `n` and issues its certificate.
    pub(super) fn agent_file(&self, name: &str, i: u16, n: u16, coordinator: &str) -> Result<PathBuf> {
        let identity = Identity::agent(CLUSTER.parse()?, name.parse()?);
        let leaf = Leaf { identity, hosts: Vec::new(), days: LEAF_DAYS };
        let issued = self.authority.issue(&leaf, &self.root.join("pki"), false, SystemClock.time())?;
        let node = self.node_dir(name);
        let text = format!(
            "cluster = {}\nnode = {}\ncoordinators = [{}]\nstate_dir = {}\n\n{}\n[engine]\nkind = \"embedded\"\n\
             data_dir = {}\nslots = {}\nlisten = {}\n",
            quoted(CLUSTER),
            quoted(name),
            quoted(coordinator),
            quoted_path(&node.join("state"))?,
            tls(&issued)?,
            quoted_path(&node.join("data"))?,
            quoted(&even_share(i, n).to_string()),
            quoted(LOOPBACK),
        );
        self.write(&format!("{name}.toml"), &text)
    }

    /// Deletes everything that these nodes have.
    pub(super) fn wipe(&self, nodes: &[&str]) -> Result<()> {
        for name in nodes {
            let dir = self.node_dir(name);
            fs::remove_dir_all(&dir)
                .or_kind(ErrorKind::Full, format_args!("{}: cannot be deleted", dir.display()))?;
        }
        Ok(())
    }

    /// Keeps the folder; answers the configuration of the command line for it.
    pub(super) fn keep(mut self, coordinator: &str) -> Result<PathBuf> {
        let files = &self.operator_files;
        let text = format!(
            "coordinator = {}\nca = {}\ncert = {}\nkey = {}\n",
            quoted(coordinator),
            quoted_path(&files.ca)?,
            quoted_path(&files.cert)?,
            quoted_path(&files.key)?
        );
        let file = self.write(CLI_CONFIG, &text)?;
        self.keep = true;
        Ok(file)
    }

    fn node_dir(&self, name: &str) -> PathBuf {
        self.root.join("nodes").join(name)
    }

    fn coordinator_config(&self, issued: &Issued) -> Result<String> {
        Ok(format!(
            "name = \"demo\"\nlisten = {0}\napi_listen = {0}\n\n{1}\n[repository]\nurl = {2}\nkey_file = {3}\n",
            quoted(LOOPBACK),
            tls(issued)?,
            quoted(self.repository.as_str()),
            quoted_path(&self.root.join("master.key"))?,
        ))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::write(&path, text).or_kind(ErrorKind::Full, format_args!("{}: cannot be written", path.display()))?;
        Ok(path)
    }
}

fn make_root(dir: Option<&Path>) -> Result<PathBuf> {
    let root = match dir {
        Some(dir) => std::path::absolute(dir).or_kind(ErrorKind::Request, "--dir")?,
        None => std::env::temp_dir().join(format!("tidemark-demo-{:016x}", rand::random::<u64>())),
    };
    let told = root.display();
    if dir.is_some() && root.exists() {
        let mut entries = fs::read_dir(&root).or_kind(ErrorKind::Request, format_args!("--dir {told}"))?;
        if entries.next().is_some() {
            return Err(Error::conflict(format!("--dir {told}: is not empty, and what is in it would be removed")));
        }
    } else {
        let mut builder = fs::DirBuilder::new();
        builder
            .mode(0o700)
            .create(&root)
            .or_kind(ErrorKind::Request, format_args!("{told}: the folder cannot be made"))?;
    }
    Ok(root)
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let open = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    open.and_then(|mut f| f.write_all(text.as_bytes()))
        .or_kind(ErrorKind::Full, format_args!("{}: cannot be written", path.display()))
}

fn paths(issued: &Issued) -> PkiPaths {
    PkiPaths { ca: issued.ca.clone(), cert: issued.cert.clone(), key: issued.key.clone() }
}

fn tls(issued: &Issued) -> Result<String> {
    Ok(format!(
        "[tls]\nca = {}\ncert = {}\nkey = {}\n",
        quoted_path(&issued.ca)?,
        quoted_path(&issued.cert)?,
        quoted_path(&issued.key)?
    ))
}

/// A TOML string; the escapes of JSON are those of TOML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn quoted_path(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| {
        Error::request(format!("{}: a configuration cannot hold this path: choose another --dir", path.display()))
    })?;
    Ok(quoted(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_holds_good_configurations_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("with \"quotes\" and blanks");
        let place = Place::create(Some(&root), SystemClock.time()).await.unwrap();
        let config = crate::config::CoordinatorConfig::load(&place.coordinator_file()).unwrap();
        let store = Store::open(&config.repository.store()).unwrap();
        let master = config.repository.master_key().unwrap();
        assert!(Repository::open(store, master.as_ref()).await.unwrap().keys().encrypts());
        let agent = place.agent_file("a1", 0, 3, "127.0.0.1:1").unwrap();
        let slots = format!("slots = \"{}\"", even_share(0, 3));
        assert!(fs::read_to_string(agent).unwrap().contains(&slots));
        drop(place);
        assert!(!root.exists());
    }

    #[tokio::test]
    async fn what_lies_in_a_folder_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "x").unwrap();
        let refused = Place::create(Some(dir.path()), SystemClock.time()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        assert!(dir.path().join("mine").exists());
    }
}
