//! Claim checks: events too large for the hub go through an S3 server, their envelopes through Kafka.
//!
//! Large values are stored as they are in their columns (`STORAGE EXTERNAL`), since what is measured is their way and not
//! pglz; nothing in them compresses where somebody could gain by it. Every run has a slot and a prefix in the store of
//! its own, and the store is emptied after it. Always: outside of the time measured every reference is followed, and
//! what is there compared with its size, its sha256 and the source.

mod client;
mod copy;
mod far_side;
mod memory;
mod mixed;
mod store;

use std::time::Instant;

use crate::servers::Session;
use crate::{Result, say};

pub use copy::{WAYS, run as copy};
pub use memory::{LARGE, LARGE_IN_ONE, SMALL, run as memory};
pub use mixed::{run as mixed, series as mixed_series};
pub use store::serve;

/// Events above it travel by claim check: the default.
const THRESHOLD_BYTES: usize = 262_144;

/// Writes a backlog, without waiting for the disk at every commit.
fn write(session: &Session, what: &str, write: impl Fn(&Session) -> Result<()>) -> Result<()> {
    let (started_at, start_lsn) = (Instant::now(), session.value("SELECT pg_current_wal_lsn()")?);
    session.run("SET synchronous_commit = off")?;
    write(session)?;
    session.run("SET synchronous_commit = on")?;
    session.run("CHECKPOINT")?;
    let sql = format!("SELECT pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), '{start_lsn}'))");
    let (wal, seconds) = (session.value(&sql)?, started_at.elapsed().as_secs_f64());
    say(format_args!("{what} wait, {wal} of WAL, written in {seconds:.1} s"));
    Ok(())
}
