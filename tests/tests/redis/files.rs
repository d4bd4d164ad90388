//! Backups as files: what the built binaries write is what servers load and what their data are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use data_encoding::BASE64;
use serde_json::{Value, json};
use tidemark_proto::SlotSet;
use tidemark_proto::slot::{even_share, slot_of};
use tidemark_tests::fleet::{AgentSpec, EngineKind, Fleet, binary};
use tidemark_tests::redis::{Client, Flavor, Server};

use super::contents::{Contents, compare, held_by};
use super::fill::fill;
use super::model::{GroupModel, Model, ask, expires_at};

/// A library of functions.
const LIBRARY: &str = "#!lua name=mine\nredis.register_function('two', function() return 2 end)";

/// A repository with one backup of a server that holds values of every type.
struct Backup {
    fleet: Fleet,
    source: Server,
    /// What the source holds once what has expired is gone.
    wanted: Contents,
}

impl Backup {
    async fn take(flavor: Flavor) -> Self {
        let source = Server::start(flavor, &[]);
        let mut client = source.client();
        fill(&mut client);
        ghosts(&mut client);
        if flavor.is_from_7_0() {
            let _ = client.call(&["FUNCTION", "LOAD", LIBRARY]);
        }
        // It is in the backup, and nowhere else.
        let _ = client.run("DEBUG SET-ACTIVE-EXPIRE 0");
        let _ = client.run("SET expired x PX 1");
        let mut fleet = Fleet::start().await;
        let mut spec = AgentSpec::new("orders", "n0", SlotSet::EMPTY);
        spec.engine = EngineKind::Redis(format!("unix:{}", source.socket().display()), String::new());
        fleet.start_agent(spec);
        let _ = fleet.ready("orders", 1).await;
        let _ = fleet.backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
        fleet.kill_all();
        let _ = client.run("EXISTS expired");
        let wanted = held_by(&source);
        assert!(!wanted.contains_key(&b"\0expired"[..]));
        Self { fleet, source, wanted }
    }

    fn export(&self, args: &[&str]) -> Output {
        export(&self.fleet, args)
    }

    /// Exports to `name` in a folder of its own; what is reported, and where it is.
    fn good(&self, name: &str, args: &[&str]) -> (Value, PathBuf) {
        let out = self.fleet.dir().join(name);
        let done = self.export(&[args, &["--out", out.to_str().expect("text"), "-o", "json"]].concat());
        assert!(done.status.success(), "{args:?}: {done:?}");
        (serde_json::from_slice(&done.stdout).expect("report"), out)
    }
}

pub(super) fn export(fleet: &Fleet, args: &[&str]) -> Output {
    let mut command = Command::new(binary("tidemark"));
    let url = format!("file://{}", fleet.repository().display());
    let _ = command.args(["export", "--repository", &url, "--key-file"]).arg(fleet.dir().join("master.key"));
    let _ = command.args(args).env_remove("TIDEMARK_CLUSTER").env_remove("TIDEMARK_MASTER_KEY");
    command.stdin(Stdio::null()).output().expect("tidemark")
}

/// Streams with pending entries that are gone: deleted in the middle and at the end, trimmed, all of them.
pub(crate) fn ghosts(client: &mut Client) {
    for key in ["ghost:some", "ghost:all", "ghost:trimmed"] {
        for i in 1..=9 {
            let _ = client.run(&format!("XADD {key} {i}-0 a {i}"));
        }
        let _ = client.run(&format!("XGROUP CREATE {key} g 0"));
        let _ = client.run(&format!("XREADGROUP GROUP g c STREAMS {key} >"));
        let _ = client.run(&format!("XCLAIM {key} g d 0 2-0 8-0 9-0 TIME 1700000000000 RETRYCOUNT 7"));
    }
    let _ = client.run("XDEL ghost:some 1-0 4-0 5-0 9-0");
    let _ = client.run("XTRIM ghost:trimmed MINID 4-0");
    let _ = client.run("XTRIM ghost:all MAXLEN 0");
    let _ = client.run("XGROUP CREATE ghost:never g 0 MKSTREAM");
    let _ = client.run("XGROUP DESTROY ghost:never g");
}

fn load(flavor: Flavor, file: &Path) -> Server {
    Server::load(flavor, &[], Some(&std::fs::read(file).expect("file")))
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_load_exported_files() {
    for flavor in Flavor::installed() {
        let backup = Backup::take(flavor).await;
        let (report, file) = backup.good("all.rdb", &["--format", "rdb"]);
        assert_eq!(
            (report["records"].as_u64(), &report["expired"]),
            (Some(backup.wanted.len() as u64 + 1), &json!(0))
        );
        let copy = load(flavor, &file);
        assert_eq!(copy.digest(), backup.source.digest());
        assert!(!flavor.is_from_7_0() || copy.client().run("FCALL two 0").integer() == 2);
        compare("one file", &held_by(&copy), &backup.wanted);

        let (report, folder) = backup.good("shards", &["--format", "rdb", "--shards", "3"]);
        let files: Vec<PathBuf> = serde_json::from_value(report["files"].clone()).expect("files");
        assert_eq!(std::fs::read_dir(&folder).expect("folder").count(), 3);
        let mut together = Contents::new();
        for (i, file) in files.iter().enumerate() {
            let held = held_by(&load(flavor, file));
            // One byte of each of these keys is the number of the database.
            assert!(held.len() > 10 && held.keys().all(|k| even_share(i as u16, 3).contains(slot_of(&k[1..]))));
            together.extend(held);
        }
        compare("three files", &together, &backup.wanted);

        let (_, file) =
            backup.good("some.rdb", &["--format", "rdb", "--keys", "in-*", "--db", "9", "--slots", "0-16383"]);
        assert_eq!(held_by(&load(flavor, &file)).into_keys().collect::<Vec<_>>(), [b"\x09in-each"]);

        // Values of newer servers are made such that Redis 7.0 loads them, but for fields that expire; older ones than that have no
        // such lists.
        let mut wanted = backup.wanted.clone();
        let fades = flavor.is_from((7, 4), (9, 0)) && wanted.remove(&b"\0hash:ttl"[..]).is_some();
        let keys: &[&str] = if fades { &["--keys", "!hash:ttl"] } else { &[] };
        let (_, file) = backup.good("old.rdb", &[&["--format", "rdb", "--rdb-version", "10"], keys].concat());
        compare("for Redis 7.0", &held_by(&load(Flavor::Redis, &file)), &wanted);
        let out = backup.fleet.dir().join("older.rdb");
        let args = ["--format", "rdb", "--rdb-version", "9", "--out", out.to_str().expect("text")];
        let refused = backup.export(&args);
        assert_eq!(refused.status.code(), Some(69), "{refused:?}");
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(told.contains("key `") && told.contains("RDB type") && told.contains("version 9"), "{told}");
        let left = std::fs::read_dir(backup.fleet.dir()).expect("folder").map(|e| e.expect("entry").file_name());
        assert_eq!(left.filter(|n| n.to_string_lossy().starts_with("older")).count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_make_the_same_data() {
    for flavor in Flavor::installed() {
        let backup = Backup::take(flavor).await;
        let (report, file) = backup.good("all.resp", &["--format", "resp"]);
        assert_eq!((report["records"].as_u64(), &report["expired"]), (Some(backup.wanted.len() as u64), &json!(1)));
        let copy = Server::start(flavor, &[]);
        // The second time everything is there already.
        for round in 0..2 {
            let done = Command::new("redis-cli")
                .args(["-s", copy.socket().to_str().expect("text"), "--pipe"])
                .stdin(std::fs::File::open(&file).expect("file"))
                .output()
                .expect("redis-cli");
            assert!(done.status.success(), "round {round}: {done:?}");
            assert!(String::from_utf8_lossy(&done.stdout).contains("errors: 0"), "round {round}: {done:?}");
            compare("piped", &held_by(&copy), &backup.wanted);
        }
        assert_eq!(copy.digest(), backup.source.digest());
        assert!(!flavor.is_from_7_0() || copy.client().run("FCALL two 0").integer() == 2);
        // To standard output the same, and what was left out is said.
        let piped = backup.export(&["--format", "resp"]);
        assert!(piped.status.success() && piped.stdout == std::fs::read(&file).expect("file"));
        assert!(String::from_utf8_lossy(&piped.stderr).contains("1 expired, left out"), "{piped:?}");
    }
}

/// A string within a value, as lines have it.
fn string(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({"base64": BASE64.encode(bytes)}),
    }
}

fn strings(all: impl IntoIterator<Item = Vec<u8>>) -> Value {
    all.into_iter().map(|s| string(&s)).collect()
}

/// The order of elements says nothing here.
fn unordered(value: &Value) -> Vec<Value> {
    let mut all = value.as_array().expect("array").clone();
    all.sort_by_cached_key(ToString::to_string);
    all
}

fn group(group: &GroupModel) -> Value {
    let ids = |c: &Vec<u8>| group.pending.iter().filter(|p| p.1 == *c).map(|p| p.0.clone()).collect::<Vec<_>>();
    let consumers: BTreeMap<_, _> = group.consumers.iter().map(|c| (string(c).to_string(), ids(c))).collect();
    let pending: BTreeMap<_, _> = group.pending.iter().map(|p| (p.0.clone(), p.2)).collect();
    json!([group.last, pending, consumers])
}

fn told_group(told: &Value) -> Value {
    let each = |list: &Value, of: fn(&Value) -> (String, Value)| {
        list.as_array().expect("array").iter().map(of).collect::<BTreeMap<_, _>>()
    };
    let consumers = each(&told["consumers"], |c| (c["name"].to_string(), c["pending"].clone()));
    let pending = each(&told["pending"], |p| (p["id"].as_str().expect("id").into(), p["deliveries"].clone()));
    json!([told["last_id"], pending, consumers])
}

/// Compares a line with what a server answers.
fn check(key: &str, text: &str, line: &Value, model: Model) {
    let told = &line["value"];
    let kind = match model {
        Model::String(text) => {
            let whole = match line["value_encoding"].as_str() {
                Some("text") => told.as_str().expect("text").as_bytes().to_vec(),
                _ => BASE64.decode(told.as_str().expect("text").as_bytes()).expect("base64"),
            };
            assert!(whole == text, "{key}");
            assert_eq!(line["value_encoding"] == "text", std::str::from_utf8(&text).is_ok(), "{key}");
            "string"
        }
        Model::List(all) => {
            assert!(*told == strings(all), "{key}");
            "list"
        }
        // Both are in the order of their bytes.
        Model::Set(all) => {
            assert!(*told == strings(all), "{key}");
            "set"
        }
        Model::SortedSet(all) => {
            let score = |bits: u64| match f64::from_bits(bits) {
                s if s.is_finite() => json!(s),
                s => json!(s.to_string()),
            };
            // Compared as they are written: reading JSON may round them. Zero has no sign for servers.
            let text = text.replace(",-0.0]", ",0.0]");
            assert_eq!(told.as_array().expect("array").len(), all.len(), "{key}");
            for (member, bits) in all {
                let pair = json!([string(&member), score(bits)]).to_string();
                assert!(text.contains(&pair), "{key}: no {pair}");
            }
            "zset"
        }
        Model::Hash(all) => {
            let pair = |(f, (v, at)): (Vec<u8>, (Vec<u8>, Option<i64>))| match at {
                Some(at) => json!([string(&f), string(&v), at]),
                None => json!([string(&f), string(&v)]),
            };
            assert!(unordered(told) == unordered(&all.into_iter().map(pair).collect()), "{key}");
            "hash"
        }
        Model::Stream { entries, last, added, groups } => {
            let fields = |all: Vec<Vec<u8>>| -> Value {
                all.chunks(2).map(|p| json!([string(&p[0]), string(&p[1])])).collect()
            };
            let entries: Value =
                entries.into_iter().map(|(id, f)| json!({"id": id, "fields": fields(f)})).collect();
            assert!(told["entries"] == entries, "{key}");
            assert_eq!((&told["last_id"], told["entries_added"].as_u64()), (&json!(last), added), "{key}");
            let wanted: BTreeMap<_, _> = groups.iter().map(|(n, g)| (string(n).to_string(), group(g))).collect();
            let found = told["groups"].as_array().expect("array");
            let found: BTreeMap<_, _> = found.iter().map(|g| (g["name"].to_string(), told_group(g))).collect();
            assert_eq!(found, wanted, "{key}");
            "stream"
        }
    };
    assert_eq!(line["type"], kind, "{key}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_hold_what_servers_answer() {
    for flavor in Flavor::installed() {
        let backup = Backup::take(flavor).await;
        let (_, file) = backup.good("all.jsonl", &["--format", "jsonl", "--keys", "!expired"]);
        let text = std::fs::read_to_string(file).expect("file");
        let mut client = backup.source.client();
        let mut seen = BTreeMap::new();
        for text in text.lines() {
            let line: Value = serde_json::from_str(text).expect("JSON");
            let key = match line["key_encoding"].as_str() {
                Some("text") => line["key"].as_str().expect("text").as_bytes().to_vec(),
                _ => BASE64.decode(line["key"].as_str().expect("text").as_bytes()).expect("base64"),
            };
            let shown = String::from_utf8_lossy(&key[..key.len().min(40)]).into_owned();
            assert_eq!(line["slot"], slot_of(&key), "{shown}");
            let _ = client.run(&format!("SELECT {}", line["db"]));
            assert!(expires_at(&mut client, &key, line["expire_at"].as_i64()), "{shown}");
            check(&shown, text, &line, ask(&mut client, &key));
            *seen.entry(line["type"].to_string()).or_insert(0) += 1;
        }
        assert_eq!(seen.values().sum::<usize>(), backup.wanted.len());
        assert_eq!(seen.len(), 6, "every type: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_to_do() {
    let backup = Backup::take(Flavor::Redis).await;
    let dir = backup.fleet.dir();
    let (there, full) = (dir.join("there.rdb"), dir.join("full"));
    std::fs::write(&there, "precious").expect("file");
    std::fs::create_dir(&full).expect("folder");
    std::fs::write(full.join("x"), "").expect("file");
    let (there, full) = (there.to_str().expect("text"), full.to_str().expect("text"));
    for (args, code, told) in [
        (&["--format", "rdb", "--backup", "ffffffff"][..], 3, "no backup `ffffffff`"),
        (&["eeeeeeee", "--format", "rdb"], 3, "no backup `eeeeeeee`"),
        (&["latest", "--format", "rdb", "--backup", "latest"], 2, "cannot be used with"),
        (&["--format", "rdb", "--cluster", "unknown"], 3, "unknown"),
        (&["--format", "rdb", "--out", there], 4, "is there already"),
        (&["--format", "rdb", "--out", full, "--shards", "2"], 4, "not empty"),
        (&["--format", "rdb", "--shards", "2"], 2, "give a folder"),
        (&["--format", "rdb", "--rdb-version", "50"], 2, "--rdb-version 50"),
        (&["--format", "resp", "--rdb-version", "10"], 2, "--format rdb alone"),
        (&["--format", "rdb", "--keys", ""], 2, "key glob"),
    ] {
        let refused = backup.export(args);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(code) && error.contains(told), "{args:?}: {refused:?}");
        assert!(refused.stdout.is_empty(), "{args:?}");
    }
    assert_eq!(std::fs::read_to_string(there).expect("file"), "precious");
    assert_eq!(std::fs::read_dir(full).expect("folder").count(), 1);
    // Damage: nothing looks whole.
    let pack = backup.fleet.packs("orders").remove(0);
    let mut bytes = std::fs::read(&pack).expect("pack");
    bytes[60] ^= 1;
    std::fs::write(&pack, &bytes).expect("pack");
    let shards = dir.join("shards");
    let damaged = backup.export(&["--format", "rdb", "--shards", "2", "--out", shards.to_str().expect("text")]);
    assert_eq!(damaged.status.code(), Some(65), "{damaged:?}");
    assert_eq!(std::fs::read_dir(shards).expect("folder").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_stores_have_lines_alone() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 1).await;
    let _ = fleet.backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
    fleet.kill_all();
    for args in [&["--format", "rdb"][..], &["--format", "resp"], &["--format", "jsonl", "--db", "0"]] {
        let refused = export(&fleet, args);
        assert!(refused.status.code() == Some(2) && refused.stdout.is_empty(), "{args:?}: {refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("engine `"), "{refused:?}");
    }
    assert!(export(&fleet, &["--format", "jsonl"]).status.success());
}
