//! Writes files that stock servers load.

use std::io::Write;

use tidemark_proto::error::ResultExt;
use tidemark_proto::{Error, ErrorKind, Result};

use super::crc::Crc64;
use super::length::{put_length, put_text};
use super::sink::RecordHead;
use super::types::{Family, VALKEY_FIRST, loads, opcode};

/// Bytes that are gathered before they are written.
const GATHERED: usize = 64 << 10;

/// Writes a file, or a stream as a primary sends it: aux fields and functions first, then records database by database.
///
/// Nothing of a value is looked into: raw bytes of the right type are taken for right. [`Self::finish`] writes the end; a
/// writer that is dropped before leaves what no server loads.
pub struct RdbWriter<W> {
    out: W,
    gathered: Vec<u8>,
    crc: Crc64,
    family: Family,
    version: u16,
    db: Option<u64>,
    in_record: bool,
}

impl<W> std::fmt::Debug for RdbWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RdbWriter").field("version", &self.version).finish_non_exhaustive()
    }
}

impl<W: Write> RdbWriter<W> {
    /// Starts a file of this version of the format; the server that is to load it has this version or a newer one.
    pub fn new(out: W, version: u16) -> Result<Self> {
        let family = Family::of_version(version);
        let mut writer =
            Self { out, gathered: Vec::new(), crc: Crc64::new(), family, version, db: None, in_record: false };
        let magic =
            if version >= VALKEY_FIRST { format!("VALKEY{version:03}") } else { format!("REDIS{version:04}") };
        if magic.len() != 9 {
            return Err(Error::request(format!("{version} is no version of RDB")));
        }
        writer.put(|out| out.extend_from_slice(magic.as_bytes()))?;
        Ok(writer)
    }

    /// A field of information; servers ignore those that they do not know.
    pub fn aux(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.between()?;
        self.put(|out| {
            out.push(opcode::AUX);
            put_text(key, out);
            put_text(value, out);
        })
    }

    /// A library of functions: its code.
    pub fn function(&mut self, code: &[u8]) -> Result<()> {
        self.between()?;
        self.put(|out| {
            out.push(opcode::FUNCTION2);
            put_text(code, out);
        })
    }

    /// Data of a module that belong to no key, as a sink got them.
    pub fn module_aux(&mut self, raw: &[u8]) -> Result<()> {
        self.between()?;
        self.put(|out| out.push(opcode::MODULE_AUX))?;
        self.put_raw(raw)
    }

    /// Records that follow are in this database. [`Self::begin`] does it where it is needed.
    pub fn select(&mut self, db: u64) -> Result<()> {
        self.between()?;
        self.db = Some(db);
        self.put(|out| {
            out.push(opcode::SELECTDB);
            put_length(db, out);
        })
    }

    /// How many keys the selected database will have, and how many of them expire: a hint that saves the server time.
    pub fn resize(&mut self, keys: u64, expiring: u64) -> Result<()> {
        self.between()?;
        self.put(|out| {
            out.push(opcode::RESIZEDB);
            put_length(keys, out);
            put_length(expiring, out);
        })
    }

    /// A record whose raw value is in memory.
    pub fn record(&mut self, head: &RecordHead<'_>, raw: &[u8]) -> Result<()> {
        self.begin(head)?;
        self.value(raw)?;
        self.end()
    }

    /// Begins a record; [`Self::value`] takes its raw value piece by piece, then [`Self::end`]. A type that the version of
    /// the file does not have is an error (see [`mod@super::convert`]).
    pub fn begin(&mut self, head: &RecordHead<'_>) -> Result<()> {
        self.between()?;
        let shared = head.family == self.family || loads(super::types::SHARED_LAST, head.family, head.type_byte);
        if !shared || !loads(self.version, self.family, head.type_byte) {
            let (number, version) = (head.type_byte, self.version);
            return Err(Error::unsupported(format!(
                "servers of RDB version {version} do not load values of type {number}: restore to a newer server"
            )));
        }
        if self.db != Some(head.db) {
            self.select(head.db)?;
        }
        self.in_record = true;
        self.put(|out| {
            if let Some(at) = head.expire_at_millis {
                out.push(opcode::EXPIRETIME_MS);
                out.extend_from_slice(&at.to_le_bytes());
            }
            if let Some(seconds) = head.lru_idle_seconds {
                out.push(opcode::IDLE);
                put_length(seconds, out);
            }
            if let Some(frequency) = head.lfu_freq {
                out.extend_from_slice(&[opcode::FREQ, frequency]);
            }
            out.push(head.type_byte);
            put_text(head.key, out);
        })
    }

    /// The next raw bytes of the record's value.
    pub fn value(&mut self, piece: &[u8]) -> Result<()> {
        if !self.in_record {
            return Err(Error::bug("a value without a record"));
        }
        self.put_raw(piece)
    }

    /// Ends the record.
    pub fn end(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.in_record) {
            return Err(Error::bug("the end of no record"));
        }
        Ok(())
    }

    /// Writes end and checksum and flushes. What was written to, and the checksum.
    pub fn finish(mut self) -> Result<(W, u64)> {
        self.between()?;
        self.put(|out| out.push(opcode::EOF))?;
        self.flush()?;
        let checksum = self.crc.value();
        self.out
            .write_all(&checksum.to_le_bytes())
            .and_then(|()| self.out.flush())
            .or_kind(ErrorKind::Retry, "cannot write RDB")?;
        Ok((self.out, checksum))
    }

    fn between(&self) -> Result<()> {
        if self.in_record { Err(Error::bug("the last record was not ended")) } else { Ok(()) }
    }

    fn put(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        put(&mut self.gathered);
        if self.gathered.len() >= GATHERED { self.flush() } else { Ok(()) }
    }

    fn put_raw(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() < GATHERED {
            return self.put(|out| out.extend_from_slice(bytes));
        }
        self.flush()?;
        self.crc.update(bytes);
        self.out.write_all(bytes).or_kind(ErrorKind::Retry, "cannot write RDB")
    }

    fn flush(&mut self) -> Result<()> {
        self.crc.update(&self.gathered);
        let written = self.out.write_all(&self.gathered);
        self.gathered.clear();
        written.or_kind(ErrorKind::Retry, "cannot write RDB")
    }
}

/// The value of the record that a writer is at, as something to write into: for values that are copied piece by piece.
#[derive(Debug)]
pub struct ValueOf<'w, W>(pub &'w mut RdbWriter<W>);

impl<W: Write> Write for ValueOf<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.value(bytes).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
