//! One sorted ingestion on its own thread: the library's writer is bound to the thread that made it and borrows its
//! keyspace, while a part moves between threads. Records travel in chunks over a short channel, so that hashing on
//! one side and writing on the other go on at once.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use fjall::{UserKey, UserValue};
use tidemark_proto::{Error, Result};

use super::generation::Generation;
use super::{fault, spawn};

/// Bytes of one chunk; a larger record is a chunk by itself.
const CHUNK_BYTES: usize = 256 << 10;
/// Records of one chunk.
const CHUNK_RECORDS: usize = 4096;
/// Chunks on the way.
const CHUNKS: usize = 2;

enum Step {
    Put(Vec<(UserKey, UserValue)>),
    Finish,
}

/// Loads ascending records into `data`: all of them at `finish`, or none.
pub(super) struct Ingest {
    steps: Option<SyncSender<Step>>,
    thread: Option<JoinHandle<Result<()>>>,
    chunk: Vec<(UserKey, UserValue)>,
    bytes: usize,
}

impl Ingest {
    /// Starts the thread.
    pub(super) fn start(generation: Arc<Generation>) -> Result<Self> {
        let (steps, inbox) = sync_channel(CHUNKS);
        let thread = spawn("tidemark-load", move || run(&generation, &inbox))?;
        Ok(Self { steps: Some(steps), thread: Some(thread), chunk: Vec::new(), bytes: 0 })
    }

    /// The next record; keys must ascend. An error may belong to an earlier record.
    pub(super) fn put(&mut self, key: UserKey, value: UserValue) -> Result<()> {
        self.bytes += key.len() + value.len();
        self.chunk.push((key, value));
        if self.bytes < CHUNK_BYTES && self.chunk.len() < CHUNK_RECORDS { Ok(()) } else { self.send_chunk() }
    }

    /// Makes all records appear, durably.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.send_chunk()?;
        self.send(Step::Finish)?;
        self.join()
    }

    fn send_chunk(&mut self) -> Result<()> {
        self.bytes = 0;
        let next = Vec::with_capacity(self.chunk.len());
        let chunk = std::mem::replace(&mut self.chunk, next);
        self.send(Step::Put(chunk))
    }

    fn send(&mut self, step: Step) -> Result<()> {
        match &self.steps {
            Some(steps) if steps.send(step).is_ok() => Ok(()),
            // The thread has ended early: its error says why.
            _ => self.join().and_then(|()| Err(Error::bug("a record after the end of its part: report this"))),
        }
    }

    fn join(&mut self) -> Result<()> {
        drop(self.steps.take());
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(Error::bug("a thread that loads a part panicked: report this")))
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        // An unfinished part: nothing of it appears, whatever its thread says.
        let _ = self.join();
    }
}

fn run(generation: &Generation, inbox: &Receiver<Step>) -> Result<()> {
    let mut ingestion = generation.data.start_ingestion().map_err(fault::fjall("begin to load a part"))?;
    loop {
        match inbox.recv() {
            Ok(Step::Put(chunk)) => {
                for (key, value) in chunk {
                    ingestion.write(key, value).map_err(fault::fjall("load a record"))?;
                }
            }
            Ok(Step::Finish) => return ingestion.finish().map_err(fault::fjall("finish a part")),
            Err(_) => return Ok(()),
        }
    }
}
