//! The replication-mode connection: a session that can read a slot. No published client has CopyBoth.
//!
//! Comes in: a [`ConnectUrl`]. Goes out: answers to simple queries, and the [`ReplicationStream`] of a
//! slot. It always holds that a session whose command was abandoned half-way is not used again. One file
//! per exchange: `transport` (sockets, TLS), `startup`, `auth`, `frames` and `link` (messages),
//! `stream`. Manual: "Streaming Replication Protocol", "Message Flow".

pub(crate) mod transport;
pub mod startup;
pub(crate) mod auth;
mod frames;
mod link;
pub mod stream;
pub mod copy;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;

pub use self::copy::{BINARY_HEADER, BINARY_TRAILER, CopyNext, CopyOut};
pub use self::frames::Oversized;
use self::link::{Answer, Link, malformed};
use self::startup::Kind;
pub use self::startup::SESSION_SETTINGS;
pub use self::stream::ReplicationStream;
use self::transport::{Encryption, Purpose, Transport, connect_in_turn};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::wal::sqlstate::{Notice, ServerError};
use crate::wal::url::ConnectUrl;

/// A session in replication mode (`replication=database`), between commands.
pub struct ReplicationConnection {
    link: Link,
    /// A command was sent and its ReadyForQuery has not come: set while waiting, and for ever when the
    /// wait was cancelled.
    is_busy: bool,
}

impl ReplicationConnection {
    /// Connects, authenticates and sets [`SESSION_SETTINGS`], within the URL's `connect_timeout`.
    /// `application_name` is what the server shows; where empty, the URL's.
    ///
    /// # Errors
    /// Definite: credentials, rights, database, TLS as the URL demands it. Transient: everything else.
    pub async fn connect(url: &ConnectUrl, application_name: &str) -> Result<Self> {
        connect_in_turn(url, |encryption| Self::attempt(url, application_name, Kind::Replication, encryption))
            .await
    }

    /// The same, as an ordinary session: takes no walsender, runs SQL only. For [`Self::copy_out`].
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_ordinary(url: &ConnectUrl, application_name: &str) -> Result<Self> {
        connect_in_turn(url, |encryption| Self::attempt(url, application_name, Kind::Ordinary, encryption))
            .await
    }

    async fn attempt(
        url: &ConnectUrl,
        application_name: &str,
        kind: Kind,
        encryption: Encryption,
    ) -> Result<Self> {
        let mut link = Link::new(Transport::open(url, encryption, Purpose::Stream).await?);
        startup::start_session(&mut link, url, application_name, kind).await?;
        Ok(ReplicationConnection { link, is_busy: false })
    }

    /// Runs replication commands (IDENTIFY_SYSTEM, CREATE_REPLICATION_SLOT, ..) or SQL as a simple query;
    /// the rows of the first result set, every value as text.
    ///
    /// # Errors
    /// The server's answer, classified; after one below FATAL the session can go on. Transient: broken.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.begin(sql).await?;
        let mut rows = Vec::new();
        let mut is_first_set = true;
        let mut failure: Option<ServerError> = None;
        loop {
            let answer = match self.link.receive().await {
                Ok(answer) => answer,
                // After FATAL the server closes: its reason counts, not the end of the bytes.
                Err(error) => return Err(failure.map_or(error, ServerError::into_error)),
            };
            match answer {
                Answer::Message(Message::DataRow(row)) if is_first_set => rows.push(texts(&row)?),
                Answer::Message(Message::CommandComplete(_)) => is_first_set = false,
                Answer::Message(
                    Message::DataRow(_) | Message::RowDescription(_) | Message::EmptyQueryResponse,
                ) => {}
                Answer::Message(Message::ReadyForQuery(_)) => break,
                Answer::Failed(error) if error.is_fatal() => return Err(error.into_error()),
                Answer::Failed(error) => failure = Some(error),
                Answer::Message(_) | Answer::CopyBoth => return Err(malformed("no answer to a query")),
            }
        }
        self.is_busy = false;
        match failure {
            Some(error) => Err(error.into_error()),
            None => Ok(rows),
        }
    }

    /// From now on a larger row is a definite error, with [`Oversized`] as its source, and is not received.
    pub fn limit_rows(&mut self, bytes_max: usize) {
        self.link.limit(bytes_max);
    }

    /// Starts the stream of `slot` from `start` (`0/0`: from where it is confirmed), with the output
    /// plugin's `options`. Returns when the server has agreed.
    ///
    /// # Errors
    /// The server's answer, classified: no such slot is definite, a slot in use (55006) transient.
    pub async fn start_replication(
        mut self,
        slot: &str,
        start: Lsn,
        options: &[(&str, &str)],
    ) -> Result<ReplicationStream> {
        self.begin(&start_command(slot, start, options)).await?;
        match self.link.receive().await? {
            Answer::CopyBoth => Ok(ReplicationStream::new(self.link)),
            Answer::Failed(error) => Err(error.into_error().context(format_args!("slot {slot}"))),
            Answer::Message(_) => Err(malformed("no answer to START_REPLICATION")),
        }
    }

    /// Starts `COPY ... TO STDOUT`; its rows are to be taken to the end.
    ///
    /// # Errors
    /// Transient: the connection broke. The server's own errors come with the rows.
    pub async fn copy_out(&mut self, copy: &str) -> Result<CopyOut<'_>> {
        self.begin(copy).await?;
        Ok(CopyOut::new(self))
    }

    /// Ends the session.
    pub async fn close(mut self) {
        frontend::terminate(self.link.outgoing());
        // Best effort: the server notices a closed socket, too.
        let _ = self.link.flush().await;
    }

    /// What the server said about one of its settings, for example `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.link.parameter(name)
    }

    /// Whether the session travels in TLS.
    pub fn is_encrypted(&self) -> bool {
        self.link.is_encrypted()
    }

    /// Notices and warnings since the last call, the first 64 of them; later ones are logged.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.link.take_notices()
    }

    async fn begin(&mut self, sql: &str) -> Result<()> {
        if self.is_busy {
            return Err(Error::transient("an earlier command on this connection was abandoned"));
        }
        frontend::query(sql, self.link.outgoing())
            .map_err(|error| Error::definite("a command may not hold a zero byte").with_source(error))?;
        self.is_busy = true;
        self.link.flush().await
    }
}

fn texts(row: &DataRowBody) -> Result<Vec<Option<String>>> {
    let buffer = row.buffer();
    row.ranges()
        .map(|range| Ok(range.map(|range| buffer.get(range).unwrap_or_default())))
        .map(|value| Ok(value.map(|bytes| String::from_utf8_lossy(bytes).into_owned())))
        .collect()
        .map_err(|error| malformed("a row").with_source(error))
}

/// The command's grammar is the replication parser's: quoted identifiers, strings without escapes.
fn start_command(slot: &str, start: Lsn, options: &[(&str, &str)]) -> String {
    let identifier = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let mut command = format!("START_REPLICATION SLOT {} LOGICAL {start}", identifier(slot));
    let options: Vec<_> = options
        .iter()
        .map(|(name, value)| format!("{} '{}'", identifier(name), value.replace('\'', "''")))
        .collect();
    if !options.is_empty() {
        command.push_str(&format!(" ({})", options.join(", ")));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_quoted() {
        assert_eq!(start_command("s", Lsn::ZERO, &[]), "START_REPLICATION SLOT \"s\" LOGICAL 0/0");
        assert_eq!(
            start_command(
                "a\"b",
                Lsn(0x1_0000_00FF),
                &[("proto_version", "1"), ("publication_names", "\"it's\"")]
            ),
            "START_REPLICATION SLOT \"a\"\"b\" LOGICAL 1/FF (\"proto_version\" '1', \"publication_names\" '\"it''s\"')"
        );
    }

    #[test]
    fn every_wait_may_move_between_threads() {
        fn sendable<T: Send>(_: T) {}
        let url = ConnectUrl::parse("postgres://", |_| None).expect("a URL");
        sendable(ReplicationConnection::connect(&url, ""));
        sendable(crate::wal::client::connect(&url, ""));
        let _ = |session: ReplicationConnection, mut stream: ReplicationStream| {
            sendable(session.start_replication("s", Lsn::ZERO, &[]));
            sendable(stream.send_copy_data(b""));
            sendable(stream.close());
        };
    }
}
