//! Values as plain data, from raw bytes and from what a server answers to commands, and records as the reader tells them.

use std::collections::{BTreeMap, BTreeSet};

use tidemark_common::Result;
use tidemark_common::rdb::{
    Class, Family, Group, RdbSink, RecordHead, Role, StreamId, StreamMeta, Trailer, ValueSummary, ValueVisitor,
    read,
};
use tidemark_tests::redis::{Client, Reply};

type Text = Vec<u8>;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct GroupModel {
    pub(crate) last: String,
    /// Id, owner, deliveries.
    pub(crate) pending: Vec<(String, Text, i64)>,
    pub(crate) consumers: BTreeSet<Text>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Model {
    String(Text),
    List(Vec<Text>),
    Set(BTreeSet<Text>),
    /// Scores by their bits.
    SortedSet(BTreeMap<Text, u64>),
    /// Values, with the time at which they expire.
    Hash(BTreeMap<Text, (Text, Option<i64>)>),
    Stream {
        entries: Vec<(String, Vec<Text>)>,
        last: String,
        added: Option<u64>,
        groups: BTreeMap<Text, GroupModel>,
    },
}

/// Builds the model of the value it is shown.
#[derive(Default)]
pub(crate) struct Build {
    class: Option<Class>,
    text: Text,
    promised: u64,
    texts: Vec<Text>,
    scores: BTreeMap<Text, u64>,
    fields: BTreeMap<Text, (Text, Option<i64>)>,
    entries: Vec<(String, Vec<Text>)>,
    meta: StreamMeta,
    group: Text,
    consumer: Text,
    groups: BTreeMap<Text, GroupModel>,
}

impl Build {
    pub(crate) fn model(mut self) -> Model {
        match self.class.expect("a class") {
            Class::String => Model::String(self.texts.pop().expect("text")),
            Class::List => Model::List(self.texts),
            Class::Set => {
                let (count, set) = (self.texts.len(), self.texts.into_iter().collect::<BTreeSet<_>>());
                assert_eq!(set.len(), count, "a member told twice");
                Model::Set(set)
            }
            Class::SortedSet => Model::SortedSet(self.scores),
            Class::Hash => Model::Hash(self.fields),
            Class::Stream => Model::Stream {
                entries: self.entries,
                last: self.meta.last.to_string(),
                added: self.meta.entries_added,
                groups: self.groups,
            },
            Class::Module => panic!("no module is loaded"),
        }
    }
}

impl ValueVisitor for Build {
    fn class(&mut self, class: Class) -> Result<()> {
        self.class = Some(class);
        Ok(())
    }
    fn begin(&mut self, _role: Role, len: u64) -> Result<()> {
        self.text.clear();
        self.promised = len;
        Ok(())
    }
    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(!bytes.is_empty());
        self.text.extend_from_slice(bytes);
        Ok(())
    }
    fn end(&mut self, role: Role) -> Result<()> {
        assert_eq!(self.text.len() as u64, self.promised, "length of a string");
        let text = std::mem::take(&mut self.text);
        match role {
            Role::EntryField | Role::EntryValue => self.entries.last_mut().expect("an entry").1.push(text),
            Role::Group => self.group = text,
            Role::Consumer => self.consumer = text,
            _ => self.texts.push(text),
        }
        Ok(())
    }
    fn score(&mut self, score: f64) -> Result<()> {
        let member = self.texts.pop().expect("member");
        assert!(self.scores.insert(member, (score + 0.0).to_bits()).is_none());
        Ok(())
    }
    fn field_end(&mut self, expire_at_millis: Option<i64>) -> Result<()> {
        let value = self.texts.pop().expect("value");
        let field = self.texts.pop().expect("field");
        assert!(self.fields.insert(field, (value, expire_at_millis)).is_none());
        Ok(())
    }
    fn entry(&mut self, id: StreamId, _fields: u64) -> Result<()> {
        self.entries.push((id.to_string(), Vec::new()));
        Ok(())
    }
    fn stream(&mut self, meta: &StreamMeta) -> Result<()> {
        assert_eq!(meta.length, self.entries.len() as u64);
        self.meta = *meta;
        Ok(())
    }
    fn group(&mut self, group: &Group) -> Result<()> {
        let model = GroupModel { last: group.last.to_string(), ..GroupModel::default() };
        assert!(self.groups.insert(self.group.clone(), model).is_none());
        Ok(())
    }
    fn pending(&mut self, id: StreamId, at: i64, deliveries: u64) -> Result<()> {
        assert!(at > 0);
        let group = self.groups.get_mut(&self.group).expect("group");
        group.pending.push((id.to_string(), Vec::new(), deliveries as i64));
        Ok(())
    }
    fn consumer(&mut self, seen: i64, _active: Option<i64>) -> Result<()> {
        assert!(seen > 0);
        let group = self.groups.get_mut(&self.group).expect("group");
        assert!(group.consumers.insert(self.consumer.clone()));
        Ok(())
    }
    fn consumer_pending(&mut self, id: StreamId) -> Result<()> {
        let group = self.groups.get_mut(&self.group).expect("group");
        let id = id.to_string();
        let pending = group.pending.iter_mut().find(|(i, ..)| *i == id).expect("pending entry of the group");
        pending.1 = self.consumer.clone();
        Ok(())
    }
}

fn pairs(reply: Reply) -> Vec<(Text, Text)> {
    let all = reply.strings();
    all.chunks(2).map(|p| (p[0].clone(), p[1].clone())).collect()
}

fn field(info: &[Reply], name: &str) -> Reply {
    let at =
        info.iter().position(|r| *r == Reply::Bulk(name.into())).unwrap_or_else(|| panic!("no {name}: {info:?}"));
    info[at + 1].clone()
}

/// The model of a key, by commands.
pub(crate) fn ask(client: &mut Client, key: &[u8]) -> Model {
    let kind = client.call(&[&b"TYPE"[..], key]).text();
    match &kind[..] {
        "string" => Model::String(client.call(&[&b"GET"[..], key]).bytes()),
        "list" => Model::List(client.call(&[&b"LRANGE"[..], key, b"0", b"-1"]).strings()),
        "set" => Model::Set(client.call(&[&b"SMEMBERS"[..], key]).strings().into_iter().collect()),
        "zset" => {
            let all = pairs(client.call(&[&b"ZRANGE"[..], key, b"0", b"-1", b"WITHSCORES"]));
            let score = |s: &[u8]| std::str::from_utf8(s).expect("text").parse::<f64>().expect("score") + 0.0;
            Model::SortedSet(all.into_iter().map(|(m, s)| (m, score(&s).to_bits())).collect())
        }
        "hash" => {
            let all = pairs(client.call(&[&b"HGETALL"[..], key]));
            let expiring = key.starts_with(b"hash:ttl");
            let mut expire = |field: &[u8]| {
                let asked = client.ask(&[&b"HPEXPIRETIME"[..], key, b"FIELDS", b"1", field]).expect("reply");
                if let Reply::Array(times) = asked { Some(times[0].integer()).filter(|at| *at > 0) } else { None }
            };
            let all = all.into_iter().map(|(f, v)| (f.clone(), (v, if expiring { expire(&f) } else { None })));
            Model::Hash(all.collect())
        }
        "stream" => stream(client, key),
        other => panic!("type {other}"),
    }
}

/// Whether a key expires at this time.
pub(crate) fn expires_at(client: &mut Client, key: &[u8], wanted: Option<i64>) -> bool {
    if client.knows("PEXPIRETIME") {
        return client.call(&[&b"PEXPIRETIME"[..], key]).integer() == wanted.unwrap_or(-1);
    }
    // Servers before 7.0 say how long it lives yet.
    let left = client.call(&[&b"PTTL"[..], key]).integer();
    let now: Vec<i64> = client.run("TIME").strings().iter().map(|n| text(n)).collect();
    wanted.map_or(left == -1, |at| (now[0] * 1000 + now[1] / 1000 + left).abs_diff(at) < 1000)
}

fn text(number: &[u8]) -> i64 {
    std::str::from_utf8(number).expect("text").parse().expect("number")
}

fn stream(client: &mut Client, key: &[u8]) -> Model {
    let entry = |e: Reply| {
        let mut e = e.array();
        let fields = e.pop().expect("fields").strings();
        (e.pop().expect("id").text(), fields)
    };
    let entries = client.call(&[&b"XRANGE"[..], key, b"-", b"+"]).array().into_iter().map(entry).collect();
    let info = client.call(&[&b"XINFO"[..], b"STREAM", key]).array();
    let mut groups = BTreeMap::new();
    for group in client.call(&[&b"XINFO"[..], b"GROUPS", key]).array() {
        let group = group.array();
        let name = field(&group, "name").bytes();
        let pending = client.call(&[&b"XPENDING"[..], key, &name, b"-", b"+", b"100000"]).array();
        let pending = pending.into_iter().map(|p| {
            let p = p.array();
            (p[0].clone().text(), p[1].clone().bytes(), p[3].integer())
        });
        let consumers = client.call(&[&b"XINFO"[..], b"CONSUMERS", key, &name]).array();
        let consumers = consumers.into_iter().map(|c| field(&c.array(), "name").bytes()).collect();
        let last = field(&group, "last-delivered-id").text();
        let _none = groups.insert(name, GroupModel { last, pending: pending.collect(), consumers });
    }
    // Before 7.0 nobody counts them.
    let counted = client.knows("FUNCTION");
    let added = counted.then(|| field(&info, "entries-added").integer() as u64);
    Model::Stream { entries, last: field(&info, "last-generated-id").text(), added, groups }
}

/// A record as the reader told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) db: u64,
    pub(crate) key: Text,
    pub(crate) type_byte: u8,
    pub(crate) family: Family,
    pub(crate) expire: Option<i64>,
    pub(crate) lru: Option<u64>,
    pub(crate) lfu: Option<u8>,
    pub(crate) raw: Text,
    pub(crate) summary: ValueSummary,
}

impl Record {
    pub(crate) fn head(&self) -> RecordHead<'_> {
        RecordHead {
            db: self.db,
            key: &self.key,
            type_byte: self.type_byte,
            family: self.family,
            expire_at_millis: self.expire,
            lru_idle_seconds: self.lru,
            lfu_freq: self.lfu,
        }
    }
}

/// Keeps everything.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) aux: Vec<(Text, Text)>,
    pub(crate) functions: Vec<Text>,
    pub(crate) sizes: Vec<(u64, u64)>,
    pub(crate) records: Vec<Record>,
    pub(crate) largest_piece: usize,
}

impl RdbSink for Contents {
    fn aux(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.aux.push((key.to_vec(), value.to_vec()));
        Ok(())
    }
    fn resize(&mut self, keys: u64, expiring: u64) -> Result<()> {
        self.sizes.push((keys, expiring));
        Ok(())
    }
    fn function(&mut self, code: &[u8]) -> Result<()> {
        self.functions.push(code.to_vec());
        Ok(())
    }
    fn begin(&mut self, head: &RecordHead<'_>) -> Result<()> {
        self.records.push(Record {
            db: head.db,
            key: head.key.to_vec(),
            type_byte: head.type_byte,
            family: head.family,
            expire: head.expire_at_millis,
            lru: head.lru_idle_seconds,
            lfu: head.lfu_freq,
            raw: Vec::new(),
            summary: ValueSummary::default(),
        });
        Ok(())
    }
    fn value(&mut self, piece: &[u8]) -> Result<()> {
        self.largest_piece = self.largest_piece.max(piece.len());
        self.records.last_mut().expect("a record").raw.extend_from_slice(piece);
        Ok(())
    }
    fn end(&mut self, summary: ValueSummary) -> Result<()> {
        let record = self.records.last_mut().expect("a record");
        assert_eq!(summary.raw_len, record.raw.len() as u64);
        record.summary = summary;
        Ok(())
    }
}

/// Reads a whole file.
pub(crate) fn contents(mut file: &[u8]) -> (Contents, Trailer) {
    let mut contents = Contents::default();
    let trailer = read(&mut file, &mut contents).unwrap_or_else(|e| panic!("{}", e.report()));
    (contents, trailer)
}
