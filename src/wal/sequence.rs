//! Sequences of the source: which columns draw from them, and where they stand now.
//!
//! They are not in the WAL that a logical slot decodes, so they are read by SQL. Manual: pg_sequence, pg_depend,
//! "Sequence Manipulation Functions".

use super::client::{Client, classify};
use super::sql::quote_qualified;
use crate::error::Result;

/// $1: tables. The sequences that their columns own (serial, identity), and those that a default draws from.
const OF_TABLES: &str = "\
SELECT u.relid, a.attname::text, n.nspname::text, s.relname::text, q.seqincrement, q.seqcache, \
  pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_sequence_privilege(s.oid, 'SELECT') \
FROM (SELECT d.refobjid AS relid, d.refobjsubid AS attnum, d.objid AS seqid FROM pg_catalog.pg_depend d \
  WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
  AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0 AND d.refobjid = ANY ($1) \
  UNION SELECT f.adrelid, f.adnum, d.refobjid FROM pg_catalog.pg_attrdef f \
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid = f.oid \
    AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass WHERE f.adrelid = ANY ($1)) u \
JOIN pg_catalog.pg_class s ON s.oid = u.seqid AND s.relkind = 'S' JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.oid \
JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace \
JOIN pg_catalog.pg_attribute a ON a.attrelid = u.relid AND a.attnum = u.attnum ORDER BY 3, 4, 1, 2";

/// The margin where none is asked for, in increments: as much as pglogical keeps ahead.
const MARGIN: u64 = 1000;

/// A sequence of the source, and a column that draws from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSequence {
    /// The table, by OID.
    pub table_oid: u32,
    /// The column.
    pub column: String,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The role may read where it stands.
    pub may_read: bool,
    increment: i64,
    cache: i64,
}

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceState {
    /// The last value that was taken; where `is_called` is false, the next one.
    pub last_value: i64,
    /// See `last_value`.
    pub is_called: bool,
    /// From a value to the next; negative: it runs down.
    pub increment: i64,
    /// So many values a session takes at once.
    pub cache: i64,
}

impl SequenceState {
    /// A session that takes its values by the thousand moves it by as many at once: the margin is one such step at least.
    pub fn default_margin(self) -> u64 {
        MARGIN.max(self.cache.unsigned_abs())
    }
}

impl SourceSequence {
    /// Those of all columns of the tables, by name.
    ///
    /// # Errors
    /// As the connection.
    pub async fn of_tables(client: &Client, tables: &[u32]) -> Result<Vec<SourceSequence>> {
        let rows = client.query(OF_TABLES, &[&tables]).await.map_err(classify)?;
        let sequence = |row: &tokio_postgres::Row| SourceSequence {
            table_oid: row.get(0),
            column: row.get(1),
            schema: row.get(2),
            name: row.get(3),
            increment: row.get(4),
            cache: row.get(5),
            may_read: row.get(6),
        };
        Ok(rows.iter().map(sequence).collect())
    }

    /// Where it stands now. By a SELECT, since `pg_sequence_last_value` does not tell a value that is set and not called.
    ///
    /// # Errors
    /// As the connection, or when the role may not.
    pub async fn state(&self, client: &Client) -> Result<SequenceState> {
        let statement =
            format!("SELECT last_value, is_called FROM {}", quote_qualified(&self.schema, &self.name));
        let row = client.query_one(&statement, &[]).await.map_err(classify)?;
        let SourceSequence { increment, cache, .. } = *self;
        Ok(SequenceState { last_value: row.get(0), is_called: row.get(1), increment, cache })
    }

    /// `schema.name`.
    pub fn display_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// `"schema"."name"`, for SQL.
    pub fn sql_name(&self) -> String {
        quote_qualified(&self.schema, &self.name)
    }
}
