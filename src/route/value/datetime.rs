//! Dates, times, timestamps and intervals: PostgreSQL's ISO forms in, JSON strings in ISO 8601 out.
//!
//! A timestamp gets its `T`, one with a zone its `Z` (RFC 3339); the zone is +00, since the session sets
//! `timezone = UTC`. What ISO 8601 has no agreed form for stays as PostgreSQL prints it: `infinity`, years
//! BC and years over 9999. Time, timetz (with the offset it was stored with) and interval (the session
//! sets `intervalstyle = iso_8601`) are ISO 8601 already. Manual: "Date/Time Output", "Interval Output".

use super::ValueError;
use super::scalar::{quote_plain, split_digits};

pub(super) fn write_date(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    let is_date = || matches!(split_date(text)?, (_, b"" | b" BC")).then_some(());
    if !is_infinity(text) && is_date().is_none() {
        return Err(ValueError::new("date", "is not of the form 2026-11-21"));
    }
    quote_plain(out, text);
    Ok(())
}

pub(super) fn write_timestamp(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    write_moment(out, text, b"", b"")
        .ok_or(ValueError::new("timestamp", "is not of the form 2026-11-21 04:55:30.123456"))
}

pub(super) fn write_timestamptz(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    write_moment(out, text, b"+00", b"Z")
        .ok_or(ValueError::new("timestamptz", "is not of the form 2026-11-21 04:55:30.123456+00"))
}

pub(super) fn write_time(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    let Some((_, [])) = split_time(text) else {
        return Err(ValueError::new("time", "is not of the form 04:55:30.123456"));
    };
    quote_plain(out, text);
    Ok(())
}

pub(super) fn write_timetz(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    let is_timetz = split_time(text).is_some_and(|(_, offset)| is_offset(offset));
    if !is_timetz {
        return Err(ValueError::new("timetz", "is not of the form 04:55:30.123456+02"));
    }
    quote_plain(out, text);
    Ok(())
}

pub(super) fn write_interval(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    let is_part = |byte: &u8| byte.is_ascii_digit() || b"-.YMDTHS".contains(byte);
    let is_duration = match text {
        [b'P', parts @ .., unit] => !parts.is_empty() && parts.iter().all(is_part) && b"YMDHS".contains(unit),
        _ => false,
    };
    // Intervals can be infinite from PostgreSQL 17 on.
    if !is_duration && !is_infinity(text) {
        return Err(ValueError::new("interval", "is not of the form P1Y2M3DT4H5M6.7S"));
    }
    quote_plain(out, text);
    Ok(())
}

/// Appends a timestamp that ends in `zone`, as `zone_out`; none when it is not of that form.
fn write_moment(out: &mut Vec<u8>, text: &[u8], zone: &[u8], zone_out: &[u8]) -> Option<()> {
    if is_infinity(text) {
        quote_plain(out, text);
        return Some(());
    }
    let (date, rest) = split_date(text)?;
    let (time, rest) = split_time(rest.strip_prefix(b" ")?)?;
    match rest.strip_prefix(zone)? {
        b"" if date.len() == "2026-11-21".len() => {
            out.push(b'"');
            out.extend_from_slice(date);
            out.push(b'T');
            out.extend_from_slice(time);
            out.extend_from_slice(zone_out);
            out.push(b'"');
        }
        b"" | b" BC" => quote_plain(out, text),
        _ => return None,
    }
    Some(())
}

pub(super) fn is_infinity(text: &[u8]) -> bool {
    matches!(text, b"infinity" | b"-infinity")
}

/// Splits after a date; its year has four digits or more.
pub(super) fn split_date(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (year, _) = split_digits(text);
    let (date, rest) = text.split_at_checked(year.len() + "-11-21".len())?;
    let (_, day) = date.split_at(year.len());
    let [b'-', m1, m2, b'-', d1, d2] = day else { return None };
    (year.len() >= 4 && [m1, m2, d1, d2].iter().all(|byte| byte.is_ascii_digit())).then_some((date, rest))
}

/// Splits after a time of day, its fraction included.
pub(super) fn split_time(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let [h1, h2, b':', m1, m2, b':', s1, s2, rest @ ..] = text else { return None };
    if ![h1, h2, m1, m2, s1, s2].iter().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let rest = match rest {
        [b'.', fraction @ ..] => match split_digits(fraction) {
            ([], _) => return None,
            (_, rest) => rest,
        },
        rest => rest,
    };
    text.split_at_checked(text.len() - rest.len())
}

/// Whether the text is an offset from UTC: `+02`, `-08:30`, `+00:53:28`.
fn is_offset(text: &[u8]) -> bool {
    let two = |a: &u8, b: &u8| a.is_ascii_digit() && b.is_ascii_digit();
    match text {
        [b'+' | b'-', a, b] => two(a, b),
        [b'+' | b'-', a, b, b':', c, d] => two(a, b) && two(c, d),
        [b'+' | b'-', a, b, b':', c, d, b':', e, f] => two(a, b) && two(c, d) && two(e, f),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Write = fn(&mut Vec<u8>, &[u8]) -> Result<(), ValueError>;

    #[test]
    fn refuses_what_other_session_settings_print() {
        let cases: [(Write, &[&str]); 6] = [
            (write_date, &["", "11/21/2026", "21.11.2026", "2026-11-2", "2026-11-21 AD", "26-11-21"]),
            (write_time, &["", "4:55:30", "04:55", "04:55:30.", "04:55:30+02", "24:00:00 "]),
            (write_timetz, &["", "04:55:30", "04:55:30+2", "04:55:30 CET", "04:55:30+02:"]),
            (
                write_timestamp,
                &["", "2026-11-21", "2026-11-21T04:55:30", "2026-11-21 04:55:30+00", "Infinity"],
            ),
            (
                write_timestamptz,
                &["2026-11-21 04:55:30", "2026-11-21 04:55:30+01", "2026-11-21 04:55:30+00:30"],
            ),
            (write_interval, &["", "P", "PT", "1 day", "01:00:00", "@ 1 day", "P1", "PT\"S", "P\"D", "PxD"]),
        ];
        for (write, texts) in cases {
            for text in texts {
                let mut out = Vec::new();
                assert!(write(&mut out, text.as_bytes()).is_err(), "{text}");
                assert!(out.is_empty());
            }
        }
    }
}
