//! The frames inside CopyData: what walsender and client say to each other once streaming has begun.
//!
//! Comes in: a CopyData message's payload. Goes out: a [`Frame`] that borrows it, and the bytes of a
//! [`StandbyStatus`] for the way back. Always holds: whatever the bytes, an answer or an error, no panic.
//! Manual: "Streaming Replication Protocol"; FIELD_NOTES section 1.

use std::fmt;

use crate::lsn::Lsn;
use crate::wal::cursor::{Cursor, DecodeError, Reason};
use crate::wal::timestamp::Timestamp;

/// What the walsender sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// One message of the output plugin.
    Data {
        /// The change's position; 0/0 for what has none (relations, types, origins).
        wal_start: Lsn,
        /// For logical decoding the same as `wal_start`.
        wal_end: Lsn,
        /// The server's clock when it sent this.
        sent_at: Timestamp,
        /// For [`pgoutput::decode`](crate::wal::pgoutput::decode).
        payload: &'a [u8],
    },
    /// A sign of life, and how far the walsender has come.
    Keepalive {
        /// Everything before it has been decoded and sent.
        wal_end: Lsn,
        /// The server's clock when it sent this.
        sent_at: Timestamp,
        /// Whether a status must be sent at once.
        reply_requested: bool,
    },
}

impl<'a> Frame<'a> {
    /// Reads a frame from the payload of one CopyData message.
    #[inline]
    pub fn decode(copy_data: &'a [u8]) -> Result<Frame<'a>, DecodeError> {
        let mut cursor = Cursor::new("CopyData", copy_data);
        match cursor.u8("type")? {
            b'w' => {
                let mut cursor = cursor.named("XLogData");
                Ok(Frame::Data {
                    wal_start: cursor.lsn("wal start")?,
                    wal_end: cursor.lsn("wal end")?,
                    sent_at: cursor.timestamp("send time")?,
                    payload: cursor.rest(),
                })
            }
            b'k' => {
                let mut cursor = cursor.named("Keepalive");
                let frame = Frame::Keepalive {
                    wal_end: cursor.lsn("wal end")?,
                    sent_at: cursor.timestamp("send time")?,
                    reply_requested: cursor.flag("reply requested")?,
                };
                cursor.finish()?;
                Ok(frame)
            }
            other => Err(cursor.error("type", 0, Reason::UnexpectedType(other))),
        }
    }

    /// Appends the frame's bytes: the server's half, for tests and fuzzing.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Frame::Data { wal_start, wal_end, sent_at, payload } => {
                out.push(b'w');
                out.extend_from_slice(&wal_start.0.to_be_bytes());
                out.extend_from_slice(&wal_end.0.to_be_bytes());
                out.extend_from_slice(&sent_at.0.to_be_bytes());
                out.extend_from_slice(payload);
            }
            Frame::Keepalive { wal_end, sent_at, reply_requested } => {
                out.push(b'k');
                out.extend_from_slice(&wal_end.0.to_be_bytes());
                out.extend_from_slice(&sent_at.0.to_be_bytes());
                out.push(reply_requested.into());
            }
        }
    }
}

impl fmt::Debug for Frame<'_> {
    // The payload may be a row's values, which no log may show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frame::Data { wal_start, wal_end, sent_at, payload } => {
                write!(f, "Data({wal_start}..{wal_end} at {sent_at}, {} bytes)", payload.len())
            }
            Frame::Keepalive { wal_end, sent_at, reply_requested } => {
                write!(f, "Keepalive({wal_end} at {sent_at}, reply_requested: {reply_requested})")
            }
        }
    }
}

/// What the client reports back. Only `flush` moves a logical slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyStatus {
    /// Everything before it has been received.
    pub write: Lsn,
    /// Everything before it is durable: a promise that it will never be asked for again.
    pub flush: Lsn,
    /// Everything before it is visible at the destination.
    pub apply: Lsn,
    /// This side's clock.
    pub client_time: Timestamp,
    /// Asks the server for a keepalive at once.
    pub reply_requested: bool,
}

impl StandbyStatus {
    /// Appends the payload of the CopyData message to send: 34 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(b'r');
        out.extend_from_slice(&self.write.0.to_be_bytes());
        out.extend_from_slice(&self.flush.0.to_be_bytes());
        out.extend_from_slice(&self.apply.0.to_be_bytes());
        out.extend_from_slice(&self.client_time.0.to_be_bytes());
        out.push(self.reply_requested.into());
    }

    /// Reads a status back: the server's half, for tests and fuzzing.
    pub fn decode(copy_data: &[u8]) -> Result<StandbyStatus, DecodeError> {
        let mut cursor = Cursor::new("StandbyStatus", copy_data);
        match cursor.u8("type")? {
            b'r' => {}
            other => return Err(cursor.error("type", 0, Reason::UnexpectedType(other))),
        }
        let status = StandbyStatus {
            write: cursor.lsn("write")?,
            flush: cursor.lsn("flush")?,
            apply: cursor.lsn("apply")?,
            client_time: cursor.timestamp("client time")?,
            reply_requested: cursor.flag("reply requested")?,
        };
        cursor.finish()?;
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(frame: Frame<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        frame.encode(&mut out);
        out
    }

    #[test]
    fn a_status_is_what_the_manual_says() {
        let status = StandbyStatus {
            write: Lsn(3),
            flush: Lsn(2),
            apply: Lsn(1),
            client_time: Timestamp(-2),
            reply_requested: true,
        };
        let mut out = vec![0xEE];
        status.encode(&mut out);
        let expected = b"\xEEr\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFE\x01";
        assert_eq!(out, expected);
    }

    #[test]
    fn refuses_other_frames() {
        let error = Frame::decode(b"p").expect_err("a physical standby's message");
        assert_eq!(
            error.to_string(),
            "malformed CopyData message: type at byte 0: unexpected type byte 0x70"
        );
        assert_eq!(Frame::decode(b"").expect_err("nothing").field, "type");
        let mut keepalive =
            encoded(Frame::Keepalive { wal_end: Lsn(1), sent_at: Timestamp(1), reply_requested: true });
        keepalive.push(0);
        assert_eq!(Frame::decode(&keepalive).expect_err("a byte too many").reason, Reason::Leftover(1));
    }

    #[test]
    fn debug_shows_no_payload() {
        let frame =
            Frame::Data { wal_start: Lsn(1), wal_end: Lsn(2), sent_at: Timestamp(0), payload: b"secret" };
        assert_eq!(format!("{frame:?}"), "Data(0/1..0/2 at 2000-01-01T00:00:00.000000Z, 6 bytes)");
    }

    proptest! {
        #[test]
        fn data_round_trips(start: u64, end: u64, at: i64, payload: Vec<u8>) {
            let frame = Frame::Data { wal_start: Lsn(start), wal_end: Lsn(end), sent_at: Timestamp(at), payload: &payload };
            let bytes = encoded(frame);
            prop_assert_eq!(Frame::decode(&bytes), Ok(frame));
            for cut in 0..25 {
                prop_assert!(Frame::decode(&bytes[..cut]).is_err(), "cut at {}", cut);
            }
        }

        #[test]
        fn keepalive_round_trips(end: u64, at: i64, reply_requested: bool) {
            let frame = Frame::Keepalive { wal_end: Lsn(end), sent_at: Timestamp(at), reply_requested };
            let bytes = encoded(frame);
            prop_assert_eq!(Frame::decode(&bytes), Ok(frame));
            for cut in 0..bytes.len() {
                prop_assert!(Frame::decode(&bytes[..cut]).is_err(), "cut at {}", cut);
            }
        }

        #[test]
        fn status_round_trips(write: u64, flush: u64, apply: u64, at: i64, reply_requested: bool) {
            let status = StandbyStatus { write: Lsn(write), flush: Lsn(flush), apply: Lsn(apply), client_time: Timestamp(at), reply_requested };
            let mut bytes = Vec::new();
            status.encode(&mut bytes);
            prop_assert_eq!(StandbyStatus::decode(&bytes), Ok(status));
            for cut in 0..bytes.len() {
                prop_assert!(StandbyStatus::decode(&bytes[..cut]).is_err(), "cut at {}", cut);
            }
        }

        #[test]
        fn any_bytes_give_an_answer(kind in prop::sample::select(b"wkrx".as_slice()), mut bytes: Vec<u8>) {
            bytes.insert(0, kind);
            if let Ok(frame) = Frame::decode(&bytes) {
                prop_assert_eq!(encoded(frame), bytes);
            }
        }
    }
}
