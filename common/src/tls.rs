//! TLS settings of every port and every dialler of the fleet.
//!
//! Certificates on both sides, TLS 1.3, one crypto provider (aws-lc-rs) named explicitly, no session resumption: a
//! resumed session would go on under a certificate that has ended or an authority that was withdrawn.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use tidemark_proto::{ErrorKind, Result, error::ResultExt};

use crate::identity::Expected;
use crate::pki::Credentials;

mod verify;

/// ALPN of control and bulk connections.
pub const ALPN_CONTROL: &[u8] = b"tidemark/1";
/// ALPN of the data protocol.
pub const ALPN_KV: &[u8] = b"tidemark-kv/1";
/// ALPN of the HTTPS API, the preferred first.
pub const ALPN_HTTPS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Name in the client's hello. Identities are URIs in certificates, so that one name serves for all.
pub const SERVER_NAME: &str = "tidemark.internal";

/// The crypto provider of everything.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn server(credentials: &Credentials, alpn: &[&[u8]]) -> Result<ServerConfig> {
    let verifier = Arc::new(verify::FleetVerifier::clients(credentials.clone()));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .or_kind(ErrorKind::Bug, "TLS 1.3 with aws-lc-rs")?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(credentials.clone()));
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(credentials: &Credentials, alpn: &[&[u8]], expected: Expected) -> Result<ClientConfig> {
    let verifier = Arc::new(verify::FleetVerifier::server(credentials.clone(), expected));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .or_kind(ErrorKind::Bug, "TLS 1.3 with aws-lc-rs")?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(credentials.clone()));
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// A QUIC port that speaks one ALPN; any certificate of the fleet passes TLS, roles are checked at the hello.
pub fn quic_server(credentials: &Credentials, alpn: &[u8]) -> Result<ServerConfig> {
    server(credentials, &[alpn])
}

/// A QUIC dialler that accepts the expected party alone.
pub fn quic_client(credentials: &Credentials, alpn: &[u8], expected: Expected) -> Result<ClientConfig> {
    client(credentials, &[alpn], expected)
}

/// The HTTPS API's port; any certificate of the fleet passes TLS, roles are checked by the API.
pub fn https_server(credentials: &Credentials) -> Result<ServerConfig> {
    server(credentials, &ALPN_HTTPS)
}

/// The command line's HTTPS calls to a coordinator (`reqwest::ClientBuilder::tls_backend_preconfigured`).
pub fn https_client(credentials: &Credentials) -> Result<ClientConfig> {
    client(credentials, &ALPN_HTTPS, Expected::Coordinator)
}
