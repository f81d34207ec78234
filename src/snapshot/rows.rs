//! Rows of `COPY ... TO STDOUT` in text format. Manual: "COPY", "Text Format".

use std::ops::Range;

use crate::change::Cells;
use crate::error::{Error, Result};
use crate::wal::pgoutput::Value;

/// Space that one huge row took is given back beyond this, in bytes.
const TEXT_BYTES_KEPT_MAX: usize = 8 << 20;

/// One decoded row; its space is used again for the next. Values without an escape stay in the line, so that a large
/// one is not held twice.
#[derive(Debug, Default)]
pub struct CopyRow {
    /// Of the values that were escaped.
    text: Vec<u8>,
    fields: Vec<Option<Field>>,
}

/// Where a value is.
#[derive(Debug)]
enum Field {
    Line(Range<usize>),
    Text(Range<usize>),
}

impl CopyRow {
    /// Decodes one line with `columns` fields, with or without its line break.
    ///
    /// # Errors
    /// Definite: another number of fields, or an escape that COPY does not write.
    pub fn decode(&mut self, line: &[u8], columns: usize) -> Result<()> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        self.text.clear();
        self.text.shrink_to(TEXT_BYTES_KEPT_MAX);
        self.fields.clear();
        if columns == 0 && line.is_empty() {
            return Ok(());
        }
        let mut at = 0;
        for field in line.split(|&byte| byte == b'\t') {
            let place = at..at + field.len();
            at = place.end + 1;
            let value = match field {
                b"\\N" => None,
                _ if memchr::memchr(b'\\', field).is_none() => Some(Field::Line(place)),
                // A bytea has one escape, at its beginning, of the backslash itself.
                [b'\\', b'\\', rest @ ..] if memchr::memchr(b'\\', rest).is_none() => {
                    Some(Field::Line(place.start + 1..place.end))
                }
                _ => {
                    let start = self.text.len();
                    self.unescape(field)?;
                    Some(Field::Text(start..self.text.len()))
                }
            };
            self.fields.push(value);
        }
        if self.fields.len() != columns {
            return Err(Error::definite(format!(
                "COPY gave a row of {} columns, {columns} were asked for",
                self.fields.len()
            )));
        }
        Ok(())
    }

    /// The values, in the order of the columns; `line`: what was decoded.
    pub fn cells<'a>(&'a self, line: &'a [u8]) -> Cells<'a> {
        let value = |field: &Field| {
            let (bytes, range) = match field {
                Field::Line(range) => (line, range),
                Field::Text(range) => (self.text.as_slice(), range),
            };
            Value::Text(bytes.get(range.clone()).expect("a range of this row"))
        };
        self.fields.iter().map(|field| field.as_ref().map_or(Value::Null, value)).collect()
    }

    fn unescape(&mut self, mut field: &[u8]) -> Result<()> {
        while let Some(at) = memchr::memchr(b'\\', field) {
            let (plain, rest) = field.split_at(at);
            self.text.extend_from_slice(plain);
            let escaped = match rest.get(1) {
                Some(b'b') => 8,
                Some(b'f') => 12,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'v') => 11,
                Some(b'\\') => b'\\',
                _ => return Err(Error::definite("COPY gave an escape that it does not write")),
            };
            self.text.push(escaped);
            field = rest.get(2..).unwrap_or_default();
        }
        self.text.extend_from_slice(field);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(line: &[u8], columns: usize) -> Vec<Option<Vec<u8>>> {
        let mut row = CopyRow::default();
        row.decode(line, columns).expect("a legal row");
        let owned = |cell: &Value<'_>| match cell {
            Value::Text(text) => Some(text.to_vec()),
            _ => None,
        };
        row.cells(line).iter().map(owned).collect()
    }

    #[test]
    fn tells_null_from_empty_and_from_the_letter_n() {
        assert_eq!(
            decoded(b"\\N\t\t\\\\N\tN\n", 4),
            [None, Some(vec![]), Some(b"\\N".to_vec()), Some(b"N".to_vec())]
        );
        assert_eq!(decoded(b"\n", 0), Vec::<Option<Vec<u8>>>::new());
        assert_eq!(decoded(b"\n", 1), [Some(vec![])]);
    }

    #[test]
    fn refuses_what_copy_does_not_write() {
        let mut row = CopyRow::default();
        assert!(row.decode(b"a\tb\n", 1).is_err());
        assert!(row.decode(b"\\x\n", 1).is_err());
        assert!(row.decode(b"a\\", 1).is_err());
    }

    /// As `CopyAttributeOutText` writes it.
    fn encode(fields: &[Option<Vec<u8>>]) -> Vec<u8> {
        let encoded: Vec<Vec<u8>> = fields
            .iter()
            .map(|field| match field {
                None => b"\\N".to_vec(),
                Some(text) => text
                    .iter()
                    .flat_map(|&byte| match byte {
                        8 => b"\\b".to_vec(),
                        12 => b"\\f".to_vec(),
                        b'\n' => b"\\n".to_vec(),
                        b'\r' => b"\\r".to_vec(),
                        b'\t' => b"\\t".to_vec(),
                        11 => b"\\v".to_vec(),
                        b'\\' => b"\\\\".to_vec(),
                        other => vec![other],
                    })
                    .collect(),
            })
            .collect();
        [encoded.join(&b'\t'), b"\n".to_vec()].concat()
    }

    proptest! {
        #[test]
        fn decodes_what_copy_encodes(fields in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..20)), 1..8)) {
            prop_assert_eq!(decoded(&encode(&fields), fields.len()), fields);
        }

        #[test]
        fn never_panics(line in prop::collection::vec(any::<u8>(), 0..50), columns in 0usize..5) {
            let _ = CopyRow::default().decode(&line, columns);
        }
    }
}
