//! Frames on QUIC streams.
//!
//! Reading and writing a frame is not safe to cancel half-way: after a cancelled call the stream is only good for
//! ending it.

use bytes::{Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream};
use tidemark_proto::frame::{self, HEADER_LEN, Header, Message};
use tidemark_proto::wire::control::Failure;
use tidemark_proto::{Error, ErrorKind, Result};

use super::codes::{Fault, error_of, reset, stop};

/// Reads frames from a stream. Dropped before the stream's end, it tells the peer to stop.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
}

impl FrameReader {
    /// Frames of `stream`.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream }
    }

    /// The next frame's header, `None` where the peer finished the stream. Its body must be read next.
    pub async fn read_header(&mut self) -> Result<Option<Header>> {
        let mut bytes = [0; HEADER_LEN];
        let mut have = 0;
        while have < HEADER_LEN {
            match self.stream.read(&mut bytes[have..]).await.map_err(error_of)? {
                Some(n) => have += n,
                None if have == 0 => return Ok(None),
                None => return Err(error_of(Fault::Early)),
            }
        }
        Header::decode(bytes).map(Some)
    }

    /// The body of a frame; over `cap` bytes it is refused before anything is allocated.
    pub async fn read_body(&mut self, header: Header, cap: u32) -> Result<Bytes> {
        if header.len > cap {
            return Err(Error::damaged(format!(
                "frame {} announces {} bytes: at most {cap} are allowed",
                header.kind, header.len
            )));
        }
        let len = header.len as usize;
        let mut body = BytesMut::with_capacity(len);
        while body.len() < len {
            match self.stream.read_chunk(len - body.len(), true).await.map_err(error_of)? {
                Some(chunk) => body.extend_from_slice(&chunk.bytes),
                None => return Err(error_of(Fault::Early)),
            }
        }
        Ok(body.freeze())
    }

    /// The body of the message that `header` announced.
    pub async fn decode<M: Message>(&mut self, header: Header) -> Result<M> {
        if (header.kind, header.version) != (M::KIND, M::VERSION) {
            return Err(unexpected(header, M::KIND, M::VERSION));
        }
        M::from_body(&self.read_body(header, M::MAX).await?)
    }

    /// The body of the message that `header` announced; a [`Failure`] in its place becomes the error that it tells of.
    pub async fn decode_reply<M: Message>(&mut self, header: Header) -> Result<M> {
        if header.kind == Failure::KIND {
            let failure: Failure = self.decode(header).await?;
            return Err(Error::new(ErrorKind::from_code(u64::from(failure.code)), failure.message));
        }
        self.decode(header).await
    }

    /// The next header; a [`Failure`] in its place becomes the error that it tells of, the end of the stream one too.
    pub async fn read_reply_header(&mut self) -> Result<Header> {
        let header = self.read_header().await?.ok_or_else(|| error_of(Fault::Early))?;
        if header.kind == Failure::KIND {
            let failure: Failure = self.decode(header).await?;
            return Err(Error::new(ErrorKind::from_code(u64::from(failure.code)), failure.message));
        }
        Ok(header)
    }

    /// The next frame, which must be an `M` or a [`Failure`]; see [`Self::read_reply_header`].
    pub async fn read_reply<M: Message>(&mut self) -> Result<M> {
        let header = self.read_reply_header().await?;
        self.decode(header).await
    }

    /// The raw body of the next frame, which must be of `kind` and at most `cap` bytes, or a [`Failure`].
    pub async fn read_raw_reply(&mut self, kind: u16, cap: u32) -> Result<Bytes> {
        let header = self.read_reply_header().await?;
        if header.kind != kind {
            return Err(unexpected(header, kind, header.version));
        }
        self.read_body(header, cap).await
    }

    /// The next frame, which must be an `M`; the end of the stream is an error.
    pub async fn read_message<M: Message>(&mut self) -> Result<M> {
        let header = self.read_header().await?.ok_or_else(|| error_of(Fault::Early))?;
        self.decode(header).await
    }

    /// The raw body of the next frame, which must be of `kind` and at most `cap` bytes; the end is an error.
    pub async fn read_raw(&mut self, kind: u16, cap: u32) -> Result<Bytes> {
        let header = self.read_header().await?.ok_or_else(|| error_of(Fault::Early))?;
        if header.kind != kind {
            return Err(unexpected(header, kind, header.version));
        }
        self.read_body(header, cap).await
    }

    /// Waits for the peer's finish; a frame instead is an error.
    pub async fn read_end(&mut self) -> Result<()> {
        match self.read_header().await? {
            None => Ok(()),
            Some(h) => Err(Error::damaged(format!("frame {} after the last one", h.kind))),
        }
    }

    /// Tells the peer to send no more.
    pub fn stop(&mut self, kind: ErrorKind) {
        stop(&mut self.stream, kind);
    }
}

fn unexpected(header: Header, kind: u16, version: u8) -> Error {
    let text = format!("frame {} v{} where {kind} v{version} was expected", header.kind, header.version);
    if header.kind == kind { Error::unsupported(text) } else { Error::damaged(text) }
}

/// Writes frames to a stream. Dropped before [`Self::finish`] it resets the stream.
#[derive(Debug)]
pub struct FrameWriter {
    stream: SendStream,
    ended: bool,
}

impl FrameWriter {
    /// Frames on `stream`.
    pub fn new(stream: SendStream) -> Self {
        Self { stream, ended: false }
    }

    /// Writes a message; one over its own cap is refused.
    pub async fn write_message<M: Message>(&mut self, message: &M) -> Result<()> {
        self.write_encoded(Bytes::from(frame::encode(message)?)).await
    }

    /// Writes a message that [`frame::encode`] has made.
    pub async fn write_encoded(&mut self, frame: Bytes) -> Result<()> {
        self.stream.write_chunk(frame).await.map_err(error_of)
    }

    /// Writes raw bytes as one frame of `kind`.
    pub async fn write_raw(&mut self, kind: u16, version: u8, body: Bytes) -> Result<()> {
        let len = u32::try_from(body.len())
            .map_err(|_| Error::bug(format!("frame {kind} of {} bytes does not fit its header", body.len())))?;
        let header = Header { len, kind, version }.encode();
        let mut chunks = [Bytes::copy_from_slice(&header), body];
        self.stream.write_all_chunks(&mut chunks).await.map_err(error_of)
    }

    /// Ends the stream in order. The peer may still have to read it: see [`Self::drained`].
    pub fn finish(&mut self) -> Result<()> {
        self.ended = true;
        self.stream.finish().map_err(error_of)
    }

    /// Finishes and waits until the peer has received all, or has stopped the stream (an error with its kind).
    pub async fn drained(mut self) -> Result<()> {
        self.finish()?;
        match self.stream.stopped().await.map_err(error_of)? {
            None => Ok(()),
            Some(code) => Err(error_of(Fault::Stream(code))),
        }
    }

    /// Ends the stream with the code of `kind`.
    pub fn reset(&mut self, kind: ErrorKind) {
        self.ended = true;
        reset(&mut self.stream, kind);
    }

    /// Waits until the peer has stopped the stream or the connection is lost; says why.
    pub fn stopped(&self) -> impl Future<Output = Error> + Send + 'static {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await {
                Ok(Some(code)) => error_of(Fault::Stream(code)),
                Ok(None) => Error::cancelled("the stream has ended"),
                Err(e) => error_of(e),
            }
        }
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        if !self.ended {
            reset(&mut self.stream, ErrorKind::Cancelled);
        }
    }
}

/// Opens a bidirectional stream of frames. The peer learns of it with the first frame.
pub async fn open_bi(connection: &Connection) -> Result<(FrameWriter, FrameReader)> {
    let (send, recv) = connection.open_bi().await.map_err(error_of)?;
    Ok((FrameWriter::new(send), FrameReader::new(recv)))
}

/// The next bidirectional stream that the peer opens.
pub async fn accept_bi(connection: &Connection) -> Result<(FrameWriter, FrameReader)> {
    let (send, recv) = connection.accept_bi().await.map_err(error_of)?;
    Ok((FrameWriter::new(send), FrameReader::new(recv)))
}
