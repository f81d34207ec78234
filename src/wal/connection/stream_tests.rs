//! The stream over an in-memory connection: what a server may send, cut anywhere.

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::transport::Transport;
use super::*;
use crate::wal::sqlstate::sqlstate_of;

fn pair() -> (ReplicationStream, DuplexStream) {
    let (ours, server) = tokio::io::duplex(1 << 20);
    (ReplicationStream::new(Link::new(Transport::memory(ours))), server)
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = i32::try_from(body.len() + 4).expect("a small body");
    [&[tag], &len.to_be_bytes()[..], body].concat()
}

fn failure(severity: &str, code: &str, text: &str) -> Vec<u8> {
    format!("S{severity}\0V{severity}\0C{code}\0M{text}\0\0").into_bytes()
}

async fn next(stream: &mut ReplicationStream) -> Result<Vec<u8>> {
    loop {
        if let Some(payload) = stream.next_frame()? {
            return Ok(payload.to_vec());
        }
        stream.fill().await?;
    }
}

#[tokio::test]
async fn frames_come_out_whole_and_in_order_between_notices_and_parameters() {
    let (mut stream, mut server) = pair();
    let sent = [
        message(b'd', b"first"),
        message(b'S', b"TimeZone\0UTC\0"),
        message(b'N', &failure("WARNING", "01000", "publication \"p\" does not exist")),
        message(b'd', b""),
        message(b'd', &[7; 200_000]),
    ]
    .concat();
    tokio::spawn(async move {
        for byte in sent.chunks(4093) {
            server.write_all(byte).await.expect("the stream reads");
        }
        std::future::pending::<()>().await;
    });
    assert_eq!(next(&mut stream).await.expect("a frame"), b"first");
    assert_eq!(next(&mut stream).await.expect("a frame"), b"");
    assert_eq!(next(&mut stream).await.expect("a frame"), vec![7; 200_000]);
    assert_eq!(stream.buffered_bytes(), 0);
    let notices = stream.take_notices();
    assert_eq!(notices.len(), 1);
    assert_eq!((notices[0].severity.as_str(), notices[0].code.as_str()), ("WARNING", "01000"));
    assert_eq!(notices[0].message, "publication \"p\" does not exist");
    assert!(stream.take_notices().is_empty());
}

#[tokio::test]
async fn a_cancelled_fill_loses_nothing() {
    let (mut stream, mut server) = pair();
    let frame = message(b'd', b"payload");
    for part in frame.chunks(5) {
        assert!(stream.fill().now_or_never().is_none(), "nothing was sent yet");
        server.write_all(part).await.expect("written");
        stream.fill().await.expect("a part");
    }
    assert_eq!(stream.next_frame().expect("well-formed"), Some(&b"payload"[..]));
}

#[tokio::test]
async fn the_servers_error_is_classified_and_keeps_its_code() {
    for (code, definite) in [("57P01", false), ("55000", true), ("XX000", false)] {
        let (mut stream, mut server) = pair();
        server.write_all(&message(b'E', &failure("FATAL", code, "reason"))).await.expect("written");
        let error = next(&mut stream).await.expect_err("an error");
        assert_eq!(sqlstate_of(&error), Some(code));
        assert_eq!(error.is_definite(), definite, "{code}");
    }
}

#[tokio::test]
async fn every_end_of_the_stream_is_a_transient_error() {
    for (sent, says) in [
        (message(b'c', b""), "shuts down"),
        (message(b'C', b"COPY 0\0"), "shuts down"),
        (message(b'Z', b"I"), "ended the stream"),
        (Vec::new(), "closed the connection"),
        (message(b'd', b"cut")[..6].to_vec(), "closed the connection"),
        (message(b'T', b"\0\0"), "0x54"),
        (message(b'?', b""), "0x3F"),
        (message(b'E', b"Mno end"), "fields of an error"),
        (message(b'd', b"")[..1].repeat(5), "field length"),
    ] {
        let (mut stream, mut server) = pair();
        server.write_all(&sent).await.expect("written");
        drop(server);
        let error = next(&mut stream).await.expect_err("no frame");
        assert!(!error.is_definite() && error.to_string().contains(says), "{says}: {error}");
    }
}

#[tokio::test]
async fn a_cancelled_send_is_finished_by_the_next_one() {
    let (ours, mut server) = tokio::io::duplex(8);
    let mut stream = ReplicationStream::new(Link::new(Transport::memory(ours)));
    assert!(stream.send_copy_data(&[1; 20]).now_or_never().is_none(), "the pipe holds 8 bytes");
    let expected = [message(b'd', &[1; 20]), message(b'd', &[2; 3])].concat();
    let mut received = vec![0; expected.len()];
    let (sent, read) = tokio::join!(stream.send_copy_data(&[2; 3]), server.read_exact(&mut received));
    sent.expect("sent");
    read.expect("read");
    assert_eq!(received, expected);
}

#[tokio::test]
async fn closing_says_goodbye_and_does_not_wait_for_ever() {
    let (stream, mut server) = pair();
    // The server's side stays open and silent, so this returns only by its own limit.
    tokio::time::timeout(CLOSE_WAIT_MAX * 10, stream.close()).await.expect("its own limit ends the wait");
    let mut received = Vec::new();
    server.read_to_end(&mut received).await.expect("read");
    assert_eq!(received, [message(b'c', b""), message(b'X', b"")].concat());
}
