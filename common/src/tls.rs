//! TLS settings of every port and every dialler of the fleet.
//!
//! Certificates on both sides, TLS 1.3, one crypto provider (aws-lc-rs) named explicitly, no session resumption: a
//! resumed session would go on under a certificate that has ended or an authority that was withdrawn.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use tidemark_proto::{ErrorKind, Result, error::ResultExt};

use crate::identity::Expected;
use crate::pki::{Credentials, load_certificates, load_private_key};

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

/// TLS to a store's own server: its name is checked against the authorities in `ca`; `own` names certificate and key for
/// servers that ask for them. `Config` names a file that is wrong.
pub fn store_client(ca: &Path, own: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in load_certificates(ca)? {
        roots.add(certificate).or_kind(ErrorKind::Config, format!("{}: holds a bad authority", ca.display()))?;
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .or_kind(ErrorKind::Bug, "TLS with aws-lc-rs")?
        .with_root_certificates(roots);
    Ok(Arc::new(match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => builder
            .with_client_auth_cert(load_certificates(cert)?, load_private_key(key)?)
            .or_kind(ErrorKind::Config, format!("{} and its key", cert.display()))?,
    }))
}

/// The command line's HTTPS calls to a coordinator (`reqwest::ClientBuilder::tls_backend_preconfigured`).
pub fn https_client(credentials: &Credentials) -> Result<ClientConfig> {
    client(credentials, &ALPN_HTTPS, Expected::Coordinator)
}
