//! What a replica's sink needs to decide a change whose side of the filter the stream does not tell.
//!
//! Comes in: a table's filter and the columns that go. Goes out: a [`Decision`], one for all such changes of a plan.
//! Always holds: behind the cells of the target's columns, the new row of such a change has those of the filter's columns
//! that do not go, so that everything that was sent can be evaluated. DESIGN section 3, "where".

use std::sync::Arc;

use super::crossing::RowFilter;
use super::filter::{EvalError, Verdict};
use super::row::TargetColumn;
use crate::wal::pgoutput::Value;

/// See the module.
#[derive(Debug)]
pub struct Decision {
    /// The filter.
    pub filter: Arc<RowFilter>,
    /// Columns that the filter uses and that do not go to the replica.
    pub others: Vec<TargetColumn>,
    /// For each of the filter's columns, where its cell stands in the new row.
    pub places: Vec<usize>,
}

/// One is another when it was made for the same plan.
impl PartialEq for Decision {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.filter, &other.filter)
    }
}

impl Eq for Decision {}

impl Decision {
    /// For a table of whose columns those with these indexes go. Also: the indexes of [`Decision::others`].
    pub fn of(
        filter: &Arc<RowFilter>,
        columns: &[usize],
        describe: impl Fn(usize) -> TargetColumn,
    ) -> (Decision, Vec<usize>) {
        let used = filter.filter.columns();
        let others: Vec<usize> = used.iter().copied().filter(|at| !columns.contains(at)).collect();
        let all: Vec<usize> = columns.iter().chain(&others).copied().collect();
        let places = used.iter().filter_map(|at| all.iter().position(|column| column == at)).collect();
        let described = others.iter().map(|at| describe(*at)).collect();
        (Decision { filter: filter.clone(), others: described, places }, others)
    }

    /// The verdict on a row with these values of the filter's columns, where Walgate evaluates the filter itself.
    ///
    /// # Errors
    /// As PostgreSQL's: a division by zero, a number out of range.
    pub fn evaluate(&self, values: &[Value<'_>]) -> Result<Verdict, EvalError> {
        let used = self.filter.filter.columns();
        let mut cells = vec![Value::Unchanged; used.last().map_or(0, |last| last + 1)];
        for (at, value) in used.iter().zip(values) {
            *cells.get_mut(*at).expect("none is behind the last") = *value;
        }
        self.filter.filter.evaluate(&cells)
    }
}
