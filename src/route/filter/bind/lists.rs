//! IN, BETWEEN, ANY and ALL, ARRAY: comparisons with several values.
//!
//! Always: the values that PostgreSQL would compare as one array of a common type are one here, and those
//! that it compares one by one are compared one by one, in its order: the types differ (`float4 IN (0.1)`
//! is not `float4 IN (0.1, 0.2)`), and so do the errors. Manual: "Row and Array Comparisons";
//! `transformAExprIn`.

use sqlparser::ast::{BinaryOperator, Expr};

use super::operators::compare;
use super::precedence::Level;
use super::{Binder, Bound, Collated, Operand, Typed, Why, boolean, casts};
use crate::route::filter::node::{CompareOp, Node};
use crate::route::filter::types::Type;

impl Binder<'_> {
    /// `x IN (...)`: as `transformAExprIn` does it, constants go into one array of their common type, and what
    /// has columns is compared one by one.
    pub(super) fn in_list(&self, expr: &Expr, list: &[Expr], is_negated: bool, depth: usize) -> Bound {
        let left = self.bind_at(expr, Level::Other, depth)?;
        let items = list.iter().map(|item| self.bind(item, depth)).collect::<Result<Vec<_>, _>>()?;
        let op = if is_negated { CompareOp::NotEqual } else { CompareOp::Equal };
        let (constants, single): (Vec<Operand>, Vec<Operand>) =
            if items.iter().filter(|item| !item.has_columns()).count() > 1 {
                items.into_iter().partition(|item| !item.has_columns())
            } else {
                (Vec::new(), items)
            };
        if !single.is_empty() {
            left.check_copies()?;
        }
        let mut tests = Vec::new();
        if !constants.is_empty() {
            let types = std::iter::once(&left).chain(&constants).map(Operand::ty);
            let common = Type::common(types).map_err(|()| "IN with values of several types".to_owned())?;
            let array = self.array(constants, Some(&common))?;
            tests.push(self.any_of(op, left.clone(), Operand::Value(array), is_negated)?);
        }
        for item in single {
            tests.push(self.comparison(op, left.clone(), item)?);
        }
        let mut nodes = Vec::with_capacity(tests.len());
        let mut has_columns = false;
        for test in tests {
            let typed = self.condition(test)?;
            has_columns |= typed.has_columns;
            nodes.push(typed.node);
        }
        match nodes.len() {
            0 => Err("IN with nothing".to_owned()),
            1 => Ok(boolean(nodes.remove(0), has_columns)),
            _ => Ok(boolean(if is_negated { Node::And(nodes) } else { Node::Or(nodes) }, has_columns)),
        }
    }

    /// BETWEEN is comparisons; each finds its own operator.
    pub(super) fn between(
        &self,
        expr: &Expr,
        is_negated: bool,
        (low, high): (&Expr, &Expr),
        depth: usize,
    ) -> Bound {
        let value = self.bind_at(expr, Level::Other, depth)?;
        let low = self.bind_at(low, Level::Other, depth)?;
        let high = self.bind_at(high, Level::Other, depth)?;
        for operand in [&value, &low, &high] {
            operand.check_copies()?;
        }
        let range = |low: &Operand, high: &Operand| -> Result<(Node, bool), Why> {
            let (from, to) = if is_negated {
                (CompareOp::Less, CompareOp::Greater)
            } else {
                (CompareOp::GreaterEqual, CompareOp::LessEqual)
            };
            let from = self.condition(self.comparison(from, value.clone(), low.clone())?)?;
            let to = self.condition(self.comparison(to, value.clone(), high.clone())?)?;
            let has_columns = from.has_columns || to.has_columns;
            let nodes = vec![from.node, to.node];
            let node = if is_negated { Node::Or(nodes) } else { Node::And(nodes) };
            Ok((node.folded(), has_columns))
        };
        let (node, has_columns) = range(&low, &high)?;
        if !self.is_symmetric {
            return Ok(boolean(node, has_columns));
        }
        let nodes = vec![node, range(&high, &low)?.0];
        Ok(boolean(if is_negated { Node::And(nodes) } else { Node::Or(nodes) }, has_columns))
    }

    pub(super) fn any(
        &self,
        left: &Expr,
        op: &BinaryOperator,
        right: &Expr,
        is_all: bool,
        depth: usize,
    ) -> Bound {
        let op = compare(op).ok_or_else(|| format!("{op} ANY"))?;
        let left = self.bind_at(left, Level::Like, depth)?;
        let right = self.bind(right, depth)?;
        self.any_of(op, left, right, is_all)
    }

    /// Operands brought to their common type.
    pub(super) fn common(
        &self,
        operands: Vec<Operand>,
        what: &str,
    ) -> Result<(Vec<Node>, Type, Collated, bool), Why> {
        let ty = Type::common(operands.iter().map(Operand::ty))
            .map_err(|()| format!("{what} with values of several types"))?;
        let mut collation = Collated::Default;
        let mut has_columns = false;
        let mut nodes = Vec::with_capacity(operands.len());
        for operand in operands {
            let typed = self.settle(operand, &ty)?;
            if typed.is_domain {
                return Err(format!("{what} with a domain"));
            }
            collation = collation.merge(typed.collation.clone())?;
            has_columns |= typed.has_columns;
            nodes.push(casts::implicit(typed, &ty)?);
        }
        Ok((nodes, ty, collation, has_columns))
    }

    /// ARRAY[...], of the given type of element or of the elements' common one.
    pub(super) fn array(&self, items: Vec<Operand>, element: Option<&Type>) -> Result<Typed, Why> {
        let (nodes, ty, collation, has_columns) = match element {
            None => self.common(items, "ARRAY")?,
            Some(element) => {
                let mut collation = Collated::Default;
                let mut nodes = Vec::with_capacity(items.len());
                let mut has_columns = false;
                for item in items {
                    let typed = self.settle(item, element)?;
                    collation = collation.merge(typed.collation.clone())?;
                    has_columns |= typed.has_columns;
                    nodes.push(casts::implicit(typed, element)?);
                }
                (nodes, element.clone(), collation, has_columns)
            }
        };
        if matches!(ty, Type::Array(_) | Type::Other { .. }) {
            return Err("an array of arrays".to_owned());
        }
        Ok(Typed { collation, ..Typed::new(Node::Array(nodes), Type::Array(Box::new(ty)), has_columns) })
    }
}
