//! The initial copy: tables as `read` events or as rows, and the hand-over to the stream.
//!
//! Comes in: tables whose copy is not done. Goes out: their rows; to a hub each table's state with them in the same
//! transaction, at a replica "begun" before them and "done" behind them (`sink::replica::lane`). Always holds
//! (EXACTLY_ONCE.md, "Copying a table"):
//!
//! - a copy reads one exported snapshot of a temporary slot, whose consistent point is the table's
//!   `copied_at`; the main slot is older, so nothing lies between copy and stream;
//! - no user table is read before every commit that the snapshot counts is visible to all
//!   (`guards::settle`), and none whose file was replaced since (`guards::replaced`);
//! - a table is done or not: what a crash leaves unfinished is copied again as a whole, as a new
//!   generation that begins with a truncate event for every partition of its topic.
//!
//! New tables of a running pipeline come here too: the stream stands still meanwhile, which is the
//! simple and exact alternative to copying beside it (point 7 there). A huge table of a replica is copied range by range
//! (`ranges.rs`), one range each time, and the stream goes on between two: it never stands still for more than one, and a
//! crash costs no more.

mod guards;
mod ranges;
mod relay;
mod rows;
mod table;
mod worker;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::engine::metrics;
use crate::error::{Error, Fault, Result};
use crate::failpoint;
use crate::lsn::Lsn;
use crate::pipeline::pump::dead_letter_topic;
use crate::pipeline::start::{MatchedTable, Started};
use crate::pipeline::status::{CopyProgress, State};
use crate::pipeline::{Pipeline, parking};
use crate::route::batch::{Batch, Counts};
use crate::sink::Outcome;
use crate::sink::checkpoint::TableState;
use crate::wal::catalog::{self, SourceTable};
use crate::wal::client::{Client, classify, connect};
use crate::wal::connection::ReplicationConnection;
use crate::wal::slot;
use crate::wal::sql::{quote_ident, quote_literal};
use crate::wal::timestamp::{Timestamp, now};
use table::{CopyPlan, CopyTable};
use worker::{Chunk, Outbox, Shared};

/// Rounds without progress before giving up: each one means that tables were rewritten under it.
const ROUNDS_MAX: usize = 5;

/// Copies every table that is not done; returns when all are durable at the destination.
///
/// # Errors
/// Any; the next attempt copies what is not done.
pub async fn run(pipeline: &Pipeline, mut started: Started) -> Result<Started> {
    let mut rounds = 0;
    let mut pending_before = usize::MAX;
    loop {
        let pending: Vec<MatchedTable> = started
            .tables
            .iter()
            .filter(|matched| {
                let state = started.states.get(&matched.table.oid);
                !state.is_some_and(|state| state.done || state.parked().is_some())
            })
            .cloned()
            .collect();
        let (ranged, whole): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|matched| started.ranged.contains_key(&matched.table.oid));
        let is_due = started.range_due_at().is_some_and(|due_at| due_at <= started.checkpoint.safe_lsn);
        if whole.is_empty() && !ranged.is_empty() && !is_due {
            pipeline.status.update(|status| status.snapshot = Some(progress_of(&started, ranged.len())));
            return Ok(started);
        }
        let pending = if whole.is_empty() { ranged.into_iter().take(1).collect() } else { whole };
        if pending.is_empty() {
            failpoint::hit("snapshot.after-all");
            pipeline.status.update(|status| {
                status.snapshot = None;
                status.parked_tables = parking::shown(started.states.values());
            });
            return Ok(started);
        }
        // Rounds that finish some table may be as many as there are tables.
        rounds = if pending.len() < pending_before { 1 } else { rounds + 1 };
        pending_before = pending.len();
        if rounds > ROUNDS_MAX {
            let names: Vec<String> = pending.iter().map(|matched| matched.table.display_name()).collect();
            return Err(Error::transient(format!(
                "tables were rewritten during each of {ROUNDS_MAX} copies: {}",
                names.join(", ")
            )));
        }
        pipeline.status.enter(State::Snapshot);
        Round::begin(pipeline, &pending).await?.copy(pipeline, &mut started, &pending).await?;
    }
}

/// An error of one table's copy.
fn of_table(table: &SourceTable, error: Error) -> Error {
    error.of_table(table.oid, &table.display_name(), Fault::Rows)
}

/// One exported snapshot.
struct Round {
    /// Holds the temporary slot and the export.
    exporter: ReplicationConnection,
    snapshot_name: String,
    copied_at: Lsn,
    /// Holds the snapshot and the locks.
    keeper: Client,
    /// Sees what is committed now.
    ordinary: Client,
    taken_at: Timestamp,
}

impl Round {
    async fn begin(pipeline: &Pipeline, pending: &[MatchedTable]) -> Result<Round> {
        let application_name = format!("{} copy", pipeline.application_name());
        let mut exporter = ReplicationConnection::connect(&pipeline.url, &application_name).await?;
        // A server may still be making, or cleaning up, the slot of a predecessor: no name twice, within
        // 63 bytes. The pid alone would not do: in a container it is always the same.
        let nonce = (now().0.unsigned_abs() / 1000) & 0xFFF_FFFF;
        let slot_name = format!("{}_c{nonce:07x}", pipeline.slot);
        let command = format!(
            "CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT",
            quote_ident(&slot_name)
        );
        let rows = tokio::select! {
            rows = exporter.query(&command) => rows?,
            () = tell_writers(pipeline) => unreachable!("telling never ends"),
        };
        let field = |at: usize| rows.first().and_then(|row| row.get(at).cloned().flatten());
        let (Some(point), Some(snapshot_name)) = (field(1), field(2)) else {
            return Err(Error::transient("the server made a slot without a snapshot"));
        };
        let copied_at = point
            .parse()
            .map_err(|error| Error::transient("the new slot's LSN cannot be read").with_source(error))?;
        failpoint::hit("snapshot.after-slot");

        let keeper = connect(&pipeline.url, &application_name).await?;
        keeper.batch_execute(&import(&snapshot_name)).await.map_err(classify)?;
        let ordinary = connect(&pipeline.url, &application_name).await?;
        guards::settle(&keeper, &ordinary).await?;
        guards::lock(&keeper, pending).await?;
        let row = keeper
            .query_one("SELECT (EXTRACT(EPOCH FROM pg_catalog.now()) * 1000000)::int8", &[])
            .await
            .map_err(classify)?;
        let taken_at = Timestamp::from_unix_micros(row.get(0));
        tracing::info!(%copied_at, tables = pending.len(), "snapshot taken");
        Ok(Round { exporter, snapshot_name, copied_at, keeper, ordinary, taken_at })
    }

    async fn copy(self, pipeline: &Pipeline, started: &mut Started, pending: &[MatchedTable]) -> Result<()> {
        let replaced = guards::replaced(&self.keeper).await?;
        let oids: Vec<u32> = pending.iter().map(|matched| matched.table.oid).collect();
        let now = catalog::tables(&self.ordinary, Some(&oids)).await?;
        // A new table may have a new type.
        started.types = catalog::types(&started.client).await?;
        started.enums = catalog::enums(&started.client).await?;
        let mut tables = Vec::new();
        for matched in pending {
            let taken = (self.copied_at, self.taken_at);
            let described = table::describe(pipeline, started, &self.keeper, matched, taken, &replaced).await;
            let described = described.map_err(|error| of_table(&matched.table, error))?;
            // Under the lock nothing changes any more; what changed between snapshot and lock would be
            // read with columns, or under a name, of another time.
            match described.filter(|table| now.contains(&table.table_in_catalog)) {
                Some(table) => tables.push(Arc::new(table)),
                None => tracing::warn!(
                    table = matched.table.display_name(),
                    "rewritten while the snapshot was taken: copied in another round"
                ),
            }
        }
        let shared = Arc::new(Shared::new(&tables, pipeline, started)?);
        let progress = match pending.iter().any(|matched| started.ranged.contains_key(&matched.table.oid)) {
            true => progress_of(started, started.ranged.len()),
            false => CopyProgress {
                tables: tables.len(),
                rows_estimated: tables.iter().map(|table| table.rows_estimated).sum(),
                ..CopyProgress::default()
            },
        };
        pipeline.status.update(|status| status.snapshot = Some(progress));

        let (sender, batches) = mpsc::channel(1);
        let mut workers = JoinSet::new();
        for number in 1..=pipeline.config.source.snapshot_workers.min(shared.chunks()) {
            let (url, shared, sender) = (pipeline.url.clone(), shared.clone(), sender.clone());
            let (import, copier) = (import(&self.snapshot_name), started.copier.clone());
            workers.spawn(async move {
                let lane = copier.as_deref().map(|copier| (copier, number));
                worker::run(&url, &import, lane, &shared, &sender).await
            });
        }
        drop(sender);
        self.begin_rows(pipeline, started, &shared, &tables).await?;
        shared.begin();
        deliver(pipeline, started, &self.keeper, &shared, batches, &mut workers).await?;
        for table in &tables {
            let state = table.state(true);
            if let Some(ranges) = &state.ranges {
                let (name, rows, count) = (table.table.display_name(), state.rows, ranges.count);
                let what = if state.done { "all ranges are copied" } else { "a range is copied" };
                tracing::info!(table = name, rows, ranges = count, "{what}");
            }
            if state.done {
                started.ranged.remove(&state.oid);
            }
            started.states.insert(state.oid, state);
        }
        // Ends the slot and the export; the locks go with the keeper.
        self.exporter.close().await;
        Ok(())
    }

    /// Makes it durable at a replica that the copies begin, and without the rows of earlier attempts.
    async fn begin_rows(
        &self,
        pipeline: &Pipeline,
        started: &mut Started,
        shared: &Shared,
        tables: &[Arc<CopyTable>],
    ) -> Result<()> {
        let mut batch = Batch::default();
        for table in tables {
            if let CopyPlan::Rows(plan) = &table.plan {
                table.begin(plan, &mut batch);
            }
        }
        let begun = batch.tables.len();
        let (sender, batches) = mpsc::channel(1);
        if begun > 0 {
            sender.try_send(batch).expect("the channel has room for one");
        }
        drop(sender);
        deliver(pipeline, started, &self.keeper, shared, batches, &mut JoinSet::new()).await?;
        (0..begun).for_each(|_| failpoint::hit("snapshot.after-begun"));
        Ok(())
    }
}

/// Hands batches to the sink until they have ended and everything is durable.
async fn deliver(
    pipeline: &Pipeline,
    started: &mut Started,
    keeper: &Client,
    shared: &Shared,
    mut batches: mpsc::Receiver<Batch>,
    workers: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let clock = tokio::time::Instant::now();
    let mut delivered: VecDeque<Delivered> = VecDeque::new();
    let mut waiting: Option<Batch> = None;
    let mut has_ended = false;
    while !(has_ended && workers.is_empty() && waiting.is_none() && started.ledger.is_empty()) {
        tokio::select! {
            biased;
            Some(ended) = workers.join_next() => {
                ended.unwrap_or_else(|error| Err(Error::transient("a copying task did not end well").with_source(error)))?;
            }
            outcome = started.worker.outcomes.recv() => match outcome {
                Some(Outcome::Durable(receipt)) => {
                    started.ledger.settle(receipt.sequence(), receipt.safe_lsn());
                    if let Some(delivered) = delivered.pop_front() {
                        count(pipeline, started, &delivered);
                    }
                }
                Some(Outcome::Returned(batch)) => shared.give_back(batch),
                Some(Outcome::Failed(error)) => return Err(error),
                None => return Err(Error::transient("the sink has ended")),
            },
            permit = started.worker.batches.reserve(), if waiting.is_some() => {
                let Ok(permit) = permit else { continue };
                let mut batch = waiting.take().expect("the branch needs one");
                let tables_done = batch.tables.iter().filter(|table| table.done).count();
                let ends_range = |table: &TableState| table.ranges.as_ref().is_some_and(|ranges| !ranges.has_begun);
                if tables_done > 0 || batch.tables.iter().any(ends_range) {
                    // Without its locks a table could have been emptied under the copy.
                    keeper.simple_query("SELECT 1").await.map_err(classify)?;
                }
                delivered.push_back(Delivered { counts: batch.counts(), tables_done });
                batch.progress = started.progress();
                batch.rows.whole = Some((batch.rows.changes.len(), batch.progress));
                let bytes = u64::try_from(batch.size_bytes()).expect("a length fits");
                batch.sequence = started.ledger.deliver(batch.progress.safe_lsn, bytes, clock.elapsed());
                permit.send(batch);
            }
            batch = batches.recv(), if waiting.is_none() && !has_ended => {
                has_ended = batch.is_none();
                waiting = batch;
            }
        }
        let ledger = &started.ledger;
        pipeline.status.in_flight(ledger.in_flight_bytes(), ledger.oldest_unconfirmed(clock.elapsed()));
    }
    Ok(())
}

/// How far tables that are copied in ranges have come.
fn progress_of(started: &Started, tables: usize) -> CopyProgress {
    let mut progress = CopyProgress { tables, ..CopyProgress::default() };
    for (oid, ranged) in &started.ranged {
        progress.rows_estimated += ranged.rows_estimated;
        if let Some(state) = started.states.get(oid)
            && let Some(ranges) = &state.ranges
        {
            progress.rows += state.rows;
            progress.ranges += ranges.count;
        }
    }
    progress
}

/// What a batch on its way holds.
struct Delivered {
    counts: Counts,
    tables_done: usize,
}

/// A batch is durable: counts what it held.
fn count(pipeline: &Pipeline, started: &Started, batch: &Delivered) {
    let delivered = metrics::delivered(&pipeline.slot, &started.labels, &started.targets, &batch.counts);
    let rows_read = delivered.rows_read + delivered.rows;
    metrics::snapshot_rows(&pipeline.slot, rows_read);
    pipeline.status.update(|status| {
        status.events += delivered.events;
        status.rows_applied += delivered.rows;
        if let Some(progress) = &mut status.snapshot {
            progress.rows += rows_read;
            progress.tables_done += batch.tables_done;
        }
    });
}

/// Tells for whom the creation of a slot waits, for as long as it is polled.
async fn tell_writers(pipeline: &Pipeline) {
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        if let Ok(client) = connect(&pipeline.url, &pipeline.application_name()).await
            && let Ok(writers) = slot::writers(&client).await
        {
            tracing::warn!(?writers, "the snapshot waits for running transactions");
        }
    }
}

fn import(snapshot_name: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT {}",
        quote_literal(snapshot_name)
    )
}

impl Shared {
    fn new(tables: &[Arc<CopyTable>], pipeline: &Pipeline, started: &Started) -> Result<Self> {
        let mut chunks: Vec<Chunk> = tables.iter().flat_map(CopyTable::chunks).collect();
        chunks.reverse();
        for table in tables {
            let count = chunks.iter().filter(|chunk| Arc::ptr_eq(&chunk.table, table)).count();
            table.chunks_left.store(count, Ordering::SeqCst);
        }
        let outbox = Outbox {
            labels: started.labels.clone(),
            dead_letter_topic: dead_letter_topic(&pipeline.source_name, &pipeline.slot)?,
        };
        Ok(Shared::of(chunks, pipeline, outbox))
    }
}
