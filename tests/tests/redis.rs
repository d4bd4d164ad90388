//! The engine `redis` against real servers: through the engine trait, and with the built binaries.

#[path = "redis/broken.rs"]
mod broken;
#[path = "redis/chains.rs"]
mod chains;
#[path = "redis/contents.rs"]
mod contents;
#[path = "redis/cut.rs"]
mod cut;
#[path = "redis/early.rs"]
mod early;
#[path = "redis/fenced.rs"]
mod fenced;
#[path = "redis/fields.rs"]
mod fields;
#[path = "redis/files.rs"]
mod files;
#[path = "rdb/fill.rs"]
#[allow(dead_code, reason = "the tier `rdb` uses all of it")]
mod fill;
#[path = "redis/flow.rs"]
mod flow;
#[path = "redis/folded.rs"]
mod folded;
#[path = "redis/handmade.rs"]
mod handmade;
#[path = "redis/import.rs"]
mod import;
#[path = "redis/in_place.rs"]
mod in_place;
#[path = "redis/in_place_broken.rs"]
mod in_place_broken;
#[path = "redis/kept.rs"]
mod kept;
#[path = "redis/killed.rs"]
mod killed;
#[path = "redis/load.rs"]
mod load;
#[path = "redis/log.rs"]
mod log;
#[path = "redis/log_broken.rs"]
mod log_broken;
#[path = "redis/long.rs"]
mod long;
#[path = "rdb/model.rs"]
#[allow(dead_code, reason = "the tier `rdb` uses all of it")]
mod model;
#[path = "redis/moving.rs"]
mod moving;
#[path = "redis/native.rs"]
mod native;
#[path = "redis/open_slots.rs"]
mod open_slots;
#[path = "redis/options.rs"]
mod options;
#[path = "redis/past.rs"]
mod past;
#[path = "redis/phases.rs"]
mod phases;
#[path = "redis/pretend.rs"]
mod pretend;
#[path = "redis/replicas.rs"]
mod replicas;
#[path = "redis/sent_early.rs"]
mod sent_early;
#[path = "redis/shapes.rs"]
mod shapes;
#[path = "redis/shares.rs"]
mod shares;
#[path = "redis/slow_move.rs"]
mod slow_move;
#[path = "redis/targets.rs"]
mod targets;
#[path = "redis/tls.rs"]
mod tls;
#[path = "redis/transactions.rs"]
mod transactions;
#[path = "redis/tuned.rs"]
mod tuned;
#[path = "redis/whole.rs"]
mod whole;
