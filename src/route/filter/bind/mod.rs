//! The tree of a `where` into typed nodes, as PostgreSQL's parser would type it.
//!
//! In: the parsed expression, the relation, types, labels and collations. Out: an [`Operand`], or the
//! reason why the server must evaluate it. Always: a node is made only where operator, types, collation
//! and the order of evaluation are certain; whatever is not listed here goes to the server. That the parser
//! gave operators PostgreSQL's precedence is checked at every node ([`precedence`]), not assumed.
//! Manual: "Type Conversion", "Operator Precedence", "Comparison Functions and Operators".

mod precedence;
mod operators;
mod lists;
mod calls;
mod casts;
mod literal;

use sqlparser::ast::{BinaryOperator, Expr, Ident, UnaryOperator, Value};

use self::operators::compare;
use self::precedence::{Level, level};
use super::arithmetic::{ArithOp, Width};
use super::datum::Datum;
use super::facts::{Collation, EnumLabels, TableFacts};
use super::node::{CompareOp, Node};
use super::syntax::folded;
use super::types::Type;
use crate::route::value::TypeCatalog;
use crate::wal::pgoutput::Relation;

/// Why the server evaluates: the part that Walgate does not, for people.
pub(super) type Why = String;

/// What an expression is made from.
pub(super) struct Binder<'a> {
    pub(super) relation: &'a Relation,
    pub(super) types: &'a TypeCatalog,
    pub(super) enums: &'a EnumLabels,
    pub(super) facts: &'a TableFacts,
    /// Whether BETWEEN means BETWEEN SYMMETRIC.
    pub(super) is_symmetric: bool,
}

/// A sub-expression.
#[derive(Clone, Debug)]
pub(super) enum Operand {
    /// A string literal or NULL, whose type its surroundings decide.
    Literal(Option<String>),
    /// One with a type.
    Value(Typed),
}

/// A sub-expression with a type.
#[derive(Clone, Debug)]
pub(super) struct Typed {
    pub(super) node: Node,
    pub(super) ty: Type,
    /// A column whose type is a domain on `ty`.
    pub(super) is_domain: bool,
    pub(super) collation: Collated,
    /// Whether it has a column in it.
    pub(super) has_columns: bool,
}

/// What is known of the collation of a text ("Collation Support: Concepts").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Collated {
    /// No collation, or the database's: its equality is that of bytes, its order is not known.
    Default,
    /// A column's own.
    Implicit(Collation),
    /// `COLLATE "C"`.
    ExplicitC,
    /// A column of which the catalog was not asked.
    Unknown,
}

impl Collated {
    /// The collation of an operator on both.
    fn merge(self, other: Collated) -> Result<Collated, Why> {
        match (self, other) {
            (Collated::ExplicitC, _) | (_, Collated::ExplicitC) => Ok(Collated::ExplicitC),
            (Collated::Unknown, _) | (_, Collated::Unknown) => Ok(Collated::Unknown),
            (Collated::Default, other) | (other, Collated::Default) => Ok(other),
            (left, right) if left == right => Ok(left),
            _ => Err("columns of different collations".to_owned()),
        }
    }

    fn is_bytewise(&self) -> bool {
        match self {
            Collated::ExplicitC => true,
            Collated::Implicit(collation) => {
                collation.namespace == "pg_catalog" && matches!(collation.name.as_str(), "C" | "POSIX")
            }
            Collated::Default | Collated::Unknown => false,
        }
    }

    /// Whether equal means equal bytes.
    fn check_equality(&self) -> Result<(), Why> {
        match self {
            Collated::Default | Collated::ExplicitC => Ok(()),
            Collated::Implicit(collation) if collation.is_deterministic => Ok(()),
            Collated::Implicit(_) => Err("a collation that is not deterministic".to_owned()),
            Collated::Unknown => Err("a text column of unknown collation".to_owned()),
        }
    }
}

/// Nested deeper than this goes to the server, which has more stack. Chains of AND and OR are not deep.
const DEPTH_MAX: usize = 60;

/// Nodes of an operand of BETWEEN, IN or CASE.
const COPIED_NODES_MAX: usize = 64;

type Bound = Result<Operand, Why>;

impl Typed {
    fn new(node: Node, ty: Type, has_columns: bool) -> Self {
        Typed { node: node.folded(), ty, is_domain: false, collation: Collated::Default, has_columns }
    }

    fn into_operand(self) -> Operand {
        Operand::Value(self)
    }
}

impl Operand {
    /// Its type; a literal has none yet.
    pub(super) fn ty(&self) -> Option<&Type> {
        match self {
            Operand::Literal(_) => None,
            Operand::Value(typed) => Some(&typed.ty),
        }
    }

    fn has_columns(&self) -> bool {
        matches!(self, Operand::Value(Typed { has_columns: true, .. }))
    }

    /// Makes sure that it may be compared several times, each with a copy: copies of copies grow without end.
    fn check_copies(&self) -> Result<(), Why> {
        match self {
            Operand::Value(typed) if typed.node.weight(COPIED_NODES_MAX) > COPIED_NODES_MAX => {
                Err("a large expression that is compared several times".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl Binder<'_> {
    /// Types an expression.
    pub(super) fn bind(&self, expr: &Expr, depth: usize) -> Bound {
        let depth = depth + 1;
        if depth > DEPTH_MAX {
            return Err("its depth".to_owned());
        }
        match expr {
            Expr::Nested(inner) => self.bind(inner, depth),
            Expr::Identifier(ident) => self.column(ident),
            Expr::CompoundIdentifier(parts) => self.column(parts.last().ok_or("a name")?),
            Expr::Value(value) => bind_value(&value.value),
            Expr::TypedString(typed) => match &typed.value.value {
                Value::SingleQuotedString(text) if !typed.uses_odbc_syntax => {
                    let target = self.cast_target(&typed.data_type)?;
                    Ok(self.literal(Some(text), &target)?.into_operand())
                }
                _ => Err(format!("{expr}")),
            },
            Expr::UnaryOp { op: UnaryOperator::Not, expr: inner } => {
                let operand = self.bind_at(inner, Level::Not, depth)?;
                let typed = self.condition(operand)?;
                Ok(boolean(Node::Not(Box::new(typed.node)), typed.has_columns))
            }
            Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } => match literal::number(expr) {
                Some(number) => literal::bind_number(&number),
                None => {
                    let operand = self.bind_at(inner, Level::UnaryMinus, depth)?;
                    let (typed, width) = number_operand(operand, "-")?;
                    let node = Node::Negate { width, node: Box::new(typed.node) };
                    Ok(Typed::new(node, typed.ty, typed.has_columns).into_operand())
                }
            },
            Expr::BinaryOp { op: BinaryOperator::And | BinaryOperator::Or, .. } => self.junction(expr, depth),
            Expr::BinaryOp { left, op, right } => self.binary(left, op, right, depth),
            Expr::IsNull(inner) => self.is_null(inner, false, depth),
            Expr::IsNotNull(inner) => self.is_null(inner, true, depth),
            Expr::IsTrue(inner) => self.is(inner, Some(true), false, depth),
            Expr::IsNotTrue(inner) => self.is(inner, Some(true), true, depth),
            Expr::IsFalse(inner) => self.is(inner, Some(false), false, depth),
            Expr::IsNotFalse(inner) => self.is(inner, Some(false), true, depth),
            Expr::IsUnknown(inner) => self.is(inner, None, false, depth),
            Expr::IsNotUnknown(inner) => self.is(inner, None, true, depth),
            Expr::IsDistinctFrom(left, right) => self.distinct(left, right, false, depth),
            Expr::IsNotDistinctFrom(left, right) => self.distinct(left, right, true, depth),
            Expr::InList { expr, list, negated } => self.in_list(expr, list, *negated, depth),
            Expr::Between { expr, negated, low, high } => self.between(expr, *negated, (low, high), depth),
            Expr::Like { negated, any: false, expr, pattern, escape_char } => {
                self.like(expr, pattern, escape_char.as_deref(), *negated, depth)
            }
            Expr::AnyOp { left, compare_op, right, .. } => self.any(left, compare_op, right, false, depth),
            Expr::AllOp { left, compare_op, right } => self.any(left, compare_op, right, true, depth),
            Expr::Cast { kind, expr: inner, data_type, format: None } => {
                self.cast(kind, inner, data_type, depth)
            }
            Expr::Collate { expr: inner, collation } => {
                let name = collation.to_string();
                if !matches!(
                    name.as_str(),
                    "\"C\"" | "pg_catalog.\"C\"" | "\"POSIX\"" | "pg_catalog.\"POSIX\""
                ) {
                    return Err(format!("COLLATE {name}"));
                }
                let operand = self.bind_at(inner, Level::Collate, depth)?;
                let typed = self.settle(operand, &Type::Text)?;
                if !typed.ty.is_collatable() || matches!(typed.ty, Type::Array(_)) {
                    return Err(format!("COLLATE of {}", typed.ty.name()));
                }
                Ok(Typed { collation: Collated::ExplicitC, ..typed }.into_operand())
            }
            Expr::Case { operand, conditions, else_result, .. } => {
                let arms = conditions.iter().map(|arm| (&arm.condition, &arm.result));
                self.case(operand.as_deref(), arms, else_result.as_deref(), depth)
            }
            Expr::Array(array) if array.named => {
                let items = array.elem.iter().map(|item| self.bind(item, depth)).collect::<Result<_, _>>()?;
                Ok(self.array(items, None)?.into_operand())
            }
            Expr::Function(function) => self.function(function, depth),
            _ => Err(part_name(expr)),
        }
    }

    /// Types an operand of an operator that binds less tightly than `min`, or just so.
    fn bind_at(&self, expr: &Expr, min: Level, depth: usize) -> Bound {
        if level(expr) < min {
            return Err(format!("the precedence of {}; add parentheses", part_name(expr)));
        }
        self.bind(expr, depth)
    }

    fn column(&self, ident: &Ident) -> Bound {
        let name = folded(ident);
        let found = self.relation.columns.iter().enumerate().find(|(_, column)| column.name == name);
        let (at, column) = found.ok_or_else(|| name.clone())?;
        let (ty, is_domain) = Type::of(column.type_oid, self.types).ok_or_else(|| name.clone())?;
        let collation = if ty.is_collatable() {
            match self.facts.collations.get(&name) {
                None => Collated::Unknown,
                Some(found) if found.namespace == "pg_catalog" && found.name == "default" => {
                    Collated::Default
                }
                Some(found) => Collated::Implicit(found.clone()),
            }
        } else {
            Collated::Default
        };
        let node = Node::Column { at, ty: ty.clone() };
        Ok(Operand::Value(Typed { node, ty, is_domain, collation, has_columns: true }))
    }

    /// AND and OR, of which a long chain is one node.
    fn junction(&self, expr: &Expr, depth: usize) -> Bound {
        let Expr::BinaryOp { op, .. } = expr else { return Err(part_name(expr)) };
        let (own, above) = match op {
            BinaryOperator::And => (Level::And, Level::Not),
            _ => (Level::Or, Level::And),
        };
        let mut parts = Vec::new();
        let mut rest = expr;
        while let Expr::BinaryOp { left, op: next, right } = rest
            && next == op
        {
            parts.push(self.bind_at(right, above, depth)?);
            rest = left;
        }
        parts.push(self.bind_at(rest, own, depth)?);
        let mut nodes = Vec::with_capacity(parts.len());
        let mut has_columns = false;
        for part in parts.into_iter().rev() {
            let typed = self.condition(part)?;
            has_columns |= typed.has_columns;
            nodes.push(typed.node);
        }
        let node = if own == Level::And { Node::And(nodes) } else { Node::Or(nodes) };
        Ok(boolean(node, has_columns))
    }

    fn binary(&self, left: &Expr, op: &BinaryOperator, right: &Expr, depth: usize) -> Bound {
        let (left_min, right_min) = precedence::sides(op).ok_or_else(|| format!("the operator {op}"))?;
        let operands = (self.bind_at(left, left_min, depth)?, self.bind_at(right, right_min, depth)?);
        if let Some(op) = compare(op) {
            return self.comparison(op, operands.0, operands.1);
        }
        match op {
            BinaryOperator::Plus => self.arithmetic(ArithOp::Add, operands.0, operands.1),
            BinaryOperator::Minus => self.arithmetic(ArithOp::Subtract, operands.0, operands.1),
            BinaryOperator::Multiply => self.arithmetic(ArithOp::Multiply, operands.0, operands.1),
            BinaryOperator::Divide => self.arithmetic(ArithOp::Divide, operands.0, operands.1),
            BinaryOperator::Modulo => self.arithmetic(ArithOp::Modulo, operands.0, operands.1),
            BinaryOperator::StringConcat => self.concat(operands.0, operands.1),
            BinaryOperator::Arrow => self.json_get(false, operands.0, operands.1),
            BinaryOperator::LongArrow => self.json_get(true, operands.0, operands.1),
            other => Err(format!("the operator {other}")),
        }
    }

    fn is_null(&self, inner: &Expr, is_negated: bool, depth: usize) -> Bound {
        let typed = match self.bind_at(inner, Level::Compare, depth)? {
            Operand::Literal(value) => {
                return Ok(boolean(constant_bool(value.is_none() != is_negated), false));
            }
            Operand::Value(Typed { ty: Type::Other { is_composite: true }, .. }) => {
                return Err("IS NULL of a composite type".to_owned());
            }
            Operand::Value(typed) => typed,
        };
        Ok(boolean(negated_if(is_negated, Node::IsNull(Box::new(typed.node))), typed.has_columns))
    }

    fn is(&self, inner: &Expr, value: Option<bool>, is_negated: bool, depth: usize) -> Bound {
        let operand = self.bind_at(inner, Level::Compare, depth)?;
        let typed = self.condition(operand)?;
        let node = Box::new(typed.node);
        let node = match value {
            Some(value) => Node::Is { node, value },
            None => Node::IsNull(node),
        };
        Ok(boolean(negated_if(is_negated, node), typed.has_columns))
    }

    fn distinct(&self, left: &Expr, right: &Expr, is_same: bool, depth: usize) -> Bound {
        let left = self.bind_at(left, Level::Compare, depth)?;
        let right = self.bind_at(right, Level::Compare, depth)?;
        // PostgreSQL makes IS [NOT] NULL of it.
        let (left, right) = match (left, right) {
            (Operand::Literal(None), Operand::Value(other))
            | (Operand::Value(other), Operand::Literal(None)) => {
                if matches!(other.ty, Type::Other { .. }) {
                    return Err(format!("a comparison of {}", other.ty.name()));
                }
                return Ok(boolean(
                    negated_if(!is_same, Node::IsNull(Box::new(other.node))),
                    other.has_columns,
                ));
            }
            sides => sides,
        };
        let pair = self.pair(CompareOp::Equal, left, right)?;
        let node = Node::Same { by: pair.by, sides: pair.sides };
        Ok(boolean(negated_if(!is_same, node), pair.has_columns))
    }

    /// As a condition.
    pub(super) fn condition(&self, operand: Operand) -> Result<Typed, Why> {
        let typed = self.settle(operand, &Type::Bool)?;
        if typed.ty == Type::Bool { Ok(typed) } else { Err(format!("{} as a condition", typed.ty.name())) }
    }

    /// Gives a literal its type; what has one keeps it.
    pub(super) fn settle(&self, operand: Operand, ty: &Type) -> Result<Typed, Why> {
        match operand {
            Operand::Value(typed) => Ok(typed),
            Operand::Literal(text) => self.literal(text.as_deref(), ty),
        }
    }
}

fn bind_value(value: &Value) -> Bound {
    match value {
        Value::Number(number, false) => literal::bind_number(number),
        Value::SingleQuotedString(text) => Ok(Operand::Literal(Some(text.clone()))),
        Value::Boolean(value) => Ok(boolean(constant_bool(*value), false)),
        Value::Null => Ok(Operand::Literal(None)),
        other => Err(format!("{other}")),
    }
}

fn number_operand(operand: Operand, what: &str) -> Result<(Typed, Width), Why> {
    match operand {
        Operand::Value(typed) => {
            let width = Width::of(&typed.ty).ok_or_else(|| format!("{what} of {}", typed.ty.name()))?;
            Ok((typed, width))
        }
        Operand::Literal(_) => Err(format!("{what} of a string")),
    }
}

fn boolean(node: Node, has_columns: bool) -> Operand {
    Operand::Value(Typed::new(node, Type::Bool, has_columns))
}

fn negated_if(is_negated: bool, node: Node) -> Node {
    if is_negated { Node::Not(Box::new(node.folded())) } else { node }
}

fn constant_bool(value: bool) -> Node {
    Node::Const(Some(Datum::Bool(value)))
}

/// A part of the expression for people, not longer than a line.
fn part_name(expr: &Expr) -> String {
    let text = expr.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
