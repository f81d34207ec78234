//! Values as COPY's binary format has them, made from their texts.
//!
//! Comes in: a type of the replica, and the text that the source printed under the settings of every session of Walgate.
//! Goes out: what the type's receive function takes for the same value; or nothing, where that is not certain, and the
//! rows go as text. (Parsing text is a sixth of what a COPY costs the server.) Always holds: only types whose binary form
//! no version, setting or encoding of a server changes. Source: `*recv` in PostgreSQL's `numeric.c`, `timestamp.c`,
//! `date.c`, `jsonb.c`, `uuid.c`; "COPY", "Binary Format" in the manual.

use super::params::Cells;
use crate::route::filter::datetime::{INFINITY, MINUS_INFINITY, read_date, read_time, read_timestamp};
use crate::route::row::Cell;
use crate::route::value::write_bytes;

/// 2000-01-01 in microseconds since 1970-01-01.
const EPOCH_MICROS: i128 = 946_684_800_000_000;
const DAY_MICROS: i128 = 86_400_000_000;
const NUMERIC_NEGATIVE: u16 = 0x4000;
const NUMERIC_SCALE_MAX: usize = 0x3FFF;

/// How a type's values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Bool,
    Bytea,
    Int2,
    Int4,
    Int8,
    /// As its text: text, json, char(n), varchar.
    Text,
    Float4,
    Float8,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Numeric,
    Uuid,
    Jsonb,
}

impl Form {
    /// Of the type with this OID. Not: money (the locale's digits), interval (infinite ones are another value before
    /// PostgreSQL 17), xml (its declaration), arrays (OIDs of their elements), whatever has no OID of its own that is the
    /// same everywhere.
    pub fn of(type_oid: u32) -> Option<Self> {
        Some(match type_oid {
            16 => Form::Bool,
            17 => Form::Bytea,
            20 => Form::Int8,
            21 => Form::Int2,
            23 => Form::Int4,
            25 | 114 | 1042 | 1043 => Form::Text,
            700 => Form::Float4,
            701 => Form::Float8,
            1082 => Form::Date,
            1083 => Form::Time,
            1114 => Form::Timestamp,
            1184 => Form::Timestamptz,
            1700 => Form::Numeric,
            2950 => Form::Uuid,
            3802 => Form::Jsonb,
            _ => return None,
        })
    }

    /// Appends a value; `None`: its form is not known, and the buffer may hold some of it.
    fn write(self, out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
        match self {
            Form::Text => out.extend_from_slice(text),
            Form::Jsonb => {
                out.push(1);
                out.extend_from_slice(text);
            }
            Form::Bool => out.push(match text {
                b"t" => 1,
                b"f" => 0,
                _ => return None,
            }),
            Form::Bytea => write_bytes(out, text).ok()?,
            Form::Int2 => out.extend_from_slice(&i16::try_from(integer(text)?).ok()?.to_be_bytes()),
            Form::Int4 => out.extend_from_slice(&i32::try_from(integer(text)?).ok()?.to_be_bytes()),
            Form::Int8 => out.extend_from_slice(&integer(text)?.to_be_bytes()),
            Form::Float4 => {
                let value: f32 = std::str::from_utf8(text).ok()?.parse().ok()?;
                out.extend_from_slice(&value.to_be_bytes());
            }
            Form::Float8 => {
                let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
                out.extend_from_slice(&value.to_be_bytes());
            }
            Form::Date => {
                let days = match read_date(text)? {
                    INFINITY => i32::MAX,
                    MINUS_INFINITY => i32::MIN,
                    micros => i32::try_from((micros - EPOCH_MICROS) / DAY_MICROS).ok()?,
                };
                out.extend_from_slice(&days.to_be_bytes());
            }
            Form::Time => out.extend_from_slice(&i64::try_from(read_time(text)?).ok()?.to_be_bytes()),
            Form::Timestamp | Form::Timestamptz => {
                let micros = match read_timestamp(text, self == Form::Timestamptz)? {
                    INFINITY => i64::MAX,
                    MINUS_INFINITY => i64::MIN,
                    micros => i64::try_from(micros - EPOCH_MICROS).ok()?,
                };
                out.extend_from_slice(&micros.to_be_bytes());
            }
            Form::Numeric => write_numeric(out, text)?,
            Form::Uuid => {
                let mut digits = *b"\\x________________________________";
                let (_, places) = digits.split_at_mut(2);
                let given = text.iter().filter(|byte| **byte != b'-');
                (text.len() == 36 && given.clone().count() == places.len()).then_some(())?;
                places.iter_mut().zip(given).for_each(|(place, digit)| *place = *digit);
                write_bytes(out, &digits).ok()?;
            }
        }
        Some(())
    }
}

/// Appends a row; `None`: a value's form is not known, and the buffer may hold some of the row.
pub(super) fn write_row<'c>(
    out: &mut Vec<u8>,
    cells: &Cells<'_>,
    forms: &[Form],
    row: impl Iterator<Item = &'c Cell>,
) -> Option<()> {
    out.extend_from_slice(&i16::try_from(forms.len()).ok()?.to_be_bytes());
    for (form, cell) in forms.iter().zip(row) {
        let place = out.len();
        out.extend_from_slice(&(-1_i32).to_be_bytes());
        if let Some(text) = cells.text(cell) {
            form.write(out, text)?;
            let bytes = i32::try_from(out.len() - place - 4).ok()?;
            out.get_mut(place..place + 4)?.copy_from_slice(&bytes.to_be_bytes());
        }
    }
    Some(())
}

/// A whole number as printed.
fn integer(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    (!digits.is_empty()).then_some(())?;
    let mut value = 0_i64;
    for digit in digits {
        digit.is_ascii_digit().then_some(())?;
        let digit = i64::from(digit - b'0');
        // Downwards, where there is one more.
        value = value.checked_mul(10)?.checked_sub(digit)?;
    }
    if is_negative { Some(value) } else { value.checked_neg() }
}

/// Digits to the base of 10 000: how many, the weight of the first, the sign, the decimal digits behind the point, and they.
fn write_numeric(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let (sign, text) = match text.strip_prefix(b"-") {
        Some(text) => (NUMERIC_NEGATIVE, text),
        None => (0, text),
    };
    let point = memchr::memchr(b'.', text);
    let (whole, fraction) = match point {
        Some(at) => (text.get(..at)?, text.get(at + 1..)?),
        None => (text, &[][..]),
    };
    let is_number = !whole.is_empty() && whole.iter().chain(fraction).all(u8::is_ascii_digit);
    (is_number && fraction.len() <= NUMERIC_SCALE_MAX).then_some(())?;
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    let (mut count, mut zeros, mut weight) = (0_i16, 0_i16, None);
    // Of the first group; of four digits each, the first and the last one may lack some.
    let first = i16::try_from(whole.len().div_ceil(4)).ok()? - 1;
    let (head, tail) = whole.split_at(whole.len() % 4);
    let groups = std::iter::once(head).filter(|head| !head.is_empty());
    let groups = groups.chain(tail.chunks(4)).map(|group| (group, false));
    for (at, (group, is_fraction)) in
        (0_i16..).zip(groups.chain(fraction.chunks(4).map(|group| (group, true))))
    {
        let mut digit = group.iter().fold(0_u16, |value, digit| value * 10 + u16::from(digit - b'0'));
        if is_fraction {
            digit *= 10_u16.pow(u32::try_from(4 - group.len()).ok()?);
        }
        if digit == 0 {
            // None is written in front, and those behind only if another follows.
            zeros += i16::from(weight.is_some());
            continue;
        }
        weight.get_or_insert(first - at);
        for _ in 0..zeros {
            out.extend_from_slice(&[0; 2]);
        }
        count += zeros + 1;
        zeros = 0;
        out.extend_from_slice(&digit.to_be_bytes());
    }
    let scale = u16::try_from(fraction.len()).ok()?;
    // Zero has no sign.
    let sign = if count == 0 { 0 } else { sign };
    let head =
        [count.to_be_bytes(), weight.unwrap_or(0).to_be_bytes(), sign.to_be_bytes(), scale.to_be_bytes()];
    out.get_mut(start..start + 8)?.copy_from_slice(head.as_flattened());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(text: &str) -> Option<Vec<i16>> {
        let mut out = Vec::new();
        write_numeric(&mut out, text.as_bytes())?;
        Some(out.chunks(2).map(|pair| i16::from_be_bytes([pair[0], pair[1]])).collect())
    }

    #[test]
    fn numbers_are_grouped_by_four_without_zeros_at_the_ends() {
        for (text, expected) in [
            ("0", vec![0, 0, 0, 0]),
            ("0.00", vec![0, 0, 0, 2]),
            ("1", vec![1, 0, 0, 0, 1]),
            ("-12345.6789", vec![3, 1, 0x4000, 4, 1, 2345, 6789]),
            ("100000000", vec![1, 2, 0, 0, 1]),
            ("100000001.00010", vec![4, 2, 0, 5, 1, 0, 1, 1]),
            ("0.00005", vec![1, -2, 0, 5, 5000]),
            ("0010", vec![1, 0, 0, 0, 10]),
        ] {
            assert_eq!(numeric(text), Some(expected), "{text}");
        }
        for text in ["", "NaN", "Infinity", "1e5", "-", ".5", "1 "] {
            assert_eq!(numeric(text), None, "{text}");
        }
    }

    #[test]
    fn whole_numbers_to_their_ends() {
        for value in [0, 1, -1, i64::MAX, i64::MIN] {
            assert_eq!(integer(value.to_string().as_bytes()), Some(value));
        }
        for text in ["", "-", "+1", "1.0", "9223372036854775808", "-9223372036854775809", " 1"] {
            assert_eq!(integer(text.as_bytes()), None, "{text}");
        }
    }
}
