//! The socket under a connection: TCP or Unix, in the clear or in TLS.
//!
//! Comes in: a [`ConnectUrl`]. Goes out: a [`Transport`], one byte stream whatever is below it, ready for
//! the startup message. It always holds that a mode which demands TLS never sends a byte of the session
//! without it, and that a dead peer is noticed after 25 s (keepalive, TCP_USER_TIMEOUT). Manual: "SSL
//! Session Encryption" in "Message Flow"; the order of attempts is libpq's.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::{Error, Result};
use crate::wal::sqlstate::{INVALID_AUTHORIZATION, source_of, sqlstate_of};
use crate::wal::tls;
use crate::wal::url::{ConnectUrl, Host, SslMode};

const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_COUNT: u32 = 3;
/// When the keepalives would have given up: idle + count * interval.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(25);
/// What the kernel should hold for a stream while its reader pauses (DESIGN section 8).
const STREAM_RECEIVE_BYTES: usize = 4 * 1024 * 1024;

/// What a connection is for; it decides the size of the socket's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Queries,
    Stream,
}

/// How one attempt treats TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    Off,
    IfOffered,
    Demanded,
}

/// Why an attempt with TLS failed before the session began.
#[derive(Debug, thiserror::Error)]
enum TlsFault {
    #[error("the server does not accept TLS connections")]
    Refused,
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
}

/// A connected byte stream.
pub(crate) struct Transport {
    io: Io,
    /// The hash for SCRAM's channel binding; `None` without TLS or where the certificate has none.
    end_point: Option<Vec<u8>>,
}

enum Io {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

impl Transport {
    /// Connects and, as `encryption` says, starts TLS.
    pub(crate) async fn open(url: &ConnectUrl, encryption: Encryption, purpose: Purpose) -> Result<Self> {
        let name = match &url.host {
            Host::Tcp(name) => name,
            Host::Unix(directory) => {
                let path = directory.join(format!(".s.PGSQL.{}", url.port));
                let socket = UnixStream::connect(path).await.map_err(|error| unreachable(url, error))?;
                return Ok(Transport { io: Io::Unix(socket), end_point: None });
            }
        };
        let mut socket = connect_tcp(url, name, purpose).await?;
        if encryption == Encryption::Off {
            return Ok(Transport { io: Io::Tcp(socket), end_point: None });
        }

        // Before the first byte, so that a missing file does not look like a server's fault.
        let config = tls::client_config(url)?;
        let server_name = tls::server_name(url, name)?;
        match (request_tls(&mut socket).await?, encryption) {
            (true, _) => {}
            (false, Encryption::IfOffered) => return Ok(Transport { io: Io::Tcp(socket), end_point: None }),
            (false, _) => {
                return Err(Error::definite(format!("sslmode={} needs TLS", url.ssl_mode))
                    .with_source(TlsFault::Refused)
                    .with_hint("set ssl = on with ssl_cert_file and ssl_key_file on the server"));
            }
        }
        let stream = TlsConnector::from(config)
            .connect(server_name, socket)
            .await
            .map_err(|error| handshake_failed(url, error))?;
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let end_point = certificate.and_then(|certificate| tls::server_end_point(certificate));
        Ok(Transport { io: Io::Tls(Box::new(stream)), end_point })
    }

    /// Whether the bytes travel in TLS.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.io, Io::Tls(_))
    }

    /// The `tls-server-end-point` hash, where there is one.
    pub(crate) fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }

    #[cfg(test)]
    pub(crate) fn memory(stream: tokio::io::DuplexStream) -> Self {
        Transport { io: Io::Memory(stream), end_point: None }
    }
}

/// Runs `attempt` as `sslmode` says: once, or a second time the other way, within `connect_timeout`.
pub(crate) async fn connect_in_turn<T, F>(url: &ConnectUrl, attempt: impl Fn(Encryption) -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let in_turn = async {
        let (first, second) = match (&url.host, url.ssl_mode) {
            (Host::Unix(_), _) | (_, SslMode::Disable) => (Encryption::Off, None),
            (_, SslMode::Allow) => (Encryption::Off, Some(Encryption::Demanded)),
            (_, SslMode::Prefer) => (Encryption::IfOffered, Some(Encryption::Off)),
            (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => (Encryption::Demanded, None),
        };
        let first_error = match attempt(first).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        let Some(second) = second.filter(|_| other_way_may_do(&first_error)) else { return Err(first_error) };
        match attempt(second).await {
            Ok(connection) => Ok(connection),
            // The attempt with TLS has more to tell, unless there was none.
            Err(error) if second == Encryption::Off || lacks_tls(&error) => Err(first_error),
            Err(error) => Err(error),
        }
    };
    match url.connect_timeout {
        None => in_turn.await,
        Some(limit) => tokio::time::timeout(limit, in_turn).await.unwrap_or_else(|_| {
            Err(Error::transient(format!("{} did not answer within {} s", url.address(), limit.as_secs()))
                .with_hint("is the address right, and the way there open? connect_timeout=SECONDS in the URL allows more"))
        }),
    }
}

/// A failed read or write, with the remedy that a TLS alert may name.
pub(crate) fn broken(doing: &str, error: io::Error) -> Error {
    let (definite, hint) = alert_of(&error);
    with_class(definite, doing.to_owned(), hint).with_source(error)
}

/// libpq tries the other way after a failed handshake or a refusal by pg_hba.conf, not after a wrong password.
fn other_way_may_do(error: &Error) -> bool {
    source_of::<TlsFault>(error).is_some() || sqlstate_of(error) == Some(INVALID_AUTHORIZATION)
}

fn lacks_tls(error: &Error) -> bool {
    matches!(source_of::<TlsFault>(error), Some(TlsFault::Refused))
}

fn handshake_failed(url: &ConnectUrl, error: io::Error) -> Error {
    let doing = format!("no TLS with {} under sslmode={}", url.address(), url.ssl_mode);
    let (definite, hint) = alert_of(&error);
    with_class(definite, doing, hint).with_source(TlsFault::Handshake(error))
}

/// Whether rustls' reason stays, and its remedy.
fn alert_of(error: &io::Error) -> (bool, Option<&'static str>) {
    let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    reason.map_or((false, None), tls::explain)
}

fn with_class(definite: bool, message: String, hint: Option<&str>) -> Error {
    let error = if definite { Error::definite(message) } else { Error::transient(message) };
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

fn unreachable(url: &ConnectUrl, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "this process may not open the socket: check its directory's rights"
        }
        _ => {
            "is the server running, and does it listen there (listen_addresses, port, unix_socket_directories)?"
        }
    };
    Error::transient(format!("cannot connect to {}", url.address())).with_hint(hint).with_source(error)
}

/// Asks for TLS; whether the server agrees. One byte is read, so that nothing which somebody slipped in
/// behind it can be taken for part of the session (CVE-2021-23222).
async fn request_tls(socket: &mut TcpStream) -> Result<bool> {
    let doing = "the server closed the connection instead of answering the request for TLS";
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(|error| broken(doing, error))?;
    match socket.read_u8().await.map_err(|error| broken(doing, error))? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        b'E' => Err(Error::transient("the server answered the request for TLS with an error, see its log")),
        other => Err(Error::transient(format!("the answer to the request for TLS was byte 0x{other:02X}"))
            .with_hint("is this a PostgreSQL server?")),
    }
}

async fn connect_tcp(url: &ConnectUrl, name: &str, purpose: Purpose) -> Result<TcpStream> {
    let addresses = tokio::net::lookup_host((name, url.port)).await.map_err(|error| {
        Error::transient(format!("cannot look up the host \"{name}\""))
            .with_hint("check the host's name in the URL")
            .with_source(error)
    })?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match connect_address(address, purpose).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(unreachable(url, last))
}

async fn connect_address(address: SocketAddr, purpose: Purpose) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let options = SockRef::from(&socket);
    if purpose == Purpose::Stream && receive_bytes_max() >= STREAM_RECEIVE_BYTES {
        // Before connecting: the window's scale is agreed on in the first packet.
        options.set_recv_buffer_size(STREAM_RECEIVE_BYTES)?;
    }
    options.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_COUNT);
    options.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    options.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    socket.connect(address).await
}

/// What the kernel allows for SO_RCVBUF. Asking for more than this would fix the buffer at the limit and
/// turn the kernel's own growing of it off, which is worse than not asking.
fn receive_bytes_max() -> usize {
    let limit = std::fs::read_to_string("/proc/sys/net/core/rmem_max");
    limit.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(usize::MAX)
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Tls(stream) => poll_read_all(stream, context, buffer),
            #[cfg(test)]
            Io::Memory(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

/// TLS gives one record of 16 KiB at a time; a paced reader wants all that is there.
fn poll_read_all(
    stream: &mut TlsStream<TcpStream>,
    context: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let before = buffer.filled().len();
    loop {
        let so_far = buffer.filled().len();
        let polled = Pin::new(&mut *stream).poll_read(context, buffer);
        let is_more = matches!(polled, Poll::Ready(Ok(()))) && buffer.filled().len() > so_far;
        if is_more && buffer.remaining() > 0 {
            continue;
        }
        // What came is delivered; an end or an error behind it shows at the next read.
        return if buffer.filled().len() > before { Poll::Ready(Ok(())) } else { polled };
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            #[cfg(test)]
            Io::Memory(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Io::Unix(stream) => Pin::new(stream).poll_flush(context),
            Io::Tls(stream) => Pin::new(stream).poll_flush(context),
            #[cfg(test)]
            Io::Memory(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            #[cfg(test)]
            Io::Memory(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
