//! Whether the tree is the one that PostgreSQL's grammar gives.
//!
//! The parser keeps parentheses in the tree, so a tree is PostgreSQL's exactly when each operand binds at
//! least as tightly as its place in PostgreSQL's table asks. Where it does not, the parser and PostgreSQL
//! read the text differently, or PostgreSQL refuses it: the server decides. Manual: "Operator Precedence";
//! `gram.y`.

use sqlparser::ast::{BinaryOperator, CastKind, Expr, UnaryOperator};

/// How tightly an expression binds, loosest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// What is not known to bind at all.
    Nothing,
    Or,
    And,
    Not,
    /// IS, ISNULL, NOTNULL.
    Is,
    Compare,
    /// BETWEEN, IN, LIKE.
    Like,
    /// `||`, `->` and all other operators.
    Other,
    Add,
    Multiply,
    /// Over the factors of a product.
    Factor,
    Collate,
    UnaryMinus,
    Cast,
    /// Names, constants, calls, parentheses.
    Atom,
}

/// The level of an expression's own operator.
pub(super) fn level(expr: &Expr) -> Level {
    match expr {
        Expr::BinaryOp { op, .. } => match op {
            BinaryOperator::Or => Level::Or,
            BinaryOperator::And => Level::And,
            _ => sides(op).map_or(Level::Nothing, |(left, _)| match left {
                Level::Like => Level::Compare,
                other => other,
            }),
        },
        Expr::UnaryOp { op: UnaryOperator::Not, .. } => Level::Not,
        Expr::UnaryOp { op: UnaryOperator::Minus, .. } => Level::UnaryMinus,
        Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsTrue(_)
        | Expr::IsNotTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsNotFalse(_)
        | Expr::IsUnknown(_)
        | Expr::IsNotUnknown(_)
        | Expr::IsDistinctFrom(..)
        | Expr::IsNotDistinctFrom(..) => Level::Is,
        Expr::AnyOp { .. } | Expr::AllOp { .. } => Level::Compare,
        Expr::InList { .. } | Expr::Between { .. } | Expr::Like { .. } => Level::Like,
        Expr::Collate { .. } => Level::Collate,
        Expr::Cast { kind: CastKind::DoubleColon, .. } => Level::Cast,
        Expr::Cast { kind: CastKind::Cast, .. }
        | Expr::Nested(_)
        | Expr::Identifier(_)
        | Expr::CompoundIdentifier(_)
        | Expr::Value(_)
        | Expr::TypedString(_)
        | Expr::Case { .. }
        | Expr::Array(_)
        | Expr::Function(_) => Level::Atom,
        _ => Level::Nothing,
    }
}

/// What the sides of a binary operator must bind like at least. The left side of a left-associative one may
/// be of its own level; comparisons associate with nothing.
pub(super) fn sides(op: &BinaryOperator) -> Option<(Level, Level)> {
    Some(match op {
        BinaryOperator::Eq
        | BinaryOperator::NotEq
        | BinaryOperator::Lt
        | BinaryOperator::LtEq
        | BinaryOperator::Gt
        | BinaryOperator::GtEq => (Level::Like, Level::Like),
        BinaryOperator::StringConcat | BinaryOperator::Arrow | BinaryOperator::LongArrow => {
            (Level::Other, Level::Add)
        }
        BinaryOperator::Plus | BinaryOperator::Minus => (Level::Add, Level::Multiply),
        BinaryOperator::Multiply | BinaryOperator::Divide | BinaryOperator::Modulo => {
            (Level::Multiply, Level::Factor)
        }
        _ => return None,
    })
}
