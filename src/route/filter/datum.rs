//! Values while an expression is evaluated, and the orders in which they compare.
//!
//! In: a received text and its type. Out: a [`Datum`], which borrows the text wherever its own bytes
//! compare as PostgreSQL compares the value. uuid and bytea are kept as printed: lower-case hexadecimal of
//! equal form orders as the bytes do.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use super::array;
use super::datetime;
use super::error::EvalError;
use super::numeric::Numeric;
use super::types::Type;

/// A value that is not NULL. Its type is the expression's, found when that was compiled.
#[derive(Clone, Debug)]
pub(super) enum Datum<'a> {
    Bool(bool),
    /// int2, int4, int8.
    Int(i64),
    /// float4 and float8.
    Float(f64),
    Numeric(Numeric<'a>),
    /// text, varchar, bpchar, uuid, bytea, an enum's label, json, jsonb: the printed bytes.
    Text(Cow<'a, [u8]>),
    /// date, time, timestamp, timestamptz: see [`datetime`].
    Moment(i128),
    Array(array::ArrayValue<'a>),
}

impl<'a> Datum<'a> {
    /// Reads what the type's output function printed.
    pub(super) fn read(ty: &Type, text: &'a [u8]) -> Result<Datum<'a>, EvalError> {
        let datum = match ty {
            Type::Bool => match text {
                b"t" => Some(Datum::Bool(true)),
                b"f" => Some(Datum::Bool(false)),
                _ => None,
            },
            Type::Int2 | Type::Int4 | Type::Int8 => read_number(text).map(Datum::Int),
            Type::Float4 => read_number::<f32>(text).map(|value| Datum::Float(value.into())),
            Type::Float8 => read_number(text).map(Datum::Float),
            Type::Numeric => Numeric::read(text).map(Datum::Numeric),
            Type::Date => datetime::read_date(text).map(Datum::Moment),
            Type::Time => datetime::read_time(text).map(Datum::Moment),
            Type::Timestamp => datetime::read_timestamp(text, false).map(Datum::Moment),
            Type::Timestamptz => datetime::read_timestamp(text, true).map(Datum::Moment),
            Type::Array(element) => array::read(element, text)?.map(Datum::Array),
            Type::Text
            | Type::Varchar
            | Type::Bpchar
            | Type::Uuid
            | Type::Bytea
            | Type::Json
            | Type::Jsonb
            | Type::Enum(_)
            | Type::Other { .. } => Some(Datum::Text(Cow::Borrowed(text))),
        };
        datum.ok_or(EvalError::Form { type_name: ty.name() })
    }

    /// The same, borrowed: no allocation.
    pub(super) fn borrow(&self) -> Datum<'_> {
        match self {
            Datum::Bool(value) => Datum::Bool(*value),
            Datum::Int(value) => Datum::Int(*value),
            Datum::Float(value) => Datum::Float(*value),
            Datum::Numeric(value) => Datum::Numeric(value.borrow()),
            Datum::Text(value) => Datum::Text(Cow::Borrowed(value)),
            Datum::Moment(value) => Datum::Moment(*value),
            Datum::Array(value) => Datum::Array(value.clone()),
        }
    }

    /// The same, without the received bytes.
    pub(super) fn into_owned(self) -> Datum<'static> {
        match self {
            Datum::Bool(value) => Datum::Bool(value),
            Datum::Int(value) => Datum::Int(value),
            Datum::Float(value) => Datum::Float(value),
            Datum::Numeric(value) => Datum::Numeric(value.into_owned()),
            Datum::Text(value) => Datum::Text(Cow::Owned(value.into_owned())),
            Datum::Moment(value) => Datum::Moment(value),
            Datum::Array(value) => Datum::Array(value.into_owned()),
        }
    }

    /// Text from a string.
    pub(super) fn text(text: String) -> Datum<'static> {
        Datum::Text(Cow::Owned(text.into_bytes()))
    }
}

fn read_number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// How two values of one kind compare.
#[derive(Clone, Debug)]
pub(super) enum Order {
    Bool,
    Int,
    /// NaN equals NaN and is greatest; -0 equals 0.
    Float,
    Numeric,
    /// Text under a deterministic collation (equality) or "C" (order), uuid, bytea.
    Bytes,
    /// As text, but blanks at the end do not count.
    Padded,
    Moment,
    /// The order of the labels.
    Labels(Arc<[String]>),
    /// Equality of the elements and of the bounds.
    Array(Box<Order>),
}

/// Two values that their expression's type says cannot meet.
const MIXED: EvalError = EvalError::Form { type_name: "of the expression" };

impl Order {
    /// Compares two values.
    pub(super) fn compare(&self, left: &Datum<'_>, right: &Datum<'_>) -> Result<Ordering, EvalError> {
        Ok(match (self, left, right) {
            (Order::Bool, Datum::Bool(left), Datum::Bool(right)) => left.cmp(right),
            (Order::Int, Datum::Int(left), Datum::Int(right)) => left.cmp(right),
            (Order::Float, Datum::Float(left), Datum::Float(right)) => compare_floats(*left, *right),
            (Order::Numeric, Datum::Numeric(left), Datum::Numeric(right)) => left.compare(right),
            (Order::Bytes, Datum::Text(left), Datum::Text(right)) => left.as_ref().cmp(right.as_ref()),
            (Order::Padded, Datum::Text(left), Datum::Text(right)) => unpadded(left).cmp(unpadded(right)),
            (Order::Moment, Datum::Moment(left), Datum::Moment(right)) => left.cmp(right),
            (Order::Labels(labels), Datum::Text(left), Datum::Text(right)) => {
                // A label that is not known yet is still itself.
                if left == right {
                    Ordering::Equal
                } else {
                    label_rank(labels, left)?.cmp(&label_rank(labels, right)?)
                }
            }
            (Order::Array(element), Datum::Array(left), Datum::Array(right)) => {
                // Only equality of arrays is asked for.
                if left.equals(right, element)? { Ordering::Equal } else { Ordering::Less }
            }
            _ => return Err(MIXED),
        })
    }
}

fn compare_floats(left: f64, right: f64) -> Ordering {
    // Only NaN compares with nothing.
    left.partial_cmp(&right).unwrap_or_else(|| left.is_nan().cmp(&right.is_nan()))
}

/// Without the blanks at the end.
pub(super) fn unpadded(text: &[u8]) -> &[u8] {
    let kept = text.iter().rposition(|&byte| byte != b' ').map_or(0, |at| at + 1);
    text.get(..kept).unwrap_or_default()
}

fn label_rank(labels: &[String], label: &[u8]) -> Result<usize, EvalError> {
    labels.iter().position(|known| known.as_bytes() == label).ok_or(EvalError::UnknownLabel)
}
