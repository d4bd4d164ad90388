//! Which keys a command of the replication stream reads or writes.
//!
//! The server itself says where the keys of most commands stand (`COMMAND`: first, last, step). Those whose keys move with
//! their arguments are listed here (source: the command tables in Redis' `src/commands`). A command of which neither is known
//! is an error that names it: to leave out a key would lose it. Who has no server to ask has [`Commands::known`].

use std::collections::HashMap;

use tidemark_proto::slot::SLOT_COUNT;
use tidemark_proto::{Error, Result, SlotSet};

use super::resp::Reply;

/// Where the keys of a command stand among its arguments, its name being number 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spec {
    first: i64,
    last: i64,
    step: i64,
    movable: bool,
    /// It touches its first argument, and nothing else.
    one: bool,
}

impl Spec {
    fn new(name: &[u8], (first, last, step): (i64, i64, i64), movable: bool) -> Self {
        let one = first == 1 && last == 1 && !movable && !BY_HAND.split(' ').any(|n| n.as_bytes() == name);
        Self { first, last, step, movable, one }
    }
}

/// What a command does to the keys of its database.
#[derive(Debug, PartialEq, Eq)]
pub enum Touches<'a> {
    /// These keys, and no other.
    Keys(Vec<&'a [u8]>),
    /// The commands behind it are for another database.
    Select(u64),
    /// All keys of the present database.
    Database,
    /// All keys.
    Everything,
    /// Keys that stand nowhere in it (a sort by the values of other keys, a swap of databases).
    Unknown,
    /// All keys of these slots, in all databases: they are deleted.
    Slots(SlotSet),
    /// Slots move between nodes of a Cluster as a whole: what follows for these is what their old node has sent, or has stopped to be.
    Moving,
    /// The functions.
    Functions,
    /// Nothing that is stored.
    Nothing,
}

/// Commands that write, with their first key, their last, and the step between them: those of Redis up to 8.6 and Valkey up to 9.1 whose
/// keys do not move.
const KNOWN: [(i64, i64, i64, &str); 6] = [
    (1, -2, 1, "blpop brpop bzpopmax bzpopmin"),
    (1, -1, 1, "del pfcount pfmerge sdiffstore sinterstore sunionstore unlink touch"),
    (1, -1, 2, "mset msetnx"),
    (
        1,
        1,
        1,
        "append bitfield decr decrby delex delifeq expire expireat geoadd getdel getex getset hdel hexpire hexpireat hgetdel hgetex \
         hincrby hincrbyfloat hmset hpersist hpexpire hpexpireat hset hsetex hsetnx incr incrby incrbyfloat linsert lpop lpush \
         lpushx lrem lset ltrim persist pexpire pexpireat pfadd psetex restore restore-asking rpop rpush rpushx sadd set setbit \
         setex setnx setrange spop srem vadd vrem vsetattr xack xackdel xadd xautoclaim xcfgset xclaim xdel xdelex xidmprecord \
         xsetid xtrim zadd zincrby zpopmax zpopmin zrem zremrangebylex zremrangebyrank zremrangebyscore",
    ),
    (1, 2, 1, "blmove brpoplpush copy geosearchstore lmove rename renamenx rpoplpush smove zrangestore"),
    (2, -1, 1, "bitop"),
];

/// Commands that [`Commands::touches`] looks at by itself, whatever the server says of their keys.
const BY_HAND: &str = "cluster copy eval evalsha exec fcall flushall flushdb function georadius georadiusbymember \
    lmpop move msetex multi ping publish replconf script select sort spublish swapdb trimslots xgroup xreadgroup zdiffstore zinterstore zmpop \
    zunionstore";

/// Names that are longer than this are looked up in the slow way.
const USUAL_NAME: usize = 24;

/// The commands that a server knows, by their names in lower case.
#[derive(Debug, Clone, Default)]
pub struct Commands(HashMap<Vec<u8>, Spec, foldhash::fast::RandomState>);

impl Commands {
    /// From the answer to `COMMAND`.
    pub fn parse(reply: Reply) -> Result<Self> {
        let mut specs = HashMap::default();
        for command in reply.list("COMMAND")? {
            let mut fields = command.list("COMMAND")?.into_iter();
            let mut next = || fields.next().unwrap_or(Reply::Nil);
            let name = next().text("COMMAND")?.to_ascii_lowercase().into_bytes();
            let _arity = next();
            let flags = next().list("COMMAND")?;
            let movable = flags.into_iter().any(|f| f.text("COMMAND").is_ok_and(|f| f == "movablekeys"));
            let (first, last, step) = (next().int("COMMAND")?, next().int("COMMAND")?, next().int("COMMAND")?);
            let spec = Spec::new(&name, (first, last, step), movable);
            let _ = specs.insert(name, spec);
        }
        Ok(Self(specs))
    }

    /// Those that this build knows, for who need not follow every command of every server.
    pub fn known() -> Self {
        let named = |(first, last, step, names): (i64, i64, i64, &'static str)| {
            let spec = move |name: &str| Spec::new(name.as_bytes(), (first, last, step), false);
            names.split_whitespace().map(move |name| (name.as_bytes().to_vec(), spec(name)))
        };
        Self(KNOWN.into_iter().flat_map(named).collect())
    }

    /// The key of a command that touches one key, its first argument, and nothing else: what most commands of a stream are. `None`
    /// where more must be looked at: [`Self::touches`] says what then. Allocates nothing.
    pub fn one_key<'a>(&self, args: &[&'a [u8]]) -> Option<&'a [u8]> {
        let name = args.first()?;
        let mut room = [0; USUAL_NAME];
        let lower = room.get_mut(..name.len())?;
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        if self.0.get(&*lower)?.one { args.get(1).copied() } else { None }
    }

    /// What a command touches; `args` begin with its name.
    pub fn touches<'a>(&self, args: &[&'a [u8]]) -> Result<Touches<'a>> {
        if let Some(key) = self.one_key(args) {
            return Ok(Touches::Keys(vec![key]));
        }
        let name = args.first().map(|n| String::from_utf8_lossy(n).to_ascii_lowercase()).unwrap_or_default();
        let missing = || Error::unsupported(format!("the stream holds `{name}` in a form that is not understood"));
        let at = |i: usize| args.get(i).copied().ok_or_else(missing);
        let count = |i: usize| -> Result<usize> {
            std::str::from_utf8(at(i)?).ok().and_then(|t| t.parse().ok()).ok_or_else(missing)
        };
        Ok(match name.as_str() {
            "select" => Touches::Select(count(1)? as u64),
            "flushdb" => Touches::Database,
            "flushall" => Touches::Everything,
            "swapdb" | "restore-asking" if name == "swapdb" => Touches::Unknown,
            "function" => Touches::Functions,
            "ping" | "replconf" | "multi" | "exec" | "publish" | "spublish" | "script" => Touches::Nothing,
            // The target may lie in another database.
            "move" => Touches::Unknown,
            "copy" if args.iter().skip(3).any(|a| a.eq_ignore_ascii_case(b"db")) => Touches::Unknown,
            "sort" => sort(args)?,
            "zunionstore" | "zinterstore" | "zdiffstore" => {
                let mut keys = vec![at(1)?];
                keys.extend(numbered(args, 2, count(2)?).ok_or_else(missing)?);
                Touches::Keys(keys)
            }
            "eval" | "evalsha" | "fcall" => Touches::Keys(numbered(args, 2, count(2)?).ok_or_else(missing)?),
            "lmpop" | "zmpop" => Touches::Keys(numbered(args, 1, count(1)?).ok_or_else(missing)?),
            "georadius" | "georadiusbymember" => georadius(args)?,
            "xgroup" => Touches::Keys(vec![at(2)?]),
            "xreadgroup" => Touches::Unknown,
            "msetex" => Touches::Keys(pairs(args, 1, count(1)?).ok_or_else(missing)?),
            "cluster" => cluster(args).ok_or_else(|| {
                let subcommand = String::from_utf8_lossy(args.get(1).copied().unwrap_or_default());
                Error::unsupported(format!(
                    "the replication stream holds `cluster {subcommand:.40}`, which is not known"
                ))
            })?,
            "trimslots" if args.get(1).is_some_and(|a| a.eq_ignore_ascii_case(b"ranges")) => {
                Touches::Slots(ranges(args, 2, count(2)?).ok_or_else(missing)?)
            }
            _ => Touches::Keys(self.by_spec(&name, args)?),
        })
    }

    fn by_spec<'a>(&self, name: &str, args: &[&'a [u8]]) -> Result<Vec<&'a [u8]>> {
        let unknown = || {
            Error::unsupported(format!(
                "the replication stream holds the command `{name}`, whose keys this build does not know"
            ))
        };
        let spec = self
            .0
            .get(name.as_bytes())
            .filter(|s| !s.movable && s.first >= 0 && s.step >= 0)
            .ok_or_else(unknown)?;
        if spec.first == 0 {
            return Err(unknown());
        }
        let last = if spec.last < 0 { args.len() as i64 + spec.last } else { spec.last };
        let places = (spec.first..=last).step_by(spec.step.max(1) as usize);
        places.map(|i| args.get(i as usize).copied().ok_or_else(unknown)).collect()
    }
}

/// The keys behind a number of keys that stands at `at`.
fn numbered<'a>(args: &[&'a [u8]], at: usize, count: usize) -> Option<Vec<&'a [u8]>> {
    args.get(at + 1..(at + 1).checked_add(count)?).map(<[_]>::to_vec)
}

/// As [`numbered`], where behind each key stands its value.
fn pairs<'a>(args: &[&'a [u8]], at: usize, count: usize) -> Option<Vec<&'a [u8]>> {
    let words = args.get(at + 1..(at + 1).checked_add(count.checked_mul(2)?)?)?;
    Some(words.iter().step_by(2).copied().collect())
}

/// A node tells its replicas what moves slots as a whole (Valkey from 9 on, Redis from 8.4 on: `CLUSTER SYNCSLOTS`), or deletes the keys
/// of one (Valkey: `CLUSTER FLUSHSLOT`). Its keys follow as commands of their own.
fn cluster<'a>(args: &[&'a [u8]]) -> Option<Touches<'a>> {
    match args.get(1)?.to_ascii_lowercase().as_slice() {
        b"syncslots" => Some(Touches::Moving),
        b"flushslot" => slot(args, 2).map(|slot| Touches::Slots(SlotSet::range(slot, slot))),
        _ => None,
    }
}

fn slot(args: &[&[u8]], at: usize) -> Option<u16> {
    std::str::from_utf8(args.get(at)?).ok()?.parse().ok().filter(|slot| *slot < SLOT_COUNT)
}

/// Ranges of slots behind their number, which stands at `at`.
fn ranges(args: &[&[u8]], at: usize, count: usize) -> Option<SlotSet> {
    if args.len() != (at + 1).checked_add(count.checked_mul(2)?)? {
        return None;
    }
    let range = |n: usize| Some((slot(args, at + 1 + 2 * n)?, slot(args, at + 2 + 2 * n)?)).filter(|(a, b)| a <= b);
    (0..count).map(range).collect::<Option<Vec<_>>>().map(SlotSet::from_ranges)
}

fn sort<'a>(args: &[&'a [u8]]) -> Result<Touches<'a>> {
    let word = |w: &'static str| args.iter().position(|a| a.eq_ignore_ascii_case(w.as_bytes()));
    if word("by").or_else(|| word("get")).is_some() {
        return Ok(Touches::Unknown);
    }
    let target = word("store").and_then(|i| args.get(i + 1));
    Ok(Touches::Keys(args.get(1).into_iter().chain(target).copied().collect()))
}

fn georadius<'a>(args: &[&'a [u8]]) -> Result<Touches<'a>> {
    let targets =
        args.windows(2).filter(|w| w[0].eq_ignore_ascii_case(b"store") || w[0].eq_ignore_ascii_case(b"storedist"));
    Ok(Touches::Keys(args.get(1).copied().into_iter().chain(targets.map(|w| w[1])).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, first: i64, last: i64, step: i64, movable: bool) -> Reply {
        let flags = if movable { vec![Reply::Status("movablekeys".into())] } else { vec![] };
        Reply::Array(vec![
            Reply::Bulk(name.into()),
            Reply::Int(1),
            Reply::Array(flags),
            Reply::Int(first),
            Reply::Int(last),
            Reply::Int(step),
        ])
    }

    fn commands() -> Commands {
        let list = vec![
            spec("set", 1, 1, 1, false),
            spec("del", 1, -1, 1, false),
            spec("mset", 1, -1, 2, false),
            spec("copy", 1, 2, 1, false),
            spec("newer", 0, 0, 0, false),
            spec("migrate", 3, 3, 1, true),
        ];
        Commands::parse(Reply::Array(list)).unwrap()
    }

    fn touches(line: &str) -> Result<String> {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let text = |keys: Vec<&[u8]>| keys.iter().map(|k| String::from_utf8_lossy(k)).collect::<Vec<_>>().join(" ");
        commands().touches(&args).map(|t| match t {
            Touches::Keys(keys) => text(keys),
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn keys_of_commands() {
        for (line, keys) in [
            ("SET a 1", "a"),
            ("del a b c", "a b c"),
            ("MSET a 1 b 2", "a b"),
            ("COPY a b", "a b"),
            ("COPY a b DB 3", "Unknown"),
            ("SORT a STORE b", "a b"),
            ("SORT a BY w_* STORE b", "Unknown"),
            ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", "d a b"),
            ("EVAL x 1 a b", "a"),
            ("GEORADIUS a 1 2 3 m STORE b", "a b"),
            ("SELECT 7", "Select(7)"),
            ("flushall", "Everything"),
            ("PING", "Nothing"),
            ("MSETEX 2 a 1 b 2 PXAT 7", "a b"),
            ("CLUSTER SYNCSLOTS FINISH STATE SUCCESS NAME x", "Moving"),
        ] {
            assert_eq!(touches(line).unwrap(), keys, "{line}");
        }
        // As a server tells of it: a command that is looked at by hand stays so.
        let told = ["sort", "move"].map(|name| spec(name, 1, 1, 1, false));
        let told = Commands::parse(Reply::Array(told.to_vec())).unwrap();
        for line in ["SORT a BY w_* STORE b", "MOVE a 3"] {
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            assert_eq!((told.one_key(&args), told.touches(&args).unwrap()), (None, Touches::Unknown), "{line}");
        }
        let told = ["msetex", "cluster"].map(|name| spec(name, 1, 1, 1, false));
        let told = Commands::parse(Reply::Array(told.to_vec())).unwrap();
        assert_eq!(
            (told.one_key(&[b"MSETEX", b"1", b"a"]), told.one_key(&[b"CLUSTER", b"FLUSHSLOT"])),
            (None, None)
        );
        for bad in [
            "GCRA a",
            "NEWER a",
            "MIGRATE h 1 k",
            "ZUNIONSTORE d 9 a",
            "SET",
            "MSETEX 2 a 1 b",
            "CLUSTER SETSLOT 7 STABLE",
        ] {
            assert!(touches(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn slots_that_are_emptied() {
        for (line, slots) in [
            ("CLUSTER FLUSHSLOT 58", "58"),
            ("cluster flushslot 7 ASYNC", "7"),
            ("TRIMSLOTS RANGES 1 0 99", "0-99"),
            ("TRIMSLOTS RANGES 2 0 99 200 200", "0-99,200"),
        ] {
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let Touches::Slots(found) = commands().touches(&args).unwrap() else { panic!("{line}") };
            assert_eq!(found.to_string(), slots, "{line}");
        }
        for bad in [
            "CLUSTER FLUSHSLOT",
            "CLUSTER FLUSHSLOT 16384",
            "TRIMSLOTS RANGES 1 0 16384",
            "TRIMSLOTS RANGES 2 0 99",
            "TRIMSLOTS RANGES 1 9 8",
            "TRIMSLOTS SLOTS 1 0 9",
            "TRIMSLOTS RANGES 18446744073709551615 0 9",
        ] {
            assert!(touches(bad).is_err(), "{bad}");
        }
    }
}
