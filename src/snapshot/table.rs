//! A table as it is copied: its plan as of the snapshot, its files, its count of rows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::ranges::{self, NextRange};
use super::worker::Chunk;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::pipeline::start::{MatchedTable, Started, blocking, state_of};
use crate::pipeline::{Pipeline, shape};
use crate::route::batch::Batch;
use crate::route::event::Stamp;
use crate::route::outbox::OutboxPlan;
use crate::route::plan::{Op, TablePlan};
use crate::route::ranges::Ranges;
use crate::route::row::RowOp;
use crate::route::row_plan::RowPlan;
use crate::route::selection::Selection;
use crate::sink::checkpoint::TableState;
use crate::wal::catalog::{self, SourceTable};
use crate::wal::client::{Client, classify};
use crate::wal::sql::quote_ident;
use crate::wal::timestamp::Timestamp;

/// Pages of one range: 16 MiB, enough that the start of a scan and a commit do not count, and that workers end together.
const CHUNK_PAGES: i64 = 2048;

/// Files of a table: itself, or the leaves of a partitioned one.
const FILES: &str = "SELECT c.oid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), \
pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::int8, \
GREATEST(c.reltuples, 0)::int8, c.relkind::text \
FROM pg_catalog.pg_partition_tree($1::oid::regclass) t JOIN pg_catalog.pg_class c ON c.oid = t.relid \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE t.isleaf";
/// pg_partition_tree gives nothing for an ordinary table.
const FILE: &str = "SELECT c.oid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), \
pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::int8, \
GREATEST(c.reltuples, 0)::int8, c.relkind::text \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";

/// See the module.
pub struct CopyTable {
    /// The table as of the snapshot, as far as it is published.
    pub table: SourceTable,
    /// The table as of the snapshot.
    pub table_in_catalog: SourceTable,
    begun_state: TableState,
    /// Its rule, compiled.
    pub plan: CopyPlan,
    /// What its events have in common.
    pub stamp: Stamp,
    /// The catalog's estimate.
    pub rows_estimated: u64,
    /// Partitions of the topic that begin with a truncate event, since an earlier generation is there; of a replica, 1.
    pub truncate_partitions: i32,
    /// Whether "begun" has been handed over to a hub.
    pub begun: tokio::sync::Mutex<bool>,
    /// Chunks that are not copied.
    pub chunks_left: AtomicUsize,
    /// The snapshot's consistent point.
    pub copied_at: Lsn,
    rows: AtomicU64,
    files: Vec<(String, i64)>,
    columns: String,
    row_filter: Option<String>,
    /// What of it is copied, where it is copied in ranges.
    range: Option<NextRange>,
    /// What its filter's names and operators are looked up in.
    pub search_path: Option<String>,
}

/// What becomes of the rows.
pub enum CopyPlan {
    /// Events.
    Events(Box<TablePlan>),
    /// Events as they stand.
    Outbox(Box<OutboxPlan>),
    /// Rows of a replica, as COPY gave them.
    Rows(Box<RowPlan>),
}

impl CopyPlan {
    fn selection(&self) -> Option<&Selection> {
        match self {
            CopyPlan::Events(plan) => Some(&plan.selection),
            CopyPlan::Rows(plan) => Some(&plan.selection),
            CopyPlan::Outbox(_) => None,
        }
    }
}

impl CopyTable {
    /// The columns that identify a row, for errors.
    pub fn key(&self) -> &[usize] {
        self.plan.selection().map_or(&[], |selection| &selection.key)
    }

    /// Counts rows; the number of the last one: from one.
    pub fn add_rows(&self, rows: u64) -> u64 {
        self.rows.fetch_add(rows, Ordering::SeqCst) + rows
    }

    /// The columns that go, as a select list.
    pub fn columns(&self) -> &str {
        &self.columns
    }

    /// Appends that the copy to a replica has begun, and what removes an earlier attempt. Where there is nothing to copy, it
    /// is done with that.
    pub fn begin(&self, plan: &RowPlan, batch: &mut Batch) {
        if let Some(op) = self.clearing(plan, batch) {
            batch.rows.push_table(plan.target, op);
        }
        batch.tables.push(self.state(self.chunks_left.load(Ordering::SeqCst) == 0));
    }

    /// The state to be stored.
    pub fn state(&self, done: bool) -> TableState {
        let rows = self.rows.load(Ordering::SeqCst);
        let mut state = match &self.range {
            Some(range) => range.state(&self.begun_state, self.copied_at, done, rows),
            None => TableState { done, rows, ..self.begun_state.clone() },
        };
        state.parked = state.parked.filter(|_| !state.done);
        state
    }

    /// What removes the rows of an earlier attempt from a replica.
    fn clearing(&self, plan: &RowPlan, batch: &mut Batch) -> Option<RowOp> {
        match &self.range {
            Some(range) if !range.is_first() => range.has_begun().then(|| plan.clear_next(batch)).flatten(),
            _ => (self.truncate_partitions > 0).then_some(RowOp::Clear),
        }
    }

    /// The parts to be copied, at least one, unless it has no file.
    pub fn chunks(self: &Arc<Self>) -> Vec<Chunk> {
        if let CopyPlan::Outbox(plan) = &self.plan {
            // Its order counts, so it is one.
            return vec![Chunk { table: self.clone(), from: plan.from(self.table.is_partitioned) }];
        }
        let chunks = self.files.iter().flat_map(move |(name, pages)| {
            let parts = match &self.range {
                Some(range) => range.conditions(self.files.len() == 1),
                None => pages_of(*pages),
            };
            parts.into_iter().map(move |part| {
                let conditions: Vec<String> = [part, self.row_filter.clone()].into_iter().flatten().collect();
                let condition = if conditions.is_empty() {
                    String::new()
                } else {
                    format!(" WHERE {}", conditions.join(" AND "))
                };
                Chunk { table: self.clone(), from: format!("FROM ONLY {name}{condition}") }
            })
        });
        chunks.collect()
    }
}

/// The conditions of ranges of a file.
fn pages_of(pages: i64) -> Vec<Option<String>> {
    // Rounded up: the last one would be up to twice as large, and the others would wait for it.
    let count = ((pages + CHUNK_PAGES - 1) / CHUNK_PAGES).max(1);
    let condition = |nth: i64| {
        let from = (nth > 0).then(|| format!("ctid >= '({},0)'::pg_catalog.tid", nth * CHUNK_PAGES));
        // The last one is open: the file may have grown since it was measured.
        let to =
            (nth + 1 < count).then(|| format!("ctid < '({},0)'::pg_catalog.tid", (nth + 1) * CHUNK_PAGES));
        let both: Vec<String> = [from, to].into_iter().flatten().collect();
        (!both.is_empty()).then(|| both.join(" AND "))
    };
    (0..count).map(condition).collect()
}

/// Describes a table as of the snapshot; `None`: one of its files was replaced since.
///
/// # Errors
/// Transient when it is gone; definite when the rule does not fit it.
pub async fn describe(
    pipeline: &Pipeline,
    started: &Started,
    keeper: &Client,
    matched: &MatchedTable,
    (copied_at, taken_at): (Lsn, Timestamp),
    replaced: &BTreeSet<u32>,
) -> Result<Option<CopyTable>> {
    let oid = matched.table.oid;
    let name = matched.table.display_name();
    let mut table = catalog::tables(keeper, Some(&[oid]))
        .await?
        .pop()
        .ok_or_else(|| Error::transient(format!("table {name} was made after the snapshot, or dropped")))?;
    let table_in_catalog = table.clone();
    matched.retain_sent(&mut table);
    let query = if table.is_partitioned { FILES } else { FILE };
    let rows = keeper.query(query, &[&oid]).await.map_err(classify)?;
    let (mut files, mut file_oids) = (Vec::new(), Vec::new());
    let mut rows_estimated = 0;
    for row in &rows {
        let (file_oid, file_name, pages, tuples, kind): (u32, String, i64, i64, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
        if kind == "f" {
            return Err(Error::definite(format!(
                "table {name}: its partition {file_name} is a foreign table, whose changes are not in the WAL"
            ))
            .with_hint("leave the table out by a rule with mode = \"off\", or detach that partition"));
        }
        if replaced.contains(&file_oid) {
            return Ok(None);
        }
        rows_estimated += u64::try_from(tuples).unwrap_or(0);
        files.push((file_name, pages));
        file_oids.push(file_oid);
    }
    let range = match started.ranged.get(&oid) {
        Some(ranged) => {
            ranges::check(&table, ranged)?;
            let state = started.states.get(&oid);
            let begun = state.and_then(|state| Some((state.ranges.clone()?, state.rows)));
            let begun = begun.unwrap_or_else(|| (Ranges::new(ranged.column.clone(), ranged.kind), 0));
            let (rows, parts) =
                (pipeline.config.source.snapshot_range_rows, pipeline.config.source.snapshot_workers);
            Some(NextRange::find(keeper, &table, begun, rows, parts).await?)
        }
        None => None,
    };
    let is_again = started.copied_before.contains(&oid) || started.states.contains_key(&oid);
    let (relation, rule) = (table.relation(), &matched.rule);
    let (plan, truncate_partitions) = match pipeline.replica {
        None if rule.outbox.is_some() => {
            let context = started.plan_context(pipeline);
            let plan = OutboxPlan::compile(&context, &relation, rule, copied_at)?;
            (CopyPlan::Outbox(Box::new(plan)), 0)
        }
        None => {
            let context = started.plan_context(pipeline);
            let (key, facts) = (&table.primary_key, &matched.facts);
            let plan = TablePlan::compile(&context, &relation, rule, key, facts, copied_at)?;
            let partitions = if is_again { topic_partitions(started, &plan).await? } else { 0 };
            (CopyPlan::Events(Box::new(plan)), partitions)
        }
        Some(_) => {
            let context = started.selection_context(&table.primary_key, &matched.facts);
            let mut plan = RowPlan::compile(context, &relation, rule, &started.targets, copied_at)?;
            if let Some(range) = &range {
                plan = plan.in_ranges(&relation, range.ranges().clone());
            }
            (CopyPlan::Rows(Box::new(plan)), i32::from(is_again))
        }
    };
    let columns: Vec<String> = table.columns.iter().map(|column| quote_ident(&column.name)).collect();
    let now = MatchedTable { table: table.clone(), ..matched.clone() };
    let shape = match (&range, started.states.get(&oid)) {
        // What changed since the first range was copied concerns the ranges that are there.
        (Some(range), Some(state)) if !range.is_first() => state.shape.clone(),
        _ => shape::of(keeper, &now, &file_oids).await?,
    };
    Ok(Some(CopyTable {
        stamp: Stamp::of_copy(&pipeline.source_name, copied_at, taken_at, oid),
        columns: columns.join(", "),
        row_filter: row_filter(matched),
        range,
        search_path: plan
            .selection()
            .and_then(|selection| Some(selection.filter.as_ref()?.filter.search_path())),
        // Should this copy of a parked table fail, it is known how often it was tried.
        begun_state: TableState {
            parked: started.states.get(&oid).and_then(|state| state.parked.clone()),
            shape,
            ..state_of(pipeline, &now, copied_at, false, 0)
        },
        table,
        table_in_catalog,
        plan,
        rows_estimated,
        truncate_partitions,
        begun: tokio::sync::Mutex::new(false),
        chunks_left: AtomicUsize::new(0),
        copied_at,
        rows: AtomicU64::new(0),
        files,
    }))
}

/// What the publication and the rule let through; PostgreSQL evaluates both.
fn row_filter(matched: &MatchedTable) -> Option<String> {
    let of_publication = matched.published.as_ref().and_then(|published| published.row_filter.as_ref());
    // A line of its own: the text may end with a comment.
    let conditions: Vec<String> = of_publication
        .into_iter()
        .chain(&matched.rule.filter)
        .map(|filter| format!("({filter}\n)"))
        .collect();
    (!conditions.is_empty()).then(|| conditions.join(" AND "))
}

async fn topic_partitions(started: &Started, plan: &TablePlan) -> Result<i32> {
    let mut known = Vec::new();
    started.labels.refresh(&mut known);
    let label = known.get(plan.op(Op::Truncate).label.index()).expect("a plan's labels are interned");
    let topics = started.topics.clone().expect("events go to a hub");
    let topic = label.topic.clone();
    blocking(move || topics.partitions(&topic)).await
}
