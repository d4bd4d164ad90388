//! Connections to ingest and serve processes, dialled when a command names them and kept for the next.

use std::collections::HashMap;
use std::sync::Arc;

use quinn::{Connection, Endpoint};
use tidemark_common::identity::Expected;
use tidemark_common::pki::Credentials;
use tidemark_common::tls::ALPN_CONTROL;
use tidemark_common::transport::{Dialer, Greeting};
use tidemark_proto::wire::hello::Purpose;
use tidemark_proto::{Error, Result};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Time to reach an ingest or serve process before the part's attempt fails.
const CONNECT_DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);

type Slot = Arc<Mutex<Option<Connection>>>;

/// Dials and keeps one connection for each address.
#[derive(Debug)]
pub struct BulkDialer {
    endpoint: Endpoint,
    credentials: Credentials,
    slots: std::sync::Mutex<HashMap<String, Slot>>,
}

impl BulkDialer {
    /// A dialler on `endpoint`.
    pub fn new(endpoint: Endpoint, credentials: Credentials) -> Self {
        Self { endpoint, credentials, slots: std::sync::Mutex::default() }
    }

    /// A live connection to `address`; `Retry` when there is none within a time.
    pub async fn connection(&self, address: &str, cancel: &CancellationToken) -> Result<Connection> {
        let slot = self.slots.lock().expect("no panic while held").entry(address.to_owned()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(live) = slot.as_ref().filter(|c| c.close_reason().is_none()) {
            return Ok(live.clone());
        }
        let greeting = Greeting::of(self.credentials.identity(), Purpose::Bulk, crate::BUILD);
        let addresses = vec![address.to_owned()];
        let mut dialer = Dialer::new(
            self.endpoint.clone(),
            &self.credentials,
            ALPN_CONTROL,
            Expected::Coordinator,
            addresses,
            greeting,
        )?;
        let session = tokio::time::timeout(CONNECT_DEADLINE, dialer.connect(cancel)).await.map_err(|_| {
            Error::retry(format!("no connection to {address} within {} s", CONNECT_DEADLINE.as_secs()))
        })??;
        *slot = Some(session.connection.clone());
        Ok(session.connection)
    }
}
