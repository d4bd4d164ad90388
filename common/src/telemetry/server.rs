//! The HTTP server of [`super`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Metrics, Observed};

/// Connections at once; further ones wait.
const MAX_CONNECTIONS: usize = 32;
/// Time for a client to send its request; a kept connection that asks nothing for this long is closed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the daemon to say whether it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`.
pub(super) async fn run(
    listener: TcpListener,
    metrics: Metrics,
    observed: Arc<dyn Observed>,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            place = places.clone().acquire_owned() => place,
        };
        let Ok(place) = place else { break };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (metrics, observed) = (metrics.clone(), observed.clone());
                    let _ = connections.spawn(async move {
                        connection(stream, metrics, observed).await;
                        drop(place);
                    });
                }
                Err(e) => {
                    tracing::warn!(error = %e, "telemetry: cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, metrics: Metrics, observed: Arc<dyn Observed>) {
    let service = service_fn(|request: Request<Incoming>| {
        let (metrics, observed) = (metrics.clone(), observed.clone());
        async move { Ok::<_, Infallible>(answer(request.method(), request.uri().path(), &metrics, &observed).await) }
    });
    let mut server = http1::Builder::new();
    let _ = server.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT);
    if let Err(e) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error = %e, "telemetry connection");
    }
}

async fn answer(
    method: &Method,
    path: &str,
    metrics: &Metrics,
    observed: &Arc<dyn Observed>,
) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
    }
    match path {
        "/metrics" => {
            let mut response = text(StatusCode::OK, metrics.render(observed.as_ref()));
            let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            let _ = response.headers_mut().insert(CONTENT_TYPE, format);
            response
        }
        "/healthz" => text(StatusCode::OK, "alive\n".into()),
        "/readyz" => {
            let ready = tokio::time::timeout(READY_TIMEOUT, observed.ready()).await;
            match ready.unwrap_or_else(|_| Err("it does not answer in time".into())) {
                Ok(()) => text(StatusCode::OK, "ready\n".into()),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".into()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    let _ = response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
