//! One connection as messages: what both the session and the stream read and write through.
//!
//! Comes in: a [`Transport`]. Goes out: the server's messages, with notices and parameters set aside. It
//! always holds that reading and writing may be cancelled at any await: bytes read are in the buffer,
//! bytes not yet written stay in `outgoing` and go first next time.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{BufMut, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{ErrorFields, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::frames::FrameBuffer;
use super::transport::{Transport, broken};
use crate::error::{Error, Result};
use crate::wal::sqlstate::{Notice, ServerError};

const COPY_BOTH_RESPONSE_TAG: u8 = b'W';
/// Notices kept for the caller; later ones are only logged, so that a chatty server cannot fill memory.
const NOTICES_MAX: usize = 64;

/// A message that is not set aside.
pub(crate) enum Answer {
    Message(Message),
    /// CopyBothResponse, which `postgres-protocol` does not know.
    CopyBoth,
    Failed(ServerError),
}

pub(crate) struct Link {
    transport: Transport,
    frames: FrameBuffer,
    outgoing: BytesMut,
    notices: Vec<Notice>,
    parameters: BTreeMap<String, String>,
}

impl Link {
    pub(crate) fn new(transport: Transport) -> Self {
        Link {
            transport,
            frames: FrameBuffer::new(),
            outgoing: BytesMut::new(),
            notices: Vec::new(),
            parameters: BTreeMap::new(),
        }
    }

    /// See [`FrameBuffer::limit`].
    pub(crate) fn limit(&mut self, message_bytes_max: usize) {
        self.frames.limit(message_bytes_max);
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.transport.is_encrypted()
    }

    pub(crate) fn end_point(&self) -> Option<&[u8]> {
        self.transport.end_point()
    }

    /// What the server last said about one of its settings.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    pub(crate) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    pub(crate) fn buffered_bytes(&self) -> usize {
        self.frames.len()
    }

    /// Where messages to the server are written before [`Link::flush`].
    pub(crate) fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    /// Sends all of `outgoing`.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        let doing = "writing to the source";
        while !self.outgoing.is_empty() {
            let written =
                self.transport.write_buf(&mut self.outgoing).await.map_err(|error| broken(doing, error))?;
            if written == 0 {
                return Err(broken(doing, std::io::ErrorKind::WriteZero.into()));
            }
        }
        self.transport.flush().await.map_err(|error| broken(doing, error))
    }

    /// One read of what is there; how many bytes. 0 only when the buffer is full of unread messages.
    pub(crate) async fn fill(&mut self) -> Result<usize> {
        let space = self.frames.space();
        if space.is_empty() {
            return Ok(0);
        }
        let count =
            self.transport.read(space).await.map_err(|error| broken("reading from the source", error))?;
        if count == 0 {
            return Err(Error::transient("the source closed the connection"));
        }
        self.frames.advance(count);
        Ok(count)
    }

    /// The next whole message, uninterpreted: its tag and its place for [`Link::bytes`].
    #[inline]
    pub(crate) fn next_frame(&mut self) -> Result<Option<(u8, Range<usize>)>> {
        self.frames.next()
    }

    #[inline]
    pub(crate) fn bytes(&self, place: Range<usize>) -> &[u8] {
        self.frames.bytes(place)
    }

    /// Waits for the next message that is not set aside.
    pub(crate) async fn receive(&mut self) -> Result<Answer> {
        loop {
            match self.frames.next()? {
                None => {
                    self.fill().await?;
                }
                Some((tag, place)) => {
                    if let Some(answer) = self.interpret(tag, place)? {
                        return Ok(answer);
                    }
                }
            }
        }
    }

    /// Reads a message; sets notices and parameters aside and then gives `None`.
    pub(crate) fn interpret(&mut self, tag: u8, place: Range<usize>) -> Result<Option<Answer>> {
        if tag == COPY_BOTH_RESPONSE_TAG {
            return Ok(Some(Answer::CopyBoth));
        }
        let body = self.frames.bytes(place);
        let len = u32::try_from(body.len() + 4).expect("a frame is at most 1 GiB");
        let mut message = BytesMut::with_capacity(body.len() + 5);
        message.put_u8(tag);
        message.put_u32(len);
        message.put_slice(body);
        let message = Message::parse(&mut message)
            .map_err(|error| malformed(&format!("message 0x{tag:02X}")).with_source(error))?
            .expect("the frame is whole");
        match message {
            Message::NoticeResponse(body) => self.note(server_error(body.fields())?),
            Message::ParameterStatus(body) => {
                let field = |error| malformed("ParameterStatus").with_source(error);
                let name = body.name().map_err(field)?.to_owned();
                self.parameters.insert(name, body.value().map_err(field)?.to_owned());
            }
            Message::NotificationResponse(_) => {}
            Message::ErrorResponse(body) => return Ok(Some(Answer::Failed(server_error(body.fields())?))),
            other => return Ok(Some(Answer::Message(other))),
        }
        Ok(None)
    }

    fn note(&mut self, notice: Notice) {
        if self.notices.len() < NOTICES_MAX {
            self.notices.push(notice);
        } else {
            tracing::warn!(
                severity = notice.severity,
                code = notice.code,
                "notice of the source: {}",
                notice.message
            );
        }
    }

    /// Ends the byte stream; what the peer still sends is read and thrown away until it ends its side.
    pub(crate) async fn shut_down(&mut self) {
        // Best effort: the peer may be gone, which is what is wanted.
        let _ = self.flush().await;
        let _ = self.transport.shutdown().await;
        let mut discarded = vec![0; 64 * 1024];
        while matches!(self.transport.read(&mut discarded).await, Ok(1..)) {}
    }
}

/// The error for bytes that do not follow the protocol. Transient: a new connection starts clean.
pub(crate) fn malformed(what: &str) -> Error {
    Error::transient(format!("the server sent what the protocol does not allow here: {what}"))
        .with_hint("is this a PostgreSQL server, without a pooler in between?")
}

fn server_error(mut fields: ErrorFields<'_>) -> Result<ServerError> {
    let mut error = ServerError::default();
    let mut severity_translated = String::new();
    while let Some(field) =
        fields.next().map_err(|error| malformed("fields of an error").with_source(error))?
    {
        // Errors of the startup come in the server's own encoding.
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'S' => severity_translated = value,
            b'V' => error.severity = value,
            b'C' => error.code = value,
            b'M' => error.message = value,
            b'D' => error.detail = Some(value),
            b'H' => error.hint = Some(value),
            _ => {}
        }
    }
    if error.severity.is_empty() {
        error.severity = severity_translated;
    }
    Ok(error)
}
