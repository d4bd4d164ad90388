//! What the parts of a running agent share.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use tidemark_common::expiry::Expiry;
use tidemark_common::log::LogRing;
use tidemark_common::rate::Limiter;
use tidemark_common::select::Selection;
use tidemark_common::telemetry::Metrics;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::id::JobId;
use tidemark_proto::{SlotSet, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::bulk::BulkDialer;
use crate::config::AgentConfig;
use crate::daemon::RESTORING;
use crate::data::Gate;
use crate::engine::{Engine, Loader};
use crate::indexes::IndexStore;
use crate::log::LogStream;
use crate::state::AgentState;
use crate::telemetry::Waited;
use crate::upload::early::EarlySends;

/// A running agent.
pub struct Agent {
    /// Its configuration.
    pub config: AgentConfig,
    /// The store.
    pub engine: Arc<dyn Engine>,
    /// Key indexes, where the engine needs them.
    pub indexes: Option<IndexStore>,
    /// What must survive a restart.
    pub state: AgentState,
    /// Connections to ingest and serve processes.
    pub bulk: BulkDialer,
    /// Where clients of the store reach it.
    pub data_address: String,
    /// Shuts the data listener while a restore runs.
    pub gate: Gate,
    /// Restores under way.
    pub restores: Mutex<HashMap<JobId, RestoreSession>>,
    /// What is sent of a base before the cut of its job.
    pub early: EarlySends,
    /// The stream of the log, while one stands.
    pub log_stream: LogStream,
    /// The node's own limit of what is sent and fetched.
    pub limiter: Limiter,
    /// Time that was waited for it.
    pub limited: Waited,
    /// Its metrics.
    pub metrics: Metrics,
    /// Its last log lines.
    pub log: LogRing,
    /// Whether there is a control connection.
    pub connected: AtomicBool,
    /// Ends everything.
    pub shutdown: CancellationToken,
}

/// A restore that this node takes part in.
#[derive(Clone)]
pub struct RestoreSession {
    /// The staging area.
    pub loader: Arc<dyn Loader>,
    /// Slots that it was opened for.
    pub slots: SlotSet,
    /// Timestamp of the restored state.
    pub at: Timestamp,
    /// Address of the serve process.
    pub serve: String,
    /// Which records are loaded; the key globs come with each command.
    pub selection: Selection,
    /// When their keys expire.
    pub expiry: Expiry,
    /// Held for reading while a part is being loaded: an abort waits for the last of them.
    pub loading: Arc<tokio::sync::RwLock<()>>,
    /// What was read back, once that was found right.
    pub verified: Arc<OnceLock<SetDigest>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("cluster", &self.config.cluster)
            .field("node", &self.config.node)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// Parts that are sent at once: as many as a command asks for, or, where it says 0, as the configuration does.
    pub fn concurrency(&self, asked: u32) -> usize {
        if asked == 0 { self.config.concurrency() } else { asked as usize }
    }

    /// The session of a restore job, if it was begun here.
    pub fn restore_session(&self, job: &JobId) -> Option<RestoreSession> {
        self.restores.lock().expect("no panic while held").get(job).cloned()
    }

    /// Lets clients in again after a restore that could not begin, unless another is under way.
    pub fn open_unless_restoring(&self) {
        let available = self.engine.describe().is_ok_and(|d| d.state == "available");
        if available && self.restores.lock().expect("no panic while held").is_empty() {
            self.gate.open();
        }
    }

    /// Puts or (with `None`) drops the session of a restore job.
    /// Clients of the store are let in when no restore is left.
    pub fn set_restore_session(&self, job: JobId, session: Option<RestoreSession>) {
        let mut sessions = self.restores.lock().expect("no panic while held");
        match session {
            Some(session) => drop(sessions.insert(job, session)),
            None => drop(sessions.remove(&job)),
        }
        if sessions.is_empty() { self.gate.open() } else { self.gate.shut(RESTORING) }
    }
}
