//! The old and the new image of a row, and what a filter makes of them.
//!
//! Comes in: a row message. Goes out: what became of it, to be written as events or as rows. Always holds: what the stream left out because it did not
//! change is filled in where another image has it (FIELD_NOTES 3, points 3 and 4), and stays `Unchanged` elsewhere.

use std::sync::Arc;

use super::RowMessage;
use super::batch::Batch;
use super::crossing::{Outcome, RowFilter, Side, outcome};
use super::filter::Evaluator;
use super::selection::Selection;
use super::undecided::Asked;
use crate::change::{Cells, Position};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::wal::pgoutput::{Old, Tuple, Value};

/// Where a change stands.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub position: Position,
    pub lsn: Lsn,
}

/// What became of a change, and whether the old row's side of the filter is known.
#[derive(Clone, Copy)]
pub(super) struct Became {
    pub outcome: Outcome,
    pub is_certain: bool,
}

/// What the message says of the row.
#[derive(Clone, Copy)]
enum Kind {
    Insert,
    Update,
    Delete,
}

/// A change of one row.
pub(super) struct Images<'m, 'a> {
    kind: Kind,
    /// The old row, or as much of it as was sent.
    pub old: Option<(&'m Old<'a>, Cells<'a>)>,
    /// The new row.
    pub new: Option<Cells<'a>>,
}

impl<'m, 'a> Images<'m, 'a> {
    /// Of a row message.
    ///
    /// # Errors
    /// Definite: columns that do not fit the relation.
    pub fn of(selection: &Selection, message: &'m RowMessage<'a>, lsn: Lsn) -> Result<Self> {
        let (kind, old, new) = match message {
            RowMessage::Insert(new) => (Kind::Insert, None, Some(new)),
            RowMessage::Update(old, new) => (Kind::Update, old.as_ref(), Some(new)),
            RowMessage::Delete(old) => (Kind::Delete, Some(old), None),
        };
        let old = match old {
            Some(old) => Some((old, cells(selection, &old.tuple(), lsn)?)),
            None => None,
        };
        let new = new.map(|new| cells(selection, new, lsn)).transpose()?;
        let mut images = Images { kind, old, new };
        images.fill_unchanged(selection);
        Ok(images)
    }

    /// Keeps of a key change that the row has left its old key.
    pub fn keep_old(&mut self) {
        (self.kind, self.new) = (Kind::Delete, None);
    }

    /// Keeps of a key change that the row has come to its new key.
    pub fn keep_new(&mut self) {
        (self.kind, self.old) = (Kind::Insert, None);
    }

    fn fill_unchanged(&mut self, selection: &Selection) {
        let (Some((old, old_cells)), Some(new)) = (&self.old, &mut self.new) else { return };
        let whole_row = matches!(old, Old::Full(_));
        for ((new, old), column) in new.iter_mut().zip(old_cells).zip(&selection.columns) {
            if matches!(new, Value::Unchanged) && (whole_row || column.is_identity) {
                *new = *old;
            }
        }
    }

    /// Finds what becomes of it and has it written by `write`. Behind a filter that only PostgreSQL can evaluate,
    /// everything that may become of it is written, and what is to be asked is noted.
    ///
    /// # Errors
    /// As `write`; definite: the filter fails for this row.
    pub fn route(
        &self,
        selection: &Selection,
        batch: &mut Batch,
        place: Place,
        mut write: impl FnMut(&mut Batch, Became) -> Result<()>,
    ) -> Result<()> {
        let context = |error: Error| error.context(named(selection, place));
        match &selection.filter {
            None => write(batch, Became { outcome: self.unfiltered(), is_certain: true }),
            Some(filter) => match filter.filter.evaluator() {
                Evaluator::Own => write(batch, self.filtered(filter, selection).map_err(context)?),
                Evaluator::Server => self.ask(filter, selection, batch, write).map_err(context),
            },
        }
    }

    /// What it is where no filter says otherwise.
    fn unfiltered(&self) -> Outcome {
        match self.kind {
            Kind::Insert => Outcome::Insert,
            Kind::Update => Outcome::Update,
            Kind::Delete => Outcome::Delete,
        }
    }

    fn filtered(&self, filter: &RowFilter, selection: &Selection) -> Result<Became> {
        let side = |cells: Option<&Cells<'a>>, evaluate: fn(&RowFilter, &[Value<'_>]) -> _| {
            cells
                .map_or(Ok(Side::Absent), |cells| evaluate(filter, cells))
                .map_err(|error| filter.refused(error))
        };
        let new = side(self.new.as_ref(), RowFilter::side)?;
        let old = side(self.known_of_old(selection).as_ref(), RowFilter::old_side)?;
        Ok(Became {
            outcome: outcome(old, new, filter.on_unknown_old),
            is_certain: !matches!(old, Side::Unknown(_)),
        })
    }

    fn ask(
        &self,
        filter: &Arc<RowFilter>,
        selection: &Selection,
        batch: &mut Batch,
        mut write: impl FnMut(&mut Batch, Became) -> Result<()>,
    ) -> Result<()> {
        let question = batch.undecided.question(filter, (selection.oid, &selection.relation));
        let mut ask = |cells: &Option<Cells<'a>>| match cells {
            None => Asked::Known(Side::Absent),
            Some(cells) => match filter.missing(cells) {
                Some(column) => Asked::Known(Side::Unknown(column)),
                None => batch.undecided.ask(question, &mut batch.bytes, cells),
            },
        };
        let (old, new) = (ask(&self.known_of_old(selection)), ask(&self.new));
        if let Asked::Known(Side::Unknown(column)) = new {
            return write(batch, Became { outcome: Outcome::Unknown(column), is_certain: false });
        }
        let is_certain = !matches!(old, Asked::Known(Side::Unknown(_)));
        let mut alternative = |is_possible: bool, outcome| {
            let start = batch.len();
            if is_possible {
                write(batch, Became { outcome, is_certain })?;
            }
            Ok::<_, Error>(start..batch.len())
        };
        let has = |asked| !matches!(asked, Asked::Known(Side::Absent));
        let alternatives = [
            alternative(has(new), Outcome::Insert)?,
            alternative(has(old) && has(new), Outcome::Update)?,
            alternative(has(old), Outcome::Delete)?,
        ];
        batch.undecided.enter(question, (old, new), filter.on_unknown_old, alternatives);
        Ok(())
    }

    /// The old row as far as it is known: what was not sent is `Unchanged`, also in an old key, where the stream has a
    /// null in its place. Without an old image the key did not change, so that the new row has it.
    pub fn known_of_old(&self, selection: &Selection) -> Option<Cells<'a>> {
        let image = match (self.kind, &self.old) {
            (Kind::Insert, _) => return None,
            (_, Some((Old::Full(_), cells))) => return Some(cells.clone()),
            (_, Some((Old::Key(_), cells))) => cells,
            (_, None) => self.new.as_ref()?,
        };
        let mut known = image.clone();
        for (cell, column) in known.iter_mut().zip(&selection.columns) {
            if !column.is_identity {
                *cell = Value::Unchanged;
            }
        }
        Some(known)
    }

    /// Whether it moves the row to another key.
    pub fn is_key_changed(&self, selection: &Selection) -> bool {
        let (Some((_, old)), Some(new)) = (&self.old, &self.new) else { return false };
        selection.moving.iter().any(|&at| differ(old.get(at), new.get(at)))
    }

    /// Whether columns outside of the rule's list changed, and nothing else (CASES F7).
    pub fn is_unseen(&self, selection: &Selection) -> bool {
        let (Some((Old::Full(_), old)), Some(new)) = (&self.old, &self.new) else { return false };
        let mut columns = selection.columns.iter().zip(old.iter().zip(new));
        selection.is_projected
            && !columns.any(|(column, (old, new))| column.is_published && differ(Some(old), Some(new)))
    }
}

fn cells<'a>(selection: &Selection, tuple: &Tuple<'a>, lsn: Lsn) -> Result<Cells<'a>> {
    if tuple.len() != selection.columns.len() {
        return Err(Error::definite(format!(
            "table {}: a row of {} columns came at {lsn}, its relation has {}",
            selection.relation,
            tuple.len(),
            selection.columns.len()
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

/// A change, for errors.
fn named(selection: &Selection, place: Place) -> String {
    format!("table {}, change {:08X} at {}", selection.relation, place.position.ordinal, place.lsn)
}

/// A hub has no row from which an unknown value could be taken.
pub(super) fn unknown(selection: &Selection, column: usize, place: Place) -> Error {
    let name = selection.column_name(column);
    Error::definite(format!(
        "the filter depends on column \"{name}\", whose large (TOASTed) value did not change and so was not sent"
    ))
    .with_hint(format!("ALTER TABLE {} REPLICA IDENTITY FULL; then `walgate drop` and start anew with a copy: the change is in the WAL as it is", selection.sql_name))
    .context(named(selection, place))
}
