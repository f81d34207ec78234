//! Values that are not in the WAL, from the source.
//!
//! Comes in: rows with [`Cell::Unchanged`] that the replica does not have. Goes out: the same rows with the values that
//! the source has now, found by key, one query for many; `None` where the row is gone there, because its delete or key
//! change is still to come. Such a value may be newer than its row; later changes converge (EXACTLY_ONCE.md, "What
//! exactly-once does not say"). The connection is made when it is first needed.

use tokio_postgres::SimpleQueryMessage;

use super::params::Cells;
use super::table::{Table, equalities};
use crate::error::{Error, Result};
use crate::route::row::Cell;
use crate::wal::client::{Client, classify, connect};
use crate::wal::sql::{quote_ident, quote_literal, quote_qualified};
use crate::wal::sqlstate::sqlstate_of;
use crate::wal::url::ConnectUrl;

const NAME: &str = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";

/// No such operator.
const UNDEFINED_FUNCTION: &str = "42883";

/// The source, for look-ups.
pub(super) struct Source {
    url: ConnectUrl,
    application_name: String,
    client: Option<Client>,
}

impl Source {
    pub fn new(url: ConnectUrl, application_name: String) -> Self {
        Source { url, application_name, client: None }
    }

    /// Fills what is unchanged in `rows`; where each begins now.
    pub async fn fill(
        &mut self,
        cells: &mut Cells<'_>,
        table: &Table,
        rows: &[usize],
    ) -> Result<Vec<Option<usize>>> {
        let width = table.width();
        let is_wanted =
            |at: &usize| rows.iter().any(|row| cells.row(*row, width).get(*at) == Some(&Cell::Unchanged));
        let wanted: Vec<usize> = (0..width).filter(is_wanted).collect();
        if wanted.is_empty() {
            return Ok(rows.iter().copied().map(Some).collect());
        }
        let relation = &table.target.relation;
        let doing = |error: Error| {
            error.context(format_args!("fetching unchanged values of {relation} from the source"))
        };
        if table.target.key.is_empty() {
            return Err(Error::definite(format!(
                "{relation}: an unchanged value is not known, and there is no key to fetch it by"
            ))
            .with_hint("ALTER TABLE ... REPLICA IDENTITY FULL on the source, or give the rule a key"));
        }
        self.fetch(cells, table, rows, &wanted).await.map_err(doing)
    }

    async fn fetch(
        &mut self,
        cells: &mut Cells<'_>,
        table: &Table,
        rows: &[usize],
        wanted: &[usize],
    ) -> Result<Vec<Option<usize>>> {
        let client = match &mut self.client {
            // One that the source has closed meanwhile is no failure.
            Some(client) if !client.is_closed() => client,
            place => place.insert(connect(&self.url, &self.application_name).await?),
        };
        let mut filled = vec![None; rows.len()];
        let Some(name) = client.query_opt(NAME, &[&table.target.oid]).await.map_err(classify)? else {
            return Ok(filled);
        };
        let name = quote_qualified(name.get(0), name.get(1));
        let target = &table.target;
        let types: Vec<u32> = target
            .key
            .iter()
            .filter_map(|at| target.columns.get(*at))
            .map(|column| column.type_oid)
            .collect();
        let operators = equalities(client, &types).await?;
        // Not by parameters: only so every value comes in its type's own text form, as in the stream.
        let by_value = query(cells, table, &name, rows, wanted, Some(&operators));
        let found = match client.simple_query(&by_value).await.map_err(classify) {
            // The type has no equality, or not for us to find: it has a text, which is that of the stream.
            Err(error) if sqlstate_of(&error) == Some(UNDEFINED_FUNCTION) => {
                let by_text = query(cells, table, &name, rows, wanted, None);
                client.simple_query(&by_text).await.map_err(classify)
            }
            found => found,
        };
        for message in found? {
            let SimpleQueryMessage::Row(found) = message else { continue };
            let number = found.get(0).and_then(|number| number.parse::<usize>().ok()).unwrap_or_default();
            let Some((row, place)) =
                number.checked_sub(1).and_then(|at| rows.get(at).zip(filled.get_mut(at)))
            else {
                continue;
            };
            let values: Vec<(usize, Option<&[u8]>)> = wanted
                .iter()
                .enumerate()
                .map(|(column, at)| (*at, found.get(column + 1).map(str::as_bytes)))
                .collect();
            *place = Some(cells.fill(*row, table.width(), &values));
        }
        Ok(filled)
    }
}

/// Compares keys by the types' operators for equality, or by their texts.
fn query(
    cells: &Cells<'_>,
    table: &Table,
    name: &str,
    rows: &[usize],
    wanted: &[usize],
    operators: Option<&[String]>,
) -> String {
    let target = &table.target;
    let column = |at: &usize| target.columns.get(*at).expect("an index of the target's columns");
    let values = wanted.iter().map(|at| format!(", t.{}", quote_ident(&column(at).name)));
    let arrays: Vec<String> = target
        .key
        .iter()
        .map(|at| {
            let keys = rows.iter().map(|row| {
                let text = cells.row(*row, table.width()).get(*at).and_then(|cell| cells.text(cell));
                text.map_or_else(|| "NULL".into(), |text| quote_literal(&String::from_utf8_lossy(text)))
            });
            format!("ARRAY[{}]::text[]", keys.collect::<Vec<_>>().join(", "))
        })
        .collect();
    let names: Vec<String> = (0..target.key.len()).map(|number| format!("c{number}")).collect();
    let equal = target.key.iter().enumerate().map(|(number, at)| {
        let column = column(at);
        let name = quote_ident(&column.name);
        let Some(operators) = operators else {
            return format!("t.{name}::text COLLATE \"C\" OPERATOR(pg_catalog.=) u.c{number}");
        };
        let operator = operators.get(number).map_or("=", String::as_str);
        let (schema, of_type) = &column.type_name;
        format!("t.{name} {operator} u.c{number}::{}", quote_qualified(schema, of_type))
    });
    format!(
        "SELECT u.number{} FROM unnest({}) WITH ORDINALITY AS u ({}, number) JOIN {name} AS t ON {}",
        values.collect::<String>(),
        arrays.join(", "),
        names.join(", "),
        equal.collect::<Vec<_>>().join(" AND ")
    )
}
