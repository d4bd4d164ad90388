//! The uploads of a backup: each node sends its parts, what is missing again after a broken attempt.

use std::time::Duration;

use tidemark_proto::wire::control::{Done, Upload, UploadEarly, UploadRest, Uploaded};
use tidemark_proto::{Error, ErrorKind, Incarnation, Result, SlotSet, Timestamp};

use super::core::Cut;
use super::driver::Driver;
use super::rounds::BASE_DEADLINE;
use crate::fleet::Member;
use crate::ingest::CameEarly;

/// Time without a word during an upload before the node counts as silent.
pub const UPLOAD_DEADLINE: Duration = Duration::from_secs(60);
/// Attempts at a node's upload; each sends only what is missing.
pub const UPLOAD_ATTEMPTS: u32 = 5;
/// Wait before the next attempt at an upload: an agent that restarts needs a moment.
pub const UPLOAD_RETRY_WAIT: Duration = Duration::from_secs(2);

impl Driver {
    /// Lets a node send of its base before the cut. It does where it will send all of it: where it compares records with a parent's, most
    /// would be sent in vain. Older agents do not know that word.
    pub(super) async fn upload_early(&self, n: usize, slots: SlotSet) {
        let (context, member) = (&self.context, self.member(n));
        context.ingest.open_early(self.id, &member.cluster).expect_early(member.node.clone(), slots.clone());
        let command = UploadEarly {
            slots,
            slots_per_region: self.policy.slots_per_region,
            ingest: context.bulk_address.clone(),
            concurrency: context.config.backup.agent_concurrency,
        };
        let head = context.head(self.id, 0);
        let told = context.fleet.command::<_, Done>(&member, head, &command, BASE_DEADLINE, |_| ());
        if let Err(e) = told.await {
            tracing::debug!(error = %e.report(), "a node sends what is left of its base after the cut");
        }
    }

    /// Notes what the nodes have sent before the cut.
    pub(super) fn tell_what_came_early(&self) {
        let landing = self.context.ingest.open_early(self.id, &self.request.cluster);
        for node in &self.nodes {
            let CameEarly { parts, bytes } = landing.came_early(node);
            if parts > 0 {
                let told =
                    format!("sent {parts} parts of its base before the cut: {} MiB", bytes.div_ceil(1 << 20));
                self.job.log.note("early", node.as_str(), told);
            }
        }
    }

    pub(super) async fn upload(&self, n: usize, cut: &Cut) -> Result<()> {
        let name = self.nodes[n].as_str();
        let ingest = self.ingest.get().ok_or_else(|| Error::bug("uploading before the cut"))?;
        let parent = self.parent.as_ref().and_then(|p| Some((p, p.node(name)?)));
        let mut command = Upload {
            at: cut.at,
            slots: cut.nodes[n].held.ownership.slots.clone(),
            slots_per_region: self.policy.slots_per_region,
            ingest: self.context.bulk_address.clone(),
            parent_at: parent.map_or(Timestamp::ZERO, |(p, _)| p.root.cut),
            parent_incarnation: parent
                .map_or(Incarnation::default(), |(p, i)| p.root.nodes[usize::from(i)].incarnation),
            parents: parent.map(|(p, _)| p.offers(name)).unwrap_or_default(),
            concurrency: self.context.config.backup.agent_concurrency,
            stored: Vec::new(),
        };
        let member = self.member(n);
        for attempt in 1.. {
            // One that is away may come back: it has the cut pinned.
            self.context
                .fleet
                .wait_for(std::slice::from_ref(&member), self.context.config.backup.patience())
                .await?;
            command.stored = ingest.received_of(n as u16);
            match self.send(&member, attempt, &command, ingest.rest_of(n as u16)).await {
                Ok(done) => {
                    let _ = self.read_bytes.fetch_add(done.bytes_read, std::sync::atomic::Ordering::Relaxed);
                    return self.keep(n, cut).await;
                }
                Err(e) if e.kind() == ErrorKind::Retry && attempt < UPLOAD_ATTEMPTS => {
                    tracing::warn!(node = name, attempt, error = %e.report(), "upload broke: asking for what is missing");
                    self.job.log.note(
                        "retry",
                        name,
                        format!("upload broke, asking for what is missing: {}", e.report()),
                    );
                    tokio::time::sleep(UPLOAD_RETRY_WAIT).await;
                }
                Err(e) => return Err(e),
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn send(
        &self,
        member: &Member,
        attempt: u32,
        upload: &Upload,
        rest: Vec<(u16, Vec<u8>)>,
    ) -> Result<Uploaded> {
        let (fleet, head) = (&self.context.fleet, self.context.head(self.id, attempt));
        let report = |p| self.job.progress_of(&member.node, p);
        if rest.is_empty() {
            return fleet.command(member, head, upload, UPLOAD_DEADLINE, report).await;
        }
        let upload = UploadRest { upload: upload.clone(), rest };
        fleet.command(member, head, &upload, UPLOAD_DEADLINE, report).await
    }
}
