//! What a running pipeline says of itself, for `status`, /readyz and the metrics.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use serde::Serialize;

use crate::lsn::Lsn;

/// What a pipeline is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
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

/// Progress of the copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CopyProgress {
    /// Tables to copy in this round.
    pub tables: usize,
    /// Of those, done.
    pub tables_done: usize,
    /// Rows copied in this round.
    pub rows: u64,
    /// The catalog's estimate of all rows of this round.
    pub rows_estimated: u64,
}

/// A pipeline's state at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PipelineStatus {
    /// The pipeline's name: its slot's.
    pub pipeline: String,
    /// `kafka` or `file`.
    pub sink: &'static str,
    /// See [`State`].
    pub state: State,
    /// Confirmed to the source.
    pub confirmed_lsn: Lsn,
    /// Received from the source.
    pub received_lsn: Lsn,
    /// The source's end of WAL, as it last said.
    pub source_lsn: Lsn,
    /// Bytes handed to the sink and not durable.
    pub in_flight_bytes: u64,
    /// Age of the oldest change that was received and is not durable at the hub, in seconds.
    pub lag_seconds: f64,
    /// Events published since the process began.
    pub events: u64,
    /// Progress of the copy that runs, if one does.
    pub snapshot: Option<CopyProgress>,
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
    /// Of a pipeline that has not begun.
    pub fn new(pipeline: &str, sink: &'static str) -> Self {
        SharedStatus(Arc::new(Mutex::new(PipelineStatus {
            pipeline: pipeline.to_owned(),
            sink,
            ..Default::default()
        })))
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
    }

    /// Notes an error.
    pub fn note_error(&self, text: String) {
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
        self.update(|status| {
            status.last_error = Some(text);
            status.last_error_at = Some(seconds);
        });
    }

    /// A copy of it.
    pub fn read(&self) -> PipelineStatus {
        self.0.lock().expect("no holder panics").clone()
    }
}
