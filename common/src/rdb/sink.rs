//! What a file or stream holds, as the reader pushes it.

use tidemark_proto::Result;

use super::meaning::ValueSummary;
use super::types::{Class, Family};

/// What stands before a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead<'a> {
    /// Number of the database.
    pub db: u64,
    /// Name of the key.
    pub key: &'a [u8],
    /// Layout of the value: see [`super::types::number`].
    pub type_byte: u8,
    /// Whose numbers those are.
    pub family: Family,
    /// When the key expires, in milliseconds since the epoch.
    pub expire_at_millis: Option<i64>,
    /// Seconds since the key was used, if the server stores that (`maxmemory-policy` of the kind `lru`).
    pub lru_idle_seconds: Option<u64>,
    /// How often the key is used, on the server's logarithmic scale, if it stores that (kind `lfu`).
    pub lfu_freq: Option<u8>,
}

impl RecordHead<'_> {
    /// What the value is.
    pub fn class(&self) -> Option<Class> {
        super::class_of(self.type_byte, self.family)
    }
}

/// Sizes of a slot's tables (Redis from 7.4 on, in Cluster mode).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotInfo {
    /// The slot.
    pub slot: u64,
    /// Number of keys in it.
    pub keys: u64,
    /// Number of those that expire.
    pub expiring: u64,
}

/// Slots that were on their way to the server (Valkey from 9 on).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotImport<'a> {
    /// Name of the job of the migration.
    pub job: &'a [u8],
    /// First and last slot of each range.
    pub ranges: &'a [(u64, u64)],
}

/// Takes what is read, in the order in which it stands. An error of a sink ends the reading and is returned as it is.
#[allow(unused_variables, reason = "what a sink does not care for does nothing")]
pub trait RdbSink {
    /// The header: whose format, which version.
    fn header(&mut self, family: Family, version: u16) -> Result<()> {
        Ok(())
    }

    /// A field of information on the server or the file, such as `redis-ver`, `repl-id`, `repl-offset`, `repl-stream-db`.
    fn aux(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        Ok(())
    }

    /// The records that follow are in this database.
    fn db(&mut self, db: u64) -> Result<()> {
        Ok(())
    }

    /// How many keys the database has, and how many of them expire: a hint.
    fn resize(&mut self, keys: u64, expiring: u64) -> Result<()> {
        Ok(())
    }

    /// Sizes of a slot: a hint.
    fn slot_info(&mut self, info: SlotInfo) -> Result<()> {
        Ok(())
    }

    /// Slots that were being imported.
    fn slot_import(&mut self, import: SlotImport<'_>) -> Result<()> {
        Ok(())
    }

    /// A library of functions: its code, as `FUNCTION LOAD` takes it.
    fn function(&mut self, code: &[u8]) -> Result<()> {
        Ok(())
    }

    /// The next raw bytes of data of a module that belong to no key, as [`super::RdbWriter::module_aux`] takes them;
    /// [`Self::module_aux_end`] follows.
    fn module_aux(&mut self, piece: &[u8]) -> Result<()> {
        Ok(())
    }

    /// The data of the module are whole; with the module's id.
    fn module_aux_end(&mut self, module: u64) -> Result<()> {
        Ok(())
    }

    /// A record begins.
    fn begin(&mut self, head: &RecordHead<'_>) -> Result<()>;

    /// The next bytes of its value, exactly as they stand there: what `DUMP` has between type byte and footer.
    fn value(&mut self, piece: &[u8]) -> Result<()>;

    /// The record is whole.
    fn end(&mut self, summary: ValueSummary) -> Result<()>;
}
