//! Walgate: logical data replication for PostgreSQL, table by table, as events or as rows.
//!
//! `slot -> wal -> change -> route -> sink -> ack`, see `ARCHITECTURE.md`.

#![forbid(unsafe_code)]

pub mod error;
pub mod failpoint;
pub mod lsn;

pub mod config;
pub mod wal;
pub mod migrations;
pub mod change;
pub mod route;
pub mod claim;
pub mod sink;
pub mod ack;
pub mod snapshot;
pub mod pipeline;
pub mod engine;
pub mod command;
