//! Base and log make the state at the cut, exactly.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_agent::engine::redis::MAX_PAYLOAD;
use tidemark_agent::engine::redis::conn::{Address, Login};
use tidemark_agent::engine::redis::{Options, Redis};
use tidemark_agent::engine::{Engine, ScanRange};
use tidemark_common::rdb;
use tidemark_common::record::{RedisMeta, slot_of_record};
use tidemark_proto::id::JobId;
use tidemark_proto::stored::run::sort_key;
use tidemark_proto::{Error, ErrorKind, SlotSet, Timestamp};
use tidemark_tests::redis::{Flavor, PATIENCE, Server, eventually};

use super::contents::{Contents, compare, held_by};
use super::load::{Load, Wildness};

pub(crate) fn options(server: &Server, dir: &std::path::Path) -> Options {
    Options {
        address: Address::Unix(server.socket()),
        login: Login::default(),
        dir: dir.to_owned(),
        scratch_server: String::new(),
        allow_min_replicas: false,
        base_through_file: false,
        base_at_once: true,
        base_uncompressed: true,
        native_over: MAX_PAYLOAD,
    }
}

pub(crate) fn engine(server: &Server, dir: &std::path::Path) -> Arc<Redis> {
    Redis::open(options(server, dir)).expect("engine")
}

pub(crate) fn prepare(engine: &Redis, job: JobId) {
    engine.prepare(job, true, &|| false, &|_| ()).expect("a base");
}

/// Takes a cut: attempts until the server stood still.
pub(crate) fn cut(engine: &Redis, job: JobId, at: Timestamp) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let held = engine.hold(job, Duration::from_millis(200)).expect("hold");
        let sealed = engine.seal(job, at);
        let (ownership, _) = engine.release(job).expect("release");
        match sealed {
            Ok(sealed) => {
                assert_eq!((sealed.position, ownership), (held.position, held.ownership));
                return;
            }
            Err(e) if e.kind() == ErrorKind::Conflict && Instant::now() < deadline => {}
            Err(e) => panic!("{}", e.report()),
        }
    }
}

/// What the engine gives at the cut, checked for order.
pub(crate) fn given(engine: &Redis, at: Timestamp, slots: SlotSet) -> Contents {
    let snapshot = engine.snapshot(at).expect("snapshot");
    let (mut found, mut last) = (Contents::new(), Vec::new());
    snapshot
        .scan(&ScanRange::slots(slots.clone()), &mut |record| {
            let key = sort_key(record.slot, record.key);
            assert!(last < key, "records ascend");
            assert_eq!(slot_of_record(record.key, record.meta), record.slot);
            assert!(slots.contains(record.slot));
            let meta = RedisMeta::decode(record.meta)?;
            if found.len().is_multiple_of(20) {
                let meaning = rdb::meaning_of(meta.type_byte, meta.family, record.value)?.meaning;
                assert_eq!(meaning, meta.meaning);
            }
            let _ = found.insert(record.key.to_vec(), (meta.expire_at_millis, meta.meaning));
            last = key;
            Ok(ControlFlow::Continue(()))
        })
        .expect("scan");
    found
}

/// A server on which nothing expires by itself, with some data.
fn server(flavor: Flavor) -> Server {
    let server = Server::start(flavor, &[]);
    let mut client = server.client();
    let _ = client.run("DEBUG SET-ACTIVE-EXPIRE 0");
    let fill: Vec<Vec<String>> =
        (0..20_000).map(|i| vec!["SET".to_owned(), format!("fill:{i}"), "v".repeat(1 + i % 700)]).collect();
    let _ = client.pipeline(&fill);
    server
}

/// A base, then wild writes, then the cut: what the engine gives is what the server then held.
fn exact(flavor: Flavor, wildness: Wildness) {
    let (server, dir) = (server(flavor), tempfile::tempdir().expect("folder"));
    // Longer than a socket's name may be.
    let engine = engine(&server, &dir.path().join("long".repeat(30)));
    let (job, at) = (JobId([7; 16]), Timestamp(42));
    let load = Load::start((0..3).map(|_| server.client()).collect(), wildness);
    eventually("some load", || (load.steps() > 500).then_some(()));
    prepare(&engine, job);
    let begun = load.steps();
    eventually("load behind the base", || (load.steps() > begun + 4000).then_some(()));
    load.stop();
    cut(&engine, job, at);
    let wanted = held_by(&server);
    compare("at the cut", &given(&engine, at, SlotSet::all()), &wanted);
    // Later writes are not in it.
    let _ = server.client().run("SET later 1");
    compare("later", &given(&engine, at, SlotSet::all()), &wanted);
    let some = SlotSet::range(100, 5000);
    let of_slots = given(&engine, at, some);
    assert!(!of_slots.is_empty() && of_slots.iter().all(|(k, v)| wanted.get(k) == Some(v)));
    engine.unpin(&tidemark_agent::engine::job_pin(job)).expect("unpin");
    let jobs = std::fs::read_dir(dir.path().join("long".repeat(30)).join("jobs")).expect("folder").count();
    assert_eq!((jobs, engine.pins().expect("pins").len()), (0, 0), "nothing stays behind");
}

#[test]
fn base_and_log_are_the_state_at_the_cut() {
    Flavor::installed().into_iter().for_each(|flavor| exact(flavor, Wildness::Databases));
}

#[test]
fn fields_that_expire_are_followed_where_servers_have_them() {
    Flavor::installed().into_iter().for_each(|flavor| exact(flavor, Wildness::Fields));
}

#[test]
fn databases_that_are_emptied_and_swapped_on_the_way_are_followed() {
    Flavor::installed().into_iter().for_each(|flavor| exact(flavor, Wildness::Everything));
}

#[test]
fn a_quiet_server_needs_no_scratch_server_and_no_pause() {
    let (server, dir) = (server(Flavor::Redis), tempfile::tempdir().expect("folder"));
    let engine = engine(&server, dir.path());
    let job = JobId([1; 16]);
    prepare(&engine, job);
    let held = engine.hold(job, Duration::ZERO).expect("reading");
    let sealed = engine.seal(job, Timestamp(5)).expect("seal");
    assert_eq!(sealed.position, held.position);
    assert_eq!(engine.release(job).expect("release").1, Duration::ZERO);
    compare("quiet", &given(&engine, Timestamp(5), SlotSet::all()), &held_by(&server));
    assert!(!dir.path().join("jobs").join(job.to_string()).join("fold").exists());
}

#[test]
fn a_cut_over_which_the_server_moved_is_refused() {
    let (server, dir) = (server(Flavor::Redis), tempfile::tempdir().expect("folder"));
    let engine = engine(&server, dir.path());
    let job = JobId([1; 16]);
    let no_base = engine.hold(job, Duration::ZERO).unwrap_err();
    assert_eq!(no_base.kind(), ErrorKind::Conflict);
    prepare(&engine, job);
    let _ = engine.hold(job, Duration::ZERO).expect("reading");
    let _ = server.client().run("SET a 1");
    let moved: Error = engine.seal(job, Timestamp(5)).unwrap_err();
    assert_eq!(moved.kind(), ErrorKind::Conflict, "{}", moved.report());
    assert!(engine.snapshot(Timestamp(5)).is_err());
}
