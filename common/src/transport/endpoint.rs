//! Opening UDP sockets and endpoints.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use aws_lc_rs::hmac;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use quinn_proto::HashedConnectionIdGenerator;
use socket2::{Domain, Protocol, Socket, Type};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::limits;
use crate::pki::Credentials;
use crate::tls;

fn socket(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // `[::]` answers both families, also where the system's default says otherwise.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // The kernel caps what it grants (net.core.rmem_max); less costs speed, nothing else.
    for granted in
        [socket.set_recv_buffer_size(limits::SOCKET_BUFFER), socket.set_send_buffer_size(limits::SOCKET_BUFFER)]
    {
        if let Err(e) = granted {
            tracing::debug!(error = %e, "UDP socket buffers keep the system's size");
        }
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Settings of an endpoint that was there before: packets of connections that ended with its last process are answered
/// with a reset that their peers believe, so that those come back at once and not after the idle time-out (RFC 9000,
/// section 10.3). Needs the same secret: for the reset tokens, and to know ids that the last process gave out.
fn lasting(secret: &[u8; 32]) -> EndpointConfig {
    let mut config = limits::endpoint();
    let reset = blake3::derive_key("tidemark 2026-11-21 stateless reset", secret);
    let ids = blake3::derive_key("tidemark 2026-11-21 connection ids", secret);
    let ids = u64::from_le_bytes([ids[0], ids[1], ids[2], ids[3], ids[4], ids[5], ids[6], ids[7]]);
    let _ = config
        .reset_key(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset)))
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}

fn endpoint(socket: UdpSocket, config: EndpointConfig, server: Option<ServerConfig>) -> Result<Endpoint> {
    Endpoint::new(config, server, socket, Arc::new(TokioRuntime))
        .or_kind(ErrorKind::Config, "QUIC endpoint cannot be opened")
}

/// Opens a port that speaks `alpn` (see [`tls::ALPN_CONTROL`], [`tls::ALPN_KV`]). `[::]` serves both address families.
pub fn server_endpoint(address: SocketAddr, credentials: &Credentials, alpn: &[u8]) -> Result<Endpoint> {
    let tls = QuicServerConfig::try_from(tls::quic_server(credentials, alpn)?)
        .or_kind(ErrorKind::Bug, "TLS settings do not fit QUIC")?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    let _ = config.transport_config(limits::server_transport()).max_incoming(limits::MAX_HANDSHAKES);
    let socket = socket(address).map_err(|e| {
        Error::config(format!("UDP port {address} cannot be opened: choose a free address of this host"))
            .with_source(e)
    })?;
    endpoint(socket, lasting(&credentials.current().endpoint_secret), Some(config))
}

/// Opens a socket to dial from: both address families where the host has both.
pub fn client_endpoint() -> Result<Endpoint> {
    let socket = socket(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))
        .or_else(|_| socket(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))
        .or_kind(ErrorKind::Config, "no UDP socket can be opened")?;
    endpoint(socket, limits::endpoint(), None)
}
