//! The pipeline's record on a replica: a row of `walgate.checkpoint`, and one of `walgate.copied_table` for every
//! table whose copy has begun.
//!
//! Comes in: checkpoints. Goes out: statements in the session's open transaction. Always holds: the row is replaced
//! only while it has our epoch and is the one that we know; else another process has taken over, and the caller rolls
//! back. `safe_lsn` is written with the rows that it speaks of: a row that could be read is durable before the source
//! hears of it, because a start takes its epoch by a synchronous commit before it reads, and a running process gives
//! receipts only after one.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Statement, Transaction};

use super::ReplicaSettings;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::route::ranges::Ranges;
use crate::sink::checkpoint::{Checkpoint, Identity, Phase, Stored, TableState, VERSION};
use crate::wal::client::{Client, classify};

const READ: &str = "SELECT v, system_identifier, timeline, database_oid, slot, options, phase, commit_lsn, ordinal, \
    safe_lsn, xid, commit_time FROM walgate.checkpoint WHERE pipeline = $1 AND v IS NOT NULL";
/// By name, where an older version's table may not have it: who only looks changes nothing.
const READ_TABLES: &str = "SELECT oid, schema_name, table_name, key, copied_at, done, rows, selection, root, \
    pg_catalog.to_jsonb(c) ->> 'ranges', pg_catalog.to_jsonb(c) ->> 'parked', pg_catalog.to_jsonb(c) ->> 'shape' \
    FROM walgate.copied_table c WHERE pipeline = $1";
const REPLACE: &str = "UPDATE walgate.checkpoint SET v = $3, system_identifier = $4, timeline = $5, \
    database_oid = $6, slot = $7, options = $8, phase = $9, commit_lsn = $10, ordinal = $11, safe_lsn = $12, \
    xid = $13, commit_time = $14, updated_at = pg_catalog.now(), \
    confirmed_at = CASE WHEN $15 THEN pg_catalog.now() ELSE confirmed_at END \
    WHERE pipeline = $1 AND epoch = $2 AND commit_lsn = $16 AND ordinal = $17 AND safe_lsn = $18";
const ENTER_TABLE: &str = "INSERT INTO walgate.copied_table \
    (pipeline, oid, schema_name, table_name, key, copied_at, done, rows, selection, root, ranges, parked, shape) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::text::json, $13::text::json) \
    ON CONFLICT (pipeline, oid) DO UPDATE SET schema_name = excluded.schema_name, table_name = excluded.table_name, \
    key = excluded.key, copied_at = excluded.copied_at, done = excluded.done, rows = excluded.rows, \
    selection = excluded.selection, root = excluded.root, ranges = excluded.ranges, parked = excluded.parked, \
    shape = excluded.shape";
/// A lock that taking an epoch and replacing the record wait for.
const HOLD: &str = "SELECT FROM walgate.checkpoint WHERE pipeline = $1 AND epoch = $2 FOR SHARE";
const BEGIN_DURABLE: &str = "BEGIN; SET LOCAL synchronous_commit = on";
const FORGET: [&str; 3] = [
    "DELETE FROM walgate.copied_table WHERE pipeline = $1",
    "DELETE FROM walgate.conflict WHERE pipeline = $1",
    "DELETE FROM walgate.checkpoint WHERE pipeline = $1",
];
/// Who drops may find the schema as an older version made it.
const FORGET_CREATED: (&str, &str) = (
    "SELECT pg_catalog.to_regclass('walgate.created_table') IS NOT NULL",
    "DELETE FROM walgate.created_table WHERE pipeline = $1",
);
const IS_UNUSED: &str = "SELECT NOT EXISTS (SELECT FROM walgate.checkpoint)";
const DROP_TABLES: &str = "DROP TABLE IF EXISTS walgate.created_table; DROP TABLE walgate.copied_table, walgate.conflict, walgate.checkpoint, \
    walgate.replica_migration";
/// A database may be a source as well, and have the schema for that.
const SCHEMA_IS_EMPTY: &str = "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = n.oid) \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc WHERE pronamespace = n.oid) \
    AND pg_catalog.pg_has_role(n.nspowner, 'USAGE') \
    FROM pg_catalog.pg_namespace n WHERE nspname = 'walgate'";

/// What a row must have to be replaced by us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    commit_lsn: Lsn,
    ordinal: u64,
    safe_lsn: Lsn,
}

impl Known {
    fn of(checkpoint: &Checkpoint) -> Self {
        Known {
            commit_lsn: checkpoint.commit_lsn,
            ordinal: checkpoint.ordinal,
            safe_lsn: checkpoint.safe_lsn,
        }
    }
}

/// The right to write as a pipeline, until another process takes the next epoch.
#[derive(Clone, Debug)]
pub(super) struct Ownership {
    pipeline: String,
    replica: String,
    epoch: i64,
}

impl Ownership {
    /// Keeps others from taking the next epoch until the open transaction ends, of any session.
    pub async fn hold(&self, client: &Client) -> Result<()> {
        let held = client.query_opt(HOLD, &[&self.pipeline, &self.epoch]).await.map_err(classify)?;
        held.map(drop).ok_or_else(|| self.lost())
    }

    fn lost(&self) -> Error {
        Error::fenced(format!(
            "another process has taken over the pipeline {} on the replica {}",
            self.pipeline, self.replica
        ))
        .with_hint("this one waits as its standby")
    }
}

/// The right to replace the record, and what it is now.
#[derive(Debug)]
pub(super) struct Record {
    pub ownership: Ownership,
    known: Known,
    replace: Statement,
    enter_table: Statement,
}

impl Record {
    pub(super) async fn new(
        client: &Client,
        settings: &ReplicaSettings,
        epoch: i64,
        stored: Option<&Checkpoint>,
    ) -> Result<Record> {
        Ok(Record {
            ownership: Ownership {
                pipeline: settings.pipeline.clone(),
                replica: settings.name.clone(),
                epoch,
            },
            known: stored.map(Known::of).unwrap_or_default(),
            replace: client.prepare(REPLACE).await.map_err(classify)?,
            enter_table: client.prepare(ENTER_TABLE).await.map_err(classify)?,
        })
    }

    /// Replaces the record in the open transaction. [`Record::committed`] follows its commit.
    pub(super) async fn replace(
        &self,
        client: &Client,
        checkpoint: &Checkpoint,
        tables: &[TableState],
        is_confirming: bool,
    ) -> Result<()> {
        for table in tables {
            self.enter(client, table).await?;
        }
        let identity = &checkpoint.identity;
        let replaced = client
            .execute(
                &self.replace,
                &[
                    &self.ownership.pipeline,
                    &self.ownership.epoch,
                    &signed::<u32, i32>(checkpoint.v)?,
                    &identity.system_identifier,
                    &i64::from(identity.timeline),
                    &i64::from(identity.database_oid),
                    &identity.slot,
                    &identity.options,
                    &phase_name(checkpoint.phase),
                    &PgLsn::from(checkpoint.commit_lsn.0),
                    &signed::<u64, i64>(checkpoint.ordinal)?,
                    &PgLsn::from(checkpoint.safe_lsn.0),
                    &i64::from(checkpoint.xid),
                    &checkpoint.commit_time,
                    &is_confirming,
                    &PgLsn::from(self.known.commit_lsn.0),
                    &signed::<u64, i64>(self.known.ordinal)?,
                    &PgLsn::from(self.known.safe_lsn.0),
                ],
            )
            .await
            .map_err(classify)?;
        match replaced {
            1 => Ok(()),
            _ => Err(self.ownership.lost()),
        }
    }

    /// What was replaced is committed.
    pub(super) fn committed(&mut self, checkpoint: &Checkpoint) {
        self.known = Known::of(checkpoint);
    }

    /// Replaces the record in a transaction of its own, durably.
    pub(super) async fn store(
        &mut self,
        client: &Client,
        checkpoint: &Checkpoint,
        tables: &[TableState],
    ) -> Result<()> {
        client.batch_execute(BEGIN_DURABLE).await.map_err(classify)?;
        if let Err(error) = self.replace(client, checkpoint, tables, true).await {
            // The error counts; a connection that is gone has rolled back already.
            let _ = client.batch_execute("ROLLBACK").await;
            return Err(error);
        }
        client.batch_execute("COMMIT").await.map_err(classify)?;
        self.committed(checkpoint);
        Ok(())
    }

    async fn enter(&self, client: &Client, table: &TableState) -> Result<()> {
        let root = table.root.as_ref().map(|(schema, name)| vec![schema, name]);
        let ranges = table.ranges.as_ref().map(|ranges| serde_json::to_string(ranges).expect("plain data"));
        client
            .execute(
                &self.enter_table,
                &[
                    &self.ownership.pipeline,
                    &i64::from(table.oid),
                    &table.schema,
                    &table.table,
                    &table.key,
                    &PgLsn::from(table.copied_at.0),
                    &table.done,
                    &signed::<u64, i64>(table.rows)?,
                    &table.selection,
                    &root,
                    &ranges,
                    &to_json(table.parked.as_ref()),
                    &to_json(table.shape.as_ref()),
                ],
            )
            .await
            .map_err(classify)?;
        Ok(())
    }
}

/// Reads what is stored about a pipeline.
pub(super) async fn read_stored(client: &Client, pipeline: &str) -> Result<Stored> {
    let mut stored = Stored::default();
    if let Some(row) = client.query_opt(READ, &[&pipeline]).await.map_err(classify)? {
        let v: u32 = unsigned(row.get::<_, i32>(0))?;
        if v > VERSION {
            return Err(Error::definite(format!(
                "walgate.checkpoint has a record of version {v} for {pipeline}, this walgate knows {VERSION}"
            ))
            .with_hint("use the newer walgate that wrote it"));
        }
        stored.checkpoint = Some(Checkpoint {
            v,
            identity: Identity {
                system_identifier: row.get(1),
                timeline: unsigned(row.get::<_, i64>(2))?,
                database_oid: unsigned(row.get::<_, i64>(3))?,
                slot: row.get(4),
                options: row.get(5),
            },
            phase: phase_of(row.get(6))?,
            commit_lsn: lsn(row.get(7)),
            ordinal: unsigned(row.get::<_, i64>(8))?,
            safe_lsn: lsn(row.get(9)),
            xid: unsigned(row.get::<_, i64>(10))?,
            commit_time: row.get(11),
        });
    }
    for row in client.query(READ_TABLES, &[&pipeline]).await.map_err(classify)? {
        let root: Option<Vec<String>> = row.get(8);
        let state = TableState {
            oid: unsigned(row.get::<_, i64>(0))?,
            schema: row.get(1),
            table: row.get(2),
            key: row.get(3),
            copied_at: lsn(row.get(4)),
            done: row.get(5),
            rows: unsigned(row.get::<_, i64>(6))?,
            selection: row.get(7),
            root: root
                .and_then(|names| <[String; 2]>::try_from(names).ok())
                .map(|[schema, name]| (schema, name)),
            ranges: row.get::<_, Option<&str>>(9).map(read_ranges).transpose()?,
            parked: of_json(row.get(10))?,
            shape: of_json(row.get(11))?,
        };
        stored.tables.insert(state.oid, state);
    }
    Ok(stored)
}

fn read_ranges(text: &str) -> Result<Ranges> {
    serde_json::from_str(text).map_err(|error| {
        Error::definite("walgate.copied_table has ranges that cannot be read")
            .with_source(error)
            .with_hint("use the newer walgate that wrote them")
    })
}

/// Removes what is stored about a pipeline; whether there was a record.
pub(super) async fn forget_rows(client: &mut Client, pipeline: &str) -> Result<bool> {
    let transaction = client.transaction().await.map_err(classify)?;
    transaction.batch_execute("SET LOCAL lock_timeout = '10s'").await.map_err(classify)?;
    // Nobody enters a pipeline between the question and the answer.
    let lock = "LOCK TABLE walgate.checkpoint IN SHARE ROW EXCLUSIVE MODE";
    transaction.batch_execute(lock).await.map_err(classify)?;
    let (has_created, forget_created) = FORGET_CREATED;
    if transaction.query_one(has_created, &[]).await.map_err(classify)?.get(0) {
        transaction.execute(forget_created, &[&pipeline]).await.map_err(classify)?;
    }
    let mut removed = 0;
    for statement in FORGET {
        removed = transaction.execute(statement, &[&pipeline]).await.map_err(classify)?;
    }
    if transaction.query_one(IS_UNUSED, &[]).await.map_err(classify)?.get(0) {
        // The rows go in any case, the tables where the role may: an administrator may have made them.
        transaction.batch_execute("SAVEPOINT walgate").await.map_err(classify)?;
        if let Err(error) = drop_tables(&transaction).await {
            if error.as_db_error().is_none() {
                return Err(classify(error));
            }
            transaction.batch_execute("ROLLBACK TO SAVEPOINT walgate").await.map_err(classify)?;
            tracing::info!("the tables of the schema walgate stay: {}", classify(error).chain());
        }
    }
    transaction.commit().await.map_err(classify)?;
    Ok(removed > 0)
}

/// Drops Walgate's own tables, and the schema where nothing else is in it.
async fn drop_tables(transaction: &Transaction<'_>) -> Result<(), tokio_postgres::Error> {
    transaction.batch_execute(DROP_TABLES).await?;
    let empty = transaction.query_opt(SCHEMA_IS_EMPTY, &[]).await?;
    if empty.is_some_and(|row| row.get(0)) {
        transaction.batch_execute("DROP SCHEMA walgate").await?;
    }
    Ok(())
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "pending",
        Phase::Snapshot => "snapshot",
        Phase::Streaming => "streaming",
    }
}

fn phase_of(name: &str) -> Result<Phase> {
    match name {
        "pending" => Ok(Phase::Pending),
        "snapshot" => Ok(Phase::Snapshot),
        "streaming" => Ok(Phase::Streaming),
        _ => Err(not_ours()),
    }
}

fn lsn(stored: PgLsn) -> Lsn {
    Lsn(stored.into())
}

fn signed<F, T: TryFrom<F>>(value: F) -> Result<T> {
    T::try_from(value).map_err(|_| Error::definite("a number is too large for walgate.checkpoint"))
}

fn unsigned<F, T: TryFrom<F>>(value: F) -> Result<T> {
    T::try_from(value).map_err(|_| not_ours())
}

fn to_json<T: Serialize>(value: Option<&T>) -> Option<String> {
    value.map(|value| serde_json::to_string(value).expect("plain data"))
}

fn of_json<T: DeserializeOwned>(stored: Option<String>) -> Result<Option<T>> {
    let read = |text: String| serde_json::from_str(&text).map_err(|error| not_ours().with_source(error));
    stored.map(read).transpose()
}

fn not_ours() -> Error {
    Error::definite("walgate.checkpoint or walgate.copied_table holds what no walgate has written")
        .with_hint("restore the row, or begin anew: `walgate drop`, and empty tables")
}
