//! The note of settings that are changed: what an agent that dies meanwhile leaves to the next one.
//!
//! Text: `1 <run_id> <rewrites>`, then a line `<setting> <its own value> <the one meanwhile>` for each.

use std::path::Path;
use std::time::Duration;

use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::super::conn::Connection;
use super::super::server::Info;
use crate::fsutil;

/// Version of the text.
const VERSION: &str = "1";

/// A setting that is another one meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) name: String,
    pub(super) own: String,
    pub(super) meanwhile: String,
}

/// The life of a server, and how often it has written its settings to its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) run_id: String,
    /// Since when its counters were last reset.
    pub(super) rewrites: u64,
}

/// What was changed, and in which life of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) life: Life,
    pub(super) changed: Vec<Changed>,
}

impl Life {
    /// That of the server now, and how long it lasts already.
    pub(super) fn read(connection: &mut Connection) -> Result<(Self, Duration)> {
        let mut info =
            |section: &[u8]| Ok::<_, Error>(Info::parse(&connection.call(&[b"INFO", section])?.text("INFO")?));
        let (server, commands) = (info(b"server")?, info(b"commandstats")?);
        // `calls=1,usec=…`
        let calls =
            commands.text("cmdstat_config|rewrite").strip_prefix("calls=").and_then(|text| text.split(',').next());
        let rewrites = calls.and_then(|calls| calls.parse().ok()).unwrap_or(0);
        let lasts = Duration::from_secs(server.number("uptime_in_seconds")?);
        Ok((Self { run_id: server.text("run_id").to_owned(), rewrites }, lasts))
    }
}

impl Note {
    /// That of a file, and how old it is; `None` where there is none.
    pub(super) fn read(path: &Path) -> Result<Option<(Self, Duration)>> {
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.or_kind(ErrorKind::Retry, format_args!("{}", path.display()))?,
        };
        let written = std::fs::metadata(path).and_then(|m| m.modified()).ok().and_then(|time| time.elapsed().ok());
        Ok(Some((Self::parse(&text)?, written.unwrap_or_default())))
    }

    /// Keeps it on disk before anything is changed.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        fsutil::replace(path, self.text().as_bytes())
    }

    /// It has done its work.
    pub(super) fn remove(path: &Path) -> Result<()> {
        std::fs::remove_file(path).or_kind(ErrorKind::Full, format_args!("{}", path.display()))
    }

    fn text(&self) -> String {
        let lines = self.changed.iter().map(|c| format!("\n{} {} {}", c.name, c.own, c.meanwhile));
        format!("{VERSION} {} {}", self.life.run_id, self.life.rewrites) + &lines.collect::<String>()
    }

    fn parse(text: &str) -> Result<Self> {
        let bad = || Error::damaged("the note of settings that were changed for a base is not understood");
        let mut lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let first = lines.next();
        let Some([VERSION, run_id, rewrites]) = first.as_deref() else { return Err(bad()) };
        let life = Life { run_id: (*run_id).to_owned(), rewrites: rewrites.parse().map_err(|_| bad())? };
        let changed = lines.map(|words| match words[..] {
            [name, own, meanwhile] => {
                Ok(Changed { name: name.to_owned(), own: own.to_owned(), meanwhile: meanwhile.to_owned() })
            }
            _ => Err(bad()),
        });
        Ok(Self { life, changed: changed.collect::<Result<_>>()? })
    }

    /// As told to operators.
    pub(super) fn told(&self) -> String {
        let settings =
            self.changed.iter().map(|c| format!("{} {} (its own value: {})", c.name, c.meanwhile, c.own));
        settings.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_again() {
        let changed = |name: &str| Changed { name: name.to_owned(), own: "5".into(), meanwhile: "0".into() };
        let life = Life { run_id: "0af".into(), rewrites: 3 };
        let note = Note { life, changed: vec![changed("a"), changed("b")] };
        assert_eq!(Note::parse(&note.text()).unwrap(), note);
        for bad in ["", "1", "1 0af", "2 0af 3", "1 0af x", "1 0af 3\na 5", "1 0af 3\na 5 0 1"] {
            assert!(Note::parse(bad).is_err(), "{bad}");
        }
    }
}
