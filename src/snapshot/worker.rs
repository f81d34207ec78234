//! One of the workers that copy in parallel: takes parts of tables, writes their rows as events, or relays them to a
//! replica.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, watch};

use super::relay::relay;
use super::rows::CopyRow;
use super::table::{CopyPlan, CopyTable};
use crate::engine::metrics;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::pipeline::{Pipeline, oversized};
use crate::route::batch::{Batch, Labels, More};
use crate::route::claim::Claims;
use crate::route::event::{Before, EventWriter, RowEvent};
use crate::route::message::MessagePlace;
use crate::route::outbox::{OutboxPlan, OutboxWriter};
use crate::route::plan::{Op, TablePlan};
use crate::route::value::Style;
use crate::sink::replica::{Copier, Lane};
use crate::wal::connection::{CopyNext, ReplicationConnection};
use crate::wal::url::ConnectUrl;

/// A batch goes to the sink at this size, in bytes.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// A batch goes to the sink at this many events.
const BATCH_EVENTS_MAX: usize = 4096;

/// Rows of an outbox go to the sink at this size, in bytes, if there are so many.
const OUTBOX_BYTES_MAX: usize = 64 << 20;

/// A range of a table's file.
pub struct Chunk {
    /// Its table.
    pub table: Arc<CopyTable>,
    /// What is copied of it: the statement from its FROM on.
    pub from: String,
}

impl Chunk {
    /// The statement that copies these columns of it, in a format of COPY's.
    pub fn copy(&self, columns: &str, format: &str) -> String {
        format!("COPY (SELECT {columns} {}) TO STDOUT (FORMAT {format})", self.from)
    }

    /// An error of reading it.
    pub fn blamed(&self, error: Error) -> Error {
        let table = &self.table.table;
        super::of_table(table, error.context(format_args!("copying {}", table.display_name())))
    }
}

/// What the workers of a round share.
pub struct Shared {
    /// Taken from the end.
    chunks: Mutex<Vec<Chunk>>,
    chunks_total: usize,
    free: Mutex<Vec<Batch>>,
    style: Style,
    pipeline: Pipeline,
    /// Whether it is durable at the replica that the copies have begun: of events, each one says so itself.
    has_begun: watch::Sender<bool>,
    outbox: Outbox,
}

/// What events of outbox rows take.
pub struct Outbox {
    /// Shared with the sink.
    pub labels: Arc<Labels>,
    /// Where dead letters go.
    pub dead_letter_topic: String,
}

impl Shared {
    pub(super) fn of(chunks: Vec<Chunk>, pipeline: &Pipeline, outbox: Outbox) -> Self {
        Shared {
            chunks_total: chunks.len(),
            chunks: Mutex::new(chunks),
            free: Mutex::default(),
            style: pipeline.events.style,
            pipeline: pipeline.clone(),
            has_begun: watch::Sender::new(false),
            outbox,
        }
    }

    fn claims(&self) -> Option<&Claims> {
        self.pipeline.events.claims.as_ref()
    }

    /// Lets the workers begin.
    pub fn begin(&self) {
        self.has_begun.send_replace(true);
    }

    /// How many chunks there were.
    pub fn chunks(&self) -> usize {
        self.chunks_total
    }

    /// Takes a delivered batch's buffer for reuse.
    pub fn give_back(&self, batch: Batch) {
        self.free.lock().expect("no holder panics").push(batch);
    }

    /// Counts rows of a replica that are committed.
    fn count(&self, table: &CopyTable, rows: u64) {
        metrics::rows_applied(&self.pipeline.slot, &table.table.display_name(), rows);
        metrics::snapshot_rows(&self.pipeline.slot, rows);
        self.pipeline.status.update(|status| {
            status.rows_applied += rows;
            if let Some(progress) = &mut status.snapshot {
                progress.rows += rows;
            }
        });
    }

    fn next_chunk(&self) -> Option<Chunk> {
        self.chunks.lock().expect("no holder panics").pop()
    }

    fn empty_batch(&self) -> Batch {
        self.free.lock().expect("no holder panics").pop().unwrap_or_default()
    }
}

/// Copies chunks until none is left; `lane`: what opens its lane to a replica, and the lane's number.
///
/// # Errors
/// Any; the table stays unfinished.
pub async fn run(
    url: &ConnectUrl,
    import: &str,
    lane: Option<(&Copier, usize)>,
    shared: &Shared,
    batches: &mpsc::Sender<Batch>,
) -> Result<()> {
    let application_name = format!("{} copy", shared.pipeline.application_name());
    let source = async {
        let mut connection = ReplicationConnection::connect_ordinary(url, &application_name).await?;
        connection.query(import).await?;
        connection.limit_rows(shared.pipeline.row_bytes_max());
        Ok(connection)
    };
    let lane = async {
        match lane {
            Some((copier, number)) => copier.open(number).await.map(Some),
            None => Ok(None),
        }
    };
    // While it is made durable that the copies begin.
    let (mut connection, mut lane) = tokio::try_join!(source, lane)?;
    let _ = shared.has_begun.subscribe().wait_for(|has_begun| *has_begun).await;
    let mut worker = Worker {
        shared,
        batches,
        batch: shared.empty_batch(),
        writer: EventWriter::new(shared.style, shared.claims().cloned()),
        outbox: OutboxWriter::new(
            shared.outbox.labels.clone(),
            shared.outbox.dead_letter_topic.clone(),
            shared.claims().cloned(),
        ),
        row: CopyRow::default(),
    };
    while let Some(chunk) = shared.next_chunk() {
        worker.copy(&mut connection, lane.as_mut(), &chunk).await?;
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
    outbox: OutboxWriter,
    row: CopyRow,
}

impl Worker<'_> {
    async fn copy(
        &mut self,
        connection: &mut ReplicationConnection,
        lane: Option<&mut Lane>,
        chunk: &Chunk,
    ) -> Result<()> {
        let table = &chunk.table;
        if let Some(search_path) = &table.search_path {
            let set = format!("SET LOCAL search_path = {search_path}");
            connection.query(&set).await.map_err(|error| chunk.blamed(error))?;
        }
        match &table.plan {
            CopyPlan::Events(_) | CopyPlan::Outbox(_) => {
                let is_shared = table.chunks_left.load(Ordering::SeqCst) > 1;
                let written = self.write_rows(connection, chunk).await;
                written.map_err(|error| chunk.blamed(error))?;
                // Whoever finishes the table must know that the rows of all others are on their way.
                if is_shared {
                    self.flush().await?;
                }
            }
            CopyPlan::Rows(plan) => {
                let lane = lane.expect("rows go to a replica, and every worker has a lane to it");
                let rows = relay(connection, lane, chunk, plan.target).await?;
                table.add_rows(rows);
                self.shared.count(table, rows);
            }
        }
        if table.chunks_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.batch.tables.push(table.state(true));
            failpoint::hit("snapshot.after-table");
            tracing::info!(table = table.table.display_name(), rows = table.state(true).rows, "copied");
        }
        // Nothing more comes into a batch that says of a replica's table that it is done.
        let is_whole = matches!(table.plan, CopyPlan::Rows(_));
        if is_whole || self.is_full() {
            self.flush().await?;
        }
        Ok(())
    }

    async fn write_rows(&mut self, connection: &mut ReplicationConnection, chunk: &Chunk) -> Result<()> {
        let table = &chunk.table;
        self.begin_table(table).await?;
        let columns = table.table.columns.len();
        let mut rows = connection.copy_out(&chunk.copy(table.columns(), "text")).await?;
        loop {
            if let Some(claims) = self.shared.claims().filter(|claims| !claims.has_room()) {
                // What is held may be in this very batch.
                self.flush().await?;
                claims.room().await;
            }
            match rows
                .next_row()
                .map_err(|error| oversized::of_copied_row(error, &table.table, table.key()))?
            {
                CopyNext::Row(line) => {
                    let number = table.add_rows(1);
                    self.row.decode(line, columns)?;
                    match &table.plan {
                        CopyPlan::Events(plan) => self.write(table, plan, number, line)?,
                        CopyPlan::Outbox(plan) => self.write_outbox(table, plan, number, line),
                        CopyPlan::Rows(_) => unreachable!("rows are relayed to their replica"),
                    }
                    failpoint::hit("snapshot.in-table");
                    if self.is_full_within(&table.plan) {
                        self.flush().await?;
                    }
                }
                CopyNext::Fill => {
                    rows.fill().await?;
                }
                CopyNext::End(_) => return Ok(()),
            }
        }
    }

    fn write(&mut self, table: &CopyTable, plan: &TablePlan, number: u64, line: &[u8]) -> Result<()> {
        let cells = self.row.cells(line);
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

    fn write_outbox(&mut self, table: &CopyTable, plan: &OutboxPlan, number: u64, line: &[u8]) {
        let place = MessagePlace { lsn: table.copied_at, number };
        let cells = self.row.cells(line);
        let is_dead = self.outbox.insert(&mut self.batch, (plan, &table.stamp), place, &cells);
        if is_dead {
            metrics::dead_letters(&self.shared.pipeline.slot, 1);
        }
    }

    /// "Begun" is stored before, or with, the first row: a crash after it makes a new generation.
    async fn begin_table(&mut self, table: &CopyTable) -> Result<()> {
        let mut begun = table.begun.lock().await;
        if *begun {
            return Ok(());
        }
        // What was published of an outbox stays so.
        if let CopyPlan::Events(plan) = &table.plan {
            for partition in 0..table.truncate_partitions {
                let (stamp, lsn) = (&table.stamp, table.copied_at);
                self.writer.write_truncate(&mut self.batch, plan, stamp, lsn, 0, partition)?;
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
        self.batch.size_bytes() >= BATCH_BYTES_MAX
            || self.batch.len() + self.batch.tables.len() >= BATCH_EVENTS_MAX
    }

    /// The same in the middle of a table: an outbox goes out with its "done" in one transaction of the hub, as far as
    /// memory allows, since its events cannot be taken back by a new generation.
    fn is_full_within(&self, plan: &CopyPlan) -> bool {
        match plan {
            CopyPlan::Outbox(_) => self.batch.bytes.len() >= OUTBOX_BYTES_MAX,
            CopyPlan::Events(_) | CopyPlan::Rows(_) => self.is_full(),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut batch = std::mem::replace(&mut self.batch, self.shared.empty_batch());
        batch.more = More::Likely;
        self.batches.send(batch).await.map_err(|_| Error::transient("the copy was given up"))
    }
}
