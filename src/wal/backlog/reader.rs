//! The reader's thread: chunk after chunk, from a temporary copy of the slot into the queue.
//!
//! The server is idle from the last byte of a chunk to the next request, which is one way there and back: the queue takes
//! what the pipeline has no time for, so that the request does not wait for it. (A request sent ahead was left out: it
//! could only be worth that one way, and the last one would read everything from `restart_lsn` again for nothing.)

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::chunk::{Ask, Bounds, Chunk};
use super::control::{Control, Progress};
use super::{Block, Item, Settings, Through};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::wal::client::connect;
use crate::wal::connection::{BINARY_HEADER, BINARY_TRAILER, CopyNext, Oversized, ReplicationConnection};
use crate::wal::slot::{self, Decoding};
use crate::wal::sql::quote_literal;
use crate::wal::sqlstate::{CONFIGURATION_LIMIT, source_of, sqlstate_of};
use crate::wal::timestamp::now;

/// Rows go to the pipeline in pieces of this size, in bytes; one row may be larger.
const BLOCK_BYTES: usize = 512 << 10;
/// The queue is counted in these.
const ROOM_BYTES: usize = 1 << 10;

/// So that the server notices a reader that has died while it decodes; not on every platform.
const NOTICE_DEATH: &str = "SET client_connection_check_interval = '1s'";
/// From PostgreSQL 17 on; a role may have one, and a chunk is one transaction.
const NO_TIMEOUT: &str = "SET transaction_timeout = 0";
/// For roles that may: the server itself then stops what takes more.
const LIMIT_TEMPORARY_FILES: &str = "SELECT pg_catalog.set_config(s.name, '@LIMIT@', false) FROM pg_catalog.pg_settings s \
WHERE s.name = 'temp_file_limit' AND (s.setting::int8 < 0 OR s.setting::int8 > @LIMIT@)";
const PID: &str = "SELECT pg_catalog.pg_backend_pid()";
const COPY_SLOT: &str =
    "SELECT slot_name FROM pg_catalog.pg_copy_logical_replication_slot(@SLOT@, @TEMPORARY@, true)";
const CHUNK: &str = "COPY (SELECT lsn, data FROM pg_catalog.pg_logical_slot_get_binary_changes(@TEMPORARY@, \
(SELECT s.confirmed_flush_lsn + GREATEST(@WAL_BYTES@, s.confirmed_flush_lsn - s.restart_lsn) \
 FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = @TEMPORARY@), \
@CHANGES@, @OPTIONS@)) TO STDOUT (FORMAT binary)";
const POSITION: &str = "SELECT s.confirmed_flush_lsn, s.restart_lsn, pg_catalog.pg_current_wal_flush_lsn() \
FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = @TEMPORARY@";

/// What the thread does, to its end.
pub(super) async fn run(
    settings: Settings,
    opening: oneshot::Sender<Result<()>>,
    items: mpsc::Sender<Item>,
    confirmed: watch::Receiver<Lsn>,
    through: oneshot::Sender<Through>,
    mut finish: oneshot::Receiver<Lsn>,
) {
    let (mut reader, control) = match open(settings).await {
        Ok(opened) => opened,
        Err(error) => {
            // Nobody waits: then nobody reads.
            let _ = opening.send(Err(error));
            return;
        }
    };
    let progress = Progress::default();
    let is_awaited = opening.send(Ok(())).is_ok();
    let mut last = None;
    let (over, is_idle) = tokio::select! {
        biased;
        asked = &mut finish => { last = Some(asked); (None, false) }
        over = control.watch(&progress, confirmed.clone()) => (Some(over), false),
        over = reader.read(&items, &progress), if is_awaited => {
            let is_idle = over.is_ok();
            (Some(over), is_idle)
        }
    };
    if is_idle {
        reader.connection.close().await;
    } else {
        drop(reader);
        control.end_reader().await;
    }
    let asked = match last {
        Some(asked) => asked,
        None => {
            let item = match over {
                Some(Err(error)) => Item::Failed(error),
                Some(Ok(why)) => {
                    let over = Through { read_to: progress.read_to.get(), why };
                    let known = *confirmed.borrow();
                    let moved = control.advance_for_stream(known, progress.restart_lsn.get()).await;
                    match moved.unwrap_or_else(|error| heed(&control, error)) {
                        true => drop(through),
                        // Whom it is for has gone: what follows finds out.
                        false => drop(through.send(over.clone())),
                    }
                    Item::Over(over)
                }
                None => return,
            };
            tokio::select! {
                biased;
                asked = &mut finish => asked,
                // The other end has gone: it says so by the same.
                _ = items.send(item) => finish.await,
            }
        }
    };
    if let Ok(confirmed) = asked {
        control.advance(confirmed, Lsn(u64::MAX)).await.unwrap_or_else(|error| heed(&control, error));
    }
}

/// The slot that was not moved now is moved later.
fn heed<T: Default>(control: &Control, error: Error) -> T {
    tracing::warn!(slot = control.slot, "{}", error.chain());
    T::default()
}

struct Reader {
    connection: ReplicationConnection,
    bounds: Bounds,
    room: Arc<Semaphore>,
    room_max: u32,
    /// With a place for the number of changes.
    chunk: String,
    position: String,
}

/// Where a slot stands.
struct At {
    confirmed: Lsn,
    restart: Lsn,
    end: Lsn,
}

async fn open(settings: Settings) -> Result<(Reader, Control)> {
    let reader_name = format!("{} backlog", settings.application_name);
    let mut connection = ReplicationConnection::connect_ordinary(&settings.url, &reader_name).await?;
    let limit = i32::try_from(settings.temp_bytes_max.div_ceil(1024)).unwrap_or(i32::MAX);
    let limit = LIMIT_TEMPORARY_FILES.replace("@LIMIT@", &limit.to_string());
    for wish in [NOTICE_DEATH, NO_TIMEOUT, &limit] {
        if let Err(error) = connection.query(wish).await {
            tracing::debug!("reading a backlog without it: {}", error.chain());
        }
    }
    slot::allow_memory(&mut connection, settings.decoding_memory_bytes_max, Decoding::Function).await?;
    let pid = first(&connection.query(PID).await?).and_then(|text| text.parse().ok());
    let reader_pid: i32 = pid.ok_or_else(unreadable)?;
    // No other session has this pid, and the slot lives no longer than this one.
    let temporary_slot = format!("walgate_backlog_{reader_pid}");
    let temporary = quote_literal(&temporary_slot);
    let copy = COPY_SLOT.replace("@SLOT@", &quote_literal(&settings.slot)).replace("@TEMPORARY@", &temporary);
    connection.query(&copy).await?;
    connection.limit_rows(settings.row_bytes_max);
    let client = connect(&settings.url, &format!("{} backlog control", settings.application_name)).await?;

    let options: Vec<String> = settings
        .options
        .iter()
        .flat_map(|(name, value)| [quote_literal(name), quote_literal(value)])
        .collect();
    let room_max = u32::try_from(settings.queue_bytes_max / ROOM_BYTES).unwrap_or(u32::MAX).max(1);
    let reader = Reader {
        connection,
        bounds: Bounds {
            changes_min: settings.changes_min.max(1),
            queue_bytes_max: u64::try_from(settings.queue_bytes_max).unwrap_or(u64::MAX),
            temp_bytes_max: settings.temp_bytes_max,
        },
        room: Arc::new(Semaphore::new(usize::try_from(room_max).expect("a u32 fits"))),
        room_max,
        chunk: CHUNK.replace("@TEMPORARY@", &temporary).replace("@OPTIONS@", &options.join(", ")),
        position: POSITION.replace("@TEMPORARY@", &temporary),
    };
    let control =
        Control { client, slot: settings.slot, temporary_slot, temp_bytes_max: settings.temp_bytes_max };
    Ok((reader, control))
}

impl Reader {
    /// Reads until it is over, and says why: caught up, or something that the stream should look at.
    ///
    /// # Errors
    /// A chunk broke off after some of it was handed over.
    async fn read(&mut self, items: &mpsc::Sender<Item>, progress: &Progress) -> Result<String> {
        let (mut read_from, mut ask) = match self.position().await {
            Ok(at) => (at.confirmed, Ask::first(self.bounds, at.end.bytes_since(at.confirmed))),
            Err(error) => return Ok(error.chain()),
        };
        loop {
            progress.chunk.set(progress.chunk.get() + 1);
            progress.changes.set(0);
            let chunk = match self.read_chunk(items, progress, ask, read_from).await {
                Ok(chunk) => chunk,
                Err(error) if progress.changes.get() == 0 => return Ok(self.why(&error)),
                // The stream says whose row it is, and that it is refused.
                Err(error) if source_of::<Oversized>(&error).is_some() => {
                    return Err(Error::transient("a row of a backlog is too large").with_source(error));
                }
                Err(error) => return Err(error.context("reading a backlog by SQL")),
            };
            tracing::debug!(?ask, received = chunk.changes, bytes = chunk.bytes, read_to = %chunk.read_to,
                restart_lsn = %chunk.restart_lsn, "chunk of a backlog");
            progress.restart_lsn.set(chunk.restart_lsn);
            progress.read_to.set(chunk.read_to);
            if items.send(Item::End(chunk.read_to, now())).await.is_err() {
                return Ok("nobody reads".to_owned());
            }
            if chunk.is_near_end() {
                return Ok("caught up".to_owned());
            }
            if progress.is_last.get() || chunk.bytes > self.bounds.temp_bytes_max {
                return Ok(format!(
                    "a transaction of {} bytes is above source.backlog_temp_bytes_max",
                    chunk.bytes
                ));
            }
            if chunk.is_of_large_messages() {
                let mean = chunk.bytes / chunk.changes;
                return Ok(format!("messages of {mean} bytes, for which the stream takes no longer"));
            }
            ask = chunk.next(self.bounds);
            read_from = chunk.read_to;
        }
    }

    fn why(&self, error: &Error) -> String {
        let is_limit = sqlstate_of(error) == Some(CONFIGURATION_LIMIT);
        let above = if is_limit { "a transaction is above source.backlog_temp_bytes_max: " } else { "" };
        format!("{above}{}", error.chain())
    }

    async fn read_chunk(
        &mut self,
        items: &mpsc::Sender<Item>,
        progress: &Progress,
        ask: Ask,
        read_from: Lsn,
    ) -> Result<Chunk> {
        let asked_at = Instant::now();
        let (mut received, mut bytes) = (0, 0);
        let mut block = Vec::new();
        let (queue, mut room) = (self.room.clone(), None);
        let mut is_first = true;
        let chunk = self.chunk.replace("@CHANGES@", &ask.changes.to_string());
        let chunk = chunk.replace("@WAL_BYTES@", &ask.wal_bytes.to_string());
        let mut rows = self.connection.copy_out(&chunk).await?;
        loop {
            match rows.next_row()? {
                CopyNext::Row(sent) => {
                    let Some(row) = row_of(sent, std::mem::take(&mut is_first))? else { continue };
                    if row.len() >= BLOCK_BYTES {
                        // Before it is copied: what waits for room would be held twice.
                        room = Some(room_for(&queue, self.room_max, block.len() + row.len()).await?);
                    }
                    if block.capacity() == 0 {
                        block.reserve_exact(BLOCK_BYTES.max(row.len()));
                    }
                    block.extend_from_slice(row);
                    received += 1;
                }
                CopyNext::Fill => {
                    rows.fill().await?;
                    continue;
                }
                CopyNext::End(_) => break,
            }
            if block.len() >= BLOCK_BYTES {
                bytes += block.len();
                progress.changes.set(received);
                let notices = rows.take_notices();
                let room = match room.take() {
                    Some(room) => room,
                    None => room_for(&queue, self.room_max, block.len()).await?,
                };
                hand_over(items, notices, std::mem::take(&mut block), room).await?;
            }
        }
        bytes += block.len();
        progress.changes.set(received);
        let notices = self.connection.take_notices();
        let room = room_for(&queue, self.room_max, block.len()).await?;
        hand_over(items, notices, block, room).await?;
        let at = self.position().await?;
        Ok(Chunk {
            asked: ask,
            changes: received,
            bytes: u64::try_from(bytes).expect("a length fits"),
            took: asked_at.elapsed(),
            read_from,
            read_to: at.confirmed,
            restart_lsn: at.restart,
            source_lsn: at.end,
        })
    }

    async fn position(&mut self) -> Result<At> {
        let rows = self.connection.query(&self.position).await?;
        let field = |at: usize| rows.first()?.get(at)?.as_ref()?.parse().ok();
        match (field(0), field(1), field(2)) {
            (Some(confirmed), Some(restart), Some(end)) => Ok(At { confirmed, restart, end }),
            _ => Err(unreadable()),
        }
    }
}

/// Waits for room in the queue.
async fn room_for(queue: &Arc<Semaphore>, room_max: u32, bytes: usize) -> Result<OwnedSemaphorePermit> {
    let share = u32::try_from(bytes / ROOM_BYTES).unwrap_or(u32::MAX).clamp(1, room_max);
    queue.clone().acquire_many_owned(share).await.map_err(|_| gone())
}

fn gone() -> Error {
    Error::transient("nobody reads any more")
}

async fn hand_over(
    items: &mpsc::Sender<Item>,
    notices: Vec<crate::wal::sqlstate::Notice>,
    bytes: Vec<u8>,
    room: OwnedSemaphorePermit,
) -> Result<()> {
    if !notices.is_empty() {
        items.send(Item::Notices(notices)).await.map_err(|_| gone())?;
    }
    if bytes.is_empty() {
        return Ok(());
    }
    let block = Block { bytes, taken: 0, received_at: now(), _room: room };
    items.send(Item::Rows(block)).await.map_err(|_| gone())
}

/// The row in the payload of a CopyData: the first one has the header before it; `None`: the trailer.
fn row_of(sent: &[u8], is_first: bool) -> Result<Option<&[u8]>> {
    let row = match is_first {
        true => sent.strip_prefix(BINARY_HEADER).ok_or_else(unreadable)?,
        false => sent,
    };
    Ok((!row.is_empty() && row != BINARY_TRAILER).then_some(row))
}

fn first(rows: &[Vec<Option<String>>]) -> Option<&str> {
    rows.first()?.first()?.as_deref()
}

fn unreadable() -> Error {
    Error::transient("the source's answer about its slot cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_rows_out_of_what_copy_sends() {
        let row = b"\0\x02\0\0\0\x08";
        let first = [BINARY_HEADER, row].concat();
        assert_eq!(row_of(&first, true).expect("a header"), Some(row.as_slice()));
        assert_eq!(row_of(row, false).expect("a row"), Some(row.as_slice()));
        assert_eq!(row_of(BINARY_TRAILER, false).expect("the end"), None);
        let empty = [BINARY_HEADER, BINARY_TRAILER].concat();
        assert_eq!(row_of(&empty, true).expect("nothing at all"), None);
        row_of(row, true).expect_err("no header");
    }
}
