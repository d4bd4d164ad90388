//! The lives of a server's process during a restore: what was loaded counts only in the life in which it was loaded.

use std::collections::BTreeSet;

use tidemark_common::crash;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::fence::replicas_of;
use super::marker::Step;
use super::notes::Folder;
use super::place::{Place, is_gone, without_data};
use super::server::{PRIMARY, View};
use crate::fsutil;

/// File in the folder of the parts: those that a restart of the server took away.
const LOST: &str = "lost";
/// File there, where nobody is kept off the server: in which life of its process parts are loaded.
const LIFE: &str = "life";

impl Place {
    /// The server is still the one that was begun with, and fenced; the data of before is dropped where that is due. Answers
    /// its life, for [`Place::same_life`]. A server that was started anew is fenced and emptied again, which is `Conflict`.
    pub(super) fn stand(&self) -> Result<u64> {
        let mut lives = self.lives.lock().expect("lives");
        let step = self.marker()?.step;
        let view = self.redis.view()?;
        if let Some(why) = view.unready() {
            return Err(Error::retry(why));
        }
        if view.info.role() != PRIMARY {
            return Err(Error::conflict("the server became a replica in the middle of its restore"));
        }
        let now = view.info.text("run_id");
        let Some(step) = step else {
            self.stand_alone(now, &mut lives)?;
            return Ok(*lives);
        };
        let fences = self.fences();
        let fenced = fences.saved(self.address())?.is_some_and(|saved| saved.up && saved.run_id == now);
        let unknown = replicas_of(&view)?.into_iter().any(|r| !fences.saved(&r).is_ok_and(|saved| saved.is_some()));
        if !fenced || unknown {
            self.fence()?;
        }
        match step {
            Step::Fenced => self.empty(now, true)?,
            Step::Emptying => self.empty(now, false)?,
            Step::Loading(begun) if begun == now => {}
            Step::Loading(_) => {
                *lives += 1;
                self.note_lost()?;
                self.step(Step::Emptying)?;
                self.empty(now, false)?;
                return Err(Error::conflict(
                    "the server was started anew in the middle of its restore: it was fenced and emptied again, and what was \
                     loaded is loaded anew",
                ));
            }
            Step::CalledOff => return Err(without_data(self.job)),
            Step::Committed => return Err(is_gone(self.job)),
        }
        Ok(*lives)
    }

    /// The same onto a server that was empty, with nobody kept off.
    fn stand_alone(&self, now: &str, lives: &mut u64) -> Result<()> {
        let path = self.parts().join(LIFE);
        match std::fs::read_to_string(&path) {
            Ok(begun) if begun == now => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => fsutil::replace(&path, now.as_bytes()),
            begun => {
                let _ = begun.or_kind(ErrorKind::Retry, "note of the server's life")?;
                *lives += 1;
                self.note_lost()?;
                // It may have come back with some of what was loaded.
                let _ = self.redis.ask(|c| c.call(&[b"FLUSHALL"]))?.ok("emptying the server again")?;
                fsutil::replace(&path, now.as_bytes())?;
                Err(Error::conflict(
                    "the server was started anew in the middle of its restore: it was emptied again, and what was loaded is \
                     loaded anew",
                ))
            }
        }
    }

    /// `write` is done only if the server has lost nothing since `life`.
    pub(super) fn same_life(&self, life: u64, write: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.stand()? == life {
            let lives = self.lives.lock().expect("lives");
            if *lives == life {
                return write();
            }
        }
        Err(Error::conflict("the server was started anew while the part was being loaded"))
    }

    /// Drops all data. `first`: it is still there, so that a refusal changes nothing.
    fn empty(&self, run_id: &str, first: bool) -> Result<()> {
        self.step(Step::Emptying)?;
        crash::point("agent.emptying");
        let reply = self.redis.ask(|c| c.call(&[b"FLUSHALL", b"ASYNC"]))?;
        if let Err(e) = reply.ok("emptying the server") {
            if first {
                self.step(Step::Fenced)?;
            }
            return Err(e);
        }
        crash::point("agent.emptied");
        self.step(Step::Loading(run_id.to_owned()))
    }

    /// Drops the notes of finished parts, and remembers which there were.
    fn note_lost(&self) -> Result<()> {
        let (finished, files) = Folder(self.parts.clone()).notes()?;
        let mut lost = self.lost()?;
        lost.extend(finished.into_keys());
        let text: Vec<String> = lost.iter().map(u32::to_string).collect();
        fsutil::replace(&self.parts.join(LOST), text.join(" ").as_bytes())?;
        for file in files {
            std::fs::remove_file(file).or_kind(ErrorKind::Retry, "notes of loaded parts")?;
        }
        Ok(())
    }

    fn lost(&self) -> Result<BTreeSet<u32>> {
        match std::fs::read_to_string(self.parts.join(LOST)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            text => {
                let text = text.or_kind(ErrorKind::Retry, "note of lost parts")?;
                Ok(text.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect())
            }
        }
    }

    /// Before everything is read back: the replicas are fenced as well, and no part that was loaded is missing.
    pub(super) fn is_whole(&self, finished: &BTreeSet<u32>) -> Result<()> {
        let _ = self.stand()?;
        let alone = self.marker()?.step.is_none();
        if !alone {
            self.watch_replicas();
        }
        let lost = self.lost()?;
        let missing: Vec<String> = lost.difference(finished).map(u32::to_string).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let told = "the server was started anew in the middle of its restore, when these parts had been loaded";
        let told = format!("{told}: {}", missing.join(", "));
        if alone {
            return Err(Error::damaged(format!("{told}; restore again")));
        }
        self.step(Step::CalledOff)?;
        Err(without_data(self.job).context(told))
    }

    /// Fences those again that were started anew. One that is away is fenced, or as its own file says, when it comes back.
    fn watch_replicas(&self) {
        let fences = self.fences();
        let again = || -> Result<()> {
            for saved in fences.servers()?.iter().filter(|saved| saved.address != *self.address()) {
                let run_id = fences.connect(&saved.address).and_then(|mut c| View::read(&mut c));
                match run_id.map(|view| view.info.text("run_id") == saved.run_id) {
                    Ok(true) => {}
                    Ok(false) => drop(fences.raise(&saved.address)?),
                    Err(e) => tracing::warn!(error = %e.report(), "replica {} is away", saved.address),
                }
            }
            Ok(())
        };
        if let Err(e) = again() {
            tracing::warn!(error = %e.report(), "a replica is not fenced");
        }
    }
}
