//! The data protocol of stores that Tidemark serves itself (ALPN `tidemark-kv/1`).
//!
//! The client opens a bidirectional stream and writes any number of requests without waiting; the node answers each
//! in the order of the requests with its reply or with [`v1::Failure`], and the stream goes on after a failure. The
//! client finishes its side when it has no more requests; the node finishes when all are answered. Streams are
//! independent of each other. Within a stream a request may run before an earlier one is answered: who needs an
//! order waits for the answer. A node that is restoring or shutting down answers `Retry`.
//!
//! Requests are for the node's own data. After [`v1::OpenClone`] those that follow on the same stream are for that clone, as it
//! stands by then: they fail with `NotFound` when it is dropped, also when another of its name is made. Where the clone could
//! not be opened they fail as well, so that none goes astray to the parent.
//!
//! Clients carry the highest timestamp they have seen, from any node, as `after` of their next commit: that is what
//! makes a cut at any timestamp consistent for them.

/// First version; frozen.
pub mod v1;

pub use v1::*;

/// Longest key, in bytes.
pub const MAX_KEY: usize = 64 << 10;
/// Longest value, in bytes.
pub const MAX_VALUE: usize = 8 << 20;
/// Most writes of one commit.
pub const MAX_WRITES: usize = 4096;
/// Largest body of a commit, in bytes.
pub const MAX_COMMIT: u32 = 16 << 20;
/// A page is ended when its keys and values pass this many bytes; one record may overshoot it.
pub const PAGE_BYTES: usize = 1 << 20;
/// Largest body of a value or a page, in bytes.
pub const MAX_REPLY: u32 = 16 << 20;
/// Most records of one page.
pub const MAX_PAGE: u32 = 10_000;
/// Largest body of a get, a scan or a short answer, in bytes.
pub const MAX_SMALL: u32 = 256 << 10;

crate::messages! {
    100 => v1::Commit, v 1, max MAX_COMMIT;
    101 => v1::Committed, v 1, max MAX_SMALL;
    102 => v1::Get, v 1, max MAX_SMALL;
    103 => v1::Value, v 1, max MAX_REPLY;
    104 => v1::Scan, v 1, max MAX_SMALL;
    105 => v1::Page, v 1, max MAX_REPLY;
    106 => v1::Failure, v 1, max MAX_SMALL;
    107 => v1::OpenClone, v 1, max MAX_SMALL;
    108 => v1::CloneOpened, v 1, max MAX_SMALL;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;
    use crate::wire::golden::check;

    #[test]
    fn golden_bytes() {
        let file = "kv-v1.txt";
        let writes = vec![
            Write { key: b"chain:7:1:2".to_vec(), value: Some(b"v\x00w".to_vec()) },
            Write { key: b"{tag}gone".to_vec(), value: None },
        ];
        let record = Record { key: b"k".to_vec(), value: vec![0, 1, 255], timestamp: Timestamp(1 << 40) };
        check(file, "commit", &Commit { writes, after: Timestamp(5) });
        check(file, "committed", &Committed { at: Timestamp(6) });
        check(file, "get", &Get { key: b"k".to_vec(), at: Some(Timestamp(9)) });
        check(file, "get-newest", &Get { key: b"k".to_vec(), at: None });
        check(file, "value", &Value { record: Some(record.clone()) });
        check(file, "value-none", &Value { record: None });
        let scan = Scan { prefix: b"p".to_vec(), from: vec![0, 1, b'p'], at: Some(Timestamp(3)), limit: 100 };
        check(file, "scan", &scan);
        let page = Page { records: vec![record], next: Some(vec![1, 2, b'k']), at: Timestamp(3) };
        check(file, "page", &page);
        check(file, "open-clone", &OpenClone { name: "orders-trial".into() });
        check(file, "clone-opened", &CloneOpened { at: Timestamp(3) });
        check(file, "failure", &Failure { code: 1, message: "the store is restoring".into() });
    }
}
