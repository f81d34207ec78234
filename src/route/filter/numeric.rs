//! numeric: every digit, NaN and the infinities.
//!
//! In: numeric's text as PostgreSQL prints it. Comparison works on the digits where they lie, without
//! allocation; sums and products of what is no small integer go through `num-bigint` and have the scale
//! that PostgreSQL gives them. Division of numerics is not here: it rounds, and goes to the server.
//! Manual: "Arbitrary Precision Numbers"; the rules are those of `numeric.c`.

use std::borrow::Cow;
use std::cmp::Ordering;

use num_bigint::BigInt;

use super::error::EvalError;

/// Digits before the point that a numeric can have (`NUMERIC_WEIGHT_MAX`, four digits each).
const INTEGER_DIGITS_MAX: usize = 131_072;

/// Digits behind the point that a product keeps (`NUMERIC_DSCALE_MAX`).
const SCALE_MAX: usize = 16_383;

/// The exponents that [`Numeric::input`] takes: with larger ones nothing but zero fits.
const EXPONENT_MAX: i32 = 150_000;

/// A numeric. Always: the digits are ASCII digits, those before the point do not begin with 0, and zero is
/// not negative.
#[derive(Clone, Debug)]
pub(super) enum Numeric<'a> {
    NaN,
    Infinity { negative: bool },
    Integer(i64),
    Decimal { negative: bool, integer: Cow<'a, [u8]>, fraction: Cow<'a, [u8]> },
}

const OVERFLOW: EvalError = EvalError::OutOfRange { type_name: "numeric" };

impl<'a> Numeric<'a> {
    /// Reads what PostgreSQL prints.
    pub(super) fn read(text: &'a [u8]) -> Option<Self> {
        match text {
            b"NaN" => return Some(Numeric::NaN),
            b"Infinity" => return Some(Numeric::Infinity { negative: false }),
            b"-Infinity" => return Some(Numeric::Infinity { negative: true }),
            _ => {}
        }
        let (negative, digits) = match text.split_first()? {
            (b'-', rest) => (true, rest),
            (b'+', rest) => (false, rest),
            _ => (false, text),
        };
        let point = memchr::memchr(b'.', digits);
        let (integer, fraction) = match point {
            Some(at) => (digits.get(..at)?, digits.get(at + 1..)?),
            None => (digits, &[][..]),
        };
        let is_number = integer.iter().chain(fraction).all(u8::is_ascii_digit);
        if !is_number || integer.len() + fraction.len() == 0 {
            return None;
        }
        Some(Self::decimal(negative, Cow::Borrowed(integer), Cow::Borrowed(fraction)))
    }

    fn decimal(negative: bool, integer: Cow<'a, [u8]>, fraction: Cow<'a, [u8]>) -> Self {
        let zeros = integer.iter().take_while(|&&digit| digit == b'0').count();
        let integer = match integer {
            Cow::Borrowed(digits) => Cow::Borrowed(digits.get(zeros..).unwrap_or_default()),
            Cow::Owned(mut digits) => {
                digits.drain(..zeros);
                Cow::Owned(digits)
            }
        };
        let is_zero = integer.is_empty() && fraction.iter().all(|&digit| digit == b'0');
        Numeric::Decimal { negative: negative && !is_zero, integer, fraction }
    }

    /// What `numeric_in` takes: spaces around, a sign, an exponent. None for anything else, also for the
    /// hexadecimal and underscored forms of PostgreSQL 16.
    pub(super) fn input(text: &[u8]) -> Option<Numeric<'static>> {
        let text = trim(text);
        let (sign, body) = match text.split_first()? {
            (b'-', rest) => (true, rest),
            (b'+', rest) => (false, rest),
            _ => (false, text),
        };
        if body.eq_ignore_ascii_case(b"nan") {
            return (body.len() == text.len()).then_some(Numeric::NaN);
        }
        if body.eq_ignore_ascii_case(b"infinity") || body.eq_ignore_ascii_case(b"inf") {
            return Some(Numeric::Infinity { negative: sign });
        }
        let (mantissa, exponent) = match body.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            Some(at) => {
                let exponent = std::str::from_utf8(body.get(at + 1..)?).ok()?;
                (body.get(..at)?, exponent.parse::<i32>().ok()?)
            }
            None => (body, 0),
        };
        if exponent.abs() > EXPONENT_MAX || matches!(mantissa.first(), Some(b'+' | b'-')) {
            return None;
        }
        let Numeric::Decimal { integer, fraction, .. } = Numeric::read(mantissa)? else { return None };
        let (mut integer, mut fraction) = (integer.into_owned(), fraction.into_owned());
        let shift = usize::try_from(exponent.unsigned_abs()).ok()?;
        if exponent >= 0 {
            let moved = shift.min(fraction.len());
            integer.extend(fraction.drain(..moved));
            integer.resize(integer.len() + shift - moved, b'0');
        } else {
            let moved = shift.min(integer.len());
            let mut shifted = vec![b'0'; shift - moved];
            shifted.extend(integer.split_off(integer.len() - moved));
            shifted.append(&mut fraction);
            fraction = shifted;
        }
        (integer.len() <= INTEGER_DIGITS_MAX && fraction.len() <= SCALE_MAX)
            .then(|| Numeric::decimal(sign, Cow::Owned(integer), Cow::Owned(fraction)))
    }

    /// The same, without the received bytes.
    pub(super) fn into_owned(self) -> Numeric<'static> {
        match self {
            Numeric::NaN => Numeric::NaN,
            Numeric::Infinity { negative } => Numeric::Infinity { negative },
            Numeric::Integer(value) => Numeric::Integer(value),
            Numeric::Decimal { negative, integer, fraction } => Numeric::Decimal {
                negative,
                integer: Cow::Owned(integer.into_owned()),
                fraction: Cow::Owned(fraction.into_owned()),
            },
        }
    }

    /// The same, borrowed.
    pub(super) fn borrow(&self) -> Numeric<'_> {
        match self {
            Numeric::NaN => Numeric::NaN,
            Numeric::Infinity { negative } => Numeric::Infinity { negative: *negative },
            Numeric::Integer(value) => Numeric::Integer(*value),
            Numeric::Decimal { negative, integer, fraction } => Numeric::Decimal {
                negative: *negative,
                integer: Cow::Borrowed(integer),
                fraction: Cow::Borrowed(fraction),
            },
        }
    }

    /// PostgreSQL's order: NaN equals NaN and is greatest.
    pub(super) fn compare(&self, other: &Numeric<'_>) -> Ordering {
        match (self, other) {
            (Numeric::Integer(left), Numeric::Integer(right)) => left.cmp(right),
            (
                Numeric::Decimal { negative, integer, fraction },
                Numeric::Decimal {
                    negative: other_negative,
                    integer: other_integer,
                    fraction: other_fraction,
                },
            ) => compare_digits(
                (*negative, integer, fraction),
                (*other_negative, other_integer, other_fraction),
            ),
            (Numeric::Integer(left), Numeric::Decimal { negative, integer, fraction }) => {
                let mut buffer = itoa::Buffer::new();
                compare_digits(digits_of(*left, &mut buffer), (*negative, integer, fraction))
            }
            (Numeric::Decimal { .. }, Numeric::Integer(_)) => other.compare(self).reverse(),
            _ => self.class().cmp(&other.class()),
        }
    }

    /// The place of the special values.
    fn class(&self) -> u8 {
        match self {
            Numeric::Infinity { negative: true } => 0,
            Numeric::Integer(_) | Numeric::Decimal { .. } => 1,
            Numeric::Infinity { negative: false } => 2,
            Numeric::NaN => 3,
        }
    }

    /// -1, 0 or 1; NaN counts as 1.
    fn sign(&self) -> i8 {
        match self {
            Numeric::NaN | Numeric::Infinity { negative: false } => 1,
            Numeric::Infinity { negative: true } => -1,
            Numeric::Integer(value) => match value.cmp(&0) {
                Ordering::Less => -1,
                Ordering::Equal => 0,
                Ordering::Greater => 1,
            },
            Numeric::Decimal { negative: true, .. } => -1,
            Numeric::Decimal { integer, fraction, .. } => {
                i8::from(!integer.is_empty() || fraction.iter().any(|&digit| digit != b'0'))
            }
        }
    }

    /// `-x`.
    pub(super) fn negate(self) -> Numeric<'static> {
        let is_zero = self.sign() == 0;
        match self.into_owned() {
            Numeric::NaN => Numeric::NaN,
            Numeric::Infinity { negative } => Numeric::Infinity { negative: !negative },
            Numeric::Integer(value) => match value.checked_neg() {
                Some(value) => Numeric::Integer(value),
                None => Numeric::from_parts(-BigInt::from(value), 0),
            },
            Numeric::Decimal { negative, integer, fraction } => {
                Numeric::Decimal { negative: !negative && !is_zero, integer, fraction }
            }
        }
    }

    /// `abs(x)`.
    pub(super) fn abs(self) -> Numeric<'static> {
        if self.sign() < 0 { self.negate() } else { self.into_owned() }
    }

    /// `x + y`.
    pub(super) fn add(self, other: Numeric<'_>) -> Result<Numeric<'static>, EvalError> {
        match (&self, &other) {
            (Numeric::NaN, _) | (_, Numeric::NaN) => Ok(Numeric::NaN),
            (Numeric::Infinity { negative }, Numeric::Infinity { negative: other_negative }) => {
                Ok(if negative == other_negative { self.into_owned() } else { Numeric::NaN })
            }
            (Numeric::Infinity { negative }, _) | (_, Numeric::Infinity { negative }) => {
                Ok(Numeric::Infinity { negative: *negative })
            }
            (Numeric::Integer(left), Numeric::Integer(right)) if left.checked_add(*right).is_some() => {
                Ok(Numeric::Integer(left.wrapping_add(*right)))
            }
            _ => {
                let (left, right, scale) = aligned(&self, &other);
                Numeric::from_parts(left + right, scale).checked()
            }
        }
    }

    /// `x * y`.
    pub(super) fn multiply(self, other: Numeric<'_>) -> Result<Numeric<'static>, EvalError> {
        match (&self, &other) {
            (Numeric::NaN, _) | (_, Numeric::NaN) => Ok(Numeric::NaN),
            (Numeric::Infinity { .. }, _) | (_, Numeric::Infinity { .. }) => {
                let sign = self.sign() * other.sign();
                Ok(if sign == 0 { Numeric::NaN } else { Numeric::Infinity { negative: sign < 0 } })
            }
            (Numeric::Integer(left), Numeric::Integer(right)) if left.checked_mul(*right).is_some() => {
                Ok(Numeric::Integer(left.wrapping_mul(*right)))
            }
            _ => {
                let ((left, left_scale), (right, right_scale)) = (self.parts(), other.parts());
                let (mut product, mut scale) = (left * right, left_scale + right_scale);
                if scale > SCALE_MAX {
                    product = round_off(product, scale - SCALE_MAX);
                    scale = SCALE_MAX;
                }
                Numeric::from_parts(product, scale).checked()
            }
        }
    }

    /// `x % y`, which has the sign of x.
    pub(super) fn modulo(self, other: Numeric<'_>) -> Result<Numeric<'static>, EvalError> {
        match (&self, &other) {
            (Numeric::NaN, _) | (_, Numeric::NaN) => Ok(Numeric::NaN),
            _ if other.sign() == 0 => Err(EvalError::DivisionByZero),
            (Numeric::Infinity { .. }, _) => Ok(Numeric::NaN),
            (_, Numeric::Infinity { .. }) => Ok(self.into_owned()),
            _ => {
                let (left, right, scale) = aligned(&self, &other);
                Ok(Numeric::from_parts(left % right, scale))
            }
        }
    }

    /// The nearest integer, half away from zero; none where it does not fit, and for the special values.
    pub(super) fn round_to_i64(&self) -> Option<i64> {
        match self {
            Numeric::Integer(value) => Some(*value),
            Numeric::NaN | Numeric::Infinity { .. } => None,
            Numeric::Decimal { integer, .. } if integer.len() > 20 => None,
            Numeric::Decimal { .. } => {
                let (value, scale) = self.parts();
                i64::try_from(round_off(value, scale)).ok()
            }
        }
    }

    /// PostgreSQL's text.
    pub(super) fn text(&self) -> String {
        match self {
            Numeric::NaN => "NaN".to_owned(),
            Numeric::Infinity { negative: false } => "Infinity".to_owned(),
            Numeric::Infinity { negative: true } => "-Infinity".to_owned(),
            Numeric::Integer(value) => value.to_string(),
            Numeric::Decimal { negative, integer, fraction } => {
                let mut text = String::with_capacity(integer.len() + fraction.len() + 3);
                if *negative {
                    text.push('-');
                }
                if integer.is_empty() {
                    text.push('0');
                }
                text.extend(integer.iter().map(|&digit| char::from(digit)));
                if !fraction.is_empty() {
                    text.push('.');
                    text.extend(fraction.iter().map(|&digit| char::from(digit)));
                }
                text
            }
        }
    }

    /// Whether it is zero, so that a float made from it may be.
    pub(super) fn is_zero(&self) -> bool {
        self.sign() == 0
    }

    /// The digits as one integer, and how many of them stand behind the point. Not for the special values.
    fn parts(&self) -> (BigInt, usize) {
        match self {
            Numeric::Integer(value) => (BigInt::from(*value), 0),
            Numeric::Decimal { negative, integer, fraction } => {
                let digits: Vec<u8> = integer.iter().chain(fraction.iter()).copied().collect();
                let value = BigInt::parse_bytes(&digits, 10).unwrap_or_default();
                (if *negative { -value } else { value }, fraction.len())
            }
            Numeric::NaN | Numeric::Infinity { .. } => (BigInt::default(), 0),
        }
    }

    fn from_parts(value: BigInt, scale: usize) -> Numeric<'static> {
        let (negative, magnitude) = (value.sign() == num_bigint::Sign::Minus, value.magnitude());
        let mut digits = magnitude.to_str_radix(10).into_bytes();
        if digits.len() < scale {
            let mut padded = vec![b'0'; scale - digits.len()];
            padded.append(&mut digits);
            digits = padded;
        }
        let fraction = digits.split_off(digits.len() - scale);
        Numeric::decimal(negative, Cow::Owned(digits), Cow::Owned(fraction))
    }

    fn checked(self) -> Result<Self, EvalError> {
        match &self {
            Numeric::Decimal { integer, .. } if integer.len() > INTEGER_DIGITS_MAX => Err(OVERFLOW),
            _ => Ok(self),
        }
    }
}

type Digits<'d> = (bool, &'d [u8], &'d [u8]);

fn digits_of(value: i64, buffer: &mut itoa::Buffer) -> Digits<'_> {
    if value == 0 {
        return (false, &[], &[]);
    }
    (value < 0, buffer.format(value.unsigned_abs()).as_bytes(), &[])
}

fn compare_digits(left: Digits<'_>, right: Digits<'_>) -> Ordering {
    match (left.0, right.0) {
        (false, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
        (false, false) => compare_magnitudes(left, right),
        (true, true) => compare_magnitudes(right, left),
    }
}

fn compare_magnitudes(left: Digits<'_>, right: Digits<'_>) -> Ordering {
    let (left_fraction, right_fraction) = (without_zeros(left.2), without_zeros(right.2));
    left.1
        .len()
        .cmp(&right.1.len())
        .then_with(|| left.1.cmp(right.1))
        .then_with(|| left_fraction.cmp(right_fraction))
}

fn without_zeros(fraction: &[u8]) -> &[u8] {
    let kept = fraction.iter().rposition(|&digit| digit != b'0').map_or(0, |at| at + 1);
    fraction.get(..kept).unwrap_or_default()
}

fn aligned(left: &Numeric<'_>, right: &Numeric<'_>) -> (BigInt, BigInt, usize) {
    let ((left, left_scale), (right, right_scale)) = (left.parts(), right.parts());
    let scale = left_scale.max(right_scale);
    (left * power_of_ten(scale - left_scale), right * power_of_ten(scale - right_scale), scale)
}

fn power_of_ten(exponent: usize) -> BigInt {
    BigInt::from(10).pow(u32::try_from(exponent).unwrap_or(u32::MAX))
}

/// Drops the last digits, half away from zero.
fn round_off(value: BigInt, digits: usize) -> BigInt {
    if digits == 0 {
        return value;
    }
    let unit = power_of_ten(digits);
    let half = &unit / 2;
    if value.sign() == num_bigint::Sign::Minus { (value - half) / unit } else { (value + half) / unit }
}

/// Without what C's `isspace` takes for space.
pub(super) fn trim(text: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    let from = text.iter().position(|byte| !is_space(byte)).unwrap_or(text.len());
    let to = text.iter().rposition(|byte| !is_space(byte)).map_or(from, |at| at + 1);
    text.get(from..to).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Numeric<'_> {
        Numeric::read(text.as_bytes()).expect("a numeric")
    }

    #[test]
    fn orders_by_value_not_by_text() {
        let ascending = [
            "-Infinity",
            "-100",
            "-99.5",
            "-1.0001",
            "-1",
            "0",
            "0.00001",
            "0.1",
            "1",
            "1.5",
            "9",
            "10",
            "99.99",
            "100",
            "Infinity",
            "NaN",
        ];
        for (at, low) in ascending.iter().enumerate() {
            assert_eq!(number(low).compare(&number(low)), Ordering::Equal);
            for high in &ascending[at + 1..] {
                assert_eq!(number(low).compare(&number(high)), Ordering::Less, "{low} {high}");
                assert_eq!(number(high).compare(&number(low)), Ordering::Greater, "{low} {high}");
            }
        }
        assert_eq!(number("1.50").compare(&number("001.5")), Ordering::Equal);
        assert_eq!(number("-0.00").compare(&Numeric::Integer(0)), Ordering::Equal);
        assert_eq!(Numeric::Integer(-3).compare(&number("-3.10")), Ordering::Greater);
    }

    #[test]
    fn computes_with_the_scale_of_postgresql() {
        assert_eq!(number("1.10").add(number("2.9")).unwrap().text(), "4.00");
        assert_eq!(number("-0.5").multiply(number("0.50")).unwrap().text(), "-0.250");
        assert_eq!(number("-7.5").modulo(number("2")).unwrap().text(), "-1.5");
        assert_eq!(number("1").modulo(number("0.00")).unwrap_err(), EvalError::DivisionByZero);
        assert_eq!(number("2.5").round_to_i64(), Some(3));
        assert_eq!(number("-2.5").round_to_i64(), Some(-3));
        assert_eq!(number("9223372036854775807.5").round_to_i64(), None);
        assert_eq!(Numeric::input(b" 1.5e3 ").unwrap().text(), "1500");
        assert_eq!(Numeric::input(b"1e-3").unwrap().text(), "0.001");
        assert_eq!(Numeric::input(b"12.34e1").unwrap().text(), "123.4");
        assert_eq!(Numeric::input(b"-12.34e-1").unwrap().text(), "-1.234");
        assert_eq!(Numeric::input("7".repeat(3000).as_bytes()).unwrap().text().len(), 3000);
        assert_eq!(Numeric::input(b"1e1000").unwrap().text().len(), 1001);
        assert!(Numeric::input(b"1e131073").is_none() && Numeric::input(b"1e-16384").is_none());
        assert!(Numeric::input(b"0x10").is_none() && Numeric::input(b"1_0").is_none());
    }
}
