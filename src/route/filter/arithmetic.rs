//! Sums, products and casts, with the errors that PostgreSQL raises.
//!
//! In: two values of one kind. Out: a value of that kind, or division by zero, or out of range. Integers
//! are checked against their own width; floats follow `float.h`: an infinity or a zero that the arguments
//! do not explain is an error. Manual: "Mathematical Functions and Operators"; `int.c`, `float.h`.

use super::datetime;
use super::datum::{Datum, unpadded};
use super::error::EvalError;
use super::numeric::{Numeric, trim};
use super::types::Type;

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ArithOp {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

/// In what it is computed: the type of both sides and of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Int2,
    Int4,
    Int8,
    Numeric,
    Float4,
    Float8,
}

/// Two values that their expression's type says cannot meet.
const MIXED: EvalError = EvalError::Form { type_name: "of the expression" };

impl Width {
    pub(super) fn of(ty: &Type) -> Option<Width> {
        Some(match ty {
            Type::Int2 => Width::Int2,
            Type::Int4 => Width::Int4,
            Type::Int8 => Width::Int8,
            Type::Numeric => Width::Numeric,
            Type::Float4 => Width::Float4,
            Type::Float8 => Width::Float8,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Width::Int2 => "smallint",
            Width::Int4 => "integer",
            Width::Int8 => "bigint",
            Width::Numeric => "numeric",
            Width::Float4 => "real",
            Width::Float8 => "double precision",
        }
    }

    fn out_of_range(self) -> EvalError {
        EvalError::OutOfRange { type_name: self.name() }
    }

    fn integer(self, value: Option<i64>) -> Result<Datum<'static>, EvalError> {
        let fits = |value: &i64| match self {
            Width::Int2 => i16::try_from(*value).is_ok(),
            Width::Int4 => i32::try_from(*value).is_ok(),
            _ => true,
        };
        value.filter(fits).map(Datum::Int).ok_or(self.out_of_range())
    }

    fn float(self, value: f64) -> f64 {
        match self {
            Width::Float4 => f64::from(narrow(value)),
            _ => value,
        }
    }
}

/// To the nearest float4; of the product of two of them the detour over float8 changes nothing, since 53
/// bits are more than twice 24 and two (S. A. Figueroa, "When is double rounding innocuous?").
fn narrow(value: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to float4 is what is asked for")]
    let narrowed = value as f32;
    narrowed
}

/// `left op right`.
pub(super) fn compute(
    op: ArithOp,
    width: Width,
    left: Datum<'_>,
    right: Datum<'_>,
) -> Result<Datum<'static>, EvalError> {
    match (left, right) {
        (Datum::Int(left), Datum::Int(right)) => integers(op, width, left, right),
        (Datum::Float(left), Datum::Float(right)) => floats(op, width, left, right).map(Datum::Float),
        (Datum::Numeric(left), Datum::Numeric(right)) => Ok(Datum::Numeric(match op {
            ArithOp::Add => left.add(right)?,
            ArithOp::Subtract => left.add(right.negate())?,
            ArithOp::Multiply => left.multiply(right)?,
            ArithOp::Modulo => left.modulo(right)?,
            ArithOp::Divide => return Err(MIXED),
        })),
        _ => Err(MIXED),
    }
}

fn integers(op: ArithOp, width: Width, left: i64, right: i64) -> Result<Datum<'static>, EvalError> {
    match op {
        ArithOp::Add => width.integer(left.checked_add(right)),
        ArithOp::Subtract => width.integer(left.checked_sub(right)),
        ArithOp::Multiply => width.integer(left.checked_mul(right)),
        ArithOp::Divide | ArithOp::Modulo if right == 0 => Err(EvalError::DivisionByZero),
        ArithOp::Divide => width.integer(left.checked_div(right)),
        // The least integer modulo -1 is 0, not an overflow.
        ArithOp::Modulo => Ok(Datum::Int(left.checked_rem(right).unwrap_or(0))),
    }
}

fn floats(op: ArithOp, width: Width, left: f64, right: f64) -> Result<f64, EvalError> {
    let exact = match op {
        ArithOp::Add => left + right,
        ArithOp::Subtract => left - right,
        ArithOp::Multiply => left * right,
        ArithOp::Divide if right == 0.0 && !left.is_nan() => return Err(EvalError::DivisionByZero),
        ArithOp::Divide => left / right,
        ArithOp::Modulo => return Err(MIXED),
    };
    let result = width.float(exact);
    let (overflows, underflows) = match op {
        ArithOp::Divide => (
            result.is_infinite() && !left.is_infinite(),
            result == 0.0 && left != 0.0 && !right.is_infinite(),
        ),
        _ => (
            result.is_infinite() && !left.is_infinite() && !right.is_infinite(),
            op == ArithOp::Multiply && result == 0.0 && left != 0.0 && right != 0.0,
        ),
    };
    if overflows || underflows { Err(width.out_of_range()) } else { Ok(result) }
}

/// `-x`.
pub(super) fn negate(width: Width, value: Datum<'_>) -> Result<Datum<'static>, EvalError> {
    match value {
        Datum::Int(value) => width.integer(value.checked_neg()),
        Datum::Float(value) => Ok(Datum::Float(-value)),
        Datum::Numeric(value) => Ok(Datum::Numeric(value.negate())),
        _ => Err(MIXED),
    }
}

/// `abs(x)`.
pub(super) fn abs(width: Width, value: Datum<'_>) -> Result<Datum<'static>, EvalError> {
    match value {
        Datum::Int(value) => width.integer(value.checked_abs()),
        Datum::Float(value) => Ok(Datum::Float(value.abs())),
        Datum::Numeric(value) => Ok(Datum::Numeric(value.abs())),
        _ => Err(MIXED),
    }
}

/// A cast, implicit or not, that Walgate knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cast {
    /// Between integers, from numeric and floats by rounding, from boolean, from text.
    ToInteger(Width),
    /// From integers and text.
    ToNumeric,
    /// From any number, to float4 or float8.
    ToFloat(Width),
    /// From integers and text.
    ToBool,
    /// From the types whose text no setting changes.
    ToText,
    /// From bpchar, whose blanks at the end are lost.
    Unpad,
    /// From date; and back.
    ToTimestamp,
    ToDate,
}

impl Cast {
    /// Casts a value.
    pub(super) fn apply<'a>(self, value: Datum<'a>) -> Result<Datum<'a>, EvalError> {
        match (self, value) {
            (Cast::ToInteger(width), value) => to_integer(width, &value),
            (Cast::ToNumeric, Datum::Int(value)) => Ok(Datum::Numeric(Numeric::Integer(value))),
            (Cast::ToNumeric, Datum::Text(text)) => Numeric::input(&text)
                .map(Datum::Numeric)
                .ok_or(EvalError::InvalidText { type_name: "numeric" }),
            (Cast::ToFloat(width), value) => to_float(width, &value).map(Datum::Float),
            (Cast::ToBool, Datum::Int(value)) => Ok(Datum::Bool(value != 0)),
            (Cast::ToBool, Datum::Text(text)) => {
                boolean(&text).map(Datum::Bool).ok_or(EvalError::InvalidText { type_name: "boolean" })
            }
            (Cast::ToText, Datum::Bool(value)) => Ok(Datum::text(value.to_string())),
            (Cast::ToText, Datum::Int(value)) => Ok(Datum::text(value.to_string())),
            (Cast::ToText, Datum::Numeric(value)) => Ok(Datum::text(value.text())),
            (Cast::ToText, text @ Datum::Text(_)) => Ok(text),
            (Cast::Unpad, Datum::Text(text)) => {
                let kept = unpadded(&text).len();
                Ok(Datum::Text(match text {
                    std::borrow::Cow::Borrowed(text) => text.get(..kept).unwrap_or_default().into(),
                    std::borrow::Cow::Owned(mut text) => {
                        text.truncate(kept);
                        text.into()
                    }
                }))
            }
            (Cast::ToTimestamp, Datum::Moment(date)) => {
                if date != datetime::INFINITY && date >= datetime::TIMESTAMP_END {
                    return Err(EvalError::OutOfRange { type_name: "timestamp" });
                }
                Ok(Datum::Moment(date))
            }
            (Cast::ToDate, Datum::Moment(moment)) => Ok(Datum::Moment(match moment {
                datetime::INFINITY | datetime::MINUS_INFINITY => moment,
                _ => moment.div_euclid(datetime::DAY) * datetime::DAY,
            })),
            _ => Err(MIXED),
        }
    }
}

fn to_integer(width: Width, value: &Datum<'_>) -> Result<Datum<'static>, EvalError> {
    match value {
        Datum::Int(value) => width.integer(Some(*value)),
        Datum::Bool(value) => Ok(Datum::Int(i64::from(*value))),
        Datum::Numeric(Numeric::NaN | Numeric::Infinity { .. }) => {
            Err(EvalError::NotFinite { type_name: width.name() })
        }
        Datum::Numeric(value) => width.integer(value.round_to_i64()),
        Datum::Float(value) => {
            let rounded = value.round_ties_even();
            // 2^63 itself does not fit, and is exact as a float.
            let fits = (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&rounded);
            #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
            let whole = rounded as i64;
            width.integer(fits.then_some(whole))
        }
        Datum::Text(text) => {
            let invalid = EvalError::InvalidText { type_name: width.name() };
            let digits = std::str::from_utf8(trim(text)).map_err(|_| invalid)?;
            let body = digits.strip_prefix(['+', '-']).unwrap_or(digits);
            if body.is_empty() || !body.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(invalid);
            }
            width.integer(digits.parse().ok())
        }
        _ => Err(MIXED),
    }
}

fn to_float(width: Width, value: &Datum<'_>) -> Result<f64, EvalError> {
    match value {
        #[expect(clippy::cast_precision_loss, reason = "to the nearest, as PostgreSQL does")]
        Datum::Int(value) => Ok(match width {
            Width::Float4 => f64::from(*value as f32),
            _ => *value as f64,
        }),
        Datum::Float(value) => {
            let result = width.float(*value);
            let is_lost = (result.is_infinite() && !value.is_infinite()) || (result == 0.0 && *value != 0.0);
            if is_lost { Err(width.out_of_range()) } else { Ok(result) }
        }
        Datum::Numeric(value) => {
            let text = value.text();
            let result = match width {
                Width::Float4 => text.parse::<f32>().map(f64::from),
                _ => text.parse::<f64>(),
            };
            let result = result.map_err(|_| width.out_of_range())?;
            let is_finite = !matches!(value, Numeric::NaN | Numeric::Infinity { .. });
            let is_lost = is_finite && (result.is_infinite() || (result == 0.0 && !value.is_zero()));
            if is_lost { Err(width.out_of_range()) } else { Ok(result) }
        }
        _ => Err(MIXED),
    }
}

/// What `boolin` takes: any beginning of true, false, yes, no; on, off or of; 1, 0; spaces around.
pub(super) fn boolean(text: &[u8]) -> Option<bool> {
    let text = trim(text).to_ascii_lowercase();
    let begins = |word: &[u8], len_min: usize| text.len() >= len_min && word.starts_with(&text);
    if begins(b"true", 1) || begins(b"yes", 1) || text == b"on" || text == b"1" {
        Some(true)
    } else if begins(b"false", 1) || begins(b"no", 1) || begins(b"off", 2) || text == b"0" {
        Some(false)
    } else {
        None
    }
}
