//! A request to Walgate's admin address: `/healthz`, `/readyz`, `/metrics`.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::PATIENCE;

/// The status code and the body of `GET path` on 127.0.0.1; `None` while nobody listens.
pub fn request(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: walgate\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.split(' ').nth(1)?.parse().ok()?;
    Some((code, body.to_owned()))
}

/// The sum of a metric over all its labels; `None` when it is not there.
pub fn metric(port: u16, name: &str) -> Option<f64> {
    let (_, body) = request(port, "/metrics")?;
    let values: Vec<f64> = body
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}
