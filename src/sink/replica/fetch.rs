//! Values that are not in the WAL, from the source.
//!
//! Comes in: rows with [`Cell::Unchanged`] that the replica does not have. Goes out: the same rows with the values that
//! the source has now, found by key, one query for many; `None` where the row is gone there, because its delete or key
//! change is still to come. Such a value may be newer than its row; later changes converge (EXACTLY_ONCE.md, "What
//! exactly-once does not say"). A column that is gone there has no value any more; that it went is still to come in the
//! stream, and whoever needs one decides what that means. The connection is made when it is first needed.

use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::params::Cells;
use super::table::{Table, equalities};
use crate::error::{Error, Result};
use crate::route::decision::Decision;
use crate::route::row::Cell;
use crate::wal::client::{Client, classify, connect};
use crate::wal::sql::{quote_ident, quote_literal, quote_qualified};
use crate::wal::sqlstate::sqlstate_of;
use crate::wal::url::ConnectUrl;

/// The table $1 and its columns, as they are named now.
const TABLE: &str = "SELECT n.nspname::text, c.relname::text, ARRAY(SELECT a.attname::text \
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";

/// No such operator.
const UNDEFINED_FUNCTION: &str = "42883";
/// No such column, table, schema.
const UNDEFINED: [&str; 3] = ["42703", "42P01", "3F000"];

/// The source, for look-ups.
pub(super) struct Source {
    url: ConnectUrl,
    application_name: String,
    client: Option<Client>,
}

/// What a look-up found.
pub(super) struct Found {
    /// For each row that was looked for.
    rows: Vec<Option<SimpleQueryRow>>,
    /// Columns that the source has no longer: a later change of the stream will say so.
    pub gone: Vec<String>,
}

impl Found {
    fn nothing(rows: usize) -> Self {
        Found { rows: (0..rows).map(|_| None).collect(), gone: Vec::new() }
    }

    /// The values of the columns that were asked for, in their order; `None`: there is no such row.
    pub fn values(&self, row: usize) -> Option<Vec<Option<&[u8]>>> {
        let found = self.rows.get(row)?.as_ref()?;
        Some((1..found.len()).map(|at| found.get(at).map(str::as_bytes)).collect())
    }
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
        let name = |at: &usize| table.target.columns.get(*at).map_or("", |column| column.name.as_str());
        let names: Vec<&str> = wanted.iter().map(name).collect();
        let found = self.read(cells, table, rows, &names).await?;
        if !found.gone.is_empty() {
            // At rest the source's table is without them, so whatever is there in their place is right.
            tracing::warn!(
                table = table.target.relation,
                columns = found.gone.join(", "),
                "values of columns that the source has no longer become NULL on the replica; where a column got another name, walgate resync copies it"
            );
        }
        let filled = rows.iter().enumerate().map(|(number, row)| {
            let values: Vec<_> = wanted.iter().copied().zip(found.values(number)?).collect();
            Some(cells.fill(*row, width, &values))
        });
        Ok(filled.collect())
    }

    /// Reads columns of the rows with these keys. A column that is gone is NULL.
    ///
    /// # Errors
    /// As the connection; definite: there is no key, or the source does not have its columns any more.
    pub async fn read(
        &mut self,
        cells: &Cells<'_>,
        table: &Table,
        rows: &[usize],
        columns: &[&str],
    ) -> Result<Found> {
        let relation = &table.target.relation;
        if table.target.key.is_empty() {
            return Err(Error::definite(format!(
                "{relation}: an unchanged value is not known, and there is no key to fetch it by"
            ))
            .with_hint("ALTER TABLE ... REPLICA IDENTITY FULL on the source, or give the rule a key"));
        }
        let doing = |error: Error| {
            error.context(format_args!("fetching unchanged values of {relation} from the source"))
        };
        self.look_up(cells, table, rows, columns).await.map_err(doing)
    }

    async fn look_up(
        &mut self,
        cells: &Cells<'_>,
        table: &Table,
        rows: &[usize],
        columns: &[&str],
    ) -> Result<Found> {
        let client = self.client().await?;
        let target = &table.target;
        let Some(row) = client.query_opt(TABLE, &[&target.oid]).await.map_err(classify)? else {
            return Ok(Found::nothing(rows.len()));
        };
        let name = quote_qualified(row.get(0), row.get(1));
        let present: Vec<&str> = row.get(2);
        let types: Vec<u32> = target
            .key
            .iter()
            .filter_map(|at| target.columns.get(*at))
            .map(|column| column.type_oid)
            .collect();
        let operators = equalities(client, &types).await?;
        let mut key = Vec::with_capacity(target.key.len());
        for (at, equals) in target.key.iter().zip(operators) {
            let column = target.columns.get(*at).expect("an index of the target's columns");
            if !present.contains(&column.name.as_str()) {
                return Err(lost_key(&column.name, &name));
            }
            let (schema, of_type) = &column.type_name;
            let by_value = Some((equals, quote_qualified(schema, of_type)));
            key.push(KeyColumn { at: *at, name: quote_ident(&column.name), by_value });
        }
        let is_present = |column: &str| present.contains(&column);
        let wanted = columns.iter().map(|column| is_present(column).then(|| quote_ident(column))).collect();
        let gone = columns.iter().filter(|column| !is_present(column)).map(|column| (*column).to_owned());
        let mut query = Query { table: name, key, wanted };
        let found = match query.run(client, cells, table.width(), rows).await {
            // The type has no equality, or not for us to find: it has a text, which is that of the stream.
            Err(error) if sqlstate_of(&error) == Some(UNDEFINED_FUNCTION) => {
                query.key.iter_mut().for_each(|column| column.by_value = None);
                query.run(client, cells, table.width(), rows).await
            }
            found => found,
        };
        match found {
            // It was changed since its columns were read: the next attempt finds it as it is.
            Err(error) if sqlstate_of(&error).is_some_and(|code| UNDEFINED.contains(&code)) => {
                Err(Error::transient("the table was changed meanwhile").with_source(error))
            }
            found => Ok(Found { gone: gone.collect(), ..found? }),
        }
    }

    /// Has PostgreSQL evaluate a filter over rows, each with the values of the filter's columns.
    ///
    /// # Errors
    /// As the connection; the server's where the filter fails for a row.
    pub async fn evaluate(
        &mut self,
        decision: &Decision,
        rows: &[Vec<Option<String>>],
    ) -> Result<Vec<Option<bool>>> {
        let client = self.client().await?;
        let filter = &decision.filter.filter;
        let transaction = client.transaction().await.map_err(classify)?;
        let search_path = format!("SET LOCAL search_path = {}", filter.search_path());
        transaction.batch_execute(&search_path).await.map_err(classify)?;
        // A filter on no column is told how many rows there are by an array all the same.
        let arrays: Vec<Vec<Option<&str>>> = (0..filter.columns().len().max(1))
            .map(|at| rows.iter().map(|row| row.get(at).and_then(Option::as_deref)).collect())
            .collect();
        let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            arrays.iter().map(|array| array as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
        let answered = transaction.query(&filter.server_statement(), &parameters).await.map_err(classify)?;
        transaction.rollback().await.map_err(classify)?;
        if answered.len() != rows.len() {
            return Err(Error::transient("the source did not answer for every row of a filter"));
        }
        answered.iter().map(|row| row.try_get(0).map_err(classify)).collect()
    }

    async fn client(&mut self) -> Result<&mut Client> {
        match &mut self.client {
            // One that the source has closed meanwhile is no failure.
            Some(client) if !client.is_closed() => {}
            place => *place = Some(connect(&self.url, &self.application_name).await?),
        }
        Ok(self.client.as_mut().expect("there was one, or it was made"))
    }
}

fn lost_key(column: &str, table: &str) -> Error {
    Error::definite(format!("the key's column \"{column}\" is not in {table} any more")).with_hint(format!(
        "if it has another name now: ALTER TABLE {table} RENAME COLUMN ... TO {}, until the pipeline has passed this change; else drop the pipeline and start anew with a copy",
        quote_ident(column)
    ))
}

/// Rows to be found by their keys, on the source or on the replica.
pub(super) struct Query {
    /// The quoted name.
    pub table: String,
    /// The columns of the key.
    pub key: Vec<KeyColumn>,
    /// The quoted names of the columns to be read; `None`: NULL in its place.
    pub wanted: Vec<Option<String>>,
}

/// A column of a key.
pub(super) struct KeyColumn {
    /// Its cell in a row.
    pub at: usize,
    /// Its quoted name.
    pub name: String,
    /// Its type's operator for equality, and the type; `None`: texts are compared.
    pub by_value: Option<(String, String)>,
}

impl Query {
    /// Asks; what was found for each of `rows`.
    pub async fn run(
        &self,
        client: &Client,
        cells: &Cells<'_>,
        width: usize,
        rows: &[usize],
    ) -> Result<Found> {
        // Not by parameters: only so every value comes in its type's own text form, as in the stream.
        let answered = client.simple_query(&self.sql(cells, width, rows)).await.map_err(classify)?;
        let mut found = Found::nothing(rows.len());
        for message in answered {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let number = row.get(0).and_then(|number| number.parse::<usize>().ok()).unwrap_or_default();
            if let Some(place) = number.checked_sub(1).and_then(|at| found.rows.get_mut(at)) {
                *place = Some(row);
            }
        }
        Ok(found)
    }

    fn sql(&self, cells: &Cells<'_>, width: usize, rows: &[usize]) -> String {
        let values = self.wanted.iter().map(|column| match column {
            Some(name) => format!(", t.{name}"),
            None => ", NULL".to_owned(),
        });
        let array = |column: &KeyColumn| {
            let keys = rows.iter().map(|row| {
                let text = cells.row(*row, width).get(column.at).and_then(|cell| cells.text(cell));
                text.map_or_else(|| "NULL".into(), |text| quote_literal(&String::from_utf8_lossy(text)))
            });
            format!("ARRAY[{}]::text[]", keys.collect::<Vec<_>>().join(", "))
        };
        let arrays: Vec<String> = self.key.iter().map(array).collect();
        let names: Vec<String> = (0..self.key.len()).map(|number| format!("c{number}")).collect();
        let equal = self.key.iter().enumerate().map(|(number, column)| {
            let name = &column.name;
            match &column.by_value {
                Some((equals, of_type)) => format!("t.{name} {equals} u.c{number}::{of_type}"),
                None => format!("t.{name}::text COLLATE \"C\" OPERATOR(pg_catalog.=) u.c{number}"),
            }
        });
        format!(
            "SELECT u.number{} FROM unnest({}) WITH ORDINALITY AS u ({}, number) JOIN {} AS t ON {}",
            values.collect::<String>(),
            arrays.join(", "),
            names.join(", "),
            self.table,
            equal.collect::<Vec<_>>().join(" AND ")
        )
    }
}
