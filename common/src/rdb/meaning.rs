//! A hash of what a value means: equal for equal data, in whatever encoding and on whichever server it lies.
//!
//! Hashed is, with BLAKE3, of which the first 128 bits are taken (little-endian); the number of the class comes first, a
//! length stands before every string (7 bits a byte, the lowest first, the top bit set in all but the last):
//! - string: its bytes, alone;
//! - list: its elements in order;
//! - set, sorted set, hash: number and wrapping sum of the hashes of all members ([`SetDigest`]), whatever their order. That
//!   of a member is over its text, of a sorted set's over text and score (IEEE bits, zero without a sign), of a hash's over
//!   field, value and, if it expires, the time;
//! - stream: the entries in order, length, last id, greatest deleted id, entries ever added; of each group the name, last id,
//!   pending entries with time and number of deliveries, and consumers with what they have pending. Streams of servers
//!   before 7 lack some of that and get what a server fills in when it loads them. Left out is what reading changes, or
//!   what differs between a primary and its replicas: when a consumer was seen and active, how many entries a group read; and
//!   what producers have sent lately (Redis 8.6), which goes by itself;
//! - module: its raw bytes.
//!
//! The key, its expiry and its use are not part of the value. What is hashed here is stored in backups: it never changes.

use tidemark_proto::Result;
use tidemark_proto::hash::SetDigest;

use super::types::Class;
use super::visitor::{Group, Role, StreamId, StreamMeta, ValueVisitor};

/// Bytes that are gathered before they are hashed: enough to hash several blocks at once.
const GATHERED: usize = 16 << 10;
/// Marks in the hash of a stream.
const ENTRY: u8 = 1;
const META: u8 = 2;
const GROUP: u8 = 3;
const PENDING: u8 = 4;
const CONSUMER: u8 = 5;
const CONSUMER_PENDING: u8 = 6;

/// What there is to know of a value once it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ValueSummary {
    /// Number of its raw bytes.
    pub raw_len: u64,
    /// Hash of its meaning.
    pub meaning: u128,
    /// Number of elements, members, fields or entries; 1 for strings and values of modules.
    pub elements: u64,
}

/// A hash that costs little for short inputs and nothing but time for long ones.
struct Pieces {
    gathered: Vec<u8>,
    hasher: Box<blake3::Hasher>,
    /// Whether the hasher has seen a part of the present input.
    begun: bool,
}

impl Pieces {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        if self.gathered.len() + bytes.len() > GATHERED {
            self.spill(bytes);
        } else {
            self.gathered.extend_from_slice(bytes);
        }
    }

    #[cold]
    fn spill(&mut self, bytes: &[u8]) {
        if !self.begun {
            let _ = self.hasher.reset();
            self.begun = true;
        }
        let _ = self.hasher.update(&self.gathered);
        self.gathered.clear();
        if bytes.len() >= GATHERED {
            let _ = self.hasher.update(bytes);
        } else {
            self.gathered.extend_from_slice(bytes);
        }
    }

    /// A number, 7 bits a byte.
    #[inline]
    fn put_len(&mut self, mut number: u64) {
        while number > 0x7f {
            self.put(&[number as u8 | 0x80]);
            number >>= 7;
        }
        self.put(&[number as u8]);
    }

    fn put_id(&mut self, id: StreamId) {
        self.put(&id.millis.to_le_bytes());
        self.put(&id.sequence.to_le_bytes());
    }

    /// The hash of what was put since the last call.
    #[inline]
    fn take(&mut self) -> u128 {
        let hash = if std::mem::take(&mut self.begun) {
            self.hasher.update(&self.gathered).finalize()
        } else {
            blake3::hash(&self.gathered)
        };
        self.gathered.clear();
        let first = hash.as_bytes().first_chunk::<16>().copied().unwrap_or_default();
        u128::from_le_bytes(first)
    }
}

/// Computes the hash of the meaning of the value that it is shown; can be used for one value after the other.
pub struct Meaning {
    class: Class,
    pieces: Pieces,
    members: SetDigest,
    elements: u64,
}

impl Meaning {
    /// Ready for a value.
    pub fn new() -> Self {
        let pieces = Pieces { gathered: Vec::with_capacity(GATHERED), hasher: Box::default(), begun: false };
        Self { class: Class::String, pieces, members: SetDigest::default(), elements: 0 }
    }

    /// The hash of the value shown since the last [`ValueVisitor::class`], and its number of elements.
    pub fn finish(&mut self) -> (u128, u64) {
        match self.class {
            Class::String | Class::Module => (self.pieces.take(), 1),
            Class::List | Class::Stream => (self.pieces.take(), self.elements),
            Class::Set | Class::SortedSet | Class::Hash => {
                self.pieces.put(&[self.class as u8]);
                for number in [self.members.count, self.members.low, self.members.high] {
                    self.pieces.put(&number.to_le_bytes());
                }
                (self.pieces.take(), self.members.count)
            }
        }
    }

    /// The members shown since the last [`ValueVisitor::class`], of a set, sorted set or hash.
    pub(super) fn members(&self) -> SetDigest {
        self.members
    }

    #[inline]
    fn member(&mut self) {
        let hash = self.pieces.take();
        self.members.add(hash);
    }
}

impl Default for Meaning {
    fn default() -> Self {
        Self::new()
    }
}

impl ValueVisitor for Meaning {
    fn class(&mut self, class: Class) -> Result<()> {
        // After an error the last value may have left something behind.
        self.pieces.gathered.clear();
        self.pieces.begun = false;
        (self.class, self.members, self.elements) = (class, SetDigest::default(), 0);
        if matches!(class, Class::String | Class::List | Class::Stream | Class::Module) {
            self.pieces.put(&[class as u8]);
        }
        Ok(())
    }

    #[inline]
    fn begin(&mut self, role: Role, len: u64) -> Result<()> {
        if role != Role::Value {
            self.pieces.put_len(len);
        }
        Ok(())
    }

    #[inline]
    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        self.pieces.put(bytes);
        Ok(())
    }

    #[inline]
    fn end(&mut self, role: Role) -> Result<()> {
        match role {
            Role::Element => self.elements += 1,
            Role::Member => self.member(),
            _ => {}
        }
        Ok(())
    }

    fn score(&mut self, score: f64) -> Result<()> {
        // Packed sorted sets store zero without its sign.
        let score = if score == 0.0 { 0.0 } else { score };
        self.pieces.put(&score.to_bits().to_le_bytes());
        self.member();
        Ok(())
    }

    fn field_end(&mut self, expire_at_millis: Option<i64>) -> Result<()> {
        if let Some(at) = expire_at_millis {
            self.pieces.put(&at.to_le_bytes());
        }
        self.member();
        Ok(())
    }

    fn entry(&mut self, id: StreamId, fields: u64) -> Result<()> {
        self.elements += 1;
        self.pieces.put(&[ENTRY]);
        self.pieces.put_id(id);
        self.pieces.put_len(fields);
        Ok(())
    }

    fn stream(&mut self, meta: &StreamMeta) -> Result<()> {
        self.pieces.put(&[META]);
        self.pieces.put_len(meta.length);
        self.pieces.put_id(meta.last);
        self.pieces.put_id(meta.max_deleted.unwrap_or_default());
        self.pieces.put_len(meta.entries_added.unwrap_or(meta.length));
        Ok(())
    }

    fn group(&mut self, group: &Group) -> Result<()> {
        self.pieces.put(&[GROUP]);
        self.pieces.put_id(group.last);
        Ok(())
    }

    fn pending(&mut self, id: StreamId, delivered_at_millis: i64, deliveries: u64) -> Result<()> {
        self.pieces.put(&[PENDING]);
        self.pieces.put_id(id);
        self.pieces.put(&delivered_at_millis.to_le_bytes());
        self.pieces.put_len(deliveries);
        Ok(())
    }

    fn consumer(&mut self, _seen_millis: i64, _active_millis: Option<i64>) -> Result<()> {
        self.pieces.put(&[CONSUMER]);
        Ok(())
    }

    fn consumer_pending(&mut self, id: StreamId) -> Result<()> {
        self.pieces.put(&[CONSUMER_PENDING]);
        self.pieces.put_id(id);
        Ok(())
    }

    fn module(&mut self, raw: &[u8]) -> Result<()> {
        self.pieces.put(raw);
        Ok(())
    }
}
