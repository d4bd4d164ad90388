//! Answers of the server, good and bad.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG as ETAG_HEADER, LAST_MODIFIED, RANGE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;

use super::body_of;

/// Every object's tag: nobody compares them.
pub(super) const ETAG: &str = "\"tag\"";
const DATE: &str = "Sat, 21 Nov 2026 10:00:00 GMT";
const ISO_DATE: &str = "2026-11-21T10:00:00.000Z";
/// Pieces of a slow body.
const PIECES: usize = 8;
/// Keys of one page of a listing: small, so that clients must ask for more.
const PAGE: usize = 50;

pub(super) fn status(code: StatusCode) -> Response {
    Response::builder().status(code).body(Body::empty()).expect("a response")
}

/// A refusal with the code that S3 gives in its body.
pub(super) fn refusal(code: u16) -> Response {
    let word = match code {
        404 => "NoSuchKey",
        412 => "PreconditionFailed",
        429 => "TooManyRequests",
        503 => "SlowDown",
        _ => "InternalError",
    };
    let body = format!("<Error><Code>{word}</Code><Message>{word}</Message></Error>");
    Response::builder().status(code).body(Body::from(body)).expect("a response")
}

pub(super) fn xml(body: &str) -> Response {
    let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{body}");
    Response::builder().header("content-type", "application/xml").body(Body::from(body)).expect("a response")
}

pub(super) fn etag(tag: &str) -> Response {
    Response::builder().header(ETAG_HEADER, format!("\"{tag}\"")).body(Body::empty()).expect("a response")
}

/// `bytes=a-b`, cut to the object.
fn range(headers: &HeaderMap, len: usize) -> Option<(usize, usize)> {
    let text = headers.get(RANGE)?.to_str().ok()?.strip_prefix("bytes=")?;
    let (from, to) = text.split_once('-')?;
    Some((from.parse().ok()?, to.parse::<usize>().map_or(len, |to| to + 1).min(len)))
}

pub(super) fn object(object: Option<Bytes>, headers: &HeaderMap, head: bool) -> Response {
    let Some(object) = object else { return refusal(404) };
    let response = Response::builder().header(ETAG_HEADER, ETAG).header(LAST_MODIFIED, DATE);
    if head {
        return response.header(CONTENT_LENGTH, object.len()).body(Body::empty()).expect("a response");
    }
    match range(headers, object.len()) {
        Some((from, to)) if from >= to => refusal(416),
        Some((from, to)) => response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(CONTENT_RANGE, format!("bytes {from}-{}/{}", to - 1, object.len()))
            .body(Body::from(object.slice(from..to)))
            .expect("a response"),
        None => response.body(Body::from(object)).expect("a response"),
    }
}

pub(super) fn listing(objects: &BTreeMap<String, Bytes>, query: &HashMap<String, String>) -> Response {
    let word = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let (prefix, delimiter) = (word("prefix"), word("delimiter"));
    let after = word("continuation-token").max(word("start-after"));
    let found: Vec<_> = objects.iter().filter(|(k, _)| k.starts_with(prefix) && k.as_str() > after).collect();
    let next = match found.get(PAGE) {
        Some(_) => {
            let last = found[PAGE - 1].0;
            format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>")
        }
        None => String::new(),
    };
    let (mut contents, mut folders) = (String::new(), BTreeSet::new());
    for (key, body) in found.into_iter().take(PAGE) {
        match key[prefix.len()..].split_once(delimiter).filter(|_| !delimiter.is_empty()) {
            Some((folder, _)) => drop(folders.insert(format!("{prefix}{folder}{delimiter}"))),
            None => contents.push_str(&format!(
                "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>{ISO_DATE}</LastModified><ETag>{ETAG}</ETag></Contents>",
                body.len()
            )),
        }
    }
    let folders: String =
        folders.iter().map(|f| format!("<CommonPrefixes><Prefix>{f}</Prefix></CommonPrefixes>")).collect();
    xml(&format!("<ListBucketResult>{next}{contents}{folders}</ListBucketResult>"))
}

fn streamed(parts: axum::http::response::Parts, body: Body) -> Response {
    Response::from_parts(parts, body)
}

/// The body in pieces with pauses.
pub(super) async fn slowly(response: Response, pause: Duration) -> Response {
    let (mut parts, body) = body_of(response).await;
    let _ = parts.headers.insert(CONTENT_LENGTH, body.len().into());
    let size = body.len().div_ceil(PIECES).max(1);
    let pieces: Vec<Bytes> = body.chunks(size).map(Bytes::copy_from_slice).collect();
    let stream = futures::stream::unfold(pieces.into_iter(), move |mut pieces| async move {
        tokio::time::sleep(pause).await;
        pieces.next().map(|p| (Ok::<_, std::io::Error>(p), pieces))
    });
    streamed(parts, Body::from_stream(stream))
}

/// Half of the body that was announced.
pub(super) async fn cut_off(response: Response) -> Response {
    let (mut parts, body) = body_of(response).await;
    let _ = parts.headers.insert(CONTENT_LENGTH, body.len().into());
    let half = body.slice(..body.len() / 2);
    let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    streamed(parts, Body::from_stream(futures::stream::iter([Ok(half), Err(broken)])))
}

/// All but the last byte, and the length says so.
pub(super) async fn short(response: Response) -> Response {
    let (mut parts, body) = body_of(response).await;
    let less = body.slice(..body.len().saturating_sub(1));
    let _ = parts.headers.insert(CONTENT_LENGTH, less.len().into());
    streamed(parts, Body::from(less))
}
