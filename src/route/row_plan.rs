//! A rule compiled for one table of a replica, and the row changes that it makes.
//!
//! Comes in: the relation, the rule, a row's images. Goes out: [`RowChange`]s whose cells are those of the target's
//! columns. Always holds: the text that the server sent is copied once; what the stream left out because it did not
//! change is [`Cell::Unchanged`]; a change of the key is one update with the old key, so that the replica's own row
//! gives what was left out.

use std::ops::Range;
use std::sync::Arc;

use super::RowMessage;
use super::batch::Batch;
use super::crossing::Outcome;
use super::decision::Decision;
use super::images::{Became, Images, Place};
use super::ranges::{Frontier, KeyKind, Part, Ranges};
use super::row::{Cell, RowChange, RowOp, Target, TargetColumn, TargetId, Targets};
use super::selection::{Selection, SelectionContext};
use crate::change::{Cells, Position};
use crate::config::{OnUnknownOld, TableRule};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::wal::pgoutput::{Relation, RelationColumn, Value};

/// See the module.
#[derive(Debug)]
pub struct RowPlan {
    /// OID of the table, of a partitioned table: of its root.
    pub oid: u32,
    /// What the rule selects.
    pub selection: Selection,
    /// The table on the replica.
    pub target: TargetId,
    /// Changes of transactions with a smaller commit LSN are in the copy.
    pub copied_at: Lsn,
    /// It is copied in ranges, in place of `copied_at`.
    ranges: Option<PlannedRanges>,
    /// Indexes of the columns that go.
    columns: Vec<usize>,
    /// Where there is a filter: how a change is decided that depends on what was not sent.
    decision: Option<Arc<Decision>>,
    /// Indexes of the columns that the filter uses besides those that go.
    others: Vec<usize>,
}

/// The ranges of a table's copy, and where the key is by which it is cut.
#[derive(Debug)]
struct PlannedRanges {
    ranges: Ranges,
    /// Indexes into the relation's columns and the target's; `None`: the relation has no such column.
    place: Option<(usize, usize)>,
}

impl RowPlan {
    /// Compiles `rule` for `relation`.
    ///
    /// # Errors
    /// Definite: as [`Selection::of`].
    pub fn compile(
        context: SelectionContext<'_>,
        relation: &Relation,
        rule: &TableRule,
        targets: &Targets,
        copied_at: Lsn,
    ) -> Result<RowPlan> {
        // Whether the replica has the row is found there: nothing is told that it does not know.
        let rule = &TableRule { on_unknown_old: OnUnknownOld::Delete, ..rule.clone() };
        let selection = Selection::of(context, relation, rule, None)?;
        let columns: Vec<usize> =
            (0..relation.columns.len()).filter(|&at| selection.is_published(at)).collect();
        let target = targets.intern(target_of(context, relation, rule, &selection, &columns));
        let decided = |filter| Decision::of(filter, &columns, |at| target_column(context, relation, at));
        let (decision, others) = selection.filter.as_ref().map(decided).unzip();
        Ok(RowPlan {
            oid: relation.oid,
            target,
            copied_at,
            decision: decision.map(Arc::new),
            others: others.unwrap_or_default(),
            selection,
            columns,
            ranges: None,
        })
    }

    /// The same for a table that is copied in ranges.
    pub fn in_ranges(mut self, relation: &Relation, ranges: Ranges) -> Self {
        let is_key = |column: &RelationColumn| {
            column.name == ranges.column && KeyKind::of(column.type_oid) == Some(ranges.kind)
        };
        let at = relation.columns.iter().position(is_key).filter(|at| self.selection.key.contains(at));
        let place = at.and_then(|at| Some((at, self.columns.iter().position(|column| *column == at)?)));
        self.ranges = Some(PlannedRanges { ranges, place });
        self
    }

    /// What is applied of a transaction, and where the key is by which that is judged; `None`: nothing.
    fn frontier(&self, commit_lsn: Lsn, lsn: Lsn) -> Result<Option<Applied<'_>>> {
        let Some(PlannedRanges { ranges, place }) = &self.ranges else {
            return Ok((commit_lsn >= self.copied_at).then_some(Applied::Everything));
        };
        Ok(match (ranges.frontier(commit_lsn), *place) {
            (Frontier::Nothing, _) => None,
            (Frontier::Everything, _) => Some(Applied::Everything),
            (Frontier::UpTo(bound), Some((column, of_target))) => {
                Some(Applied::UpTo { bound, kind: ranges.kind, column, of_target })
            }
            (Frontier::UpTo(_), None) => {
                // The next start finds that it cannot go on like this, and copies the table anew.
                return Err(Error::transient(format!(
                    "table {}: \"{}\", by which it is copied in ranges, is not in its key, or of another type, in a change at {lsn}",
                    self.selection.relation, ranges.column
                )));
            }
        })
    }

    /// What of a change is to be applied; `None`: nothing, it is in a copy or will be.
    ///
    /// # Errors
    /// Definite: columns that do not fit the relation, a key that its type cannot have. Transient: the table is copied in
    /// ranges of a column that the relation does not have.
    pub(super) fn images<'m, 'a>(
        &self,
        message: &'m RowMessage<'a>,
        commit_lsn: Lsn,
        lsn: Lsn,
    ) -> Result<Option<Images<'m, 'a>>> {
        let Some(applied) = self.frontier(commit_lsn, lsn)? else { return Ok(None) };
        let mut images = Images::of(&self.selection, message, lsn)?;
        let Applied::UpTo { bound, kind, column, .. } = applied else { return Ok(Some(images)) };
        let text = |cells: &Cells<'a>| match cells.get(column) {
            Some(Value::Text(text)) => Some(*text),
            _ => None,
        };
        let new = images.new.as_ref().and_then(text);
        let old = match message {
            RowMessage::Insert(_) => None,
            RowMessage::Update(..) | RowMessage::Delete(_) => {
                images.old.as_ref().and_then(|(_, cells)| text(cells)).or(new)
            }
        };
        let is_known = new.is_some() == images.new.is_some() && (old.is_some() || new.is_some());
        let part = Frontier::UpTo(bound).part(kind, old, new);
        match part.ok().filter(|_| is_known) {
            Some(Part::Whole) => {}
            Some(Part::Old) => images.keep_old(),
            Some(Part::New) => images.keep_new(),
            Some(Part::Nothing) => return Ok(None),
            None => {
                return Err(Error::definite(format!(
                    "table {}: the key of a change at {lsn} was not sent, or is none of its type",
                    self.selection.relation
                ))
                .with_hint("write source.snapshot_range_rows = 0 and run `walgate resync` for the table: it is then copied as a whole"));
            }
        }
        Ok(Some(images))
    }

    /// What a TRUNCATE does: the target if all rows go; else those of the finished ranges go here.
    pub(super) fn truncate(
        &self,
        batch: &mut Batch,
        position: Position,
        lsn: Lsn,
    ) -> Result<Option<TargetId>> {
        let (bound, kind, column) = match self.frontier(position.commit_lsn, lsn)? {
            None => return Ok(None),
            Some(Applied::Everything) => return Ok(Some(self.target)),
            Some(Applied::UpTo { bound, kind, of_target, .. }) => (bound, kind, of_target),
        };
        let start = batch.bytes.len();
        batch.bytes.extend_from_slice(bound.as_bytes());
        let op = RowOp::ClearRange { column, kind, after: None, up_to: Some(start..batch.bytes.len()) };
        let change = RowChange { target: self.target, op, position, is_certain: true, new: 0..0, old: 0..0 };
        batch.rows.changes.push(change);
        Ok(None)
    }

    /// What removes the rows that an attempt to copy the next range has left on the replica; nothing where they are all
    /// rows of the table.
    pub fn clear_next(&self, batch: &mut Batch) -> Option<RowOp> {
        let PlannedRanges { ranges, place } = self.ranges.as_ref()?;
        let ((_, column), after) = ((*place)?, ranges.next_after()?);
        let start = batch.bytes.len();
        batch.bytes.extend_from_slice(after.as_bytes());
        Some(RowOp::ClearRange {
            column,
            kind: ranges.kind,
            after: Some(start..batch.bytes.len()),
            up_to: None,
        })
    }

    /// Appends what a change became.
    pub(super) fn write(&self, batch: &mut Batch, images: &Images<'_, '_>, became: Became, place: Place) {
        let Became { outcome, mut is_certain } = became;
        if self.selection.filter.is_some() && !self.selection.is_full && outcome != Outcome::Insert {
            // It may have entered with a large value that was not in the WAL, and have been gone from the source before
            // that could be fetched: then the replica does not have it, and that is no conflict.
            is_certain = false;
        }
        if self.ranges.is_some() && outcome != Outcome::Insert {
            // Likewise, where it came from a range that was not copied.
            is_certain = false;
        }
        let has_key = !self.selection.key.is_empty();
        let is_moved = images.is_key_changed(&self.selection);
        let known = images.known_of_old(&self.selection).unwrap_or_default();
        let old = |needed: bool, batch: &mut Batch| if needed { self.cells(batch, &known) } else { 0..0 };
        let new = images.new.as_deref().unwrap_or_default();
        let (op, new, old) = match outcome {
            Outcome::Nothing => return,
            Outcome::Update if images.is_unseen(&self.selection) => return,
            Outcome::Insert => (RowOp::Insert, self.cells(batch, new), 0..0),
            Outcome::Delete => (RowOp::Delete, 0..0, old(true, batch)),
            Outcome::Update if is_certain || is_moved => {
                (RowOp::Update, self.cells(batch, new), old(is_moved || !has_key, batch))
            }
            Outcome::Update => (RowOp::Upsert, self.cells(batch, new), 0..0),
            Outcome::Unknown(_) => {
                let decision = self.decision.clone().expect("where there is a filter");
                let cells = self.cells(batch, new);
                let others = self.cells_of(batch, &self.others, new);
                (RowOp::Decide(decision), cells.start..others.end, old(is_moved, batch))
            }
        };
        let (target, position) = (self.target, place.position);
        batch.rows.changes.push(RowChange { target, op, position, is_certain, new, old });
    }

    fn cells(&self, batch: &mut Batch, cells: &[Value<'_>]) -> Range<usize> {
        self.cells_of(batch, &self.columns, cells)
    }

    fn cells_of(&self, batch: &mut Batch, columns: &[usize], cells: &[Value<'_>]) -> Range<usize> {
        let start = batch.rows.cells.len();
        for &at in columns {
            let cell = match cells.get(at) {
                Some(Value::Null) => Cell::Null,
                Some(Value::Text(text)) => {
                    let start = batch.bytes.len();
                    batch.bytes.extend_from_slice(text);
                    Cell::Text(start..batch.bytes.len())
                }
                Some(Value::Unchanged | Value::Binary(_)) | None => Cell::Unchanged,
            };
            batch.rows.cells.push(cell);
        }
        start..batch.rows.cells.len()
    }
}

fn target_column(context: SelectionContext<'_>, relation: &Relation, at: usize) -> TargetColumn {
    let column = relation.columns.get(at).expect("an index of the relation's columns");
    // A type that was dropped since: its values still are text.
    let dropped = || ("pg_catalog".to_owned(), "text".to_owned());
    let type_name = context.types.qualified_name(column.type_oid).unwrap_or_else(dropped);
    TargetColumn { name: column.name.clone(), type_oid: column.type_oid, type_name }
}

/// What is applied of a transaction.
enum Applied<'r> {
    Everything,
    /// What lies at or below a key.
    UpTo {
        bound: &'r str,
        kind: KeyKind,
        /// Where the key is in the relation.
        column: usize,
        /// Where the key is in the target.
        of_target: usize,
    },
}

/// The target of a table under a rule.
fn target_of(
    context: SelectionContext<'_>,
    relation: &Relation,
    rule: &TableRule,
    selection: &Selection,
    columns: &[usize],
) -> Target {
    let (schema, name) = rule.target_name(&relation.namespace, &relation.name);
    Target {
        oid: relation.oid,
        relation: selection.relation.clone(),
        schema,
        name,
        columns: columns.iter().map(|at| target_column(context, relation, *at)).collect(),
        key: selection.key.iter().filter_map(|at| columns.iter().position(|column| column == at)).collect(),
        is_filtered: selection.filter.is_some(),
    }
}
