//! What an agent must remember over a restart: the highest epoch that commanded it, and the highest ledger entry it was
//! told of. Both only grow. The file is written beside and renamed, so that a crash leaves the old or the new one.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rkyv::{Archive, Deserialize, Serialize};
use tidemark_proto::hash::Hash;
use tidemark_proto::stored::envelope::{CHECKSUM_LEN, checksum};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt, frame};

const MAGIC: [u8; 5] = *b"TAGS\x01";

/// The state, version 1. Frozen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct StateV1 {
    /// Highest epoch seen.
    pub epoch: u64,
    /// Highest ledger number told.
    pub ledger_number: u64,
    /// Hash of that entry.
    pub ledger_hash: Hash,
}

/// The state and its file.
#[derive(Debug)]
pub struct AgentState {
    path: PathBuf,
    now: Mutex<StateV1>,
}

impl AgentState {
    /// Reads the state in `dir`, or begins a new one.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).or_kind(ErrorKind::Config, format_args!("state folder {}", dir.display()))?;
        let path = dir.join("state");
        let now = match std::fs::read(&path) {
            Ok(bytes) => decode(&bytes).map_err(|e| e.context(path.display()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => StateV1::default(),
            Err(e) => return Err(Error::config(format!("{}", path.display())).with_source(e)),
        };
        Ok(Self { path, now: Mutex::new(now) })
    }

    /// The present state.
    pub fn get(&self) -> StateV1 {
        *self.now.lock().expect("no panic while held")
    }

    /// Takes note of a command's epoch. `Fenced` when a higher one was seen.
    pub fn see_epoch(&self, epoch: u64) -> Result<()> {
        let mut now = self.now.lock().expect("no panic while held");
        if epoch < now.epoch {
            return Err(Error::fenced(format!(
                "command of epoch {epoch} refused: a coordinator of epoch {} has taken over",
                now.epoch
            )));
        }
        if epoch > now.epoch {
            self.write(&mut now, |s| s.epoch = epoch)?;
        }
        Ok(())
    }

    /// Takes note of a ledger entry; a lower number is ignored.
    pub fn see_ledger(&self, number: u64, hash: Hash) -> Result<()> {
        let mut now = self.now.lock().expect("no panic while held");
        if number > now.ledger_number {
            self.write(&mut now, |s| (s.ledger_number, s.ledger_hash) = (number, hash))?;
        }
        Ok(())
    }

    fn write(&self, now: &mut StateV1, change: impl FnOnce(&mut StateV1)) -> Result<()> {
        let mut next = *now;
        change(&mut next);
        crate::fsutil::replace(&self.path, &encode(&next))?;
        *now = next;
        Ok(())
    }
}

fn encode(state: &StateV1) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&frame::to_archive(state));
    let sum = checksum(&out);
    out.extend_from_slice(&sum);
    out
}

fn decode(bytes: &[u8]) -> Result<StateV1> {
    let damaged = || Error::damaged("the agent's state does not hold: remove the file to begin anew");
    let at = bytes.len().checked_sub(CHECKSUM_LEN).ok_or_else(damaged)?;
    let (before, sum) = bytes.split_at(at);
    if checksum(before) != sum || !before.starts_with(&MAGIC) {
        return Err(damaged());
    }
    frame::from_archive(&before[MAGIC.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// A checksum that holds does not make nonsense a state.
        #[test]
        fn nonsense_never_panics(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend_from_slice(&body);
            let sum = checksum(&bytes);
            bytes.extend_from_slice(&sum);
            if let Ok(state) = decode(&bytes) {
                proptest::prop_assert_eq!(decode(&encode(&state)).unwrap(), state);
            }
            proptest::prop_assert!(decode(&body).is_err());
        }
    }

    #[test]
    fn golden() {
        let state = StateV1 { epoch: 3, ledger_number: 7, ledger_hash: Hash([5; 32]) };
        let kept = concat!(
            "5441475301030000000000000007000000000000000505050505050505050505050505",
            "050505050505050505050505050505050505812e53f5c800ed9b35ce88da01b16424"
        );
        assert_eq!(data_encoding::HEXLOWER.encode(&encode(&state)), kept);
        assert_eq!(decode(&data_encoding::HEXLOWER.decode(kept.as_bytes()).unwrap()).unwrap(), state);
    }

    #[test]
    fn survives_and_refuses_older_epochs() {
        let dir = tempfile::tempdir().unwrap();
        let state = AgentState::open(dir.path()).unwrap();
        state.see_epoch(3).unwrap();
        state.see_ledger(7, Hash::of(b"7")).unwrap();
        state.see_ledger(5, Hash::of(b"5")).unwrap();
        let again = AgentState::open(dir.path()).unwrap();
        assert_eq!(again.get(), StateV1 { epoch: 3, ledger_number: 7, ledger_hash: Hash::of(b"7") });
        assert_eq!(again.see_epoch(2).unwrap_err().kind(), ErrorKind::Fenced);
        let bytes = std::fs::read(dir.path().join("state")).unwrap();
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err());
        }
    }
}
