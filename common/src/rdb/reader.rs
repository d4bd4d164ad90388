//! Reads a whole file or stream, once, from start to end.

use std::io::Read;

use tidemark_proto::{Error, ErrorKind, Result};

use super::bytes::Bytes;
use super::input::{Input, Tap};
use super::length::{length, text};
use super::lzf::Scratch;
use super::meaning::{Meaning, ValueSummary};
use super::sink::{RdbSink, RecordHead, SlotImport, SlotInfo};
use super::types::{self, Family, OLDEST, VALKEY_FIRST, class_of, opcode};
use super::walk::{skip_module, unknown, walk};
use super::{MAX_TEXT, damaged};

/// Bytes of the header: magic and version, nine of them in both families.
const HEADER: usize = 9;
/// Longest name of a server's version that is repeated in errors.
const MOST_VERSION: usize = 32;
/// Most ranges of slots in an import: every second slot.
const MOST_RANGES: u64 = 8192;

/// What a file or stream says at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// Whose format it is.
    pub family: Family,
    /// Version of the format.
    pub version: u16,
    /// CRC-64 of everything before it, if the server computes one (`rdbchecksum`).
    pub checksum: Option<u64>,
    /// Whether that was there and is right: always so where there is one.
    pub checked: bool,
    /// Length of the file or stream in bytes, header and checksum included.
    pub bytes: u64,
    /// What was read from the source and is no longer part of it: in a stream, the start of what follows.
    pub unread: Vec<u8>,
}

/// Reads a file, or a stream from a primary, to its end and pushes what it holds into `sink`.
///
/// Bytes are taken as they arrive, so a reader may block; it may have read some bytes past the end, which are in
/// [`Trailer::unread`]. Errors: `Damaged` where it is not what a server writes or its checksum does not hold; `Unsupported` for
/// a type or opcode that this build does not know; `Retry` if the source fails; those of the sink. Whatever the sink was
/// told is worth nothing unless this returns `Ok`.
pub fn read(source: &mut impl Read, sink: &mut impl RdbSink) -> Result<Trailer> {
    let mut reader = Reader {
        input: Input::new(source, SinkTap { sink, module: false, failed: false }),
        scratch: Scratch::default(),
        meaning: Meaning::new(),
        family: Family::Redis,
        version: 0,
        server: String::new(),
        db: 0,
        key: Vec::new(),
        value: Vec::new(),
    };
    reader.run().map_err(|error| reader.explain(error))
}

/// Gives raw bytes to the sink.
struct SinkTap<'a, S> {
    sink: &'a mut S,
    module: bool,
    failed: bool,
}

impl<S: RdbSink> Tap for SinkTap<'_, S> {
    fn raw(&mut self, piece: &[u8]) -> Result<()> {
        let told = if self.module { self.sink.module_aux(piece) } else { self.sink.value(piece) };
        self.failed = told.is_err();
        told
    }
}

/// What stands before the key.
#[derive(Default)]
struct Prefix {
    expire_at_millis: Option<i64>,
    lru_idle_seconds: Option<u64>,
    lfu_freq: Option<u8>,
}

struct Reader<'a, R, S> {
    input: Input<R, SinkTap<'a, S>>,
    scratch: Scratch,
    meaning: Meaning,
    family: Family,
    version: u16,
    /// Name and version of the server that wrote it, as it says.
    server: String,
    db: u64,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<R: Read, S: RdbSink> Reader<'_, R, S> {
    /// Says where it happened; leaves errors of the sink alone.
    fn explain(&self, error: Error) -> Error {
        let ours = matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported);
        if !ours || self.input.tap.failed {
            return error;
        }
        let server = if self.server.is_empty() { "server unknown" } else { &self.server };
        let (at, version) = (self.input.position(), self.version);
        error.context(format!("byte {at} of RDB version {version} ({server})"))
    }

    /// Calls the sink, and remembers whose error it was.
    fn tell(&mut self, tell: impl FnOnce(&mut S, &[u8], &[u8]) -> Result<()>) -> Result<()> {
        let told = tell(self.input.tap.sink, &self.key, &self.value);
        self.input.tap.failed = told.is_err();
        told
    }

    fn run(&mut self) -> Result<Trailer> {
        self.header()?;
        let mut prefix = Prefix::default();
        loop {
            let number = self.input.byte()?;
            match number {
                opcode::EOF => return self.trailer(),
                opcode::EXPIRETIME_MS => prefix.expire_at_millis = Some(i64::from_le_bytes(self.input.array()?)),
                opcode::EXPIRETIME => {
                    let seconds = i32::from_le_bytes(self.input.array()?);
                    prefix.expire_at_millis = Some(i64::from(seconds) * 1000);
                }
                opcode::IDLE => prefix.lru_idle_seconds = Some(length(&mut self.input)?),
                opcode::FREQ => prefix.lfu_freq = Some(self.input.byte()?),
                opcode::FIRST.. if class_of(number, self.family).is_none() => self.other(number)?,
                _ => self.record(number, std::mem::take(&mut prefix))?,
            }
        }
    }

    fn header(&mut self) -> Result<()> {
        let header: [u8; HEADER] = self.input.array()?;
        let digits = if let Some(digits) = header.strip_prefix(b"REDIS") {
            digits
        } else if let Some(digits) = header.strip_prefix(b"VALKEY") {
            self.family = Family::Valkey;
            digits
        } else {
            return Err(damaged("it starts with neither REDIS nor VALKEY"));
        };
        let number = digits.iter().all(u8::is_ascii_digit).then_some(digits);
        let version = number.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| d.parse::<u16>().ok());
        self.version = version.ok_or_else(|| damaged("its version is no number"))?;
        if self.version < OLDEST {
            return Err(Error::unsupported(
                "RDB from before Redis 2.6 is not read: load it into Redis and save it again",
            ));
        }
        if (self.version >= VALKEY_FIRST) != (self.family == Family::Valkey) {
            return Err(Error::unsupported(format!(
                "version {} of {:?} is of no known server",
                self.version, self.family
            )));
        }
        let (family, version) = (self.family, self.version);
        self.tell(|sink, _, _| sink.header(family, version))
    }

    /// Opcodes that say something on the file or a database.
    fn other(&mut self, number: u8) -> Result<()> {
        match number {
            opcode::AUX => self.aux(),
            opcode::SELECTDB => {
                self.db = length(&mut self.input)?;
                let db = self.db;
                self.tell(|sink, _, _| sink.db(db))
            }
            opcode::RESIZEDB => {
                let (keys, expiring) = (length(&mut self.input)?, length(&mut self.input)?);
                self.tell(|sink, _, _| sink.resize(keys, expiring))
            }
            opcode::SLOT_INFO => {
                let input = &mut self.input;
                let info = SlotInfo { slot: length(input)?, keys: length(input)?, expiring: length(input)? };
                self.tell(|sink, _, _| sink.slot_info(info))
            }
            opcode::SLOT_IMPORT if self.family == Family::Valkey => self.slot_import(),
            opcode::FUNCTION2 => {
                text(&mut self.input, &mut self.scratch, MAX_TEXT, &mut self.value)?;
                self.tell(|sink, _, value| sink.function(value))
            }
            opcode::FUNCTION_PRE_GA => Err(Error::unsupported(
                "functions as release candidates of Redis 7.0 stored them: load the file into Redis 7.0 and save it again",
            )),
            opcode::MODULE_AUX => {
                self.input.tap.module = true;
                self.input.open_tap();
                let module = skip_module(&mut self.input)?;
                let _len = self.input.close_tap()?;
                self.input.tap.module = false;
                self.tell(|sink, _, _| sink.module_aux_end(module))
            }
            _ => Err(Error::unsupported(format!(
                "RDB opcode {number} of {:?} is not known to this build",
                self.family
            ))),
        }
    }

    fn aux(&mut self) -> Result<()> {
        text(&mut self.input, &mut self.scratch, MAX_TEXT, &mut self.key)?;
        text(&mut self.input, &mut self.scratch, MAX_TEXT, &mut self.value)?;
        if self.key == b"redis-ver" || self.key == b"valkey-ver" {
            let name = if self.key == b"redis-ver" { "Redis" } else { "Valkey" };
            let version: String = self.value.iter().take(MOST_VERSION).map(|b| char::from(*b)).collect();
            let printable: String = version.chars().filter(char::is_ascii_graphic).collect();
            self.server = format!("{name} {printable}");
        }
        self.tell(|sink, key, value| sink.aux(key, value))
    }

    fn slot_import(&mut self) -> Result<()> {
        text(&mut self.input, &mut self.scratch, MAX_TEXT, &mut self.value)?;
        let count = length(&mut self.input)?;
        if count > MOST_RANGES {
            return Err(damaged("an import of more slots than there are"));
        }
        let mut ranges = Vec::new();
        for _ in 0..count {
            ranges.push((length(&mut self.input)?, length(&mut self.input)?));
        }
        self.tell(|sink, _, job| sink.slot_import(SlotImport { job, ranges: &ranges }))
    }

    fn record(&mut self, type_byte: u8, prefix: Prefix) -> Result<()> {
        let (db, family) = (self.db, self.family);
        if class_of(type_byte, family).is_none() {
            return Err(unknown(type_byte, family));
        }
        text(&mut self.input, &mut self.scratch, MAX_TEXT, &mut self.key)?;
        let Prefix { expire_at_millis, lru_idle_seconds, lfu_freq } = prefix;
        self.tell(|sink, key, _| {
            sink.begin(&RecordHead { db, key, type_byte, family, expire_at_millis, lru_idle_seconds, lfu_freq })
        })?;
        self.input.open_tap();
        walk(type_byte, family, &mut self.input, &mut self.scratch, &mut self.meaning)?;
        let raw_len = self.input.close_tap()?;
        let (meaning, elements) = self.meaning.finish();
        self.tell(|sink, _, _| sink.end(ValueSummary { raw_len, meaning, elements }))
    }

    fn trailer(&mut self) -> Result<Trailer> {
        let (family, version) = (self.family, self.version);
        let computed = self.input.checksum();
        let stored = u64::from_le_bytes(self.input.array()?);
        let checksum = (stored != 0).then_some(stored);
        if checksum.is_some_and(|stored| stored != computed) {
            return Err(damaged("its checksum is another"));
        }
        let (bytes, unread) = (self.input.position(), self.input.unread().to_vec());
        Ok(Trailer { family, version, checksum, checked: checksum.is_some(), bytes, unread })
    }
}

impl Trailer {
    /// Whether the version is newer than those this build was made for; what was read of it was understood all the same.
    pub fn is_newer(&self) -> bool {
        match self.family {
            Family::Redis => self.version > types::REDIS_KNOWN,
            Family::Valkey => self.version > types::VALKEY_KNOWN,
        }
    }
}
