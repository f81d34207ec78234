//! Indexes of a table of the source, as they can be made on another one. Manual: pg_index, pg_constraint,
//! `pg_get_indexdef`.

use super::client::{Client, classify};
use crate::error::Result;

/// $1: a table. Its valid indexes; under an empty `search_path`, so that every name has its schema.
const OF_TABLE: &str = "\
SELECT x.relname::text, pg_catalog.pg_get_indexdef(i.indexrelid), \
  'CREATE ' || CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END || 'INDEX ' || pg_catalog.quote_ident(x.relname) || ' ON ' \
    || CASE WHEN x.relkind = 'I' THEN 'ONLY ' ELSE '' END \
    || pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.relname) || ' ', \
  (SELECT pg_catalog.pg_get_constraintdef(c.oid) FROM pg_catalog.pg_constraint c \
   WHERE c.conindid = i.indexrelid AND c.conrelid = i.indrelid AND c.contype IN ('p', 'u', 'x') \
     AND (c.condeferrable OR i.indisexclusion) LIMIT 1), \
  i.indisunique, i.indpred IS NULL AND i.indexprs IS NULL AND NOT i.indisexclusion, \
  ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum > 0 \
        AND (a.attnum = ANY (i.indkey) OR a.attnum IN (SELECT d.refobjsubid FROM pg_catalog.pg_depend d \
          WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = i.indexrelid \
          AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = i.indrelid))), \
  ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid \
        AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]) ORDER BY 1) \
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid \
JOIN pg_catalog.pg_class t ON t.oid = i.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace \
WHERE i.indrelid = $1 AND i.indisvalid AND i.indislive ORDER BY x.relname";

/// An index of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceIndex {
    /// Its name.
    pub name: String,
    /// What makes it, but for its own name and the table's.
    pub form: IndexForm,
    /// Every column that it reads: its own, and those of its expressions and its predicate.
    pub columns: Vec<String>,
    /// Of a unique index over plain columns without a predicate: those columns, sorted.
    pub unique_key: Option<Vec<String>>,
}

/// See [`SourceIndex::form`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexForm {
    /// `CREATE [UNIQUE] INDEX name ON table ...`: whether it is unique, and what follows, from `USING` on.
    Index {
        /// It is.
        is_unique: bool,
        /// From `USING` on.
        tail: String,
    },
    /// `ALTER TABLE table ADD CONSTRAINT name ...`: what follows. An index alone is neither deferrable nor an exclusion.
    Constraint(String),
}

impl SourceIndex {
    /// Those of the table `oid`. Sets the session's `search_path` to nothing.
    ///
    /// # Errors
    /// As the connection.
    pub async fn of_table(client: &Client, oid: u32) -> Result<Vec<SourceIndex>> {
        client.batch_execute("SET search_path = ''").await.map_err(classify)?;
        let rows = client.query(OF_TABLE, &[&oid]).await.map_err(classify)?;
        let index = |row: &tokio_postgres::Row| {
            let (definition, prefix): (String, String) = (row.get(1), row.get(2));
            let (is_unique, is_plain): (bool, bool) = (row.get(4), row.get(5));
            let form = match row.get(3) {
                Some(constraint) => IndexForm::Constraint(constraint),
                None => IndexForm::Index { is_unique, tail: definition.strip_prefix(&prefix)?.to_owned() },
            };
            let unique_key = (is_unique && is_plain).then(|| row.get(7));
            Some(SourceIndex { name: row.get(0), form, columns: row.get(6), unique_key })
        };
        Ok(rows.iter().filter_map(index).collect())
    }
}
