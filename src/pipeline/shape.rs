//! Changes of a table's rows that never reach the WAL: noticed by comparing the source's catalog with what it was when
//! the table was copied.
//!
//! Comes in: a table's [`Shape`] as stored, and as it is now. Goes out: that nothing of its rows changed, or why it must be
//! copied again. Such changes are: a rewrite by ALTER TABLE (a type, `USING`, a volatile default), a column that came with
//! a default for the rows of before, a column's other name, a partition that came with rows, went, or got another file
//! (TRUNCATE of a leaf). No change of that kind is missed; taken for one, at the cost of a copy, are VACUUM FULL and
//! CLUSTER of a leaf, TRUNCATE of a whole partitioned table, and TRUNCATE and ALTER TABLE of a table between two looks.
//! TRUNCATE of a table without partitions is in the WAL, as are the rows of a partition that was made empty. DESIGN
//! section 6, "Changes that never reach the WAL".

use std::collections::BTreeMap;

use super::Pipeline;
use super::tables::MatchedTable;
use crate::error::Result;
use crate::sink::checkpoint::{Shape, ShapeColumn, TableState};
use crate::wal::client::{Client, classify};
use crate::wal::sql::quote_qualified;

/// The columns of the tables $1 that are sent; the `xmin` of one's row changes with its definition.
const COLUMNS: &str = "SELECT r.oid, a.attnum, a.attname::text, a.atttypid, a.xmin::text::int8, \
a.atthasmissing OR c.relkind = 'p' AND EXISTS (SELECT FROM pg_catalog.pg_partition_tree(r.oid::regclass) t \
  JOIN pg_catalog.pg_attribute l ON l.attrelid = t.relid AND l.attname = a.attname AND l.atthasmissing) \
FROM pg_catalog.unnest($1::oid[]) r (oid) JOIN pg_catalog.pg_class c ON c.oid = r.oid \
JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid \
WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''";
/// The files of the tables $1: their own, of a partitioned one its leaves'.
const FILES: &str = "SELECT r.oid, l.oid, COALESCE(pg_catalog.pg_relation_filenode(l.oid), 0::oid) \
FROM pg_catalog.unnest($1::oid[]) r (oid) JOIN pg_catalog.pg_class c ON c.oid = r.oid \
CROSS JOIN LATERAL (SELECT c.oid WHERE c.relkind <> 'p' UNION ALL \
  SELECT t.relid::oid FROM pg_catalog.pg_partition_tree(c.oid::regclass) t WHERE c.relkind = 'p' AND t.isleaf) l";
const NAME: &str = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";

/// What has changed of copied tables.
#[derive(Debug, Default)]
pub struct Changes {
    /// States to be stored: of the replica's tables that are copied again, and with shapes that were looked at.
    pub states: Vec<TableState>,
    /// Of a replica: tables that are copied again, and why.
    pub again: Vec<(String, String)>,
}

/// Compares the copied tables among `tables` with what they were. On the hub, where what was published stays, what changed
/// is told.
///
/// # Errors
/// As the connection.
pub async fn changes(
    pipeline: &Pipeline,
    client: &Client,
    tables: &[MatchedTable],
    states: &BTreeMap<u32, TableState>,
) -> Result<Changes> {
    let mut changes = Changes::default();
    let copied: Vec<(&MatchedTable, &TableState)> = tables
        .iter()
        // An outbox row is published once, whatever becomes of its table.
        .filter(|matched| matched.rule.outbox.is_none())
        .filter_map(|matched| {
            Some((matched, states.get(&matched.table.oid).filter(|state| state.is_followed())?))
        })
        .collect();
    if copied.is_empty() {
        return Ok(changes);
    }
    let oids: Vec<u32> = copied.iter().map(|(matched, _)| matched.table.oid).collect();
    let mut shapes = read(client, &oids).await?;
    for (matched, state) in copied {
        let Some(now) = shapes.remove(&state.oid).map(|shape| of_rule(shape, matched)) else { continue };
        let why = match &state.shape {
            Some(before) if *before == now => continue,
            Some(before) => why(client, matched, before, &now).await?,
            // Copied by a version that did not look.
            None => None,
        };
        let is_again = why.is_some() && pipeline.replica.is_some();
        let table = matched.table.display_name();
        match why {
            Some(why) if is_again => changes.again.push((table, why)),
            Some(why) => tracing::warn!(
                table,
                remedy = format!("walgate resync --pipeline {} {table}", pipeline.short_name()),
                "{why}, which is not in the WAL: consumers have not heard of it"
            ),
            None => {}
        }
        let state = if is_again { state.undone() } else { state.clone() };
        changes.states.push(TableState { shape: Some(now), ..state });
    }
    Ok(changes)
}

/// The shape of a table that is copied, as far as the rule takes it, with only these files.
///
/// # Errors
/// As the connection.
pub async fn of(client: &Client, matched: &MatchedTable, files: &[u32]) -> Result<Option<Shape>> {
    let mut shape = read(client, &[matched.table.oid]).await?.remove(&matched.table.oid);
    if let Some(shape) = &mut shape {
        shape.files.retain(|oid, _| files.contains(oid));
    }
    Ok(shape.map(|shape| of_rule(shape, matched)))
}

/// Without the columns that the rule leaves out.
fn of_rule(mut shape: Shape, matched: &MatchedTable) -> Shape {
    let MatchedTable { table, rule, .. } = matched;
    let is_sent = |name: &String| rule.columns.takes(name) || table.primary_key.contains(name);
    shape.columns.retain(|_, column| is_sent(&column.name));
    shape
}

async fn read(client: &Client, oids: &[u32]) -> Result<BTreeMap<u32, Shape>> {
    let mut shapes: BTreeMap<u32, Shape> = BTreeMap::new();
    for row in client.query(FILES, &[&oids]).await.map_err(classify)? {
        shapes.entry(row.get(0)).or_default().files.insert(row.get(1), row.get(2));
    }
    for row in client.query(COLUMNS, &[&oids]).await.map_err(classify)? {
        let column = ShapeColumn {
            name: row.get(2),
            type_oid: row.get(3),
            defined_by: row.get(4),
            has_missing: row.get(5),
        };
        shapes.entry(row.get(0)).or_default().columns.insert(row.get(1), column);
    }
    Ok(shapes)
}

/// Why its rows may be others than those that were copied and streamed.
async fn why(client: &Client, matched: &MatchedTable, before: &Shape, now: &Shape) -> Result<Option<String>> {
    if let Some(why) = of_columns(before, now) {
        return Ok(Some(why));
    }
    if !matched.table.is_partitioned {
        return Ok(is_rewritten(before, now).then(|| "ALTER TABLE has rewritten it".to_owned()));
    }
    if before.files.keys().any(|leaf| !now.files.contains_key(leaf)) {
        return Ok(Some("a partition has gone".to_owned()));
    }
    for (leaf, file) in &now.files {
        match before.files.get(leaf) {
            Some(known) if known != file => {
                return Ok(Some("a partition has another file: it was emptied, or rewritten".to_owned()));
            }
            Some(_) => {}
            None if came_with_rows(client, *leaf).await? => {
                return Ok(Some("a partition came with rows".to_owned()));
            }
            None => {}
        }
    }
    Ok(None)
}

fn of_columns(before: &Shape, now: &Shape) -> Option<String> {
    now.columns.iter().find_map(|(number, column)| {
        let name = &column.name;
        match before.columns.get(number) {
            None if column.has_missing => {
                Some(format!("the column \"{name}\" came with a value for the rows of before"))
            }
            Some(known) if known.name != *name => {
                Some(format!("the column \"{}\" is \"{name}\" now", known.name))
            }
            Some(known) if known.type_oid != column.type_oid => {
                Some(format!("the column \"{name}\" has another type"))
            }
            _ => None,
        }
    })
}

/// Another file alone is what TRUNCATE gives it, which is in the WAL, or VACUUM FULL, which changes nothing. A rewrite
/// that changes values changes a column's definition as well.
fn is_rewritten(before: &Shape, now: &Shape) -> bool {
    let is_redefined = |(number, column): (&i16, &ShapeColumn)| {
        before.columns.get(number).is_none_or(|known| known.defined_by != column.defined_by)
    };
    before.files != now.files && now.columns.iter().any(is_redefined)
}

/// Whether a partition has rows from before it was one: those of after are in the WAL as the root's.
async fn came_with_rows(client: &Client, leaf: u32) -> Result<bool> {
    let Some(row) = client.query_opt(NAME, &[&leaf]).await.map_err(classify)? else { return Ok(false) };
    let query = format!(
        "SELECT EXISTS (SELECT FROM ONLY {} AS l WHERE pg_catalog.age(l.xmin) >= \
         (SELECT min(pg_catalog.age(i.xmin)) FROM pg_catalog.pg_inherits i \
          WHERE i.inhrelid IN (SELECT p.relid FROM pg_catalog.pg_partition_ancestors($1::oid::regclass) p)))",
        quote_qualified(row.get(0), row.get(1))
    );
    match client.query_one(&query, &[&leaf]).await.map_err(classify) {
        // Dropped meanwhile, or not for us to read: the copy finds out.
        Err(error) if error.is_definite() => Ok(true),
        answered => Ok(answered?.get(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(file: u32, columns: &[(i16, &str, i64, bool)]) -> Shape {
        let column = |&(number, name, defined_by, has_missing): &(i16, &str, i64, bool)| {
            (number, ShapeColumn { name: name.to_owned(), type_oid: 23, defined_by, has_missing })
        };
        Shape { files: BTreeMap::from([(1, file)]), columns: columns.iter().map(column).collect() }
    }

    #[test]
    fn what_is_in_the_wal_is_no_change() {
        let before = shape(10, &[(1, "id", 5, false), (2, "n", 5, false)]);
        let is_changed = |now: &Shape| of_columns(&before, now).is_some() || is_rewritten(&before, now);
        for (is_one, now) in [
            // TRUNCATE; a default that is set; a column without one; one that goes.
            (false, shape(11, &[(1, "id", 5, false), (2, "n", 5, false)])),
            (false, shape(10, &[(1, "id", 5, false), (2, "n", 6, false)])),
            (false, shape(10, &[(1, "id", 5, false), (2, "n", 5, false), (3, "x", 6, false)])),
            (false, shape(10, &[(1, "id", 5, false)])),
            // ALTER TYPE USING; ADD COLUMN with a default, constant or volatile; another name.
            (true, shape(11, &[(1, "id", 5, false), (2, "n", 6, false)])),
            (true, shape(10, &[(1, "id", 5, false), (2, "n", 5, false), (3, "x", 6, true)])),
            (true, shape(11, &[(1, "id", 5, false), (2, "n", 5, false), (3, "x", 6, false)])),
            (true, shape(10, &[(1, "id", 5, false), (2, "m", 6, false)])),
        ] {
            assert_eq!(is_changed(&now), is_one, "{now:?}");
        }
    }
}
