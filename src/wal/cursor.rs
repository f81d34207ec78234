//! The checked byte cursor: the only code that looks at raw bytes of the replication protocol.
//!
//! Comes in: one message's bytes, of any origin. Goes out: big-endian integers, strings and slices that
//! borrow them, or a [`DecodeError`] with the message, the field and its offset. Always holds: no read goes
//! past the end, no read panics, and nothing is left over unless asked for ([`Cursor::finish`]).
//! Manual: "Message Data Types".

use std::fmt;

use crate::error::Error;
use crate::lsn::Lsn;
use crate::wal::timestamp::Timestamp;

/// Reads a message from front to back. Copying it is how to look ahead.
#[derive(Clone, Copy)]
pub struct Cursor<'a> {
    message: &'static str,
    rest: &'a [u8],
    length: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor at the first of `bytes`; `message` names them in errors.
    #[inline]
    pub fn new(message: &'static str, bytes: &'a [u8]) -> Self {
        Cursor { message, rest: bytes, length: bytes.len() }
    }

    /// The same cursor, once the type byte has told what the message is.
    #[inline]
    #[must_use]
    pub fn named(self, message: &'static str) -> Self {
        Cursor { message, ..self }
    }

    /// Bytes read so far.
    #[inline]
    pub fn offset(&self) -> usize {
        self.length - self.rest.len()
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let Some((head, tail)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.truncated(field, N));
        };
        self.rest = tail;
        Ok(*head)
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array(field).map(u8::from_be_bytes)
    }

    /// Two bytes, signed.
    #[inline]
    pub fn i16(&mut self, field: &'static str) -> Result<i16, DecodeError> {
        self.array(field).map(i16::from_be_bytes)
    }

    /// Two bytes, unsigned.
    #[inline]
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// Four bytes, signed.
    #[inline]
    pub fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.array(field).map(i32::from_be_bytes)
    }

    /// Four bytes, unsigned: an oid or a transaction id.
    #[inline]
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// Eight bytes, signed.
    #[inline]
    pub fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.array(field).map(i64::from_be_bytes)
    }

    /// Eight bytes, unsigned.
    #[inline]
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// Eight bytes as a position in the WAL.
    #[inline]
    pub fn lsn(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        self.u64(field).map(Lsn)
    }

    /// Eight bytes as microseconds since 2000-01-01.
    #[inline]
    pub fn timestamp(&mut self, field: &'static str) -> Result<Timestamp, DecodeError> {
        self.i64(field).map(Timestamp)
    }

    /// An Int16 that counts things. Negative ones are an error.
    #[inline]
    pub fn count(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let at = self.offset();
        let value = self.i16(field)?;
        usize::try_from(value).map_err(|_| self.error(field, at, Reason::Negative(value.into())))
    }

    /// An Int32 that counts things or bytes. Negative ones are an error.
    #[inline]
    pub fn length(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let at = self.offset();
        let value = self.i32(field)?;
        usize::try_from(value).map_err(|_| self.error(field, at, Reason::Negative(value)))
    }

    /// One byte that is 0 or 1.
    #[inline]
    pub fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        self.flags(field, 1).map(|flags| flags == 1)
    }

    /// One byte of flags, all of them within the bits of `known`: a flag whose meaning is unknown is not ignored.
    #[inline]
    pub fn flags(&mut self, field: &'static str, known: u8) -> Result<u8, DecodeError> {
        let at = self.offset();
        let flags = self.u8(field)?;
        if flags & !known != 0 {
            return Err(self.error(field, at, Reason::UnknownFlags(flags)));
        }
        Ok(flags)
    }

    /// The next `n` bytes.
    #[inline]
    pub fn bytes(&mut self, field: &'static str, n: usize) -> Result<&'a [u8], DecodeError> {
        let Some((head, tail)) = self.rest.split_at_checked(n) else {
            return Err(self.truncated(field, n));
        };
        self.rest = tail;
        Ok(head)
    }

    /// A string up to its NUL, which is read too.
    pub fn cstr(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let at = self.offset();
        let end = memchr::memchr(0, self.rest).ok_or_else(|| self.error(field, at, Reason::Unterminated))?;
        let bytes = self.bytes(field, end)?;
        self.u8(field)?;
        std::str::from_utf8(bytes).map_err(|_| self.error(field, at, Reason::NotUtf8))
    }

    /// Everything that is left.
    #[inline]
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// How much is left, without reading it.
    #[inline]
    pub fn remaining(&self) -> &'a [u8] {
        self.rest
    }

    /// Ends the message: leftover bytes mean that it was not what it was taken for.
    #[inline]
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.error("end", self.offset(), Reason::Leftover(self.rest.len())))
    }

    #[cold]
    fn truncated(&self, field: &'static str, needed: usize) -> DecodeError {
        self.error(field, self.offset(), Reason::Truncated { needed, left: self.rest.len() })
    }

    /// An error of this message, for what only its reader can know to be wrong.
    #[cold]
    pub fn error(&self, field: &'static str, offset: usize, reason: Reason) -> DecodeError {
        DecodeError { message: self.message, field, offset, reason }
    }
}

impl fmt::Debug for Cursor<'_> {
    // The bytes may be a row's values, which no log may show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cursor({} at {} of {})", self.message, self.offset(), self.length)
    }
}

/// A message that does not follow the protocol: where, in which field, and why. Holds no row data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {message} message: {field} at byte {offset}: {reason}")]
pub struct DecodeError {
    /// The message's name, for example `Update`.
    pub message: &'static str,
    /// The field that could not be read.
    pub field: &'static str,
    /// The field's first byte, counted from the message's first.
    pub offset: usize,
    /// What is wrong with it.
    pub reason: Reason,
}

/// Why a field could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The message ends too early.
    #[error("{needed} bytes needed, {left} left")]
    Truncated {
        /// Bytes that the field has or announces.
        needed: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// The message goes on after its last field.
    #[error("{0} bytes left over")]
    Leftover(usize),
    /// A string without its NUL.
    #[error("a string without its end")]
    Unterminated,
    /// A string that is not UTF-8.
    #[error("a string that is not UTF-8")]
    NotUtf8,
    /// A length or count below zero.
    #[error("{0} is negative")]
    Negative(i32),
    /// A type byte that the protocol does not have here.
    #[error("unexpected type byte {0:#04x}")]
    UnexpectedType(u8),
    /// Flag bits that the protocol does not have here.
    #[error("unknown flags {0:#04x}")]
    UnknownFlags(u8),
    /// A message of pgoutput's protocol version 2 or later, which Walgate never asks for.
    #[error("type {:?} was not negotiated: it belongs to protocol version 2 or later", char::from(*.0))]
    NotNegotiated(u8),
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        let hint = match error.reason {
            Reason::NotNegotiated(_) => {
                "read the slot with proto_version '1' and without streaming and two_phase; \
                 no other options may be set on it"
            }
            Reason::NotUtf8 => {
                "names must be valid UTF-8: in a SQL_ASCII database, rename the table, column, type or origin \
                 whose name is not"
            }
            _ => {
                "connect to the source directly, without a pooler or proxy, and check that its slot uses pgoutput; \
                 if it does, report this line with the source's version"
            }
        };
        Error::definite("the source sent bytes that are not the replication protocol")
            .with_hint(hint)
            .with_source(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_message_field_offset_and_reason() {
        let mut cursor = Cursor::new("Update", &[0, 0, 0, 9, 1]);
        assert_eq!(cursor.length("length"), Ok(9));
        let error = cursor.bytes("value", 9).expect_err("one byte is not nine");
        assert_eq!(error.to_string(), "malformed Update message: value at byte 4: 9 bytes needed, 1 left");
        assert_eq!(cursor.offset(), 4, "a failed read moves nothing");

        let error = Error::from(error);
        assert!(error.is_definite() && error.hint().is_some());
        assert!(error.chain().ends_with("9 bytes needed, 1 left"), "{}", error.chain());
    }

    #[test]
    fn refuses_what_has_no_meaning() {
        let reason = |result: Result<(), DecodeError>| result.expect_err("must be refused").reason;
        let cursor = |bytes| Cursor::new("test", bytes);
        assert_eq!(reason(cursor(&[255, 255]).count("n").map(drop)), Reason::Negative(-1));
        assert_eq!(reason(cursor(&[128, 0, 0, 0]).length("n").map(drop)), Reason::Negative(i32::MIN));
        assert_eq!(reason(cursor(&[2]).flag("f").map(drop)), Reason::UnknownFlags(2));
        assert_eq!(reason(cursor(b"abc").cstr("s").map(drop)), Reason::Unterminated);
        assert_eq!(reason(cursor(b"\xff\0").cstr("s").map(drop)), Reason::NotUtf8);
        assert_eq!(reason(cursor(b"abc").finish()), Reason::Leftover(3));
    }

    proptest! {
        #[test]
        fn reads_back_what_was_written(a: u8, b: i16, c: u16, d: i32, e: u32, f: i64, g: u64, s in "[^\0]{0,20}", tail: Vec<u8>) {
            let mut bytes = vec![a];
            bytes.extend(b.to_be_bytes());
            bytes.extend(c.to_be_bytes());
            bytes.extend(d.to_be_bytes());
            bytes.extend(e.to_be_bytes());
            bytes.extend(f.to_be_bytes());
            bytes.extend(g.to_be_bytes());
            bytes.extend(s.as_bytes());
            bytes.push(0);
            let fixed = bytes.len();
            bytes.extend(&tail);

            let mut cursor = Cursor::new("test", &bytes);
            prop_assert_eq!(cursor.u8("a"), Ok(a));
            prop_assert_eq!(cursor.i16("b"), Ok(b));
            prop_assert_eq!(cursor.u16("c"), Ok(c));
            prop_assert_eq!(cursor.i32("d"), Ok(d));
            prop_assert_eq!(cursor.u32("e"), Ok(e));
            prop_assert_eq!(cursor.i64("f"), Ok(f));
            prop_assert_eq!(cursor.u64("g"), Ok(g));
            prop_assert_eq!(cursor.cstr("s"), Ok(s.as_str()));
            prop_assert_eq!(cursor.offset(), fixed);
            prop_assert_eq!(cursor.rest(), &tail[..]);
            prop_assert_eq!(cursor.finish(), Ok(()));
        }

        #[test]
        fn any_reads_of_any_bytes_stay_inside(bytes: Vec<u8>, reads: Vec<(u8, usize)>) {
            let mut cursor = Cursor::new("test", &bytes);
            for (kind, n) in reads {
                let before = cursor.offset();
                let failed = match kind % 9 {
                    0 => cursor.u8("x").err(),
                    1 => cursor.i16("x").err(),
                    2 => cursor.u32("x").err(),
                    3 => cursor.i64("x").err(),
                    4 => cursor.bytes("x", n).err(),
                    5 => cursor.bytes("x", n % 8).err(),
                    6 => cursor.cstr("x").err(),
                    7 => cursor.count("x").err(),
                    _ => cursor.length("x").err(),
                };
                prop_assert!(cursor.offset() >= before && cursor.offset() <= bytes.len());
                prop_assert!(failed.is_none_or(|error| error.offset == before && error.message == "test"));
                prop_assert_eq!(cursor.remaining(), &bytes[cursor.offset()..]);
            }
        }
    }
}
