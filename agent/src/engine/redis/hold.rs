//! The cut: writes are held, both readings are taken, and writes go on.

use std::time::{Duration, Instant};

use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{Held, Ownership, Position, Sealed, TopologyNode};
use tidemark_proto::{Error, Result, Timestamp};

use super::Redis;
use super::conn::{self, Connection};
use super::kept::{Around, topology};
use super::link::Shared;
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
    /// Whether the server was a primary.
    primary: bool,
    /// The nodes that the server knows of.
    pub(super) topology: Vec<TopologyNode>,
}

impl HoldState {
    /// The first reading.
    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    /// What the server owned then.
    pub(super) fn ownership(&self) -> &Ownership {
        &self.ownership
    }
}

impl Redis {
    /// Holds writes for at most `budget` (zero: only reads), and takes the first reading.
    pub(super) fn first_reading(&self, budget: Duration) -> Result<(HoldState, Held)> {
        let paused = !budget.is_zero();
        let (view, since) = self.ask_primary(|connection| pause(connection, budget))?;
        let (position, ownership) = (view.info.position()?, view.ownership()?);
        let max_timestamp = self.log.hold(&position, budget);
        let held = Held {
            position: position.clone(),
            max_timestamp,
            ownership: ownership.clone(),
            incarnation: self.incarnation(),
            clock_millis: view.clock_millis,
        };
        let primary = view.info.role() == PRIMARY;
        let hold = HoldState { position, ownership, since, budget, paused, topology: topology(&view), primary };
        Ok((hold, held))
    }

    /// The second reading: `Conflict` where anything moved since the first, as far as `link` has seen.
    pub(super) fn second_reading(&self, hold: &HoldState, link: &Shared) -> Result<()> {
        let view = self.ask_primary(View::read)?;
        let now = view.info.position()?;
        if now.history != hold.position.history || view.ownership()? != hold.ownership {
            return Err(Error::conflict("the server's history, role or slots changed in the hold"));
        }
        if now.offset != hold.position.offset && !link.was_idle(&hold.position, &now, STREAM_PATIENCE)? {
            return Err(Error::conflict("the server moved on since it was held"));
        }
        Ok(())
    }

    /// Lets writes go on; what the server owns then, and how long they were held.
    pub(super) fn let_go(&self, hold: &mut HoldState) -> Result<(Ownership, Duration)> {
        // A pause that has ended by itself may be somebody else's by now.
        let ours = hold.paused && hold.since.elapsed() < hold.budget;
        if ours {
            let _ = self.ask_primary(|c| c.call(&[b"CLIENT", b"UNPAUSE"]))?.ok("CLIENT UNPAUSE")?;
        }
        let held = if hold.paused { hold.since.elapsed().min(hold.budget) } else { Duration::ZERO };
        hold.paused = false;
        self.log.let_go();
        Ok((self.ask_primary(View::read)?.ownership()?, held))
    }

    /// [`crate::engine::Engine::hold`].
    pub(super) fn hold_writes(&self, job: JobId, budget: Duration) -> Result<Held> {
        let shared = self.job(job)?;
        let mut this = shared.lock().expect("job");
        if !this.has_base() {
            return Err(Error::conflict("the base of this backup was lost: it must be taken again"));
        }
        (this.hold, this.cut, this.state) = (None, None, None);
        let (hold, held) = self.first_reading(budget)?;
        let primary = hold.primary;
        this.hold = Some(hold);
        match primary {
            true => Ok(held),
            false => Err(Error::conflict("what was the primary is a replica by now")),
        }
    }

    /// [`crate::engine::Engine::seal`].
    pub(super) fn seal_cut(&self, job: JobId, at: Timestamp) -> Result<Sealed> {
        let shared = self.job(job)?;
        let mut this = shared.lock().expect("job");
        let hold = this.hold.clone().ok_or_else(|| Error::conflict("a seal without a hold"))?;
        let link = this.link.as_ref().ok_or_else(|| Error::conflict("the base was lost"))?;
        self.second_reading(&hold, link.shared())?;
        self.log.mark(&hold, at)?;
        this.cut = Some((at, hold.position.clone()));
        Ok(Sealed { position: hold.position })
    }

    /// [`crate::engine::Engine::release`].
    pub(super) fn release_hold(&self, job: JobId) -> Result<(Ownership, Duration)> {
        let shared = self.job(job)?;
        let mut this = shared.lock().expect("job");
        let mut hold = this.hold.clone().ok_or_else(|| Error::conflict("a release without a hold"))?;
        let done = self.let_go(&mut hold);
        this.hold = Some(hold);
        let done = done?;
        if this.cut.is_some() {
            this.around = Some(Around::read(self));
        }
        Ok(done)
    }
}

/// Stops writes and reads where the server stands, in one write to it. When it does not answer in time the pause is taken
/// back on the same connection: it may take effect later otherwise, when nobody knows of it any more.
fn pause(connection: &mut Connection, budget: Duration) -> Result<(View, Instant)> {
    let millis = (budget.as_millis().max(1)).to_string();
    let pause: [&[u8]; 4] = [b"CLIENT", b"PAUSE", millis.as_bytes(), b"WRITE"];
    let info = View::read(connection)?.info;
    let mut requests: Vec<&[&[u8]]> = if budget.is_zero() { Vec::new() } else { vec![&pause] };
    requests.extend(view_requests(&info));
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
