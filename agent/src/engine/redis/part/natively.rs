//! Values that servers do not take as one payload go as commands.

use tidemark_common::crash;
use tidemark_common::rdb::RawValue;
use tidemark_common::rdb::commands::{CommandSink, MOST_STRING, put_key};
use tidemark_common::record::RedisMeta;
use tidemark_proto::{Error, Result};

use super::{BATCH, RedisPart};

impl RedisPart {
    /// Sends a value as commands, in pieces. How long and how often its key was used is lost.
    pub(super) fn put_natively<V: RawValue + ?Sized>(
        &mut self,
        key: &[u8],
        meta: &RedisMeta,
        value: &V,
    ) -> Result<()> {
        put_key(self, key, meta, value, MOST_STRING)?.ok_or_else(|| {
            let (type_byte, bytes) = (meta.type_byte, value.raw_len());
            let key = String::from_utf8_lossy(&key[..key.len().min(128)]).into_owned();
            Error::unsupported(format!(
                "key `{key}` has a value of RDB type {type_byte} and {bytes} bytes: servers take no payload of that length, and \
                 no known commands make it. Leave it out (--keys '!…')"
            ))
        })
    }
}

impl CommandSink for RedisPart {
    fn command(&mut self) -> Result<()> {
        // Whole commands alone are answered.
        if self.out.len() + self.ahead >= BATCH {
            self.flush()?;
            crash::point("agent.native-flushed");
        }
        self.ask();
        self.queued += 1;
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if self.out.len() + bytes.len() < BATCH {
            self.out.extend_from_slice(bytes);
            return Ok(());
        }
        // Long strings go from where they lie.
        let mut out = std::mem::take(&mut self.out);
        let connection = self.connection()?;
        connection.send(&out)?;
        connection.send(bytes)?;
        self.ahead += out.len() + bytes.len();
        out.clear();
        self.out = out;
        Ok(())
    }
}
