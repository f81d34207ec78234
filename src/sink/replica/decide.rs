//! Changes whose side of the filter the stream does not tell, in their turn.
//!
//! Comes in: such changes, when all before them were applied. Goes out: of each a row that should be there, or one that
//! goes. Always holds: what was not sent is what the replica's own row has, for that is what the change found; where that
//! row is not there, or does not have the column as the source does, or its key changes, it is what the source has now,
//! found by key. A row that is gone there does not pass: its delete or key change is still to come. Nothing is decided by a
//! NULL in place of a value. What the source says may be newer than the change, or another row's that has the key by now;
//! then a later change says the value too, or changes the key, and it is decided again.

use std::collections::HashSet;

use super::apply::{Applier, Trouble};
use super::fetch::{KeyColumn, Query};
use super::ordered::{At, Turn};
use super::params::Cells;
use super::table::Table;
use crate::error::{Error, Result};
use crate::route::decision::Decision;
use crate::route::filter::{Evaluator, Verdict};
use crate::route::row::{Cell, RowChange};
use crate::wal::client::Client;
use crate::wal::pgoutput::Value;
use crate::wal::sql::{quote_ident, quote_qualified};

/// So many are decided at a time: all their values are in memory, and they are large.
const TOGETHER_MAX: usize = 16;

/// The values of a filter's columns.
type Values = Vec<Option<String>>;

/// A change that is not decided yet.
struct Open<'c> {
    at: At<'c>,
    /// The row as far as it is known: the target's cells, and those of the filter's other columns.
    row: usize,
    /// The replica has it.
    is_there: bool,
    /// The source has it no longer.
    is_gone: bool,
}

impl Open<'_> {
    /// Where the cells of the key begin that the row had.
    fn identity(&self) -> usize {
        let change = self.at.change;
        if change.old.is_empty() { change.new.start } else { change.old.start }
    }
}

/// How many of `changes`, from the first on, can be decided at once: changes of one table and of different rows.
pub(super) fn together(table: &Table, cells: &Cells<'_>, changes: &[&RowChange]) -> usize {
    let Some(first) = changes.first() else { return 0 };
    let mut keys = HashSet::new();
    let is_next = |change: &&&RowChange| {
        let row = cells.row(change.new.start, table.width());
        let key = table.target.key.iter().map(|at| row.get(*at).and_then(|cell| cells.text(cell)));
        change.target == first.target
            && change.op == first.op
            && change.old.is_empty()
            && keys.insert(key.collect::<Vec<_>>())
    };
    changes.iter().take(TOGETHER_MAX).take_while(is_next).count().max(1)
}

impl Applier {
    /// Decides and applies changes that are [`together`].
    pub(super) async fn decide(
        &mut self,
        client: &Client,
        cells: &mut Cells<'_>,
        decision: &Decision,
        changes: &[&RowChange],
    ) -> Result<(), Trouble> {
        let before = cells.added();
        let mut open = Vec::with_capacity(changes.len());
        for change in changes {
            let at = At { change, table: self.table(change.target.index()) };
            let one = Open { at, row: change.new.start, is_there: false, is_gone: false };
            self.expect_key(&one.at, cells, one.identity())?;
            self.expect_key(&one.at, cells, change.new.start)?;
            open.push(one);
        }
        self.find_out(client, cells, decision, &mut open).await?;
        let passing = self.judge_rows(cells, decision, &open).await?;
        for (one, passes) in open.into_iter().zip(passing) {
            let (change, identity) = (one.at.change, one.identity());
            // What the replica has stays as it is there.
            let new = if one.is_there { change.new.start } else { one.row };
            let turn = &mut Turn { client, cells, at: one.at };
            match passes {
                false => self.delete(turn, identity).await?,
                true if change.old.is_empty() => self.put(turn, new).await?,
                true => self.rekey(turn, change.old.start, new).await?,
            }
        }
        cells.take_back(before);
        Ok(())
    }

    /// Finds out what was not sent, as far as anybody knows it.
    async fn find_out(
        &mut self,
        client: &Client,
        cells: &mut Cells<'_>,
        decision: &Decision,
        open: &mut [Open<'_>],
    ) -> Result<()> {
        if open.iter().all(|one| one.at.change.old.is_empty()) {
            take_own(client, cells, decision, open).await?;
            return self.take_from_source(cells, decision, open).await;
        }
        // Where the key changes, the other way round: see `rekey`.
        self.take_from_source(cells, decision, open).await?;
        if open.iter().any(|one| one.is_gone) {
            take_own(client, cells, decision, open).await?;
        }
        for one in open {
            let width = one.at.table.width() + decision.others.len();
            one.is_gone = decision.places.iter().any(|at| is_missing(cells, one.row, width, *at));
        }
        Ok(())
    }

    /// Fills in what is still missing, from the source: of a row that the replica has, what the filter needs, of others
    /// everything.
    async fn take_from_source(
        &mut self,
        cells: &mut Cells<'_>,
        decision: &Decision,
        open: &mut [Open<'_>],
    ) -> Result<()> {
        let Some(table) = open.first().map(|one| one.at.table.clone()) else { return Ok(()) };
        let width = table.width() + decision.others.len();
        let mut asked: Vec<&mut Open<'_>> = open
            .iter_mut()
            .filter(|one| decision.places.iter().any(|at| is_missing(cells, one.row, width, *at)))
            .collect();
        let is_wanted = |at: &usize| {
            let is_used = decision.places.contains(at);
            asked.iter().any(|one| is_missing(cells, one.row, width, *at) && (is_used || !one.is_there))
        };
        let wanted: Vec<usize> = (0..width).filter(is_wanted).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = wanted.iter().map(|at| name_of(&table, decision, *at)).collect();
        let rows: Vec<usize> = asked.iter().map(|one| one.at.change.new.start).collect();
        let found = self.source.read(cells, &table, &rows, &names).await?;
        refuse_gone(&table, decision, &found.gone)?;
        for (number, one) in asked.iter_mut().enumerate() {
            match found.values(number) {
                None => one.is_gone = true,
                Some(values) => {
                    let values: Vec<_> = wanted.iter().copied().zip(values).collect();
                    one.row = cells.fill(one.row, width, &values);
                }
            }
        }
        Ok(())
    }

    /// Which of them pass.
    async fn judge_rows(
        &mut self,
        cells: &Cells<'_>,
        decision: &Decision,
        open: &[Open<'_>],
    ) -> Result<Vec<bool>> {
        let present: Vec<&Open<'_>> = open.iter().filter(|one| !one.is_gone).collect();
        let values = present.iter().map(|one| {
            let row = cells.row(one.row, one.at.table.width() + decision.others.len());
            let text = |at: &usize| row.get(*at).and_then(|cell| cells.text(cell));
            decision.places.iter().map(|at| text(at).map(as_text)).collect()
        });
        let verdicts = self.verdicts(decision, &values.collect::<Vec<Values>>()).await?;
        let mut verdicts = present.iter().zip(verdicts);
        let mut passing = Vec::with_capacity(open.len());
        for one in open {
            if one.is_gone {
                passing.push(false);
                continue;
            }
            passing.push(match verdicts.next() {
                Some((_, Ok(passes))) => passes,
                Some((one, Err(error))) => self.judge_as_it_is(cells, decision, one, error).await?,
                None => return Err(Error::transient("a filter was not evaluated for every row")),
            });
        }
        Ok(passing)
    }

    /// The filter fails for a row with values from different times: such a row may never have been. What it is now was.
    async fn judge_as_it_is(
        &mut self,
        cells: &Cells<'_>,
        decision: &Decision,
        one: &Open<'_>,
        error: Error,
    ) -> Result<bool> {
        let (table, row) = (&one.at.table, one.at.change.new.start);
        let named = |error: Error| {
            let described = one.at.described(cells, row);
            error.context(format_args!("{described} (LSN {})", one.at.change.position.commit_lsn))
        };
        if decision.places.is_empty() {
            return Err(named(error));
        }
        let names: Vec<&str> = decision.places.iter().map(|at| name_of(table, decision, *at)).collect();
        let found = self.source.read(cells, table, &[row], &names).await?;
        refuse_gone(table, decision, &found.gone)?;
        let Some(values) = found.values(0) else { return Ok(false) };
        let values: Values = values.into_iter().map(|value| value.map(as_text)).collect();
        match self.verdicts(decision, &[values]).await?.pop() {
            Some(verdict) => verdict.map_err(named),
            None => Err(named(error)),
        }
    }

    /// For each row whether it passes, or why the filter fails for it.
    async fn verdicts(&mut self, decision: &Decision, rows: &[Values]) -> Result<Vec<Result<bool>>> {
        match decision.filter.filter.evaluator() {
            Evaluator::Own => Ok(rows.iter().map(|row| own_verdict(decision, row)).collect()),
            Evaluator::Server => self.server_verdicts(decision, rows).await,
        }
    }

    async fn server_verdicts(&mut self, decision: &Decision, rows: &[Values]) -> Result<Vec<Result<bool>>> {
        let failed = match self.source.evaluate(decision, rows).await {
            Ok(answers) => return Ok(answers.into_iter().map(|answer| Ok(answer == Some(true))).collect()),
            Err(error) if error.is_definite() => error,
            Err(error) => return Err(error),
        };
        let refused =
            |error: Error| error.context(format_args!("the filter {} fails", decision.filter.filter.sql()));
        if rows.len() == 1 {
            return Ok(vec![Err(refused(failed))]);
        }
        let mut verdicts = Vec::with_capacity(rows.len());
        for row in rows {
            verdicts.push(match self.source.evaluate(decision, std::slice::from_ref(row)).await {
                Ok(answers) => Ok(answers.first() == Some(&Some(true))),
                Err(error) if error.is_definite() => Err(refused(error)),
                Err(error) => return Err(error),
            });
        }
        Ok(verdicts)
    }
}

/// Fills in what the replica's own rows have.
async fn take_own(
    client: &Client,
    cells: &mut Cells<'_>,
    decision: &Decision,
    open: &mut [Open<'_>],
) -> Result<()> {
    let Some(table) = open.first().map(|one| one.at.table.clone()) else { return Ok(()) };
    let width = table.width() + decision.others.len();
    let is_wanted = |at: &usize| {
        is_as_on_the_source(&table, *at) && open.iter().any(|one| is_missing(cells, one.row, width, *at))
    };
    let wanted: Vec<usize> = decision.places.iter().copied().filter(is_wanted).collect();
    let column = |at: &usize| table.columns.get(*at).expect("one for each column of the target");
    let key = |at: &usize| KeyColumn {
        at: *at,
        name: column(at).name.clone(),
        by_value: Some((column(at).equals.clone(), column(at).cast.clone())),
    };
    let query = Query {
        table: table.name.clone(),
        key: table.target.key.iter().map(key).collect(),
        wanted: wanted.iter().map(|at| Some(column(at).name.clone())).collect(),
    };
    let rows: Vec<usize> = open.iter().map(Open::identity).collect();
    let found = query.run(client, cells, table.width(), &rows).await?;
    for (number, one) in open.iter_mut().enumerate() {
        let Some(values) = found.values(number) else { continue };
        one.is_there = true;
        let values: Vec<_> = wanted.iter().copied().zip(values).collect();
        one.row = cells.fill(one.row, width, &values);
    }
    Ok(())
}

/// Whether the replica has a column, and in it what the source sent, in the same text: not of another type, not computed,
/// and not what a trigger made of it.
fn is_as_on_the_source(table: &Table, at: usize) -> bool {
    let (Some(sent), Some(column)) = (table.target.columns.get(at), table.columns.get(at)) else {
        return false;
    };
    let (schema, of_type) = &sent.type_name;
    !column.is_generated && !table.has_row_triggers && column.cast == quote_qualified(schema, of_type)
}

fn is_missing(cells: &Cells<'_>, row: usize, width: usize, at: usize) -> bool {
    cells.row(row, width).get(at) == Some(&Cell::Unchanged)
}

fn name_of<'n>(table: &'n Table, decision: &'n Decision, at: usize) -> &'n str {
    let columns = &table.target.columns;
    let column = columns.get(at).or_else(|| decision.others.get(at - columns.len()));
    column.map_or("", |column| &column.name)
}

/// Text as the server sent it: UTF-8.
fn as_text(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

fn own_verdict(decision: &Decision, row: &Values) -> Result<bool> {
    let values = row.iter().map(|value| match value {
        Some(text) => Value::Text(text.as_bytes()),
        None => Value::Null,
    });
    let values: Vec<Value<'_>> = values.collect();
    match decision.evaluate(&values) {
        Ok(Verdict::Pass) => Ok(true),
        Ok(Verdict::Fail) => Ok(false),
        Ok(Verdict::Unknown(_)) => Err(Error::definite("a filter depends on a column that it does not use")),
        Err(error) => Err(decision.filter.refused(error)),
    }
}

/// What the filter says of a row without one of its columns nobody knows.
fn refuse_gone(table: &Table, decision: &Decision, gone: &[String]) -> Result<()> {
    let is_used =
        |name: &&String| decision.places.iter().any(|at| name_of(table, decision, *at) == name.as_str());
    match gone.iter().find(is_used) {
        None => Ok(()),
        Some(column) => Err(Error::definite(format!(
            "table {}: the filter depends on column {}, which the source has no longer, and a value of it was not sent",
            table.target.relation,
            quote_ident(column)
        ))
        .with_hint("write another `where` in the rule: the table is then copied again")),
    }
}
