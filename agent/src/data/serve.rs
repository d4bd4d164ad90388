//! One stream: requests in, answers out in the same order.

use std::sync::Arc;

use bytes::Bytes;
use tidemark_common::transport::{FrameReader, FrameWriter};
use tidemark_proto::frame::{self, Header, Message};
use tidemark_proto::wire::kv::{
    CloneOpened, Commit, Committed, Failure, Get, MAX_COMMIT, MAX_KEY, MAX_PAGE, MAX_SMALL, MAX_VALUE, MAX_WRITES,
    OpenClone, PAGE_BYTES, Page, Record, Scan, Value,
};
use tidemark_proto::{CloneName, Error, ErrorKind, Result, error::ResultExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{MAX_IN_FLIGHT, Shared, UNIT, WRITE_TIMEOUT};
use crate::kv::{KvStore, Versioned, Write};

/// What an answer may take before it is known: a page with one record over its bound.
const MAX_ANSWER: usize = PAGE_BYTES + MAX_VALUE + MAX_KEY;

/// An answer that is to come, with its share of the budget.
enum Pending {
    Commit(oneshot::Receiver<Result<tidemark_proto::Timestamp>>, OwnedSemaphorePermit),
    Read(JoinHandle<Result<(Bytes, OwnedSemaphorePermit)>>),
    Opened(CloneOpened),
    Failed(Error),
}

/// Whom the requests of a stream are for: the node's own data until a clone is opened. After one that could not be opened
/// nobody, so that none of them goes astray.
struct Target(std::result::Result<Arc<dyn KvStore>, (ErrorKind, String)>);

impl Target {
    fn store(&self) -> Result<Arc<dyn KvStore>> {
        self.0.clone().map_err(|(kind, message)| Error::new(kind, message))
    }

    /// Opens a clone of `parent` for what follows.
    fn open(&mut self, parent: &dyn KvStore, name: String) -> Pending {
        match CloneName::new(name).and_then(|name| parent.open_clone(&name)) {
            Ok(opened) => {
                self.0 = Ok(opened.store);
                Pending::Opened(CloneOpened { at: opened.at })
            }
            Err(e) => {
                self.0 = Err((e.kind(), format!("the clone was not opened: {}", e.report())));
                Pending::Failed(e)
            }
        }
    }
}

pub(super) async fn stream(shared: Arc<Shared>, mut writer: FrameWriter, mut reader: FrameReader) {
    let (tx, rx) = mpsc::channel(MAX_IN_FLIGHT);
    let reading = async {
        let tx = tx;
        let ended = tokio::select! {
            () = shared.ending.cancelled() => Ok(()),
            read = requests(&shared, &mut reader, &tx) => read,
        };
        if let Err(e) = &ended {
            reader.stop(e.kind());
        }
        ended
    };
    // Whichever fails ends the other; a reader that has come to its end leaves the answers to come.
    match tokio::try_join!(reading, answers(&shared, &mut writer, rx)) {
        // The client must have the last answer before the connection may be closed; it has so long for it.
        Ok(_) => drop(timeout(WRITE_TIMEOUT, writer.drained()).await),
        Err(e) => {
            tracing::debug!(error = %e.report(), "data stream ended");
            writer.reset(e.kind());
        }
    }
}

async fn requests(shared: &Shared, reader: &mut FrameReader, tx: &mpsc::Sender<Pending>) -> Result<()> {
    let mut target = Target(Ok(shared.store.clone()));
    while let Some(header) = reader.read_header().await? {
        let pending = match header.kind {
            Commit::KIND => commit(shared, &target, reader, header).await?,
            Get::KIND | Scan::KIND => read(shared, &target, reader, header).await?,
            OpenClone::KIND => {
                let OpenClone { name } = reader.decode(header).await?;
                target.open(&*shared.store, name)
            }
            other => return Err(Error::unsupported(format!("request {other} is not known to this build"))),
        };
        if tx.send(pending).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn reserve(budget: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit> {
    let units = bytes.div_ceil(UNIT) as u32;
    budget.clone().acquire_many_owned(units).await.or_kind(ErrorKind::Bug, "the budget is closed")
}

async fn commit(shared: &Shared, target: &Target, reader: &mut FrameReader, header: Header) -> Result<Pending> {
    let share = reserve(&shared.budget, header.len.min(MAX_COMMIT) as usize).await?;
    let commit: Commit = reader.decode(header).await?;
    let store = match check_commit(&commit).and_then(|()| target.store()) {
        Ok(store) => store,
        Err(e) => return Ok(Pending::Failed(e)),
    };
    let writes = commit.writes.into_iter().map(|w| match w.value {
        Some(value) => Write::Put { key: w.key, value },
        None => Write::Delete { key: w.key },
    });
    Ok(Pending::Commit(store.commit(writes.collect(), commit.after), share))
}

fn check_commit(commit: &Commit) -> Result<()> {
    if commit.writes.is_empty() || commit.writes.len() > MAX_WRITES {
        let n = commit.writes.len();
        return Err(Error::request(format!("{n} writes in a commit: 1 to {MAX_WRITES} are allowed")));
    }
    for write in &commit.writes {
        check_key(&write.key)?;
        let len = write.value.as_ref().map_or(0, Vec::len);
        if len > MAX_VALUE {
            return Err(Error::request(format!("value of {len} bytes: at most {MAX_VALUE} are allowed")));
        }
    }
    Ok(())
}

fn check_key(key: &[u8]) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(Error::request(format!("key of {} bytes: 1 to {MAX_KEY} are allowed", key.len())));
    }
    Ok(())
}

/// Reads a request and runs it on a thread that may block. The whole room of an answer is reserved before, and what
/// the answer does not need is given back when it is known.
async fn read(shared: &Shared, target: &Target, reader: &mut FrameReader, header: Header) -> Result<Pending> {
    let body = reader.read_body(header, MAX_SMALL).await?;
    let store = match target.store() {
        Ok(store) => store,
        Err(e) => return Ok(Pending::Failed(e)),
    };
    let mut share = reserve(&shared.budget, MAX_ANSWER).await?;
    Ok(Pending::Read(tokio::task::spawn_blocking(move || {
        let answer = if header.kind == Get::KIND {
            let get = Get::from_body(&body)?;
            check_key(&get.key)?;
            frame::encode(&Value { record: store.get(&get.key, get.at)?.map(record) })?
        } else {
            let scan = Scan::from_body(&body)?;
            let limit = scan.limit.clamp(1, MAX_PAGE) as usize;
            let page = store.scan(&scan.prefix, &scan.from, scan.at, limit, PAGE_BYTES)?;
            let records = page.records.into_iter().map(record).collect();
            frame::encode(&Page { records, next: page.next, at: page.at })?
        };
        let unused = share.num_permits().saturating_sub(answer.len().div_ceil(UNIT));
        drop(share.split(unused));
        Ok((Bytes::from(answer), share))
    })))
}

fn record(v: Versioned) -> Record {
    Record { key: v.key, value: v.value, timestamp: v.timestamp }
}

async fn answers(shared: &Shared, writer: &mut FrameWriter, mut rx: mpsc::Receiver<Pending>) -> Result<()> {
    while let Some(pending) = rx.recv().await {
        let (answer, _share) = match pending {
            Pending::Commit(committed, share) => {
                let lost =
                    |_| Err(Error::retry("the store ended before the commit was durable: it may have happened"));
                (committed.await.unwrap_or_else(lost).and_then(|at| frame::encode(&Committed { at })), Some(share))
            }
            Pending::Read(task) => match task.await.or_kind(ErrorKind::Bug, "a read broke off").flatten() {
                Ok((bytes, share)) => (Ok(bytes.into()), Some(share)),
                Err(e) => (Err(e), None),
            },
            Pending::Opened(opened) => (frame::encode(&opened), None),
            Pending::Failed(e) => (Err(e), None),
        };
        let frame = match answer {
            Ok(bytes) => bytes,
            Err(e) => {
                // Read before the gate shut and met by a store that is closed to it: to be tried again, as all others.
                let e = match shared.gate.reason() {
                    Some(why) if e.kind() == ErrorKind::Conflict => Error::retry(why).with_source(e),
                    _ => e,
                };
                frame::encode(&Failure { code: e.kind().code(), message: message_of(&e) })?
            }
        };
        timeout(WRITE_TIMEOUT, writer.write_encoded(frame.into()))
            .await
            .map_err(|_| Error::retry("the client does not take its answers"))??;
    }
    Ok(())
}

/// The error with its causes, short enough for a frame.
fn message_of(error: &Error) -> String {
    let mut text = error.report();
    text.truncate(text.floor_char_boundary(MAX_SMALL as usize / 2));
    text
}
