//! `[admin]` and `[limits]`: where the process is watched, and what it may use.

use std::net::SocketAddr;
use std::time::Duration;

use super::file::Section;
use super::schema;

/// Where `/healthz`, `/readyz` and `/metrics` are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Port 0 takes a free one; `None`, written `"off"`: nowhere.
    pub listen: Option<SocketAddr>,
}

/// What the process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in flight over all pipelines, before the readers wait.
    pub memory_bytes_max: u64,
    /// How long a shutdown waits for what is in flight.
    pub drain_timeout: Duration,
}

/// Enough for `/metrics` to be found by default, and only from this machine.
const LISTEN_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1)), 9187);

const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;

/// Below it the reader would wait for the sink at every few rows.
const MEMORY_BYTES_MIN: u64 = 64 << 10;

const DRAIN_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// A shutdown that takes longer than a day is a slip of the finger.
const DRAIN_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn read_admin(section: &Section<'_>) -> Admin {
    section.allow(schema::ADMIN);
    let Some(text) = section.string("listen") else { return Admin { listen: Some(LISTEN_DEFAULT) } };
    if text == "off" {
        return Admin { listen: None };
    }
    let address = text.replacen("localhost:", "127.0.0.1:", 1).parse();
    if address.is_err() {
        section.fault_of_value(
            "listen",
            "is no address with a port",
            "write \"127.0.0.1:9187\", \"0.0.0.0:9187\", \"[::1]:9187\" or \"off\"",
        );
    }
    Admin { listen: address.ok() }
}

pub(super) fn read_limits(section: &Section<'_>) -> Limits {
    section.allow(schema::LIMITS);
    Limits {
        memory_bytes_max: section
            .integer("memory_bytes_max", MEMORY_BYTES_MIN..=u64::MAX)
            .unwrap_or(MEMORY_BYTES_DEFAULT),
        drain_timeout: read_drain_timeout(section).unwrap_or(DRAIN_TIMEOUT_DEFAULT),
    }
}

fn read_drain_timeout(section: &Section<'_>) -> Option<Duration> {
    let text = section.string("drain_timeout")?;
    let duration = parse_duration(&text).filter(|duration| *duration <= DRAIN_TIMEOUT_MAX);
    if duration.is_none() {
        section.fault_of_value(
            "drain_timeout",
            "is no length of time, or over a day",
            "write a whole number and its unit: \"500ms\", \"10s\", \"2m\", \"1h\"",
        );
    }
    duration
}

/// `500ms`, `10s`, `2m`, `1h`, `7d`: a whole number and its unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let number: u64 = number.parse().ok()?;
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Some(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(parse_duration("7d"), Some(Duration::from_secs(604_800)));
        for text in
            ["", "10", "s", "-1s", "1.5s", "10 s", "10S", "99999999999999999999s", "18446744073709551615m"]
        {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }
}
