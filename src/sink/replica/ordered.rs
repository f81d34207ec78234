//! One change at a time, in the order of the source.
//!
//! Comes in: changes. Goes out: their rows, or what the conflict policy says. Always holds: a row that the replica lacks is
//! never made with a NULL in place of an unchanged value; a row that a trigger there refuses is not taken for a missing one;
//! a change that the replica refuses is an error that names table and key.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio_postgres::types::ToSql;

use super::apply::{Applier, Prepared, Trouble, is_about_data};
use super::conflict::{Conflict, ConflictKind};
use super::decide::together;
use super::params::{Cells, Text};
use super::plan::mask_of;
use super::statements::{Kind, Mask, Of};
use super::table::Table;
use crate::config::OnConflict;
use crate::error::{Error, Result};
use crate::route::row::{Cell, RowChange, RowOp};
use crate::wal::client::{Client, classify};

/// A change, and where it goes.
pub(super) struct At<'c> {
    pub change: &'c RowChange,
    pub table: Arc<Table>,
}

impl At<'_> {
    fn index(&self) -> usize {
        self.change.target.index()
    }

    /// `public.orders, key (id) = (5)`, with the cells of `row`.
    pub fn described(&self, cells: &Cells<'_>, row: usize) -> String {
        let target = &self.table.target;
        if target.key.is_empty() {
            return target.relation.clone();
        }
        let row = cells.row(row, self.table.width());
        let name = |at: &usize| target.columns.get(*at).map_or("", |column| column.name.as_str());
        let text = |at: &usize| match row.get(*at).and_then(|cell| cells.text(cell)) {
            Some(text) => String::from_utf8_lossy(text).into_owned(),
            None => "NULL".to_owned(),
        };
        let names: Vec<&str> = target.key.iter().map(name).collect();
        let texts: Vec<String> = target.key.iter().map(text).collect();
        format!("{}, key ({}) = ({})", target.relation, names.join(", "), texts.join(", "))
    }

    /// The key as JSON; without one, the whole row.
    fn key_json(&self, cells: &Cells<'_>, row: usize) -> String {
        let target = &self.table.target;
        let row = cells.row(row, self.table.width());
        let all: Vec<usize> = (0..target.columns.len()).collect();
        let columns = if target.key.is_empty() { &all } else { &target.key };
        let member = |at: &usize| {
            let text = row.get(*at).and_then(|cell| cells.text(cell));
            let value = text.map_or(serde_json::Value::Null, |text| String::from_utf8_lossy(text).into());
            Some((target.columns.get(*at)?.name.clone(), value))
        };
        serde_json::Value::Object(columns.iter().filter_map(member).collect()).to_string()
    }
}

/// A change in its turn.
pub(super) struct Turn<'t, 'b> {
    pub client: &'t Client,
    pub cells: &'t mut Cells<'b>,
    pub at: At<'t>,
}

/// The one statement that a change is when the replica has what it should have.
struct Expected {
    kind: Kind,
    old: usize,
    new: usize,
    /// It touches a row, or there is more to do.
    touches: bool,
}

impl Applier {
    /// Applies changes of rows without waiting for the answers in between. What is not one statement, or need not touch
    /// its row, is applied alone.
    pub(super) async fn rows_ahead(
        &mut self,
        client: &Client,
        cells: &mut Cells<'_>,
        changes: &[&RowChange],
    ) -> Result<(), Trouble> {
        let mut ahead = Vec::with_capacity(changes.len());
        let mut rest = changes;
        while let Some((change, after)) = rest.split_first() {
            let at = At { change, table: self.table(change.target.index()) };
            if let RowOp::Decide(decision) = &change.op
                && !at.table.target.key.is_empty()
            {
                send(client, cells, &ahead).await?;
                ahead.clear();
                let (run, later) = rest.split_at(together(&at.table, cells, rest));
                self.decide(client, cells, decision, run).await?;
                rest = later;
                continue;
            }
            rest = after;
            let expected = self.expected(cells, &at);
            match expected.map_err(|error| Trouble::from(error).of(&at.table))? {
                Some(expected) => {
                    let mask = mask_for(expected.kind, cells.row(expected.new, at.table.width()));
                    let prepared = self.prepared(client, at.index(), expected.kind, mask).await;
                    let prepared = prepared.map_err(|error| Trouble::from(error).of(&at.table))?;
                    ahead.push((at, expected, prepared));
                }
                None => {
                    send(client, cells, &ahead).await?;
                    ahead.clear();
                    let applied = self.row(client, cells, change).await;
                    applied.map_err(|trouble| trouble.of(&at.table))?;
                }
            }
        }
        send(client, cells, &ahead).await
    }

    fn expected(&self, cells: &mut Cells<'_>, at: &At<'_>) -> Result<Option<Expected>> {
        let (change, table) = (at.change, &at.table);
        let (old, new) = (change.old.start, change.new.start);
        let has_old = !change.old.is_empty();
        let has_key = !table.target.key.is_empty();
        if table.has_row_triggers || (!has_key && !has_old && change.op != RowOp::Insert) {
            return Ok(None);
        }
        if has_key {
            self.expect_key(at, cells, if has_old { old } else { new })?;
        }
        let is_always =
            |column: &usize| table.columns.get(*column).is_some_and(|column| column.is_identity_always);
        let is_whole = |row| !cells.row(row, table.width()).contains(&Cell::Unchanged);
        Ok(match change.op {
            RowOp::Insert if !has_key => {
                Some(Expected { kind: Kind::InsertRow, old: new, new, touches: true })
            }
            RowOp::Insert if change.is_certain && is_whole(new) => {
                Some(Expected { kind: Kind::InsertRow, old: new, new, touches: true })
            }
            RowOp::Update if has_key && !has_old && change.is_certain => {
                Some(Expected { kind: Kind::UpdateRow, old: new, new, touches: true })
            }
            RowOp::Insert | RowOp::Upsert | RowOp::Update
                if has_key && !has_old && table.has_arbiter && is_whole(new) =>
            {
                Some(Expected { kind: Kind::UpsertRow, old: new, new, touches: false })
            }
            RowOp::Update if has_key && has_old && !table.target.key.iter().any(is_always) => {
                let new = cells.merge(old, new, table.width());
                self.expect_key(at, cells, new)?;
                if table.target.is_filtered && cells.row(new, table.width()).contains(&Cell::Unchanged) {
                    return Ok(None);
                }
                Some(Expected { kind: Kind::RekeyRow, old, new, touches: true })
            }
            RowOp::Update if !has_key => {
                let new = cells.merge(old, new, table.width());
                Some(Expected { kind: Kind::UpdateOne, old, new, touches: true })
            }
            RowOp::Delete => {
                let kind = if has_key { Kind::DeleteRow } else { Kind::DeleteOne };
                Some(Expected { kind, old, new: old, touches: change.is_certain })
            }
            _ => None,
        })
    }

    /// Applies one change of a row.
    pub(super) async fn row(
        &mut self,
        client: &Client,
        cells: &mut Cells<'_>,
        change: &RowChange,
    ) -> Result<(), Trouble> {
        let (old, new) = (change.old.start, change.new.start);
        let at = At { change, table: self.table(change.target.index()) };
        let has_key = !at.table.target.key.is_empty();
        let turn = &mut Turn { client, cells, at };
        if !has_key {
            return self.keyless(turn).await;
        }
        let has_old = !change.old.is_empty();
        let identity = if has_old { old } else { new };
        self.expect_key(&turn.at, turn.cells, identity)?;
        match &change.op {
            RowOp::Insert if change.is_certain => self.insert(turn, new).await,
            RowOp::Insert | RowOp::Upsert => self.put(turn, new).await,
            RowOp::Update if has_old => self.rekey(turn, old, new).await,
            RowOp::Update => self.update(turn, new).await,
            RowOp::Delete => self.delete(turn, old).await,
            RowOp::Decide(decision) => self.decide(turn.client, turn.cells, decision, &[change]).await,
            RowOp::Truncate { .. } | RowOp::Clear | RowOp::ClearRange { .. } => Ok(()),
        }
    }

    pub(super) fn expect_key(&self, at: &At<'_>, cells: &Cells<'_>, row: usize) -> Result<()> {
        let is_text =
            |column: &usize| matches!(cells.row(row, at.table.width()).get(*column), Some(Cell::Text(_)));
        if at.table.target.key.iter().all(is_text) {
            return Ok(());
        }
        Err(Error::definite(format!(
            "{}: a column of the key is NULL or was not sent (replica {}, LSN {})",
            at.table.target.relation, self.replica, at.change.position.commit_lsn
        ))
        .with_hint(
            "name a key without NULLs in the rule, and let the replica identity on the source cover it",
        ))
    }

    /// A row that cannot be there.
    async fn insert(&mut self, turn: &mut Turn<'_, '_>, new: usize) -> Result<(), Trouble> {
        let Some(new) = self.filled(turn, new).await? else { return Ok(()) };
        if self.run(turn, Kind::InsertRow, new, new).await? > 0 {
            return Ok(());
        }
        let Some(row) = self.replica_row(turn, new).await? else { return Ok(()) };
        match self.conflict(turn, ConflictKind::InsertExists, new, Some(row))? {
            OnConflict::Apply => self.run(turn, Kind::UpdateRow, new, new).await.map(drop),
            OnConflict::Skip | OnConflict::Error => Ok(()),
        }
    }

    /// A row that must be there, with this key.
    async fn update(&mut self, turn: &mut Turn<'_, '_>, new: usize) -> Result<(), Trouble> {
        if self.run(turn, Kind::UpdateRow, new, new).await? > 0 {
            return Ok(());
        }
        if turn.at.table.has_row_triggers && self.replica_row(turn, new).await?.is_some() {
            return Ok(());
        }
        self.update_missing(turn, new, new).await
    }

    /// The row that `old` identifies is not there to become `new`.
    async fn update_missing(
        &mut self,
        turn: &mut Turn<'_, '_>,
        old: usize,
        new: usize,
    ) -> Result<(), Trouble> {
        let is_conflict = turn.at.change.is_certain;
        if is_conflict && self.conflict(turn, ConflictKind::UpdateMissing, old, None)? != OnConflict::Apply {
            return Ok(());
        }
        self.put(turn, new).await
    }

    /// A row that should be there, whether or not it is.
    pub(super) async fn put(&mut self, turn: &mut Turn<'_, '_>, new: usize) -> Result<(), Trouble> {
        if self.run(turn, Kind::UpdateRow, new, new).await? > 0 {
            return Ok(());
        }
        let Some(new) = self.filled(turn, new).await? else { return Ok(()) };
        self.run(turn, Kind::InsertRow, new, new).await.map(drop)
    }

    pub(super) async fn delete(&mut self, turn: &mut Turn<'_, '_>, old: usize) -> Result<(), Trouble> {
        let is_done = self.run(turn, Kind::DeleteRow, old, old).await? > 0;
        if is_done || !turn.at.change.is_certain {
            return Ok(());
        }
        if turn.at.table.has_row_triggers && self.replica_row(turn, old).await?.is_some() {
            return Ok(());
        }
        self.conflict(turn, ConflictKind::DeleteMissing, old, None)?;
        Ok(())
    }

    /// A row gets another key.
    pub(super) async fn rekey(
        &mut self,
        turn: &mut Turn<'_, '_>,
        old: usize,
        new: usize,
    ) -> Result<(), Trouble> {
        // Of the old row more may be known than its key.
        let mut new = turn.cells.merge(old, new, turn.at.table.width());
        self.expect_key(&turn.at, turn.cells, new)?;
        if turn.at.table.target.is_filtered
            && let Some(filled) = self.filled(turn, new).await?
        {
            // The replica's row may have entered with values that were fetched when another row had its key on the
            // source. Both rows then still had to change their keys: here is where the values are set right.
            new = filled;
        }
        let is_always = |column: &usize| {
            turn.at.table.columns.get(*column).is_some_and(|column| column.is_identity_always)
        };
        if turn.at.table.target.key.iter().any(is_always) {
            let filled = self.filled(turn, new).await?;
            self.run(turn, Kind::DeleteRow, old, old).await?;
            return match filled {
                Some(new) => self.put(turn, new).await,
                None => Ok(()),
            };
        }
        if self.run(turn, Kind::RekeyRow, old, new).await? > 0 {
            return Ok(());
        }
        if self.replica_row(turn, old).await?.is_none() {
            // What the replica has under the new key is not the row whose values did not change.
            let Some(new) = self.filled(turn, new).await? else { return Ok(()) };
            return self.update_missing(turn, old, new).await;
        }
        let Some(row) = self.replica_row(turn, new).await? else { return Ok(()) };
        let policy = self.conflict(turn, ConflictKind::InsertExists, new, Some(row))?;
        self.run(turn, Kind::DeleteRow, old, old).await?;
        match policy {
            OnConflict::Apply => match self.filled(turn, new).await? {
                Some(new) => self.put(turn, new).await,
                None => Ok(()),
            },
            OnConflict::Skip | OnConflict::Error => Ok(()),
        }
    }

    /// A change of a table whose rows only their whole old row identifies.
    async fn keyless(&mut self, turn: &mut Turn<'_, '_>) -> Result<(), Trouble> {
        let change = turn.at.change;
        let (old, new) = (change.old.start, change.new.start);
        if change.old.is_empty() {
            if matches!(change.op, RowOp::Update | RowOp::Delete | RowOp::Decide(_)) {
                return Err(Trouble::Failed(
                    Error::definite(format!(
                        "{}: an old row was not sent, and there is no key",
                        turn.at.table.target.relation
                    ))
                    .with_hint(
                        "ALTER TABLE ... REPLICA IDENTITY FULL on the source, or give it a primary key",
                    ),
                ));
            }
            return self.run(turn, Kind::InsertRow, new, new).await.map(drop);
        }
        if change.op == RowOp::Delete {
            let is_done = self.run(turn, Kind::DeleteOne, old, old).await? > 0;
            if !is_done && change.is_certain && !turn.at.table.has_row_triggers {
                self.conflict(turn, ConflictKind::DeleteMissing, old, None)?;
            }
            return Ok(());
        }
        let new = turn.cells.merge(old, new, turn.at.table.width());
        let is_done = self.run(turn, Kind::UpdateOne, old, new).await? > 0;
        if is_done || turn.at.table.has_row_triggers {
            return Ok(());
        }
        if change.is_certain
            && self.conflict(turn, ConflictKind::UpdateMissing, old, None)? != OnConflict::Apply
        {
            return Ok(());
        }
        self.run(turn, Kind::InsertRow, new, new).await.map(drop)
    }

    /// The row with all its values; `None`: the source has it no longer.
    async fn filled(&mut self, turn: &mut Turn<'_, '_>, row: usize) -> Result<Option<usize>> {
        if !turn.cells.row(row, turn.at.table.width()).contains(&Cell::Unchanged) {
            return Ok(Some(row));
        }
        Ok(self.source.fill(turn.cells, &turn.at.table, &[row]).await?.first().copied().flatten())
    }

    /// The row that the replica has under the key of `row`, as JSON.
    async fn replica_row(&mut self, turn: &Turn<'_, '_>, row: usize) -> Result<Option<String>> {
        let prepared = self.prepared(turn.client, turn.at.index(), Kind::SelectRow, Mask::new()).await?;
        let texts = texts(turn.cells, &turn.at, &prepared.parameters, row, row);
        let found =
            turn.client.query_opt(&prepared.statement, &as_parameters(&texts)).await.map_err(classify)?;
        Ok(found.map(|row| row.get(0)))
    }

    /// Notes a conflict; what is to be done.
    fn conflict(
        &mut self,
        turn: &Turn<'_, '_>,
        kind: ConflictKind,
        row: usize,
        replica_row: Option<String>,
    ) -> Result<OnConflict> {
        let policy = self.conflicts.policy();
        if policy == OnConflict::Error {
            let what = match kind {
                ConflictKind::InsertExists => "a row that the source inserted is already there",
                ConflictKind::UpdateMissing => "a row that the source updated is not there",
                ConflictKind::DeleteMissing => "a row that the source deleted is not there",
            };
            return Err(Error::definite(format!(
                "conflict {} on the replica {}: {what}: {} (LSN {})",
                kind.name(),
                self.replica,
                turn.at.described(turn.cells, row),
                turn.at.change.position.commit_lsn
            ))
            .with_hint("make the replica's row what it was on the source, or set on_conflict = \"apply\""));
        }
        self.conflicts.enter(Conflict {
            relation: turn.at.table.target.relation.clone(),
            kind,
            key: turn.at.key_json(turn.cells, row),
            position: turn.at.change.position,
            replica_row,
        });
        Ok(policy)
    }

    /// Runs a statement for one row; how many it touched.
    async fn run(&mut self, turn: &Turn<'_, '_>, kind: Kind, old: usize, new: usize) -> Result<u64, Trouble> {
        let mask = mask_for(kind, turn.cells.row(new, turn.at.table.width()));
        let prepared = self.prepared(turn.client, turn.at.index(), kind, mask).await?;
        let texts = texts(turn.cells, &turn.at, &prepared.parameters, old, new);
        match turn.client.execute(&prepared.statement, &as_parameters(&texts)).await {
            Ok(count) => Ok(count),
            Err(error) => Err(self.refused(turn, if kind == Kind::RekeyRow { new } else { old }, error)),
        }
    }

    /// Why the replica does not take a row.
    fn refused(&self, turn: &Turn<'_, '_>, row: usize, error: tokio_postgres::Error) -> Trouble {
        let Some(answer) = error.as_db_error().filter(|answer| is_about_data(answer.code().code())) else {
            return Trouble::Failed(classify(error));
        };
        let column = answer.column().map_or_else(String::new, |column| format!(", column {column}"));
        let constraint =
            answer.constraint().map_or_else(String::new, |constraint| format!(", constraint {constraint}"));
        let name = &turn.at.table.name;
        let hint = match answer.code().code() {
            "23505" | "23P01" => format!(
                "another row of {name} has the value: delete it if it does not come from the source; if the source's constraint is DEFERRABLE, make this one so too, else drop it"
            ),
            "23502" => format!("ALTER TABLE {name} ALTER COLUMN ... DROP NOT NULL, or exclude what fills it with NULL"),
            "23503" => "GRANT SET ON PARAMETER session_replication_role TO the replica's role (PostgreSQL 15), replicate the other table too, or drop the foreign key".to_owned(),
            "23514" => format!("drop the check of {name}, or filter such rows out in the rule"),
            "P0001" => format!("a trigger of {name} refuses the row: mend or disable it"),
            _ => format!("ALTER TABLE {name} ALTER COLUMN ... TYPE, so that it takes what the source has"),
        };
        let message = format!(
            "the replica {} refuses a row of {}{column}{constraint} (LSN {})",
            self.replica,
            turn.at.described(turn.cells, row),
            turn.at.change.position.commit_lsn
        );
        Trouble::Again(Error::definite(message).with_source(classify(error)).with_hint(hint))
    }
}

/// Which columns a statement of this kind leaves alone.
fn mask_for(kind: Kind, new: &[Cell]) -> Mask {
    match kind {
        Kind::UpdateRow | Kind::RekeyRow | Kind::UpdateOne => mask_of(new),
        _ => Mask::new(),
    }
}

/// Runs statements for one row each, one behind the other; every one must touch what it should.
async fn send(
    client: &Client,
    cells: &Cells<'_>,
    ahead: &[(At<'_>, Expected, Arc<Prepared>)],
) -> Result<(), Trouble> {
    let running = ahead.iter().map(|(at, expected, prepared)| async move {
        let texts = texts(cells, at, &prepared.parameters, expected.old, expected.new);
        client.execute(&prepared.statement, &as_parameters(&texts)).await
    });
    // The first error is the cause of the others.
    for (count, (at, expected, _)) in join_all(running).await.into_iter().zip(ahead) {
        let count = count.map_err(|error| Trouble::from(error).of(&at.table))?;
        if count == 0 && expected.touches {
            return Err(Trouble::Again(Error::transient(format!(
                "a row of {} is not as it should be",
                at.table.target.relation
            ))));
        }
    }
    Ok(())
}

fn texts<'c>(cells: &'c Cells<'_>, at: &At<'_>, parameters: &[Of], old: usize, new: usize) -> Vec<Text<'c>> {
    let width = at.table.width();
    let text = |row: usize, at: usize| Text(cells.row(row, width).get(at).and_then(|cell| cells.text(cell)));
    parameters
        .iter()
        .map(|of| match *of {
            Of::Old(at) => text(old, at),
            Of::New(at) => text(new, at),
        })
        .collect()
}

fn as_parameters<'c>(texts: &'c [Text<'_>]) -> Vec<&'c (dyn ToSql + Sync)> {
    texts.iter().map(|text| text as &(dyn ToSql + Sync)).collect()
}
