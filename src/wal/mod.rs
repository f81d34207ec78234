//! Stage `wal`: the bytes of a logical slot, and the connections they come through.
//!
//! Two sources of one byte stream: the walsender ([`connection`]), and the SQL reader of backlogs ([`backlog`]), which
//! gives the same messages (EXACTLY_ONCE.md, "Positions").

pub mod url;
pub mod tls;
pub mod sqlstate;
pub mod client;
pub mod connection;
pub mod backlog;
pub mod sql;

pub mod cursor;
pub mod timestamp;
pub mod frame;
pub mod pgoutput;
#[cfg(test)]
mod corpus;

pub mod catalog;
pub mod sequence;
pub mod index;
pub mod publication;
pub mod slot;
pub mod server;
pub mod lock;
