//! Ordinary SQL sessions: `tokio_postgres` over our own transport.
//!
//! Comes in: a [`ConnectUrl`]. Goes out: a [`Client`] with the same settings, TLS, keepalives and errors as
//! the replication connection. Both share one transport, so TLS exists once: `tokio_postgres` gets a
//! stream on which it has nothing to negotiate. (The crate tokio-postgres-rustls was rejected: it has no
//! `allow`, no retry of `prefer`, and would be a second place for `sslmode`.) It always holds that the
//! connection's task ends with its client.

use std::future::{Ready, poll_fn, ready};
use std::io;
use std::ops::{Deref, DerefMut};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::config::{ChannelBinding as PgChannelBinding, SslMode as PgSslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding as TlsChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::types::WrongType;
use tokio_postgres::{AsyncMessage, Config, Connection};

use crate::error::{Error, Result};
use crate::wal::connection::auth;
use crate::wal::connection::startup::{session_name, startup_options};
use crate::wal::connection::transport::{Encryption, Purpose, Transport, broken, connect_in_turn};
use crate::wal::sqlstate::ServerError;
use crate::wal::url::{ChannelBinding, ConnectUrl};

/// An ordinary session. Dropping it closes the connection at once.
pub struct Client {
    inner: tokio_postgres::Client,
    task: JoinHandle<()>,
    end: watch::Receiver<Option<End>>,
}

/// How a connection ended: with a last word of the server, or without.
type End = Option<ServerError>;

impl Client {
    /// Waits for the connection's end, and says why; cancel-safe. A server that shuts down says 57P01
    /// ([`crate::wal::sqlstate::sqlstate_of`]), here or, if a statement runs at that moment, there.
    pub async fn ended(&self) -> Error {
        let mut end = self.end.clone();
        // An error is the end of the task, and so of the connection, as well.
        let last_word = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone().flatten());
        match last_word {
            Some(answer) => answer.into_error(),
            None => Error::transient("the connection to the server is closed"),
        }
    }
}

impl Deref for Client {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.inner
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects, authenticates and sets the session's settings, within the URL's `connect_timeout`.
/// `application_name` is what the server shows; where empty, the URL's.
///
/// # Errors
/// Definite: credentials, rights, database, TLS as the URL demands it. Transient: everything else.
pub async fn connect(url: &ConnectUrl, application_name: &str) -> Result<Client> {
    connect_in_turn(url, |encryption| attempt(url, application_name, encryption)).await
}

/// Judges an error of `tokio_postgres`: by SQLSTATE where the server answered, else by its kind. The
/// server's answer becomes the source ([`crate::wal::sqlstate::sqlstate_of`]).
pub fn classify(error: tokio_postgres::Error) -> Error {
    if let Some(answer) = error.as_db_error() {
        return ServerError::from(answer).into_error();
    }
    if error.is_closed() {
        return Error::transient("the connection to the server is closed");
    }
    let failed = error.to_string();
    let Some(cause) = error.into_source() else { return Error::transient(failed) };
    let cause = match cause.downcast::<io::Error>() {
        Ok(error) => return broken("the connection to the server broke", *error),
        Err(cause) => cause,
    };
    if cause.is::<WrongType>() {
        return Error::definite("a value has another type than the statement expects").with_source(cause);
    }
    Error::transient(failed).with_source(cause)
}

async fn attempt(url: &ConnectUrl, application_name: &str, encryption: Encryption) -> Result<Client> {
    let transport = Transport::open(url, encryption, Purpose::Queries).await?;
    let mut config = Config::new();
    config
        .user(&url.user)
        .dbname(&url.database)
        .application_name(session_name(url, application_name))
        .options(startup_options(url))
        .channel_binding(match url.channel_binding {
            ChannelBinding::Disable => PgChannelBinding::Disable,
            ChannelBinding::Prefer => PgChannelBinding::Prefer,
            ChannelBinding::Require => PgChannelBinding::Require,
        });
    if let Some(password) = &url.password {
        config.password(password.reveal());
    }
    // "Direct" skips the request for TLS, which the transport has made already; see `Negotiated`.
    if transport.is_encrypted() {
        config.ssl_mode(PgSslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    } else {
        config.ssl_mode(PgSslMode::Disable);
    }
    let (inner, connection) = config.connect_raw(transport, Negotiated).await.map_err(refused)?;
    let (ending, end) = watch::channel(None);
    let task = tokio::spawn(async move {
        let last_word = drive(connection).await;
        // Nobody waits any more when the client is gone.
        let _ = ending.send(Some(last_word));
    });
    Ok(Client { inner, task, end })
}

/// An error while connecting. What `tokio_postgres` finds wrong itself has no kind to ask for, only a text;
/// the tests against a real server hold it to these.
fn refused(error: tokio_postgres::Error) -> Error {
    let is_ours = error.to_string() == "authentication error";
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    match cause.as_deref() {
        Some("password missing") => auth::no_password(),
        Some("server did not use channel binding") => auth::no_channel_binding(),
        _ if is_ours => auth::scram_failed(error),
        _ => classify(error),
    }
}

/// Runs the connection until it ends; the server's last word, if it had one.
async fn drive(mut connection: Connection<Transport, Transport>) -> End {
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notice(notice)) => {
                tracing::debug!(code = notice.code().code(), "notice of the server: {}", notice.message());
            }
            Ok(_) => {}
            Err(error) => return error.as_db_error().map(ServerError::from),
        }
    }
    None
}

/// The "TLS connector" for a transport that already is in TLS.
struct Negotiated;

impl TlsConnect<Transport> for Negotiated {
    type Stream = Transport;
    type Error = io::Error;
    type Future = Ready<io::Result<Transport>>;

    fn connect(self, transport: Transport) -> Self::Future {
        ready(Ok(transport))
    }
}

impl TlsStream for Transport {
    fn channel_binding(&self) -> TlsChannelBinding {
        match self.end_point() {
            Some(hash) => TlsChannelBinding::tls_server_end_point(hash.to_vec()),
            None => TlsChannelBinding::none(),
        }
    }
}
