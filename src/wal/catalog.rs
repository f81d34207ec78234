//! What the source's catalog says about tables and types, now.
//!
//! The stream describes relations itself; the catalog adds what it does not say (the primary key
//! under REPLICA IDENTITY FULL, types, leaves of partitioned tables), and is all there is for the
//! copy. Manual: "System Catalogs", pg_class, pg_attribute, pg_index, pg_type.

use tokio_postgres::types::Oid;

use super::client::{Client, classify};
use super::pgoutput::{Relation, RelationColumn, ReplicaIdentity};
use crate::error::Result;
use crate::route::filter::{Collation, EnumLabels, TableFacts};
use crate::route::value::{TypeCatalog, TypeRow};

/// Ordinary and partitioned tables that are no partitions themselves, outside of the system's and
/// Walgate's own schemas. $1: only these OIDs, or NULL for all; $2: with leaves.
const TABLES: &str = "\
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', c.relreplident::text, c.relpersistence = 'p', \
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_index i \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey) \
             WHERE i.indrelid = c.oid AND i.indisprimary \
             ORDER BY pg_catalog.array_position(i.indkey::pg_catalog.int2[], a.attnum)), \
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_index i \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey) \
             WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate \
               AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END ORDER BY a.attnum), \
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a \
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum), \
       ARRAY(SELECT a.atttypid FROM pg_catalog.pg_attribute a \
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum), \
       ARRAY(SELECT a.atttypmod FROM pg_catalog.pg_attribute a \
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum), \
       c.relispartition, \
       NOT EXISTS (SELECT FROM pg_catalog.pg_partition_tree(c.oid) t JOIN pg_catalog.pg_class l ON l.oid = t.relid \
             WHERE t.isleaf AND l.oid <> c.oid AND l.relreplident <> 'f' AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i \
             WHERE i.indrelid = l.oid AND CASE l.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate \
             WHEN 'i' THEN i.indisreplident AND i.indisvalid ELSE false END)), \
       CASE WHEN c.relispartition THEN ARRAY(SELECT x.name FROM pg_catalog.pg_class r \
             JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace, \
             LATERAL (VALUES (1, rn.nspname::text), (2, r.relname::text)) x(nth, name) \
             WHERE r.oid = pg_catalog.pg_partition_root(c.oid) AND r.oid <> c.oid ORDER BY x.nth) END \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' \
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'walgate') AND n.nspname !~ '^pg_(toast|temp)' \
  AND CASE WHEN $1::oid[] IS NULL THEN NOT c.relispartition OR $2 AND c.relkind = 'r' ELSE c.oid = ANY ($1) END \
ORDER BY n.nspname, c.relname";

/// A table of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTable {
    /// Its OID.
    pub oid: Oid,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether its rows are in partitions.
    pub is_partitioned: bool,
    /// Whether it is a partition of another table.
    pub is_partition: bool,
    /// Schema and name of the partitioned table that it is a part of, at the top; `None` while it is being detached.
    pub root: Option<(String, String)>,
    /// Its replica identity.
    pub identity: ReplicaIdentity,
    /// Whether its changes are in the WAL (not UNLOGGED).
    pub is_logged: bool,
    /// Columns of its primary key, in the order of its index.
    pub primary_key: Vec<String>,
    /// Whether every leaf has a usable identity of its own: it is the leaf's that counts, and FULL is
    /// not inherited.
    pub have_leaves_identity: bool,
    /// Columns of the index that identifies its rows in the WAL (under DEFAULT the primary key's, unless
    /// that is DEFERRABLE), in the order of the table's columns.
    pub identity_key: Vec<String>,
    /// Its columns as the stream sends them: without dropped and generated ones.
    pub columns: Vec<SourceColumn>,
}

/// A column of a table of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceColumn {
    /// Its name.
    pub name: String,
    /// OID of its type.
    pub type_oid: Oid,
    /// Its type modifier, -1 for none.
    pub type_modifier: i32,
}

impl SourceTable {
    /// The columns by which old rows are identified in the WAL; `None`: the whole row is.
    pub fn identity_columns(&self) -> Option<&[String]> {
        match self.identity {
            ReplicaIdentity::Full => None,
            // Not the primary key as such: a DEFERRABLE one identifies nothing.
            ReplicaIdentity::Default | ReplicaIdentity::Index => Some(&self.identity_key),
            ReplicaIdentity::Nothing => Some(&[]),
        }
    }

    /// Whether UPDATE and DELETE can be published; if not, publishing them makes them fail on the
    /// source.
    pub fn has_usable_identity(&self) -> bool {
        self.have_leaves_identity && self.identity_columns().is_none_or(|columns| !columns.is_empty())
    }

    /// The relation as the stream describes it.
    pub fn relation(&self) -> Relation {
        let is_key = |name: &String| self.identity_columns().is_none_or(|columns| columns.contains(name));
        Relation {
            oid: self.oid,
            namespace: self.schema.clone(),
            name: self.name.clone(),
            replica_identity: self.identity,
            columns: self
                .columns
                .iter()
                .map(|column| RelationColumn {
                    key: is_key(&column.name),
                    name: column.name.clone(),
                    type_oid: column.type_oid,
                    type_modifier: column.type_modifier,
                })
                .collect(),
        }
    }

    /// `schema.table`, for people.
    pub fn display_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// `"schema"."table"`, for SQL.
    pub fn sql_name(&self) -> String {
        super::sql::quote_qualified(&self.schema, &self.name)
    }
}

/// All tables that a rule can name, by schema and name; or those of the given OIDs.
///
/// # Errors
/// As the connection.
pub async fn tables(client: &Client, oids: Option<&[Oid]>) -> Result<Vec<SourceTable>> {
    tables_of(client, oids, false).await
}

/// The same, and every leaf of a partitioned table.
///
/// # Errors
/// As the connection.
pub async fn tables_and_leaves(client: &Client) -> Result<Vec<SourceTable>> {
    tables_of(client, None, true).await
}

async fn tables_of(client: &Client, oids: Option<&[Oid]>, with_leaves: bool) -> Result<Vec<SourceTable>> {
    let rows = client.query(TABLES, &[&oids, &with_leaves]).await.map_err(classify)?;
    rows.iter().map(table_of).collect::<Result<_, _>>().map_err(classify)
}

fn table_of(row: &tokio_postgres::Row) -> Result<SourceTable, tokio_postgres::Error> {
    let identity: String = row.try_get(4)?;
    let names: Vec<String> = row.try_get(8)?;
    let types: Vec<Oid> = row.try_get(9)?;
    let modifiers: Vec<i32> = row.try_get(10)?;
    let columns = names.into_iter().zip(types).zip(modifiers);
    Ok(SourceTable {
        oid: row.try_get(0)?,
        schema: row.try_get(1)?,
        name: row.try_get(2)?,
        is_partitioned: row.try_get(3)?,
        is_partition: row.try_get(11)?,
        have_leaves_identity: row.try_get(12)?,
        root: row.try_get::<_, Option<Vec<String>>>(13)?.and_then(|names| {
            match <[String; 2]>::try_from(names) {
                Ok([schema, name]) => Some((schema, name)),
                Err(_) => None,
            }
        }),
        // An identity of a later PostgreSQL is one that this version cannot use.
        identity: identity
            .bytes()
            .next()
            .and_then(ReplicaIdentity::from_letter)
            .unwrap_or(ReplicaIdentity::Nothing),
        is_logged: row.try_get(5)?,
        primary_key: row.try_get(6)?,
        identity_key: row.try_get(7)?,
        columns: columns
            .map(|((name, type_oid), type_modifier)| SourceColumn { name, type_oid, type_modifier })
            .collect(),
    })
}

/// All types of the database.
///
/// # Errors
/// As the connection.
pub async fn types(client: &Client) -> Result<TypeCatalog> {
    let mut catalog = TypeCatalog::builtin();
    let rows = client.query(TypeCatalog::QUERY, &[]).await.map_err(classify)?;
    let types: Result<Vec<TypeRow>, _> = rows.iter().map(type_of).collect();
    catalog.extend(types.map_err(classify)?);
    Ok(catalog)
}

/// Columns of the table $1 as a CREATE TABLE has them.
const DEFINITIONS: &str = "\
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, n.nspname::text, t.typname::text, \
       CASE WHEN a.attcollation <> t.typcollation THEN \
         (SELECT pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(c.collname) \
          FROM pg_catalog.pg_collation c JOIN pg_catalog.pg_namespace cn ON cn.oid = c.collnamespace \
          WHERE c.oid = a.attcollation) END, \
       ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = a.atttypid ORDER BY e.enumsortorder), \
       CASE WHEN a.attnotnull THEN (SELECT pg_catalog.format('START %s INCREMENT %s MINVALUE %s MAXVALUE %s CACHE %s%s', \
           least(greatest(q.seqstart, w.low), w.high), q.seqincrement, greatest(q.seqmin, w.low), least(q.seqmax, w.high), \
           q.seqcache, CASE WHEN q.seqcycle THEN ' CYCLE' END) \
         FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_sequence q ON q.seqrelid = d.objid \
         JOIN (VALUES (21::oid, -32768::int8, 32767::int8), (23, -2147483648, 2147483647), \
               (20, -9223372036854775808, 9223372036854775807)) w (of_type, low, high) ON w.of_type = a.atttypid \
         WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum \
           AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i') \
           AND (a.attidentity <> '' OR EXISTS (SELECT FROM pg_catalog.pg_attrdef f JOIN pg_catalog.pg_depend u \
                ON u.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND u.objid = f.oid AND u.refobjid = d.objid \
                WHERE f.adrelid = a.attrelid AND f.adnum = a.attnum)) ORDER BY d.deptype DESC LIMIT 1) END \
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// A column as a CREATE TABLE has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnDefinition {
    /// Its name.
    pub name: String,
    /// Its type with modifiers, with its schema unless that is pg_catalog.
    pub formatted_type: String,
    /// Schema and name of its type.
    pub type_name: (String, String),
    /// NOT NULL.
    pub is_not_null: bool,
    /// Its collation, quoted, where it is not its type's.
    pub collation: Option<String>,
    /// The labels of an enum, in their order.
    pub enum_labels: Vec<String>,
    /// The options of the sequence that it owns and draws from, as an identity column has them, within its type's range.
    pub identity_options: Option<String>,
}

/// The definitions of all columns of the table `oid`.
///
/// # Errors
/// As the connection.
pub async fn definitions(client: &mut Client, oid: Oid) -> Result<Vec<ColumnDefinition>> {
    let transaction = client.transaction().await.map_err(classify)?;
    // So that every type's name has its schema.
    transaction.batch_execute("SET LOCAL search_path = ''").await.map_err(classify)?;
    let rows = transaction.query(DEFINITIONS, &[&oid]).await.map_err(classify)?;
    let column = |row: &tokio_postgres::Row| ColumnDefinition {
        name: row.get(0),
        formatted_type: row.get(1),
        is_not_null: row.get(2),
        type_name: (row.get(3), row.get(4)),
        collation: row.get(5),
        enum_labels: row.get(6),
        identity_options: row.get(7),
    };
    Ok(rows.iter().map(column).collect())
}

/// What a filter must know of the table `oid`.
///
/// # Errors
/// As the connection.
pub async fn facts(client: &Client, oid: Oid) -> Result<TableFacts> {
    let mut facts = TableFacts::default();
    for row in client.query(TableFacts::QUERY, &[&oid]).await.map_err(classify)? {
        let collation = match (row.get(2), row.get(3), row.get(4)) {
            (Some(namespace), Some(name), Some(is_deterministic)) => {
                Some(Collation { namespace, name, is_deterministic })
            }
            _ => None,
        };
        facts.add(row.get(0), row.get(1), collation);
    }
    Ok(facts)
}

/// The labels of all enums of the database.
///
/// # Errors
/// As the connection.
pub async fn enums(client: &Client) -> Result<EnumLabels> {
    let mut enums = EnumLabels::default();
    for row in client.query(EnumLabels::QUERY, &[]).await.map_err(classify)? {
        enums.insert(row.get(0), row.get(1));
    }
    Ok(enums)
}

fn type_of(row: &tokio_postgres::Row) -> Result<TypeRow, tokio_postgres::Error> {
    let char_of = |at| row.try_get::<_, i8>(at).map(i8::cast_unsigned);
    Ok(TypeRow {
        oid: row.try_get(0)?,
        name: row.try_get(1)?,
        namespace: row.try_get(2)?,
        typtype: char_of(3)?,
        category: char_of(4)?,
        element: row.try_get(5)?,
        base: row.try_get(6)?,
        delimiter: char_of(7)?,
        length: row.try_get(8)?,
        output: row.try_get(9)?,
    })
}
