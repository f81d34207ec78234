//! Values as Debezium writes them: the text that PostgreSQL prints becomes the JSON of its envelope.
//!
//! In: a [`DebeziumKind`], found once for a column from its type, its modifier and the [`Kind`] of the outbox's form. Out: one JSON
//! value. Always holds: what [`super::write_value`] holds. The set of Debezium's options that this follows is in
//! `docs/debezium.md`, and `tests/it/formats.rs` compares it with what Debezium itself wrote.

mod moments;
mod odd;

use super::catalog::{Kind, TypeCatalog};
use super::{Style, ValueError, array, hstore, scalar, string, write_value};

/// Stands in the place of a large value that did not change and so was not sent.
const UNAVAILABLE: &str = "__debezium_unavailable_value";
/// The same in base64, for bytea.
const UNAVAILABLE_BASE64: &str = "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==";

const OID: u32 = 26;
const POINT: u32 = 600;
const MONEY: u32 = 790;
const OID_ARRAY: u32 = 1028;
const TIMESTAMPTZ_ARRAY: u32 = 1185;
const BIT: u32 = 1560;
const VARBIT: u32 = 1562;

/// Digits of a second that PostgreSQL keeps where the column does not say.
const FRACTION_DIGITS: usize = 6;

/// How the text of a type becomes Debezium's JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebeziumKind {
    /// As in the outbox's form.
    Same(Kind),
    /// A string with every digit; `NAN`, `POSITIVE_INFINITY`, `NEGATIVE_INFINITY`.
    Numeric,
    /// A string that holds the text.
    Json,
    /// A string that holds a JSON object.
    Hstore,
    /// `2026-11-21Z`
    Date,
    /// `04:05:06.789Z`
    Time,
    /// The same, moved to UTC.
    Timetz,
    /// `2026-11-21T04:55:30.12Z`
    Timestamp,
    /// The same with so many digits of a second, zeros included.
    Timestamptz {
        /// The type's modifier, or 6.
        fraction_digits: usize,
    },
    /// `P1Y2M3DT4H5M6.78S`, every part named.
    Interval,
    /// The number, without its currency.
    Money,
    /// `bit(1)`: a boolean.
    Bit,
    /// Other bit strings: base64 of their bytes, the last bit first.
    Bits,
    /// A point as a structure with its well-known binary.
    Point,
    /// A JSON array.
    Array {
        /// The element's kind.
        element: Box<DebeziumKind>,
        /// What stands between elements.
        delimiter: u8,
    },
}

impl DebeziumKind {
    /// Of a column's type.
    pub fn of(types: &TypeCatalog, type_oid: u32, type_modifier: i32) -> Self {
        let base = types.base(type_oid);
        match (base, types.kind(base)) {
            (OID, _) => DebeziumKind::Same(Kind::Integer),
            (POINT, _) => DebeziumKind::Point,
            (MONEY, _) => DebeziumKind::Money,
            // A modifier is the length; a bit string of no modifier has no limit.
            (BIT | VARBIT, _) if type_modifier == 1 => DebeziumKind::Bit,
            (BIT | VARBIT, _) => DebeziumKind::Bits,
            (OID_ARRAY, _) => {
                DebeziumKind::Array { element: Box::new(DebeziumKind::Same(Kind::Integer)), delimiter: b',' }
            }
            (TIMESTAMPTZ_ARRAY, _) => DebeziumKind::Array {
                element: Box::new(DebeziumKind::of_kind(&Kind::Timestamptz, type_modifier)),
                delimiter: b',',
            },
            (_, Some(kind)) => DebeziumKind::of_kind(kind, type_modifier),
            (_, None) => DebeziumKind::Same(Kind::Text),
        }
    }

    fn of_kind(kind: &Kind, type_modifier: i32) -> Self {
        match kind {
            Kind::Numeric => DebeziumKind::Numeric,
            Kind::Json => DebeziumKind::Json,
            Kind::Hstore => DebeziumKind::Hstore,
            Kind::Date => DebeziumKind::Date,
            Kind::Time => DebeziumKind::Time,
            Kind::Timetz => DebeziumKind::Timetz,
            Kind::Timestamp => DebeziumKind::Timestamp,
            Kind::Timestamptz => DebeziumKind::Timestamptz {
                fraction_digits: usize::try_from(type_modifier)
                    .unwrap_or(FRACTION_DIGITS)
                    .min(FRACTION_DIGITS),
            },
            Kind::Interval => DebeziumKind::Interval,
            Kind::Array { element, delimiter } => DebeziumKind::Array {
                element: Box::new(DebeziumKind::of_kind(element, -1)),
                delimiter: *delimiter,
            },
            Kind::Bool | Kind::Integer | Kind::Bigint | Kind::Float | Kind::Bytea | Kind::Text => {
                DebeziumKind::Same(kind.clone())
            }
        }
    }
}

/// Appends the JSON of one value that is not NULL. `text` is what the type's output function printed.
///
/// # Errors
/// As [`write_value`]. Nothing is appended then.
pub fn write_debezium(
    out: &mut Vec<u8>,
    kind: &DebeziumKind,
    text: &[u8],
    style: &Style,
) -> Result<(), ValueError> {
    let start = out.len();
    let written = write(out, kind, text, style);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn write(out: &mut Vec<u8>, kind: &DebeziumKind, text: &[u8], style: &Style) -> Result<(), ValueError> {
    match kind {
        DebeziumKind::Same(kind) => write_value(out, kind, text, style),
        DebeziumKind::Numeric => {
            let named: &[u8] = match text {
                b"NaN" => b"NAN",
                b"Infinity" => b"POSITIVE_INFINITY",
                b"-Infinity" => b"NEGATIVE_INFINITY",
                number => return scalar::write_numeric(out, number),
            };
            scalar::quote_plain(out, named);
            Ok(())
        }
        DebeziumKind::Json => string::write_string(out, text),
        DebeziumKind::Hstore => {
            if std::str::from_utf8(text).is_err() {
                return Err(ValueError::not_utf8("hstore"));
            }
            let mut object = Vec::with_capacity(text.len());
            hstore::write(&mut object, text)?;
            string::quote(out, &object);
            Ok(())
        }
        DebeziumKind::Date => moments::write_date(out, text),
        DebeziumKind::Time => moments::write_time(out, text),
        DebeziumKind::Timetz => moments::write_timetz(out, text),
        DebeziumKind::Timestamp => moments::write_timestamp(out, text),
        DebeziumKind::Timestamptz { fraction_digits } => {
            moments::write_timestamptz(out, text, *fraction_digits)
        }
        DebeziumKind::Interval => moments::write_interval(out, text),
        DebeziumKind::Money => odd::write_money(out, text),
        DebeziumKind::Bit => odd::write_bit(out, text),
        DebeziumKind::Bits => odd::write_bits(out, text),
        DebeziumKind::Point => odd::write_point(out, text),
        DebeziumKind::Array { element, delimiter } => {
            if std::str::from_utf8(text).is_err() {
                return Err(ValueError::not_utf8("array"));
            }
            array::write_items(out, *delimiter, text, &mut |out, item| write(out, element, item, style))
        }
    }
}

/// Appends what stands in the place of a large value that was not sent: by its form no value that an application has.
pub fn write_unavailable(out: &mut Vec<u8>, kind: &DebeziumKind) {
    match kind {
        DebeziumKind::Same(Kind::Bytea) => scalar::quote_plain(out, UNAVAILABLE_BASE64.as_bytes()),
        DebeziumKind::Hstore => {
            let object = format!(r#"{{"{UNAVAILABLE}":"{UNAVAILABLE}"}}"#);
            string::write_str(out, &object);
        }
        DebeziumKind::Array { element, .. } => {
            out.push(b'[');
            match **element {
                // A number for each character: what an array of numbers can hold.
                DebeziumKind::Same(Kind::Integer | Kind::Bigint) => {
                    for (nth, character) in UNAVAILABLE.bytes().enumerate() {
                        if nth > 0 {
                            out.push(b',');
                        }
                        out.extend_from_slice(itoa::Buffer::new().format(character).as_bytes());
                    }
                }
                ref element => write_unavailable(out, element),
            }
            out.push(b']');
        }
        _ => scalar::quote_plain(out, UNAVAILABLE.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(type_oid: u32, type_modifier: i32, text: &str) -> String {
        let kind = DebeziumKind::of(&TypeCatalog::builtin(), type_oid, type_modifier);
        let mut out = Vec::new();
        write_debezium(&mut out, &kind, text.as_bytes(), &Style::default())
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        String::from_utf8(out).expect("UTF-8")
    }

    /// What Debezium 3.6.3 wrote for the same values.
    #[test]
    fn values_are_debeziums() {
        for (type_oid, modifier, text, expected) in [
            (1700, -1, "NaN", r#""NAN""#),
            (1700, -1, "0.00000001", r#""0.00000001""#),
            (114, -1, r#"{"a" : 1}"#, r#""{\"a\" : 1}""#),
            (1082, -1, "2026-11-21", r#""2026-11-21Z""#),
            (1082, -1, "0044-03-15 BC", r#""-0043-03-15Z""#),
            (1082, -1, "12026-01-01", r#""+12026-01-01Z""#),
            (1083, -1, "04:05:06.789012", r#""04:05:06.789012Z""#),
            (1266, -1, "04:05:06.5+02", r#""02:05:06.5Z""#),
            (1266, -1, "23:30:00-08", r#""07:30:00Z""#),
            (1114, -1, "2026-11-21 04:55:30.12", r#""2026-11-21T04:55:30.12Z""#),
            (1114, -1, "12026-01-01 00:00:00", r#""+12026-01-01T00:00:00Z""#),
            (1184, -1, "2026-11-21 03:55:30.5+00", r#""2026-11-21T03:55:30.500000Z""#),
            (1184, 3, "2026-11-21 04:55:30.12+00", r#""2026-11-21T04:55:30.120Z""#),
            (1184, 0, "2026-11-21 04:55:30+00", r#""2026-11-21T04:55:30Z""#),
            (1184, -1, "-infinity", r#""-infinity""#),
            (1185, -1, r#"{"2026-11-21 03:55:30.5+00"}"#, r#"["2026-11-21T03:55:30.500000Z"]"#),
            (1186, -1, "P1Y2M3DT4H5M6.78S", r#""P1Y2M3DT4H5M6.78S""#),
            (1186, -1, "PT0S", r#""P0Y0M0DT0H0M0S""#),
            (1186, -1, "P-1DT-1.5S", r#""P0Y0M-1DT0H0M-1.5S""#),
            (26, -1, "4000000000", "4000000000"),
            (790, -1, "$1,234.50", r#""1234.50""#),
            (1560, 1, "1", "true"),
            (1560, 8, "10000001", r#""gQ==""#),
            (1562, 12, "101", r#""BQ==""#),
            (600, -1, "(1,2)", r#"{"x":1,"y":2,"wkb":"AQEAAAAAAAAAAADwPwAAAAAAAABA","srid":null}"#),
            (1009, -1, r#"{a,NULL,"b,c"}"#, r#"["a",null,"b,c"]"#),
            (1231, -1, "{1.50,2}", r#"["1.50","2"]"#),
            (3807, -1, r#"{"{\"a\": 1}"}"#, r#"["{\"a\": 1}"]"#),
            (1182, -1, "{2026-11-21}", r#"["2026-11-21Z"]"#),
            (20, -1, "9007199254740993", "9007199254740993"),
            (17, -1, "\\x00ff10", r#""AP8Q""#),
        ] {
            assert_eq!(written(type_oid, modifier, text), expected, "type {type_oid}");
        }
    }

    #[test]
    fn a_placeholder_has_the_form_of_its_type() {
        let placeholder = |type_oid| {
            let mut out = Vec::new();
            write_unavailable(&mut out, &DebeziumKind::of(&TypeCatalog::builtin(), type_oid, -1));
            serde_json::from_slice::<serde_json::Value>(&out).expect("JSON")
        };
        assert_eq!(placeholder(25), UNAVAILABLE);
        assert_eq!(placeholder(17), UNAVAILABLE_BASE64);
        assert_eq!(placeholder(1009), serde_json::json!([UNAVAILABLE]));
        assert_eq!(placeholder(1007)[0], 95);
    }

    #[test]
    fn refuses_what_the_types_never_print() {
        for (type_oid, text) in [
            (1082, "21.11.2026"),
            (1083, "04:05"),
            (1266, "04:05:06"),
            (1114, "2026-11-21"),
            (1184, "2026-11-21 04:55:30+01"),
            (1186, "1 day"),
            (1186, "P1H"),
            (790, "abc"),
            (1560, "2"),
            (1562, "01x"),
            (600, "1,2"),
            (600, "(1,x)"),
        ] {
            let kind = DebeziumKind::of(&TypeCatalog::builtin(), type_oid, -1);
            let mut out = Vec::new();
            assert!(write_debezium(&mut out, &kind, text.as_bytes(), &Style::default()).is_err(), "{text}");
            assert!(out.is_empty());
        }
    }
}
