//! Serving the API over TLS: operator certificates only.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use metrics::counter;
use tidemark_common::identity::Identity;
use tidemark_common::metric_names;
use tidemark_common::pki::Credentials;
use tidemark_common::tls;
use tidemark_proto::{Error, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::context::Shared;

/// Connections at once.
const MAX_CONNECTIONS: usize = 256;
/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `shutdown`.
pub async fn run(context: Shared, listener: TcpListener, credentials: Credentials, shutdown: CancellationToken) {
    let config = match tls::https_server(&credentials) {
        Ok(config) => config,
        Err(e) => {
            tracing::error!(error = %e.report(), "the API cannot be served");
            return;
        }
    };
    let (acceptor, router) = (TlsAcceptor::from(Arc::new(config)), super::router(context));
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let permit = match room.clone().acquire_owned().await {
            Ok(permit) => permit,
            Err(_) => break,
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => {
                let stream = match accepted {
                    Ok((stream, _)) => stream,
                    Err(e) => {
                        tracing::warn!(error = %e, "API: cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let (acceptor, router, shutdown) = (acceptor.clone(), router.clone(), shutdown.clone());
                let _ = connections.spawn(async move {
                    if let Err(e) = connection(stream, acceptor, router, shutdown).await {
                        tracing::debug!(error = %e.report(), "API connection");
                    }
                    drop(permit);
                });
            }
        }
    }
    connections.shutdown().await;
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
) -> Result<()> {
    let refused =
        |reason: &'static str| counter!(metric_names::HANDSHAKES_REFUSED, "reason" => reason).increment(1);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
    let stream = handshake.map_err(|_| Error::retry("the handshake took too long"))?.map_err(|e| {
        refused("untrusted");
        Error::denied("TLS handshake").with_source(e)
    })?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
    let leaf = leaf.ok_or_else(|| Error::denied("no client certificate"))?;
    let identity = Identity::of_certificate(leaf)?;
    let router = if matches!(identity, Identity::Operator { .. } | Identity::Coordinator { .. }) {
        router
    } else {
        refused("wrong_role");
        super::problem::refusing(format!("{identity} is no operator"))
    };
    let builder = Builder::new(TokioExecutor::new());
    let serve = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serve = std::pin::pin!(serve);
    let served = tokio::select! {
        served = serve.as_mut() => served,
        () = shutdown.cancelled() => {
            serve.as_mut().graceful_shutdown();
            // Event streams have no end of their own; they are cut when the listener's tasks are.
            serve.await
        }
    };
    served.map_err(|e| Error::retry("API connection").with_source(e))
}
