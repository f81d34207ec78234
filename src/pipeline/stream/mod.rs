//! The stream: the one `select!` loop that joins reader, router, sink and ledger.
//!
//! Always holds:
//! - frames are taken in order, and a batch is cut only between two counted messages;
//! - the sink gets a batch as soon as it can take one (latency first); while it is busy, what
//!   arrives gathers in the next batch; a full batch stops the reader (back-pressure);
//! - nothing but a receipt moves what is confirmed, and the loop never waits for the sink alone, so
//!   that a status goes out at least every 10 s however long the sink takes (FIELD_NOTES 2).

mod reader;
mod tables;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::cadence::{self, Cadence, Moment};
use super::cleanup::Cleanup;
use super::filters::Asker;
use super::guard::{self, FirstTransaction};
use super::indexes::Indexes;
use super::inflow::Inflow;
use super::pump::{Pump, PumpSettings, Pumped};
use super::start::{STREAM_OPTIONS, Started};
use super::status::{Reading, State};
use super::{Ended, Pipeline, Wish, drain_wished};
use crate::engine::metrics;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lsn::Lsn;
use crate::route::batch::{Batch, More};
use crate::route::message::CAUGHT_UP_PREFIX;
use crate::sink::Outcome;
use crate::sink::checkpoint::{Identity, TableState};
use crate::wal::backlog::{Filled, Through};
use crate::wal::client::{Client, classify, connect};
use crate::wal::connection::{ReplicationConnection, ReplicationStream};
use crate::wal::lock::Lock;
use crate::wal::slot::{self, Decoding};
use crate::wal::timestamp::now;
use reader::Reader;

/// A status goes out at least this often, or three times in the source's `wal_sender_timeout`, which is 60 s by
/// default: while the sink is blocked nothing is read, so no request for a status is seen either.
const STATUS_TIME_MAX: Duration = Duration::from_secs(10);
/// In milliseconds; 0: the source does not mind.
const WAL_SENDER_TIMEOUT: &str =
    "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'";
/// A status that confirms more goes out at most this often under load: each one makes the server
/// write its slot to disk.
const STATUS_TIME_MIN: Duration = Duration::from_secs(1);
/// Without a byte from the server for so long, it is asked for one ...
const SILENCE_TIME_MAX: Duration = Duration::from_secs(20);
/// ... and after so long the connection is given up.
const RECEIVE_TIME_MAX: Duration = Duration::from_secs(45);
/// With so much WAL behind what was received, more is coming, in bytes.
const BEHIND_BYTES: u64 = 4 << 20;
const TICK: Duration = Duration::from_millis(200);
/// The publication's tables are compared with the rules this often.
const TABLES_TIME: Duration = Duration::from_secs(10);
/// The pause between two reads of a backlog: a reader that drains the socket at every wake-up makes
/// the walsender send row by row (DESIGN section 8, point 2).
const PACE: Duration = Duration::from_micros(500);
/// After this long without bytes, what was thought to be a backlog is none.
const BACKLOG_OVER_TIME: Duration = Duration::from_millis(1);

/// Streams until asked to end, caught up, or failed.
///
/// # Errors
/// Any; see [`Pipeline::run`].
pub async fn run(
    pipeline: &Pipeline,
    started: Started,
    lock: &Lock,
    wish: &mut watch::Receiver<Wish>,
) -> Result<Ended> {
    let mut stream = Stream::open(pipeline, started).await?;
    pipeline.status.enter(State::Streaming);
    let ended = tokio::select! {
        biased;
        error = lock.lost() => Err(error),
        ended = stream.follow(wish, lock) => ended,
    };
    let outcome = match ended {
        // What it waited for is durable. What is in flight may be of a transaction whose end is far: it comes again.
        Ok(Ended::RangeDue) => Ok(Ended::RangeDue),
        Ok(ended) => stream.drain(lock).await.map(|()| ended),
        Err(error) => Err(error),
    };
    stream.reader.close().await;
    outcome
}

struct Stream<'p> {
    pipeline: &'p Pipeline,
    started: Started,
    reader: Reader,
    pump: Pump,
    free: Vec<Batch>,
    clock: Instant,
    status_time: Duration,
    status_at: Instant,
    status_lsn: Lsn,
    received_at: Instant,
    asked_at: Option<Instant>,
    checkpoint_at: Instant,
    cadence: Cadence,
    tables_at: Instant,
    asker: Asker,
    indexes: Indexes,
    cleanup: Cleanup,
}

impl<'p> Stream<'p> {
    async fn open(pipeline: &'p Pipeline, started: Started) -> Result<Stream<'p>> {
        let slot_name = &pipeline.slot;
        free_slot(&started.client, slot_name).await?;
        let confirmed = confirmed_lsn(&started.client, slot_name).await?;
        let safe_lsn = started.checkpoint.safe_lsn;
        let (reader, status_time) = match reader::backlog(pipeline, &started.client, safe_lsn).await? {
            Some(backlog) => {
                not_moved_by_others(pipeline, &started.client, safe_lsn).await?;
                (Reader::Backlog { backlog: Box::new(backlog), next: None }, STATUS_TIME_MAX)
            }
            // From 0/0, so from what is confirmed: the transaction of the checkpoint is sent again where
            // it can be, and so a source with another history shows itself.
            None => {
                let (stream, status_time) = start_stream(pipeline, &started, Lsn::ZERO, safe_lsn).await?;
                (Reader::Stream(stream), status_time)
            }
        };
        pipeline.status.update(|status| status.reader = reading(&reader));
        let caught_up = match pipeline.until_caught_up {
            true => Some(emit_target(pipeline).await?),
            false => None,
        };
        failpoint::hit("stream.after-start");
        let first = FirstTransaction::expected(
            &started.checkpoint,
            confirmed,
            started.stored_options == started.checkpoint.identity.options,
        );
        let settings = PumpSettings {
            source_name: pipeline.source_name.clone(),
            slot: slot_name.clone(),
            topic: pipeline.config.hub.topic.clone(),
            events: pipeline.events.clone(),
            takes_messages: pipeline.replica.is_none(),
        };
        let now = Instant::now();
        Ok(Stream {
            indexes: Indexes::new(pipeline, &started),
            cleanup: Cleanup::begin(pipeline, &started),
            pump: Pump::new(&settings, started.labels.clone(), &started.checkpoint, first, caught_up)?,
            pipeline,
            started,
            reader,
            free: Vec::new(),
            clock: now,
            status_time,
            status_at: now,
            status_lsn: Lsn::ZERO,
            received_at: now,
            asked_at: None,
            checkpoint_at: now,
            cadence: Cadence::default(),
            tables_at: now,
            asker: Asker::default(),
        })
    }

    async fn follow(&mut self, wish: &mut watch::Receiver<Wish>, lock: &Lock) -> Result<Ended> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let batches = self.started.worker.batches.clone();
        let mut inflow = Inflow::default();
        let mut has_backlog = false;
        loop {
            let is_full = match self.pump.pump(&mut self.reader)? {
                Pumped::Full => true,
                Pumped::Dry => false,
                Pumped::Relation(relation) => {
                    if self.install(relation).await? {
                        continue;
                    }
                    return Ok(Ended::TablesChanged);
                }
                Pumped::Resync(oids) => {
                    let states = oids.iter().filter_map(|oid| self.started.states.get(oid));
                    let undone: Vec<TableState> =
                        states.map(|state| TableState { parked: None, ..state.undone() }).collect();
                    tracing::info!(tables = undone.len(), "tables are copied again, as asked");
                    self.pump.store(undone);
                    continue;
                }
                Pumped::ResyncDue => return Ok(Ended::TablesChanged),
                Pumped::Truncate(truncate) => {
                    let partitions = self.partitions(&truncate.relations).await?;
                    self.pump.truncate(&truncate, &partitions)?;
                    continue;
                }
            };
            self.heed_notices()?;
            if self.pump.take_reply_request() {
                self.cadence.asked();
                self.send_status(false).await?;
            }
            let range_due_at = self.started.range_due_at();
            if range_due_at.is_some_and(|due_at| self.started.ledger.confirmed_lsn() >= due_at) {
                return Ok(Ended::RangeDue);
            }
            if range_due_at.is_none()
                && self.pump.is_caught_up(self.started.ledger.confirmed_lsn())
                && self.indexes.are_done()
                && self.cleanup.is_done(self.pump.target_lsn())
            {
                return Ok(Ended::CaughtUp);
            }
            if !is_full && self.reader.over().is_some() && self.go_on_by_stream().await? {
                continue;
            }
            if is_full {
                // Not read, so not silent: it is the sink that keeps us.
                self.received_at = Instant::now();
                self.asked_at = None;
            }
            let since_checkpoint = self.checkpoint_at.elapsed();
            let moment = Moment { is_full, has_backlog, since_checkpoint };
            // Nothing else may come: what was received is made durable as soon as that is enough.
            let is_enough = range_due_at.is_some_and(|due_at| {
                self.started.ledger.handed_lsn() < due_at && self.pump.safe_lsn() >= due_at
            });
            let cut = is_enough || self.cadence.is_cut_due(&self.pump, &self.started.ledger, moment);
            let lacks_room = self.pump.lacks_room();
            tokio::select! {
                biased;
                () = drain_wished(wish) => return Ok(Ended::Drained),
                _ = ticks.tick() => {
                    if self.tick(lock).await? {
                        return Ok(Ended::TablesChanged);
                    }
                }
                outcome = self.started.worker.outcomes.recv() => self.take(outcome).await?,
                permit = batches.reserve(), if cut => {
                    let permit = permit.map_err(|_| Error::transient("the sink has ended"));
                    match permit {
                        Ok(permit) => {
                            self.decide().await?;
                            let empty = self.free.pop().unwrap_or_default();
                            let batch = self.hand_over(empty, self.more(is_full || has_backlog));
                            self.checkpoint_at = Instant::now();
                            permit.send(batch);
                        }
                        Err(ended) => return Err(self.sink_error(ended).await),
                    }
                }
                filled = self.reader.fill(&self.pipeline.avoids_sql), if !is_full => {
                    let bytes = match filled? {
                        Filled::Bytes(bytes) => bytes,
                        Filled::Through(through) => {
                            self.start_next(&through).await?;
                            continue;
                        }
                    };
                    self.received_at = Instant::now();
                    self.asked_at = None;
                    metrics::bytes_read(&self.pipeline.slot, bytes);
                    if self.reader.is_backlog() {
                        // It comes in bulk, from a thread that drains the socket.
                        has_backlog = true;
                        tokio::task::yield_now().await;
                        continue;
                    }
                    has_backlog = inflow.received(bytes, self.clock.elapsed());
                    if has_backlog {
                        // Shorter than a timer's tick, and this thread is the pipeline's own.
                        std::thread::sleep(PACE);
                        // The lock's connection and the other tasks of this thread have their turn.
                        tokio::task::yield_now().await;
                    }
                }
                () = self.pump.room(), if lacks_room => {}
                () = tokio::time::sleep(BACKLOG_OVER_TIME), if has_backlog && !is_full => has_backlog = false,
            }
        }
    }

    /// Has the source answer what only it can say of the batch's rows.
    async fn decide(&mut self) -> Result<()> {
        let Stream { asker, started, pump, reader, status_time, status_at, .. } = self;
        let Some(batch) = pump.undecided() else { return Ok(()) };
        let confirmed = started.ledger.confirmed_lsn();
        let received = pump.received_lsn();
        let answers = {
            let mut answering = std::pin::pin!(asker.answers(&mut started.client, batch));
            loop {
                tokio::select! {
                    answers = &mut answering => break answers?,
                    // The source's own time-out goes on meanwhile.
                    () = tokio::time::sleep(*status_time) => {
                        reader.confirm(received, confirmed, false).await?;
                        *status_at = Instant::now();
                    }
                }
            }
        };
        pump.decide(&answers)
    }

    /// Goes on by the stream, all of the backlog being taken; false: it is not time yet.
    async fn go_on_by_stream(&mut self) -> Result<bool> {
        if !self.reader.go_on().await {
            let ledger = &self.started.ledger;
            if !(ledger.is_empty() && cadence::is_all_handed(&self.pump, ledger)) {
                self.cadence.asked();
                return Ok(false);
            }
            // All of it is durable: the slot can be moved there.
            self.reader.finish(ledger.confirmed_lsn()).await;
            let over = self.reader.over().cloned().expect("it was asked before");
            self.start_next(&over).await?;
            self.reader.go_on().await;
        }
        self.pump.skip_received();
        self.received_at = Instant::now();
        self.pipeline.status.update(|status| status.reader = Reading::Stream);
        Ok(true)
    }

    /// Starts the stream that goes on behind the backlog.
    async fn start_next(&mut self, through: &Through) -> Result<()> {
        let Stream { pipeline, started, reader, status_time, .. } = self;
        failpoint::hit("backlog.before-stream");
        free_slot(&started.client, &pipeline.slot).await?;
        let Through { read_to, why } = through;
        tracing::info!(pipeline = pipeline.slot, %read_to, "reading by the stream from there on: {why}");
        let confirmed = started.ledger.confirmed_lsn();
        let (stream, time) = start_stream(pipeline, started, *read_to, confirmed).await?;
        *status_time = time;
        reader.will_go_on_by(stream);
        Ok(())
    }

    fn more(&self, is_waiting: bool) -> More {
        let source_lsn = self.pipeline.status.source_lsn();
        if source_lsn.bytes_since(self.pump.received_lsn()) >= BEHIND_BYTES {
            return More::Certain;
        }
        if is_waiting { More::Likely } else { More::Unknown }
    }

    fn hand_over(&mut self, empty: Batch, more: More) -> Batch {
        let now = self.clock.elapsed();
        cadence::hand_over(&mut self.pump, &mut self.started.ledger, empty, more, now)
    }

    async fn take(&mut self, outcome: Option<Outcome>) -> Result<()> {
        match outcome {
            Some(Outcome::Durable(receipt)) => {
                let confirmed = self.started.ledger.settle(receipt.sequence(), receipt.safe_lsn());
                self.pipeline.status.update(|status| status.confirmed_lsn = confirmed);
                let Started { labels, targets, .. } = &self.started;
                self.pump.count_delivered(labels, targets, &self.pipeline.status);
                self.cleanup.tell(confirmed, self.pump.outbox_rows());
                if self.cadence.settled(&self.pump, &self.started.ledger) {
                    self.send_status(false).await?;
                }
                Ok(())
            }
            Some(Outcome::Returned(batch)) => {
                self.free.push(batch);
                Ok(())
            }
            Some(Outcome::Failed(error)) => Err(error),
            None => Err(Error::transient("the sink has ended")),
        }
    }

    /// The reason why the sink does not take batches any more.
    async fn sink_error(&mut self, otherwise: Error) -> Error {
        while let Some(outcome) = self.started.worker.outcomes.recv().await {
            if let Outcome::Failed(error) = outcome {
                return error;
            }
        }
        otherwise
    }

    /// What is due by time; true: tables have come that must be copied first.
    async fn tick(&mut self, lock: &Lock) -> Result<bool> {
        if !lock.is_held() {
            return Err(Error::transient("the lock on the source is not certain any more"));
        }
        let confirms_more = self.started.ledger.confirmed_lsn() > self.status_lsn;
        let since = self.status_at.elapsed();
        if since >= self.status_time || (confirms_more && since >= STATUS_TIME_MIN) {
            self.send_status(false).await?;
        }
        if self.reader.is_backlog() {
            // The server decodes a chunk before it sends any of it; that it is there, the lock's connection says.
            self.received_at = Instant::now();
        }
        let silence = self.received_at.elapsed();
        if silence >= RECEIVE_TIME_MAX {
            return Err(Error::transient(format!("the source has sent nothing for {} s", silence.as_secs())));
        }
        if silence >= SILENCE_TIME_MAX && self.asked_at.is_none() {
            self.asked_at = Some(Instant::now());
            self.send_status(true).await?;
        }
        self.publish_figures();
        self.indexes.go_on(self.pipeline, self.started.ledger.confirmed_lsn());
        if self.tables_at.elapsed() >= TABLES_TIME {
            self.tables_at = Instant::now();
            return self.compare_tables().await;
        }
        Ok(false)
    }

    /// PostgreSQL 18 only warns of a publication that the WAL does not know yet, and then drops
    /// changes without a word; earlier versions fail (FIELD_NOTES 2).
    fn heed_notices(&mut self) -> Result<()> {
        for notice in self.reader.take_notices() {
            if notice.message.contains("publication") {
                return Err(Error::definite(format!("slot {}: changes would be missing", self.pipeline.slot))
                    .with_source(notice)
                    .with_hint("the publication is younger than the slot: remove the pipeline with `walgate drop`, then start anew with a copy"));
            }
            tracing::warn!(
                severity = notice.severity,
                code = notice.code,
                "notice of the source: {}",
                notice.message
            );
        }
        Ok(())
    }

    fn publish_figures(&self) {
        let ledger = &self.started.ledger;
        let (received_lsn, source_lsn) = (self.pump.received_lsn(), self.pump.source_lsn());
        let lag_since = self.pump.oldest_change_at();
        self.pipeline
            .status
            .in_flight(ledger.in_flight_bytes(), ledger.oldest_unconfirmed(self.clock.elapsed()));
        self.pipeline.status.update(|status| {
            status.received_lsn = received_lsn;
            status.source_lsn = status.source_lsn.max(source_lsn);
            status.lag_since = lag_since;
        });
    }

    async fn send_status(&mut self, reply_requested: bool) -> Result<()> {
        failpoint::hit("stream.before-status");
        let confirmed = self.started.ledger.confirmed_lsn();
        self.reader.confirm(self.pump.received_lsn(), confirmed, reply_requested).await?;
        self.status_at = Instant::now();
        self.status_lsn = confirmed;
        failpoint::hit("stream.after-status");
        Ok(())
    }

    /// Delivers what was received, waits for its receipts and confirms it, within `drain_timeout`.
    async fn drain(&mut self, lock: &Lock) -> Result<()> {
        self.pipeline.status.enter(State::Draining);
        let limit = self.pipeline.config.limits.drain_timeout;
        let drained = tokio::time::timeout(limit, self.finish(lock)).await;
        match drained {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!(
                    ?limit,
                    in_flight_bytes = self.started.ledger.in_flight_bytes(),
                    "not everything became durable in time; the next start goes on from the checkpoint"
                );
                Ok(())
            }
        }
    }

    async fn finish(&mut self, lock: &Lock) -> Result<()> {
        let batches = self.started.worker.batches.clone();
        let mut is_cut = false;
        self.decide().await?;
        while !(is_cut && self.started.ledger.is_empty()) {
            is_cut |= cadence::is_all_handed(&self.pump, &self.started.ledger);
            if is_cut && (self.started.ledger.is_empty() || self.pump.waits_in_vain()) {
                break;
            }
            tokio::select! {
                biased;
                error = lock.lost() => return Err(error),
                outcome = self.started.worker.outcomes.recv() => self.take(outcome).await?,
                permit = batches.reserve(), if !is_cut => {
                    let Ok(permit) = permit else { return Err(Error::transient("the sink has ended")) };
                    permit.send(self.hand_over(Batch::default(), More::Unknown));
                    is_cut = true;
                }
            }
        }
        self.send_status(false).await?;
        self.reader.finish(self.started.ledger.confirmed_lsn()).await;
        Ok(())
    }
}

/// Starts the stream at `start`, 0/0 for where the slot is confirmed; how often it wants a status.
///
/// # Errors
/// Transient: what is reached now is not the server that was read up to `start`; the next attempt looks closer.
async fn start_stream(
    pipeline: &Pipeline,
    started: &Started,
    start: Lsn,
    safe_lsn: Lsn,
) -> Result<(ReplicationStream, Duration)> {
    let slot_name = &pipeline.slot;
    let mut replication = ReplicationConnection::connect(&pipeline.url, &pipeline.application_name()).await?;
    replication.limit_rows(pipeline.row_bytes_max());
    let status_time = status_time(&mut replication).await?;
    slot::allow_memory(&mut replication, pipeline.config.source.decoding_memory_bytes_max, Decoding::Stream)
        .await?;
    if start > Lsn::ZERO {
        is_same_server(&mut replication, &started.checkpoint.identity, start).await?;
    }
    let publication_names = pipeline.publications.option();
    let mut options = STREAM_OPTIONS.to_vec();
    options.push(("publication_names", &publication_names));
    let stream = replication
        .start_replication(slot_name, start, &options)
        .await
        .map_err(|error| error.context(format_args!("slot {slot_name}")))?;
    not_moved_by_others(pipeline, &started.client, safe_lsn).await?;
    Ok((stream, status_time))
}

/// A stream that begins behind what is confirmed skips what lies between, so it must be what was read: a promotion has
/// another timeline, a restored disk ends before it.
async fn is_same_server(replication: &mut ReplicationConnection, known: &Identity, start: Lsn) -> Result<()> {
    let rows = replication.query("IDENTIFY_SYSTEM").await?;
    let field = |at: usize| rows.first()?.get(at)?.as_deref();
    let flushed = field(2).and_then(|text| text.parse::<Lsn>().ok());
    let is_same = field(0) == Some(&known.system_identifier)
        && field(1) == Some(&known.timeline.to_string())
        && flushed >= Some(start);
    match is_same {
        true => Ok(()),
        false => Err(Error::transient("the source is not the server any more whose backlog was read")),
    }
}

async fn not_moved_by_others(pipeline: &Pipeline, client: &Client, safe_lsn: Lsn) -> Result<()> {
    let confirmed = confirmed_lsn(client, &pipeline.slot).await?;
    guard::not_moved_by_others(&pipeline.slot, confirmed, safe_lsn)
}

fn reading(reader: &Reader) -> Reading {
    if reader.is_backlog() { Reading::Sql } else { Reading::Stream }
}

/// Who holds the lock may end a walsender that a vanished predecessor left behind: it would live on
/// for `wal_sender_timeout` (EXACTLY_ONCE.md, "Who runs").
async fn free_slot(client: &Client, slot_name: &str) -> Result<()> {
    const TERMINATE: &str = "SELECT pg_catalog.pg_terminate_backend(s.active_pid, 5000) \
    FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
    WHERE s.slot_name = $1 AND a.usename = CURRENT_USER";
    let ended = client.query(TERMINATE, &[&slot_name]).await.map_err(classify)?;
    if !ended.is_empty() {
        tracing::warn!(slot = slot_name, "ended a predecessor's walsender");
    }
    Ok(())
}

/// How often a status must go out on this connection: the setting may be the role's or the database's own.
async fn status_time(replication: &mut ReplicationConnection) -> Result<Duration> {
    let rows = replication.query(WAL_SENDER_TIMEOUT).await?;
    let setting = rows.first().and_then(|row| row.first().cloned().flatten());
    let limit_ms = setting.and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(match limit_ms {
        0 => STATUS_TIME_MAX,
        limit_ms => STATUS_TIME_MAX.min(Duration::from_millis(limit_ms) / 3),
    })
}

async fn confirmed_lsn(client: &Client, slot_name: &str) -> Result<Lsn> {
    let state = slot::state(client, slot_name).await?;
    state
        .and_then(|state| state.confirmed_flush_lsn)
        .ok_or_else(|| Error::transient(format!("slot {slot_name} is gone")))
}

/// Marks the end of what `--until-caught-up` waits for: a transactional message behind everything
/// that is committed now (FIELD_NOTES 2: an LSN from a function can lie past the last record).
async fn emit_target(pipeline: &Pipeline) -> Result<String> {
    let client = connect(&pipeline.url, &pipeline.application_name()).await?;
    let nonce = format!("{}/{}/{}", pipeline.slot, std::process::id(), now().0);
    client
        .execute(
            "SELECT pg_catalog.pg_logical_emit_message(true, $1::text, $2::text)",
            &[&CAUGHT_UP_PREFIX, &nonce],
        )
        .await
        .map_err(|error| classify(error).context("the message that marks the end cannot be written"))?;
    Ok(nonce)
}
