//! Whether a server can take a restore, and what its refusals mean.

use tidemark_proto::{Error, ErrorKind, Result, SlotSet};

use super::conn::Connection;
use super::resp::Reply;
use super::server::{PRIMARY, View};
use super::{Options, Redis};

/// The policy of a server that drops nothing when its memory is full.
const KEEPS: &str = "noeviction";
/// What the agent's user does in a restore onto an empty server; the last only where slots are on their way to it.
const NEEDED: [&[&[u8]]; 4] = [&[b"RESTORE", b"k", b"0", b"v"], &[b"SELECT", b"0"], &[b"FLUSHALL"], &[ASKING]];
/// Comes before each command on a key of a slot that another server still owns.
pub(super) const ASKING: &[u8] = b"ASKING";

/// The server, as `view` shows it, can take records of `slots`. Nothing is changed.
pub(super) fn fits(view: &View, slots: &SlotSet) -> Result<()> {
    if view.info.role() != PRIMARY {
        return Err(Error::conflict("the server is a read-only replica: restore onto its primary"));
    }
    let (limit, policy) = (view.info.number("maxmemory").unwrap_or(0), view.info.text("maxmemory_policy"));
    if limit > 0 && policy != KEEPS {
        return Err(Error::conflict(format!(
            "the server drops keys when its memory is full (maxmemory {limit} bytes, maxmemory-policy {policy}), so that \
             nobody could say what was restored: `CONFIG SET maxmemory-policy {KEEPS}` until the restore has ended"
        )));
    }
    served(view, slots).map(drop)
}

/// New keys of all `slots` go to the server: it owns them and they are not leaving it, or they are on their way to it. Answers
/// the latter: their keys are taken behind `ASKING` alone.
pub(super) fn served(view: &View, slots: &SlotSet) -> Result<SlotSet> {
    let (owned, arriving) = (view.ownership()?.slots, view.arriving().intersect(slots));
    let (gone, leaving) = (slots.minus(&owned).minus(&arriving), slots.intersect(&view.leaving()));
    if !gone.is_empty() {
        let who: Vec<_> = view
            .nodes
            .iter()
            .filter(|node| !node.slots.intersect(&gone).is_empty())
            .map(|node| format!("{} at {}", node.slots.intersect(&gone), node.address))
            .collect();
        let now = if who.is_empty() { String::new() } else { format!(" ({})", who.join(", ")) };
        return Err(Error::unsupported(format!("the server does not own slots {gone} any more{now}: {STAY}")));
    }
    if !leaving.is_empty() {
        return Err(Error::unsupported(format!(
            "slots {leaving} are moving from the server to another one: {STAY}"
        )));
    }
    Ok(arriving)
}

/// What to do about slots.
const STAY: &str =
    "slots must stay where they are until a restore has ended; wait until they do, then restore again";

/// Asks whether the agent's user may do what a restore does; servers before 7.0 cannot tell. `Denied` says what to grant.
/// `arriving`: some slots are on their way to the server.
pub(super) fn rights(connection: &mut Connection, options: &Options, arriving: bool) -> Result<()> {
    let user = options.login.user_name();
    let mut missing = Vec::new();
    for command in NEEDED.into_iter().filter(|command| arriving || command[0] != ASKING) {
        let mut ask: Vec<&[u8]> = vec![b"ACL", b"DRYRUN", user.as_bytes()];
        ask.extend(command);
        match connection.call(&ask)? {
            Reply::Status(ok) if ok == "OK" => {}
            // It cannot be asked: what is missing shows when it is done.
            Reply::Error(_) => return Ok(()),
            _ => missing.push(format!("+{}", String::from_utf8_lossy(command[0]).to_lowercase())),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Denied,
        format!("the agent's user may not load a restore: ACL SETUSER {user} ~* {}", missing.join(" ")),
    ))
}

/// What a refusal of `server` means for a restore, and what to do.
pub(super) fn explain(error: Error, server: &Redis) -> Error {
    let words: Vec<&str> = error.message().split(['`', ' ']).collect();
    let after = |code: &str| words.iter().position(|w| *w == code).and_then(|at| words.get(at + 1..at + 3));
    match error.kind() {
        ErrorKind::Full => {
            let told = server.view().map(|view| {
                let number = |name| view.info.number(name).unwrap_or(0);
                let (used, limit) = (number("used_memory"), number("maxmemory"));
                format!(
                    "the server's memory is full ({used} bytes are used, maxmemory is {limit}): raise maxmemory, restore onto \
                     more nodes, or restore less (--keys, --slots, --db)"
                )
            });
            error.context(told.unwrap_or_else(|_| "the server's memory is full".to_owned()))
        }
        ErrorKind::Conflict => match (after("MOVED"), after("ASK")) {
            (Some([slot, to]), _) => Error::unsupported(format!("slot {slot} belongs to {to} now: {STAY}")),
            (_, Some([slot, to])) => Error::unsupported(format!("slot {slot} is moving to {to}: {STAY}")),
            _ => error,
        },
        ErrorKind::Denied => error.context(format!(
            "the agent's user needs the rights ~* +restore +select +flushall, +asking for slots that are on their way to the \
             server, and +@write for values over {} bytes",
            server.options.native_over
        )),
        _ => error,
    }
}
