//! What a running pipeline says of itself, for `status`, /readyz and the metrics.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;

/// What a pipeline is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Connecting, comparing, making what is missing.
    #[default]
    Starting,
    /// Another process runs it; this one waits.
    Standby,
    /// Copying tables.
    Snapshot,
    /// Delivering the stream.
    Streaming,
    /// Waiting to try again after a transient error.
    Backoff,
    /// Finishing what is in flight.
    Draining,
    /// Ended: by a definite error, or done.
    Stopped,
}

impl State {
    /// Its name in JSON and text.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Standby => "standby",
            State::Snapshot => "snapshot",
            State::Streaming => "streaming",
            State::Backoff => "backoff",
            State::Draining => "draining",
            State::Stopped => "stopped",
        }
    }

    /// Whether events are on their way.
    pub fn is_delivering(self) -> bool {
        matches!(self, State::Streaming | State::Snapshot)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the slot is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reading {
    /// By the walsender's stream.
    #[default]
    Stream,
    /// A backlog, by the SQL functions of logical decoding.
    Sql,
}

/// Progress of the copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Tables to copy in this round.
    pub tables: usize,
    /// Of those, done.
    pub tables_done: usize,
    /// Rows copied in this round; of tables that are copied in ranges, in all.
    pub rows: u64,
    /// The catalog's estimate of all rows of this round.
    pub rows_estimated: u64,
    /// Where a table is copied in ranges of its key, between which the stream goes on: how many are copied.
    #[serde(default)]
    pub ranges: u64,
}

/// A table that is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedTable {
    /// Its OID on the source.
    pub oid: u32,
    /// `schema.table` on the source.
    pub table: String,
    /// What was wrong.
    pub reason: String,
    /// What mends it.
    pub remedy: Option<String>,
    /// When it was parked, seconds since 1970.
    pub since: u64,
    /// A copy tries to bring it back.
    pub is_tried: bool,
}

/// A pipeline's state at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PipelineStatus {
    /// The pipeline's name: its slot's.
    pub pipeline: String,
    /// `source.name`.
    pub source: String,
    /// `host:port/database` of the source.
    pub source_address: String,
    /// `kafka` or `file`.
    pub sink: Cow<'static, str>,
    /// See [`State`].
    pub state: State,
    /// How its changes are read.
    pub reader: Reading,
    /// Confirmed to the source.
    pub confirmed_lsn: Lsn,
    /// Received from the source.
    pub received_lsn: Lsn,
    /// The source's end of WAL, as it last said.
    pub source_lsn: Lsn,
    /// Bytes handed to the sink and not durable.
    pub in_flight_bytes: u64,
    /// Age of the oldest change that was received and is not durable at the hub, in seconds; while
    /// the pipeline backs off, of the moment since when nothing has become durable.
    pub lag_seconds: f64,
    /// Where `lag_seconds` counts from.
    #[serde(skip)]
    pub lag_since: Option<SystemTime>,
    /// Age of the oldest delivery that is not durable, in seconds.
    pub oldest_unconfirmed_seconds: f64,
    /// Where `oldest_unconfirmed_seconds` counts from.
    #[serde(skip)]
    pub oldest_unconfirmed_since: Option<SystemTime>,
    /// WAL that the source keeps because of the slot, in bytes.
    pub retained_wal_bytes: u64,
    /// Events published since the process began.
    pub events: u64,
    /// Rows applied on a replica since the process began.
    pub rows_applied: u64,
    /// Progress of the copy that runs, if one does.
    pub snapshot: Option<CopyProgress>,
    /// Tables that are left out, and why.
    pub parked_tables: Vec<ParkedTable>,
    /// The last error, with its remedy.
    pub last_error: Option<String>,
    /// When the last error was, seconds since 1970.
    pub last_error_at: Option<u64>,
    /// Restarts after transient errors.
    pub restarts: u64,
}

impl PipelineStatus {
    /// How far the source is ahead, in bytes.
    pub fn lag_bytes(&self) -> u64 {
        self.source_lsn.bytes_since(self.confirmed_lsn)
    }
}

/// The shared handle.
#[derive(Clone, Debug, Default)]
pub struct SharedStatus(Arc<Mutex<PipelineStatus>>);

impl SharedStatus {
    /// Of a pipeline that has not begun; `status` says which.
    pub fn new(status: PipelineStatus) -> Self {
        SharedStatus(Arc::new(Mutex::new(status)))
    }

    /// Changes it.
    pub fn update(&self, change: impl FnOnce(&mut PipelineStatus)) {
        change(&mut self.0.lock().expect("no holder panics"));
    }

    /// Enters a new state; logged when it is one.
    pub fn enter(&self, state: State) {
        let mut status = self.0.lock().expect("no holder panics");
        if status.state != state {
            tracing::info!(pipeline = status.pipeline, from = ?status.state, to = ?state, "pipeline state");
            status.state = state;
        }
        if matches!(state, State::Starting | State::Standby | State::Backoff) {
            // What was in flight comes again from the checkpoint.
            status.in_flight_bytes = 0;
            status.oldest_unconfirmed_since = None;
        }
        match state {
            State::Backoff => drop(status.lag_since.get_or_insert_with(SystemTime::now)),
            State::Standby => status.lag_since = None,
            _ => {}
        }
    }

    /// The end of the source's WAL, as far as it is known.
    pub fn source_lsn(&self) -> Lsn {
        self.0.lock().expect("no holder panics").source_lsn
    }

    /// Notes what is in flight: bytes, and the age of the oldest delivery.
    pub fn in_flight(&self, bytes: u64, oldest: Duration) {
        let since = (bytes > 0).then(|| SystemTime::now().checked_sub(oldest)).flatten();
        self.update(|status| {
            status.in_flight_bytes = bytes;
            status.oldest_unconfirmed_since = since;
        });
    }

    /// Notes an error.
    pub fn note_error(&self, text: String) {
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
        self.update(|status| {
            status.last_error = Some(text);
            status.last_error_at = Some(seconds);
        });
    }

    /// A copy of it, with the ages of now.
    pub fn read(&self) -> PipelineStatus {
        let mut status = self.0.lock().expect("no holder panics").clone();
        let age = |since: Option<SystemTime>| {
            since.map_or(0.0, |since| since.elapsed().unwrap_or_default().as_secs_f64())
        };
        status.lag_seconds = age(status.lag_since);
        status.oldest_unconfirmed_seconds = age(status.oldest_unconfirmed_since);
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_grows_without_anybody_counting() {
        let shared = SharedStatus::default();
        assert_eq!(shared.read().lag_seconds, 0.0);
        shared.enter(State::Backoff);
        let first = shared.read().lag_seconds;
        std::thread::sleep(Duration::from_millis(5));
        shared.enter(State::Starting);
        assert!(shared.read().lag_seconds > first);
        shared.enter(State::Standby);
        assert_eq!(shared.read().lag_seconds, 0.0, "another process delivers");
    }

    #[test]
    fn what_was_in_flight_is_not_after_a_restart() {
        let shared = SharedStatus::default();
        shared.in_flight(5, Duration::from_secs(3));
        assert!(shared.read().oldest_unconfirmed_seconds >= 3.0);
        shared.enter(State::Backoff);
        assert_eq!((shared.read().in_flight_bytes, shared.read().oldest_unconfirmed_seconds), (0, 0.0));
    }

    #[test]
    fn a_state_is_written_as_it_is_named() {
        for state in [
            State::Starting,
            State::Standby,
            State::Snapshot,
            State::Streaming,
            State::Backoff,
            State::Draining,
            State::Stopped,
        ] {
            assert_eq!(serde_json::to_string(&state).expect("plain data"), format!("\"{state}\""));
        }
    }
}
