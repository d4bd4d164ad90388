//! How requests to the object store go: counted by outcome, attempt by attempt, and the last failure remembered.

use std::error::Error as StdError;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use tidemark_proto::{Error, ErrorKind, Result};

use crate::metric_names::{STORE_ATTEMPTS, STORE_SECONDS, outcome};

/// What the last requests came to.
#[derive(Debug, Default)]
pub struct Health {
    failed: Mutex<Option<(Instant, String)>>,
}

/// No answer came in time. Marked, so that it is counted as such.
#[derive(Debug)]
struct TimedOut(Duration);

impl std::fmt::Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no answer within {} s", self.0.as_secs())
    }
}

impl StdError for TimedOut {}

/// The error of a request that took too long.
pub(super) fn timed_out(key: &str, limit: Duration) -> Error {
    Error::retry(format!("object store: {key}")).with_source(TimedOut(limit))
}

/// Words by which stores ask for fewer requests. The client library passes their answer on as text alone.
const THROTTLED: [&str; 5] = ["SlowDown", "429 Too Many", "503 Service", "ServerBusy", "rateLimitExceeded"];

fn outcome_of<T>(result: &Result<T>, last: bool) -> &'static str {
    let Err(error) = result else { return outcome::OK };
    match error.kind() {
        ErrorKind::Conflict => outcome::CONFLICT,
        ErrorKind::NotFound => outcome::NOT_FOUND,
        ErrorKind::Retry if error.source().is_some_and(|s| s.is::<TimedOut>()) => outcome::TIMEOUT,
        ErrorKind::Retry if THROTTLED.iter().any(|w| error.report().contains(w)) => outcome::THROTTLED,
        ErrorKind::Retry if !last => outcome::RETRY,
        _ => outcome::FAILED,
    }
}

impl Health {
    /// Takes note of an attempt; `last` when no other follows.
    pub(super) fn note<T>(&self, result: &Result<T>, took: Duration, last: bool) {
        let outcome = outcome_of(result, last);
        counter!(STORE_ATTEMPTS, "outcome" => outcome).increment(1);
        histogram!(STORE_SECONDS).record(took);
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Err(e) if e.kind() == ErrorKind::Retry && !last => {}
            // The store has answered, be it that something is there or is not.
            Err(e) if !matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {
                *failed = Some((Instant::now(), e.report()));
            }
            _ => *failed = None,
        }
    }

    /// Why the last request failed, unless that was longer ago than `within` or others went well since.
    pub fn trouble(&self, within: Duration) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().filter(|(at, _)| at.elapsed() < within).map(|(_, why)| why.clone())
    }
}

/// Counts a piece of a pack, which the client library tries again by itself.
pub(super) fn count_piece(result: &Result<()>) {
    counter!(STORE_ATTEMPTS, "outcome" => outcome_of(result, true)).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_told_apart() {
        let error = |kind, text: &str| {
            Err::<(), _>(Error::new(kind, "x").with_source(std::io::Error::other(text.to_owned())))
        };
        for (result, last, expected) in [
            (Ok(()), false, outcome::OK),
            (Err(timed_out("k", Duration::from_secs(60))), false, outcome::TIMEOUT),
            (Err(timed_out("k", Duration::from_secs(60))), true, outcome::TIMEOUT),
            (error(ErrorKind::Retry, "reset"), false, outcome::RETRY),
            (error(ErrorKind::Retry, "reset"), true, outcome::FAILED),
            (error(ErrorKind::Retry, "status 503 Service Unavailable"), false, outcome::THROTTLED),
            (error(ErrorKind::Retry, "<Code>SlowDown</Code>"), true, outcome::THROTTLED),
            (error(ErrorKind::Denied, "no"), false, outcome::FAILED),
            (error(ErrorKind::Conflict, "there"), false, outcome::CONFLICT),
            (error(ErrorKind::NotFound, "gone"), false, outcome::NOT_FOUND),
        ] {
            assert_eq!(outcome_of(&result, last), expected);
        }
    }

    #[test]
    fn trouble_ends_with_the_next_answer() {
        let (health, within) = (Health::default(), Duration::from_secs(60));
        let note = |result: Result<()>, last| health.note(&result, Duration::ZERO, last);
        note(Err(Error::retry("passing")), false);
        assert_eq!(health.trouble(within), None, "it is tried again");
        note(Err(Error::retry("away")), true);
        assert!(health.trouble(within).unwrap().contains("away"));
        assert_eq!(health.trouble(Duration::ZERO), None, "long ago");
        note(Err(Error::not_found("no such object")), false);
        assert_eq!(health.trouble(within), None, "an answer");
        note(Err(Error::denied("no")), false);
        assert!(health.trouble(within).is_some());
    }
}
