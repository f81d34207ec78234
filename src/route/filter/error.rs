//! Why a `where` is refused, and why a row could not be evaluated.
//!
//! [`FilterError`] is the operator's: it names the part of the expression and the remedy. [`EvalError`] is
//! a row's: what PostgreSQL would have raised for it (division by zero, overflow), or a received text that
//! is not what its type prints. Neither ever shows a value.

use crate::error::Error;

/// Why an expression cannot be a `where`. Definite.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// No SQL expression at all.
    #[error("syntax error: {message}")]
    Syntax {
        /// The parser's words.
        message: String,
    },
    /// Something follows the expression.
    #[error("more than one expression: {found} follows where it should end")]
    Several {
        /// The token behind the expression.
        found: String,
    },
    /// Longer or deeper than an expression written by a person.
    #[error("the expression is too {what}")]
    TooLarge {
        /// `long` or `deep`.
        what: &'static str,
    },
    /// The relation has no such column.
    #[error("column \"{name}\" does not exist")]
    UnknownColumn {
        /// As PostgreSQL understands the name.
        name: String,
        /// A column with a similar name.
        similar: Option<String>,
    },
    /// A generated column: the server does not send it.
    #[error("column \"{name}\" is a generated column, which the server does not send")]
    Generated {
        /// Its name.
        name: String,
    },
    /// `schema.table.column`, which a batch of rows cannot be asked for.
    #[error("the name {name} has a schema")]
    Qualified {
        /// As written.
        name: String,
    },
    /// A sub-query, an aggregate, a window function, a parameter, a wildcard, a system column.
    #[error("{what} may not stand in a filter")]
    Forbidden {
        /// What it is, with its name.
        what: String,
    },
    /// Its result may change while the row stays the same.
    #[error("{name} is not immutable")]
    Volatile {
        /// The function.
        name: String,
    },
    /// The expression is not a condition.
    #[error("the expression is of type {type_name}, not boolean")]
    NotBoolean {
        /// Its type.
        type_name: String,
    },
    /// The catalog has not been read since the type was made.
    #[error("the type of column \"{column}\", OID {oid}, is not known")]
    UnknownType {
        /// The column.
        column: String,
        /// Its type's OID.
        oid: u32,
    },
}

impl FilterError {
    /// The remedy.
    pub fn remedy(&self) -> String {
        match self {
            FilterError::Syntax { .. } => {
                "write one condition as PostgreSQL has it behind WHERE, for example region = 'EU' AND total >= 10; \
                 where PostgreSQL takes it as it is, parentheses around its parts may help"
                    .to_owned()
            }
            FilterError::Several { .. } => "write one condition; join conditions with AND or OR".to_owned(),
            FilterError::TooLarge { .. } => {
                "simplify it; a long OR of equalities is shorter as column IN (...)".to_owned()
            }
            FilterError::UnknownColumn { similar: Some(similar), .. } => {
                format!("did you mean \"{similar}\"? Names that are not quoted are read in lower case")
            }
            FilterError::UnknownColumn { similar: None, .. } => {
                "correct the name; names that are not quoted are read in lower case".to_owned()
            }
            FilterError::Generated { .. } => "write the generation expression instead".to_owned(),
            FilterError::Qualified { .. } => "write the column's name alone".to_owned(),
            FilterError::Forbidden { .. } | FilterError::Volatile { .. } => {
                "use only the row's own columns, constants, and operators and functions that are immutable".to_owned()
            }
            FilterError::NotBoolean { .. } => "compare it with something".to_owned(),
            FilterError::UnknownType { .. } => "read the catalog of types again".to_owned(),
        }
    }
}

impl From<FilterError> for Error {
    fn from(error: FilterError) -> Self {
        Error::definite(error.to_string()).with_hint(error.remedy()).with_source(error)
    }
}

/// Why a row could not be evaluated: PostgreSQL's own error for it, or an unexpected form. Definite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// `/ 0` or `% 0`.
    #[error("division by zero")]
    DivisionByZero,
    /// The result does not fit its type.
    #[error("{type_name} out of range")]
    OutOfRange {
        /// The type of the result.
        type_name: &'static str,
    },
    /// A numeric that is no number, cast to an integer.
    #[error("cannot convert NaN or infinity to {type_name}")]
    NotFinite {
        /// The type cast to.
        type_name: &'static str,
    },
    /// A text that its cast does not take.
    #[error("invalid input syntax for type {type_name}")]
    InvalidText {
        /// The type cast to.
        type_name: &'static str,
    },
    /// An escape in a json text that PostgreSQL stores but cannot turn into text.
    #[error("unsupported Unicode escape sequence in json")]
    JsonEscape,
    /// A label that the enum did not have when the filter was compiled.
    #[error("a label of an enum that is not known yet")]
    UnknownLabel,
    /// A received text that is not what its type prints.
    #[error("a received value is not what type {type_name} prints")]
    Form {
        /// The type.
        type_name: &'static str,
    },
    /// The row has fewer columns than the relation.
    #[error("the row has no column {index}")]
    MissingCell {
        /// The column's index.
        index: usize,
    },
}

impl EvalError {
    /// The remedy.
    pub fn remedy(&self) -> &'static str {
        match self {
            EvalError::DivisionByZero => {
                "guard it in the filter: x <> 0 AND 1 / x > 0 does not divide where x is 0"
            }
            EvalError::OutOfRange { .. } => "cast to a wider type in the filter, such as numeric",
            EvalError::InvalidText { .. } | EvalError::NotFinite { .. } => {
                "guard the cast in the filter with CASE"
            }
            EvalError::JsonEscape => "mend the document at the source; jsonb does not take such escapes",
            EvalError::UnknownLabel => {
                "start again: the enum's labels are read at start and at a schema change"
            }
            EvalError::Form { .. } | EvalError::MissingCell { .. } => {
                "the source did not print the value as PostgreSQL does under Walgate's session settings; \
                 report the type"
            }
        }
    }
}

impl From<EvalError> for Error {
    fn from(error: EvalError) -> Self {
        Error::definite(error.to_string()).with_hint(error.remedy()).with_source(error)
    }
}
