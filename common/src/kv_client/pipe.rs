//! One stream of requests and answers: a task writes, a task reads, the queue between them holds who waits.

use bytes::Bytes;
use quinn::Connection;
use tidemark_proto::frame::{Header, Message};
use tidemark_proto::wire::kv::{Failure, MAX_REPLY};
use tidemark_proto::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};

use super::MAX_PIPELINED;
use crate::transport::{FrameReader, FrameWriter, error_of, open_bi};

type Answer = Result<(Header, Bytes)>;

struct Call {
    frame: Bytes,
    answer: oneshot::Sender<Answer>,
}

/// A stream of requests to one node. Clones share it; it ends with the last clone.
#[derive(Clone)]
pub(super) struct Pipe {
    calls: mpsc::Sender<Call>,
    connection: Connection,
}

impl Pipe {
    pub(super) async fn open(connection: Connection) -> Result<Self> {
        let (writer, reader) = open_bi(&connection).await?;
        let (calls, queue) = mpsc::channel(1);
        let (waiting, answers) = mpsc::channel(MAX_PIPELINED);
        // Both tasks end with the stream, the connection or the last clone.
        drop(tokio::spawn(write(writer, queue, waiting)));
        drop(tokio::spawn(read(reader, answers)));
        Ok(Self { calls, connection })
    }

    pub(super) fn is_open(&self) -> bool {
        !self.calls.is_closed() && self.connection.close_reason().is_none()
    }

    pub(super) async fn call<A: Message>(&self, frame: Bytes) -> Result<A> {
        let (answer, answered) = oneshot::channel();
        if self.calls.send(Call { frame, answer }).await.is_err() {
            return Err(self.lost());
        }
        let (header, body) = answered.await.map_err(|_| self.lost())??;
        if header.kind == Failure::KIND {
            let failure = Failure::from_body(&body)?;
            return Err(Error::new(ErrorKind::from_code(u64::from(failure.code)), failure.message));
        }
        if (header.kind, header.version) != (A::KIND, A::VERSION) {
            return Err(Error::damaged(format!("answer {} v{} to another question", header.kind, header.version)));
        }
        A::from_body(&body)
    }

    /// What ended the stream, as far as it is known.
    fn lost(&self) -> Error {
        self.connection.close_reason().map_or_else(|| Error::retry("the node ended the stream"), error_of)
    }
}

async fn write(
    mut writer: FrameWriter,
    mut queue: mpsc::Receiver<Call>,
    waiting: mpsc::Sender<oneshot::Sender<Answer>>,
) {
    while let Some(call) = queue.recv().await {
        // The answer's place is taken before the request leaves, so that places are in the order of requests.
        if waiting.send(call.answer).await.is_err() || writer.write_encoded(call.frame).await.is_err() {
            return;
        }
    }
    // Nobody is left to be told of a failure; answers in flight still come.
    let _ = writer.finish();
}

async fn read(mut reader: FrameReader, mut answers: mpsc::Receiver<oneshot::Sender<Answer>>) {
    while let Some(answer) = answers.recv().await {
        let read = next(&mut reader).await;
        let failed = read.is_err();
        // Who asked may have gone.
        let _ = answer.send(read);
        if failed {
            return;
        }
    }
}

async fn next(reader: &mut FrameReader) -> Answer {
    let header = reader.read_header().await?.ok_or_else(|| Error::retry("the node ended the stream"))?;
    let body = reader.read_body(header, MAX_REPLY).await?;
    Ok((header, body))
}
