//! The cut: writes are held, both readings are taken, and writes go on.

use std::time::{Duration, Instant};

use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{Held, Ownership, Position, Sealed, TopologyNode};
use tidemark_proto::{Error, Result, Timestamp};

use super::Redis;
use super::conn::{self, Connection};
use super::kept::{Around, topology};
use super::server::{PRIMARY, View, view_requests};

/// Time for the stream to come to an offset that the server told.
const STREAM_PATIENCE: Duration = Duration::from_secs(2);
/// Time for a server to answer in a hold, beside the budget.
const HOLD_PATIENCE: Duration = Duration::from_secs(2);

/// What was read when writes were held.
#[derive(Debug, Clone)]
pub(super) struct HoldState {
    position: Position,
    ownership: Ownership,
    since: Instant,
    budget: Duration,
    paused: bool,
    /// The nodes that the server knows of.
    pub(super) topology: Vec<TopologyNode>,
}

impl Redis {
    /// [`crate::engine::Engine::hold`].
    pub(super) fn hold_writes(&self, job: JobId, budget: Duration) -> Result<Held> {
        let shared = self.job(job)?;
        let mut this = shared.lock().expect("job");
        if !this.has_base() {
            return Err(Error::conflict("the base of this backup was lost: it must be taken again"));
        }
        (this.hold, this.cut, this.state) = (None, None, None);
        let paused = !budget.is_zero();
        let (view, since) = self.ask_primary(|connection| pause(connection, budget))?;
        let (position, ownership) = (view.info.position()?, view.ownership()?);
        this.hold = Some(HoldState {
            position: position.clone(),
            ownership: ownership.clone(),
            since,
            budget,
            paused,
            topology: topology(&view),
        });
        if view.info.role() != PRIMARY {
            return Err(Error::conflict("what was the primary is a replica by now"));
        }
        Ok(Held {
            position,
            max_timestamp: Timestamp::ZERO,
            ownership,
            incarnation: self.incarnation(),
            clock_millis: view.clock_millis,
        })
    }

    /// [`crate::engine::Engine::seal`].
    pub(super) fn seal_cut(&self, job: JobId, at: Timestamp) -> Result<Sealed> {
        let shared = self.job(job)?;
        let mut this = shared.lock().expect("job");
        let hold = this.hold.clone().ok_or_else(|| Error::conflict("a seal without a hold"))?;
        let view = self.ask_primary(View::read)?;
        let now = view.info.position()?;
        if now.history != hold.position.history || view.ownership()? != hold.ownership {
            return Err(Error::conflict("the server's history, role or slots changed in the hold"));
        }
        let link = this.link.as_ref().ok_or_else(|| Error::conflict("the base was lost"))?;
        if now.offset != hold.position.offset && !link.was_idle(&hold.position, &now, STREAM_PATIENCE)? {
            return Err(Error::conflict("the server moved on since it was held"));
        }
        this.cut = Some((at, hold.position.clone()));
        Ok(Sealed { position: hold.position })
    }

    /// [`crate::engine::Engine::release`].
    pub(super) fn release_hold(&self, job: JobId) -> Result<(Ownership, Duration)> {
        let shared = self.job(job)?;
        let mut this = shared.lock().expect("job");
        let hold = this.hold.clone().ok_or_else(|| Error::conflict("a release without a hold"))?;
        // A pause that has ended by itself may be somebody else's by now.
        let ours = hold.paused && hold.since.elapsed() < hold.budget;
        if ours {
            let _ = self.ask_primary(|c| c.call(&[b"CLIENT", b"UNPAUSE"]))?.ok("CLIENT UNPAUSE")?;
        }
        let held = if hold.paused { hold.since.elapsed().min(hold.budget) } else { Duration::ZERO };
        if let Some(hold) = &mut this.hold {
            hold.paused = false;
        }
        let ownership = self.ask_primary(View::read)?.ownership()?;
        if this.cut.is_some() {
            this.around = Some(Around::read(self));
        }
        Ok((ownership, held))
    }
}

/// Stops writes and reads where the server stands, in one write to it. When it does not answer in time the pause is taken
/// back on the same connection: it may take effect later otherwise, when nobody knows of it any more.
fn pause(connection: &mut Connection, budget: Duration) -> Result<(View, Instant)> {
    let millis = (budget.as_millis().max(1)).to_string();
    let pause: [&[u8]; 4] = [b"CLIENT", b"PAUSE", millis.as_bytes(), b"WRITE"];
    let cluster = View::read(connection)?.info.is_cluster();
    let mut requests: Vec<&[&[u8]]> = if budget.is_zero() { Vec::new() } else { vec![&pause] };
    requests.extend(view_requests(cluster));
    connection.set_timeout(budget + HOLD_PATIENCE)?;
    let since = Instant::now();
    let replies = match connection.pipeline(&requests) {
        Ok(replies) => replies,
        Err(e) => {
            let _ = connection.send(b"*2\r\n$6\r\nCLIENT\r\n$7\r\nUNPAUSE\r\n");
            while connection.reply().is_ok() {}
            return Err(e.context("the server does not stop its writes in time"));
        }
    };
    connection.set_timeout(conn::ANSWER_TIMEOUT)?;
    let mut replies = replies.into_iter();
    if !budget.is_zero() {
        let paused = replies.next().map_or_else(|| Err(Error::bug("no reply")), |r| r.ok("CLIENT PAUSE"));
        let _ = paused?;
    }
    Ok((View::of(replies)?, since))
}
