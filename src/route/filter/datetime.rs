//! Dates and times as microseconds.
//!
//! In: the text of a date, time, timestamp or timestamptz as PostgreSQL prints it under ISO and UTC, with
//! infinities, `BC` and years over 9999; or a literal in the one form that no setting can change. Out:
//! microseconds since 1970-01-01, of a time since midnight; the infinities are the ends of `i128`, for the
//! range of a date is wider than that of a timestamp. Manual: "Date/Time Types".

/// Microseconds of a day.
pub(super) const DAY: i128 = 86_400_000_000;

/// `infinity`.
pub(crate) const INFINITY: i128 = i128::MAX;

/// `-infinity`.
pub(crate) const MINUS_INFINITY: i128 = i128::MIN;

/// The first instant after the timestamps: 294277-01-01.
pub(super) const TIMESTAMP_END: i128 = 106_762_940 * DAY;

/// A date as printed: `2026-11-21`, `0044-03-15 BC`, `infinity`.
pub(crate) fn read_date(text: &[u8]) -> Option<i128> {
    if let Some(infinite) = infinite(text) {
        return Some(infinite);
    }
    let (text, is_bc) = split_bc(text);
    Some(i128::from(days(text, is_bc)?) * DAY)
}

/// A timestamp as printed: `2026-11-21 04:55:30.5`; a timestamptz with `+00`.
pub(crate) fn read_timestamp(text: &[u8], has_zone: bool) -> Option<i128> {
    if let Some(infinite) = infinite(text) {
        return Some(infinite);
    }
    let (text, is_bc) = split_bc(text);
    let text = if has_zone { text.strip_suffix(b"+00")? } else { text };
    let space = memchr::memchr(b' ', text)?;
    let (date, time) = text.split_at(space);
    Some(i128::from(days(date, is_bc)?) * DAY + i128::from(clock(time.get(1..)?)?))
}

/// A time as printed: `04:55:30.5`, up to `24:00:00`.
pub(crate) fn read_time(text: &[u8]) -> Option<i128> {
    clock(text).map(i128::from)
}

/// A date literal that means the same under every setting: `2026-11-21`, `infinity`, `-infinity`.
pub(super) fn date_literal(text: &str) -> Option<i128> {
    if let Some(infinite) = infinite(text.as_bytes()) {
        return Some(infinite);
    }
    is_plain_date(text.as_bytes()).then(|| read_date(text.as_bytes()))?
}

/// A timestamp literal: a date, or a date and a time. A zone only where `has_zone`; without one it is UTC,
/// which is the setting of every session of Walgate.
pub(super) fn timestamp_literal(text: &str, has_zone: bool) -> Option<i128> {
    if let Some(whole_days) = date_literal(text) {
        return Some(whole_days);
    }
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', ' '])?;
    let (time, offset) = if has_zone { split_offset(rest)? } else { (rest, 0) };
    Some(date_literal(date)? + time_literal(time)? - offset)
}

/// A time literal: `04:55`, `04:55:30`, `04:55:30.5`.
pub(super) fn time_literal(text: &str) -> Option<i128> {
    let is_whole = matches!(text.len(), 5 | 8) || (10..=15).contains(&text.len());
    let with_seconds = if text.len() == 5 { format!("{text}:00") } else { text.to_owned() };
    let micros = is_whole.then(|| clock(with_seconds.as_bytes()))??;
    (i128::from(micros) < DAY).then_some(i128::from(micros))
}

/// `Z`, `+05`, `-05:30`, in microseconds; nothing is 0.
fn split_offset(text: &str) -> Option<(&str, i128)> {
    if let Some(time) = text.strip_suffix('Z') {
        return Some((time, 0));
    }
    let Some(at) = text.find(['+', '-']) else { return Some((text, 0)) };
    let (time, offset) = text.split_at_checked(at)?;
    let (sign, digits) = offset.split_at_checked(1)?;
    let (hours, minutes) = match digits.len() {
        2 => (digits, "00"),
        5 => digits.split_once(':')?,
        _ => return None,
    };
    let (hours, minutes) = (number(hours.as_bytes(), 2)?, number(minutes.as_bytes(), 2)?);
    if hours > 15 || minutes > 59 {
        return None;
    }
    let offset = i128::from(hours * 60 + minutes) * 60_000_000;
    Some((time, if sign == "-" { -offset } else { offset }))
}

/// `YYYY-MM-DD` with a day that exists.
fn is_plain_date(text: &[u8]) -> bool {
    let dashes = (text.get(4), text.get(7)) == (Some(&b'-'), Some(&b'-'));
    let part = |from: usize, to: usize| text.get(from..to).and_then(|digits| number(digits, to - from));
    let (Some(year), Some(month), Some(day)) = (part(0, 4), part(5, 7), part(8, 10)) else { return false };
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last_day = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    dashes && text.len() == 10 && year > 0 && (1..=12).contains(&month) && (1..=last_day).contains(&day)
}

fn infinite(text: &[u8]) -> Option<i128> {
    match text {
        b"infinity" => Some(INFINITY),
        b"-infinity" => Some(MINUS_INFINITY),
        _ => None,
    }
}

fn split_bc(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(text) => (text, true),
        None => (text, false),
    }
}

/// Days since 1970-01-01 of `YYYY-MM-DD`, the year with four digits or more.
fn days(text: &[u8], is_bc: bool) -> Option<i64> {
    let year_len = text.len().checked_sub(6)?;
    let (year, rest) = text.split_at_checked(year_len)?;
    let [b'-', m1, m2, b'-', d1, d2] = rest else { return None };
    let year = number(year, year_len.max(4))?;
    let (month, day) = (number(&[*m1, *m2], 2)?, number(&[*d1, *d2], 2)?);
    let year = if is_bc { 1 - year } else { year };
    ((1..=12).contains(&month) && (1..=31).contains(&day)).then(|| days_from_civil(year, month, day))
}

/// Howard Hinnant's `days_from_civil`: proleptic Gregorian, year 0 is 1 BC.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Microseconds of `HH:MM:SS[.ffffff]`.
fn clock(text: &[u8]) -> Option<i64> {
    let (whole, fraction) = text.split_at_checked(8)?;
    let [h1, h2, b':', m1, m2, b':', s1, s2] = whole else { return None };
    let (hours, minutes, seconds) =
        (number(&[*h1, *h2], 2)?, number(&[*m1, *m2], 2)?, number(&[*s1, *s2], 2)?);
    let micros = match fraction.split_first() {
        None => 0,
        Some((b'.', digits)) if (1..=6).contains(&digits.len()) => {
            let missing = u32::try_from(6 - digits.len()).ok()?;
            number(digits, digits.len())? * 10_i64.pow(missing)
        }
        Some(_) => return None,
    };
    let is_on_the_clock = hours < 24 && minutes < 60 && seconds < 60;
    let is_midnight = (hours, minutes, seconds, micros) == (24, 0, 0, 0);
    (is_on_the_clock || is_midnight).then_some(((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + micros)
}

/// A number of exactly `len` digits, which are at most nine.
fn number(digits: &[u8], len: usize) -> Option<i64> {
    (digits.len() == len && len <= 9 && digits.iter().all(u8::is_ascii_digit))
        .then(|| digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_calendar() {
        assert_eq!(read_date(b"1970-01-02"), Some(DAY));
        assert_eq!(read_date(b"2000-03-01"), Some(11_017 * DAY));
        assert_eq!(
            read_date(b"0001-12-31 BC"),
            Some((days_from_civil(1, 1, 1) - 1).into()).map(|d: i128| d * DAY)
        );
        assert_eq!(read_timestamp(b"1970-01-01 00:00:01.5+00", true), Some(1_500_000));
        assert_eq!(i128::from(days_from_civil(294_277, 1, 1)) * DAY, TIMESTAMP_END);
    }

    #[test]
    fn takes_only_literals_without_doubt() {
        assert!(date_literal("2024-02-29").is_some());
        for doubtful in
            ["2023-02-29", "2026-1-1", "now", "today", "21.11.2026", "0000-01-01", "12026-01-01", "Infinity"]
        {
            assert_eq!(date_literal(doubtful), None, "{doubtful}");
        }
        assert_eq!(timestamp_literal("1970-01-01T01:00:00+01:00", true), Some(0));
        assert_eq!(timestamp_literal("1970-01-01 01:00:00+01", false), None);
        assert_eq!(timestamp_literal("1970-01-01", true), Some(0));
        assert_eq!(time_literal("04:55"), Some(17_700_000_000));
        assert_eq!(time_literal("24:00:00"), None);
    }
}
