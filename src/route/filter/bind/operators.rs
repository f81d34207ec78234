//! Operators on two operands: which one PostgreSQL takes, and as what it compares.
//!
//! Always: both sides have the type that the chosen operator asks for when a node is made. The rules are
//! those of "Operator Type Resolution", worked out for the types listed here: two integers compare as such;
//! an integer and a numeric as numerics; anything with a float as float8, unless both are float4; a literal
//! takes the other side's type; text and varchar share their operators.

use sqlparser::ast::{BinaryOperator, Expr, Value};

use super::precedence::Level;
use super::{Binder, Bound, Collated, Operand, Typed, Why, boolean, casts, negated_if};
use crate::route::filter::arithmetic::{ArithOp, Width};
use crate::route::filter::datum::{Datum, Order};
use crate::route::filter::like::Pattern;
use crate::route::filter::node::{CompareOp, Node};
use crate::route::filter::types::Type;

/// Two sides that can be compared.
pub(super) struct Pair {
    pub(super) by: Order,
    pub(super) sides: Box<[Node; 2]>,
    pub(super) has_columns: bool,
}

/// The comparison of an operator.
pub(super) fn compare(op: &BinaryOperator) -> Option<CompareOp> {
    Some(match op {
        BinaryOperator::Eq => CompareOp::Equal,
        BinaryOperator::NotEq => CompareOp::NotEqual,
        BinaryOperator::Lt => CompareOp::Less,
        BinaryOperator::LtEq => CompareOp::LessEqual,
        BinaryOperator::Gt => CompareOp::Greater,
        BinaryOperator::GtEq => CompareOp::GreaterEqual,
        _ => return None,
    })
}

/// The type that a literal takes beside a value.
fn beside(ty: &Type) -> Type {
    if *ty == Type::Varchar { Type::Text } else { ty.clone() }
}

impl Binder<'_> {
    pub(super) fn comparison(&self, op: CompareOp, left: Operand, right: Operand) -> Bound {
        let pair = self.pair(op, left, right)?;
        Ok(boolean(Node::Compare { op, by: pair.by, sides: pair.sides }, pair.has_columns))
    }

    /// Both sides as the comparison takes them.
    pub(super) fn pair(&self, op: CompareOp, left: Operand, right: Operand) -> Result<Pair, Why> {
        let (left, right) = self.settled(left, right)?;
        let has_columns = left.has_columns || right.has_columns;
        let collation = left.collation.clone().merge(right.collation.clone())?;
        let number = match (left.ty.number_rank(), right.ty.number_rank()) {
            (Some(left), Some(right)) => Some(left.max(right)),
            _ => None,
        };
        let is_float4 = (&left.ty, &right.ty) == (&Type::Float4, &Type::Float4);
        let (by, target) = match number {
            Some(_) if left.ty.is_integer() && right.ty.is_integer() => (Order::Int, None),
            Some(_) if is_float4 => (Order::Float, None),
            Some(_) if left.ty.is_float() || right.ty.is_float() => (Order::Float, Some(Type::Float8)),
            Some(_) => (Order::Numeric, Some(Type::Numeric)),
            None => (self.order(op, &left.ty, &right.ty, &collation)?, None),
        };
        let sides = match target {
            Some(target) => [casts::implicit(left, &target)?, casts::implicit(right, &target)?],
            None => [left.node, right.node],
        };
        Ok(Pair { by, sides: Box::new(sides), has_columns })
    }

    /// Gives a literal the type of the other side; two literals are text.
    fn settled(&self, left: Operand, right: Operand) -> Result<(Typed, Typed), Why> {
        let target = match (&left, &right) {
            (Operand::Value(typed), _) | (_, Operand::Value(typed)) => beside(&typed.ty),
            (Operand::Literal(_), Operand::Literal(_)) => Type::Text,
        };
        if matches!(target, Type::Json | Type::Jsonb | Type::Other { .. }) {
            return Err(format!("a comparison of {}", target.name()));
        }
        Ok((self.settle(left, &target)?, self.settle(right, &target)?))
    }

    /// How values of types that are no numbers compare.
    fn order(&self, op: CompareOp, left: &Type, right: &Type, collation: &Collated) -> Result<Order, Why> {
        let why = || format!("a comparison of {} with {}", left.name(), right.name());
        let text = |order: Order| {
            collation.check_equality()?;
            if op.is_equality() || collation.is_bytewise() {
                Ok(order)
            } else {
                Err("the order of text; COLLATE \"C\" would make it that of bytes".to_owned())
            }
        };
        match (left, right) {
            _ if left.is_text() && right.is_text() => text(Order::Bytes),
            (Type::Bpchar, Type::Bpchar) => text(Order::Padded),
            // Both moments are instants of the same clock, so the wider range of dates does no harm.
            (Type::Date, Type::Timestamp) | (Type::Timestamp, Type::Date) => Ok(Order::Moment),
            _ if left != right => Err(why()),
            (Type::Bool, _) => Ok(Order::Bool),
            (Type::Uuid | Type::Bytea, _) => Ok(Order::Bytes),
            (Type::Date | Type::Time | Type::Timestamp | Type::Timestamptz, _) => Ok(Order::Moment),
            // Equal labels are equal, also those that the enum got later.
            (Type::Enum(_), _) if op.is_equality() => Ok(Order::Bytes),
            (Type::Enum(oid), _) => self.enums.labels(*oid).cloned().map(Order::Labels).ok_or_else(why),
            (Type::Array(element), _) if op.is_equality() => {
                Ok(Order::Array(Box::new(self.element_order(op, element, collation)?)))
            }
            _ => Err(why()),
        }
    }

    fn element_order(&self, op: CompareOp, element: &Type, collation: &Collated) -> Result<Order, Why> {
        match element {
            Type::Int2 | Type::Int4 | Type::Int8 => Ok(Order::Int),
            Type::Numeric => Ok(Order::Numeric),
            Type::Float4 | Type::Float8 => Ok(Order::Float),
            Type::Array(_) => Err("an array of arrays".to_owned()),
            other => self.order(op, other, other, collation),
        }
    }

    /// `left op ANY (right)`, `left op ALL (right)`.
    pub(super) fn any_of(&self, op: CompareOp, left: Operand, right: Operand, is_all: bool) -> Bound {
        let what = || "ANY of what is no array".to_owned();
        let right = match right {
            Operand::Value(typed) => typed,
            Operand::Literal(text) => {
                let element = match &left {
                    Operand::Value(typed) => beside(&typed.ty),
                    Operand::Literal(_) => return Err(what()),
                };
                self.literal(text.as_deref(), &Type::Array(Box::new(element)))?
            }
        };
        let Type::Array(element) = &right.ty else { return Err(what()) };
        // A value of the element's type stands for all of them.
        let sample = Typed {
            node: Node::Const(None),
            ty: element.as_ref().clone(),
            is_domain: false,
            collation: right.collation.clone(),
            has_columns: right.has_columns,
        };
        let has_columns = right.has_columns || matches!(&left, Operand::Value(typed) if typed.has_columns);
        let sample_pair = self.pair(op, left, Operand::Value(sample))?;
        let [left, _] = *sample_pair.sides;
        let array = if is_kept(element, &sample_pair.by) {
            right.node
        } else {
            let target = if matches!(sample_pair.by, Order::Float) { Type::Float8 } else { Type::Numeric };
            cast_elements(right.node, element, &target)?
        };
        if array.is_null_const() {
            return Ok(boolean(Node::Const(None), has_columns));
        }
        let node = Node::Any { op, by: sample_pair.by, is_all, sides: Box::new([left, array]) };
        Ok(boolean(node, has_columns))
    }

    pub(super) fn arithmetic(&self, op: ArithOp, left: Operand, right: Operand) -> Bound {
        let target = match (&left, &right) {
            (Operand::Value(typed), _) | (_, Operand::Value(typed)) => typed.ty.clone(),
            (Operand::Literal(_), Operand::Literal(_)) => return Err("arithmetic with strings".to_owned()),
        };
        if target.number_rank().is_none() {
            return Err(format!("arithmetic with {}", target.name()));
        }
        let (left, right) = (self.settle(left, &target)?, self.settle(right, &target)?);
        let (Some(left_rank), Some(right_rank)) = (left.ty.number_rank(), right.ty.number_rank()) else {
            return Err(format!("arithmetic with {} and {}", left.ty.name(), right.ty.name()));
        };
        let ty = match (&left.ty, &right.ty) {
            (Type::Float4, Type::Float4) => Type::Float4,
            (left, right) if left.is_float() || right.is_float() => Type::Float8,
            (left, _) if left_rank >= right_rank => left.clone(),
            (_, right) => right.clone(),
        };
        match op {
            ArithOp::Divide if ty == Type::Numeric => return Err("division of numerics".to_owned()),
            ArithOp::Modulo if ty.is_float() => return Err("% of floats".to_owned()),
            _ => {}
        }
        let width = Width::of(&ty).ok_or_else(|| ty.name().to_owned())?;
        let has_columns = left.has_columns || right.has_columns;
        let sides = Box::new([casts::implicit(left, &ty)?, casts::implicit(right, &ty)?]);
        Ok(Operand::Value(Typed::new(Node::Arith { op, width, sides }, ty, has_columns)))
    }

    pub(super) fn concat(&self, left: Operand, right: Operand) -> Bound {
        let is_text = |operand: &Operand| operand.ty().is_none_or(Type::is_text);
        let has_value = left.ty().is_some() || right.ty().is_some();
        if !is_text(&left) || !is_text(&right) || !has_value {
            return Err("|| of other than text".to_owned());
        }
        let (left, right) = (self.settle(left, &Type::Text)?, self.settle(right, &Type::Text)?);
        let collation = left.collation.merge(right.collation)?;
        let has_columns = left.has_columns || right.has_columns;
        let node = Node::Concat(Box::new([left.node, right.node]));
        Ok(Operand::Value(Typed { collation, ..Typed::new(node, Type::Text, has_columns) }))
    }

    /// `->`, `->>`: a key is text, an index an integer.
    pub(super) fn json_get(&self, as_text: bool, left: Operand, right: Operand) -> Bound {
        let Operand::Value(document) = left else { return Err("-> of a constant".to_owned()) };
        let is_binary = match document.ty {
            Type::Json => false,
            Type::Jsonb => true,
            other => return Err(format!("-> of {}", other.name())),
        };
        let key = self.settle(right, &Type::Text)?;
        if !(key.ty.is_text() || matches!(key.ty, Type::Int2 | Type::Int4)) || key.is_domain {
            return Err(format!("-> with {}", key.ty.name()));
        }
        let has_columns = document.has_columns || key.has_columns;
        let ty = if as_text { Type::Text } else { document.ty };
        let collation = key.collation;
        let node = Node::JsonGet { is_binary, as_text, sides: Box::new([document.node, key.node]) };
        Ok(Operand::Value(Typed { collation, ..Typed::new(node, ty, has_columns) }))
    }

    pub(super) fn like(
        &self,
        expr: &Expr,
        pattern: &Expr,
        escape: Option<&Expr>,
        is_negated: bool,
        depth: usize,
    ) -> Bound {
        let text = self.bind_at(expr, Level::Other, depth)?;
        let pattern = self.bind_at(pattern, Level::Other, depth)?;
        let text = self.settle(text, &Type::Text)?;
        if !text.ty.is_text() {
            return Err(format!("LIKE of {}", text.ty.name()));
        }
        text.collation.check_equality()?;
        let escape = match escape {
            None => Some('\\'),
            Some(Expr::Value(value)) => match &value.value {
                Value::SingleQuotedString(escape) => {
                    let mut chars = escape.chars();
                    let first = chars.next();
                    if chars.next().is_some() {
                        return Err("an ESCAPE of several characters".to_owned());
                    }
                    first
                }
                other => return Err(format!("ESCAPE {other}")),
            },
            Some(other) => return Err(format!("ESCAPE {other}")),
        };
        let pattern = match pattern {
            Operand::Literal(None) => return Ok(boolean(Node::Const(None), text.has_columns)),
            Operand::Literal(Some(pattern)) => pattern,
            Operand::Value(Typed { node: Node::Const(Some(Datum::Text(pattern))), ty, .. })
                if ty.is_text() =>
            {
                String::from_utf8(pattern.into_owned()).map_err(|_| "LIKE".to_owned())?
            }
            Operand::Value(_) => return Err("LIKE with a pattern that is not constant".to_owned()),
        };
        let compiled = Pattern::compile(&pattern, escape)
            .ok_or_else(|| "a LIKE pattern that ends with its escape character".to_owned())?;
        let node = Node::Like { pattern: compiled, node: Box::new(text.node) };
        Ok(boolean(negated_if(is_negated, node), text.has_columns))
    }
}

/// The array with its elements cast one by one. Not of a column: PostgreSQL casts the array there.
fn cast_elements(array: Node, element: &Type, target: &Type) -> Result<Node, Why> {
    let nodes = match array {
        Node::Array(nodes) => nodes,
        Node::Const(Some(Datum::Array(array))) => array.elements.into_iter().map(Node::Const).collect(),
        Node::Const(None) => return Ok(Node::Const(None)),
        _ => return Err(format!("ANY of an array of {}", element.name())),
    };
    let cast = |node: Node| {
        let typed = Typed {
            node,
            ty: element.clone(),
            is_domain: false,
            collation: Collated::Default,
            has_columns: false,
        };
        casts::implicit(typed, target)
    };
    Ok(Node::Array(nodes.into_iter().map(cast).collect::<Result<_, _>>()?).folded())
}

/// Whether the elements of an array compare as they stand, without a cast.
fn is_kept(element: &Type, by: &Order) -> bool {
    match by {
        Order::Int => element.is_integer(),
        Order::Numeric => *element == Type::Numeric,
        Order::Float => element.is_float(),
        _ => true,
    }
}
