//! A target as it is on the replica: what its columns are there, and how its rows may be applied.
//!
//! Comes in: a [`Target`], and the replica's catalog. Goes out: a [`Table`], looked up once for each target. Always
//! holds: every column of the target has a column there; what is missing is an error with the SQL that mends it.
//! Manual: pg_class, pg_attribute, pg_type, pg_opclass.

use std::sync::Arc;

use tokio_postgres::Row;

use super::binary::Form;
use crate::error::{Error, Result};
use crate::route::row::Target;
use crate::wal::client::{Client, classify};
use crate::wal::sql::{quote_ident, quote_qualified};

/// $1, $2: the table. $3: whether triggers and foreign keys are off for the session.
const TABLE: &str = "\
SELECT c.oid, c.relkind::text, \
       EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE NOT g.tgisinternal AND g.tgtype & 1 = 1 \
               AND g.tgenabled = ANY (CASE WHEN $3 THEN '{A,R}' ELSE '{A,O}' END::\"char\"[]) \
               AND (g.tgrelid = c.oid OR g.tgrelid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) p))), \
       NOT $3 AND EXISTS (SELECT FROM pg_catalog.pg_constraint f WHERE f.contype = 'f' \
               AND (f.conrelid = c.oid OR f.confrelid = c.oid)), \
       ARRAY(SELECT '\"' || pg_catalog.replace(un.nspname, '\"', '\"\"') || '\".\"' \
                    || pg_catalog.replace(u.relname, '\"', '\"\"') || '\"' \
             FROM pg_catalog.pg_class u JOIN pg_catalog.pg_namespace un ON un.oid = u.relnamespace \
             WHERE u.relkind = 'r' AND u.relpersistence <> 'p' \
             AND (u.oid = c.oid OR u.oid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) p)) \
             ORDER BY 1), \
       c.relkind = 'r' AND NOT c.relhasrules AND NOT COALESCE(c.reloptions::text LIKE '%fillfactor%', false) \
       AND (SELECT count(*) FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid) = 1 \
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint f WHERE f.confrelid = c.oid) \
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication) \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE n.nspname = $1 AND c.relname = $2";
/// Where the equality operator of type `t` lives, that of the type under all domains.
macro_rules! equality_schema {
    () => {
        "(SELECT en.nspname::text FROM pg_catalog.pg_opclass oc \
         JOIN pg_catalog.pg_am am ON am.oid = oc.opcmethod AND am.amname = 'btree' \
         JOIN pg_catalog.pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopstrategy = 3 \
              AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype \
         JOIN pg_catalog.pg_operator o ON o.oid = ao.amopopr AND o.oprname = '=' \
         JOIN pg_catalog.pg_namespace en ON en.oid = o.oprnamespace \
         CROSS JOIN LATERAL (WITH RECURSIVE chain AS (SELECT t.* UNION ALL \
              SELECT b.* FROM chain JOIN pg_catalog.pg_type b ON b.oid = chain.typbasetype WHERE chain.typtype = 'd') \
              SELECT * FROM chain WHERE typtype <> 'd') base \
         WHERE oc.opcdefault AND oc.opcintype = base.oid LIMIT 1)"
    };
}
/// Columns: name, type, whether generated, whether identity ALWAYS, where the type's equality operator lives, whether
/// an index leads with it and it is never NULL, whether there are arrays whose elements it can be, and the type's OID.
const COLUMNS: &str = concat!(
    "SELECT a.attname::text, tn.nspname::text, t.typname::text, a.attgenerated <> '', a.attidentity = 'a', ",
    equality_schema!(),
    ", a.attnotnull AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = a.attrelid \
          AND i.indkey[0] = a.attnum AND i.indisvalid AND i.indpred IS NULL), \
          t.typarray <> 0 AND t.typcategory <> 'A', t.oid \
      FROM pg_catalog.pg_attribute a \
      JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
      JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace \
      WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped"
);
/// $1: types, by OID. Goes out: where the equality operator of each lives, in the same order.
const EQUALITIES: &str = concat!(
    "SELECT ",
    equality_schema!(),
    " FROM pg_catalog.unnest($1::oid[]) WITH ORDINALITY AS w (oid, number) \
      LEFT JOIN pg_catalog.pg_type t ON t.oid = w.oid ORDER BY w.number"
);
/// The columns of each unique index that ON CONFLICT may name.
const UNIQUE: &str = "\
SELECT ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid \
             AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])) \
FROM pg_catalog.pg_index i WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate \
  AND i.indpred IS NULL AND i.indexprs IS NULL";

/// A column of a target, as it is on the replica.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// Its quoted name.
    pub name: String,
    /// Its quoted type, for casts: no modifier of a name, so nothing is cut before it is assigned.
    pub cast: String,
    /// OID of its type on the replica.
    pub type_oid: u32,
    /// The operator for equality of its type.
    pub equals: String,
    /// The replica computes it.
    pub is_generated: bool,
    /// `GENERATED ALWAYS AS IDENTITY`: an UPDATE cannot set it.
    pub is_identity_always: bool,
    /// An index leads with it, its type has equality, and it is never NULL: rows may be found by it.
    pub is_findable: bool,
    /// `= ANY (array)` looks for such values.
    pub is_element: bool,
}

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// What the router says of it.
    pub target: Arc<Target>,
    /// Its quoted name on the replica.
    pub name: String,
    /// One for each column of the target.
    pub columns: Vec<Column>,
    /// Changes must be applied row by row, in the order of the source, among all such tables.
    pub is_ordered: bool,
    /// Triggers fire for a row and may refuse it without a word: a row that was not changed need not be missing.
    pub has_row_triggers: bool,
    /// ON CONFLICT can name the key.
    pub has_arbiter: bool,
    /// A row that goes and comes again with other values is as good as one that is updated: all of its columns come from the
    /// source, no index but the key's has to follow, there is no room kept on its page, and no trigger, rule, foreign key or
    /// publication sees the difference.
    pub is_replaceable: bool,
    /// How the columns that are not computed are written, where all are of the same types as on the source and of types
    /// with a binary form.
    pub forms: Option<Vec<Form>>,
}

impl Table {
    /// How many cells a row has.
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    /// Looks it up.
    pub async fn look_up(client: &Client, target: Arc<Target>, has_replica_role: bool) -> Result<Table> {
        let name = quote_qualified(&target.schema, &target.name);
        let found = client
            .query_opt(TABLE, &[&target.schema, &target.name, &has_replica_role])
            .await
            .map_err(classify)?
            .ok_or_else(|| missing_table(&target, &name))?;
        let (oid, kind): (u32, String) = (found.get(0), found.get(1));
        if !matches!(kind.as_str(), "r" | "p" | "f") {
            return Err(Error::definite(format!("{name} on the replica is not a table"))
                .with_hint(format!("name a table in `to` of the rule for {}", target.relation)));
        }
        let unlogged: Vec<String> = found.get(4);
        if !unlogged.is_empty() {
            return Err(unlogged_table(&target, &unlogged));
        }
        let (has_row_triggers, has_foreign_keys): (bool, bool) = (found.get(2), found.get(3));
        let rows = client.query(COLUMNS, &[&oid]).await.map_err(classify)?;
        let mut columns = Vec::with_capacity(target.columns.len());
        let mut missing = Vec::new();
        for (at, wanted) in target.columns.iter().enumerate() {
            let Some(row) = rows.iter().find(|row| row.get::<_, &str>(0) == wanted.name) else {
                missing.push(at);
                continue;
            };
            columns.push(column(row));
        }
        if !missing.is_empty() {
            return Err(missing_columns(&target, &name, &missing));
        }
        let unique = client.query(UNIQUE, &[&oid]).await.map_err(classify)?;
        let has_arbiter = !target.key.is_empty() && unique.iter().any(|row| is_key(&target, row.get(0)));
        let is_plain: bool = found.get(5);
        // What the replica computes it computes again; every other column must be the source's.
        let is_ours = |row: &Row| {
            row.get::<_, bool>(3) || target.columns.iter().any(|column| row.get::<_, &str>(0) == column.name)
        };
        let is_replaceable = is_plain && has_replica_role && !has_row_triggers && rows.iter().all(is_ours);
        let written = columns.iter().zip(&target.columns).filter(|(column, _)| !column.is_generated);
        let forms = written.map(|(column, of_source)| {
            Form::of(column.type_oid).filter(|_| of_source.type_oid == column.type_oid)
        });
        Ok(Table {
            is_replaceable,
            forms: forms.collect(),
            is_ordered: has_row_triggers || has_foreign_keys || !has_arbiter,
            target,
            name,
            columns,
            has_row_triggers,
            has_arbiter,
        })
    }
}

fn column(row: &Row) -> Column {
    Column {
        name: quote_ident(row.get(0)),
        cast: quote_qualified(row.get(1), row.get(2)),
        type_oid: row.get(8),
        is_generated: row.get(3),
        is_identity_always: row.get(4),
        equals: equals(row.get(5)),
        is_findable: row.get::<_, Option<&str>>(5).is_some() && row.get(6),
        is_element: row.get(7),
    }
}

/// The operator for equality that lives there. The search path says nothing about where a type's own one is.
fn equals(schema: Option<&str>) -> String {
    schema.map_or_else(|| "=".to_owned(), |schema| format!("OPERATOR({}.=)", quote_ident(schema)))
}

/// The operators for equality of these types.
pub(super) async fn equalities(client: &Client, types: &[u32]) -> Result<Vec<String>> {
    let rows = client.query(EQUALITIES, &[&types]).await.map_err(classify)?;
    Ok(rows.iter().map(|row| equals(row.get(0))).collect())
}

fn is_key(target: &Target, index: Vec<&str>) -> bool {
    let is_in =
        |at: &usize| target.columns.get(*at).is_some_and(|column| index.contains(&column.name.as_str()));
    index.len() == target.key.len() && target.key.iter().all(is_in)
}

/// A column as its definition is written, as far as the stream knows it.
fn definition(target: &Target, at: usize) -> String {
    target.columns.get(at).map_or_else(String::new, |column| {
        format!("{} {}", quote_ident(&column.name), quote_qualified(&column.type_name.0, &column.type_name.1))
    })
}

fn missing_table(target: &Target, name: &str) -> Error {
    let mut parts: Vec<String> = (0..target.columns.len()).map(|at| definition(target, at)).collect();
    if !target.key.is_empty() {
        let key = target
            .key
            .iter()
            .filter_map(|at| target.columns.get(*at))
            .map(|column| quote_ident(&column.name));
        parts.push(format!("PRIMARY KEY ({})", key.collect::<Vec<_>>().join(", ")));
    }
    Error::definite(format!("the table {name}, which {} goes to, is missing on the replica", target.relation))
        .with_hint(format!("CREATE TABLE {name} ({})", parts.join(", ")))
}

/// A crash of the replica would empty it, and the checkpoint would stand.
fn unlogged_table(target: &Target, names: &[String]) -> Error {
    let remedies: Vec<String> = names.iter().map(|name| format!("ALTER TABLE {name} SET LOGGED")).collect();
    Error::definite(format!(
        "the table {} on the replica, which {} goes to, is UNLOGGED: a crash would empty it",
        names.join(", "),
        target.relation
    ))
    .with_hint(remedies.join("; "))
}

fn missing_columns(target: &Target, name: &str, missing: &[usize]) -> Error {
    let names: Vec<String> = missing
        .iter()
        .filter_map(|at| target.columns.get(*at))
        .map(|column| quote_ident(&column.name))
        .collect();
    let added: Vec<String> =
        missing.iter().map(|at| format!("ADD COLUMN {}", definition(target, *at))).collect();
    Error::definite(format!(
        "the table {name} on the replica has no column {} of {}",
        names.join(", "),
        target.relation
    ))
    .with_hint(format!("ALTER TABLE {name} {}; or exclude it in the rule", added.join(", ")))
}
