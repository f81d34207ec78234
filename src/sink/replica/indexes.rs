//! The other indexes of tables that Walgate made on a replica: those that the source has besides the key's.
//!
//! Comes in: the source's indexes of such a table. Goes out: the same on the replica's, under its name, where the columns
//! went. Always holds: the stream goes on meanwhile, for an index is made CONCURRENTLY; one that was left unfinished is
//! dropped and made again, since it would cost every change and enforce itself without being of use. Only what no index
//! can be (a deferrable or an exclusion constraint) is made by ALTER TABLE, for which the stream waits. Unique ones cannot
//! be in the stream's way: where it ends a transaction the replica's rows are rows of the source, which has them as well,
//! and changes that pass through each other are applied in the source's order. (Only over large values that have to be
//! fetched from the source, and may be newer than their row, can one refuse a change: docs/replication.md.) Manual: CREATE INDEX, "Building Indexes
//! Concurrently".

use std::time::Instant;

use super::ReplicaSettings;
use super::session::session_name;
use crate::error::{Error, Result};
use crate::wal::client::{Client, classify, connect};
use crate::wal::index::{IndexForm, SourceIndex};
use crate::wal::sql::{quote_ident, quote_qualified};
use crate::wal::sqlstate::sqlstate_of;

const PENDING: &str = "SELECT oid, schema_name, table_name FROM walgate.created_table \
    WHERE pipeline = $1 AND NOT has_indexes ORDER BY schema_name, table_name";
const DONE: &str = "UPDATE walgate.created_table SET has_indexes = true WHERE pipeline = $1 AND oid = $2";
/// $1: the table. Its columns, and those of each unique index over plain columns.
const COLUMNS: &str = "SELECT ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a \
    WHERE a.attrelid = $1::text::pg_catalog.regclass AND a.attnum > 0 AND NOT a.attisdropped)";
const UNIQUE: &str = "SELECT ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid \
    AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]) ORDER BY 1) FROM pg_catalog.pg_index i \
    WHERE i.indrelid = $1::text::pg_catalog.regclass AND i.indisunique AND i.indisvalid \
    AND i.indpred IS NULL AND i.indexprs IS NULL";
/// $1, $2: schema and name; $3: the table. Whether it is an index of that table, and valid.
const NAMED: &str = "SELECT coalesce(i.indrelid = $3::text::pg_catalog.regclass, false), coalesce(i.indisvalid, false) \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid WHERE n.nspname = $1 AND c.relname = $2";

/// The longest name that the server keeps, in bytes.
const NAME_BYTES_MAX: usize = 63;
/// A deadlock with the applier (a TRUNCATE, say) passes; so often it is tried again.
const TRIES_MAX: usize = 5;

/// A table that Walgate made, and that lacks the other indexes.
#[derive(Clone, Debug)]
pub struct CreatedTable {
    /// The table on the source.
    pub oid: u32,
    /// Its schema on the replica.
    pub schema: String,
    /// Its name there.
    pub name: String,
}

/// A session that makes indexes. The next process ends it with its predecessor's others.
pub struct Indexer {
    client: Client,
    pipeline: String,
}

impl Indexer {
    /// Connects.
    ///
    /// # Errors
    /// As the connection.
    pub async fn open(settings: &ReplicaSettings) -> Result<Indexer> {
        let client = connect(&settings.url, &session_name(&settings.application_name)).await?;
        Ok(Indexer { client, pipeline: settings.pipeline.clone() })
    }

    /// The tables that are to get theirs.
    ///
    /// # Errors
    /// As the connection.
    pub async fn pending(&self) -> Result<Vec<CreatedTable>> {
        let rows = self.client.query(PENDING, &[&self.pipeline]).await.map_err(classify)?;
        let table = |row: &tokio_postgres::Row| {
            let oid = u32::try_from(row.get::<_, i64>(0)).ok()?;
            Some(CreatedTable { oid, schema: row.get(1), name: row.get(2) })
        };
        Ok(rows.iter().filter_map(table).collect())
    }

    /// Makes what the table lacks of `indexes`; what cannot be made is a warning, and tried again at the next start.
    ///
    /// # Errors
    /// As the connection.
    pub async fn make(&self, table: &CreatedTable, indexes: &[SourceIndex]) -> Result<()> {
        let target = quote_qualified(&table.schema, &table.name);
        let row = self.client.query_one(COLUMNS, &[&target]).await.map_err(classify)?;
        let columns: Vec<String> = row.get(0);
        let rows = self.client.query(UNIQUE, &[&target]).await.map_err(classify)?;
        let unique: Vec<Vec<String>> = rows.iter().map(|row| row.get(0)).collect();
        let mut is_complete = true;
        for index in indexes {
            let is_there = index.unique_key.as_ref().is_some_and(|key| unique.contains(key));
            if is_there || !index.columns.iter().all(|column| columns.contains(column)) {
                continue;
            }
            is_complete &= self.make_one(table, &target, index).await?;
        }
        if is_complete {
            self.client.execute(DONE, &[&self.pipeline, &i64::from(table.oid)]).await.map_err(classify)?;
        }
        Ok(())
    }

    /// Whether it is there in the end.
    async fn make_one(&self, table: &CreatedTable, target: &str, index: &SourceIndex) -> Result<bool> {
        for name in names(table, index) {
            let found =
                self.client.query_opt(NAMED, &[&table.schema, &name, &target]).await.map_err(classify)?;
            match found.map(|row| (row.get::<_, bool>(0), row.get::<_, bool>(1))) {
                // Another table's: another name.
                Some((false, _)) => continue,
                Some((true, true)) => return Ok(true),
                Some((true, false)) => self.drop_invalid(&table.schema, &name).await?,
                None => {}
            }
            return self.try_to_make(&table.schema, &name, target, index).await;
        }
        tracing::warn!(
            table = target,
            index = index.name,
            "index not made: its name belongs to another relation"
        );
        Ok(false)
    }

    async fn try_to_make(&self, schema: &str, name: &str, target: &str, index: &SourceIndex) -> Result<bool> {
        let statement = statement(name, target, index, true);
        let began = Instant::now();
        tracing::info!(table = target, index = name, "making an index");
        for attempt in 1.. {
            let Err(error) = self.client.batch_execute(&statement).await else { break };
            let error = classify(error);
            // Without an answer the connection is gone.
            if sqlstate_of(&error).is_none() || self.client.is_closed() {
                return Err(error);
            }
            self.drop_invalid(schema, name).await?;
            let passes = matches!(sqlstate_of(&error), Some("40P01" | "40001" | "55P03"));
            if !passes || attempt == TRIES_MAX {
                let by_hand = self::statement(name, target, index, false);
                tracing::warn!(
                    table = target,
                    index = name,
                    "index not made: {} (remedy: see why, then on the replica: {by_hand}; or start again)",
                    error.chain()
                );
                return Ok(false);
            }
        }
        tracing::info!(table = target, index = name, seconds = began.elapsed().as_secs_f32(), "index made");
        Ok(true)
    }

    async fn drop_invalid(&self, schema: &str, name: &str) -> Result<()> {
        let statement = format!("DROP INDEX CONCURRENTLY IF EXISTS {}", quote_qualified(schema, name));
        self.client.batch_execute(&statement).await.map_err(|error: tokio_postgres::Error| -> Error {
            classify(error).context(format_args!("dropping the unfinished index {name}"))
        })
    }
}

/// The source's name; where another relation has that, one with the table's name in front.
fn names(table: &CreatedTable, index: &SourceIndex) -> [String; 2] {
    let mut longer = format!("{}_{}", table.name, index.name);
    while longer.len() > NAME_BYTES_MAX {
        longer.pop();
    }
    [index.name.clone(), longer]
}

fn statement(name: &str, target: &str, index: &SourceIndex, is_concurrent: bool) -> String {
    let name = quote_ident(name);
    match &index.form {
        IndexForm::Constraint(definition) => {
            format!("ALTER TABLE {target} ADD CONSTRAINT {name} {definition}")
        }
        IndexForm::Index { is_unique, tail } => {
            let unique = if *is_unique { "UNIQUE " } else { "" };
            let concurrently = if is_concurrent { "CONCURRENTLY " } else { "" };
            format!("CREATE {unique}INDEX {concurrently}{name} ON {target} {tail}")
        }
    }
}
