//! Rows whose filter only PostgreSQL can evaluate.
//!
//! Comes in: the row's values and every event that may come of it, all of them written to the batch. Goes out: when the
//! batch is cut, one question to the source for each filter, over all rows at once; with the answers, what did not come
//! to pass is taken out again. Always holds: the order of events is that of their changes, and nothing leaves the
//! pipeline undecided.

use std::ops::Range;
use std::sync::Arc;

use super::batch::Batch;
use super::crossing::{Outcome, RowFilter, Side, outcome};
use crate::config::OnUnknownOld;
use crate::error::{Error, Result};
use crate::wal::pgoutput::Value;

/// Of one filter: the rows that it is asked about.
#[derive(Debug)]
pub struct Question {
    /// The filter.
    pub filter: Arc<RowFilter>,
    /// OID of the table.
    pub oid: u32,
    /// `schema.table`, for errors.
    pub relation: String,
    /// Row by row the values of the filter's columns, where they stand in the batch's buffer; `None`: NULL.
    pub values: Vec<Option<Range<usize>>>,
    /// How many rows they are.
    pub rows: usize,
}

/// A side that is known, or the number of the row that is asked about.
#[derive(Clone, Copy, Debug)]
pub enum Asked {
    /// It needs no answer.
    Known(Side),
    /// The answer to this row of the question.
    Row(usize),
}

/// One change, undecided.
#[derive(Debug)]
struct Change {
    question: usize,
    old: Asked,
    new: Asked,
    on_unknown_old: OnUnknownOld,
    /// The events or row changes of each outcome, where they stand in the batch.
    alternatives: [Range<usize>; 3],
}

const ALTERNATIVES: [Outcome; 3] = [Outcome::Insert, Outcome::Update, Outcome::Delete];

/// The undecided changes of a batch.
#[derive(Debug, Default)]
pub struct Undecided {
    questions: Vec<Question>,
    changes: Vec<Change>,
}

impl Undecided {
    /// Whether everything is decided.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// What is to be asked.
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// The number of the question about `filter`'s rows.
    pub fn question(&mut self, filter: &Arc<RowFilter>, (oid, relation): (u32, &str)) -> usize {
        let known = self.questions.iter().position(|question| Arc::ptr_eq(&question.filter, filter));
        known.unwrap_or_else(|| {
            let (filter, relation) = (filter.clone(), relation.to_owned());
            self.questions.push(Question { filter, oid, relation, values: Vec::new(), rows: 0 });
            self.questions.len() - 1
        })
    }

    /// Asks about a row, whose values are copied to `bytes`.
    pub fn ask(&mut self, question: usize, bytes: &mut Vec<u8>, cells: &[Value<'_>]) -> Asked {
        let question = self.questions.get_mut(question).expect("a number given by `question`");
        for &at in question.filter.filter.columns() {
            question.values.push(match cells.get(at) {
                Some(Value::Text(text)) => {
                    let start = bytes.len();
                    bytes.extend_from_slice(text);
                    Some(start..bytes.len())
                }
                _ => None,
            });
        }
        question.rows += 1;
        Asked::Row(question.rows - 1)
    }

    /// Enters a change, with the events that stand for each outcome.
    pub fn enter(
        &mut self,
        question: usize,
        (old, new): (Asked, Asked),
        on_unknown_old: OnUnknownOld,
        alternatives: [Range<usize>; 3],
    ) {
        self.changes.push(Change { question, old, new, on_unknown_old, alternatives });
    }

    /// The key of a row that is asked about, for errors.
    pub fn key_of(&self, question: usize, row: usize, batch: &Batch) -> Option<String> {
        let is_it = |asked: Asked| matches!(asked, Asked::Row(of) if of == row);
        let change = self
            .changes
            .iter()
            .find(|change| change.question == question && (is_it(change.old) || is_it(change.new)))?;
        let mut places = change.alternatives.iter().filter(|range| !range.is_empty());
        batch.key_of(places.next()?.start)
    }

    /// Takes out of `items`, events or row changes, what the answers exclude; `answers`: for each question, one for each
    /// of its rows. Returns how many of the first `marked` items are left.
    ///
    /// # Errors
    /// Transient: an answer is missing.
    pub fn decide<T>(
        &mut self,
        items: &mut Vec<T>,
        marked: usize,
        answers: &[Vec<Option<bool>>],
    ) -> Result<usize> {
        let missing = || Error::transient("the source did not answer for every row of a filter");
        let mut kept = Vec::with_capacity(items.len());
        let mut kept_of_marked = 0;
        let mut keep = |(at, item)| {
            kept_of_marked += usize::from(at < marked);
            kept.push(item);
        };
        let mut rest = std::mem::take(items).into_iter().enumerate().peekable();
        for change in &self.changes {
            let answers = answers.get(change.question).ok_or_else(missing)?;
            let side = |asked: Asked| match asked {
                Asked::Known(side) => Ok(side),
                Asked::Row(row) => answers.get(row).copied().map(Side::of_answer).ok_or_else(missing),
            };
            let chosen = outcome(side(change.old)?, side(change.new)?, change.on_unknown_old);
            let [insert, _, delete] = &change.alternatives;
            while let Some((at, item)) = rest.next_if(|(at, _)| *at < delete.end) {
                let is_decided = at < insert.start;
                let is_chosen = || {
                    let mut each = ALTERNATIVES.iter().zip(&change.alternatives);
                    each.any(|(outcome, range)| *outcome == chosen && range.contains(&at))
                };
                if is_decided || is_chosen() {
                    keep((at, item));
                }
            }
        }
        rest.for_each(keep);
        *items = kept;
        self.clear();
        Ok(kept_of_marked)
    }

    /// Empties it for reuse.
    pub fn clear(&mut self) {
        self.questions.clear();
        self.changes.clear();
    }
}
