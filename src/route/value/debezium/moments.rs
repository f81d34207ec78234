//! Dates, times and intervals as Debezium's `isostring` and `interval.handling.mode=string` have them.
//!
//! A `Z` ends each of them, also where the type has no zone. Years are counted as ISO 8601 does: 1 BC is 0000, more than four
//! digits take a sign. A fraction has the digits that PostgreSQL prints; that of a timestamptz is filled up. What has no ISO form,
//! the infinities, stays as PostgreSQL prints it. Manual: "Date/Time Output", "Interval Output".

use super::super::ValueError;
use super::super::datetime::{is_infinity, split_date, split_time};
use super::super::scalar::{quote_plain, split_digits};

const DAY_SECONDS: i64 = 86_400;

pub(super) fn write_date(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    if is_infinity(text) {
        quote_plain(out, text);
        return Ok(());
    }
    let (date, is_bc) = match split_date(text) {
        Some((date, b"")) => (date, false),
        Some((date, b" BC")) => (date, true),
        _ => return Err(ValueError::new("date", "is not of the form 2026-11-21")),
    };
    out.push(b'"');
    write_day(out, date, is_bc).ok_or(ValueError::new("date", "has a year beyond PostgreSQL's"))?;
    out.extend_from_slice(b"Z\"");
    Ok(())
}

pub(super) fn write_time(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    let Some((time, [])) = split_time(text) else {
        return Err(ValueError::new("time", "is not of the form 04:55:30.123456"));
    };
    out.push(b'"');
    out.extend_from_slice(time);
    out.extend_from_slice(b"Z\"");
    Ok(())
}

pub(super) fn write_timetz(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    let malformed = ValueError::new("timetz", "is not of the form 04:55:30.123456+02");
    let (time, offset) = split_time(text).ok_or(malformed)?;
    let (clock, fraction) = time.split_at_checked("04:55:30".len()).ok_or(malformed)?;
    let (sign, offset) = match offset {
        [b'+', offset @ ..] => (1, offset),
        [b'-', offset @ ..] => (-1, offset),
        _ => return Err(malformed),
    };
    let offset = sign * seconds(offset).ok_or(malformed)?;
    let local = seconds(clock).ok_or(malformed)?;
    // The end of a day in UTC is not its beginning.
    let utc =
        if local == DAY_SECONDS && offset == 0 { local } else { (local - offset).rem_euclid(DAY_SECONDS) };
    out.push(b'"');
    for (part, mark) in [(utc / 3600, b':'), (utc / 60 % 60, b':'), (utc % 60, b' ')] {
        write_padded(out, part, 2);
        if mark == b':' {
            out.push(mark);
        }
    }
    out.extend_from_slice(fraction);
    out.extend_from_slice(b"Z\"");
    Ok(())
}

pub(super) fn write_timestamp(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    write_moment(out, text, b"", None)
        .ok_or(ValueError::new("timestamp", "is not of the form 2026-11-21 04:55:30.123456"))
}

pub(super) fn write_timestamptz(
    out: &mut Vec<u8>,
    text: &[u8],
    fraction_digits: usize,
) -> Result<(), ValueError> {
    write_moment(out, text, b"+00", Some(fraction_digits))
        .ok_or(ValueError::new("timestamptz", "is not of the form 2026-11-21 04:55:30.123456+00"))
}

/// PostgreSQL leaves out the parts that are nothing, Debezium names all.
pub(super) fn write_interval(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    if is_infinity(text) {
        quote_plain(out, text);
        return Ok(());
    }
    let malformed = ValueError::new("interval", "is not of the form P1Y2M3DT4H5M6.7S");
    let mut rest = text.strip_prefix(b"P").ok_or(malformed)?;
    out.extend_from_slice(b"\"P");
    for unit in *b"YMDTHMS" {
        if unit == b'T' {
            out.push(unit);
            rest = match rest {
                [] => rest,
                [b'T', tail @ ..] if !tail.is_empty() => tail,
                _ => return Err(malformed),
            };
            continue;
        }
        let (number, tail) = split_number(rest);
        match tail.split_first() {
            Some((&found, tail)) if found == unit && !number.is_empty() => {
                out.extend_from_slice(number);
                rest = tail;
            }
            _ => out.push(b'0'),
        }
        out.push(unit);
    }
    out.push(b'"');
    if rest.is_empty() && text.len() > 1 { Ok(()) } else { Err(malformed) }
}

/// Appends a timestamp that ends in `zone`, its fraction with so many digits if that is said.
fn write_moment(out: &mut Vec<u8>, text: &[u8], zone: &[u8], fraction_digits: Option<usize>) -> Option<()> {
    if is_infinity(text) {
        quote_plain(out, text);
        return Some(());
    }
    let (date, rest) = split_date(text)?;
    let (time, rest) = split_time(rest.strip_prefix(b" ")?)?;
    let is_bc = match rest.strip_prefix(zone)? {
        b"" => false,
        b" BC" => true,
        _ => return None,
    };
    out.push(b'"');
    write_day(out, date, is_bc)?;
    out.push(b'T');
    out.extend_from_slice(time);
    if let Some(digits) = fraction_digits {
        let printed = time.len().saturating_sub("04:55:30.".len());
        if printed == 0 && digits > 0 {
            out.push(b'.');
        }
        out.extend(std::iter::repeat_n(b'0', digits.saturating_sub(printed)));
    }
    out.extend_from_slice(b"Z\"");
    Some(())
}

fn write_day(out: &mut Vec<u8>, date: &[u8], is_bc: bool) -> Option<()> {
    let (year, month_and_day) = split_digits(date);
    if year.len() == 4 && !is_bc {
        out.extend_from_slice(date);
        return Some(());
    }
    let year: i64 = std::str::from_utf8(year).ok()?.parse().ok()?;
    // There is no year 0 between 1 BC and 1 AD, in ISO 8601 there is.
    let year = if is_bc { 1 - year } else { year };
    match year {
        ..0 => out.push(b'-'),
        0..=9999 => {}
        _ => out.push(b'+'),
    }
    write_padded(out, year.abs(), 4);
    out.extend_from_slice(month_and_day);
    Some(())
}

/// Of `04:55:30`, `04:55` or `04`.
fn seconds(text: &[u8]) -> Option<i64> {
    let mut total = 0;
    let mut unit = 3600;
    for part in text.split(|&byte| byte == b':') {
        let [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] = part else { return None };
        total += unit * i64::from((tens - b'0') * 10 + (ones - b'0'));
        unit /= 60;
    }
    Some(total)
}

fn split_number(text: &[u8]) -> (&[u8], &[u8]) {
    let is_part = |byte: &u8| byte.is_ascii_digit() || b"-.".contains(byte);
    text.split_at(text.iter().position(|byte| !is_part(byte)).unwrap_or(text.len()))
}

fn write_padded(out: &mut Vec<u8>, number: i64, digits_min: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number);
    out.extend(std::iter::repeat_n(b'0', digits_min.saturating_sub(digits.len())));
    out.extend_from_slice(digits.as_bytes());
}
