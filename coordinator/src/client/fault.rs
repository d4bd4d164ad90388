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

fn tls_cause(error: &reqwest::Error) -> Option<String> {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return Some(tls.to_string());
        }
        let inner = cause.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        if let Some(tls) = inner.and_then(|i| i.downcast_ref::<rustls::Error>()) {
            return Some(tls.to_string());
        }
        next = cause.source();
    }
    None
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
    fn other_servers_are_told_apart() {
        let e = of_answer("https://c", StatusCode::NOT_FOUND, b"<html>");
        assert_eq!(e.kind(), ErrorKind::Config);
        assert!(e.message().contains("--coordinator"), "{e}");
        assert_eq!(of_answer("https://c", StatusCode::BAD_GATEWAY, b"").kind(), ErrorKind::Retry);
    }
}
