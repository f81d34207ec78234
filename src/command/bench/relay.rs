//! Counts the bytes of connections: it listens on 127.0.0.1, and passes on what comes, both ways.
//!
//! Only the unmeasured round goes through it, for passing on takes processor time. What is counted is what the sockets
//! carry, with TLS and the protocol's framing, without the headers of TCP and IP.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::address::Address;
use crate::error::{Error, Result};
use crate::wal::url::Host;

const BUFFER_BYTES: usize = 256 << 10;

/// See the module; ends when dropped.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    bytes: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Begins to listen, on behalf of a server.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(to: &Address) -> Result<Relay> {
        let failed = |error| Error::definite("127.0.0.1 cannot be listened on").with_source(error);
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let bytes = Arc::new(AtomicU64::new(0));
        let (to, counted) = (to.clone(), bytes.clone());
        let task = tokio::spawn(async move {
            // The connections end with the task.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, to.clone(), counted.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Relay { port, bytes, task })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes that have passed so far, both ways together.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection that breaks is its two ends' affair.
async fn pass(client: TcpStream, to: Address, bytes: Arc<AtomicU64>) {
    let _ = client.set_nodelay(true);
    let (mut from_client, mut to_client) = client.into_split();
    match to.0.socket_path() {
        Some(path) => {
            let Ok(server) = UnixStream::connect(path).await else { return };
            let (mut from_server, mut to_server) = server.into_split();
            tokio::join!(
                copy(&mut from_client, &mut to_server, &bytes),
                copy(&mut from_server, &mut to_client, &bytes)
            );
        }
        None => {
            let Host::Tcp(host) = &to.0.host else { return };
            let Ok(server) = TcpStream::connect((host.as_str(), to.0.port)).await else { return };
            let _ = server.set_nodelay(true);
            let (mut from_server, mut to_server) = server.into_split();
            tokio::join!(
                copy(&mut from_client, &mut to_server, &bytes),
                copy(&mut from_server, &mut to_client, &bytes)
            );
        }
    }
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), bytes: &AtomicU64) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let Some(read) = buffer.get(..count) else { return };
        if to.write_all(read).await.is_err() {
            break;
        }
        bytes.fetch_add(u64::try_from(count).unwrap_or_default(), Ordering::Relaxed);
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn counts_what_passes_and_ends_with_either_side() {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = server.local_addr().expect("it is bound").port();
        let url = format!("postgres://me@127.0.0.1:{port}/shop?sslmode=disable");
        let relay = Relay::start(&Address::parse(&url).expect("a URL")).await.expect("it listens");
        let mut client = TcpStream::connect(("127.0.0.1", relay.port())).await.expect("it accepts");
        let (mut peer, _) = server.accept().await.expect("it passes on");
        client.write_all(&[1; 1000]).await.expect("it reads");
        let mut got = [0; 1000];
        peer.read_exact(&mut got).await.expect("it passes on");
        peer.write_all(&[2; 24]).await.expect("it reads");
        drop(peer);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.expect("it ends");
        assert_eq!((rest.len(), relay.bytes()), (24, 1024));
    }
}
