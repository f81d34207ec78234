//! Stage `wal`: the bytes of a logical slot, and the connections they come through.

pub mod url;
pub mod tls;
pub mod sqlstate;
pub mod client;
pub mod connection;
