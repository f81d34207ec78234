//! The second session beside a backlog's reader: moves the slot, and looks after the reader's session.
//!
//! Comes in: what is durable, and how far the reader is. Goes out: `pg_replication_slot_advance`, every 30 s; the end of
//! the reader where a transaction is too large for the source's disk. It is the reader's own role, so it may end its session.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::Result;
use crate::lsn::Lsn;
use crate::wal::client::{Client, classify};

/// The slot is moved this often: each time the server reads the WAL from `restart_lsn` to there once more.
const ADVANCE_TIME: Duration = Duration::from_secs(30);
/// Between two looks at what a chunk has spilled.
const LOOK_TIME: Duration = Duration::from_secs(1);
/// How long the end of the reader's session is waited for.
const TERMINATE_TIME_MAX: Duration = Duration::from_secs(5);

/// Before the stream takes over the slot is moved only if its `restart_lsn` is so far behind the reader's own: moving it reads
/// the WAL from there, and so does the stream if it stays where it is.
const WORTH_BYTES: u64 = 64 << 20;
/// Never back: another process that moved it is for the guard to name (`pipeline/guard.rs`).
const ADVANCE: &str = "SELECT pg_catalog.pg_replication_slot_advance(s.slot_name, $2::text::pg_lsn) \
FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1 AND s.confirmed_flush_lsn < $2::text::pg_lsn \
AND s.restart_lsn < $3::text::pg_lsn";
const IS_BEHIND: &str =
    "SELECT s.restart_lsn < $2::text::pg_lsn FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1";
/// What the decoder wrote to disk of transactions that do not fit into `logical_decoding_work_mem`.
const SPILLED: &str =
    "SELECT s.spill_bytes FROM pg_catalog.pg_stat_replication_slots s WHERE s.slot_name = $1";
/// A temporary slot is active for as long as its session lives.
const TERMINATE: &str = "SELECT pg_catalog.pg_terminate_backend(s.active_pid, 2000) \
FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1 AND s.temporary";

/// How far the reader is; both run on one thread.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Chunks asked for.
    pub chunk: Cell<u64>,
    /// Messages that have come of the last one.
    pub changes: Cell<u64>,
    /// From where the next one would be read.
    pub restart_lsn: Cell<Lsn>,
    /// Where the last whole one ended; 0/0 before the first.
    pub read_to: Cell<Lsn>,
    /// It is to be the last.
    pub is_last: Cell<bool>,
}

pub(super) struct Control {
    pub client: Client,
    pub slot: String,
    /// The reader's own.
    pub temporary_slot: String,
    pub temp_bytes_max: u64,
}

impl Control {
    /// Moves the slot by and by; resolves when the chunk that is being decoded takes too much of the source's disk, saying so.
    ///
    /// # Errors
    /// Definite: the slot cannot be moved. Transient: the connection broke.
    pub(super) async fn watch(&self, progress: &Progress, confirmed: watch::Receiver<Lsn>) -> Result<String> {
        let mut advanced_at = Instant::now();
        let mut looked_at = (1, 0);
        loop {
            tokio::time::sleep(LOOK_TIME).await;
            if advanced_at.elapsed() >= ADVANCE_TIME {
                let to = *confirmed.borrow();
                self.advance(to, Lsn(u64::MAX)).await?;
                advanced_at = Instant::now();
            }
            let spilled = self.spilled().await?;
            let chunk = progress.chunk.get();
            if chunk != looked_at.0 {
                looked_at = (chunk, spilled);
            }
            let of_chunk = spilled.saturating_sub(looked_at.1);
            if of_chunk > self.temp_bytes_max {
                if progress.changes.get() == 0 {
                    return Ok(format!(
                        "a transaction is too large to be decoded at once: it spilled {of_chunk} bytes"
                    ));
                }
                // The room is taken, and the rest is on its way.
                progress.is_last.set(true);
            }
        }
    }

    async fn spilled(&self) -> Result<u64> {
        let row = self.client.query_opt(SPILLED, &[&self.temporary_slot]).await.map_err(classify)?;
        let bytes: Option<i64> = row.and_then(|row| row.get(0));
        Ok(bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0))
    }

    /// Moves the slot to what is durable before the stream reads it, if that saves the stream more than it costs, and says
    /// whether it would save as much to do so once everything is: the reader's own slot will be read from `restart_lsn`.
    ///
    /// # Errors
    /// As [`Control::advance`]. Transient: the connection broke.
    pub(super) async fn advance_for_stream(&self, to: Lsn, restart_lsn: Lsn) -> Result<bool> {
        let worth_it = Lsn(restart_lsn.0.saturating_sub(WORTH_BYTES));
        self.advance(to, worth_it).await?;
        let (slot, worth_it) = (&self.slot, worth_it.to_string());
        let row = self.client.query_opt(IS_BEHIND, &[slot, &worth_it]).await.map_err(classify)?;
        Ok(row.is_some_and(|row| row.get(0)))
    }

    /// Moves the slot to what is durable, if its `restart_lsn` is before `restart_before`.
    ///
    /// # Errors
    /// Definite: it cannot be moved. What is transient only costs WAL, until the next time.
    pub(super) async fn advance(&self, to: Lsn, restart_before: Lsn) -> Result<()> {
        if to == Lsn::ZERO {
            return Ok(());
        }
        let (confirmed, before) = (to.to_string(), restart_before.to_string());
        let advanced = self.client.query(ADVANCE, &[&self.slot, &confirmed, &before]).await.map_err(classify);
        match advanced {
            Ok(_) => Ok(()),
            Err(error) if error.is_definite() => {
                Err(error.context(format_args!("slot {} cannot be moved to {to}", self.slot)))
            }
            Err(error) => {
                tracing::warn!(slot = self.slot, %to, "the slot cannot be moved now: {}", error.chain());
                Ok(())
            }
        }
    }

    /// Ends the reader's session, whatever it is doing; its temporary slot is gone after it.
    pub(super) async fn end_reader(&self) {
        let ending = async { self.client.query(TERMINATE, &[&self.temporary_slot]).await };
        // What the server does not do now it does when it notices the closed socket.
        match tokio::time::timeout(TERMINATE_TIME_MAX, ending).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::debug!("the reader's session was not ended: {}", classify(error).chain());
            }
            Err(_) => tracing::debug!("the reader's session was not ended in time"),
        }
    }
}
