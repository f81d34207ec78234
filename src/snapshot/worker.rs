//! One of the connections that copy in parallel: takes ranges, writes their rows as events.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::rows::CopyRow;
use super::table::{CopyPlan, CopyTable};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::route::batch::Batch;
use crate::route::event::{Before, EventWriter, RowEvent};
use crate::route::plan::{Op, TablePlan};
use crate::route::row_plan::RowPlan;
use crate::route::value::Style;
use crate::wal::connection::{CopyNext, ReplicationConnection};
use crate::wal::url::ConnectUrl;

/// A batch goes to the sink at this size, in bytes.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// A batch goes to the sink at this many events.
const BATCH_EVENTS_MAX: usize = 4096;

/// A range of a table's file.
pub struct Chunk {
    /// Its table.
    pub table: Arc<CopyTable>,
    /// The statement that copies it.
    pub copy: String,
}

/// What the workers of a round share.
pub struct Shared {
    /// Taken from the end.
    chunks: Mutex<Vec<Chunk>>,
    chunks_total: usize,
    free: Mutex<Vec<Batch>>,
    style: Style,
}

impl Shared {
    pub(super) fn of(chunks: Vec<Chunk>, bigint_as_string: bool) -> Self {
        Shared {
            chunks_total: chunks.len(),
            chunks: Mutex::new(chunks),
            free: Mutex::default(),
            style: Style { bigint_as_string },
        }
    }

    /// How many chunks there were.
    pub fn chunks(&self) -> usize {
        self.chunks_total
    }

    /// Takes a delivered batch's buffer for reuse.
    pub fn give_back(&self, batch: Batch) {
        self.free.lock().expect("no holder panics").push(batch);
    }

    fn next_chunk(&self) -> Option<Chunk> {
        self.chunks.lock().expect("no holder panics").pop()
    }

    fn empty_batch(&self) -> Batch {
        self.free.lock().expect("no holder panics").pop().unwrap_or_default()
    }
}

/// Copies ranges until none is left.
///
/// # Errors
/// Any; the table stays unfinished.
pub async fn run(
    url: &ConnectUrl,
    application_name: &str,
    import: &str,
    shared: &Shared,
    batches: &mpsc::Sender<Batch>,
) -> Result<()> {
    let mut connection = ReplicationConnection::connect_ordinary(url, application_name).await?;
    connection.query(import).await?;
    let mut worker = Worker {
        shared,
        batches,
        batch: shared.empty_batch(),
        writer: EventWriter::new(shared.style),
        row: CopyRow::default(),
    };
    while let Some(chunk) = shared.next_chunk() {
        let name = chunk.table.table.display_name();
        worker.copy(&mut connection, &chunk).await.map_err(|error| {
            super::of_table(&chunk.table.table, error.context(format_args!("copying {name}")))
        })?;
    }
    worker.flush().await?;
    connection.close().await;
    Ok(())
}

struct Worker<'s> {
    shared: &'s Shared,
    batches: &'s mpsc::Sender<Batch>,
    batch: Batch,
    writer: EventWriter,
    row: CopyRow,
}

impl Worker<'_> {
    async fn copy(&mut self, connection: &mut ReplicationConnection, chunk: &Chunk) -> Result<()> {
        let table = &chunk.table;
        let is_shared = table.chunks_left.load(Ordering::SeqCst) > 1;
        self.begin_table(table).await?;
        let columns = table.table.columns.len();
        if let Some(search_path) = &table.search_path {
            connection.query(&format!("SET LOCAL search_path = {search_path}")).await?;
        }
        let mut rows = connection.copy_out(&chunk.copy).await?;
        loop {
            match rows.next_row()? {
                CopyNext::Row(line) => {
                    let number = table.next_row();
                    match &table.plan {
                        CopyPlan::Events(plan) => {
                            self.row.decode(line, columns)?;
                            self.write(table, plan, number)?;
                        }
                        CopyPlan::Rows(plan) => self.write_line(plan, line),
                    }
                    failpoint::hit("snapshot.in-table");
                    if self.is_full() {
                        self.flush().await?;
                    }
                }
                CopyNext::Fill => {
                    rows.fill().await?;
                }
                CopyNext::End => break,
            }
        }
        // Whoever finishes the table must know that the rows of all others are on their way.
        if is_shared {
            self.flush().await?;
        }
        if table.chunks_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.batch.tables.push(table.state(true));
            failpoint::hit("snapshot.after-table");
            tracing::info!(table = table.table.display_name(), rows = table.state(true).rows, "copied");
        }
        if self.is_full() {
            self.flush().await?;
        }
        Ok(())
    }

    fn write_line(&mut self, plan: &RowPlan, line: &[u8]) {
        let start = self.batch.bytes.len();
        self.batch.bytes.extend_from_slice(line);
        if !line.ends_with(b"\n") {
            self.batch.bytes.push(b'\n');
        }
        self.batch.rows.push_line(plan.target, start..self.batch.bytes.len());
    }

    fn write(&mut self, table: &CopyTable, plan: &TablePlan, number: u64) -> Result<()> {
        let cells = self.row.cells();
        let event = RowEvent {
            op: Op::Read,
            lsn: table.copied_at,
            number,
            new: Some(&cells),
            before: Before::Unknown,
            moved: None,
        };
        self.writer.write_row(&mut self.batch, plan, &table.stamp, &event)
    }

    /// "Begun" is stored before, or with, the first row: a crash after it makes a new generation.
    async fn begin_table(&mut self, table: &CopyTable) -> Result<()> {
        let mut begun = table.begun.lock().await;
        if *begun {
            return Ok(());
        }
        match &table.plan {
            CopyPlan::Events(plan) => {
                for partition in 0..table.truncate_partitions {
                    let (stamp, lsn) = (&table.stamp, table.copied_at);
                    self.writer.write_truncate(&mut self.batch, plan, stamp, lsn, 0, partition)?;
                }
            }
            CopyPlan::Rows(plan) => {
                if let Some(op) = table.clearing(plan, &mut self.batch) {
                    self.batch.rows.push_table(plan.target, op);
                }
            }
        }
        self.batch.tables.push(table.state(false));
        if table.chunks_left.load(Ordering::SeqCst) > 1 {
            self.flush().await?;
        }
        *begun = true;
        failpoint::hit("snapshot.after-begun");
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.batch.bytes.len() >= BATCH_BYTES_MAX
            || self.batch.len() + self.batch.tables.len() >= BATCH_EVENTS_MAX
    }

    async fn flush(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut batch = std::mem::replace(&mut self.batch, self.shared.empty_batch());
        batch.more_is_coming = true;
        self.batches.send(batch).await.map_err(|_| Error::transient("the copy was given up"))
    }
}
