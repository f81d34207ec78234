//! The tree of a `where` into typed nodes, as PostgreSQL's parser would type it.
//!
//! In: the parsed expression, the relation, types, labels and collations. Out: an [`Operand`], or the
//! reason why the server must evaluate it. Always: a node is made only where operator, types, collation
//! and the order of evaluation are certain; whatever is not listed here goes to the server. That the parser
//! gave operators PostgreSQL's precedence is checked at every node ([`precedence`]), not assumed.
//! Manual: "Type Conversion", "Operator Precedence", "Comparison Functions and Operators".

mod precedence;
mod operators;
mod casts;
mod literal;

use sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, UnaryOperator,
    Value,
};

use self::operators::compare;
use self::precedence::{Level, level};
use super::arithmetic::{ArithOp, Width};
use super::datum::{Datum, Order};
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

    /// `x IN (...)`: as `transformAExprIn` does it, constants go into one array of their common type, and what
    /// has columns is compared one by one.
    fn in_list(&self, expr: &Expr, list: &[Expr], is_negated: bool, depth: usize) -> Bound {
        let left = self.bind_at(expr, Level::Other, depth)?;
        let items = list.iter().map(|item| self.bind(item, depth)).collect::<Result<Vec<_>, _>>()?;
        let op = if is_negated { CompareOp::NotEqual } else { CompareOp::Equal };
        let (constants, single): (Vec<Operand>, Vec<Operand>) =
            if items.iter().filter(|item| !item.has_columns()).count() > 1 {
                items.into_iter().partition(|item| !item.has_columns())
            } else {
                (Vec::new(), items)
            };
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
    fn between(&self, expr: &Expr, is_negated: bool, (low, high): (&Expr, &Expr), depth: usize) -> Bound {
        let value = self.bind_at(expr, Level::Other, depth)?;
        let low = self.bind_at(low, Level::Other, depth)?;
        let high = self.bind_at(high, Level::Other, depth)?;
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

    fn any(&self, left: &Expr, op: &BinaryOperator, right: &Expr, is_all: bool, depth: usize) -> Bound {
        let op = compare(op).ok_or_else(|| format!("{op} ANY"))?;
        let left = self.bind_at(left, Level::Like, depth)?;
        let right = self.bind(right, depth)?;
        self.any_of(op, left, right, is_all)
    }

    /// CASE; with an operand, each WHEN is compared with it.
    fn case<'e>(
        &self,
        operand: Option<&Expr>,
        arms: impl Iterator<Item = (&'e Expr, &'e Expr)>,
        otherwise: Option<&Expr>,
        depth: usize,
    ) -> Bound {
        let operand = match operand {
            Some(expr) => match self.bind(expr, depth)? {
                Operand::Literal(_) => return Err("CASE of a constant".to_owned()),
                value => Some(value),
            },
            None => None,
        };
        let mut conditions = Vec::new();
        let mut has_columns = false;
        // PostgreSQL lets the ELSE speak first about the type.
        let mut results = vec![match otherwise {
            Some(expr) => self.bind(expr, depth)?,
            None => Operand::Literal(None),
        }];
        for (condition, result) in arms {
            let condition = self.bind(condition, depth)?;
            let condition = match &operand {
                Some(operand) => self.comparison(CompareOp::Equal, operand.clone(), condition)?,
                None => condition,
            };
            let typed = self.condition(condition)?;
            has_columns |= typed.has_columns;
            conditions.push(typed.node);
            results.push(self.bind(result, depth)?);
        }
        let (mut nodes, ty, collation, results_have_columns) = self.common(results, "CASE")?;
        let otherwise = Box::new(nodes.remove(0));
        let node = Node::Case { arms: conditions.into_iter().zip(nodes).collect(), otherwise };
        let has_columns = has_columns || results_have_columns;
        Ok(Typed { collation, ..Typed::new(node, ty, has_columns) }.into_operand())
    }

    /// Operands brought to their common type.
    fn common(&self, operands: Vec<Operand>, what: &str) -> Result<(Vec<Node>, Type, Collated, bool), Why> {
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

    fn function(&self, function: &Function, depth: usize) -> Bound {
        let written = function.name.to_string();
        let why = || format!("the function {written}");
        let parts: Option<Vec<String>> =
            function.name.0.iter().map(|part| part.as_ident().map(folded)).collect();
        let parts = parts.ok_or_else(why)?;
        let name = match parts.as_slice() {
            [name] => name.as_str(),
            [schema, name] if schema == "pg_catalog" => name.as_str(),
            _ => return Err(why()),
        };
        let FunctionArguments::List(list) = &function.args else { return Err(why()) };
        let is_plain = list.duplicate_treatment.is_none()
            && list.clauses.is_empty()
            && function.null_treatment.is_none()
            && matches!(function.parameters, FunctionArguments::None)
            && !function.uses_odbc_syntax;
        if !is_plain {
            return Err(why());
        }
        let mut arguments = Vec::new();
        for argument in &list.args {
            let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = argument else { return Err(why()) };
            arguments.push(self.bind(expr, depth)?);
        }
        // COALESCE and NULLIF are grammar, not functions: they have no schema.
        match (name, parts.len()) {
            ("coalesce", 1) if !arguments.is_empty() => {
                let (nodes, ty, collation, has_columns) = self.common(arguments, "COALESCE")?;
                let node = Node::Coalesce(nodes);
                return Ok(Typed { collation, ..Typed::new(node, ty, has_columns) }.into_operand());
            }
            ("nullif", 1) => {
                let [left, right] = <[Operand; 2]>::try_from(arguments).map_err(|_| why())?;
                return self.null_if(left, right);
            }
            _ => {}
        }
        let [argument] = <[Operand; 1]>::try_from(arguments).map_err(|_| why())?;
        match name {
            "length" | "char_length" | "character_length" => match argument {
                Operand::Value(typed) if typed.ty.is_text() => {
                    let node = Node::Length(Box::new(typed.node));
                    Ok(Typed::new(node, Type::Int4, typed.has_columns).into_operand())
                }
                _ => Err(why()),
            },
            "abs" => {
                let (typed, width) = number_operand(argument, "abs")?;
                let node = Node::Abs { width, node: Box::new(typed.node) };
                Ok(Typed::new(node, typed.ty, typed.has_columns).into_operand())
            }
            _ => Err(why()),
        }
    }

    /// The type of the result is that of the left side as it is compared.
    fn null_if(&self, left: Operand, right: Operand) -> Bound {
        let (Operand::Value(Typed { ty, is_domain: false, collation, .. }), right) = (left.clone(), right)
        else {
            return Err("NULLIF of a constant or a domain".to_owned());
        };
        let pair = self.pair(CompareOp::Equal, left, right)?;
        let ty = match (&pair.by, ty) {
            (Order::Numeric, _) => Type::Numeric,
            // float4 = float8 is an operator of its own, integer = float8 is none.
            (Order::Float, ty) if ty != Type::Float4 => Type::Float8,
            (_, ty) => ty,
        };
        let node = Node::NullIf { by: pair.by, sides: pair.sides };
        Ok(Typed { collation, ..Typed::new(node, ty, pair.has_columns) }.into_operand())
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
