//! Error kinds as QUIC reset, stop and close codes, and back.

use quinn::{
    ClosedStream, ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, StoppedError,
    TransportErrorCode, VarInt, WriteError,
};
use tidemark_proto::{Error, ErrorKind};

/// Longest reason sent when closing a connection, in bytes.
const MAX_REASON: usize = 512;
/// QUIC transport codes from here carry a TLS alert in their low byte (RFC 9001, section 4.8).
const CRYPTO_BASE: u64 = 0x100;

/// The wire code of a kind.
fn code(kind: ErrorKind) -> VarInt {
    VarInt::from_u32(kind.code())
}

/// Ends the sending side of a stream with the code of `kind`; one that has ended is left alone.
pub fn reset(stream: &mut SendStream, kind: ErrorKind) {
    let _: Result<(), ClosedStream> = stream.reset(code(kind));
}

/// Asks the peer to send no more, with the code of `kind`; a stream that has ended is left alone.
pub fn stop(stream: &mut RecvStream, kind: ErrorKind) {
    let _: Result<(), ClosedStream> = stream.stop(code(kind));
}

/// Closes a connection with the code of an error's kind and its message as the reason.
pub fn close(connection: &quinn::Connection, error: &Error) {
    let message = error.message();
    let end = message.floor_char_boundary(MAX_REASON);
    connection.close(code(error.kind()), &message.as_bytes()[..end]);
}

/// What quinn reports when a connection or stream fails.
#[derive(Debug)]
pub enum Fault {
    /// The connection.
    Connection(ConnectionError),
    /// The peer ended the stream with this code.
    Stream(VarInt),
    /// The stream was used after its end on this side.
    Closed,
    /// The stream ended within a frame.
    Early,
}

impl From<ConnectionError> for Fault {
    fn from(e: ConnectionError) -> Self {
        Self::Connection(e)
    }
}

impl From<ReadError> for Fault {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Reset(code) => Self::Stream(code),
            ReadError::ConnectionLost(e) => Self::Connection(e),
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<ReadExactError> for Fault {
    fn from(e: ReadExactError) -> Self {
        match e {
            ReadExactError::FinishedEarly(_) => Self::Early,
            ReadExactError::ReadError(e) => e.into(),
        }
    }
}

impl From<WriteError> for Fault {
    fn from(e: WriteError) -> Self {
        match e {
            WriteError::Stopped(code) => Self::Stream(code),
            WriteError::ConnectionLost(e) => Self::Connection(e),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<StoppedError> for Fault {
    fn from(e: StoppedError) -> Self {
        match e {
            StoppedError::ConnectionLost(e) => Self::Connection(e),
            StoppedError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<ClosedStream> for Fault {
    fn from(_: ClosedStream) -> Self {
        Self::Closed
    }
}

/// Our error for a fault of quinn: `Retry` for a lost connection, the kind of the code for resets and closes,
/// `Denied` for what TLS refused.
pub fn error_of(fault: impl Into<Fault>) -> Error {
    match fault.into() {
        Fault::Connection(e) => of_connection(e),
        Fault::Stream(code) if code.into_inner() == 0 => Error::cancelled("the peer dropped the stream"),
        Fault::Stream(code) => {
            let kind = ErrorKind::from_code(code.into_inner());
            Error::new(kind, format!("the peer ended the stream: {kind}"))
        }
        Fault::Closed => Error::bug("stream used after its end"),
        Fault::Early => Error::damaged("the stream ended within a frame"),
    }
}

fn of_connection(error: ConnectionError) -> Error {
    match &error {
        ConnectionError::ApplicationClosed(close) if close.error_code.into_inner() == 0 => {
            Error::retry("the peer closed the connection")
        }
        ConnectionError::ApplicationClosed(close) => Error::new(
            ErrorKind::from_code(close.error_code.into_inner()),
            format!("the peer closed the connection: {}", String::from_utf8_lossy(&close.reason)),
        ),
        ConnectionError::TransportError(e) => match alert_of(e.code) {
            Some(alert) => Error::denied(format!("TLS refused the peer: {} ({})", alert_text(alert), e.reason)),
            None => Error::retry("connection lost").with_source(error),
        },
        ConnectionError::ConnectionClosed(close) => match alert_of(close.error_code) {
            Some(alert) => Error::denied(format!("the peer refused this side's TLS: {}", alert_text(alert))),
            None => Error::retry("connection lost").with_source(error),
        },
        ConnectionError::VersionMismatch => Error::unsupported("the peer speaks no QUIC version of this build"),
        ConnectionError::LocallyClosed => Error::cancelled("the connection was closed by this side"),
        ConnectionError::TimedOut => Error::retry("connection lost: the peer went silent"),
        ConnectionError::Reset | ConnectionError::CidsExhausted => {
            Error::retry("connection lost").with_source(error)
        }
    }
}

/// The TLS alert in a transport code.
pub(super) fn alert_of(code: TransportErrorCode) -> Option<u8> {
    u64::from(code).checked_sub(CRYPTO_BASE).and_then(|alert| u8::try_from(alert).ok())
}

/// What a TLS alert (RFC 8446, section 6) means here.
fn alert_text(alert: u8) -> String {
    match alert {
        42 | 43 | 46 => "the certificate is not acceptable for this party".into(),
        44 => "the certificate is revoked".into(),
        45 => "the certificate has expired: issue a new one".into(),
        48 | 51 => "the certificate is not of this fleet's authority".into(),
        116 => "no certificate was shown".into(),
        120 => "the port speaks another protocol".into(),
        other => format!("alert {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_survive_the_wire() {
        for kind in ErrorKind::ALL {
            assert_eq!(error_of(ReadError::Reset(code(kind))).kind(), kind);
            assert_eq!(error_of(WriteError::Stopped(code(kind))).kind(), kind);
        }
        assert_eq!(error_of(ReadError::Reset(VarInt::from_u32(0))).kind(), ErrorKind::Cancelled);
        assert_eq!(error_of(ConnectionError::TimedOut).kind(), ErrorKind::Retry);
        assert_eq!(error_of(ReadExactError::FinishedEarly(3)).kind(), ErrorKind::Damaged);
    }

    #[test]
    fn alerts_are_told_from_other_codes() {
        assert_eq!(alert_of(TransportErrorCode::crypto(116)), Some(116));
        assert_eq!(alert_of(TransportErrorCode::INTERNAL_ERROR), None);
    }
}
