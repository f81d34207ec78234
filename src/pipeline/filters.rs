//! What filters need of the source: facts about types before they are compiled, the server's word that an expression is
//! immutable, and its answers for rows whose filter only it can evaluate.
//!
//! Always holds: whether an expression may be a filter is decided by PostgreSQL, which accepts the same ones for the
//! predicate of an index: boolean, immutable, without sub-queries. What a table's rows are asked about is asked in one
//! statement for each filter and batch. DESIGN section 3, "where".

use std::collections::HashMap;

use tokio_postgres::{Statement, Transaction};

use super::tables::{MatchedTable, all_of};
use crate::error::{Error, Fault, Result};
use crate::route::batch::Batch;
use crate::route::filter::{EnumLabels, Filter};
use crate::route::undecided::Question;
use crate::route::value::TypeCatalog;
use crate::wal::client::{Client, classify};
use crate::wal::sqlstate::{INSUFFICIENT_PRIVILEGE, sqlstate_of};

const REMEDY: &str = "use only the row's own columns, constants, and operators and functions that are immutable: no sub-queries, no now() or random(), no casts that depend on settings";

/// The check makes a temporary table.
const TEMPORARY_REMEDY: &str =
    "PostgreSQL is asked with a temporary table: GRANT TEMPORARY ON DATABASE ... TO the role of source.url";
const FAILS_REMEDY: &str = "write where so that it holds for every row, for instance with CASE or NULLIF, or correct the row; nothing past the last whole transaction was confirmed";

/// Asks the source, and keeps what it has prepared.
#[derive(Default)]
pub struct Asker {
    statements: HashMap<String, Statement>,
}

impl Asker {
    /// Answers for every row of every question of the batch.
    ///
    /// # Errors
    /// As the connection; definite, naming table and key: the filter fails for a row.
    pub async fn answers(&mut self, client: &mut Client, batch: &Batch) -> Result<Vec<Vec<Option<bool>>>> {
        let mut answers = Vec::new();
        for (number, question) in batch.undecided.questions().iter().enumerate() {
            let mut transaction = begin(client, &question.filter.filter).await?;
            let statement = self.statement(&transaction, question).await?;
            let point = transaction.savepoint("asked").await.map_err(classify)?;
            let all = ask(&point, &statement, batch, question, 0..question.rows).await;
            answers.push(match all {
                Err(error) if error.is_definite() => {
                    point.rollback().await.map_err(classify)?;
                    let blamed = blame(&mut transaction, &statement, batch, number, error).await;
                    return Err(blamed.of_table(question.oid, &question.relation, Fault::Rows));
                }
                answered => answered?,
            });
        }
        Ok(answers)
    }

    async fn statement(&mut self, client: &Transaction<'_>, question: &Question) -> Result<Statement> {
        let text = question.filter.filter.server_statement();
        if let Some(known) = self.statements.get(&text) {
            return Ok(known.clone());
        }
        let statement = client.prepare(&text).await.map_err(|error| {
            classify(error).context(format_args!("the filter of table {}", question.relation))
        })?;
        self.statements.insert(text, statement.clone());
        Ok(statement)
    }
}

/// A transaction in which names and operators mean what the filter needs.
pub(super) async fn begin<'c>(client: &'c mut Client, filter: &Filter) -> Result<Transaction<'c>> {
    let transaction = client.transaction().await.map_err(classify)?;
    transaction
        .batch_execute(&format!("SET LOCAL search_path = {}", filter.search_path()))
        .await
        .map_err(classify)?;
    Ok(transaction)
}

/// Names the row for which a filter fails.
async fn blame(
    transaction: &mut Transaction<'_>,
    statement: &Statement,
    batch: &Batch,
    number: usize,
    error: Error,
) -> Error {
    let Some(question) = batch.undecided.questions().get(number) else { return error };
    for row in 0..question.rows {
        let Ok(point) = transaction.savepoint("row").await else { return error };
        let Err(of_row) = ask(&point, statement, batch, question, row..row + 1).await else { continue };
        let key = batch.undecided.key_of(number, row, batch).unwrap_or_default();
        return of_row
            .context(format_args!(
                "table {}, key {key}: the filter {} fails for this row",
                question.relation,
                question.filter.filter.sql()
            ))
            .with_hint(FAILS_REMEDY);
    }
    error
}

async fn ask(
    client: &Transaction<'_>,
    statement: &Statement,
    batch: &Batch,
    question: &Question,
    rows: std::ops::Range<usize>,
) -> Result<Vec<Option<bool>>> {
    let width = question.filter.filter.columns().len();
    if width == 0 {
        // It depends on no column: how many rows there are is all that it is told.
        let none: Vec<Option<&str>> = vec![None; rows.len()];
        let answered = client.query(statement, &[&none]).await.map_err(classify)?;
        return answered.iter().map(|row| row.try_get(0).map_err(classify)).collect();
    }
    let mut columns: Vec<Vec<Option<&str>>> = vec![Vec::with_capacity(rows.len()); width];
    for row in rows.clone() {
        for (nth, column) in columns.iter_mut().enumerate() {
            let value = question.values.get(row * width + nth).expect("a value for each column");
            column.push(match value {
                Some(range) => Some(std::str::from_utf8(batch.part(range)).map_err(|error| {
                    Error::definite(format!("table {}: a filter's column is not UTF-8", question.relation))
                        .with_source(error)
                })?),
                None => None,
            });
        }
    }
    let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
        columns.iter().map(|column| column as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
    let answered = client.query(statement, &parameters).await.map_err(classify)?;
    if answered.len() != rows.len() {
        return Err(Error::transient("the source did not answer for every row of a filter"));
    }
    answered.iter().map(|row| row.try_get(0).map_err(classify)).collect()
}

/// Asks PostgreSQL whether the filters of `taken` may be filters.
///
/// # Errors
/// Definite, all that it refuses at once; as the connection.
pub async fn refuse(
    client: &mut Client,
    types: &TypeCatalog,
    enums: &EnumLabels,
    taken: &[MatchedTable],
) -> Result<()> {
    let mut faults = Vec::new();
    for matched in taken {
        let (oid, name) = (matched.table.oid, matched.table.display_name());
        let fault = compiled(client, types, enums, matched).await?.and_then(Result::err);
        faults.extend(fault.map(|error| error.of_table(oid, &name, Fault::Rows)));
    }
    if faults.is_empty() { Ok(()) } else { Err(all_of(faults)) }
}

/// A table's filter, compiled, if Walgate and PostgreSQL take it; else why they do not. `None`: it has none.
///
/// # Errors
/// As the connection.
pub async fn compiled(
    client: &mut Client,
    types: &TypeCatalog,
    enums: &EnumLabels,
    matched: &MatchedTable,
) -> Result<Option<Result<Filter>>> {
    let Some(text) = &matched.rule.filter else { return Ok(None) };
    let place = format!("table {}, {}.where", matched.table.display_name(), matched.rule.key_path);
    let filter = match Filter::compile(text, &matched.table.relation(), types, enums, &matched.facts) {
        Ok(filter) => filter,
        Err(error) => return Ok(Some(Err(Error::from(error).context(place)))),
    };
    let transaction = begin(client, &filter).await?;
    for statement in filter.immutability_check() {
        if let Err(error) = transaction.batch_execute(&statement).await {
            let is_answer = error.as_db_error().is_some();
            let error = classify(error);
            let may_not = sqlstate_of(&error) == Some(INSUFFICIENT_PRIVILEGE);
            return match is_answer && error.is_definite() {
                true if may_not => Ok(Some(Err(error.context(place).with_hint(TEMPORARY_REMEDY)))),
                true => Ok(Some(Err(error.context(place).with_hint(REMEDY)))),
                false => Err(error),
            };
        }
    }
    transaction.rollback().await.map_err(classify)?;
    Ok(Some(Ok(filter)))
}
