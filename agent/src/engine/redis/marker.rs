//! The note of a restore in the agent's folder: whose the server is, and how far the restore is.

use std::path::Path;

use tidemark_proto::id::JobId;
use tidemark_proto::{Error, Result};

use crate::fsutil;

/// File that says that a restore is under way, and which.
pub(super) const MARKER: &str = "restore";
/// Word in it for a restore in place.
const IN_PLACE: &str = "in-place";

/// How far a restore in place is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Fenced, or about to be; the data is as it was.
    Fenced,
    /// The data is being dropped.
    Emptying,
    /// Parts are loaded into this life of the server's process.
    Loading(String),
    /// Over, without data: another restore may take the server.
    CalledOff,
    /// Restored: clients are let in again, whatever happens.
    Committed,
}

/// What the marker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) job: JobId,
    /// `None`: onto an empty server.
    pub(super) step: Option<Step>,
}

impl Marker {
    fn parse(text: &str) -> Result<Self> {
        let bad = || Error::damaged("the note of a restore is not understood");
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let (job, step) = match words[..] {
            [job] => (job, None),
            [job, IN_PLACE, "fenced"] => (job, Some(Step::Fenced)),
            [job, IN_PLACE, "emptying"] => (job, Some(Step::Emptying)),
            [job, IN_PLACE, "loading", run_id] => (job, Some(Step::Loading(run_id.to_owned()))),
            [job, IN_PLACE, "called-off"] => (job, Some(Step::CalledOff)),
            [job, IN_PLACE, "committed"] => (job, Some(Step::Committed)),
            _ => return Err(bad()),
        };
        Ok(Self { job: job.parse().map_err(|_| bad())?, step })
    }

    fn text(&self) -> String {
        let step = match &self.step {
            None => return self.job.to_string(),
            Some(Step::Fenced) => "fenced",
            Some(Step::Emptying) => "emptying",
            Some(Step::Loading(run_id)) => &format!("loading {run_id}"),
            Some(Step::CalledOff) => "called-off",
            Some(Step::Committed) => "committed",
        };
        format!("{} {IN_PLACE} {step}", self.job)
    }

    /// That of the restore that is under way on the server with this folder.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>> {
        match std::fs::read_to_string(dir.join(MARKER)) {
            Ok(text) => Self::parse(&text).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::retry("note of a restore").with_source(e)),
        }
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        fsutil::replace(&dir.join(MARKER), self.text().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_read_again() {
        let job = JobId::default();
        let steps = [
            None,
            Some(Step::Fenced),
            Some(Step::Emptying),
            Some(Step::Loading("0af".into())),
            Some(Step::CalledOff),
            Some(Step::Committed),
        ];
        for step in steps {
            let marker = Marker { job, step };
            assert_eq!(Marker::parse(&marker.text()).unwrap(), marker);
        }
        for bad in ["", "nobody", &format!("{job} in-place"), &format!("{job} in-place loading")] {
            assert!(Marker::parse(bad).is_err(), "{bad}");
        }
    }
}
