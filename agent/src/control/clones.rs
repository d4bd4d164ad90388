//! Commands about clones.

use std::sync::Arc;

use tidemark_common::crash;
use tidemark_common::transport::FrameReader;
use tidemark_proto::frame::{Header, Message};
use tidemark_proto::wire::control::{CloneCreated, CloneDropped, Clones, CreateClone, DropClone, ListClones};
use tidemark_proto::{CloneName, Error, Result, Timestamp};

use super::{Reply, body};
use crate::agent::Agent;
use crate::blocking;

pub(super) async fn dispatch(
    agent: &Arc<Agent>,
    header: Header,
    reader: &mut FrameReader,
    reply: &mut Reply,
) -> Result<()> {
    let engine = agent.engine.clone();
    match header.kind {
        CreateClone::KIND => {
            let CreateClone { name, at } = body(reader, header).await?;
            let name = CloneName::new(name)?;
            let create = move || {
                let (clone, fresh) = engine.create_clone(&name, at)?;
                crash::point("agent.clone-created");
                Ok(CloneCreated { clone, fresh: u8::from(fresh) })
            };
            reply.finish(blocking(create)).await
        }
        ListClones::KIND => {
            let ListClones {} = body(reader, header).await?;
            let list = move || engine.clones().map(|(clones, highest)| Clones { clones, highest });
            reply.finish(blocking(list)).await
        }
        DropClone::KIND => {
            let DropClone { name, at } = body(reader, header).await?;
            let name = CloneName::new(name)?;
            let at = (at != Timestamp::ZERO).then_some(at);
            let drop_it = move || Ok(CloneDropped { dropped: u8::from(engine.drop_clone(&name, at)?) });
            reply.finish(blocking(drop_it)).await
        }
        other => Err(Error::unsupported(format!("command {other} is newer than this agent ({})", crate::BUILD))),
    }
}
