//! From a part of a batch to statements: sets where order does not matter, rows where it does.
//!
//! Comes in: changes in the order of the source, inside of an open transaction. Goes out: rows. Always holds: after it,
//! the replica's tables are as if each change had been applied in its turn. Three paces, under a savepoint: sets; if they
//! meet what was not expected (a unique or exclusion violation, a value that a column refuses, a row that is missing), the
//! part is rolled back and applied row by row in order, without waiting for each answer; and if that does as well,
//! carefully, where every answer decides what comes next, and a culprit has a name.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use tokio_postgres::Statement;

use super::ReplicaSettings;
use super::conflict::Conflicts;
use super::fetch::Source;
use super::fold::{Entry, Fold};
use super::params::Cells;
use super::statements::{Kind, Mask, Of};
use super::table::Table;
use crate::error::{Error, Fault, Result};
use crate::route::batch::Batch;
use crate::route::row::{Cell, RowChange, RowOp, Target, Targets};
use crate::wal::client::{Client, classify};
use crate::wal::sql::quote_qualified;
use crate::wal::sqlstate::sqlstate_of;

/// How every transaction of rows begins.
pub(super) const BEGIN: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET CONSTRAINTS ALL DEFERRED; ";
/// The sequences that belong to columns of tables.
const SEQUENCES: &str = "SELECT DISTINCT n.nspname::text, s.relname::text \
    FROM pg_catalog.unnest($1::text[]) AS u (name) JOIN pg_catalog.pg_depend d \
    ON d.refobjid = u.name::pg_catalog.regclass AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
    AND d.classid = d.refclassid AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i') \
    JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
    JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace";
/// So many single rows are on their way at a time.
const AHEAD_ROWS_MAX: usize = 256;

/// Prepared statements take memory on the replica: with so many, all are given back.
const STATEMENTS_MAX: usize = 1000;

/// Why a step did not succeed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Row by row it may, or gives a better error.
    Again(Error),
    /// It never will in this transaction.
    Failed(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Failed(error)
    }
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code().map(|code| is_about_data(code.code())) {
            Some(true) => Trouble::Again(classify(error)),
            _ => Trouble::Failed(classify(error)),
        }
    }
}

impl Trouble {
    /// Says which table it is about.
    pub fn of(self, table: &Table) -> Self {
        let blamed = |error| table.target.blamed(error, Fault::Rows);
        match self {
            Trouble::Again(error) => Trouble::Again(blamed(error)),
            Trouble::Failed(error) => Trouble::Failed(blamed(error)),
        }
    }

    pub fn into_error(self) -> Error {
        let (Trouble::Again(error) | Trouble::Failed(error)) = self;
        error
    }
}

/// SQLSTATEs that speak of the rows: cardinality, data, integrity, triggered actions, WITH CHECK OPTION, RAISE.
pub(super) fn is_about_data(code: &str) -> bool {
    ["21", "22", "23", "27", "44", "P0"].iter().any(|class| code.starts_with(class))
}

/// SQLSTATEs that speak of tables, columns, types and indexes: a plan that does not fit any more, and all of class 42.
pub(super) fn is_about_definitions(code: &str) -> bool {
    code == "0A000" || code.starts_with("42")
}

/// A prepared statement, and what its parameters are.
pub(super) struct Prepared {
    pub statement: Statement,
    pub parameters: Vec<Of>,
}

/// How the changes of a part are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// As sets, where order does not matter.
    Sets,
    /// One by one, without waiting for each one's answer: every answer must be the expected one.
    Ahead,
    /// One by one, looking at each answer.
    Careful,
}

/// What is done next.
enum Step<'a> {
    Set(usize, Vec<Entry>),
    Row(&'a RowChange),
}

/// See the module.
pub(super) struct Applier {
    targets: Arc<Targets>,
    known: Vec<Arc<Target>>,
    tables: Vec<Option<Arc<Table>>>,
    statements: HashMap<(usize, Kind, Mask), Arc<Prepared>>,
    has_replica_role: bool,
    /// The open transaction has the savepoint of its last part.
    has_savepoint: bool,
    /// What is applied now is of one transaction of the source.
    pub(super) is_one_transaction: bool,
    pub(super) source: Source,
    pub(super) conflicts: Conflicts,
    pub(super) replica: String,
}

impl Applier {
    pub fn new(settings: &ReplicaSettings, targets: Arc<Targets>, has_replica_role: bool) -> Self {
        Applier {
            targets,
            known: Vec::new(),
            tables: Vec::new(),
            statements: HashMap::new(),
            has_replica_role,
            has_savepoint: false,
            is_one_transaction: false,
            source: Source::new(settings.source_url.clone(), settings.application_name.clone()),
            conflicts: Conflicts::new(settings.pipeline.clone(), settings.on_conflict),
            replica: settings.name.clone(),
        }
    }

    /// Applies these changes of the batch in the open transaction, or in one that `begins`. After an error there is no
    /// transaction to go on with.
    pub async fn apply(
        &mut self,
        client: &Client,
        batch: &Batch,
        range: Range<usize>,
        begins: bool,
    ) -> Result<()> {
        let changes = batch.rows.changes.get(range).expect("a part of the batch's changes");
        let transaction = |change: Option<&RowChange>| change.map(|change| change.position.commit_lsn);
        self.is_one_transaction = transaction(changes.first()) == transaction(changes.last());
        match self.apply_known(client, batch, changes, begins).await {
            Err(error) if sqlstate_of(&error).is_some_and(is_about_definitions) => {
                Err(self.judge(client, changes, error).await)
            }
            done => done,
        }
    }

    /// A statement does not fit to a table: if the table is not what it was when it was looked up, what is wrong with it
    /// now, or nothing, so that the next attempt goes by what it is. Else the error stands: it would come again.
    async fn judge(&mut self, client: &Client, changes: &[RowChange], error: Error) -> Error {
        let before = std::mem::take(&mut self.tables);
        self.tables.resize(before.len(), None);
        self.statements.clear();
        if client.batch_execute("ROLLBACK").await.is_err() {
            return error;
        }
        let now = match self.know(client, changes).await {
            Ok(now) => now,
            Err(found) => return found,
        };
        let has_changed = |(now, before): (&Option<Arc<Table>>, &Option<Arc<Table>>)| matches!((now, before), (Some(now), Some(before)) if now != before);
        if now.iter().zip(&before).any(has_changed) {
            return Error::transient(format!("a table was changed on the replica {}", self.replica))
                .with_source(error);
        }
        error
    }

    async fn apply_known(
        &mut self,
        client: &Client,
        batch: &Batch,
        changes: &[RowChange],
        begins: bool,
    ) -> Result<()> {
        let tables = self.know(client, changes).await?;
        let mut cells = Cells::new(&batch.bytes, &batch.rows.cells);
        let is_plain = changes.len() == 1 || changes.iter().all(is_barrier);
        let begin = if begins { BEGIN } else { "" };
        self.has_savepoint &= !begins;
        if is_plain {
            if begins {
                client.batch_execute(begin).await.map_err(classify)?;
            }
            let steps = changes.iter().map(Step::Row).collect();
            self.take(client, batch, &mut cells, steps, Pace::Careful).await.map_err(Trouble::into_error)?;
            return self.conflicts.write(client).await;
        }
        // The last part's savepoint goes now: alone, that would be a round trip more.
        let release = if self.has_savepoint { "RELEASE SAVEPOINT walgate; " } else { "" };
        let savepoint = format!("{begin}{release}SAVEPOINT walgate");
        client.batch_execute(&savepoint).await.map_err(classify)?;
        self.has_savepoint = true;
        for pace in [Pace::Sets, Pace::Ahead, Pace::Careful] {
            let steps = match pace {
                Pace::Sets => plan(&tables, &mut cells, changes),
                Pace::Ahead | Pace::Careful => changes.iter().map(Step::Row).collect(),
            };
            match self.take(client, batch, &mut cells, steps, pace).await {
                Ok(()) => break,
                Err(Trouble::Again(error)) if pace != Pace::Careful => {
                    tracing::debug!(replica = self.replica, ?pace, "rolled back: {}", error.chain());
                    client.batch_execute("ROLLBACK TO SAVEPOINT walgate").await.map_err(classify)?;
                    self.conflicts.roll_back();
                }
                Err(trouble) => return Err(trouble.into_error()),
            }
        }
        self.conflicts.write(client).await
    }

    /// The tables of these changes, by target; those that are new are looked up.
    async fn know(&mut self, client: &Client, changes: &[RowChange]) -> Result<Vec<Option<Arc<Table>>>> {
        let mut last = None;
        for change in changes {
            if let RowOp::Truncate { targets, .. } = &change.op {
                for target in targets {
                    self.look_up(client, target.index()).await?;
                }
            }
            if last != Some(change.target) {
                self.look_up(client, change.target.index()).await?;
                last = Some(change.target);
            }
        }
        Ok(self.tables.clone())
    }

    async fn look_up(&mut self, client: &Client, index: usize) -> Result<()> {
        if index >= self.known.len() {
            self.targets.refresh(&mut self.known);
            self.tables.resize(self.known.len(), None);
        }
        let place = self.tables.get_mut(index).expect("a target is interned before it is used");
        if place.is_none() {
            let target = self.known.get(index).expect("as many as tables").clone();
            let table = Table::look_up(client, target.clone(), self.has_replica_role).await;
            let table = table.map_err(|error| target.blamed(error, Fault::Definition))?;
            *place = Some(Arc::new(table));
        }
        Ok(())
    }

    /// What goes to this table of the replica.
    pub fn target(&self, schema: &str, name: &str) -> Option<&Target> {
        self.known.iter().map(Arc::as_ref).find(|target| target.schema == schema && target.name == name)
    }

    /// The table of a target that was looked up.
    pub(super) fn table(&self, index: usize) -> Arc<Table> {
        self.tables.get(index).cloned().flatten().expect("looked up before the first step")
    }

    async fn take(
        &mut self,
        client: &Client,
        batch: &Batch,
        cells: &mut Cells<'_>,
        steps: Vec<Step<'_>>,
        pace: Pace,
    ) -> Result<(), Trouble> {
        let mut steps = steps.into_iter().peekable();
        while let Some(step) = steps.next() {
            let change = match step {
                Step::Set(index, entries) => {
                    let set = self.set(client, cells, index, entries).await;
                    set.map_err(|trouble| trouble.of(&self.table(index)))?;
                    continue;
                }
                Step::Row(change) => change,
            };
            match &change.op {
                RowOp::Truncate { targets, restart_identity } => {
                    let indexes = targets.iter().map(|target| target.index());
                    let truncated = self.truncate(client, indexes.collect(), *restart_identity).await;
                    // Of several, none alone is to blame.
                    truncated.map_err(|trouble| match targets.as_slice() {
                        [target] => trouble.of(&self.table(target.index())),
                        _ => trouble,
                    })?;
                }
                RowOp::Clear => {
                    let table = self.table(change.target.index());
                    let cleared = client.batch_execute(&format!("DELETE FROM {}", table.name)).await;
                    let refused = |error| Trouble::Failed(refused_clear(&table, &self.replica, error));
                    cleared.map_err(|error| refused(error).of(&table))?;
                }
                RowOp::ClearRange { .. } => self.clear_range(client, batch, change).await?,
                RowOp::Insert | RowOp::Update | RowOp::Upsert | RowOp::Delete | RowOp::Decide(_)
                    if pace == Pace::Careful =>
                {
                    let applied = self.row(client, cells, change).await;
                    applied.map_err(|trouble| trouble.of(&self.table(change.target.index())))?;
                }
                RowOp::Insert | RowOp::Update | RowOp::Upsert | RowOp::Delete | RowOp::Decide(_) => {
                    let mut run = vec![change];
                    while run.len() < AHEAD_ROWS_MAX
                        && let Some(Step::Row(next)) =
                            steps.next_if(|step| matches!(step, Step::Row(next) if !is_barrier(next)))
                    {
                        run.push(next);
                    }
                    self.rows_ahead(client, cells, &run).await?;
                }
            }
        }
        Ok(())
    }

    async fn truncate(
        &mut self,
        client: &Client,
        indexes: Vec<usize>,
        restart_identity: bool,
    ) -> Result<(), Trouble> {
        let mut names: Vec<String> = indexes.iter().map(|index| self.table(*index).name.clone()).collect();
        names.sort();
        names.dedup();
        let identity = if restart_identity { "RESTART" } else { "CONTINUE" };
        let truncate = format!("TRUNCATE {} {identity} IDENTITY", names.join(", "));
        let sql = match self.has_replica_role {
            true => {
                format!("SAVEPOINT walgate_truncate; {truncate}; RELEASE SAVEPOINT walgate_truncate")
            }
            false => truncate,
        };
        let Err(error) = client.batch_execute(&sql).await else { return Ok(()) };
        let is_referenced = error.code().is_some_and(|code| code.code() == "0A000");
        let doing = format!("TRUNCATE {} on the replica {}", names.join(", "), self.replica);
        if is_referenced && self.has_replica_role {
            let emptied = self.empty(client, &names, restart_identity).await;
            return emptied.map_err(|error| Trouble::Failed(classify(error).context(doing)));
        }
        let error = classify(error).context(doing);
        Err(Trouble::Failed(match is_referenced {
            true => error.with_hint(
                "a table that is not replicated, or was not truncated on the source, refers to it there: drop that foreign key",
            ),
            false => error,
        }))
    }

    /// TRUNCATE of tables that others refer to, which the server refuses although the session checks no foreign keys.
    async fn empty(
        &self,
        client: &Client,
        names: &[String],
        restart_identity: bool,
    ) -> Result<(), tokio_postgres::Error> {
        let mut sql = "ROLLBACK TO SAVEPOINT walgate_truncate; RELEASE SAVEPOINT walgate_truncate".to_owned();
        for name in names {
            sql.push_str(&format!("; DELETE FROM {name}"));
        }
        client.batch_execute(&sql).await?;
        if restart_identity {
            for row in client.query(SEQUENCES, &[&names]).await? {
                let name = quote_qualified(row.get(0), row.get(1));
                client.batch_execute(&format!("ALTER SEQUENCE {name} RESTART")).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn prepared(
        &mut self,
        client: &Client,
        index: usize,
        kind: Kind,
        mask: Mask,
    ) -> Result<Arc<Prepared>> {
        let table = self.table(index);
        let key = (index, kind, mask);
        if let Some(prepared) = self.statements.get(&key) {
            return Ok(prepared.clone());
        }
        let text = table.statement(kind, &key.2);
        let statement = client.prepare(&text.sql).await.map_err(|error| {
            classify(error).context(format_args!("table {} on the replica {}", table.name, self.replica))
        })?;
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        let prepared = Arc::new(Prepared { statement, parameters: text.parameters });
        self.statements.insert(key, prepared.clone());
        Ok(prepared)
    }
}

/// The rows of an earlier attempt to copy a table cannot go.
pub(super) fn refused_clear(table: &Table, replica: &str, error: tokio_postgres::Error) -> Error {
    let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
    let error = classify(error);
    if !is_about_data(&code) {
        return error;
    }
    let hint = match code.as_str() {
        "23503" => format!(
            "rows of the replica refer to {}: delete them, drop the foreign key, or GRANT SET ON PARAMETER session_replication_role TO the replica's role (PostgreSQL 15)",
            table.name
        ),
        _ => format!("a trigger of {} keeps the rows: disable it, or TRUNCATE {}", table.name, table.name),
    };
    Error::definite(format!(
        "emptying {} on the replica {replica}, to copy {} anew: it is refused",
        table.name, table.target.relation
    ))
    .with_source(error)
    .with_hint(hint)
}

/// What concerns more than one row.
fn is_barrier(change: &RowChange) -> bool {
    matches!(change.op, RowOp::Truncate { .. } | RowOp::Clear | RowOp::ClearRange { .. })
}

/// The order in which changes are applied: those of a table that folds gather, until one comes that cannot, or one by
/// another definition of the same table.
fn plan<'a>(
    tables: &'a [Option<Arc<Table>>],
    cells: &mut Cells<'a>,
    changes: &'a [RowChange],
) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    let mut folds: Vec<Option<Fold<'a>>> = tables.iter().map(|_| None).collect();
    // By which definition a table of the replica was changed last.
    let mut definitions: HashMap<&str, usize> = HashMap::new();
    let mut last = None;
    for change in changes {
        let index = change.target.index();
        let table = tables.get(index).and_then(Option::as_ref).expect("looked up before");
        let is_barrier = is_barrier(change);
        if is_barrier {
            close_all(&mut folds, &mut steps);
        }
        if last.replace(index) != Some(index)
            && let Some(other) = definitions.insert(&table.name, index)
            && other != index
            && let Some(fold) = folds.get_mut(other)
        {
            close(other, fold, &mut steps);
        }
        let place = folds.get_mut(index).expect("as many as tables");
        if is_barrier || table.is_ordered || !folds_alone(table, cells, change) {
            close(index, place, &mut steps);
            steps.push(Step::Row(change));
            continue;
        }
        let fold = place.get_or_insert_with(|| Fold::new(&table.target.key, table.width()));
        if fold.add(cells, change).is_err() {
            close(index, place, &mut steps);
            let mut fold = Fold::new(&table.target.key, table.width());
            fold.add(cells, change).expect("the first of its key folds");
            *place = Some(fold);
        }
    }
    close_all(&mut folds, &mut steps);
    steps
}

fn close_all<'a>(folds: &mut [Option<Fold<'a>>], steps: &mut Vec<Step<'a>>) {
    for (index, fold) in folds.iter_mut().enumerate() {
        close(index, fold, steps);
    }
}

fn close<'a>(index: usize, fold: &mut Option<Fold<'a>>, steps: &mut Vec<Step<'a>>) {
    if let Some(fold) = fold.take() {
        steps.push(Step::Set(index, fold.into_entries()));
    }
}

/// Whether a change is one of a row whose key stays and is known, and needs no look at what the one before it left.
fn folds_alone(table: &Table, cells: &Cells<'_>, change: &RowChange) -> bool {
    let row = match change.op {
        RowOp::Delete => &change.old,
        RowOp::Update if !change.old.is_empty() => return false,
        RowOp::Decide(_) => return false,
        _ => &change.new,
    };
    let row = cells.of_batch(row.start, table.width());
    table.target.key.iter().all(|at| matches!(row.get(*at), Some(Cell::Text(_))))
}

/// Which cells did not change.
pub(super) fn mask_of(row: &[Cell]) -> Mask {
    let mut mask = Mask::new();
    if !row.contains(&Cell::Unchanged) {
        return mask;
    }
    for (word, cells) in row.chunks(64).enumerate() {
        let bits = cells.iter().enumerate().filter(|(_, cell)| **cell == Cell::Unchanged);
        mask.insert(word, bits.fold(0, |bits, (at, _)| bits | 1 << at));
    }
    mask
}
