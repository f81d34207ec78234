//! What a replica gets: rows as received, and what to do with each.
//!
//! Comes in (from the router): changes that the rules let pass, with their cells. Goes out (to the replica's
//! sink): a [`RowChange`] for each, in the order of the source, in a [`Rows`] that is part of a batch. Cells are
//! ranges of the batch's buffer: the text that the server sent is copied once and is what the replica gets.
//! What is equal for all rows of a table is a [`Target`], interned once and named by number.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::batch::Progress;
use super::decision::Decision;
use super::ranges::KeyKind;
use crate::change::Position;
use crate::error::{Error, Fault};

/// A table as a replica gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// OID of the table on the source.
    pub oid: u32,
    /// `schema.table` on the source, for errors and metrics.
    pub relation: String,
    /// Its schema on the replica.
    pub schema: String,
    /// Its name on the replica.
    pub name: String,
    /// The columns that a row change has cells of, in their order.
    pub columns: Vec<TargetColumn>,
    /// Indexes into `columns`: what identifies a row. Empty: the table has no key, and the whole old row does.
    pub key: Vec<usize>,
    /// The rule has a filter: a row that is missing or present without the stream having said so is no conflict
    /// where the old row was unknown.
    pub is_filtered: bool,
}

/// A column of a [`Target`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetColumn {
    /// Its name, on source and replica alike.
    pub name: String,
    /// OID of its type on the source.
    pub type_oid: u32,
    /// Its type's schema and name on the source.
    pub type_name: (String, String),
}

impl Target {
    /// An error that belongs to it.
    pub fn blamed(&self, error: Error, fault: Fault) -> Error {
        error.of_table(self.oid, &self.relation, fault)
    }
}

/// A target's number: an index into [`Targets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(u32);

impl TargetId {
    /// The index into a list of targets in the order of their interning.
    pub fn index(self) -> usize {
        usize::try_from(self.0).expect("an index fits")
    }
}

/// All targets of one pipeline run; shared by those who make rows and the sink. A table whose columns change
/// becomes another target.
#[derive(Debug, Default)]
pub struct Targets(Mutex<Vec<Arc<Target>>>);

impl Targets {
    /// Enters a target, or finds it. Called per table, not per row.
    pub fn intern(&self, target: Target) -> TargetId {
        let mut targets = self.0.lock().expect("no holder panics");
        let index = targets.iter().position(|known| **known == target).unwrap_or_else(|| {
            targets.push(Arc::new(target));
            targets.len() - 1
        });
        TargetId(u32::try_from(index).expect("fewer than four billion targets"))
    }

    /// Copies to the end of `known` what was interned since it was last called with it.
    pub fn refresh(&self, known: &mut Vec<Arc<Target>>) {
        let targets = self.0.lock().expect("no holder panics");
        known.extend(targets.iter().skip(known.len()).cloned());
    }
}

/// One cell of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// SQL NULL.
    Null,
    /// A TOASTed value that did not change and is not in the WAL: never NULL.
    Unchanged,
    /// The type's text, where it stands in the batch's buffer.
    Text(Range<usize>),
}

/// What to do with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowOp {
    /// A row that the source inserted, or one that enters the filter: `new` has all cells; [`Cell::Unchanged`] only
    /// when it enters the filter or comes from a key change.
    Insert,
    /// A row that the replica should have: `old` identifies it when its key changed (or the table has no key), else
    /// `new` does.
    Update,
    /// A row that passes the filter now; whether the replica has it is unknown.
    Upsert,
    /// The row that `old` identifies goes.
    Delete,
    /// A row whose side of the filter depends on a value that was not sent: with it, one of the two before. `old`
    /// identifies it when its key changed, else `new` does. Behind the target's, `new` has the cells of
    /// [`Decision::others`].
    Decide(Arc<Decision>),
    /// The tables are emptied, in one statement.
    Truncate {
        /// All of them.
        targets: Vec<TargetId>,
        /// `RESTART IDENTITY`.
        restart_identity: bool,
    },
    /// The first thing of a copy that was begun before: all rows of the earlier attempt go.
    Clear,
    /// Rows of some keys go: what an attempt to copy a range has left, or what a TRUNCATE takes of a table whose ranges
    /// are not all copied. See [`super::ranges`].
    ClearRange {
        /// The column of the target by which ranges are cut.
        column: usize,
        /// How its values compare.
        kind: KeyKind,
        /// They lie behind this key, whose text stands in the batch's buffer.
        after: Option<Range<usize>>,
        /// They lie at or below this key, likewise.
        up_to: Option<Range<usize>>,
    },
}

/// One change of a replica.
#[derive(Clone, Debug)]
pub struct RowChange {
    /// The table; of a TRUNCATE the first.
    pub target: TargetId,
    /// What to do.
    pub op: RowOp,
    /// Where the change stands in the order of the source.
    pub position: Position,
    /// Whether it is known that the row is there (Update, Delete), or is not (Insert): if not so on the replica, that
    /// is a conflict.
    pub is_certain: bool,
    /// Cells of the new row, one for each column of the target ([`RowOp::Decide`] has more): a range of [`Rows::cells`]. Empty where there is none.
    pub new: Range<usize>,
    /// Cells of the old row or key, likewise; cells that were not sent are [`Cell::Unchanged`].
    pub old: Range<usize>,
}

impl RowChange {
    /// Rows that it is about; of a whole table, none are counted.
    pub fn rows(&self) -> u64 {
        match self.op {
            RowOp::Truncate { .. } | RowOp::Clear | RowOp::ClearRange { .. } => 0,
            RowOp::Insert | RowOp::Update | RowOp::Upsert | RowOp::Delete | RowOp::Decide(_) => 1,
        }
    }
}

/// The rows of a batch.
#[derive(Debug, Default)]
pub struct Rows {
    /// In the order of the source.
    pub changes: Vec<RowChange>,
    /// Cells of all changes.
    pub cells: Vec<Cell>,
    /// The end of the last source transaction that is whole in this batch (or in batches before it): how many changes of
    /// `changes` belong to it or to earlier ones, and the progress that they make. `None`: the batch lies inside of one
    /// transaction. What follows belongs to a transaction whose end comes later.
    pub whole: Option<(usize, Progress)>,
}

impl Rows {
    /// Appends something that is about a whole table.
    pub fn push_table(&mut self, target: TargetId, op: RowOp) {
        let position = Position::default();
        self.changes.push(RowChange { target, op, position, is_certain: true, new: 0..0, old: 0..0 });
    }

    /// Some of the changes.
    pub fn part(&self, part: &Range<usize>) -> &[RowChange] {
        self.changes.get(part.clone()).expect("a part of the batch's changes")
    }

    /// Empties it for reuse.
    pub fn clear(&mut self) {
        self.changes.clear();
        self.cells.clear();
        self.whole = None;
    }
}
