//! The log sequence number: a byte position in the source's WAL.
//!
//! Comes in as PostgreSQL's text (`16/B374D848`) or as the Int64 of the replication protocol, goes
//! out the same way. Ordering is that of the integer. Manual: "pg_lsn Type", "WAL Internals".

use std::fmt;
use std::str::FromStr;

/// A position in the WAL, in bytes since its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `0/0`, which PostgreSQL never uses for a record: "no position".
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes from `earlier` to `self`; zero when `earlier` is not earlier.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is not `X/X` with up to eight hexadecimal digits on each side.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is not an LSN of the form 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |part: &str| {
            let legal = (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            legal.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

impl serde::Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_is_not_an_lsn() {
        for text in ["", "/", "0", "0/", "/0", "0/123456789", "0/G", "-1/0", "0/0/0", " 0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(raw: u64) {
            prop_assert_eq!(Lsn(raw).to_string().parse::<Lsn>(), Ok(Lsn(raw)));
        }
    }
}
