//! A row filter against a change: on which side of it the old row and the new one are, and what that makes of it.
//!
//! Comes in: the sides. Goes out: an [`Outcome`]. Always holds: a row that leaves the filter is a delete, one that
//! enters it an insert, where the old row is known; where it is not, what converges is published, and that is a
//! choice of the rule (`on_unknown_old`) only where nothing but the key would be told. DESIGN sections 4 and 6.

use super::filter::{EvalError, Filter, Verdict};
use crate::config::OnUnknownOld;
use crate::error::Error;
use crate::wal::pgoutput::Value;

/// A rule's filter, compiled for a table.
#[derive(Debug)]
pub struct RowFilter {
    /// The condition.
    pub filter: Filter,
    /// What the rule says of rows whose old version is not known.
    pub on_unknown_old: OnUnknownOld,
}

/// Where a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// There is none: the old one of an INSERT, the new one of a DELETE.
    Absent,
    /// Inside.
    Pass,
    /// Outside: false or NULL.
    Fail,
    /// It depends on a value that was not sent: that of this column.
    Unknown(usize),
}

/// What becomes of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is none of ours.
    Nothing,
    /// A row appears.
    Insert,
    /// A row changes, or its key does.
    Update,
    /// A row goes.
    Delete,
    /// It depends on a value of the new row that was not sent: that of this column.
    Unknown(usize),
}

impl Side {
    /// Of a verdict.
    pub fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Pass => Side::Pass,
            Verdict::Fail => Side::Fail,
            Verdict::Unknown(column) => Side::Unknown(column),
        }
    }

    /// Of an answer of PostgreSQL: NULL does not pass.
    pub fn of_answer(answer: Option<bool>) -> Self {
        if answer == Some(true) { Side::Pass } else { Side::Fail }
    }
}

/// What a change is whose old and new row are on these sides.
pub fn outcome(old: Side, new: Side, on_unknown_old: OnUnknownOld) -> Outcome {
    match (old, new) {
        (_, Side::Unknown(column)) => Outcome::Unknown(column),
        (Side::Absent, Side::Pass) | (Side::Fail, Side::Pass) => Outcome::Insert,
        (Side::Pass | Side::Unknown(_), Side::Pass) => Outcome::Update,
        (Side::Pass, Side::Fail | Side::Absent) => Outcome::Delete,
        // The row itself is gone: not to say so would leave one that passed for ever.
        (Side::Unknown(_), Side::Absent) => Outcome::Delete,
        (Side::Unknown(_), Side::Fail) if on_unknown_old == OnUnknownOld::Delete => Outcome::Delete,
        _ => Outcome::Nothing,
    }
}

impl RowFilter {
    /// Which side a new row is on, as far as Walgate evaluates the filter itself.
    ///
    /// # Errors
    /// As PostgreSQL's: a division by zero, a number out of range.
    pub fn side(&self, cells: &[Value<'_>]) -> Result<Side, EvalError> {
        self.filter.evaluate(cells).map(Side::of)
    }

    /// Which side an old row was on, as far as it was sent.
    ///
    /// # Errors
    /// As [`RowFilter::side`].
    pub fn old_side(&self, cells: &[Value<'_>]) -> Result<Side, EvalError> {
        self.filter.evaluate_old(cells).map(Side::of)
    }

    /// It fails for a row.
    pub fn refused(&self, error: EvalError) -> Error {
        let what = format!("the filter {} fails for this row", self.filter.sql());
        let failed = match error {
            // It was added since the filter was compiled: the next attempt knows it.
            EvalError::UnknownLabel => Error::transient(what),
            _ => Error::definite(what),
        };
        failed
            .with_source(error)
            .with_hint(format!("{}; nothing past the last whole transaction was confirmed", error.remedy()))
    }

    /// The first of its columns that was not sent.
    pub fn missing(&self, cells: &[Value<'_>]) -> Option<usize> {
        let mut columns = self.filter.columns().iter().copied();
        columns.find(|&at| matches!(cells.get(at), Some(Value::Unchanged) | None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_leave_and_enter() {
        use Side::{Absent, Fail, Pass, Unknown};
        for (old, new, expected) in [
            (Absent, Pass, Outcome::Insert),
            (Absent, Fail, Outcome::Nothing),
            (Pass, Absent, Outcome::Delete),
            (Fail, Absent, Outcome::Nothing),
            (Unknown(1), Absent, Outcome::Delete),
            (Pass, Pass, Outcome::Update),
            (Pass, Fail, Outcome::Delete),
            (Fail, Pass, Outcome::Insert),
            (Fail, Fail, Outcome::Nothing),
            (Unknown(1), Pass, Outcome::Update),
            (Unknown(1), Fail, Outcome::Delete),
            (Pass, Unknown(2), Outcome::Unknown(2)),
            (Fail, Unknown(2), Outcome::Unknown(2)),
        ] {
            assert_eq!(outcome(old, new, OnUnknownOld::Delete), expected, "{old:?} to {new:?}");
        }
        assert_eq!(outcome(Unknown(1), Fail, OnUnknownOld::Drop), Outcome::Nothing);
        assert_eq!(outcome(Unknown(1), Absent, OnUnknownOld::Drop), Outcome::Delete);
    }
}
