//! A row as it was sent: per column a kind and, for a value, its length and bytes.
//!
//! Comes in: the bytes of TupleData. Goes out: [`Value`]s that borrow them. Always holds: [`Tuple::read`] is
//! the only way to make one and checks every column, so the region has exactly `count` whole columns and
//! iterating needs no errors. Manual: "TupleData".

use std::iter::FusedIterator;

use crate::wal::cursor::{Cursor, DecodeError, Reason};

/// The columns of one row, checked and borrowed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: &'a [u8],
    count: usize,
}

/// One column of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL NULL; in a key tuple also "not sent".
    Null,
    /// A TOASTed value that did not change and is not in the WAL.
    Unchanged,
    /// The type's text form, in the session's settings.
    Text(&'a [u8]),
    /// The type's binary form; only with the option `binary`, which Walgate does not set.
    Binary(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// Checks a tuple in one pass and moves the cursor behind it.
    #[inline]
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        let count = cursor.count("column count")?;
        let from = cursor.remaining();
        for _ in 0..count {
            let at = cursor.offset();
            match cursor.u8("column kind")? {
                b't' | b'b' => {
                    let length = cursor.length("column length")?;
                    cursor.bytes("column value", length)?;
                }
                b'n' | b'u' => {}
                other => return Err(cursor.error("column kind", at, Reason::UnexpectedType(other))),
            }
        }
        let (columns, _) = from.split_at(from.len() - cursor.remaining().len());
        Ok(Tuple { columns, count })
    }

    /// A tuple from bytes that hold nothing else, as [`write_tuple`](super::write_tuple) makes them.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new("TupleData", bytes);
        let tuple = Tuple::read(&mut cursor)?;
        cursor.finish()?;
        Ok(tuple)
    }

    /// The number of columns.
    #[inline]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no column, as in `CREATE TABLE t ()`.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that the columns take in the message.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.columns.len()
    }

    /// The values, in the relation's order of columns.
    #[inline]
    pub fn iter(&self) -> TupleIter<'a> {
        TupleIter { rest: self.columns, left: self.count }
    }

    pub(super) fn column_bytes(&self) -> &'a [u8] {
        self.columns
    }
}

impl<'a> IntoIterator for Tuple<'a> {
    type Item = Value<'a>;
    type IntoIter = TupleIter<'a>;

    #[inline]
    fn into_iter(self) -> TupleIter<'a> {
        self.iter()
    }
}

/// The values of a [`Tuple`].
#[derive(Clone)]
pub struct TupleIter<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> TupleIter<'a> {
    #[inline]
    fn sized(&mut self) -> &'a [u8] {
        const CHECKED: &str = "Tuple::read has checked every column";
        let (length, rest) = self.rest.split_first_chunk().expect(CHECKED);
        let length = usize::try_from(u32::from_be_bytes(*length)).expect(CHECKED);
        let (value, rest) = rest.split_at_checked(length).expect(CHECKED);
        self.rest = rest;
        value
    }
}

impl<'a> Iterator for TupleIter<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        let (kind, rest) = self.rest.split_first()?;
        self.rest = rest;
        self.left -= 1;
        Some(match kind {
            b't' => Value::Text(self.sized()),
            b'n' => Value::Null,
            b'u' => Value::Unchanged,
            _ => Value::Binary(self.sized()),
        })
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for TupleIter<'_> {}
impl FusedIterator for TupleIter<'_> {}
