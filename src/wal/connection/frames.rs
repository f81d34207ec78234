//! The receive buffer: bytes in as they come, whole protocol messages out where they lie.
//!
//! Comes in: reads of any size into [`FrameBuffer::space`]. Goes out: the tag and the place of each whole
//! message. It always holds that a message is never copied to be handed out, that what is left moves to
//! the front at most once a read, that the buffer holds one message of any legal size, and that it goes
//! back to [`READ_BYTES_MAX`] after a larger one. Manual: "Message Formats": a tag, an Int32 length that
//! counts itself, the body.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, Result};

/// A message that is larger than what may be held. Only its beginning was received.
#[derive(thiserror::Error)]
#[error("a message of {bytes} bytes, and {bytes_max} may be held")]
pub struct Oversized {
    /// The size of its body.
    pub bytes: usize,
    /// What is allowed.
    pub bytes_max: usize,
    /// Its body's first bytes.
    pub head: Vec<u8>,
}

impl fmt::Debug for Oversized {
    /// Without the row's values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oversized").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// The size that the buffer starts with.
const START_BYTES: usize = 64 * 1024;
/// The size that it grows to under backlog, and what one read takes at most, huge messages apart.
pub(crate) const READ_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The server builds a message in a buffer of at most 1 GiB; the rest is room for headers.
const FRAME_BYTES_MAX: usize = 1024 * 1024 * 1024 + 64 * 1024;
/// Of a message that may not be held, so much is looked at: whose it is.
const HEAD_BYTES: usize = 64 * 1024;
const TAG_BYTES: usize = 1;
const HEADER_BYTES: usize = 5;

/// A buffer whose bytes `start..end` have been received and not yet consumed.
pub(crate) struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read left no room: there is a backlog, and a larger buffer saves reads.
    was_filled: bool,
    /// Bytes consumed since the connection began, for the position in errors.
    consumed: usize,
    /// A larger message is refused.
    message_bytes_max: usize,
}

impl FrameBuffer {
    pub(crate) fn new() -> Self {
        FrameBuffer {
            bytes: vec![0; START_BYTES],
            start: 0,
            end: 0,
            was_filled: false,
            consumed: 0,
            message_bytes_max: FRAME_BYTES_MAX,
        }
    }

    /// From now on a message with a larger body is refused; only its beginning is received.
    pub(crate) fn limit(&mut self, bytes_max: usize) {
        self.message_bytes_max = bytes_max.min(FRAME_BYTES_MAX);
    }

    /// Bytes received and not yet consumed.
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Where the next read goes. Empty only when the buffer is full of messages that nobody took.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        self.make_room();
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Says that `count` bytes of [`FrameBuffer::space`] were filled.
    pub(crate) fn advance(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.end, "a read cannot fill more than the space it was given");
        self.end += count;
        self.was_filled = self.end == self.bytes.len();
    }

    /// Consumes the next whole message: its tag and where its body lies until the next
    /// [`FrameBuffer::space`]. `None`: more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<(u8, Range<usize>)>> {
        let Some((tag, len)) = self.header()? else { return Ok(None) };
        if self.len() < self.needed(len) {
            return Ok(None);
        }
        if self.is_oversized(len) {
            return Err(self.refuse(len));
        }
        let body = self.start + HEADER_BYTES..self.start + len;
        self.start += len;
        self.consumed = self.consumed.wrapping_add(len);
        Ok(Some((tag, body)))
    }

    /// The bytes of a place that [`FrameBuffer::next`] gave.
    #[inline]
    pub(crate) fn bytes(&self, place: Range<usize>) -> &[u8] {
        self.bytes.get(place).expect("next gives places inside the buffer, which only space moves")
    }

    /// Tag and whole length (header included) of the message at `start`, once its header is there.
    fn header(&self) -> Result<Option<(u8, usize)>> {
        let received = self.bytes.get(self.start..self.end).unwrap_or_default();
        let Some((&[tag, a, b, c, d], _)) = received.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let announced = i32::from_be_bytes([a, b, c, d]);
        match usize::try_from(announced) {
            Ok(len) if (HEADER_BYTES - TAG_BYTES..=FRAME_BYTES_MAX).contains(&len) => {
                Ok(Some((tag, len + TAG_BYTES)))
            }
            _ => Err(Error::transient(format!(
                "malformed message at byte {} of the connection: field length of message 0x{tag:02X} is {announced}",
                self.consumed
            ))),
        }
    }

    fn is_oversized(&self, len: usize) -> bool {
        len - HEADER_BYTES > self.message_bytes_max
    }

    /// How much of a message of this whole length is waited for.
    fn needed(&self, len: usize) -> usize {
        if self.is_oversized(len) { len.min(HEAD_BYTES) } else { len }
    }

    fn refuse(&self, len: usize) -> Error {
        let received = self.bytes.get(self.start..self.end).unwrap_or_default();
        let head = received.get(HEADER_BYTES..received.len().min(len)).unwrap_or_default().to_vec();
        let (bytes, bytes_max) = (len - HEADER_BYTES, self.message_bytes_max);
        Error::definite("a row is too large to be held").with_source(Oversized { bytes, bytes_max, head })
    }

    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        // A malformed header is reported by next, which looks at the same bytes.
        let needed = self.header().ok().flatten().map_or(HEADER_BYTES, |(_, len)| self.needed(len));
        let needed = needed.max(self.len());
        let size = self.bytes.len();
        let wanted = if needed > READ_BYTES_MAX {
            needed.max(size.min(READ_BYTES_MAX))
        } else if size > READ_BYTES_MAX {
            READ_BYTES_MAX
        } else if self.was_filled {
            (size * 4).min(READ_BYTES_MAX)
        } else {
            needed.next_power_of_two().clamp(size, READ_BYTES_MAX)
        };
        self.was_filled = false;

        if wanted != size {
            // Fresh zeroed pages cost nothing until they are written; a grown Vec would be copied whole.
            let mut bytes = vec![0; wanted];
            let received = self.bytes.get(self.start..self.end).unwrap_or_default();
            bytes.get_mut(..received.len()).expect("wanted covers what is pending").copy_from_slice(received);
            self.bytes = bytes;
        } else if self.start > 0 && (self.start + needed > size || size - self.end < size / 2) {
            self.bytes.copy_within(self.start..self.end, 0);
        } else {
            return;
        }
        (self.start, self.end) = (0, self.end - self.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let len = i32::try_from(body.len() + 4).expect("a small body");
        [&[tag], &len.to_be_bytes()[..], body].concat()
    }

    /// Feeds `stream` in reads of at most `step` bytes; every message that comes out.
    fn feed(buffer: &mut FrameBuffer, mut stream: &[u8], step: usize) -> Vec<(u8, Vec<u8>)> {
        let mut taken = Vec::new();
        while !stream.is_empty() {
            let space = buffer.space();
            assert!(!space.is_empty(), "room is always made for one message");
            let count = step.min(space.len()).min(stream.len());
            space[..count].copy_from_slice(&stream[..count]);
            buffer.advance(count);
            stream = &stream[count..];
            while let Some((tag, place)) = buffer.next().expect("well-formed") {
                taken.push((tag, buffer.bytes(place).to_vec()));
            }
        }
        taken
    }

    #[test]
    fn what_may_not_be_held_is_refused_by_its_beginning() {
        let mut buffer = FrameBuffer::new();
        buffer.limit(100_000);
        assert_eq!(feed(&mut buffer, &message(b'd', &[7; 100_000]), 60_000).len(), 1, "what just fits");
        let large = message(b'd', &[7; 50_000_000]);
        let mut sent = large.chunks(1000);
        let error = loop {
            let space = buffer.space();
            space[..1000].copy_from_slice(sent.next().expect("it is refused before its end"));
            buffer.advance(1000);
            match buffer.next() {
                Ok(next) => assert_eq!(next, None),
                Err(error) => break error,
            }
        };
        assert!(error.is_definite());
        let oversized: &Oversized = crate::wal::sqlstate::source_of(&error).expect("it says how large");
        assert_eq!((oversized.bytes, oversized.bytes_max), (50_000_000, 100_000));
        assert!(
            oversized.head.len() >= HEAD_BYTES - HEADER_BYTES && oversized.head.iter().all(|byte| *byte == 7)
        );
        assert!(buffer.bytes.len() <= READ_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_cutting_of_the_stream_gives_the_same_messages(
            messages in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..40),
            step in 1usize..2000,
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|(tag, body)| message(*tag, body)).collect();
            let mut buffer = FrameBuffer::new();
            prop_assert_eq!(feed(&mut buffer, &stream, step), messages);
            prop_assert_eq!(buffer.len(), 0);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4000), step in 1usize..500) {
            let mut buffer = FrameBuffer::new();
            'cuts: for cut in bytes.chunks(step) {
                let space = buffer.space();
                let count = cut.len().min(space.len());
                space[..count].copy_from_slice(&cut[..count]);
                buffer.advance(count);
                loop {
                    match buffer.next() {
                        Ok(Some((_, place))) => drop(buffer.bytes(place).to_vec()),
                        Ok(None) => break,
                        Err(_) => break 'cuts,
                    }
                }
            }
        }
    }

    #[test]
    fn a_huge_message_fits_and_the_buffer_shrinks_after_it() {
        let mut buffer = FrameBuffer::new();
        let huge = vec![7; 9 * 1024 * 1024];
        let taken = feed(&mut buffer, &message(b'd', &huge), usize::MAX);
        assert_eq!(taken, [(b'd', huge)]);
        assert!(buffer.bytes.len() > READ_BYTES_MAX);
        assert_eq!(buffer.space().len(), READ_BYTES_MAX);
    }

    #[test]
    fn a_backlog_makes_the_buffer_grow_and_a_trickle_does_not() {
        let stream = message(b'd', &[1; 100]).repeat(200_000);
        let mut slow = FrameBuffer::new();
        feed(&mut slow, &stream, 1000);
        assert_eq!(slow.bytes.len(), START_BYTES);
        let mut fast = FrameBuffer::new();
        assert_eq!(feed(&mut fast, &stream, usize::MAX).len(), 200_000);
        assert_eq!(fast.bytes.len(), READ_BYTES_MAX);
    }

    #[test]
    fn a_full_buffer_that_nobody_empties_does_not_grow_past_its_limit() {
        let mut buffer = FrameBuffer::new();
        let stream = message(b'd', &[1; 1000]).repeat(6000);
        let mut rest = &stream[..];
        loop {
            let space = buffer.space();
            if space.is_empty() {
                break;
            }
            let count = space.len().min(rest.len());
            space[..count].copy_from_slice(&rest[..count]);
            buffer.advance(count);
            rest = &rest[count..];
        }
        assert_eq!(buffer.len(), READ_BYTES_MAX);
    }

    #[test]
    fn an_impossible_length_is_an_error_with_position_and_field() {
        for len in [3, 0, -1, i32::MIN, i32::MAX] {
            let mut buffer = FrameBuffer::new();
            assert_eq!(feed(&mut buffer, &message(b'k', b"xy"), 100).len(), 1);
            let bad = [b"d", &len.to_be_bytes()[..]].concat();
            buffer.space()[..5].copy_from_slice(&bad);
            buffer.advance(5);
            let error = buffer.next().expect_err("an impossible length").to_string();
            assert!(error.contains("byte 7") && error.contains("field length"), "{error}");
        }
    }
}
