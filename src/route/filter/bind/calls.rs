//! CASE, COALESCE, NULLIF and the functions that are known.
//!
//! Always: the result has the type that PostgreSQL gives it ("UNION, CASE, and Related Constructs").
//! Functions are few: of most the meaning depends on a locale, a setting or a version.

use sqlparser::ast::{Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments};

use super::{Binder, Bound, Operand, Typed, number_operand};
use crate::route::filter::datum::Order;
use crate::route::filter::node::{CompareOp, Node};
use crate::route::filter::syntax::folded;
use crate::route::filter::types::Type;

impl Binder<'_> {
    /// CASE; with an operand, each WHEN is compared with it.
    pub(super) fn case<'e>(
        &self,
        operand: Option<&Expr>,
        arms: impl Iterator<Item = (&'e Expr, &'e Expr)>,
        otherwise: Option<&Expr>,
        depth: usize,
    ) -> Bound {
        let operand = match operand {
            Some(expr) => match self.bind(expr, depth)? {
                Operand::Literal(_) => return Err("CASE of a constant".to_owned()),
                value => {
                    value.check_copies()?;
                    Some(value)
                }
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

    pub(super) fn function(&self, function: &Function, depth: usize) -> Bound {
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
    pub(super) fn null_if(&self, left: Operand, right: Operand) -> Bound {
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
}
