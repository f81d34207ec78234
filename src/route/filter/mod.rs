//! Row filters: the `where` of a rule, compiled for one table and evaluated on received rows.
//!
//! In: the text of a condition, the relation, and what the catalog says of its types and collations. Out:
//! for each row a [`Verdict`]. Always: the verdict is PostgreSQL's. What Walgate can prove it evaluates on
//! the received text ([`Evaluator::Own`]); everything else is left to PostgreSQL over the batch's values
//! ([`Evaluator::Server`]), slower and right by definition; what depends on more than the row is refused.
//! Three-valued logic holds throughout, and a cell that was not sent makes a fourth value, *unknown*, which
//! is never taken for NULL. Pure: no I/O, no clock; no allocation for a row of integers, text or numerics.
//!
//! The rejected alternative: evaluate more here, such as order of text or regular expressions. Their meaning
//! is the server's libraries' and its version's; a filter that is almost right loses rows without a word.
//! What users may write is in `docs/filters.md`. Manual: "Value Expressions", "Row Filters".

mod error;
mod facts;
mod syntax;
mod bind;
mod types;
mod datum;
mod node;
mod arithmetic;
mod numeric;
pub(crate) mod datetime;
mod array;
mod json;
mod like;
mod server;
#[cfg(test)]
mod tests;

pub use error::{EvalError, FilterError};
pub use facts::{Collation, EnumLabels, TableFacts};

use self::bind::{Binder, Operand};
use self::node::{Node, Row, Stop, truth};
use self::server::ServerColumn;
use self::types::Type;
use crate::route::value::TypeCatalog;
use crate::wal::pgoutput::{Relation, Value};

/// Who evaluates a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaluator {
    /// Walgate, on the received text.
    Own,
    /// PostgreSQL, over a batch: [`Filter::server_statement`].
    Server,
}

/// What a filter says of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The condition is true.
    Pass,
    /// It is false or NULL.
    Fail,
    /// It depends on the column with this index, whose value was not sent.
    Unknown(usize),
}

/// A filter, compiled for one relation.
#[derive(Debug)]
pub struct Filter {
    sql: String,
    relation: Relation,
    columns: Vec<usize>,
    server_columns: Vec<ServerColumn>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Own(Node),
    /// Why the server.
    Server(String),
}

impl Filter {
    /// Compiles `text` for `relation`.
    ///
    /// # Errors
    /// When it is not one condition over the relation's columns, or cannot be immutable. That it *is*
    /// immutable only PostgreSQL can say: [`Filter::immutability_check`].
    pub fn compile(
        text: &str,
        relation: &Relation,
        types: &TypeCatalog,
        enums: &EnumLabels,
        facts: &TableFacts,
    ) -> Result<Filter, FilterError> {
        let parsed = syntax::parse(text)?;
        let columns = syntax::survey(&parsed.expr, relation, facts)?;
        let server_columns = ServerColumn::describe(&columns, relation, types, facts).map_err(|at| {
            let column = relation.columns.get(at);
            FilterError::UnknownType {
                column: column.map(|column| column.name.clone()).unwrap_or_default(),
                oid: column.map_or(0, |column| column.type_oid),
            }
        })?;
        let binder =
            Binder { relation, types, enums, facts, is_symmetric: parsed.is_symmetric.unwrap_or(false) };
        let bound = match parsed.doubt {
            Some(doubt) => Err(doubt),
            None => binder.bind(&parsed.expr, 0),
        };
        let has_moments = columns.iter().any(|&at| {
            let ty = relation.columns.get(at).and_then(|column| Type::of(column.type_oid, types));
            ty.is_some_and(|(ty, _)| ty.may_hold_moments())
        });
        if bound.is_err()
            && let Some(name) = syntax::moving_literal(&parsed.expr, has_moments)
        {
            return Err(FilterError::Volatile { name });
        }
        let body = match bound {
            Err(why) => Body::Server(why),
            Ok(Operand::Value(typed)) if !matches!(typed.ty, Type::Bool | Type::Other { .. }) => {
                return Err(FilterError::NotBoolean { type_name: typed.ty.name().to_owned() });
            }
            Ok(operand) => match binder.condition(operand) {
                Ok(typed) => Body::Own(typed.node),
                Err(why) => Body::Server(why),
            },
        };
        let mut sql = text.to_owned();
        if parsed.has_line_comment {
            sql.push('\n');
        }
        Ok(Filter { sql, relation: relation.clone(), columns, server_columns, body })
    }

    /// Who evaluates it.
    pub fn evaluator(&self) -> Evaluator {
        match self.body {
            Body::Own(_) => Evaluator::Own,
            Body::Server(_) => Evaluator::Server,
        }
    }

    /// The part that made it go to the server.
    pub fn why_server(&self) -> Option<&str> {
        match &self.body {
            Body::Own(_) => None,
            Body::Server(why) => Some(why),
        }
    }

    /// Indexes of the relation's columns that it uses, sorted.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Evaluates it on a new row, whose cells are those of the relation's columns. What was not sent is TOASTed.
    ///
    /// # Errors
    /// What PostgreSQL would raise for the row, or a text that is not what its type prints.
    ///
    /// # Panics
    /// For [`Evaluator::Server`]: such a filter has nothing to evaluate here.
    pub fn evaluate(&self, cells: &[Value<'_>]) -> Result<Verdict, EvalError> {
        self.evaluate_row(Row { values: cells, is_old: false })
    }

    /// Evaluates it on an old row, as far as it was sent: what was not may be anything, also NULL.
    ///
    /// # Errors
    /// As [`Filter::evaluate`].
    ///
    /// # Panics
    /// As [`Filter::evaluate`].
    pub fn evaluate_old(&self, cells: &[Value<'_>]) -> Result<Verdict, EvalError> {
        self.evaluate_row(Row { values: cells, is_old: true })
    }

    fn evaluate_row(&self, cells: Row<'_, '_>) -> Result<Verdict, EvalError> {
        let Body::Own(node) = &self.body else { panic!("the filter is evaluated by the server") };
        match truth(node, cells) {
            Ok(Some(true)) => Ok(Verdict::Pass),
            Ok(Some(false) | None) => Ok(Verdict::Fail),
            Err(Stop::Unknown(column)) => Ok(Verdict::Unknown(column)),
            Err(Stop::Error(error)) => Err(error),
        }
    }

    /// One statement that evaluates it over a batch. Parameters: for each of [`Filter::columns`] a `text[]`
    /// with a value for each row (of a filter on no column one array of that length). Result: one row for
    /// each of them, in order: a `bool`, which may be NULL.
    ///
    /// Names and operators in the expression mean what the session's `search_path` says, so it must be
    /// [`Filter::search_path`].
    pub fn server_statement(&self) -> String {
        server::statement(&self.sql, &self.relation, &self.server_columns)
    }

    /// The value for `SET LOCAL search_path` under which every statement with this expression must run, COPY
    /// included: `pg_catalog`, then the schemas of the used columns' types. Without the latter an operator of
    /// an extension is not found, and PostgreSQL may take another without a word: citext compares as text.
    pub fn search_path(&self) -> String {
        server::search_path(&self.server_columns)
    }

    /// Statements by which PostgreSQL refuses the expression if it is not immutable, not boolean, or does not
    /// exist; to be run in a transaction that is rolled back. They make a temporary table with the relation's
    /// name and an index on it whose predicate is the filter.
    pub fn immutability_check(&self) -> Vec<String> {
        server::immutability_check(&self.sql, &self.relation, &self.server_columns)
    }

    /// Whether no value can make it fail, here or in PostgreSQL: it compares columns and constants, and joins that by AND, OR
    /// and NOT.
    pub fn cannot_fail(&self) -> bool {
        match &self.body {
            Body::Own(node) => node.cannot_fail(),
            Body::Server(_) => false,
        }
    }

    /// After [`Filter::immutability_check`], in its transaction: the expression as PostgreSQL writes it.
    pub fn deparse(&self) -> String {
        server::deparse(&self.relation)
    }

    /// The user's text, for `COPY (SELECT ... WHERE (<sql>))`.
    pub fn sql(&self) -> &str {
        &self.sql
    }
}
