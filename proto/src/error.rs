//! The one error type of Tidemark. Its kind answers "what should I do now?" and maps to one QUIC reset code,
//! one exit code of the command line and one HTTP status. Numbers are written out and never reused.

use std::fmt;

/// Shorthand for results of this crate's error type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the receiver of an error can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Passing trouble (network, throttling, time-out): try again later.
    Retry,
    /// The request is wrong: fix its words.
    Request,
    /// What was named does not exist.
    NotFound,
    /// The request does not fit the present state (exists already, busy, not empty).
    Conflict,
    /// No right to do this: certificate missing, expired, of another fleet or another role.
    Denied,
    /// The configuration is wrong: fix it and start again.
    Config,
    /// Stored or received bytes are damaged: checksum, seal or structure does not hold.
    Damaged,
    /// Somebody with a newer epoch took over: stop.
    Fenced,
    /// No room or budget left (disk, memory, quota).
    Full,
    /// Ended on request.
    Cancelled,
    /// This build cannot do it (version, engine capability).
    Unsupported,
    /// A defect of Tidemark: report it.
    Bug,
    /// It was done, as far as it could be: what is damaged is missing.
    Incomplete,
}

impl ErrorKind {
    /// Every kind, in the order of its code.
    pub const ALL: [ErrorKind; 13] = [
        Self::Retry,
        Self::Request,
        Self::NotFound,
        Self::Conflict,
        Self::Denied,
        Self::Config,
        Self::Damaged,
        Self::Fenced,
        Self::Full,
        Self::Cancelled,
        Self::Unsupported,
        Self::Bug,
        Self::Incomplete,
    ];

    /// The number on the wire: QUIC application close and stream reset code.
    pub const fn code(self) -> u32 {
        match self {
            Self::Retry => 1,
            Self::Request => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Denied => 5,
            Self::Config => 6,
            Self::Damaged => 7,
            Self::Fenced => 8,
            Self::Full => 9,
            Self::Cancelled => 10,
            Self::Unsupported => 11,
            Self::Bug => 12,
            Self::Incomplete => 13,
        }
    }

    /// The kind of a wire code; an unknown code of a newer peer is a [`ErrorKind::Bug`].
    pub fn from_code(code: u64) -> Self {
        Self::ALL.into_iter().find(|k| u64::from(k.code()) == code).unwrap_or(Self::Bug)
    }

    /// Exit code of the command line (the numbers of `sysexits.h` where one fits).
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Request => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Cancelled => 5,
            Self::Incomplete => 6,
            Self::Config => 64,
            Self::Damaged => 65,
            Self::Unsupported => 69,
            Self::Bug => 70,
            Self::Full => 74,
            Self::Retry => 75,
            Self::Fenced => 76,
            Self::Denied => 77,
        }
    }

    /// Status of the HTTP API.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Request => 400,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::Conflict | Self::Fenced => 409,
            Self::Cancelled => 410,
            Self::Damaged | Self::Incomplete => 422,
            Self::Config | Self::Bug => 500,
            Self::Unsupported => 501,
            Self::Retry => 503,
            Self::Full => 507,
        }
    }

    /// The stable name used in JSON, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Request => "request",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::Config => "config",
            Self::Damaged => "damaged",
            Self::Fenced => "fenced",
            Self::Full => "full",
            Self::Cancelled => "cancelled",
            Self::Unsupported => "unsupported",
            Self::Bug => "bug",
            Self::Incomplete => "incomplete",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An error with its kind, a message that says what to do, and the cause it came from.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident;)*) => {
        impl Error {
            $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Self { Self::new(ErrorKind::$kind, message) })*
        }
    };
}

constructors! {
    /// Passing trouble.
    retry => Retry;
    /// A wrong request.
    request => Request;
    /// Nothing of that name.
    not_found => NotFound;
    /// The present state forbids it.
    conflict => Conflict;
    /// Not allowed.
    denied => Denied;
    /// Wrong configuration.
    config => Config;
    /// Damaged bytes.
    damaged => Damaged;
    /// A newer epoch took over.
    fenced => Fenced;
    /// No room.
    full => Full;
    /// Ended on request.
    cancelled => Cancelled;
    /// Not in this build.
    unsupported => Unsupported;
    /// A defect.
    bug => Bug;
}

impl Error {
    /// An error of `kind` that reads `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts `context: ` before the message; kind and cause stay.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// What can be done about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message without the chain of causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The message with all causes, on one line.
    pub fn report(&self) -> String {
        let mut out = self.message.clone();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            let text = cause.to_string();
            // Many libraries repeat their cause in their own text; say it once.
            if !out.contains(&text) {
                out.push_str(": ");
                out.push_str(&text);
            }
            next = cause.source();
        }
        out
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as _)
    }
}

/// Adds context and a kind to the errors of other libraries.
pub trait ResultExt<T> {
    /// Turns the error into ours with `kind` and `message`, keeping it as the cause.
    fn or_kind(self, kind: ErrorKind, message: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> ResultExt<T> for std::result::Result<T, E> {
    fn or_kind(self, kind: ErrorKind, message: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Error::new(kind, message.to_string()).with_source(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_come_back() {
        for k in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_code(u64::from(k.code())), k);
            assert_eq!(ErrorKind::ALL.iter().filter(|o| o.exit_code() == k.exit_code()).count(), 1);
        }
        assert_eq!(ErrorKind::from_code(999), ErrorKind::Bug);
    }

    #[test]
    fn report_names_every_cause_once() {
        let inner = Error::retry("disk on fire");
        let outer = Error::damaged("pack 7").with_source(inner).context("restore");
        assert_eq!(outer.report(), "restore: pack 7: disk on fire");
        assert_eq!(outer.kind(), ErrorKind::Damaged);
    }
}
