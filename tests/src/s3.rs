//! An S3 server in this process that misbehaves on request: for the store's worst days.
//!
//! It keeps objects in memory and speaks as much of S3 as the product's client uses (objects, ranges, listings, uploads in
//! several parts, `If-None-Match: *`). Signatures are not checked.

mod answer;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The bucket.
pub const BUCKET: &str = "bucket";
/// Largest body taken, in bytes.
const MAX_BODY: usize = 256 << 20;

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status; nothing is done.
    Refused(u16),
    /// No answer; nothing is done.
    Silent,
    /// Done, and then answered with this status.
    DoneAndRefused(u16),
    /// Done, and no answer.
    DoneAndSilent,
    /// Done; the body comes in pieces with this pause between them.
    Slow(Duration),
    /// Done; the connection ends in the middle of the body.
    CutOff,
    /// Done; the body is a byte short, and so says its length.
    Short,
}

/// How conditions on puts are honoured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Conditions {
    /// As they must be.
    #[default]
    Honoured,
    /// Silently not at all: the last put wins.
    Ignored,
    /// Checked first, written a moment later: a race has several winners.
    CheckedThenWritten,
}

/// What the fault of a request is decided by.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Method.
    pub method: Method,
    /// Key in the bucket; empty for requests about the bucket.
    pub key: String,
    /// Query.
    pub query: HashMap<String, String>,
    /// Number of the request, from 1.
    pub number: u64,
}

type Decide = dyn Fn(&Asked) -> Option<Fault> + Send + Sync;

#[derive(Default)]
struct Kept {
    objects: BTreeMap<String, Bytes>,
    uploads: HashMap<String, BTreeMap<u32, Bytes>>,
    requests: u64,
    faults: u64,
}

struct Server {
    kept: Mutex<Kept>,
    conditions: Conditions,
    decide: Mutex<Arc<Decide>>,
}

/// A running server; it ends when dropped.
pub struct S3 {
    /// Where it listens.
    pub address: SocketAddr,
    server: Arc<Server>,
    task: JoinHandle<()>,
}

impl S3 {
    /// Starts one that behaves.
    pub async fn start(conditions: Conditions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("address");
        let (kept, decide) = (Mutex::default(), Mutex::new(Arc::new(|_: &Asked| None) as Arc<Decide>));
        let server = Arc::new(Server { kept, conditions, decide });
        let app = Router::new().fallback(handle).with_state(server.clone());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("serve") });
        Self { address, server, task }
    }

    /// From now on `decide` says what goes wrong.
    pub fn misbehave(&self, decide: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static) {
        *self.server.decide.lock().expect("decide") = Arc::new(decide);
    }

    /// From now on it takes no segment of a log, until what is answered says `false`.
    pub fn take_no_segment(&self) -> Arc<AtomicBool> {
        let away = Arc::new(AtomicBool::new(true));
        let now = away.clone();
        self.misbehave(move |asked| {
            let segment = asked.key.contains("/log/") && asked.method == Method::PUT;
            (segment && now.load(Ordering::Relaxed)).then_some(Fault::Refused(500))
        });
        away
    }

    /// From now on nothing goes wrong.
    pub fn behave(&self) {
        self.misbehave(|_| None);
    }

    /// Requests that something went wrong with so far.
    pub fn faults(&self) -> u64 {
        self.server.kept.lock().expect("kept").faults
    }

    /// Keys of all objects.
    pub fn keys(&self) -> Vec<String> {
        self.server.kept.lock().expect("kept").objects.keys().cloned().collect()
    }

    /// Uploads in several parts that were begun and not ended.
    pub fn open_uploads(&self) -> usize {
        self.server.kept.lock().expect("kept").uploads.len()
    }

    /// Options of the client that reach it, as names and values.
    pub fn options(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://{}", self.address);
        [
            ("aws_endpoint", endpoint.as_str()),
            ("aws_allow_http", "true"),
            ("aws_region", "us-east-1"),
            ("aws_access_key_id", "test"),
            ("aws_secret_access_key", "test"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// URL of a repository in it.
    pub fn url(&self) -> String {
        format!("s3://{BUCKET}/repository")
    }
}

impl std::fmt::Debug for S3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn handle(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_start_matches('/');
    let key = path.strip_prefix(BUCKET).unwrap_or(path).trim_start_matches('/');
    let query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let key = urlencoding(key);
    let asked = {
        let mut kept = server.kept.lock().expect("kept");
        kept.requests += 1;
        let query = query.into_owned().collect();
        Asked { method: parts.method, key, query, number: kept.requests }
    };
    let decide = server.decide.lock().expect("decide").clone();
    let fault = decide(&asked);
    server.kept.lock().expect("kept").faults += u64::from(fault.is_some());
    // A body that is not read would look like a broken connection.
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return answer::status(StatusCode::BAD_REQUEST);
    };
    match fault {
        Some(Fault::Refused(code)) => return answer::refusal(code),
        Some(Fault::Silent) => std::future::pending().await,
        _ => {}
    }
    let done = server.act(&asked, &parts.headers, body).await;
    match fault {
        Some(Fault::DoneAndRefused(code)) => answer::refusal(code),
        Some(Fault::DoneAndSilent) => std::future::pending().await,
        Some(Fault::Slow(pause)) => answer::slowly(done, pause).await,
        Some(Fault::CutOff) => answer::cut_off(done).await,
        Some(Fault::Short) => answer::short(done).await,
        _ => done,
    }
}

/// Percent-decodes a path.
fn urlencoding(path: &str) -> String {
    url::form_urlencoded::parse(format!("k={}", path.replace('+', "%2B")).as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

impl Server {
    async fn act(&self, asked: &Asked, headers: &HeaderMap, body: Bytes) -> Response {
        let upload = asked.query.get("uploadId");
        match (&asked.method, upload) {
            (&Method::PUT, Some(id)) => {
                let number = asked.query.get("partNumber").and_then(|n| n.parse().ok()).unwrap_or(0);
                let mut kept = self.kept.lock().expect("kept");
                match kept.uploads.get_mut(id) {
                    Some(parts) => {
                        let _ = parts.insert(number, body);
                        answer::etag(&number.to_string())
                    }
                    None => answer::refusal(404),
                }
            }
            (&Method::PUT, None) => self.put(asked, headers, body).await,
            (&Method::POST, None) if asked.query.contains_key("uploads") => {
                let id = format!("u{}", asked.number);
                let _ = self.kept.lock().expect("kept").uploads.insert(id.clone(), BTreeMap::new());
                answer::xml(&format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                ))
            }
            (&Method::POST, None) => self.delete_many(&body),
            (&Method::POST, Some(id)) => {
                let mut kept = self.kept.lock().expect("kept");
                let Some(parts) = kept.uploads.remove(id) else { return answer::refusal(404) };
                let whole: Vec<u8> = parts.values().flat_map(|p| p.to_vec()).collect();
                let _ = kept.objects.insert(asked.key.clone(), whole.into());
                let (tag, key) = (answer::ETAG, &asked.key);
                answer::xml(&format!(
                    "<CompleteMultipartUploadResult><Key>{key}</Key><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
                ))
            }
            (&Method::DELETE, Some(id)) => {
                let _ = self.kept.lock().expect("kept").uploads.remove(id);
                answer::status(StatusCode::NO_CONTENT)
            }
            (&Method::DELETE, None) => {
                let _ = self.kept.lock().expect("kept").objects.remove(&asked.key);
                answer::status(StatusCode::NO_CONTENT)
            }
            (&Method::GET, _) if asked.key.is_empty() => {
                answer::listing(&self.kept.lock().expect("kept").objects, &asked.query)
            }
            (&Method::GET | &Method::HEAD, _) => {
                let object = self.kept.lock().expect("kept").objects.get(&asked.key).cloned();
                answer::object(object, headers, asked.method == Method::HEAD)
            }
            _ => answer::status(StatusCode::NOT_IMPLEMENTED),
        }
    }

    async fn put(&self, asked: &Asked, headers: &HeaderMap, body: Bytes) -> Response {
        let conditional = headers.contains_key("if-none-match") && self.conditions != Conditions::Ignored;
        if conditional && self.kept.lock().expect("kept").objects.contains_key(&asked.key) {
            return answer::refusal(412);
        }
        if self.conditions == Conditions::CheckedThenWritten {
            // Long enough for every writer of a race to have checked.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut kept = self.kept.lock().expect("kept");
        if conditional && self.conditions == Conditions::Honoured && kept.objects.contains_key(&asked.key) {
            return answer::refusal(412);
        }
        let _ = kept.objects.insert(asked.key.clone(), body);
        answer::etag("object")
    }

    fn delete_many(&self, body: &Bytes) -> Response {
        let text = String::from_utf8_lossy(body);
        let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        let mut kept = self.kept.lock().expect("kept");
        let mut gone = String::new();
        for key in keys {
            let _ = kept.objects.remove(key);
            gone.push_str(&format!("<Deleted><Key>{key}</Key></Deleted>"));
        }
        answer::xml(&format!("<DeleteResult>{gone}</DeleteResult>"))
    }
}

/// A whole body from pieces, for those who look at answers.
async fn body_of(response: Response) -> (axum::http::response::Parts, Bytes) {
    let (parts, body): (_, Body) = response.into_parts();
    (parts, axum::body::to_bytes(body, MAX_BODY).await.unwrap_or_default())
}
