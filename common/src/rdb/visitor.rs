//! What a value consists of, as the walker tells it.

use tidemark_proto::Result;

use super::types::Class;

/// What a string is in its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// All of a value of class string.
    Value,
    /// The next element of a list.
    Element,
    /// A member of a set.
    Member,
    /// A member of a sorted set; [`ValueVisitor::score`] follows.
    ScoredMember,
    /// A field of a hash; its value follows.
    Field,
    /// The value of the field before; [`ValueVisitor::field_end`] follows.
    FieldValue,
    /// A field of the entry of a stream; its value follows.
    EntryField,
    /// The value of the field before.
    EntryValue,
    /// The name of a consumer group; [`ValueVisitor::group`] follows.
    Group,
    /// The name of a consumer of the group before; [`ValueVisitor::consumer`] follows.
    Consumer,
}

/// The id of an entry of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StreamId {
    /// Milliseconds since the epoch, as a rule.
    pub millis: u64,
    /// Number among those of the same millisecond.
    pub sequence: u64,
}

impl StreamId {
    /// From the 16 bytes that stand for it in keys of the servers' trees: big-endian.
    pub(super) fn from_bytes(bytes: [u8; 16]) -> Self {
        let both = u128::from_be_bytes(bytes);
        Self { millis: (both >> 64) as u64, sequence: both as u64 }
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.millis, self.sequence)
    }
}

/// What a stream says of itself after its entries. Servers before Redis 7 did not store all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamMeta {
    /// Number of entries.
    pub length: u64,
    /// The last id that was given.
    pub last: StreamId,
    /// Id of the first entry (from Redis 7 on).
    pub first: Option<StreamId>,
    /// The greatest id that was deleted (from Redis 7 on).
    pub max_deleted: Option<StreamId>,
    /// Number of entries ever added (from Redis 7 on).
    pub entries_added: Option<u64>,
}

/// The state of a consumer group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Group {
    /// Last id delivered.
    pub last: StreamId,
    /// Number of entries that were read; −1 where the server does not know it, `None` where it does not store it.
    pub entries_read: Option<i64>,
}

/// Takes a value apart. A string arrives as `begin`, any number of pieces, `end`; an error ends the walk.
#[allow(unused_variables, reason = "what a visitor does not care for does nothing")]
pub trait ValueVisitor {
    /// First of all: what the value is.
    fn class(&mut self, class: Class) -> Result<()> {
        Ok(())
    }

    /// A string of `len` bytes begins.
    fn begin(&mut self, role: Role, len: u64) -> Result<()> {
        Ok(())
    }

    /// The next bytes of the string; none are empty.
    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    /// The string is whole.
    fn end(&mut self, role: Role) -> Result<()> {
        Ok(())
    }

    /// The score of the member before; never NaN.
    fn score(&mut self, score: f64) -> Result<()> {
        Ok(())
    }

    /// The field before is whole; with the time at which it expires, in milliseconds since the epoch.
    fn field_end(&mut self, expire_at_millis: Option<i64>) -> Result<()> {
        Ok(())
    }

    /// An entry of a stream with this many fields, which follow.
    fn entry(&mut self, id: StreamId, fields: u64) -> Result<()> {
        Ok(())
    }

    /// All entries were told. Groups follow.
    fn stream(&mut self, meta: &StreamMeta) -> Result<()> {
        Ok(())
    }

    /// The state of the group whose name came before. Its pending entries follow, then its consumers.
    fn group(&mut self, group: &Group) -> Result<()> {
        Ok(())
    }

    /// An entry delivered to a consumer of the group and not acknowledged: when (milliseconds since the epoch), how often.
    fn pending(&mut self, id: StreamId, delivered_at_millis: i64, deliveries: u64) -> Result<()> {
        Ok(())
    }

    /// The consumer whose name came before: when it was last seen and (from Redis 7.2 on) active, in milliseconds since
    /// the epoch. The ids of what it has pending follow.
    fn consumer(&mut self, seen_millis: i64, active_millis: Option<i64>) -> Result<()> {
        Ok(())
    }

    /// A pending entry of the group belongs to the consumer before.
    fn consumer_pending(&mut self, id: StreamId) -> Result<()> {
        Ok(())
    }

    /// The next raw bytes of the value of a module, which only the module understands.
    fn module(&mut self, raw: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Takes nothing.
pub(super) struct Nothing;

impl ValueVisitor for Nothing {}
