//! The metrics, by name (DESIGN section 7). Labels: `pipeline`, `sink`, `relation`.

use std::sync::Arc;

use metrics::{counter, describe_counter, describe_gauge, gauge};

use crate::pipeline::status::PipelineStatus;
use crate::route::batch::{Counts, Label, Labels};
use crate::route::row::{Target, Targets};

/// Events that are durable at the hub.
pub const EVENTS_TOTAL: &str = "walgate_events_total";
/// Rows that are durable on a replica.
pub const ROWS_APPLIED_TOTAL: &str = "walgate_rows_applied_total";
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
/// Objects stored in the claim store.
pub const CLAIMS_STORED_TOTAL: &str = "walgate_claims_stored_total";
/// Attempts to store an object that failed and are made again.
pub const CLAIM_FAILURES_TOTAL: &str = "walgate_claim_failures_total";
/// Messages that became dead letters.
pub const DEAD_LETTERS_TOTAL: &str = "walgate_dead_letters_total";
/// Conflicts on a replica, by kind.
pub use crate::sink::replica::CONFLICTS_TOTAL;
/// Restarts after transient errors.
pub const RESTARTS_TOTAL: &str = "walgate_restarts_total";
/// Tables that are left out until a copy brings them back.
pub const TABLES_PARKED: &str = "walgate_tables_parked";
/// 1 while the pipeline delivers.
pub const UP: &str = "walgate_up";

/// Says what each metric means, in the text that a scrape shows. Once, after the recorder is there.
pub fn describe() {
    describe_counter!(EVENTS_TOTAL, "Events that are durable at the hub, since the process began");
    describe_counter!(
        ROWS_APPLIED_TOTAL,
        "Row changes that are durable on a replica, since the process began"
    );
    describe_counter!(
        CONFLICTS_TOTAL,
        "Rows of a replica that were not as the source's change expected them"
    );
    describe_counter!(BYTES_READ_TOTAL, "Bytes received from the replication stream");
    describe_counter!(SNAPSHOT_ROWS_TOTAL, "Rows of copies that are durable at the destination");
    describe_counter!(CLAIMS_STORED_TOTAL, "Objects stored in the claim store, since the process began");
    describe_counter!(CLAIM_FAILURES_TOTAL, "Attempts to store an object that failed and are made again");
    describe_counter!(DEAD_LETTERS_TOTAL, "Messages that became dead letters");
    describe_counter!(
        CONFLICTS_TOTAL,
        "Rows of a replica that were not as the source's change said, by kind"
    );
    describe_counter!(RESTARTS_TOTAL, "Restarts after transient errors");
    describe_gauge!(LAG_BYTES, "WAL between what is confirmed and the source's end, in bytes");
    describe_gauge!(
        LAG_SECONDS,
        "Age of the oldest change that was received and is not durable; in back-off, time since nothing has become durable"
    );
    describe_gauge!(RETAINED_WAL_BYTES, "WAL that the source keeps because of the slot, in bytes");
    describe_gauge!(CONFIRMED_LSN, "What is confirmed to the source, as a number of bytes");
    describe_gauge!(IN_FLIGHT_BYTES, "Bytes handed to the sink and not durable");
    describe_gauge!(OLDEST_UNCONFIRMED_SECONDS, "Age of the oldest delivery that is not durable");
    describe_gauge!(
        TABLES_PARKED,
        "Tables that are parked: they get no changes until a copy brings them back"
    );
    describe_gauge!(UP, "1 while the pipeline copies or streams, else 0");
}

/// Enters every metric of a pipeline at zero, so that it is there before it first changes.
pub fn register(pipeline: &str) {
    let label = [("pipeline", pipeline.to_owned())];
    for name in
        [BYTES_READ_TOTAL, SNAPSHOT_ROWS_TOTAL, CLAIM_FAILURES_TOTAL, DEAD_LETTERS_TOTAL, RESTARTS_TOTAL]
    {
        counter!(name, &label).absolute(0);
    }
}

/// Sets every gauge of a pipeline.
pub fn publish(status: &PipelineStatus) {
    let pipeline = [("pipeline", status.pipeline.clone())];
    gauge!(LAG_BYTES, &pipeline).set(approximate(status.lag_bytes()));
    gauge!(LAG_SECONDS, &pipeline).set(status.lag_seconds);
    gauge!(RETAINED_WAL_BYTES, &pipeline).set(approximate(status.retained_wal_bytes));
    gauge!(CONFIRMED_LSN, &pipeline).set(approximate(status.confirmed_lsn.0));
    gauge!(IN_FLIGHT_BYTES, "pipeline" => status.pipeline.clone(), "sink" => status.sink.to_string())
        .set(approximate(status.in_flight_bytes));
    gauge!(OLDEST_UNCONFIRMED_SECONDS, "pipeline" => status.pipeline.clone(), "sink" => status.sink.to_string())
        .set(status.oldest_unconfirmed_seconds);
    gauge!(TABLES_PARKED, &pipeline).set(approximate(status.parked_tables.len() as u64));
    gauge!(UP, &pipeline).set(f64::from(u8::from(status.state.is_delivering())));
}

/// What was counted of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// All its events.
    pub events: u64,
    /// Of those, rows of a copy.
    pub rows_read: u64,
    /// Rows of a replica.
    pub rows: u64,
}

/// Counts what a batch that is durable held.
pub fn delivered(pipeline: &str, labels: &Labels, targets: &Targets, counts: &Counts) -> Delivered {
    let mut delivered = Delivered::default();
    if !counts.events.is_empty() {
        let mut known: Vec<Arc<Label>> = Vec::new();
        labels.refresh(&mut known);
        for (label, count) in &counts.events {
            let label = known.get(label.index()).expect("a label is interned before it is used");
            events(pipeline, &label.relation, *count);
            delivered.events += count;
            delivered.rows_read += if label.op == "read" { *count } else { 0 };
        }
    }
    if !counts.rows.is_empty() {
        let mut known: Vec<Arc<Target>> = Vec::new();
        targets.refresh(&mut known);
        for (target, count) in &counts.rows {
            let target = known.get(target.index()).expect("a target is interned before it is used");
            rows_applied(pipeline, &target.relation, *count);
            delivered.rows += count;
        }
    }
    delivered
}

/// Rows of one relation that are durable on a replica.
pub fn rows_applied(pipeline: &str, relation: &str, count: u64) {
    counter!(ROWS_APPLIED_TOTAL, "pipeline" => pipeline.to_owned(), "relation" => relation.to_owned())
        .increment(count);
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

/// An object of the claim store.
pub fn claim_stored(pipeline: &str, relation: &str) {
    counter!(CLAIMS_STORED_TOTAL, "pipeline" => pipeline.to_owned(), "relation" => relation.to_owned())
        .increment(1);
}

/// An attempt to store one that failed.
pub fn claim_failed(pipeline: &str) {
    counter!(CLAIM_FAILURES_TOTAL, "pipeline" => pipeline.to_owned()).increment(1);
}

/// A restart after a transient error.
pub fn restart(pipeline: &str) {
    counter!(RESTARTS_TOTAL, "pipeline" => pipeline.to_owned()).increment(1);
}

/// A gauge is a float: exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn approximate(value: u64) -> f64 {
    value as f64
}
