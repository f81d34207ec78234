//! Asks a process on the admin port of the same configuration, if one is there.
//!
//! Comes in: the address. Goes out: what it says of this pipeline, or nothing: no answer within a
//! second, or an answer that speaks of another pipeline or another source, is no answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::pipeline::status::PipelineStatus;

const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);
/// A status of a pipeline has a few hundred bytes; whoever sends more is not Walgate.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// What the process at `listen` says of the pipeline that `expected` names.
pub async fn ask(listen: Option<SocketAddr>, expected: &PipelineStatus) -> Option<PipelineStatus> {
    let address = reachable(listen?);
    let answer = tokio::time::timeout(ANSWER_TIME_MAX, fetch(address)).await.ok()?.ok()?;
    belonging(&answer, expected)
}

/// Where to connect for an address that is listened on; port 0 was one that nobody here knows.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn fetch(address: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /status HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn belonging(answer: &[u8], expected: &PipelineStatus) -> Option<PipelineStatus> {
    let answer = std::str::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if head.split(' ').nth(1) != Some("200") {
        return None;
    }
    let pipelines: Vec<PipelineStatus> = serde_json::from_str(body).ok()?;
    pipelines.into_iter().find(|status| {
        status.pipeline == expected.pipeline
            && status.source == expected.source
            && status.source_address == expected.source_address
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> PipelineStatus {
        PipelineStatus {
            pipeline: "walgate_hub".into(),
            source: "shop".into(),
            source_address: "db:5432/shop".into(),
            ..PipelineStatus::default()
        }
    }

    fn answer(status: &PipelineStatus) -> Vec<u8> {
        let body = serde_json::to_string(&[status]).expect("plain data");
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{body}").into_bytes()
    }

    #[test]
    fn an_answer_of_another_source_is_none() {
        assert!(belonging(&answer(&expected()), &expected()).is_some());
        let other = PipelineStatus { source_address: "db2:5432/shop".into(), ..expected() };
        assert!(belonging(&answer(&other), &expected()).is_none());
        for text in ["", "HTTP/1.1 404 Not Found\r\n\r\n[]", "HTTP/1.1 200 OK\r\n\r\n<html>", "SSH-2.0"] {
            assert!(belonging(text.as_bytes(), &expected()).is_none(), "{text}");
        }
    }

    #[test]
    fn what_listens_everywhere_is_asked_here() {
        assert_eq!(reachable("0.0.0.0:9187".parse().expect("legal")).to_string(), "127.0.0.1:9187");
        assert_eq!(reachable("[::]:9187".parse().expect("legal")).to_string(), "[::1]:9187");
        assert_eq!(reachable("10.0.0.5:1".parse().expect("legal")).to_string(), "10.0.0.5:1");
    }
}
