//! What a session tells of itself to those who ask.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use metrics::{counter, gauge};
use tidemark_proto::id::JobId;
use tidemark_proto::{ClusterName, NodeName, Timestamp};

use super::window::{Interval, Windows};
use crate::context::Shared;
use crate::metric_names::{LOG_BYTES, LOG_LAG, LOG_RPO, LOG_SEGMENTS, WINDOW_END, WINDOW_START};

/// How far the log of one node is behind.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct NodeLag {
    /// Its name.
    pub node: String,
    /// Whether its changes are streamed now.
    pub streaming: bool,
    /// Everything up to here is durable, a raw timestamp; 0 for nothing.
    pub closed: u64,
    /// With the node nothing up to here would be lost, a raw timestamp: it is durable, or there was no change since, or a backup
    /// holds it. 0: all would be lost.
    pub safe: u64,
    /// How long ago that is, in milliseconds.
    pub lag_millis: u64,
    /// Bytes that waited at the node when it was last asked, about.
    pub behind_bytes: u64,
    /// Why it is not streamed; empty while it is.
    pub error: String,
}

/// A session as it stands.
#[derive(Debug, Clone, Default)]
pub struct SessionState {
    /// The intervals in which the log is whole.
    pub windows: Windows,
    /// The one that goes on.
    pub open: Option<Interval>,
    /// Its nodes.
    pub nodes: Vec<NodeLag>,
    /// Segments that stand.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What is told of a session.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// `None` until the session has read what is durable.
    state: Mutex<Option<SessionState>>,
    cuts: Mutex<Vec<(Timestamp, JobId)>>,
    trouble: Mutex<Option<String>>,
    slots_per_region: Mutex<u16>,
    /// Backups that were begun for a window without one, since the last that had one.
    bases_begun: AtomicU32,
    lanes: Mutex<Vec<NodeName>>,
    /// Cuts of backups that the session has not seen yet, and the nodes that took part.
    was_cut: Mutex<Vec<(Timestamp, Vec<NodeName>)>>,
}

impl Published {
    /// Slots of one region: those of the policy once there is one.
    pub(super) fn slots_per_region(&self, context: &Shared) -> u16 {
        match *self.slots_per_region.lock().expect("slots") {
            0 => context.config.backup.slots_per_region,
            each => each,
        }
    }

    /// Regions are fixed now.
    pub(super) fn set_slots_per_region(&self, slots: u16) {
        *self.slots_per_region.lock().expect("slots") = slots;
    }

    /// Nodes whose streams of commands the log is made of.
    pub(super) fn lanes(&self) -> Vec<NodeName> {
        self.lanes.lock().expect("lanes").clone()
    }

    /// These are they now.
    pub(super) fn set_lanes(&self, lanes: Vec<NodeName>) {
        *self.lanes.lock().expect("lanes") = lanes;
    }

    /// A backup has cut the cluster.
    pub(super) fn was_cut(&self, at: Timestamp, nodes: &[NodeName]) {
        self.was_cut.lock().expect("cuts").push((at, nodes.to_vec()));
    }

    /// The cuts of backups since the last question.
    pub(super) fn take_cuts(&self) -> Vec<(Timestamp, Vec<NodeName>)> {
        std::mem::take(&mut *self.was_cut.lock().expect("cuts"))
    }

    /// Why segments cannot be stored; `None` when they can.
    pub(super) fn trouble(&self, why: Option<String>) {
        *self.trouble.lock().expect("trouble") = why;
    }

    /// Why segments cannot be stored.
    pub(super) fn what_troubles(&self) -> Option<String> {
        self.trouble.lock().expect("trouble").clone()
    }

    /// A backup was begun because the window has none.
    pub(super) fn base_begun(&self) {
        let _ = self.bases_begun.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were begun in vain so far; from none on again where `found`.
    pub(super) fn bases_in_vain(&self, found: bool) -> u32 {
        match found {
            true => {
                self.bases_begun.store(0, Ordering::Relaxed);
                0
            }
            false => self.bases_begun.load(Ordering::Relaxed),
        }
    }

    /// Whether a backup is known whose cut is at or above `start`.
    pub(super) fn has_base(&self, start: Timestamp) -> bool {
        self.cuts.lock().expect("cuts").iter().any(|(cut, _)| *cut >= start)
    }

    /// Cut of the newest backup that is known.
    pub(super) fn newest_cut(&self) -> Timestamp {
        self.cuts.lock().expect("cuts").last().map_or(Timestamp::ZERO, |(cut, _)| *cut)
    }

    /// The backups that stand.
    pub(super) fn cuts(&self, cluster: &ClusterName, mut cuts: Vec<(Timestamp, JobId)>) {
        cuts.sort_unstable();
        *self.cuts.lock().expect("cuts") = cuts;
        self.tell(cluster);
    }

    /// Counts a segment that was stored.
    pub(super) fn stored(&self, cluster: &ClusterName, bytes: u64) {
        counter!(LOG_SEGMENTS, "cluster" => cluster.to_string()).increment(1);
        counter!(LOG_BYTES, "cluster" => cluster.to_string()).increment(bytes);
    }

    /// Takes what is told from now on.
    pub(super) fn publish(&self, cluster: &ClusterName, state: SessionState) {
        let gone = |node: &&NodeLag| !state.nodes.iter().any(|n| n.node == node.node);
        let mut present = self.state.lock().expect("state");
        present.iter().flat_map(|s| &s.nodes).filter(gone).for_each(|node| unknown(cluster, node));
        *present = Some(state);
        drop(present);
        self.tell(cluster);
    }

    /// As it stands; lags are those of now. What a backup holds would not be lost either.
    pub(super) fn state(&self, now_millis: u64) -> Option<SessionState> {
        let backed_up = self.newest_cut();
        let mut state = self.state.lock().expect("state").clone()?;
        for node in &mut state.nodes {
            node.safe = node.safe.max(backed_up.0);
            node.lag_millis = now_millis.saturating_sub(Timestamp(node.safe).millis());
        }
        Some(state)
    }

    /// Tells the lags of now: a session that waits for the store publishes nothing.
    pub(super) fn observe(&self, cluster: &ClusterName, now_millis: u64) {
        let Some(state) = self.state(now_millis) else { return };
        for node in &state.nodes {
            let labels = [("cluster", cluster.to_string()), ("node", node.node.clone())];
            gauge!(LOG_LAG, &labels).set(node.lag_millis as f64 / 1e3);
        }
        let rpo = state.nodes.iter().map(|n| n.lag_millis).max().unwrap_or(0);
        gauge!(LOG_RPO, "cluster" => cluster.to_string()).set(rpo as f64 / 1e3);
    }

    /// The session is over: nobody knows by now how far the log is behind.
    pub(super) fn ended(&self, cluster: &ClusterName) {
        let Some(state) = self.state.lock().expect("state").clone() else { return };
        state.nodes.iter().for_each(|node| unknown(cluster, node));
        gauge!(LOG_RPO, "cluster" => cluster.to_string()).set(f64::NAN);
    }

    fn tell(&self, cluster: &ClusterName) {
        let cuts = self.cuts.lock().expect("cuts").clone();
        let state = self.state.lock().expect("state");
        let Some(windows) = state.as_ref().map(|s| s.windows.restorable(&cuts)) else { return };
        drop(state);
        let (start, end) = windows.last().map_or((0, 0), |w| (w.earliest.millis(), w.latest.millis()));
        gauge!(WINDOW_START, "cluster" => cluster.to_string()).set(start as f64 / 1e3);
        gauge!(WINDOW_END, "cluster" => cluster.to_string()).set(end as f64 / 1e3);
    }
}

/// The lag of a node is not known any more.
fn unknown(cluster: &ClusterName, node: &NodeLag) {
    gauge!(LOG_LAG, "cluster" => cluster.to_string(), "node" => node.node.clone()).set(f64::NAN);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_backup_holds_would_not_be_lost() {
        let (published, cluster) = (Published::default(), "orders".parse().unwrap());
        assert!(published.state(5000).is_none(), "nothing was read yet");
        let node = |node: &str, safe: u64| NodeLag {
            node: node.into(),
            streaming: true,
            closed: 0,
            safe: if safe == 0 { 0 } else { Timestamp::new(safe, 0).0 },
            lag_millis: 0,
            behind_bytes: 0,
            error: String::new(),
        };
        let state = SessionState { nodes: vec![node("a", 0), node("b", 4000)], ..SessionState::default() };
        published.publish(&cluster, state);
        let lags = || published.state(5000).unwrap().nodes.iter().map(|n| n.lag_millis).collect::<Vec<_>>();
        assert_eq!(lags(), [5000, 1000], "of the first node all would be lost");
        published.cuts(&cluster, vec![(Timestamp::new(3000, 0), JobId::default())]);
        assert_eq!(lags(), [2000, 1000]);
    }
}
