//! A node as the session of its cluster sees it: its stream, and how far its log is received and durable.

use std::time::{Duration, Instant};

use tidemark_proto::id::JobId;
use tidemark_proto::wire::bulk::{LogBatch, LogFollow, LogPull};
use tidemark_proto::wire::control::{Done, LogStart};
use tidemark_proto::{Error, ErrorKind, Incarnation, NodeName, Result, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::node::{Ask, Batch};
use super::state::NodeLag;
use super::window::Chain;
use crate::context::Shared;
use crate::fleet::Member;

/// Time for an agent to open its stream.
const START_DEADLINE: Duration = Duration::from_secs(5);
/// Time from its answer until the stream is there.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(2);
/// A node whose stream broke is asked again after this.
const START_AGAIN: Duration = Duration::from_secs(1);
/// A node that has no log is asked again after this.
const START_UNSUPPORTED: Duration = Duration::from_secs(60);

/// The tail of one node's log.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Whether its agent is connected.
    pub(super) connected: bool,
    opening: Option<JoinHandle<Result<mpsc::Sender<Ask>>>>,
    asks: Option<mpsc::Sender<Ask>>,
    waiting: Option<oneshot::Receiver<Result<Batch>>>,
    /// What was received and is in no segment yet.
    pub(super) batch: Option<Batch>,
    not_before: Option<Instant>,
    incarnation: Incarnation,
    /// Position that the next question begins at: 0 to begin a log.
    received: u64,
    durable: u64,
    closed: Timestamp,
    /// Of what went into a segment, durable or not.
    sent_closed: Timestamp,
    /// All that follows gets a time above this, too.
    floor: Timestamp,
    /// Nothing was written up to here since `closed`: no segment tells of it.
    quiet: Timestamp,
    behind: u64,
    error: Option<String>,
    /// Of a log of commands: where the logs of nodes end that are gone, one of which may go on here.
    ends: Vec<LogEnd>,
}

/// Where the log of a node ends that is not asked any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogEnd {
    incarnation: Incarnation,
    to: u64,
    closed: Timestamp,
}

impl Tail {
    /// One that goes on where a chain ends.
    pub(super) fn of(chain: &Chain) -> Self {
        Self {
            incarnation: chain.incarnation,
            received: chain.to,
            durable: chain.to,
            closed: chain.closed,
            sent_closed: chain.closed,
            ..Self::default()
        }
    }

    /// Where it ends, if anything of it is durable.
    pub(super) fn end(&self) -> Option<LogEnd> {
        let LogEnd { incarnation, to, closed } =
            LogEnd { incarnation: self.incarnation, to: self.durable, closed: self.closed };
        (to > 0).then_some(LogEnd { incarnation, to, closed })
    }

    /// Whether nothing was received yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.received == 0 && self.ends.is_empty()
    }

    /// It may go on where one of these ends.
    pub(super) fn may_take_over(&mut self, ends: Vec<LogEnd>) {
        self.ends = ends;
    }

    /// Whether it was asked for a log and answers.
    pub(super) fn streams(&self) -> bool {
        self.asks.is_some() && self.received > 0
    }

    /// Time up to which it was received, with the batch that waits.
    pub(super) fn reaches(&self) -> Timestamp {
        self.batch.as_ref().map_or(self.sent_closed, |batch| batch.header.closed)
    }

    /// Everything that is received from now on gets a time above `at`; `false` where something may have one below.
    pub(super) fn begins_above(&mut self, at: Timestamp) -> bool {
        let above = self.waiting.is_none() && self.batch.is_none() && self.sent_closed.max(self.floor) <= at;
        if above {
            self.floor = at;
        }
        above
    }

    /// Whether it can be asked.
    pub(super) fn is_open(&self) -> bool {
        self.asks.is_some()
    }

    /// Whether it is time to open its stream.
    pub(super) fn wants_stream(&self) -> bool {
        self.asks.is_none() && self.opening.is_none() && self.not_before.is_none_or(|at| at <= Instant::now())
    }

    /// Tells the agent to open its stream, in the background: a node that hangs holds nobody up.
    pub(super) fn open_stream(&mut self, context: &Shared, member: Member) {
        self.opening = Some(tokio::spawn(open(context.clone(), member)));
    }

    /// Waits for the stream, if one is being opened. Good to be given up and called again.
    pub(super) async fn opened(&mut self) {
        let Some(opening) = &mut self.opening else { return };
        let opened = opening.await.unwrap_or_else(|e| Err(Error::bug("opening a stream panicked").with_source(e)));
        self.opening = None;
        match opened {
            Ok(asks) => (self.asks, self.error) = (Some(asks), None),
            Err(e) => {
                let wait = if e.kind() == ErrorKind::Unsupported { START_UNSUPPORTED } else { START_AGAIN };
                self.broken(e.report(), wait);
            }
        }
    }

    fn broken(&mut self, why: String, wait: Duration) {
        (self.asks, self.waiting) = (None, None);
        self.not_before = Some(Instant::now() + wait);
        self.error = Some(why);
    }

    /// Asks for `most` bytes by regions of so many slots, unless an answer is awaited or waits itself.
    pub(super) async fn ask(
        &mut self,
        context: &Shared,
        member: &Member,
        (most, slots_per_region): (u64, u16),
        commands: bool,
    ) {
        if self.waiting.is_some() || self.batch.is_some() {
            return;
        }
        let Some(asks) = self.asks.clone() else { return };
        let key = context.repository.draw_batch(&member.cluster, &member.node);
        let keys = context.repository.keys();
        let Ok(subkey) = keys.subkey(key.key_id, &key.salt) else { return };
        let takes_over = self.ends.last().copied().filter(|_| self.received == 0);
        let pull = LogPull {
            incarnation: takes_over.map_or(self.incarnation, |end| end.incarnation),
            from: takes_over.map_or(self.received, |end| end.to),
            durable: takes_over.map_or(self.durable, |end| end.to),
            now: context.clock.now(),
            most_bytes: u32::try_from(most).unwrap_or(u32::MAX),
            spool_bytes: context.config.pitr.spool_bytes(),
            slots_per_region,
            run_tag: key.tag,
            key: subkey,
            encrypt: u8::from(keys.encrypts()),
        };
        let follow = commands.then(|| LogFollow {
            pull: pull.clone(),
            closed: takes_over.map_or(self.sent_closed.max(self.floor), |end| end.closed),
            takes_over: u8::from(takes_over.is_some()),
        });
        let (answer, waiting) = oneshot::channel();
        match asks.send(Ask { pull, follow, key, answer }).await {
            Ok(()) => self.waiting = Some(waiting),
            Err(_) => self.broken("its stream ended".into(), START_AGAIN),
        }
    }

    /// Waits for the answer, if one is awaited. Good to be given up and called again.
    pub(super) async fn collect(&mut self) {
        let Some(waiting) = &mut self.waiting else { return };
        match waiting.await {
            Ok(Ok(batch)) => {
                (self.waiting, self.error) = (None, None);
                self.behind = batch.header.behind_bytes;
                self.batch = Some(batch);
            }
            Ok(Err(e)) => {
                if e.kind() == ErrorKind::Conflict {
                    // It does not know that history: maybe the next, or none.
                    let _ = self.ends.pop();
                }
                self.broken(e.report(), START_AGAIN);
            }
            Err(_) => self.broken("its stream ended".into(), START_AGAIN),
        }
    }

    /// A batch went into a segment: the next one follows it.
    pub(super) fn sent(&mut self, header: &LogBatch) {
        (self.incarnation, self.received, self.sent_closed) = (header.incarnation, header.to, header.closed);
        self.ends.clear();
        if header.begins != 0 {
            self.durable = header.from;
        }
    }

    /// Everything up to `to` is durable.
    pub(super) fn durable(&mut self, to: u64, closed: Timestamp) {
        (self.durable, self.closed) = (to, closed);
    }

    /// A batch without news is in no segment: the next one begins where it did, but behind the cut at which this one ended, or it
    /// would never come past that. All that is lost with the node lies behind it. Answers whether there is more to ask for at once.
    pub(super) fn dropped(&mut self) -> bool {
        let Some(batch) = self.batch.take() else { return false };
        if self.received == self.durable {
            self.quiet = batch.header.closed;
        }
        let further = self.received > 0 && batch.header.closed > self.floor.max(self.sent_closed);
        self.floor = self.floor.max(batch.header.closed);
        further && batch.header.behind_bytes > 0
    }

    /// How far it is behind.
    pub(super) fn lag(&self, name: &NodeName, now_millis: u64) -> NodeLag {
        NodeLag {
            node: name.to_string(),
            streaming: self.asks.is_some() && self.error.is_none(),
            closed: self.closed.0,
            safe: self.closed.max(self.quiet).0,
            lag_millis: now_millis.saturating_sub(self.closed.max(self.quiet).millis()),
            behind_bytes: self.behind,
            error: self.error.clone().unwrap_or_default(),
        }
    }
}

/// Tells an agent to open its stream, and waits until it is there.
async fn open(context: Shared, member: Member) -> Result<mpsc::Sender<Ask>> {
    let session = JobId(rand::random());
    let (asks, open) = context.logs.expect_stream(session, member.clone());
    let command = LogStart { session, ingest: context.bulk_address.clone() };
    let opened = async {
        let head = context.head(JobId::default(), 1);
        let Done {} = context.fleet.command(&member, head, &command, START_DEADLINE, |_| ()).await?;
        // It may have been opened on a connection that is dead and does not know it yet.
        let arrived = tokio::time::timeout(ARRIVAL_DEADLINE, open).await;
        arrived
            .ok()
            .and_then(std::result::Result::ok)
            .ok_or_else(|| Error::retry("its stream of the log did not arrive"))
    };
    let opened = opened.await;
    if opened.is_err() {
        context.logs.forget_stream(&session);
    }
    opened.map(|()| asks)
}
