//! `COPY ... TO STDOUT` of an ordinary session: rows borrowed where they were received.
//!
//! Comes in: a COPY statement. Goes out: the payload of each CopyData, which for COPY in text format is one row; in
//! binary format its header and trailer are there, too. Always holds: the session is usable again only after
//! [`CopyNext::End`]. Manual: "COPY Operations"; "COPY", "Binary Format".

use postgres_protocol::message::backend::{COPY_DATA_TAG, COPY_DONE_TAG, Message};

use super::ReplicationConnection;
use super::link::{Answer, malformed};
use crate::error::Result;
use crate::wal::sqlstate::{Notice, ServerError};

/// What a COPY in binary format begins with: signature, flags without any bit, no extension.
pub const BINARY_HEADER: &[u8] = b"PGCOPY\n\xFF\r\n\0\0\0\0\0\0\0\0\0";
/// In binary format, in the place of a row's number of fields: there is no more.
pub const BINARY_TRAILER: &[u8] = &[0xFF, 0xFF];

/// The rows of one COPY. Made by [`ReplicationConnection::copy_out`].
pub struct CopyOut<'c> {
    connection: &'c mut ReplicationConnection,
    failure: Option<ServerError>,
    rows: u64,
}

/// What comes next.
#[derive(Debug)]
pub enum CopyNext<'r> {
    /// One row; in binary format perhaps header or trailer.
    Row(&'r [u8]),
    /// Nothing whole is here: call [`CopyOut::fill`].
    Fill,
    /// The COPY is complete, of so many rows.
    End(u64),
}

impl<'c> CopyOut<'c> {
    pub(super) fn new(connection: &'c mut ReplicationConnection) -> Self {
        CopyOut { connection, failure: None, rows: 0 }
    }

    /// The next row, if one is here.
    ///
    /// # Errors
    /// The server's, classified.
    pub fn next_row(&mut self) -> Result<CopyNext<'_>> {
        loop {
            let Some((tag, place)) = self.connection.link.next_frame()? else { return Ok(CopyNext::Fill) };
            match tag {
                COPY_DATA_TAG => return Ok(CopyNext::Row(self.connection.link.bytes(place))),
                COPY_DONE_TAG => {}
                _ => match self.connection.link.interpret(tag, place)? {
                    Some(Answer::Message(Message::ReadyForQuery(_))) => {
                        self.connection.is_busy = false;
                        return self
                            .failure
                            .take()
                            .map_or(Ok(CopyNext::End(self.rows)), |error| Err(error.into_error()));
                    }
                    Some(Answer::Failed(error)) if error.is_fatal() => return Err(error.into_error()),
                    Some(Answer::Failed(error)) => self.failure = Some(error),
                    Some(Answer::Message(Message::CommandComplete(complete))) => {
                        let rows =
                            complete.tag().ok().and_then(|tag| tag.strip_prefix("COPY ")?.parse().ok());
                        self.rows = rows.ok_or_else(|| malformed("the end of a COPY without a count"))?;
                    }
                    None | Some(Answer::Message(Message::CopyOutResponse(_))) => {}
                    Some(_) => return Err(malformed(&format!("message 0x{tag:02X} inside a COPY"))),
                },
            }
        }
    }

    /// Notices and warnings since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.connection.link.take_notices()
    }

    /// One read of what the server has sent; how many bytes.
    ///
    /// # Errors
    /// Transient: the connection broke.
    pub async fn fill(&mut self) -> Result<usize> {
        self.connection.link.fill().await
    }
}
