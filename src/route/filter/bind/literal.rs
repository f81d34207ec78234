//! Constants: the types that PostgreSQL gives to numbers, and the strings that it reads the same whatever
//! its version and settings.
//!
//! A string that its type may read otherwise (a date like 1/2/03, `now`, a number in hexadecimal), or not
//! at all, goes to the server. Manual: "Constants", "Lexical Structure"; `make_const`, `doNegate`.

use sqlparser::ast::{Expr, UnaryOperator, Value};

use super::{Binder, Bound, Operand, Typed, Why};
use crate::route::filter::arithmetic::{Cast, Width, boolean};
use crate::route::filter::array;
use crate::route::filter::array::ArrayValue;
use crate::route::filter::datetime;
use crate::route::filter::datum::Datum;
use crate::route::filter::node::Node;
use crate::route::filter::numeric::Numeric;
use crate::route::filter::types::Type;

/// The text of a number with its signs, which PostgreSQL puts into the constant.
pub(super) fn number(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(number, false) => Some(number.clone()),
            _ => None,
        },
        Expr::Nested(inner) => number(inner),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => {
            let number = number(expr)?;
            Some(match number.strip_prefix('-') {
                Some(positive) => positive.to_owned(),
                None => format!("-{number}"),
            })
        }
        _ => None,
    }
}

/// A number: integer if it fits, else bigint, else numeric.
pub(super) fn bind_number(text: &str) -> Bound {
    let why = || format!("the number {text}");
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit());
    let (datum, ty) = match text.parse::<i64>() {
        Ok(value) if is_whole => {
            let ty = if i32::try_from(value).is_ok() { Type::Int4 } else { Type::Int8 };
            (Datum::Int(value), ty)
        }
        _ => (Datum::Numeric(Numeric::input(text.as_bytes()).ok_or_else(why)?), Type::Numeric),
    };
    let is_number = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    if !is_number {
        return Err(why());
    }
    Ok(Operand::Value(Typed::new(Node::Const(Some(datum)), ty, false)))
}

impl Binder<'_> {
    /// A string or NULL as a constant of a type.
    pub(super) fn literal(&self, text: Option<&str>, ty: &Type) -> Result<Typed, Why> {
        if matches!(ty, Type::Other { .. }) {
            return Err("a constant of another type".to_owned());
        }
        let datum = match text {
            None => None,
            Some(text) => {
                let datum = self.read_literal(text, ty);
                Some(datum.ok_or_else(|| format!("'{text}' as {}", ty.name()))?)
            }
        };
        Ok(Typed::new(Node::Const(datum), ty.clone(), false))
    }

    fn read_literal(&self, text: &str, ty: &Type) -> Option<Datum<'static>> {
        Some(match ty {
            Type::Bool => Datum::Bool(boolean(text.as_bytes())?),
            Type::Int2 | Type::Int4 | Type::Int8 => {
                let cast = Cast::ToInteger(Width::of(ty)?);
                cast.apply(Datum::text(text.to_owned())).ok()?.into_owned()
            }
            Type::Numeric => Datum::Numeric(Numeric::input(text.as_bytes())?),
            Type::Float4 | Type::Float8 => Datum::Float(read_float(text, ty)?),
            Type::Text | Type::Varchar | Type::Bpchar => Datum::text(text.to_owned()),
            Type::Uuid => {
                let is_uuid = text.len() == 36
                    && text.bytes().enumerate().all(|(at, byte)| match at {
                        8 | 13 | 18 | 23 => byte == b'-',
                        _ => byte.is_ascii_hexdigit(),
                    });
                is_uuid.then(|| Datum::text(text.to_ascii_lowercase()))?
            }
            Type::Bytea => {
                let digits = text.strip_prefix("\\x")?;
                let is_hex = digits.len() % 2 == 0 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
                is_hex.then(|| Datum::text(text.to_ascii_lowercase()))?
            }
            Type::Date => Datum::Moment(datetime::date_literal(text)?),
            Type::Time => Datum::Moment(datetime::time_literal(text)?),
            Type::Timestamp => Datum::Moment(datetime::timestamp_literal(text, false)?),
            Type::Timestamptz => Datum::Moment(datetime::timestamp_literal(text, true)?),
            Type::Enum(oid) => {
                let is_label = self.enums.labels(*oid)?.iter().any(|label| label == text);
                is_label.then(|| Datum::text(text.to_owned()))?
            }
            Type::Array(element) => {
                let items = array::literal_items(text)?;
                let elements = items.into_iter().map(|item| match item {
                    None => Some(None),
                    Some(item) => self.read_literal(&item, element).map(Some),
                });
                Datum::Array(ArrayValue::list(elements.collect::<Option<_>>()?))
            }
            Type::Json | Type::Jsonb | Type::Other { .. } => return None,
        })
    }
}

fn read_float(text: &str, ty: &Type) -> Option<f64> {
    match text {
        "NaN" => return Some(f64::NAN),
        "Infinity" => return Some(f64::INFINITY),
        "-Infinity" => return Some(f64::NEG_INFINITY),
        _ => {}
    }
    let Numeric::Decimal { .. } = Numeric::input(text.as_bytes())? else { return None };
    let exact = Datum::Numeric(Numeric::input(text.as_bytes())?);
    match Cast::ToFloat(Width::of(ty)?).apply(exact).ok()? {
        // The sign of a zero is lost on the way, and does not matter to any comparison.
        Datum::Float(value) => Some(value),
        _ => None,
    }
}
