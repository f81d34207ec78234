//! Whether the source sends faster than one would read row by row: then reading is paced.
//!
//! Comes in: how much each read gave, and when. Goes out: yes or no. The size of a read alone does not tell:
//! a reader that drains the socket at every wake-up gets single rows however many are waiting, since the
//! walsender then sends row by row (DESIGN section 8, point 2).

use std::time::Duration;

/// A read of at least this much means that more is waiting, in bytes.
const BACKLOG_BYTES: usize = 32 << 10;
/// Above this many bytes a second it is worth a pause: 5 to 10 thousand small transactions.
const BACKLOG_RATE: u128 = 2 << 20;
/// Over this time the rate is taken.
const WINDOW: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug, Default)]
pub struct Inflow {
    since: Duration,
    bytes: usize,
    is_fast: bool,
}

impl Inflow {
    /// A read gave `bytes`, `now` after some fixed time; true: more is waiting.
    pub fn received(&mut self, bytes: usize, now: Duration) -> bool {
        self.bytes += bytes;
        let elapsed = now.saturating_sub(self.since);
        if elapsed >= WINDOW {
            self.is_fast = self.bytes as u128 * 1_000_000 >= BACKLOG_RATE * elapsed.as_micros();
            (self.since, self.bytes) = (now, 0);
        }
        self.is_fast || bytes >= BACKLOG_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many bytes at each of 200 reads, `pause` microseconds apart: what the last one says.
    fn after_reads(inflow: &mut Inflow, from: Duration, bytes: usize, pause: u64) -> bool {
        let reads = (1..=200).map(|nth| from + Duration::from_micros(pause * nth));
        reads.fold(false, |_, now| inflow.received(bytes, now))
    }

    #[test]
    fn small_reads_that_come_fast_are_a_backlog_and_a_steady_load_is_none() {
        let mut inflow = Inflow::default();
        assert!(!after_reads(&mut inflow, Duration::ZERO, 400, 500), "2000 transactions a second");
        assert!(after_reads(&mut inflow, Duration::from_secs(1), 400, 20), "50000 transactions a second");
        assert!(!after_reads(&mut inflow, Duration::from_secs(2), 400, 500), "the backlog is over");
        assert!(inflow.received(32 << 10, Duration::from_secs(3)), "one large read");
    }
}
