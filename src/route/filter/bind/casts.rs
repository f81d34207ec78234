//! Casts: those that PostgreSQL makes unasked, and those that are written.
//!
//! Only casts without a type modifier, and only those that are immutable and whose result is certain. float
//! to numeric rounds to 15 digits, dates to text depend on settings: the server does these.
//! Manual: "Type Conversion", "Type Casts"; `pg_cast`.

use sqlparser::ast::{ArrayElemTypeDef, CastKind, DataType, ExactNumberInfo, Expr, ObjectName, TimezoneInfo};

use super::precedence::Level;
use super::{Binder, Bound, Operand, Typed, Why};
use crate::route::filter::arithmetic::{Cast, Width};
use crate::route::filter::node::Node;
use crate::route::filter::syntax::folded;
use crate::route::filter::types::Type;

/// A value as one of a type that PostgreSQL converts it to unasked.
pub(super) fn implicit(typed: Typed, target: &Type) -> Result<Node, Why> {
    if typed.ty == *target || (typed.ty.is_text() && target.is_text()) {
        return Ok(typed.node);
    }
    let why = || format!("{} as {}", typed.ty.name(), target.name());
    match (typed.ty.number_rank(), target.number_rank()) {
        (Some(from), Some(to)) if from < to => widen(typed.node, &typed.ty, target),
        _ => Err(why()),
    }
}

/// Up the chain of numbers.
fn widen(node: Node, from: &Type, to: &Type) -> Result<Node, Why> {
    let cast = match to {
        Type::Int2 | Type::Int4 | Type::Int8 => return Ok(node),
        Type::Float8 if *from == Type::Float4 => return Ok(node),
        Type::Numeric => Cast::ToNumeric,
        Type::Float4 => Cast::ToFloat(Width::Float4),
        Type::Float8 => Cast::ToFloat(Width::Float8),
        _ => return Err(to.name().to_owned()),
    };
    Ok(Node::Cast { cast, node: Box::new(node) }.folded())
}

/// A cast that is written. `None` keeps the value as it is.
fn explicit(from: &Type, to: &Type) -> Result<Option<Cast>, ()> {
    if from == to || (from.is_text() && to.is_text()) {
        return Ok(None);
    }
    let is_text_to_number = from.is_text() && (to.is_integer() || *to == Type::Numeric);
    let cast = match to {
        Type::Int2 | Type::Int4 | Type::Int8 => {
            let is_number = from.number_rank().is_some();
            let is_bool = *from == Type::Bool && *to == Type::Int4;
            if !(is_number || is_bool || is_text_to_number) {
                return Err(());
            }
            Cast::ToInteger(Width::of(to).ok_or(())?)
        }
        Type::Numeric if from.is_integer() || is_text_to_number => Cast::ToNumeric,
        Type::Float4 | Type::Float8 if from.number_rank().is_some() => {
            Cast::ToFloat(Width::of(to).ok_or(())?)
        }
        Type::Bool if *from == Type::Int4 || from.is_text() => Cast::ToBool,
        Type::Text | Type::Varchar => match from {
            Type::Bpchar => Cast::Unpad,
            Type::Bool
            | Type::Int2
            | Type::Int4
            | Type::Int8
            | Type::Numeric
            | Type::Uuid
            | Type::Json
            | Type::Jsonb => Cast::ToText,
            _ => return Err(()),
        },
        Type::Timestamp if *from == Type::Date => Cast::ToTimestamp,
        Type::Date if *from == Type::Timestamp => Cast::ToDate,
        _ => return Err(()),
    };
    Ok(Some(cast))
}

impl Binder<'_> {
    /// `CAST(x AS type)`, `x::type`.
    pub(super) fn cast(&self, kind: &CastKind, inner: &Expr, data_type: &DataType, depth: usize) -> Bound {
        let target = self.cast_target(data_type)?;
        // An array's elements are cast one by one, as they stand.
        if let (Expr::Array(array), Type::Array(element)) = (inner, &target)
            && array.named
        {
            let mut items = Vec::new();
            for item in &array.elem {
                items.push(Operand::Value(self.cast_operand(self.bind(item, depth)?, element)?));
            }
            return Ok(Operand::Value(self.array(items, Some(element))?));
        }
        let operand = match kind {
            CastKind::DoubleColon => self.bind_at(inner, Level::Cast, depth)?,
            CastKind::Cast => self.bind(inner, depth)?,
            CastKind::TryCast | CastKind::SafeCast => return Err("TRY_CAST".to_owned()),
        };
        Ok(Operand::Value(self.cast_operand(operand, &target)?))
    }

    fn cast_operand(&self, operand: Operand, target: &Type) -> Result<Typed, Why> {
        let typed = match operand {
            Operand::Literal(text) => return self.literal(text.as_deref(), target),
            Operand::Value(typed) => typed,
        };
        let cast = explicit(&typed.ty, target)
            .map_err(|()| format!("a cast of {} to {}", typed.ty.name(), target.name()))?;
        let node = match cast {
            Some(cast) => Node::Cast { cast, node: Box::new(typed.node) },
            None => typed.node,
        };
        let new = Typed::new(node, target.clone(), typed.has_columns);
        Ok(Typed { collation: typed.collation, ..new })
    }

    /// The type that is written, if it has no modifier.
    pub(super) fn cast_target(&self, data_type: &DataType) -> Result<Type, Why> {
        Ok(match data_type {
            DataType::Int2(None) | DataType::SmallInt(None) => Type::Int2,
            DataType::Int(None) | DataType::Int4(None) | DataType::Integer(None) => Type::Int4,
            DataType::Int8(None) | DataType::BigInt(None) => Type::Int8,
            DataType::Numeric(ExactNumberInfo::None) | DataType::Decimal(ExactNumberInfo::None) => {
                Type::Numeric
            }
            DataType::Float4 | DataType::Real => Type::Float4,
            DataType::Float8 | DataType::DoublePrecision => Type::Float8,
            DataType::Bool | DataType::Boolean => Type::Bool,
            DataType::Text => Type::Text,
            DataType::Varchar(None) | DataType::CharacterVarying(None) => Type::Varchar,
            DataType::Uuid => Type::Uuid,
            DataType::Bytea => Type::Bytea,
            DataType::Date => Type::Date,
            DataType::Time(None, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => Type::Time,
            DataType::Timestamp(None, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => Type::Timestamp,
            DataType::Timestamp(None, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => Type::Timestamptz,
            DataType::JSON => Type::Json,
            DataType::JSONB => Type::Jsonb,
            DataType::Array(ArrayElemTypeDef::SquareBracket(element, None)) => {
                match self.cast_target(element)? {
                    Type::Array(_) => return Err(format!("a cast to {data_type}")),
                    element => Type::Array(Box::new(element)),
                }
            }
            DataType::Custom(name, modifiers) if modifiers.is_empty() => {
                self.named_enum(name).ok_or_else(|| format!("a cast to {data_type}"))?
            }
            other => return Err(format!("a cast to {other}")),
        })
    }

    /// An enum by its schema and name. Without a schema it is the search path that decides, so the server.
    fn named_enum(&self, name: &ObjectName) -> Option<Type> {
        let [schema, name] = name.0.as_slice() else { return None };
        let (schema, name) = (folded(schema.as_ident()?), folded(name.as_ident()?));
        let mut used = self.relation.columns.iter().filter_map(|column| self.types.row(column.type_oid));
        let row = used.find(|row| row.typtype == b'e' && row.namespace == schema && row.name == name)?;
        Some(Type::Enum(row.oid))
    }
}
