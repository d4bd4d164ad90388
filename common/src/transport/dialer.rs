//! Dialling until it works.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::codes::error_of;
use super::hello::{Greeting, Session, greet};
use super::limits;
use super::refusal::{RefusalReason, count_refusal};
use crate::identity::Expected;
use crate::pki::Credentials;
use crate::tls;

/// Doubling waits with jitter: each is half to all of its step, so that a fleet does not return in one wave.
#[derive(Debug, Clone)]
pub struct Backoff {
    step: Duration,
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// First step of a dialler.
    pub const FIRST: Duration = Duration::from_millis(100);
    /// Longest step of a dialler.
    pub const LONGEST: Duration = Duration::from_secs(10);

    /// Steps from `first`, doubling up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { step: first, first, longest }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.step.mul_f64(rand::random_range(0.5..1.0));
        self.step = (self.step * 2).min(self.longest);
        wait
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.step = self.first;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Self::FIRST, Self::LONGEST)
    }
}

/// A connection that lasted this long counts as success: the waits begin anew.
const STABLE: Duration = Duration::from_secs(5);

/// Dials one party at a list of addresses, the first that answers.
#[derive(Debug)]
pub struct Dialer {
    endpoint: Endpoint,
    config: ClientConfig,
    addresses: Vec<String>,
    greeting: Greeting,
    backoff: Backoff,
    connected: Option<Instant>,
    last_cause: String,
}

impl Dialer {
    /// A dialler of `expected` at `addresses` (`host:port`, asked of the resolver anew at each attempt).
    pub fn new(
        endpoint: Endpoint,
        credentials: &Credentials,
        alpn: &[u8],
        expected: Expected,
        addresses: Vec<String>,
        greeting: Greeting,
    ) -> Result<Self> {
        if addresses.is_empty() {
            return Err(Error::config(format!("no address to find {expected} at")));
        }
        let tls = QuicClientConfig::try_from(tls::quic_client(credentials, alpn, expected)?)
            .or_kind(ErrorKind::Bug, "TLS settings do not fit QUIC")?;
        let mut config = ClientConfig::new(Arc::new(tls));
        let _ = config.transport_config(limits::transport());
        let backoff = Backoff::default();
        Ok(Self { endpoint, config, addresses, greeting, backoff, connected: None, last_cause: String::new() })
    }

    /// Dials until a connection stands; only `cancel` ends it (`Cancelled`). A cause of failure is logged once while it
    /// repeats. Called again after a short connection it waits first.
    pub async fn connect(&mut self, cancel: &CancellationToken) -> Result<Session> {
        let cancelled = || Error::cancelled("dialling was ended");
        match self.connected.take() {
            Some(since) if since.elapsed() < STABLE => self.pause(cancel).await?,
            Some(_) => self.backoff.reset(),
            None => {}
        }
        loop {
            let attempt = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(cancelled()),
                attempt = self.connect_once() => attempt,
            };
            match attempt {
                Ok(session) => {
                    self.connected = Some(Instant::now());
                    self.last_cause.clear();
                    return Ok(session);
                }
                Err(e) => self.note(&e),
            }
            self.pause(cancel).await?;
        }
    }

    async fn pause(&mut self, cancel: &CancellationToken) -> Result<()> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::cancelled("dialling was ended")),
            () = sleep(self.backoff.next_wait()) => Ok(()),
        }
    }

    fn note(&mut self, error: &Error) {
        let cause = error.report();
        if cause == self.last_cause {
            tracing::debug!(error = %cause, "still no connection");
        } else {
            tracing::warn!(error = %cause, "no connection; trying again until there is one");
            self.last_cause = cause;
        }
    }

    /// Tries every address once. The error is that of the last address, with the others' before it.
    pub async fn connect_once(&self) -> Result<Session> {
        let mut failure: Option<Error> = None;
        for address in &self.addresses {
            match self.try_address(address).await {
                Ok(session) => return Ok(session),
                Err(e) => {
                    let e = e.context(address);
                    failure = Some(match failure {
                        Some(before) => e.context(before.report()),
                        None => e,
                    });
                }
            }
        }
        Err(failure.unwrap_or_else(|| Error::bug("a dialler without addresses")))
    }

    async fn try_address(&self, address: &str) -> Result<Session> {
        let found: Vec<SocketAddr> =
            tokio::net::lookup_host(address).await.or_kind(ErrorKind::Retry, "the name has no address")?.collect();
        let mut failure = Error::retry("the name has no address");
        for socket in found {
            match timeout(limits::HANDSHAKE_TIMEOUT, self.try_socket(socket)).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(e)) => failure = e,
                Err(_) => failure = Error::retry("no answer: is it running, and is UDP let through?"),
            }
        }
        Err(failure)
    }

    async fn try_socket(&self, socket: SocketAddr) -> Result<Session> {
        let connecting = self
            .endpoint
            .connect_with(self.config.clone(), socket, tls::SERVER_NAME)
            .or_kind(ErrorKind::Retry, "cannot dial")?;
        let connection = connecting.await.map_err(|e| {
            let reason = RefusalReason::of_connection(&e);
            if reason != RefusalReason::Other {
                count_refusal(reason);
            }
            error_of(e)
        })?;
        greet(connection, &self.greeting).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_their_bounds() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        for step in [100, 200, 350, 350] {
            let wait = backoff.next_wait();
            assert!(wait >= Duration::from_millis(step / 2) && wait < Duration::from_millis(step), "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.next_wait() < Duration::from_millis(100));
    }
}
