//! Streams as commands. Entries first, then counters, groups, consumers and what these have pending.
//!
//! An entry may be pending that was deleted, and `XCLAIM` knows entries only that are there. So such *ghosts* are added in
//! their places and taken away when all is claimed: those before the first entry by `XTRIM`, which does not count as a
//! deletion, as those that a server trimmed do not; the others by `XDEL`.

use std::collections::HashMap;

use super::{
    CommandSink, Group, MOST_ELEMENTS, Role, StreamId, StreamMeta, ValueVisitor, begin, begin_word, command, word,
};
use tidemark_proto::{Error, Result};

/// Finds the ids that are pending in any group.
#[derive(Default)]
pub(super) struct Pending(Vec<StreamId>);

impl ValueVisitor for Pending {
    fn pending(&mut self, id: StreamId, _delivered_at_millis: i64, _deliveries: u64) -> Result<()> {
        self.0.push(id);
        Ok(())
    }
}

/// Makes a stream.
pub(super) struct Stream<'o, W> {
    out: &'o mut W,
    key: &'o [u8],
    /// Pending ids at or behind the present entry, the first one last.
    due: Vec<StreamId>,
    ghosts: Vec<StreamId>,
    first: Option<StreamId>,
    meta: StreamMeta,
    /// Whether all entries were told.
    counted: bool,
    /// The name that the walk is in, and those that it has read.
    text: Vec<u8>,
    group: Vec<u8>,
    consumer: Vec<u8>,
    /// When and how often entries of the group were delivered.
    delivered: HashMap<StreamId, (i64, u64)>,
}

impl<'o, W: CommandSink> Stream<'o, W> {
    /// `pending` must have seen the value.
    pub(super) fn new(out: &'o mut W, key: &'o [u8], pending: Pending) -> Self {
        let Pending(mut due) = pending;
        due.sort_unstable_by(|a, b| b.cmp(a));
        due.dedup();
        let (text, group, consumer) = Default::default();
        let (ghosts, meta) = (Vec::new(), StreamMeta::default());
        Self {
            out,
            key,
            due,
            ghosts,
            first: None,
            meta,
            counted: false,
            text,
            group,
            consumer,
            delivered: HashMap::new(),
        }
    }

    fn ghost(&mut self, id: StreamId) -> Result<()> {
        self.ghosts.push(id);
        command(self.out, &[b"XADD", self.key, id.to_string().as_bytes(), b"-", b"-"])
    }

    /// Sets the counters. `least` entries there are, and ids up to `last`.
    fn set_id(&mut self, last: StreamId, least: u64) -> Result<()> {
        let last = last.to_string();
        let mut words = vec![&b"XSETID"[..], self.key, last.as_bytes()];
        // Servers before 7 do not know them.
        let Some((added, deleted)) = self.meta.entries_added.zip(self.meta.max_deleted) else {
            return command(self.out, &words);
        };
        let (added, deleted) = (added.max(least).to_string(), deleted.to_string());
        words.extend([&b"ENTRIESADDED"[..], added.as_bytes(), b"MAXDELETEDID", deleted.as_bytes()]);
        command(self.out, &words)
    }

    /// The walk is over: takes the ghosts away.
    pub(super) fn finish(mut self) -> Result<()> {
        if self.ghosts.is_empty() {
            return Ok(());
        }
        match self.first {
            None => command(self.out, &[b"XTRIM", self.key, b"MAXLEN", b"0"])?,
            Some(first) => {
                let deleted = self.ghosts.split_off(self.ghosts.partition_point(|ghost| *ghost < first));
                if !self.ghosts.is_empty() {
                    command(self.out, &[b"XTRIM", self.key, b"MINID", first.to_string().as_bytes()])?;
                }
                for part in deleted.chunks(MOST_ELEMENTS) {
                    begin(self.out, 2 + part.len())?;
                    word(self.out, b"XDEL")?;
                    word(self.out, self.key)?;
                    part.iter().try_for_each(|id| word(self.out, id.to_string().as_bytes()))?;
                }
            }
        }
        self.set_id(self.meta.last, 0)
    }
}

impl<W: CommandSink> ValueVisitor for Stream<'_, W> {
    fn begin(&mut self, role: Role, len: u64) -> Result<()> {
        self.text.clear();
        match role {
            Role::EntryField | Role::EntryValue => begin_word(self.out, len),
            _ => Ok(()),
        }
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        // Strings of entries come before any name.
        if !self.counted {
            return self.out.bytes(bytes);
        }
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self, role: Role) -> Result<()> {
        match role {
            Role::EntryField | Role::EntryValue => self.out.bytes(b"\r\n"),
            Role::Group => {
                self.group.clone_from(&self.text);
                self.delivered.clear();
                Ok(())
            }
            Role::Consumer => {
                self.consumer.clone_from(&self.text);
                Ok(())
            }
            _ => Err(Error::bug("a string of another class")),
        }
    }

    fn entry(&mut self, id: StreamId, fields: u64) -> Result<()> {
        while let Some(due) = self.due.pop_if(|due| *due <= id) {
            if due < id {
                self.ghost(due)?;
            }
        }
        let _ = self.first.get_or_insert(id);
        let words = usize::try_from(fields).ok().and_then(|n| n.checked_mul(2)?.checked_add(3));
        begin(self.out, words.ok_or_else(|| Error::damaged("an entry with more fields than can be"))?)?;
        word(self.out, b"XADD")?;
        word(self.out, self.key)?;
        word(self.out, id.to_string().as_bytes())
    }

    fn stream(&mut self, meta: &StreamMeta) -> Result<()> {
        while let Some(due) = self.due.pop() {
            self.ghost(due)?;
        }
        (self.meta, self.counted) = (*meta, true);
        if self.first.is_none() && self.ghosts.is_empty() {
            // An empty stream can only be had with a group.
            command(self.out, &[b"XGROUP", b"CREATE", self.key, b"-", b"0", b"MKSTREAM"])?;
            command(self.out, &[b"XGROUP", b"DESTROY", self.key, b"-"])?;
        }
        let last = self.ghosts.last().map_or(meta.last, |ghost| meta.last.max(*ghost));
        self.set_id(last, meta.length + self.ghosts.len() as u64)
    }

    fn group(&mut self, group: &Group) -> Result<()> {
        let last = group.last.to_string();
        let mut words = vec![&b"XGROUP"[..], b"CREATE", self.key, &self.group, last.as_bytes()];
        let read = group.entries_read.filter(|read| *read >= 0).map(|read| read.to_string());
        if let Some(read) = &read {
            words.extend([&b"ENTRIESREAD"[..], read.as_bytes()]);
        }
        command(self.out, &words)
    }

    fn pending(&mut self, id: StreamId, delivered_at_millis: i64, deliveries: u64) -> Result<()> {
        let _ = self.delivered.insert(id, (delivered_at_millis, deliveries));
        Ok(())
    }

    fn consumer(&mut self, _seen_millis: i64, _active_millis: Option<i64>) -> Result<()> {
        command(self.out, &[b"XGROUP", b"CREATECONSUMER", self.key, &self.group, &self.consumer])
    }

    fn consumer_pending(&mut self, id: StreamId) -> Result<()> {
        let (at, times) = *self
            .delivered
            .get(&id)
            .ok_or_else(|| Error::damaged("a consumer has an entry pending that its group has not"))?;
        let (id, at, times) = (id.to_string(), at.to_string(), times.to_string());
        command(
            self.out,
            &[
                b"XCLAIM",
                self.key,
                &self.group,
                &self.consumer,
                b"0",
                id.as_bytes(),
                b"TIME",
                at.as_bytes(),
                b"RETRYCOUNT",
                times.as_bytes(),
                b"JUSTID",
                b"FORCE",
            ],
        )
    }
}
