//! The tables of a replica: made from the source's definition where they are missing, and empty before their first copy.
//!
//! Comes in: targets with the definitions of their columns. Goes out: tables that rows can be copied into. Always holds:
//! nothing that is there is changed, but columns are added where the replica follows the source's; rows that are there and are not ours are a fault, never mixed with the copy.

use std::sync::Arc;

use super::session::ReplicaSession;
use crate::error::{Error, Fault, Result};
use crate::route::row::Target;
use crate::wal::catalog::ColumnDefinition;
use crate::wal::client::{Client, classify};
use crate::wal::sql::{quote_ident, quote_literal, quote_qualified};

const EXISTS: &str = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
/// In the transaction that makes the table. Its name may have been another one's.
const NOTE: &str = "INSERT INTO walgate.created_table (pipeline, oid, schema_name, table_name) VALUES ($1, $2, $3, $4) \
ON CONFLICT (pipeline, oid) DO UPDATE SET schema_name = excluded.schema_name, table_name = excluded.table_name, \
has_indexes = false";
const COLUMNS: &str = "SELECT a.attname::text FROM pg_catalog.pg_attribute a \
WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";
/// Who reads the table for long is waited for by everybody behind this statement.
const LOCK_LIMIT: &str = "SET LOCAL lock_timeout = '5s'";
const TYPE_EXISTS: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_type t \
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE n.nspname = $1 AND t.typname = $2)";

/// A table that is about to receive rows.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The table.
    pub target: Arc<Target>,
    /// Its columns on the source, those of the target only.
    pub columns: Vec<ColumnDefinition>,
    /// Nothing was ever copied into it: it must be empty.
    pub is_new: bool,
    /// What is stored says that its rows are there: if it is missing, that must be put right before it is made.
    pub is_copied: bool,
}

/// What may be made on a replica.
#[derive(Clone, Copy, Debug)]
pub struct Makes {
    /// Tables that are missing: `create_tables`.
    pub tables: bool,
    /// Columns that are missing: `on_schema_change = "follow"`.
    pub columns: bool,
}

/// What was made on a replica, by the tables' OIDs on the source.
#[derive(Debug, Default)]
pub struct Made {
    /// Tables that are missing, and were not made: [`Wanted::is_copied`].
    pub gone: Vec<u32>,
    /// Tables that were missing.
    pub tables: Vec<u32>,
    /// Tables that lacked columns.
    pub columns: Vec<u32>,
}

impl ReplicaSession {
    /// Makes what is missing, as far as it may be made; says all that is wrong at once. Blocks.
    ///
    /// # Errors
    /// Definite, each with the SQL that mends it: a table is missing and may not be made, or holds rows before its first
    /// copy; a column cannot be added. As the connection.
    pub fn prepare(&mut self, wanted: &[Wanted], makes: Makes) -> Result<Made> {
        let (replica, pipeline) = (self.settings.name.clone(), self.settings.pipeline.clone());
        self.link
            .run_mut(async |client| {
                let (mut faults, mut made) = (Vec::new(), Made::default());
                for table in wanted {
                    if let Err(error) = prepare(client, &pipeline, table, makes, &mut made).await {
                        match error.is_definite() {
                            true => faults.push(table.target.blamed(error, Fault::Rows)),
                            false => return Err(error),
                        }
                    }
                }
                if faults.is_empty() { Ok(made) } else { Err(crate::pipeline::tables::all_of(faults)) }
            })
            .map_err(|error| error.context(format_args!("replica {replica}")))
    }
}

async fn prepare(
    client: &mut Client,
    pipeline: &str,
    wanted: &Wanted,
    makes: Makes,
    made: &mut Made,
) -> Result<()> {
    let name = quote_qualified(&wanted.target.schema, &wanted.target.name);
    if !asked(client, EXISTS, &[&name]).await? {
        if wanted.is_copied && makes.tables {
            made.gone.push(wanted.target.oid);
            return Ok(());
        }
        let statements = definition(client, wanted, &name).await?;
        let sql = statements.join(";\n");
        if !makes.tables {
            return Err(Error::definite(format!("table {name} does not exist"))
                .with_hint(format!("on the replica: {sql}; or create_tables = true")));
        }
        tracing::info!(table = name, "made on the replica");
        make(client, pipeline, wanted, &sql).await.map_err(|error| {
            error
                .context(format_args!("making table {name}"))
                .with_hint(format!("on the replica, as a role that may: {sql}"))
        })?;
        made.tables.push(wanted.target.oid);
        return Ok(());
    }
    if wanted.is_new && asked(client, &format!("SELECT EXISTS (SELECT FROM {name})"), &[]).await? {
        return Err(Error::definite(format!(
            "table {name} is not empty, and nothing was copied into it by this pipeline"
        ))
        .with_hint(format!(
            "if its rows may go: TRUNCATE {name}; on the replica; else choose another name with `to`"
        )));
    }
    if makes.columns && follow(client, wanted, &name).await? {
        made.columns.push(wanted.target.oid);
    }
    Ok(())
}

/// Makes the table, and notes that it is ours.
async fn make(client: &mut Client, pipeline: &str, wanted: &Wanted, sql: &str) -> Result<()> {
    let Target { oid, schema, name, .. } = &*wanted.target;
    let transaction = client.transaction().await.map_err(classify)?;
    transaction.batch_execute(sql).await.map_err(classify)?;
    transaction.execute(NOTE, &[&pipeline, &i64::from(*oid), schema, name]).await.map_err(classify)?;
    transaction.commit().await.map_err(classify)
}

/// Adds the columns that the replica's table lacks: without NOT NULL, since rows are there. True: some were missing.
async fn follow(client: &Client, wanted: &Wanted, name: &str) -> Result<bool> {
    let rows = client.query(COLUMNS, &[&name]).await.map_err(classify)?;
    let is_missing = |column: &&ColumnDefinition| rows.iter().all(|row| row.get::<_, &str>(0) != column.name);
    let missing: Vec<&ColumnDefinition> = wanted.columns.iter().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok(false);
    }
    let mut statements = types(client, missing.iter().copied()).await?;
    let added: Vec<String> =
        missing.iter().map(|column| format!("ADD COLUMN {}", definition_of(column))).collect();
    statements.push(format!("ALTER TABLE {name} {}", added.join(", ")));
    let sql = statements.join(";\n");
    tracing::info!(table = name, columns = added.join(", "), "follows the source");
    client.batch_execute(&format!("{LOCK_LIMIT};\n{sql}")).await.map_err(|error| {
        classify(error)
            .context(format_args!("adding columns to {name}"))
            .with_hint(format!("on the replica, as a role that may: {sql}"))
            .of_table(wanted.target.oid, &wanted.target.relation, Fault::Unfollowable)
    })?;
    Ok(true)
}

async fn asked(
    client: &Client,
    query: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<bool> {
    Ok(client.query_one(query, parameters).await.map_err(classify)?.get(0))
}

/// What makes the table.
async fn definition(client: &Client, wanted: &Wanted, name: &str) -> Result<Vec<String>> {
    let Wanted { target, columns, .. } = wanted;
    let mut statements = vec![format!("CREATE SCHEMA IF NOT EXISTS {}", quote_ident(&target.schema))];
    statements.extend(types(client, columns).await?);
    let mut parts: Vec<String> = columns
        .iter()
        .map(|column| {
            let not_null = if column.is_not_null { " NOT NULL" } else { "" };
            // Not ALWAYS, whatever the source has: rows bring their values.
            let identity = column.identity_options.as_ref();
            let identity = identity.map(|options| format!(" GENERATED BY DEFAULT AS IDENTITY ({options})"));
            format!("{}{not_null}{}", definition_of(column), identity.unwrap_or_default())
        })
        .collect();
    let key: Vec<&ColumnDefinition> = target.key.iter().filter_map(|&at| columns.get(at)).collect();
    if !key.is_empty() {
        let names: Vec<String> = key.iter().map(|column| quote_ident(&column.name)).collect();
        let kind = if key.iter().all(|column| column.is_not_null) { "PRIMARY KEY" } else { "UNIQUE" };
        parts.push(format!("{kind} ({})", names.join(", ")));
    }
    statements.push(format!("CREATE TABLE {name} ({})", parts.join(", ")));
    Ok(statements)
}

/// A column's name, type and collation.
fn definition_of(column: &ColumnDefinition) -> String {
    let collation = column.collation.as_ref().map(|name| format!(" COLLATE {name}")).unwrap_or_default();
    format!("{} {}{collation}", quote_ident(&column.name), column.formatted_type)
}

/// What makes the enum types that these columns need.
async fn types<'c>(
    client: &Client,
    columns: impl IntoIterator<Item = &'c ColumnDefinition>,
) -> Result<Vec<String>> {
    let mut statements = Vec::new();
    for column in columns {
        let (schema, type_name) = &column.type_name;
        if column.enum_labels.is_empty() || asked(client, TYPE_EXISTS, &[schema, type_name]).await? {
            continue;
        }
        let labels: Vec<String> = column.enum_labels.iter().map(|label| quote_literal(label)).collect();
        let of_type = quote_qualified(schema, type_name);
        let make = format!("CREATE TYPE {of_type} AS ENUM ({})", labels.join(", "));
        if !statements.contains(&make) {
            statements.push(format!("CREATE SCHEMA IF NOT EXISTS {}", quote_ident(schema)));
            statements.push(make);
        }
    }
    Ok(statements)
}
