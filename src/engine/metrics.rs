//! The metrics, by name (DESIGN section 7). Labels: `pipeline`, `sink`, `relation`.

use std::time::Duration;

use metrics::{counter, gauge};

use crate::pipeline::status::{PipelineStatus, State};

/// Events that are durable at the hub.
pub const EVENTS_TOTAL: &str = "walgate_events_total";
/// Bytes received from the source.
pub const BYTES_READ_TOTAL: &str = "walgate_bytes_read_total";
/// WAL between what is confirmed and the source's end.
pub const LAG_BYTES: &str = "walgate_lag_bytes";
/// Age of the oldest change that was received and is not durable.
pub const LAG_SECONDS: &str = "walgate_lag_seconds";
/// WAL that the source keeps because of the slot.
pub const RETAINED_WAL_BYTES: &str = "walgate_retained_wal_bytes";
/// What is confirmed, as a number of bytes.
pub const CONFIRMED_LSN: &str = "walgate_confirmed_lsn";
/// Bytes handed to the sink and not durable.
pub const IN_FLIGHT_BYTES: &str = "walgate_in_flight_bytes";
/// Age of the oldest delivery that is not durable.
pub const OLDEST_UNCONFIRMED_SECONDS: &str = "walgate_oldest_unconfirmed_seconds";
/// Rows of initial copies.
pub const SNAPSHOT_ROWS_TOTAL: &str = "walgate_snapshot_rows_total";
/// Messages that became dead letters.
pub const DEAD_LETTERS_TOTAL: &str = "walgate_dead_letters_total";
/// Restarts after transient errors.
pub const RESTARTS_TOTAL: &str = "walgate_restarts_total";
/// 1 while the pipeline delivers.
pub const UP: &str = "walgate_up";

/// Enters every metric of a pipeline at zero, so that it is there before it first changes.
pub fn register(pipeline: &str, sink: &'static str) {
    let labels = [("pipeline", pipeline.to_owned()), ("sink", sink.to_owned())];
    for name in [BYTES_READ_TOTAL, SNAPSHOT_ROWS_TOTAL, DEAD_LETTERS_TOTAL, RESTARTS_TOTAL] {
        counter!(name, &labels[..1]).absolute(0);
    }
    for name in [
        LAG_BYTES,
        LAG_SECONDS,
        RETAINED_WAL_BYTES,
        CONFIRMED_LSN,
        IN_FLIGHT_BYTES,
        OLDEST_UNCONFIRMED_SECONDS,
        UP,
    ] {
        gauge!(name, &labels[..1]).set(0.0);
    }
}

/// Figures that a running pipeline knows.
pub fn publish(status: &PipelineStatus, oldest_unconfirmed: Duration) {
    let pipeline = [("pipeline", status.pipeline.clone())];
    gauge!(LAG_BYTES, &pipeline).set(approximate(status.lag_bytes()));
    gauge!(LAG_SECONDS, &pipeline).set(status.lag_seconds);
    gauge!(CONFIRMED_LSN, &pipeline).set(approximate(status.confirmed_lsn.0));
    gauge!(IN_FLIGHT_BYTES, &pipeline).set(approximate(status.in_flight_bytes));
    gauge!(OLDEST_UNCONFIRMED_SECONDS, &pipeline).set(oldest_unconfirmed.as_secs_f64());
    up(&status.pipeline, matches!(status.state, State::Streaming | State::Snapshot));
}

/// Whether a pipeline delivers.
pub fn up(pipeline: &str, is_up: bool) {
    gauge!(UP, "pipeline" => pipeline.to_owned()).set(f64::from(u8::from(is_up)));
}

/// Events of one relation that are durable.
pub fn events(pipeline: &str, relation: &str, count: u64) {
    counter!(EVENTS_TOTAL, "pipeline" => pipeline.to_owned(), "relation" => relation.to_owned())
        .increment(count);
}

/// Bytes received.
pub fn bytes_read(pipeline: &str, bytes: usize) {
    counter!(BYTES_READ_TOTAL, "pipeline" => pipeline.to_owned()).increment(bytes as u64);
}

/// Rows copied.
pub fn snapshot_rows(pipeline: &str, rows: u64) {
    counter!(SNAPSHOT_ROWS_TOTAL, "pipeline" => pipeline.to_owned()).increment(rows);
}

/// Messages that became dead letters.
pub fn dead_letters(pipeline: &str, count: u64) {
    counter!(DEAD_LETTERS_TOTAL, "pipeline" => pipeline.to_owned()).increment(count);
}

/// A restart after a transient error.
pub fn restart(pipeline: &str) {
    counter!(RESTARTS_TOTAL, "pipeline" => pipeline.to_owned()).increment(1);
}

/// WAL that the slot retains.
pub fn retained_wal(pipeline: &str, bytes: i64) {
    gauge!(RETAINED_WAL_BYTES, "pipeline" => pipeline.to_owned())
        .set(approximate(u64::try_from(bytes).unwrap_or(0)));
}

/// A gauge is a float: exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn approximate(value: u64) -> f64 {
    value as f64
}
