//! A running logical stream: CopyData frames both ways.
//!
//! Comes in: what START_REPLICATION sends. Goes out: the payload of each CopyData, borrowed where it was
//! received; decoding is another module's. It always holds that [`ReplicationStream::fill`] and
//! [`ReplicationStream::send_copy_data`] may be cancelled without losing or tearing a frame. Manual:
//! "Streaming Replication Protocol", "COPY Operations".

use std::time::Duration;

use postgres_protocol::message::backend::{COMMAND_COMPLETE_TAG, COPY_DATA_TAG, COPY_DONE_TAG, Message};
use postgres_protocol::message::frontend::{self, CopyData};

use super::link::{Answer, Link, malformed};
use crate::error::{Error, Result};
use crate::wal::sqlstate::Notice;

/// How long [`ReplicationStream::close`] waits for the server to end, so that the slot is free after it.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(1);

/// The stream of one slot. Made by [`super::ReplicationConnection::start_replication`].
pub struct ReplicationStream {
    link: Link,
}

impl ReplicationStream {
    pub(crate) fn new(link: Link) -> Self {
        ReplicationStream { link }
    }

    /// One read of what the server has sent, up to the buffer's free space; how many bytes. Cancel-safe.
    /// Call it when [`ReplicationStream::next_frame`] has given `None`; 0 comes back, at once, only when the
    /// buffer is full of frames that were not taken.
    ///
    /// # Errors
    /// Transient: the connection broke, or the server closed it.
    pub async fn fill(&mut self) -> Result<usize> {
        self.link.fill().await
    }

    /// Consumes the next whole CopyData and gives its payload; `None`: more bytes are needed.
    ///
    /// # Errors
    /// The server's error, classified ([`crate::wal::sqlstate::sqlstate_of`] has its code); transient: the
    /// server ended the stream, or a message that does not belong into it.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>> {
        loop {
            let Some((tag, place)) = self.link.next_frame()? else { return Ok(None) };
            match tag {
                COPY_DATA_TAG => return Ok(Some(self.link.bytes(place))),
                // A server that shuts down ends with CommandComplete, without CopyDone (pg: WalSndDone).
                COPY_DONE_TAG | COMMAND_COMPLETE_TAG => {
                    return Err(Error::transient("the source ended the stream: it shuts down"));
                }
                _ => match self.link.interpret(tag, place)? {
                    None => {}
                    Some(Answer::Failed(error)) => return Err(error.into_error()),
                    Some(Answer::Message(Message::ReadyForQuery(_))) => {
                        return Err(Error::transient("the source ended the stream"));
                    }
                    Some(_) => return Err(malformed(&format!("message 0x{tag:02X} inside a stream"))),
                },
            }
        }
    }

    /// Bytes received and not yet taken.
    pub fn buffered_bytes(&self) -> usize {
        self.link.buffered_bytes()
    }

    /// Notices and warnings since the last call, the first 64 of them; later ones are logged. PostgreSQL 18
    /// warns here of a missing publication.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.link.take_notices()
    }

    /// Sends one CopyData frame. When cancelled, the rest goes out with the next one, or is never sent.
    ///
    /// # Errors
    /// Transient: the connection broke.
    pub async fn send_copy_data(&mut self, payload: &[u8]) -> Result<()> {
        let frame = CopyData::new(payload).map_err(|error| {
            Error::definite("a status of more than 2 GiB cannot be sent").with_source(error)
        })?;
        frame.write(self.link.outgoing());
        self.link.flush().await
    }

    /// Ends the stream and the session; waits at most 1 s for the server to let go of the slot.
    pub async fn close(mut self) {
        frontend::copy_done(self.link.outgoing());
        frontend::terminate(self.link.outgoing());
        // A server that does not end in time is left to notice the closed socket.
        let _ = tokio::time::timeout(CLOSE_WAIT_MAX, self.link.shut_down()).await;
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
