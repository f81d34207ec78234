//! The two readers of a slot as one: the walsender's stream, and the reader of backlogs.
//!
//! A backlog is read by SQL from the start of streaming on where the slot is far behind, until little is left or something
//! is in the way; the stream takes over where the last whole chunk ended, and reads by itself from then on
//! (docs/decisions/backlog-reader.md). Before it has anything to send, the server reads the WAL from the slot's `restart_lsn`
//! once more: so the slot is moved first, when all is durable, or where it cannot be moved far, the stream is started as soon
//! as the last chunk has come, and waits until that is taken. Always holds: the server works for one of them at a time; both
//! give the same messages at the same positions; the slot is moved only to what the ledger confirms, whoever tells the source.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::config::BacklogReader;
use crate::error::Result;
use crate::lsn::Lsn;
use crate::pipeline::Pipeline;
use crate::pipeline::pump::WalSource;
use crate::pipeline::start::STREAM_OPTIONS;
use crate::wal::backlog::{Backlog, Filled, Settings, Through};
use crate::wal::client::{Client, classify};
use crate::wal::connection::ReplicationStream;
use crate::wal::frame::{Frame, StandbyStatus};
use crate::wal::sqlstate::Notice;
use crate::wal::timestamp::now;

/// A slot that is so many bytes of WAL behind has a backlog: tenths of a second for either reader, and more than the
/// connections and the slot that the other one needs.
const BACKLOG_BYTES: u64 = 16 << 20;
/// Messages of the smallest chunk: two tenths of a second of decoding.
const CHUNK_CHANGES: u64 = 100_000;
/// Of `limits.memory_bytes_max`, what may wait in the reader's queue.
const QUEUE_PART: u64 = 4;
/// More is of no use: a chunk that fits is enough for the server to decode the next one meanwhile.
const QUEUE_BYTES_MAX: u64 = 64 << 20;
/// How long the end of the backlog's reader is waited for when its attempt has failed.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(1);
/// For tests: `bytes` instead of [`BACKLOG_BYTES`], or `bytes:changes`, the latter instead of [`CHUNK_CHANGES`].
const LIMITS_OF_TESTS: &str = "WALGATE_BACKLOG";

/// How far behind the slot is, and whether the server can read it by SQL: the functions that count are there from
/// PostgreSQL 14 on; the copy of a failover slot (17) would run ahead of its standbys.
const BEHIND: &str = "SELECT pg_catalog.current_setting('server_version_num')::int4 >= 140000 \
AND NOT pg_catalog.pg_is_in_recovery() AND NOT COALESCE((to_jsonb(s) ->> 'failover')::bool, false), \
CASE WHEN pg_catalog.pg_is_in_recovery() THEN 0 \
ELSE pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), GREATEST(s.confirmed_flush_lsn, $2::text::pg_lsn))::int8 END \
FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1";

pub(super) enum Reader {
    Stream(ReplicationStream),
    Backlog {
        backlog: Box<Backlog>,
        /// Started where the backlog ends, and not read before that is taken.
        next: Option<ReplicationStream>,
    },
}

impl WalSource for Reader {
    fn next_frame(&mut self) -> Result<Option<Frame<'_>>> {
        match self {
            Reader::Stream(stream) => WalSource::next_frame(stream),
            Reader::Backlog { backlog, .. } => backlog.next_frame(),
        }
    }
}

impl Reader {
    /// Waits for more to read. Cancel-safe. `avoids_sql` is set when a chunk broke off.
    pub(super) async fn fill(&mut self, avoids_sql: &AtomicBool) -> Result<Filled> {
        match self {
            Reader::Stream(stream) => stream.fill().await.map(Filled::Bytes),
            Reader::Backlog { backlog, .. } => {
                backlog.fill().await.inspect_err(|_| avoids_sql.store(true, Relaxed))
            }
        }
    }

    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        match self {
            Reader::Stream(stream) => stream.take_notices(),
            Reader::Backlog { backlog, .. } => backlog.take_notices(),
        }
    }

    /// Whether it is the reader of backlogs.
    pub(super) fn is_backlog(&self) -> bool {
        matches!(self, Reader::Backlog { .. })
    }

    /// Takes the stream that goes on where the backlog ends.
    pub(super) fn will_go_on_by(&mut self, stream: ReplicationStream) {
        if let Reader::Backlog { next, .. } = self {
            *next = Some(stream);
        }
    }

    /// Where and why the backlog has ended, once all of it was taken.
    pub(super) fn over(&self) -> Option<&Through> {
        match self {
            Reader::Stream(_) => None,
            Reader::Backlog { backlog, .. } => backlog.over(),
        }
    }

    /// Goes on by the stream, if it was started.
    pub(super) async fn go_on(&mut self) -> bool {
        let Reader::Backlog { next, .. } = self else { return false };
        let Some(stream) = next.take() else { return false };
        let over = std::mem::replace(self, Reader::Stream(stream));
        over.close().await;
        true
    }

    /// Tells the source what is durable.
    pub(super) async fn confirm(
        &mut self,
        received: Lsn,
        confirmed: Lsn,
        reply_requested: bool,
    ) -> Result<()> {
        match self {
            Reader::Stream(stream) => {
                stream.send_copy_data(&status(received, confirmed, reply_requested)).await
            }
            Reader::Backlog { backlog, next: None } => {
                backlog.confirm(confirmed);
                Ok(())
            }
            Reader::Backlog { backlog, next: Some(stream) } => {
                // Not past what was taken, see there; and nobody would read the reply.
                let confirmed = confirmed.min(backlog.read_to());
                stream.send_copy_data(&status(received, confirmed, false)).await
            }
        }
    }

    /// Where a stream does not know it yet, returns when the source has it.
    pub(super) async fn finish(&mut self, confirmed: Lsn) {
        if let Reader::Backlog { backlog, next: None } = self {
            backlog.finish(confirmed).await;
        }
    }

    pub(super) async fn close(self) {
        match self {
            Reader::Stream(stream) => stream.close().await,
            Reader::Backlog { backlog, next } => {
                backlog.close(CLOSE_WAIT_MAX).await;
                if let Some(stream) = next {
                    stream.close().await;
                }
            }
        }
    }
}

/// The backlog of the pipeline's slot, if it has one that is worth it and can be read; what is in the way is said, and
/// no error: the stream reads everything.
pub(super) async fn backlog(pipeline: &Pipeline, client: &Client, safe_lsn: Lsn) -> Result<Option<Backlog>> {
    let source = &pipeline.config.source;
    let is_avoided = pipeline.avoids_sql.swap(false, Relaxed);
    if is_avoided || source.backlog_reader == BacklogReader::Off {
        return Ok(None);
    }
    let (bytes_min, changes_min) = limits();
    let row = client.query_opt(BEHIND, &[&pipeline.slot, &safe_lsn.to_string()]).await.map_err(classify)?;
    let Some(row) = row else { return Ok(None) };
    let (is_possible, behind_bytes): (bool, i64) = (row.get(0), row.get(1));
    let behind_bytes = u64::try_from(behind_bytes).unwrap_or(0);
    if !is_possible || behind_bytes < bytes_min {
        return Ok(None);
    }
    let publication_names = pipeline.publications.option();
    let mut options = STREAM_OPTIONS.to_vec();
    options.push(("publication_names", &publication_names));
    let queue_bytes = (pipeline.config.limits.memory_bytes_max / QUEUE_PART).min(QUEUE_BYTES_MAX);
    let settings = Settings {
        url: pipeline.url.clone(),
        application_name: pipeline.application_name(),
        slot: pipeline.slot.clone(),
        options: options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        temp_bytes_max: source.backlog_temp_bytes_max,
        decoding_memory_bytes_max: source.decoding_memory_bytes_max,
        queue_bytes_max: usize::try_from(queue_bytes).unwrap_or(usize::MAX),
        row_bytes_max: pipeline.row_bytes_max(),
        changes_min,
    };
    match Backlog::open(settings).await {
        Ok(backlog) => {
            tracing::info!(pipeline = pipeline.slot, behind_bytes, "the slot is far behind: reading by SQL");
            Ok(Some(backlog))
        }
        Err(error) => {
            tracing::info!(
                pipeline = pipeline.slot,
                behind_bytes,
                "the slot is far behind, and cannot be read by SQL: {}",
                error.chain()
            );
            Ok(None)
        }
    }
}

fn limits() -> (u64, u64) {
    let text = std::env::var(LIMITS_OF_TESTS).unwrap_or_default();
    let (bytes, changes) = text.split_once(':').unwrap_or((&text, ""));
    (bytes.parse().unwrap_or(BACKLOG_BYTES), changes.parse().unwrap_or(CHUNK_CHANGES))
}

/// A standby status, encoded.
fn status(received: Lsn, confirmed: Lsn, reply_requested: bool) -> Vec<u8> {
    let status = StandbyStatus {
        write: received.max(confirmed),
        flush: confirmed,
        apply: confirmed,
        client_time: now(),
        reply_requested,
    };
    let mut bytes = Vec::with_capacity(40);
    status.encode(&mut bytes);
    bytes
}
