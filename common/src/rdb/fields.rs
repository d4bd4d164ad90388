//! Hashes whose fields expire: the same hash with other times.

use tidemark_proto::{Error, Result};

use super::decode::decode_slice;
use super::length::{put_length, put_text};
use super::types::{Family, number as n};
use super::visitor::{Role, ValueVisitor};
use crate::expiry::{Becomes, Expiry};

/// Whether fields of values of this type can expire.
pub const fn fields_expire(type_byte: u8, family: Family) -> bool {
    match family {
        Family::Redis => matches!(type_byte, n::HASH_METADATA_PRE_GA..=n::HASH_LISTPACK_EX),
        Family::Valkey => type_byte == n::VALKEY_HASH_2,
    }
}

/// The raw value of a hash with the times of its fields by `rule`, and its type; `None` where no field is left.
pub fn move_fields(type_byte: u8, family: Family, raw: &[u8], rule: &Expiry) -> Result<Option<(u8, Vec<u8>)>> {
    let mut fields = Fields { rule: *rule, kept: Vec::new(), field: Vec::new(), text: Vec::new() };
    decode_slice(type_byte, family, raw, &mut fields)?;
    let (kept, mut out) = (fields.kept, Vec::with_capacity(raw.len()));
    if kept.is_empty() {
        return Ok(None);
    }
    let Some(first) = kept.iter().filter_map(|(_, _, at)| *at).min() else {
        put_length(kept.len() as u64, &mut out);
        for (field, value, _) in &kept {
            put_text(field, &mut out);
            put_text(value, &mut out);
        }
        return Ok(Some((n::HASH, out)));
    };
    if family == Family::Redis {
        out.extend_from_slice(&first.to_le_bytes());
    }
    put_length(kept.len() as u64, &mut out);
    for (field, value, at) in &kept {
        if family == Family::Redis {
            // Relative to the first one, plus one: zero says that there is none.
            put_length(at.map_or(0, |at| at.abs_diff(first) + 1), &mut out);
        }
        put_text(field, &mut out);
        put_text(value, &mut out);
        if family == Family::Valkey {
            out.extend_from_slice(&at.unwrap_or(-1).to_le_bytes());
        }
    }
    Ok(Some((if family == Family::Redis { n::HASH_METADATA } else { n::VALKEY_HASH_2 }, out)))
}

/// Takes the fields that are left, with their new times.
struct Fields {
    rule: Expiry,
    kept: Vec<(Vec<u8>, Vec<u8>, Option<i64>)>,
    field: Vec<u8>,
    text: Vec<u8>,
}

impl ValueVisitor for Fields {
    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self, role: Role) -> Result<()> {
        match role {
            Role::Field => self.field = std::mem::take(&mut self.text),
            Role::FieldValue => {}
            _ => return Err(Error::bug("fields of what is no hash")),
        }
        Ok(())
    }

    fn field_end(&mut self, expire_at_millis: Option<i64>) -> Result<()> {
        let (field, value) = (std::mem::take(&mut self.field), std::mem::take(&mut self.text));
        match expire_at_millis.map_or(Becomes::Moved(None), |at| self.rule.of(at)) {
            Becomes::Same => self.kept.push((field, value, expire_at_millis)),
            Becomes::Expired => {}
            Becomes::Moved(at) => self.kept.push((field, value, at)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidemark_proto::Timestamp;

    use super::*;
    use crate::expiry::ExpiryMode;
    use crate::rdb::meaning_of;

    fn text(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put_text(text.as_bytes(), &mut out);
        out
    }

    /// A hash of Redis or Valkey with fields that expire then.
    fn hash(family: Family, fields: &[(&str, Option<i64>)]) -> Vec<u8> {
        let first = fields.iter().filter_map(|(_, at)| *at).min().unwrap_or(1);
        let mut out = if family == Family::Redis { first.to_le_bytes().to_vec() } else { Vec::new() };
        put_length(fields.len() as u64, &mut out);
        for (name, at) in fields {
            match family {
                Family::Redis => {
                    put_length(at.map_or(0, |at| (at - first + 1) as u64), &mut out);
                    out.extend([text(name), text("v")].concat());
                }
                Family::Valkey => {
                    out.extend([text(name), text("v"), at.unwrap_or(-1).to_le_bytes().to_vec()].concat())
                }
            }
        }
        out
    }

    #[test]
    fn times_of_fields_move_with_the_rule() {
        let before = [("gone", Some(900)), ("soon", Some(1500)), ("late", Some(90_000)), ("stays", None)];
        for (family, type_byte) in [(Family::Redis, n::HASH_METADATA), (Family::Valkey, n::VALKEY_HASH_2)] {
            assert!(fields_expire(type_byte, family) && !fields_expire(n::HASH, family));
            let raw = hash(family, &before);
            let moved =
                |mode| move_fields(type_byte, family, &raw, &Expiry::new(mode, Timestamp::new(1000, 0), 50));
            let meaning = |t, raw: &[u8]| meaning_of(t, family, raw).unwrap().meaning;
            let (t, shifted) = moved(ExpiryMode::Shift).unwrap().unwrap();
            let wanted = hash(family, &[("soon", Some(1550)), ("late", Some(90_050)), ("stays", None)]);
            assert_eq!((t, meaning(t, &shifted)), (type_byte, meaning(type_byte, &wanted)));
            let (t, dropped) = moved(ExpiryMode::Drop).unwrap().unwrap();
            let plain =
                [vec![3], text("soon"), text("v"), text("late"), text("v"), text("stays"), text("v")].concat();
            assert_eq!((t, &dropped), (n::HASH, &plain));
            let (t, same) = moved(ExpiryMode::Absolute).unwrap().unwrap();
            assert_eq!(meaning(t, &same), meaning(type_byte, &raw));
            let raw = hash(family, &[("gone", Some(900))]);
            let rule = Expiry::new(ExpiryMode::Drop, Timestamp::new(1000, 0), 0);
            assert_eq!(move_fields(type_byte, family, &raw, &rule).unwrap(), None);
        }
    }
}
