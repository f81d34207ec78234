//! Stage `wal`.

pub mod cursor;
pub mod timestamp;
pub mod frame;
pub mod pgoutput;
#[cfg(test)]
mod corpus;
