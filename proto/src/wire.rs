//! Wire messages. Each module opens with parties and order. Kinds are numbered once and never reused:
//! 1-19 hello, 20-59 control, 60-99 bulk, 100-139 kv.

pub mod bulk;
pub mod control;
pub mod hello;
pub mod kv;

#[cfg(test)]
pub(crate) mod golden;
