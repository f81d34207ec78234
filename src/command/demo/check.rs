//! Do the events add up to the source's tables? Read by SQL, compared value by value.
//!
//! In: the fold of the events, the source at rest, what the workload committed. Out: a [`Comparison`] per table.
//! Always: PostgreSQL itself prints what the events should hold (DESIGN section 4, `docs/types.md`), with its own
//! JSON functions; nothing of Walgate's encoding is used to judge it.

use std::collections::{BTreeMap, HashMap};

use serde_json::value::RawValue;

use super::consumer::{Fold, Row, Table};
use super::workload::Committed;
use crate::error::{Error, Result};
use crate::wal::client::{Client, classify};

/// The tables that the events are about: all of the schema `public`, and their key.
const TABLES: &str = "
SELECT c.oid, c.relname,
       (SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = c.oid AND i.indisprimary)
FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' ORDER BY c.relname";
/// Per column its name in SQL, its name as a literal, and its type.
const COLUMNS: &str = "
SELECT quote_ident(attname), quote_literal(attname), atttypid::regtype::text
FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
const COUNT_OF: &str = "SELECT count(*) FROM ";
const EXAMPLES_MAX: usize = 3;
const EXAMPLE_CHARS_MAX: usize = 200;

/// One table, compared.
#[derive(Debug)]
pub struct Comparison {
    /// `public.orders`
    pub table: String,
    /// Rows of the source.
    pub rows: usize,
    /// Whether it is compared as a multiset, for want of a key.
    pub is_keyless: bool,
    /// Events by operation.
    pub ops: BTreeMap<String, u64>,
    /// How many rows differ, are missing or are too many, and how many operations are counted differently.
    pub differences: usize,
    /// The first few of them.
    pub examples: Vec<String>,
}

/// A table of the source.
#[derive(Clone, Debug)]
pub struct SourceTable {
    oid: u32,
    /// `public.orders`
    pub name: String,
    /// Its primary key's column.
    pub key: Option<String>,
}

/// All tables.
///
/// # Errors
/// As the connection.
pub async fn tables(client: &Client) -> Result<Vec<SourceTable>> {
    let rows = client.query(TABLES, &[]).await.map_err(classify)?;
    let table = |row: &tokio_postgres::Row| SourceTable {
        oid: row.get(0),
        name: format!("public.{}", row.get::<_, String>(1)),
        key: row.get(2),
    };
    Ok(rows.iter().map(table).collect())
}

/// Rows of a table.
///
/// # Errors
/// As the connection.
pub async fn count(client: &Client, table: &SourceTable) -> Result<u64> {
    let row = client.query_one(&format!("{COUNT_OF}{}", table.name), &[]).await.map_err(classify)?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
}

/// Compares one table: its rows, and how many events of each operation there must be. `rows_at_first` is the
/// number of rows that the copy found.
///
/// # Errors
/// As the connection.
pub async fn compare(
    client: &Client,
    table: &SourceTable,
    fold: &Fold,
    committed: &Committed,
    rows_at_first: u64,
) -> Result<Comparison> {
    let nothing = Table::default();
    let found = fold.tables.get(&table.name).unwrap_or(&nothing);
    let expected = source_rows(client, table).await?;
    let rows = expected.len();
    let mut differences = match table.key {
        Some(_) => differing_rows(expected, &found.rows),
        None => differing_multisets(expected, &found.keyless),
    };
    let ops: BTreeMap<String, u64> =
        found.ops.iter().filter(|(_, count)| **count > 0).map(|(op, count)| (op.clone(), *count)).collect();
    let mut expected_ops: BTreeMap<String, u64> = committed
        .changes
        .iter()
        .filter(|((name, _), count)| *name == table.name && **count > 0)
        .map(|((_, op), count)| ((*op).to_owned(), *count))
        .collect();
    if rows_at_first > 0 {
        expected_ops.insert("read".to_owned(), rows_at_first);
    }
    if ops != expected_ops {
        differences.push(format!("committed were {expected_ops:?}, the events are {ops:?}"));
    }
    let examples = differences.iter().take(EXAMPLES_MAX).cloned().collect();
    Ok(Comparison {
        table: table.name.clone(),
        rows,
        is_keyless: table.key.is_none(),
        ops,
        differences: differences.len(),
        examples,
    })
}

/// The rows as events should carry them, by the key's text.
async fn source_rows(client: &Client, table: &SourceTable) -> Result<Vec<(Option<String>, Row)>> {
    let columns = client.query(COLUMNS, &[&table.oid]).await.map_err(classify)?;
    let pairs: Vec<String> = columns
        .iter()
        .map(|row| {
            let (column, literal, type_name): (String, String, String) = (row.get(0), row.get(1), row.get(2));
            format!("{literal}, {}", form(&column, &type_name))
        })
        .collect();
    let key = table.key.as_ref().map_or_else(|| "NULL".to_owned(), |key| format!("{key}::text"));
    let sql = format!("SELECT {key}, json_build_object({})::text FROM {}", pairs.join(", "), table.name);
    let rows = client.query(&sql, &[]).await.map_err(classify)?;
    rows.iter()
        .map(|row| {
            let values: BTreeMap<String, &RawValue> = serde_json::from_str(row.get(1))
                .map_err(|error| Error::definite("PostgreSQL's JSON cannot be read").with_source(error))?;
            let values = values.into_iter().map(|(column, value)| (column, value.get().into())).collect();
            Ok((row.get(0), values))
        })
        .collect()
}

/// SQL for a column's value in an event: where the documented form is not that of PostgreSQL's `to_json`.
fn form(column: &str, type_name: &str) -> String {
    match type_name {
        "numeric" => format!("to_json({column}::text)"),
        "timestamp with time zone" => {
            format!("to_json(replace(replace({column}::text, ' ', 'T'), '+00', 'Z'))")
        }
        "timestamp without time zone" => format!("to_json(replace({column}::text, ' ', 'T'))"),
        "bytea" => format!("to_json(translate(encode({column}, 'base64'), E'\\n', ''))"),
        _ => format!("to_json({column})"),
    }
}

fn differing_rows(expected: Vec<(Option<String>, Row)>, found: &HashMap<String, Row>) -> Vec<String> {
    let mut differences = Vec::new();
    let mut seen = 0;
    for (key, row) in expected {
        let key = key.unwrap_or_default();
        match found.get(&key) {
            Some(same) if *same == row => seen += 1,
            Some(other) => {
                seen += 1;
                differences.push(shortened(format!("{key}: {}", differing_column(&row, other))));
            }
            None => differences.push(format!("{key}: missing from the events")),
        }
    }
    let extra = found.len().saturating_sub(seen);
    differences.extend((0..extra).map(|_| "a row of the events that the source does not have".to_owned()));
    differences
}

fn differing_column(expected: &Row, found: &Row) -> String {
    let all = expected.keys().chain(found.keys());
    let column = all.into_iter().find(|column| expected.get(*column) != found.get(*column));
    let text =
        |row: &Row| column.and_then(|column| row.get(column)).map_or("absent".into(), |text| text.clone());
    format!("{} is {} in the source, {} in the events", column.map_or("", |c| c), text(expected), text(found))
}

fn differing_multisets(expected: Vec<(Option<String>, Row)>, found: &BTreeMap<Row, i64>) -> Vec<String> {
    let mut counts: BTreeMap<Row, i64> = BTreeMap::new();
    for (_, row) in expected {
        *counts.entry(row).or_default() += 1;
    }
    for (row, count) in found {
        *counts.entry(row.clone()).or_default() -= count;
    }
    counts.retain(|_, count| *count != 0);
    let line = |(row, count): (&Row, &i64)| {
        let side = if *count > 0 { "the source" } else { "the events" };
        shortened(format!("{} time(s) only in {side}: {row:?}", count.abs()))
    };
    counts.iter().map(line).collect()
}

fn shortened(text: String) -> String {
    text.chars().take(EXAMPLE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(a: &str) -> Row {
        Row::from([("a".to_owned(), a.into())])
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let found = HashMap::from([("1".to_owned(), row("1")), ("2".to_owned(), row("2"))]);
        let key = |text: &str| Some(text.to_owned());
        assert!(differing_rows(vec![(key("1"), row("1")), (key("2"), row("2"))], &found).is_empty());
        assert_eq!(differing_rows(vec![(key("1"), row("1")), (key("2"), row("3"))], &found).len(), 1);
        assert_eq!(differing_rows(vec![(key("1"), row("1"))], &found).len(), 1, "too many");
        let missing = vec![(key("1"), row("1")), (key("2"), row("2")), (key("3"), row("3"))];
        assert_eq!(differing_rows(missing, &found).len(), 1, "missing");
    }

    #[test]
    fn rows_without_key_are_counted() {
        let found = BTreeMap::from([(row("1"), 2)]);
        let times = |count: usize| vec![(None, row("1")); count];
        assert!(differing_multisets(times(2), &found).is_empty());
        assert_eq!(differing_multisets(times(1), &found).len(), 1);
        assert_eq!(differing_multisets(times(3), &found).len(), 1);
    }
}
