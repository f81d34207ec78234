//! Debezium's columns that are too large for the hub: which ones, and the string in their place (DESIGN section 5).
//!
//! Comes in: the rows of an event, and how large it became. Goes out: objects to be stored, and in the place of each value the
//! URI of its object with size, hash and content type behind it. Always holds: the largest values go, one after the other, until
//! the rest fits, so that what goes depends on the event alone; the key stays. Debezium's envelope has no place for a reference
//! to the whole event: what does not fit without its large values is published as it is.

use std::cmp::Reverse;

use super::debezium::DebeziumForm;
use crate::error::Result;
use crate::route::claim::{BINARY, Claim, Claims, ColumnPlace, JSON, TEXT};
use crate::route::event::{Before, RowEvent, value_error};
use crate::route::plan::TablePlan;
use crate::route::value::{self, DebeziumKind, Kind, Style, ValueError};
use crate::wal::pgoutput::Value;

/// A smaller value would not make room for its reference.
const VALUE_BYTES_MIN: usize = 1024;

/// One of the two rows of an event.
pub(super) struct Row<'r, 'a> {
    pub cells: &'r [Value<'a>],
    is_before: bool,
    is_identity: bool,
}

impl<'r, 'a> Row<'r, 'a> {
    /// The old row and the new one.
    pub fn of(event: &RowEvent<'r, 'a>) -> [Option<Self>; 2] {
        let is_identity = matches!(event.before, Before::Key(_));
        let before = event.before.cells().map(|cells| Row { cells, is_before: true, is_identity });
        let after = event.new.map(|cells| Row { cells, is_before: false, is_identity: false });
        [before, after]
    }

    /// Whether the value of a column is known.
    pub fn takes(&self, plan: &TablePlan, at: usize) -> bool {
        !self.is_identity || plan.selection.is_identity(at)
    }
}

/// A value: of which row, and of which column.
type Cell = (bool, usize);

/// What was taken out of an event.
pub(super) struct Referred<'w> {
    claims: Option<&'w Claims>,
    id: &'w str,
    cells: Vec<Cell>,
    stored: Vec<Claim>,
}

impl<'w> Referred<'w> {
    /// What is too large by itself goes at once: written, it would only be held twice.
    pub fn new(
        claims: Option<&'w Claims>,
        id: &'w str,
        of: (&TablePlan, &DebeziumForm),
        rows: &[Option<Row<'_, '_>>],
    ) -> Self {
        let mut referred = Referred { claims, id, cells: Vec::new(), stored: Vec::new() };
        if let Some(claims) = claims {
            let large = candidates(of, rows).filter(|(_, bytes)| claims.is_large(*bytes));
            referred.cells.extend(large.map(|(cell, _)| cell));
        }
        referred
    }

    /// Whether this value was taken out.
    pub fn has(&self, row: &Row<'_, '_>, at: usize) -> bool {
        self.cells.contains(&(row.is_before, at))
    }

    /// Writes the reference of a value that was taken out.
    ///
    /// # Errors
    /// A value that its type cannot have.
    pub fn write(
        &mut self,
        out: &mut Vec<u8>,
        (plan, form): (&TablePlan, &DebeziumForm),
        (row, at): (&Row<'_, '_>, usize),
        text: &[u8],
        style: &Style,
    ) -> Result<()> {
        let claims = self.claims.expect("nothing goes without a claim store");
        let (column, kind) = plan.columns.get(at).zip(form.kinds.get(at)).expect("a column of the relation");
        let (body, content_type) =
            content(kind, text, style).map_err(|error| value_error(plan, at, error))?;
        let place = ColumnPlace {
            directory: &plan.claim_directory,
            id: self.id,
            column: &column.name,
            is_before: row.is_before,
            relation: &plan.selection.relation,
        };
        let claim = claims.column(body, content_type, &place);
        value::write_str(out, &claim.reference());
        self.stored.push(claim);
        Ok(())
    }

    /// Whether an event of so many bytes has to be written again, since more of it goes.
    pub fn needs_more(
        &mut self,
        bytes: usize,
        of: (&TablePlan, &DebeziumForm),
        rows: &[Option<Row<'_, '_>>],
    ) -> bool {
        let mut excess = self.claims.map_or(0, |claims| claims.excess(bytes));
        if excess == 0 {
            return false;
        }
        let left = candidates(of, rows).filter(|(cell, _)| !self.cells.contains(cell));
        let mut left: Vec<(Cell, usize)> = left.collect();
        left.sort_by_key(|(_, bytes)| Reverse(*bytes));
        let known = self.cells.len();
        for (cell, bytes) in left {
            if excess == 0 {
                break;
            }
            self.cells.push(cell);
            // Its reference takes some of that again: then another goes the next time.
            excess = excess.saturating_sub(bytes);
        }
        self.stored.clear();
        self.cells.len() > known
    }

    /// What must be stored before the event may be published.
    pub fn claims(self) -> Vec<Claim> {
        self.stored
    }
}

/// The values that may go, and about how many bytes they take in the event.
fn candidates<'c>(
    (plan, form): (&'c TablePlan, &'c DebeziumForm),
    rows: &'c [Option<Row<'_, '_>>],
) -> impl Iterator<Item = (Cell, usize)> {
    rows.iter().flatten().flat_map(move |row| {
        row.cells.iter().enumerate().filter_map(move |(at, cell)| {
            let Value::Text(text) = cell else { return None };
            let bytes = match form.kinds.get(at)? {
                DebeziumKind::Same(Kind::Bytea) => text.len() / 3 * 2,
                _ => text.len(),
            };
            if bytes < VALUE_BYTES_MIN {
                return None;
            }
            let is_published = plan.columns.get(at)?.is_published && row.takes(plan, at);
            (is_published && !form.key.contains(&at) && !plan.is_key(at))
                .then_some(((row.is_before, at), bytes))
        })
    })
}

/// An object of a value: the content of what is a string in an event, else what stands there.
fn content(kind: &DebeziumKind, text: &[u8], style: &Style) -> Result<(Vec<u8>, &'static str), ValueError> {
    match kind {
        DebeziumKind::Same(Kind::Bytea) => {
            let mut bytes = Vec::with_capacity(text.len() / 2);
            value::write_bytes(&mut bytes, text)?;
            Ok((bytes, BINARY))
        }
        DebeziumKind::Same(Kind::Text) | DebeziumKind::Json => {
            Ok((value::checked_utf8(&Kind::Text, text)?.as_bytes().to_vec(), TEXT))
        }
        other => {
            let mut json = Vec::with_capacity(text.len());
            value::write_debezium(&mut json, other, text, style)?;
            Ok((json, JSON))
        }
    }
}
