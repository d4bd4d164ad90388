//! What went wrong with a request, as our error.

use std::error::Error as StdError;

use reqwest::StatusCode;
use tidemark_proto::{Error, ErrorKind};

use crate::api::Problem;

/// No answer came.
pub(super) fn of_transport(url: &str, error: reqwest::Error) -> Error {
    let error = error.without_url();
    match tls_cause(&error) {
        Some(tls) => Error::denied(format!(
            "{url}: TLS does not come about ({tls}): check that --ca, --cert and --key are of the coordinator's fleet and \
             have not ended (`tidemark pki show`)"
        )),
        None if error.is_connect() => Error::retry(format!(
            "{url} does not answer: is the coordinator running, and is --coordinator its API address?"
        ))
        .with_source(error),
        None if error.is_timeout() => Error::retry(format!("{url} takes too long to answer")).with_source(error),
        None => Error::retry(format!("{url}: the connection broke")).with_source(error),
    }
}

fn tls_cause(error: &(dyn StdError + 'static)) -> Option<String> {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return Some(tls.to_string());
    }
    // The source of an `io::Error` is that of what it wraps, not what it wraps.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match wrapped {
        Some(wrapped) => tls_cause(wrapped),
        None => error.source().and_then(tls_cause),
    }
}

/// An answer that is no success.
pub(super) fn of_answer(url: &str, status: StatusCode, body: &[u8]) -> Error {
    if let Ok(problem) = serde_json::from_slice::<Problem>(body) {
        return Error::new(problem.kind(), problem.detail);
    }
    let kind = if status.is_server_error() { ErrorKind::Retry } else { ErrorKind::Config };
    Error::new(kind, format!("{url} answers {status}, not as a Tidemark coordinator does: check --coordinator"))
}

/// An answer that is not what was asked for.
pub(super) fn of_content(url: &str, error: serde_json::Error) -> Error {
    Error::unsupported(format!(
        "{url} answers in a form that this build ({}) does not know: use builds that belong together",
        crate::BUILD
    ))
    .with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_keeps_its_kind_and_words() {
        for kind in ErrorKind::ALL {
            let body = format!(
                r#"{{"type":"about:blank#{kind}","title":"{kind}","status":{},"detail":"do this"}}"#,
                kind.http_status()
            );
            let status = StatusCode::from_u16(kind.http_status()).unwrap();
            let e = of_answer("https://c", status, body.as_bytes());
            assert_eq!((e.kind(), e.message()), (kind, "do this"));
        }
    }

    #[test]
    fn a_fault_of_tls_is_found_however_it_is_wrapped() {
        let tls = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = std::io::Error::other(std::io::Error::other(tls()));
        assert_eq!(tls_cause(&wrapped), Some(tls().to_string()));
        assert_eq!(tls_cause(&Error::retry("x").with_source(wrapped)), Some(tls().to_string()));
        assert_eq!(tls_cause(&std::io::Error::other("reset")), None);
    }

    #[test]
    fn other_servers_are_told_apart() {
        let e = of_answer("https://c", StatusCode::NOT_FOUND, b"<html>");
        assert_eq!(e.kind(), ErrorKind::Config);
        assert!(e.message().contains("--coordinator"), "{e}");
        assert_eq!(of_answer("https://c", StatusCode::BAD_GATEWAY, b"").kind(), ErrorKind::Retry);
    }
}
