//! How a session begins: it reads what is durable, and fences the log under its coordinator's epoch.

use tidemark_proto::stored::paths;
use tidemark_proto::{Error, ErrorKind, Result};

use super::index::{SegmentInfo, Walk};
use super::session::Session;

impl Session {
    /// Takes what came into the repository since the last look.
    pub(super) async fn catch_up(&mut self) -> Result<()> {
        let mut walk = Walk::from(&self.context.repository, &self.cluster, self.tip.clone()).await?;
        while let Some(found) = walk.next().await? {
            self.chains.take(&found);
            self.lines.take(&found);
        }
        self.tip = walk.tip();
        Ok(())
    }

    /// Puts a fence at the next free number, unless the last segment is of this epoch already.
    pub(super) async fn take_over(&mut self) -> Result<()> {
        loop {
            let epoch = self.context.epoch;
            match self.tip.epoch() {
                last if last > epoch => return Err(self.fenced(last)),
                last if last == epoch || self.tip.is_empty() => return Ok(()),
                _ => {}
            }
            let mut fence = self.segment(Vec::new(), Vec::new());
            let built = self.context.repository.build_segment(
                &self.cluster,
                &mut fence,
                self.points.is_some().then_some(&[]),
                &[],
            )?;
            let path = paths::log(&self.cluster, fence.number);
            match self.context.repository.store().create(&path, built.bytes.clone()).await {
                Ok(()) => {
                    let points = self.points.is_some().then(Vec::new);
                    self.durable(SegmentInfo::of(&fence, built.hash, built.bytes.len() as u64).with_points(points));
                }
                Err(e) if e.kind() == ErrorKind::Conflict => self.catch_up().await?,
                Err(e) => return Err(e.context("fencing the log")),
            }
        }
    }

    pub(super) fn fenced(&self, epoch: u64) -> Error {
        let ours = self.context.epoch;
        Error::fenced(format!("epoch {ours} is over for the log of {}: epoch {epoch} writes it now", self.cluster))
    }
}
