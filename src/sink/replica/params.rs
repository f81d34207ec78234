//! Cells on their way into statements: without a copy of their own where the batch has them.
//!
//! Comes in: a batch's buffer and cells, and what is added to them while it is applied: folded rows, values fetched from
//! the source. Goes out: parameters, whole columns as `text[]` or single cells as `text`, in PostgreSQL's binary form,
//! which for text is the text. Always holds: a row is named by where its cells begin, added ones after the batch's;
//! likewise a text. Source: array_recv in PostgreSQL's `arrayfuncs.c`.

use std::fmt;
use std::ops::Range;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type};

use crate::route::row::Cell;

type Failure = Box<dyn std::error::Error + Sync + Send>;

/// The cells of a batch, and those added to them.
pub(super) struct Cells<'a> {
    bytes: &'a [u8],
    cells: &'a [Cell],
    more: Added,
}

/// What was added to a batch's cells.
#[derive(Default)]
pub(super) struct Added {
    bytes: Vec<u8>,
    cells: Vec<Cell>,
}

impl<'a> Cells<'a> {
    pub fn new(bytes: &'a [u8], cells: &'a [Cell]) -> Self {
        Cells::with(bytes, cells, Added::default())
    }

    /// A batch's, with what was added to them before.
    pub fn with(bytes: &'a [u8], cells: &'a [Cell], more: Added) -> Self {
        Cells { bytes, cells, more }
    }

    /// What was added.
    pub fn into_added(self) -> Added {
        self.more
    }

    /// The batch's own cells from `start` on, for as long as the batch lives.
    pub fn of_batch(&self, start: usize, width: usize) -> &'a [Cell] {
        self.cells.get(start..start + width).expect("a change's cells lie in its own batch")
    }

    /// The batch's own bytes.
    pub fn batch_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The cells of the row that begins at `start`.
    #[inline]
    pub fn row(&self, start: usize, width: usize) -> &[Cell] {
        let row = match start.checked_sub(self.cells.len()) {
            None => self.cells.get(start..start + width),
            Some(added) => self.more.cells.get(added..added + width),
        };
        row.expect("a row begins where its cells do")
    }

    /// A cell's text; `None` for the two that have none.
    #[inline]
    pub fn text(&self, cell: &Cell) -> Option<&[u8]> {
        match cell {
            Cell::Text(range) => Some(self.bytes_of(range)),
            Cell::Null | Cell::Unchanged => None,
        }
    }

    fn bytes_of(&self, range: &Range<usize>) -> &[u8] {
        let bytes = match range.start.checked_sub(self.bytes.len()) {
            Some(added) if !range.is_empty() => self.more.bytes.get(added..added + range.len()),
            _ => self.bytes.get(range.clone()).or(Some(&[])),
        };
        bytes.expect("a cell's text lies in the buffer it was made for")
    }

    /// How much has been added.
    pub fn added(&self) -> (usize, usize) {
        (self.more.bytes.len(), self.more.cells.len())
    }

    /// Takes back what was added since [`Cells::added`] said so: nobody needs those rows any more.
    pub fn take_back(&mut self, (bytes, cells): (usize, usize)) {
        self.more.bytes.truncate(bytes);
        self.more.cells.truncate(cells);
    }

    /// Adds a row: that of `new`, and where this says "unchanged", that of `old`. Where it begins.
    pub fn merge(&mut self, old: usize, new: usize, width: usize) -> usize {
        let start = self.cells.len() + self.more.cells.len();
        for at in 0..width {
            let cell = match self.row(new, width).get(at) {
                Some(Cell::Unchanged) | None => self.row(old, width).get(at),
                given => given,
            };
            let cell = cell.cloned().unwrap_or(Cell::Unchanged);
            self.more.cells.push(cell);
        }
        start
    }

    /// Adds a row: that of `row`, and where this says "unchanged", the values given. Where it begins.
    pub fn fill(&mut self, row: usize, width: usize, values: &[(usize, Option<&[u8]>)]) -> usize {
        let filled = self.merge(row, row, width);
        for (at, value) in values {
            let cell = match value {
                None => Cell::Null,
                Some(text) => {
                    let start = self.bytes.len() + self.more.bytes.len();
                    self.more.bytes.extend_from_slice(text);
                    Cell::Text(start..start + text.len())
                }
            };
            let place = filled - self.cells.len() + at;
            if let Some(unknown @ Cell::Unchanged) = self.more.cells.get_mut(place) {
                *unknown = cell;
            }
        }
        filled
    }
}

/// One column of many rows, as `text[]`.
pub(super) struct Column<'a> {
    pub cells: &'a Cells<'a>,
    /// Where each row begins.
    pub rows: &'a [usize],
    /// Which cell of a row.
    pub at: usize,
    /// How many cells a row has.
    pub width: usize,
}

impl ToSql for Column<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Failure> {
        out.put_i32(1);
        let has_nulls = out.len();
        out.put_i32(0);
        out.put_u32(Type::TEXT.oid());
        out.put_i32(i32::try_from(self.rows.len())?);
        out.put_i32(1);
        let mut is_any_null = false;
        for row in self.rows {
            let cell = self.cells.row(*row, self.width).get(self.at);
            match cell.and_then(|cell| self.cells.text(cell)) {
                Some(text) => {
                    out.put_i32(i32::try_from(text.len())?);
                    out.put_slice(text);
                }
                None => {
                    is_any_null = true;
                    out.put_i32(-1);
                }
            }
        }
        if is_any_null && let Some(flag) = out.get_mut(has_nulls + 3) {
            *flag = 1;
        }
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT_ARRAY
    }

    tokio_postgres::types::to_sql_checked!();
}

/// Rows' values are never printed.
impl fmt::Debug for Column<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Column({} of {} rows)", self.at, self.rows.len())
    }
}

/// One cell, as `text`.
pub(super) struct Text<'a>(pub Option<&'a [u8]>);

impl ToSql for Text<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Failure> {
        let Some(text) = self.0 else { return Ok(IsNull::Yes) };
        out.put_slice(text);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT
    }

    tokio_postgres::types::to_sql_checked!();
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Text")
    }
}

/// Appends a row in COPY's text format. Manual: "COPY", "Text Format".
pub(super) fn write_copy_line<'c>(out: &mut Vec<u8>, cells: &Cells<'_>, row: impl Iterator<Item = &'c Cell>) {
    for (at, cell) in row.enumerate() {
        if at > 0 {
            out.push(b'\t');
        }
        match cells.text(cell) {
            Some(text) => write_escaped(out, text),
            None => out.extend_from_slice(b"\\N"),
        }
    }
    out.push(b'\n');
}

fn write_escaped(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    // Backslash, tab, line feed; a carriage return is rare enough to be looked for alone.
    while let Some(at) = next_special(rest) {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((byte, after)) = special.split_first() else { return };
        out.push(b'\\');
        out.push(match byte {
            b'\n' => b'n',
            b'\t' => b't',
            b'\r' => b'r',
            other => *other,
        });
        rest = after;
    }
    out.extend_from_slice(rest);
}

fn next_special(text: &[u8]) -> Option<usize> {
    let first = memchr::memchr3(b'\\', b'\t', b'\n', text);
    let before = first.map_or(text, |at| text.get(..at).unwrap_or(text));
    memchr::memchr(b'\r', before).or(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_rows_are_found_where_they_were_added() {
        let bytes = b"1ab";
        let cells = [Cell::Text(0..1), Cell::Text(1..3), Cell::Text(0..1), Cell::Unchanged, Cell::Text(3..3)];
        let mut all = Cells::new(bytes, &cells);
        let merged = all.merge(0, 2, 2);
        assert_eq!(merged, 5);
        assert_eq!(all.row(merged, 2), [Cell::Text(0..1), Cell::Text(1..3)]);
        let filled = all.fill(2, 2, &[(0, Some(b"no")), (1, Some(b"xyz"))]);
        let texts: Vec<_> = all.row(filled, 2).iter().map(|cell| all.text(cell)).collect();
        assert_eq!(texts, [Some(&b"1"[..]), Some(&b"xyz"[..])]);
        assert_eq!(all.text(&Cell::Text(3..3)), Some(&b""[..]));
        let empty = all.fill(2, 2, &[(1, Some(b""))]);
        assert_eq!(all.text(&all.row(empty, 2)[1]), Some(&b""[..]));
    }

    #[test]
    fn copy_lines_escape_what_ends_a_field() {
        let bytes = b"a\\b\tc\nd\re";
        let cells = [Cell::Text(0..9), Cell::Null, Cell::Text(0..0)];
        let all = Cells::new(bytes, &cells);
        let mut out = Vec::new();
        write_copy_line(&mut out, &all, cells.iter());
        assert_eq!(out, b"a\\\\b\\tc\\nd\\re\t\\N\t\n");
    }
}
