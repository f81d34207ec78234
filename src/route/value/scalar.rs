//! Booleans and numbers: their text is checked against its grammar and copied.
//!
//! Integers and floats are JSON numbers as PostgreSQL prints them (`1e+22`, `-0` and `1e-07` are legal
//! JSON), numeric is a string with every digit. What JSON has no number for, NaN and the infinities,
//! is a string. Manual: "Numeric Types", "Boolean Type"; RFC 8259 section 6.

use super::ValueError;

pub(super) fn write_bool(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    out.extend_from_slice(match text {
        b"t" => b"true",
        b"f" => b"false",
        _ => return Err(ValueError::new("bool", "is neither t nor f")),
    });
    Ok(())
}

pub(super) fn write_integer(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    check_integer(text)?;
    out.extend_from_slice(text);
    Ok(())
}

pub(super) fn write_bigint_string(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    check_integer(text)?;
    quote_plain(out, text);
    Ok(())
}

pub(super) fn write_float(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    if is_number(text) {
        out.extend_from_slice(text);
    } else if is_beyond_numbers(text) {
        quote_plain(out, text);
    } else {
        return Err(ValueError::new("float", "is not a number, NaN or an infinity"));
    }
    Ok(())
}

pub(super) fn write_numeric(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    if !is_number(text) && !is_beyond_numbers(text) {
        return Err(ValueError::new("numeric", "is not a number, NaN or an infinity"));
    }
    quote_plain(out, text);
    Ok(())
}

/// Appends text that is known to need no escapes, in quotes.
pub(super) fn quote_plain(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

/// Whether the text is a number by JSON's grammar.
pub(super) fn is_number(text: &[u8]) -> bool {
    let (whole, rest) = split_digits(text.strip_prefix(b"-").unwrap_or(text));
    if whole.is_empty() || (whole.len() > 1 && whole.starts_with(b"0")) {
        return false;
    }
    let rest = match rest {
        [b'.', fraction @ ..] => match split_digits(fraction) {
            ([], _) => return false,
            (_, rest) => rest,
        },
        rest => rest,
    };
    match rest {
        [] => true,
        [b'e' | b'E', b'+' | b'-', digits @ ..] | [b'e' | b'E', digits @ ..] => {
            !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    }
}

/// Splits text after the digits that it begins with.
pub(super) fn split_digits(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len()))
}

fn check_integer(text: &[u8]) -> Result<(), ValueError> {
    let is_integer = match text.strip_prefix(b"-").unwrap_or(text) {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if is_integer { Ok(()) } else { Err(ValueError::new("integer", "is not a whole number")) }
}

fn is_beyond_numbers(text: &[u8]) -> bool {
    matches!(text, b"NaN" | b"Infinity" | b"-Infinity")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_grammar_of_json() {
        for legal in ["0", "-0", "12", "0.5", "-1.25", "1e+22", "1e-07", "1E5", "0e0", "10.00"] {
            assert!(is_number(legal.as_bytes()), "{legal}");
            assert!(serde_json::from_str::<serde_json::Value>(legal).is_ok(), "{legal}");
        }
        for illegal in
            ["", "-", "+1", "01", "-01", ".5", "1.", "1e", "1e+", "1.e5", "0x1", "1 ", " 1", "1e5.0"]
        {
            assert!(!is_number(illegal.as_bytes()), "{illegal}");
        }
    }

    #[test]
    fn refuses_what_the_type_never_prints() {
        let mut out = Vec::new();
        for text in ["", "true", "T", "1"] {
            assert!(write_bool(&mut out, text.as_bytes()).is_err(), "{text}");
        }
        for text in ["", "-", "1.0", "01", "NaN", "--1", "1\n"] {
            assert!(write_integer(&mut out, text.as_bytes()).is_err(), "{text}");
            assert!(write_bigint_string(&mut out, text.as_bytes()).is_err(), "{text}");
        }
        for text in ["", "nan", "inf", "infinity", "+Infinity", "1,5", "$1"] {
            assert!(write_float(&mut out, text.as_bytes()).is_err(), "{text}");
            assert!(write_numeric(&mut out, text.as_bytes()).is_err(), "{text}");
        }
        assert!(out.is_empty());
    }
}
