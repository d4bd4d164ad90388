//! Why connections are refused, counted.

use metrics::counter;
use quinn::ConnectionError;

use super::codes::alert_of;
use crate::metric_names;

/// The `reason` label of [`metric_names::HANDSHAKES_REFUSED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// The peer showed no certificate.
    NoCertificate,
    /// The certificate is not of this fleet's authority.
    Untrusted,
    /// The certificate has expired or is not valid yet.
    Expired,
    /// The identity may not do this here.
    WrongRole,
    /// The peer's configuration names another node than its certificate.
    WrongNode,
    /// No protocol version or purpose in common.
    Version,
    /// Anything else (time-outs, broken handshakes).
    Other,
}

impl RefusalReason {
    /// The label's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Untrusted => "untrusted",
            Self::Expired => "expired",
            Self::WrongRole => "wrong_role",
            Self::WrongNode => "wrong_node",
            Self::Version => "version",
            Self::Other => "other",
        }
    }

    /// Why this side's TLS refused a peer, from what quinn reports.
    pub fn of_connection(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(e) => alert_of(e.code).map_or(Self::Other, Self::of_alert),
            _ => Self::Other,
        }
    }

    /// Why this side's TLS refused a peer, from what rustls reports (the HTTPS port).
    pub fn of_tls(error: &rustls::Error) -> Self {
        use rustls::CertificateError as C;
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::InvalidCertificate(
                C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. },
            ) => Self::Expired,
            rustls::Error::InvalidCertificate(_) => Self::Untrusted,
            _ => Self::Other,
        }
    }

    /// Alerts of RFC 8446, section 6, as rustls chooses them for faults of certificates.
    fn of_alert(alert: u8) -> Self {
        match alert {
            116 => Self::NoCertificate,
            45 => Self::Expired,
            42 | 43 | 44 | 46 | 48 | 51 => Self::Untrusted,
            _ => Self::Other,
        }
    }
}

/// Counts a refused connection.
pub fn count_refusal(reason: RefusalReason) {
    counter!(metric_names::HANDSHAKES_REFUSED, "reason" => reason.name()).increment(1);
}
