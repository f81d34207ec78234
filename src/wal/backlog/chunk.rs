//! How large the next chunk should be.
//!
//! Every chunk reads the WAL again from the slot's `restart_lsn`, which moves only where the server has written down its
//! running transactions (every 15 s, and at checkpoints) and which an open transaction holds back. So a small chunk may read
//! much for little; a large one takes room on the source, and beyond what fits into the reader's queue the server waits for
//! the destination instead of decoding the next one. Comes in: what the last chunk was. Goes out: how many messages next.

use std::time::Duration;

use crate::lsn::Lsn;

/// Never more messages than this: `pg_logical_slot_get_binary_changes` takes an int4.
const CHANGES_MAX: u64 = 1_000_000_000;
/// Reading again is cheaper than decoding, by about this factor: above it a chunk grows beyond the queue.
const REREAD_RATIO_MAX: u64 = 4;
/// A chunk's statement holds a snapshot until the destination has taken all but what fits into the queue: where that is slow,
/// a chunk is as small as it must be for so long.
const CHUNK_TIME_MAX: Duration = Duration::from_secs(30);
/// So near to the end of WAL the stream goes on, in bytes.
const NEAR_BYTES: u64 = 1 << 20;
/// As far from it as it may have to. A source that writes more than this while a chunk is decoded is too much for the stream.
const REST_BYTES: u64 = 16 << 20;
/// Messages of this size cost the walsender no more than the store from which the SQL functions send, in bytes: above it the
/// stream is the faster one, and its first row comes at once.
const LARGE_BYTES: u64 = 8 << 10;
/// WAL that a chunk reads anew at most, if not as much again as it reads once more: without it, a slot that has nothing for us in
/// gigabytes of WAL would not be confirmed until its end.
const WAL_BYTES_MAX: u64 = 128 << 20;
/// ... and the first one: until it is decoded nobody else has anything to do, and it tells what the messages are like.
const FIRST_WAL_BYTES_MAX: u64 = 32 << 20;
/// However small the backlog is.
const WAL_BYTES_MIN: u64 = 16 << 20;
/// A backlog is read in so many parts, if that makes them smaller: while one is decoded, the one before it is applied.
const PARTS: u64 = 3;
/// A chunk should take at most this part of what it may take on the source: its size is only foreseen.
const TEMP_PART: u64 = 2;

/// What bounds chunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub changes_min: u64,
    pub queue_bytes_max: u64,
    pub temp_bytes_max: u64,
}

/// What is asked for: the chunk ends with the transaction in which it reaches either.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    /// Messages.
    pub changes: u64,
    /// Bytes of WAL that were not read yet; as many as are read once more, if that is more.
    pub wal_bytes: u64,
}

impl Ask {
    /// The first one of a backlog of so many bytes.
    pub(super) fn first(bounds: Bounds, behind_bytes: u64) -> Self {
        let wal_bytes = (behind_bytes / PARTS).clamp(WAL_BYTES_MIN, FIRST_WAL_BYTES_MAX);
        Ask { changes: bounds.changes_min, wal_bytes }
    }
}

/// A chunk that was received whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub asked: Ask,
    /// Messages in it.
    pub changes: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// From the request to its last byte.
    pub took: Duration,
    /// Where the one before it ended.
    pub read_from: Lsn,
    /// Where it ended.
    pub read_to: Lsn,
    /// From where the next one reads.
    pub restart_lsn: Lsn,
    /// The end of WAL.
    pub source_lsn: Lsn,
}

impl Chunk {
    /// Whether the stream may take over: next to nothing is left, or little, and it does not become less, though the chunk
    /// came to the end of WAL: what is written while a chunk is decoded, which a source that is busy never ends.
    pub(super) fn is_near_end(&self) -> bool {
        let left = self.source_lsn.bytes_since(self.read_to);
        let read_new = self.read_to.bytes_since(self.read_from);
        let is_short = self.changes < self.asked.changes;
        left <= NEAR_BYTES || (is_short && left <= REST_BYTES && left.saturating_mul(2) >= read_new)
    }

    /// Whether its messages are so large that the stream takes no longer for such.
    pub(super) fn is_of_large_messages(&self) -> bool {
        self.bytes >= self.changes.saturating_mul(LARGE_BYTES) && self.changes > 0
    }

    /// What the next one should have.
    pub(super) fn next(&self, bounds: Bounds) -> Ask {
        let left = self.source_lsn.bytes_since(self.read_to);
        let wal_bytes = self.asked.wal_bytes.max((left / (PARTS - 1)).min(WAL_BYTES_MAX));
        Ask { changes: self.next_changes(bounds), wal_bytes }
    }

    fn next_changes(&self, bounds: Bounds) -> u64 {
        if self.changes == 0 {
            return self.asked.changes;
        }
        let read_new = self.read_to.bytes_since(self.read_from).max(1);
        let read_again = self.read_to.bytes_since(self.restart_lsn);
        // As many messages as lie in so many bytes of WAL, or make so many bytes here.
        let in_wal = |bytes: u64| scaled(bytes, self.changes, read_new);
        let sent = |bytes: u64| scaled(bytes, self.changes, self.bytes.max(1));
        let wanted = in_wal(read_again).min(sent(bounds.queue_bytes_max));
        let needed = in_wal(read_again / REREAD_RATIO_MAX).max(bounds.changes_min);
        let room = sent(bounds.temp_bytes_max / TEMP_PART).max(1);
        let took_ms = u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX).max(1);
        let in_time = scaled(CHUNK_TIME_MAX.as_secs() * 1000, self.changes, took_ms).max(1);
        let changes = wanted.max(needed);
        // The last one takes all: the little that it would leave costs to read everything once more.
        let left = in_wal(self.source_lsn.bytes_since(self.read_to));
        let changes =
            if left <= changes.saturating_add(changes / 2) { changes.saturating_mul(2) } else { changes };
        changes.min(room).min(in_time).min(CHANGES_MAX)
    }
}

/// `value * times / by`.
fn scaled(value: u64, times: u64, by: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(times) / u128::from(by)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { changes_min: 100_000, queue_bytes_max: 64 << 20, temp_bytes_max: 1 << 30 };

    /// A message is 200 bytes of WAL and 200 bytes here.
    fn chunk(changes: u64, read_again: u64) -> Chunk {
        let read_to = Lsn(1 << 40);
        Chunk {
            asked: Ask { changes: changes + 1, wal_bytes: WAL_BYTES_MIN },
            changes,
            bytes: changes * 200,
            took: Duration::from_secs(1),
            read_from: Lsn(read_to.0 - changes * 200),
            read_to,
            restart_lsn: Lsn(read_to.0 - read_again),
            source_lsn: Lsn(1 << 41),
        }
    }

    #[test]
    fn a_chunk_is_small_while_little_is_read_again() {
        assert_eq!(chunk(100_000, 0).next(BOUNDS).changes, 100_000);
        assert_eq!(chunk(400_000, 1 << 20).next(BOUNDS).changes, 100_000, "and becomes small again");
    }

    #[test]
    fn it_grows_with_what_is_read_again_while_it_fits_the_queue() {
        assert_eq!(chunk(100_000, 40_000_000).next(BOUNDS).changes, 200_000);
        assert_eq!(chunk(200_000, 80_000_000).next(BOUNDS).changes, (64 << 20) / 200);
    }

    #[test]
    fn an_open_transaction_makes_it_grow_beyond_the_queue_and_not_beyond_its_room() {
        assert_eq!(chunk(300_000, 800_000_000).next(BOUNDS).changes, 1_000_000);
        assert_eq!(chunk(1_000_000, 1 << 40).next(BOUNDS).changes, (1 << 29) / 200);
        let little = Bounds { temp_bytes_max: 0, ..BOUNDS };
        assert_eq!(chunk(100_000, 0).next(little).changes, 1, "at least one transaction");
    }

    #[test]
    fn the_stream_takes_over_when_the_rest_is_small_or_becomes_no_smaller() {
        let near = |read: u64, left: u64| {
            let chunk = chunk(read / 200, 0);
            Chunk { source_lsn: Lsn(chunk.read_to.0 + left), ..chunk }.is_near_end()
        };
        assert!(near(1 << 30, 0) && near(1 << 30, 1 << 20));
        assert!(!near(64 << 20, 16 << 20), "four times as fast as it is written");
        assert!(near(20 << 20, 16 << 20), "a steady state");
        assert!(!near(20 << 20, 17 << 20), "more than the stream could read");
        let cut = Chunk { asked: Ask { changes: 100_000, wal_bytes: WAL_BYTES_MIN }, ..chunk(100_000, 0) };
        let cut = Chunk { source_lsn: Lsn(cut.read_to.0 + (15 << 20)), ..cut };
        assert!(!cut.is_near_end(), "it did not come to the end of WAL");
    }

    #[test]
    fn the_last_one_takes_the_rest() {
        let next = |left: u64| {
            let chunk = chunk(100_000, 0);
            Chunk { source_lsn: Lsn(chunk.read_to.0 + left * 200), ..chunk }.next(BOUNDS).changes
        };
        assert_eq!(next(150_001), 100_000);
        assert_eq!(next(150_000), 200_000);
    }

    #[test]
    fn large_messages_are_left_to_the_stream() {
        assert!(!chunk(1000, 0).is_of_large_messages());
        assert!(Chunk { bytes: 1000 << 13, ..chunk(1000, 0) }.is_of_large_messages());
        assert!(!chunk(0, 0).is_of_large_messages(), "nothing is known of them");
    }

    #[test]
    fn a_slow_destination_gets_small_chunks() {
        let slow = Chunk { took: Duration::from_secs(60), ..chunk(100_000, 80_000_000) };
        assert_eq!(slow.next(BOUNDS).changes, 50_000);
    }

    #[test]
    fn a_chunk_without_messages_changes_nothing() {
        let empty = Chunk { asked: Ask { changes: 100_000, wal_bytes: WAL_BYTES_MIN }, ..chunk(0, 1 << 30) };
        assert_eq!(empty.next(BOUNDS).changes, 100_000);
    }

    #[test]
    fn a_backlog_is_read_in_parts_of_bounded_size() {
        let first = |behind: u64| Ask::first(BOUNDS, behind).wal_bytes >> 20;
        assert_eq!([1, 60, 90, 4000].map(|mib: u64| first(mib << 20)), [16, 20, 30, 32]);
        let next = |left: u64| {
            let chunk = chunk(1000, 0);
            Chunk { source_lsn: Lsn(chunk.read_to.0 + (left << 20)), ..chunk }.next(BOUNDS).wal_bytes >> 20
        };
        assert_eq!([1, 60, 200, 4000].map(next), [16, 30, 100, 128]);
    }
}
