//! Values: the text that PostgreSQL prints for a column becomes the JSON of an event.
//!
//! In: a [`Kind`], found once per column in the [`TypeCatalog`], and the value's text as pgoutput or
//! COPY sent it, made under the session settings of FIELD_NOTES 2 (ISO dates, ISO 8601 intervals, UTC,
//! hex bytea, all float digits). Out: one JSON value, appended to the caller's buffer. Always: valid
//! UTF-8, on one line, and equal for equal text, so that snapshot and stream agree; on an error nothing
//! is appended. The text is copied, never parsed into a value: no allocation per value, except one
//! scratch buffer for an array whose elements are both escaped and not strings.
//!
//! The table of types is `docs/types.md`. Manual: "Data Types", "Arrays: Array Input and Output
//! Syntax", "Date/Time Output", "hstore"; RFC 8259 for JSON, RFC 4648 for base64.

mod catalog;
mod builtin;
mod string;
mod quoted;
mod scalar;
mod bytea;
mod datetime;
mod json;
mod array;
mod hstore;
mod debezium;

#[cfg(test)]
mod edge_values;
#[cfg(test)]
mod properties;

pub use catalog::{Kind, TypeCatalog, TypeRow};
pub use debezium::{DebeziumKind, write_debezium, write_unavailable};
pub use string::{write_str, write_string};

use crate::error::Error;

/// What the configuration says about the JSON forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// `[source] bigint = "string"`: int8 as a string, for consumers that lose digits over 2^53.
    pub bigint_as_string: bool,
}

/// A text that is not what its type prints. It names the kind, never the value. Definite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {kind} value {reason}")]
pub struct ValueError {
    /// The kind whose form was expected; of an array, its element's where an element is wrong.
    pub kind: &'static str,
    /// What is wrong with the text, as a predicate: `is neither t nor f`.
    pub reason: &'static str,
}

impl ValueError {
    const fn new(kind: &'static str, reason: &'static str) -> Self {
        ValueError { kind, reason }
    }

    fn not_utf8(kind: &'static str) -> Self {
        ValueError::new(kind, NOT_UTF8)
    }

    /// The remedy.
    pub fn hint(&self) -> &'static str {
        if self.reason == NOT_UTF8 {
            "mend the value at the source (a database in SQL_ASCII checks no encoding), \
             or leave the column out with exclude"
        } else {
            "the source did not print the value as PostgreSQL does under Walgate's session settings; \
             leave the column out with exclude, and report the type"
        }
    }
}

const NOT_UTF8: &str = "is not valid UTF-8";

impl From<ValueError> for Error {
    fn from(error: ValueError) -> Self {
        Error::definite(error.to_string()).with_hint(error.hint()).with_source(error)
    }
}

/// At most so many bytes are in the JSON of a value; more of arrays and hstore with many quotes.
pub fn json_bytes_max(kind: &Kind, text: &[u8]) -> usize {
    match kind {
        Kind::Bytea => text.len() / 3 * 2 + 8,
        Kind::Json => text.len(),
        // `\u0001` at worst.
        _ => {
            text.len()
                + 2
                + text
                    .iter()
                    .map(|&byte| match byte {
                        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 1,
                        0..0x20 => 5,
                        _ => 0,
                    })
                    .sum::<usize>()
        }
    }
}

/// The text of a value, for those who store it by itself.
///
/// # Errors
/// When it is not valid UTF-8.
pub fn checked_utf8<'a>(kind: &Kind, text: &'a [u8]) -> Result<&'a str, ValueError> {
    std::str::from_utf8(text).map_err(|_| ValueError::not_utf8(kind.name()))
}

/// Appends the JSON of one value that is not NULL. `text` is what the type's output function printed.
///
/// # Errors
/// When the text is not valid UTF-8 or does not look as its type prints it. Nothing is appended then.
pub fn write_value(out: &mut Vec<u8>, kind: &Kind, text: &[u8], style: &Style) -> Result<(), ValueError> {
    // The other kinds take nothing but ASCII, by their own grammar.
    let checks_encoding = matches!(kind, Kind::Text | Kind::Json | Kind::Hstore | Kind::Array { .. });
    if checks_encoding && std::str::from_utf8(text).is_err() {
        return Err(ValueError::not_utf8(kind.name()));
    }
    let start = out.len();
    let written = write_utf8(out, kind, text, style);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

/// Appends the bytes of a bytea, whose text is `\x00ff`.
///
/// # Errors
/// When it is not in that form; the buffer may hold some of them.
pub fn write_bytes(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    bytea::decode(out, text)
}

/// Appends the JSON of a value whose text is known to be UTF-8. May leave a torn value on an error.
fn write_utf8(out: &mut Vec<u8>, kind: &Kind, text: &[u8], style: &Style) -> Result<(), ValueError> {
    match kind {
        Kind::Text => {
            string::quote(out, text);
            Ok(())
        }
        Kind::Bool => scalar::write_bool(out, text),
        Kind::Integer => scalar::write_integer(out, text),
        Kind::Bigint if style.bigint_as_string => scalar::write_bigint_string(out, text),
        Kind::Bigint => scalar::write_integer(out, text),
        Kind::Float => scalar::write_float(out, text),
        Kind::Numeric => scalar::write_numeric(out, text),
        Kind::Json => json::write(out, text),
        Kind::Bytea => bytea::write(out, text),
        Kind::Timestamp => datetime::write_timestamp(out, text),
        Kind::Timestamptz => datetime::write_timestamptz(out, text),
        Kind::Date => datetime::write_date(out, text),
        Kind::Time => datetime::write_time(out, text),
        Kind::Timetz => datetime::write_timetz(out, text),
        Kind::Interval => datetime::write_interval(out, text),
        Kind::Hstore => hstore::write(out, text),
        Kind::Array { element, delimiter } => array::write(out, element, *delimiter, text, style),
    }
}
