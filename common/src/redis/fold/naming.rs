//! Reading what a log names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_proto::Result;

use super::{Fold, Idle, Kind, Named, Scope, ScratchServer};
use crate::redis::log::{Command, Takes};
use crate::redis::named::Out;

/// Reads a log, command by command, for a [`Fold`].
#[derive(Debug)]
pub struct Naming {
    named: Named,
    scope: Scope,
    server: ScratchServer,
    /// What the server knows, and where the commands go; from the first command on.
    begun: Option<(Kind, Out)>,
    budget: usize,
    dir: PathBuf,
    idle: Arc<Idle>,
    /// Whether the server is started with the first command.
    ahead: bool,
}

impl Naming {
    /// Of the keys of `scope`. Takes `budget` bytes of memory beside the names of the keys; what is temporary lies in `dir`.
    pub fn new(scope: Scope, server: &ScratchServer, budget: usize, dir: &Path) -> Self {
        let (named, server, dir, idle) = (Named::default(), server.clone(), dir.to_owned(), Arc::default());
        Self { named, scope, server, begun: None, budget, dir, idle, ahead: false }
    }

    /// Takes a server that waits there, if one does, and lets it wait there afterwards.
    pub fn with_idle(self, idle: &Arc<Idle>) -> Self {
        Self { idle: idle.clone(), ..self }
    }

    /// Starts the server while the log is read, and not behind it: for a log that is worked off once it was read.
    pub fn starting_ahead(self) -> Self {
        Self { ahead: true, ..self }
    }

    /// There are no more commands.
    pub fn finish(mut self) -> Result<Fold> {
        let version = self.begun.as_ref().map_or(0, |(kind, _)| kind.version);
        if let Some((_, out)) = self.begun.take() {
            self.named.finish(out)?;
        }
        let Self { named, scope, server, budget, dir, idle, .. } = self;
        let functions = Vec::new();
        Ok(Fold { named, scope, server, version, highest: 0, base: None, budget, dir, functions, idle })
    }
}

impl Takes for Naming {
    /// `Unsupported` names a command that cannot be followed with the keys of the scope alone, or whose keys are not known;
    /// `Config` says what to install where there is no server.
    fn take(&mut self, command: &Command<'_>) -> Result<()> {
        let (kind, out) = match &mut self.begun {
            Some(begun) => begun,
            None => {
                let kind = self.server.kind(&self.dir)?;
                if self.ahead {
                    self.idle.start_ahead(&self.server, &self.dir);
                }
                self.begun.insert((kind, Out::new(&self.dir)?))
            }
        };
        self.named.take(command, &self.scope, &kind.commands, out)
    }
}
