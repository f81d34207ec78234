//! What is to be done with a part of a batch, as far as the batch itself says: sets where order does not matter, rows
//! where it does.
//!
//! Comes in: changes in the order of the source, and the tables they go to. Goes out: a [`Plan`]. Always holds: its steps
//! leave what applying each change in its turn would leave, if the replica's rows are those that the stream speaks of; it
//! asks nobody, so that it can be made while the replica is still at the batch before. Pure.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::copy::Copied;
use super::fold::{Entry, Fold, Net};
use super::params::{Added, Cells};
use super::statements::Mask;
use super::table::Table;
use crate::route::batch::Batch;
use crate::route::row::{Cell, RowChange, RowOp};

/// From so many rows of one transaction on, an update deletes them and copies them anew.
const REPLACED_ROWS_MIN: usize = 1000;
/// From so many rows on, an insert goes by COPY, which costs one more round trip.
const COPY_ROWS_MIN: usize = 64;

/// A batch's parts: up to where the last transaction ends that ends in it, and what lies behind that.
pub(super) fn parts(batch: &Batch) -> [Range<usize>; 2] {
    let whole = batch.rows.whole.as_ref().map_or(0, |(end, _)| *end);
    [0..whole, whole..batch.rows.changes.len()]
}

/// See the module.
#[derive(Default)]
pub(super) struct Plan {
    pub steps: Vec<Step>,
    /// What folding has added to the batch's cells.
    pub added: Added,
}

/// What is done next.
pub(super) enum Step {
    /// The net changes of a table.
    Set(usize, Set),
    /// The change at this place of the part.
    Row(usize),
}

/// A table's net changes.
pub(super) struct Set {
    pub groups: Groups,
    /// All inserts as a COPY takes them, where that is written already.
    pub copied: Option<Copied>,
}

impl Plan {
    /// For changes of tables that are all known.
    pub fn of(tables: &[Option<Arc<Table>>], batch: &Batch, part: &Range<usize>) -> Self {
        let changes = batch.rows.part(part);
        let mut cells = Cells::new(&batch.bytes, &batch.rows.cells);
        let transaction = |change: Option<&RowChange>| change.map(|change| change.position.commit_lsn);
        let is_one_transaction = transaction(changes.first()) == transaction(changes.last());
        let steps = folded(tables, &mut cells, changes).into_iter().map(|step| match step {
            Folded::Row(at) => Step::Row(at),
            Folded::Set(index, entries) => {
                let table = tables.get(index).and_then(Option::as_ref).expect("known");
                Step::Set(index, Set::of(table, &cells, entries, is_one_transaction))
            }
        });
        let steps = steps.collect();
        Plan { steps, added: cells.into_added() }
    }

    /// Every change for itself.
    pub fn of_rows(part: &Range<usize>) -> Self {
        Plan { steps: (0..part.len()).map(Step::Row).collect(), added: Added::default() }
    }
}

impl Set {
    fn of(table: &Table, cells: &Cells<'_>, entries: Vec<Entry>, is_one_transaction: bool) -> Self {
        let mut groups = Groups::default();
        for entry in entries {
            let mask = mask_of(cells.row(entry.row, table.width()));
            groups.enter(entry, mask);
        }
        if table.is_replaceable && is_one_transaction {
            groups.replace();
        }
        Set { groups, copied: None }
    }

    /// Writes what a COPY takes, before its turn.
    pub fn write(&mut self, table: &Table, cells: &Cells<'_>) {
        if self.groups.incomplete.is_empty() {
            self.copied = self.groups.copied(table, cells);
        }
    }
}

/// A table's net changes, by statement: where the rows begin.
#[derive(Default)]
pub(super) struct Groups {
    pub deletes: Vec<usize>,
    pub uncertain_deletes: Vec<usize>,
    /// Rows that came and went.
    pub absent: Vec<usize>,
    pub updates: Vec<(Mask, bool, Vec<usize>)>,
    pub upserts: Vec<usize>,
    pub inserts: Vec<usize>,
    /// Inserts that lack values.
    pub incomplete: Vec<usize>,
}

impl Groups {
    /// Whether the inserts go by COPY.
    pub fn is_copied(&self) -> bool {
        self.inserts.len() >= COPY_ROWS_MIN
    }

    /// The inserts as a COPY takes them, if they go by one.
    pub fn copied(&self, table: &Table, cells: &Cells<'_>) -> Option<Copied> {
        self.is_copied().then(|| Copied::of(table, cells, &self.inserts))
    }

    /// Many whole rows of one transaction: to delete and to copy them takes seven tenths of the time of updating them
    /// (docs/decisions/replicas.md). So large an update leaves no room on its pages, so the new rows go elsewhere in any case,
    /// and the index gets new entries. Few rows at a time, which stay on their pages, are better updated.
    fn replace(&mut self) {
        let is_it = |(mask, is_certain, rows): &(Mask, bool, Vec<usize>)| {
            mask.is_empty() && *is_certain && rows.len() >= REPLACED_ROWS_MIN
        };
        if let Some(at) = self.updates.iter().position(is_it) {
            let (_, _, rows) = self.updates.swap_remove(at);
            self.deletes.extend_from_slice(&rows);
            self.inserts.extend(rows);
        }
    }

    fn enter(&mut self, entry: Entry, mask: Mask) {
        let rows = match entry.net {
            Net::Nothing => &mut self.absent,
            Net::Delete if entry.is_certain => &mut self.deletes,
            Net::Delete => &mut self.uncertain_deletes,
            Net::Insert if mask.is_empty() => &mut self.inserts,
            Net::Insert => &mut self.incomplete,
            Net::Upsert if mask.is_empty() => &mut self.upserts,
            Net::Update if mask.is_empty() && !entry.is_certain => &mut self.upserts,
            // An upsert that lacks values: the replica's row has them, if there is one.
            Net::Update | Net::Upsert => {
                let is_certain = entry.is_certain && entry.net == Net::Update;
                let known = self
                    .updates
                    .iter()
                    .position(|(known, certain, _)| *known == mask && *certain == is_certain);
                let at = known.unwrap_or_else(|| {
                    self.updates.push((mask, is_certain, Vec::new()));
                    self.updates.len() - 1
                });
                &mut self.updates.get_mut(at).expect("found or pushed").2
            }
        };
        rows.push(entry.row);
    }
}

/// What concerns more than one row.
pub(super) fn is_barrier(change: &RowChange) -> bool {
    matches!(change.op, RowOp::Truncate { .. } | RowOp::Clear | RowOp::ClearRange { .. })
}

/// A step before its rows are told apart by statement.
enum Folded {
    Set(usize, Vec<Entry>),
    Row(usize),
}

/// The order in which changes are applied: those of a table that folds gather, until one comes that cannot, or one by
/// another definition of the same table.
fn folded<'a>(
    tables: &'a [Option<Arc<Table>>],
    cells: &mut Cells<'a>,
    changes: &'a [RowChange],
) -> Vec<Folded> {
    let mut steps = Vec::new();
    let mut folds: Vec<Option<Fold<'a>>> = tables.iter().map(|_| None).collect();
    // By which definition a table of the replica was changed last.
    let mut definitions: HashMap<&str, usize> = HashMap::new();
    let mut last = None;
    for (at, change) in changes.iter().enumerate() {
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
            steps.push(Folded::Row(at));
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

fn close_all<'a>(folds: &mut [Option<Fold<'a>>], steps: &mut Vec<Folded>) {
    for (index, fold) in folds.iter_mut().enumerate() {
        close(index, fold, steps);
    }
}

fn close<'a>(index: usize, fold: &mut Option<Fold<'a>>, steps: &mut Vec<Folded>) {
    if let Some(fold) = fold.take() {
        steps.push(Folded::Set(index, fold.into_entries()));
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
