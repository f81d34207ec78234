//! Compiled rules: what becomes of a change.
//!
//! Comes in: row messages with their positions. Goes out: events in a [`batch::Batch`]. Always
//! holds: a change of a table that the router has never been told of is an error, never skipped;
//! all events of one counted message go into one batch (so into one Kafka transaction); the same
//! change gives the same events on every replay.

pub mod batch;
pub mod event;
pub mod filter;
pub mod message;
pub mod name;
pub mod plan;
pub mod row;
pub mod template;
pub mod value;
#[cfg(test)]
mod properties;

use std::collections::HashMap;

use crate::change::{Cells, Position, Transaction};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::wal::pgoutput::{Old, Tuple, Value};
use batch::Batch;
use event::{Before, EventWriter, RowEvent, Stamp};
use plan::{Op, TablePlan};

/// What is done with the changes of one table.
#[derive(Debug)]
pub enum Route {
    /// They become events.
    Events(Box<TablePlan>),
    /// The rules leave the table out.
    Off,
}

/// A row message of the stream.
#[derive(Clone, Debug)]
pub enum RowMessage<'a> {
    /// A new row.
    Insert(Tuple<'a>),
    /// A changed row, with its old one as far as it was sent.
    Update(Option<Old<'a>>, Tuple<'a>),
    /// A removed row.
    Delete(Old<'a>),
}

/// Routes the changes of one stream.
#[derive(Debug)]
pub struct Router {
    source_name: String,
    routes: HashMap<u32, Route>,
    stamp: Stamp,
    commit_lsn: Lsn,
    writer: EventWriter,
}

impl Router {
    /// A router that knows no table yet.
    pub fn new(source_name: &str, writer: EventWriter) -> Self {
        Router {
            source_name: source_name.to_owned(),
            routes: HashMap::new(),
            stamp: Stamp::default(),
            commit_lsn: Lsn::ZERO,
            writer,
        }
    }

    /// Tells it what to do with the table of this OID from now on.
    pub fn install(&mut self, oid: u32, route: Route) {
        self.routes.insert(oid, route);
    }

    /// The plan of a table whose changes become events.
    pub fn plan(&self, oid: u32) -> Option<&TablePlan> {
        match self.routes.get(&oid) {
            Some(Route::Events(plan)) => Some(plan),
            Some(Route::Off) | None => None,
        }
    }

    /// A transaction begins.
    pub fn begin(&mut self, transaction: &Transaction) {
        self.commit_lsn = transaction.commit_lsn;
        self.stamp.renew(&self.source_name, transaction);
    }

    /// The open transaction got an origin or a trace context.
    pub fn annotate(&mut self, transaction: &Transaction) {
        self.stamp.set_origin(transaction);
    }

    /// The stamp of the open transaction.
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Routes one row change that stands at `position`, whose WAL record begins at `lsn`.
    ///
    /// # Errors
    /// Definite: a relation that was never described, columns that do not fit it, a value that its
    /// type cannot have.
    pub fn row(
        &mut self,
        batch: &mut Batch,
        oid: u32,
        position: Position,
        lsn: Lsn,
        row: &RowMessage<'_>,
    ) -> Result<()> {
        let plan = match self.routes.get(&oid) {
            Some(Route::Events(plan)) if self.commit_lsn >= plan.copied_at => plan,
            Some(Route::Events(_) | Route::Off) => return Ok(()),
            None => return Err(unknown_relation(oid, lsn)),
        };
        let halves = match row {
            RowMessage::Insert(new) => {
                let new = cells(plan, new, lsn)?;
                let event = row_event(Op::Insert, lsn, position, Some(&new), Before::Unknown);
                return self.writer.write_row(batch, plan, &self.stamp, &event);
            }
            RowMessage::Delete(old) => {
                let (Old::Key(tuple) | Old::Full(tuple)) = old;
                let old_cells = cells(plan, tuple, lsn)?;
                let event = row_event(Op::Delete, lsn, position, None, before(old, &old_cells));
                return self.writer.write_row(batch, plan, &self.stamp, &event);
            }
            RowMessage::Update(None, new) => {
                let new = cells(plan, new, lsn)?;
                let event = row_event(Op::Update, lsn, position, Some(&new), Before::Unknown);
                return self.writer.write_row(batch, plan, &self.stamp, &event);
            }
            RowMessage::Update(Some(old), new) => {
                let (Old::Key(tuple) | Old::Full(tuple)) = old;
                Halves { old, old_cells: cells(plan, tuple, lsn)?, new: cells(plan, new, lsn)? }
            }
        };
        halves.write(plan, &mut self.writer, batch, &self.stamp, position, lsn)
    }

    /// Routes the truncation of one table, for each partition of its topic.
    pub fn truncate(
        &mut self,
        batch: &mut Batch,
        oid: u32,
        position: Position,
        lsn: Lsn,
        partitions: i32,
    ) -> Result<()> {
        match self.routes.get(&oid) {
            Some(Route::Events(plan)) if self.commit_lsn >= plan.copied_at => {
                (0..partitions).try_for_each(|partition| {
                    self.writer.write_truncate(batch, plan, &self.stamp, lsn, position.ordinal, partition)
                })
            }
            Some(Route::Events(_) | Route::Off) => Ok(()),
            None => Err(unknown_relation(oid, lsn)),
        }
    }
}

/// An update whose old row, or old key, was sent.
struct Halves<'m, 'a> {
    old: &'m Old<'a>,
    old_cells: Cells<'a>,
    new: Cells<'a>,
}

impl Halves<'_, '_> {
    fn write(
        mut self,
        plan: &TablePlan,
        writer: &mut EventWriter,
        batch: &mut Batch,
        stamp: &Stamp,
        position: Position,
        lsn: Lsn,
    ) -> Result<()> {
        self.fill_unchanged(plan);
        let (new, old) = (self.new.as_slice(), self.old_cells.as_slice());
        let before_image = before(self.old, old);
        let key_changed = plan.key.iter().any(|&at| differ(old.get(at), new.get(at)));
        if key_changed {
            let delete = row_event(Op::Delete, lsn, position, None, before_image);
            writer.write_row(batch, plan, stamp, &RowEvent { moved: Some(new), ..delete })?;
            let insert = row_event(Op::Insert, lsn, position.insert_half(), Some(new), Before::Unknown);
            return writer.write_row(batch, plan, stamp, &RowEvent { moved: Some(old), ..insert });
        }
        let before_image = match before_image {
            // Columns outside of the rule's list changed, and nothing else: no event (CASES F7).
            Before::Row(_) if plan.is_projected && published_equal(plan, old, new) => return Ok(()),
            Before::Row(_) => before_image,
            // The key was sent because one of its columns is TOASTed, not because it changed.
            Before::Key(_) | Before::Unknown => Before::Unknown,
        };
        let event = row_event(Op::Update, lsn, position, Some(new), before_image);
        writer.write_row(batch, plan, stamp, &event)
    }

    /// With an old row the value of an unchanged TOASTed column is there; with an old key, that of
    /// its columns (FIELD_NOTES 3, points 3 and 4).
    fn fill_unchanged(&mut self, plan: &TablePlan) {
        let whole_row = matches!(self.old, Old::Full(_));
        for ((new, old), column) in self.new.iter_mut().zip(&self.old_cells).zip(&plan.columns) {
            if matches!(new, Value::Unchanged) && (whole_row || column.is_identity) {
                *new = *old;
            }
        }
    }
}

fn row_event<'r, 'a>(
    op: Op,
    lsn: Lsn,
    position: Position,
    new: Option<&'r [Value<'a>]>,
    before: Before<'r, 'a>,
) -> RowEvent<'r, 'a> {
    RowEvent { op, lsn, number: position.ordinal, new, before, moved: None }
}

fn before<'r, 'a>(old: &Old<'_>, cells: &'r [Value<'a>]) -> Before<'r, 'a> {
    match old {
        Old::Key(_) => Before::Key(cells),
        Old::Full(_) => Before::Row(cells),
    }
}

fn cells<'a>(plan: &TablePlan, tuple: &Tuple<'a>, lsn: Lsn) -> Result<Cells<'a>> {
    if tuple.len() != plan.columns.len() {
        return Err(Error::definite(format!(
            "table {}: a row of {} columns came at {lsn}, its relation has {}",
            plan.relation,
            tuple.len(),
            plan.columns.len()
        )));
    }
    Ok(tuple.iter().collect())
}

/// Whether two received values differ as texts. Values that were not sent are unchanged.
fn differ(old: Option<&Value<'_>>, new: Option<&Value<'_>>) -> bool {
    match (old, new) {
        (Some(Value::Text(old)), Some(Value::Text(new))) => old != new,
        (_, Some(Value::Unchanged) | None) => false,
        (Some(Value::Null), Some(Value::Null)) => false,
        _ => true,
    }
}

fn published_equal(plan: &TablePlan, old: &[Value<'_>], new: &[Value<'_>]) -> bool {
    let mut columns = plan.columns.iter().zip(old.iter().zip(new));
    !columns.any(|(column, (old, new))| column.is_published && differ(Some(old), Some(new)))
}

fn unknown_relation(oid: u32, lsn: Lsn) -> Error {
    Error::definite(format!(
        "a change at {lsn} is of the relation with OID {oid}, which the server never described"
    ))
    .with_hint("report this with the server's version; nothing past the last whole transaction was confirmed")
}
