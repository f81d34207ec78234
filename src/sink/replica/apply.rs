//! From a part of a batch to rows.
//!
//! Comes in: changes in the order of the source, inside of an open transaction. Goes out: rows. Always holds: after it,
//! the replica's tables are as if each change had been applied in its turn. The next batch is planned (`plan.rs`) while the
//! server is at this one, or it would rest for a tenth of the time. Three paces, under a savepoint: sets; if they
//! meet what was not expected (a unique or exclusion violation, a value that a column refuses, a row that is missing), the
//! part is rolled back and applied row by row in order, without waiting for each answer; and if that does as well,
//! carefully, where every answer decides what comes next, and a culprit has a name.

use std::collections::HashMap;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use futures_util::future::join;
use tokio_postgres::Statement;

use super::ReplicaSettings;
use super::conflict::Conflicts;
use super::fetch::Source;
use super::params::Cells;
use super::plan::{Plan, Step, is_barrier, parts};
use super::statements::{Kind, Mask, Of};
use super::table::Table;
use crate::error::{Error, Fault, Result};
use crate::route::batch::Batch;
use crate::route::row::{RowChange, RowOp, Target, Targets};
use crate::sink::Inbox;
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

/// See the module.
pub(super) struct Applier {
    targets: Arc<Targets>,
    known: Vec<Arc<Target>>,
    tables: Vec<Option<Arc<Table>>>,
    statements: HashMap<(usize, Kind, Mask), Arc<Prepared>>,
    has_replica_role: bool,
    /// The open transaction has the savepoint of its last part.
    has_savepoint: bool,
    /// Plans of what comes next: of this batch and of the one behind it.
    drafts: Vec<Draft>,
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
            drafts: Vec::new(),
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
        part: Range<usize>,
        begins: bool,
        inbox: &mut Inbox,
    ) -> Result<()> {
        match self.apply_known(client, batch, &part, begins, inbox).await {
            Err(error) if sqlstate_of(&error).is_some_and(is_about_definitions) => {
                Err(self.judge(client, batch.rows.part(&part), error).await)
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
        self.drafts.clear();
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
        part: &Range<usize>,
        begins: bool,
        inbox: &mut Inbox,
    ) -> Result<()> {
        let changes = batch.rows.part(part);
        let tables = self.know(client, changes).await?;
        let is_plain = changes.len() == 1 || changes.iter().all(is_barrier);
        let begin = if begins { BEGIN } else { "" };
        self.has_savepoint &= !begins;
        if is_plain {
            if begins {
                client.batch_execute(begin).await.map_err(classify)?;
            }
            let plan = Plan::of_rows(part);
            self.take(client, batch, part, plan, Pace::Careful).await.map_err(Trouble::into_error)?;
            return self.conflicts.write(client).await;
        }
        let mut drafts = std::mem::take(&mut self.drafts);
        drafts.retain(|draft| draft.sequence >= batch.sequence);
        let draft = drafts.iter().position(|draft| draft.is_of(batch, part));
        let plan = match draft {
            Some(at) => drafts.swap_remove(at).plan,
            None => Plan::of(&tables, batch, part),
        };
        // The last part's savepoint goes now: alone, that would be a round trip more.
        let release = if self.has_savepoint { "RELEASE SAVEPOINT walgate; " } else { "" };
        let savepoint = format!("{begin}{release}SAVEPOINT walgate");
        self.has_savepoint = true;
        let (opened, mut taken) = {
            let opening = client.batch_execute(&savepoint);
            let taking = self.take(client, batch, part, plan, Pace::Sets);
            // What comes next is planned while the server works.
            let drafting = draft_next(&tables, batch, inbox, &mut drafts);
            beside(join(opening, taking), drafting).await
        };
        opened.map_err(classify)?;
        self.drafts = drafts;
        for pace in [Pace::Ahead, Pace::Careful] {
            let error = match taken {
                Ok(()) => break,
                Err(Trouble::Again(error)) => error,
                Err(trouble) => return Err(trouble.into_error()),
            };
            tracing::debug!(replica = self.replica, "rolled back, next is {pace:?}: {}", error.chain());
            client.batch_execute("ROLLBACK TO SAVEPOINT walgate").await.map_err(classify)?;
            self.conflicts.roll_back();
            taken = self.take(client, batch, part, Plan::of_rows(part), pace).await;
        }
        taken.map_err(Trouble::into_error)?;
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
        part: &Range<usize>,
        plan: Plan,
        pace: Pace,
    ) -> Result<(), Trouble> {
        let changes = batch.rows.part(part);
        let cells = &mut Cells::with(&batch.bytes, &batch.rows.cells, plan.added);
        let mut steps = plan.steps.into_iter().peekable();
        while let Some(step) = steps.next() {
            let change = match step {
                Step::Set(index, set) => {
                    let set = self.set(client, cells, index, set).await;
                    set.map_err(|trouble| trouble.of(&self.table(index)))?;
                    continue;
                }
                Step::Row(at) => change_at(changes, at),
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
                        && let Some(Step::Row(next)) = steps.next_if(
                            |step| matches!(step, Step::Row(next) if !is_barrier(change_at(changes, *next))),
                        )
                    {
                        run.push(change_at(changes, next));
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

fn change_at(changes: &[RowChange], at: usize) -> &RowChange {
    changes.get(at).expect("a plan is of its own part")
}

/// A plan that was made before its turn.
struct Draft {
    /// The batch's.
    sequence: u64,
    part: Range<usize>,
    plan: Plan,
}

impl Draft {
    fn is_of(&self, batch: &Batch, part: &Range<usize>) -> bool {
        self.sequence == batch.sequence && self.part == *part
    }
}

/// Plans the batch that follows `batch`, if it is there already and all its tables are known.
async fn draft_next(
    tables: &[Option<Arc<Table>>],
    batch: &Batch,
    inbox: &mut Inbox,
    drafts: &mut Vec<Draft>,
) {
    if !batch.more.is_coming() {
        return;
    }
    // What this batch begins with is sent first.
    tokio::task::yield_now().await;
    let Some(next) = inbox.peek().await else { return };
    let is_known = |change: &RowChange| tables.get(change.target.index()).is_some_and(Option::is_some);
    let is_drafted = drafts.iter().any(|draft| draft.sequence == next.sequence);
    if is_drafted || !next.rows.changes.iter().all(is_known) {
        return;
    }
    let before = drafts.len();
    for part in parts(next) {
        if part.len() > 1 {
            let plan = Plan::of(tables, next, &part);
            drafts.push(Draft { sequence: next.sequence, part, plan });
        }
    }
    for draft in drafts.iter_mut().skip(before) {
        let cells = Cells::with(&next.bytes, &next.rows.cells, std::mem::take(&mut draft.plan.added));
        for step in &mut draft.plan.steps {
            if let Step::Set(index, set) = step
                && let Some(Some(table)) = tables.get(*index)
            {
                set.write(table, &cells);
            }
        }
        draft.plan.added = cells.into_added();
        tokio::task::yield_now().await;
    }
}

/// Waits for `work`; `other` goes on meanwhile, and is dropped with its end.
async fn beside<T>(work: impl Future<Output = T>, other: impl Future<Output = ()>) -> T {
    let (mut work, mut other) = (pin!(work), pin!(other));
    let mut is_over = false;
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = &mut other, if !is_over => is_over = true,
        }
    }
}
