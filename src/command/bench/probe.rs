//! Probes: small transactions by a fixed schedule, whose way to the destination is timed.
//!
//! In: a database, a rate. Out: for each probe when it was due, and when its commit returned. Always: a probe is due
//! whether or not earlier ones have come through, and where its own connection is late because an earlier commit has not
//! returned, it counts from when it was due: a stall shows in all that it delays (no coordinated omission). Sleeping past
//! the due time is the timer's affair, and does not count.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::address::Address;
use crate::error::{Error, Result};
use crate::wal::client::{Client, classify, connect};

/// The table of the probes.
pub const TABLE: &str = "walgate_bench_probe";
/// Makes it. The mark is what is looked for where there are only bytes.
pub const CREATE: &str = "
CREATE TABLE public.walgate_bench_probe (
  id bigint PRIMARY KEY,
  mark text NOT NULL
)";
const INSERT: &str = "INSERT INTO public.walgate_bench_probe (id, mark) VALUES ($1, $2)";
/// Probes a second.
pub const RATE: u64 = 200;
const CONNECTIONS: u64 = 4;
const MARK: &[u8] = b"walgate-probe:";
/// Of a mark with its number.
const MARK_BYTES_MAX: usize = MARK.len() + 21;

/// A probe, as its writer saw it.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Its row's key.
    pub id: i64,
    /// When it was due, or sent, whichever is the fair beginning.
    pub began_at: Instant,
    /// When its commit had returned.
    pub returned_at: Instant,
}

/// Writes one.
///
/// # Errors
/// As the connection.
pub async fn write(client: &Client, id: i64) -> Result<()> {
    client.execute(INSERT, &[&id, &mark(id)]).await.map(drop).map_err(classify)
}

fn mark(id: i64) -> String {
    format!("walgate-probe:{id};")
}

/// The numbers of the marks in these bytes, and how many bytes need not be looked at again.
pub fn marks_in(bytes: &[u8]) -> (Vec<i64>, usize) {
    let mut ids = Vec::new();
    let mut whole = bytes.len().saturating_sub(MARK_BYTES_MAX);
    for at in memchr::memmem::find_iter(bytes, MARK) {
        let number = bytes.get(at + MARK.len()..).unwrap_or_default();
        match memchr::memchr(b';', number.get(..20.min(number.len())).unwrap_or_default()) {
            Some(end) => {
                let digits = number.get(..end).and_then(|digits| std::str::from_utf8(digits).ok());
                ids.extend(digits.and_then(|digits| digits.parse::<i64>().ok()));
                whole = whole.max(at + MARK.len() + end);
            }
            None if number.len() < 20 => {
                whole = at;
                break;
            }
            None => {}
        }
    }
    (ids, whole)
}

/// Probes that are being written; ended at once when dropped.
#[derive(Debug)]
pub struct Writing {
    base: i64,
    start: Instant,
    stop: watch::Sender<bool>,
    writers: JoinSet<Result<Vec<Probe>>>,
}

impl Writing {
    /// Begins at `start` with the probe after `base`.
    ///
    /// # Errors
    /// As the connections.
    pub async fn begin(address: &Address, base: i64, start: Instant) -> Result<Writing> {
        let (stop, _) = watch::channel(false);
        let mut writers = JoinSet::new();
        for connection in 0..CONNECTIONS {
            let client = connect(&address.0, "walgate bench").await?;
            writers.spawn(write_by_schedule(client, connection, base, start, stop.subscribe()));
        }
        Ok(Writing { base, start, stop, writers })
    }

    /// The first probe that is due after this moment.
    pub fn first_due_after(&self, at: Instant) -> i64 {
        let nth = at.saturating_duration_since(self.start).as_micros() * u128::from(RATE) / 1_000_000 + 1;
        self.base + 1 + i64::try_from(nth).expect("years of probes")
    }

    /// Ends them, and returns them in the order of their numbers.
    ///
    /// # Errors
    /// What a writer said.
    pub async fn end(mut self) -> Result<Vec<Probe>> {
        let _ = self.stop.send(true);
        let mut probes = Vec::new();
        while let Some(ended) = self.writers.join_next().await {
            probes.extend(ended.unwrap_or_else(|error| {
                Err(Error::definite("a writer of probes has panicked").with_source(error))
            })?);
        }
        probes.sort_by_key(|probe| probe.id);
        Ok(probes)
    }
}

async fn write_by_schedule(
    client: Client,
    connection: u64,
    base: i64,
    start: Instant,
    mut stop: watch::Receiver<bool>,
) -> Result<Vec<Probe>> {
    let statement = client.prepare(INSERT).await.map_err(classify)?;
    let mut probes = Vec::new();
    for nth in (connection..).step_by(usize::try_from(CONNECTIONS).expect("it is small")) {
        let due = start + Duration::from_micros(nth.saturating_mul(1_000_000) / RATE);
        let is_late = Instant::now() > due;
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep_until(due.into()) => {}
        }
        let began_at = if is_late { due } else { Instant::now() };
        let id = base + 1 + i64::try_from(nth).expect("years of probes");
        client.execute(&statement, &[&id, &mark(id)]).await.map_err(classify)?;
        probes.push(Probe { id, began_at, returned_at: Instant::now() });
    }
    Ok(probes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_mark_however_the_bytes_are_cut() {
        let text: String = (0..50).map(|id| format!("\0\u{1}{}xyz", mark(id * 97))).collect();
        for size in [1, 7, 16, 100, 4096] {
            let (mut buffer, mut found) = (Vec::new(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                buffer.extend_from_slice(piece);
                let (ids, whole) = marks_in(&buffer);
                found.extend(ids);
                buffer.drain(..whole);
            }
            found.dedup();
            assert_eq!(found, (0..50).map(|id| id * 97).collect::<Vec<i64>>(), "pieces of {size}");
        }
    }
}
