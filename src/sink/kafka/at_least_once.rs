//! At least once: an idempotent producer for the events, and checkpoints after their acknowledgements.
//!
//! Always holds: a checkpoint speaks only of acknowledged batches, and is written through the
//! transactional producer, so that a fenced process cannot overwrite a newer one and a later change
//! to exactly-once finds a true one. It is written by a thread of its own, a few times a second:
//! its commit takes milliseconds for which no event should wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::deliveries::{Deliveries, NOT_COUNTED};
use super::session::{Session, connect};
use super::{classify, producer_config, too_large};
use crate::config::KafkaHub;
use crate::error::{Error, Result};
use crate::route::batch::{Batch, Event, Label, Labels, Moved, Progress};
use crate::sink::checkpoint::{Checkpoint, TableState};
use crate::sink::hub::HubTopics;
use crate::sink::{Durable, Sink, SinkLimits, Stop, label};

/// Events between two looks at what was acknowledged.
const EVENTS_A_POLL: usize = 1000;
/// Between two looks while too much is on its way.
const LOOK_TIME: Duration = Duration::from_micros(500);
/// Between two checkpoints under load.
const CHECKPOINT_TIME: Duration = Duration::from_millis(250);
/// Between two checkpoints when everything that was delivered is acknowledged: whoever waits for the
/// end of something waits for this one.
const LAST_CHECKPOINT_TIME: Duration = Duration::from_millis(20);
/// Between two looks while acknowledgements are missing.
const PATIENCE: Duration = Duration::from_millis(2);

/// How it is found out that a batch is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// Message by message.
    ByBatch,
    /// By the commit of the transaction around it.
    ByTransaction,
}

/// Turns batches into records.
#[derive(Debug)]
pub struct Producing {
    topics: Arc<HubTopics>,
    labels: Arc<Labels>,
    known: Vec<Arc<Label>>,
    /// Which of `known` have a topic that certainly exists.
    ensured: Vec<bool>,
    limits: SinkLimits,
    pub(super) stop: Stop,
}

impl Producing {
    /// Within `limits`, until told to stop.
    pub fn new(topics: Arc<HubTopics>, labels: Arc<Labels>, limits: SinkLimits, stop: Stop) -> Self {
        Producing { topics, labels, known: Vec::new(), ensured: Vec::new(), limits, stop }
    }

    /// Looks into an error of messages that were produced: see [`too_large`].
    pub(super) fn judge(&self, error: Error) -> Error {
        too_large::judge(&self.topics, error)
    }

    /// Hands all events of `batch` to librdkafka, in order.
    pub(super) fn produce(
        &mut self,
        producer: &BaseProducer<Deliveries>,
        batch: &Batch,
        counting: Counting,
    ) -> Result<()> {
        let sequence = match counting {
            Counting::ByTransaction => NOT_COUNTED,
            Counting::ByBatch => {
                let sequence = usize::try_from(batch.sequence).expect("a sequence number fits");
                producer.context().begin(sequence, batch.events.len());
                sequence
            }
        };
        for (nth, event) in batch.events.iter().enumerate() {
            let index = event.label.index();
            let label = label(&mut self.known, &self.labels, index);
            if !self.ensured.get(index).copied().unwrap_or(false) {
                self.topics.ensure(std::slice::from_ref(&label.topic))?;
                self.ensured.resize(self.ensured.len().max(index + 1), false);
                self.ensured[index] = true;
            }
            send(producer, batch, event, label, sequence)?;
            let is_full = producer.context().in_flight_bytes() > self.limits.in_flight_bytes_max;
            if nth % EVENTS_A_POLL == EVENTS_A_POLL - 1 || is_full {
                self.make_room(producer, is_full)?;
            }
        }
        Ok(())
    }

    /// Serves acknowledgements. Once too much is on its way, waits until a quarter of it is not: a
    /// look after every message would cost more than the message.
    fn make_room(&self, producer: &BaseProducer<Deliveries>, is_full: bool) -> Result<()> {
        let low = self.limits.in_flight_bytes_max / 4 * 3;
        loop {
            serve_acknowledgements(producer);
            if let Some(failure) = producer.context().take_failure() {
                return Err(failure);
            }
            if !is_full || producer.context().in_flight_bytes() <= low {
                return Ok(());
            }
            self.stop.check()?;
            std::thread::sleep(LOOK_TIME);
        }
    }
}

/// Serves the acknowledgements that are here, without waiting for any: the crate's own wait spins for
/// its last millisecond, on the core that librdkafka's thread needs.
pub(super) fn serve_acknowledgements(producer: &BaseProducer<Deliveries>) {
    loop {
        let before = producer.context().in_flight_bytes();
        producer.poll(Duration::ZERO);
        if producer.context().in_flight_bytes() == before {
            return;
        }
    }
}

fn send(
    producer: &BaseProducer<Deliveries>,
    batch: &Batch,
    event: &Event,
    label: &Label,
    sequence: usize,
) -> Result<()> {
    let (key, value) = (batch.part(&event.key), batch.part(&event.value));
    let mut record = BaseRecord::with_opaque_to(&label.topic, sequence)
        .key(key)
        .payload(value)
        .headers(headers(batch, event, label));
    if let Some(partition) = event.partition {
        record = record.partition(partition);
    }
    producer.send(record).map_err(|(error, _)| {
        // A producer that takes nothing any more has a failed message to tell of.
        producer.poll(Duration::ZERO);
        producer.context().take_failure().unwrap_or_else(|| {
            classify(&format!("topic {}, a message of {} bytes", label.topic, key.len() + value.len()), error)
        })
    })?;
    producer.context().sent(key.len() + value.len());
    Ok(())
}

fn headers(batch: &Batch, event: &Event, label: &Label) -> OwnedHeaders {
    let header = |key, value| Header { key, value: Some(value) };
    let mut headers = OwnedHeaders::new_with_capacity(7)
        .insert(header("id", batch.part(&event.id)))
        .insert(header("type", label.event_type.as_bytes()))
        .insert(header("aggregate-type", label.aggregate_type.as_bytes()))
        .insert(header("op", label.op.as_bytes()))
        .insert(header("content-type", b"application/json"));
    match &event.moved {
        Some(Moved::From(range)) => headers = headers.insert(header("moved-from", batch.part(range))),
        Some(Moved::To(range)) => headers = headers.insert(header("moved-to", batch.part(range))),
        None => {}
    }
    if let Some(range) = &event.traceparent {
        headers = headers.insert(header("traceparent", batch.part(range)));
    }
    headers
}

/// See the module.
pub struct AtLeastOnce {
    producer: BaseProducer<Deliveries>,
    producing: Producing,
    checkpointer: Checkpointer,
    /// Delivered, not yet in a checkpoint that was asked for; oldest first.
    waiting: VecDeque<Waiting>,
    /// How many at the front of `waiting` are acknowledged.
    acknowledged: usize,
    /// The batches of the checkpoint that is being written.
    being_stored: Option<Vec<Durable>>,
    last_asked_at: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    sequence: u64,
    progress: Progress,
    tables: Vec<TableState>,
}

impl AtLeastOnce {
    /// A sink that goes on from `checkpoint`.
    ///
    /// # Errors
    /// Definite when the properties are wrong.
    pub fn new(
        hub: &KafkaHub,
        session: Session,
        checkpoint: Checkpoint,
        producing: Producing,
    ) -> Result<Self> {
        Ok(AtLeastOnce {
            // A message that fails fails all behind it: else later events of its aggregate would overtake it.
            producer: connect(producer_config(hub).set("enable.gapless.guarantee", "true"))?,
            producing,
            checkpointer: Checkpointer::start(session, checkpoint)?,
            waiting: VecDeque::new(),
            acknowledged: 0,
            being_stored: None,
            last_asked_at: None,
        })
    }

    fn count_acknowledged(&mut self) -> Result<()> {
        serve_acknowledgements(&self.producer);
        if let Some(failure) = self.producer.context().take_failure() {
            return Err(failure);
        }
        while let Some(sequence) = self.producer.context().take_acknowledged() {
            let batch = self.waiting.get(self.acknowledged).expect("a delivered batch waits");
            assert_eq!(
                u64::try_from(sequence).ok(),
                Some(batch.sequence),
                "batches are acknowledged in order"
            );
            self.acknowledged += 1;
        }
        Ok(())
    }

    fn ask_for_checkpoint(&mut self) {
        let mut batches: Vec<Waiting> = self.waiting.drain(..self.acknowledged).collect();
        self.acknowledged = 0;
        let last = batches.last().expect("only asked when some are acknowledged").progress;
        let tables = batches.iter_mut().flat_map(|batch| std::mem::take(&mut batch.tables)).collect();
        let receipts =
            batches.iter().map(|batch| Durable::of(batch.sequence, batch.progress.safe_lsn)).collect();
        self.checkpointer.ask(last, tables);
        self.being_stored = Some(receipts);
        self.last_asked_at = Some(Instant::now());
    }
}

impl Sink for AtLeastOnce {
    fn accept(&mut self, batch: &Batch) -> Result<()> {
        self.waiting.push_back(Waiting {
            sequence: batch.sequence,
            progress: batch.progress,
            tables: batch.tables.clone(),
        });
        self.producing
            .produce(&self.producer, batch, Counting::ByBatch)
            .map_err(|error| self.producing.judge(error))
    }

    fn settle(&mut self, idle: bool, receipts: &mut Vec<Durable>) -> Result<()> {
        self.count_acknowledged().map_err(|error| self.producing.judge(error))?;
        if self.being_stored.is_some() && self.checkpointer.is_done()? {
            receipts.extend(self.being_stored.take().into_iter().flatten());
        }
        let is_last = idle && self.acknowledged == self.waiting.len();
        let pause = if is_last { LAST_CHECKPOINT_TIME } else { CHECKPOINT_TIME };
        let is_time = self.last_asked_at.is_none_or(|at| at.elapsed() >= pause);
        if self.being_stored.is_none() && self.acknowledged > 0 && is_time {
            crate::failpoint::hit("kafka.before-checkpoint");
            self.ask_for_checkpoint();
        }
        Ok(())
    }

    fn patience(&self) -> Option<Duration> {
        (!self.waiting.is_empty() || self.being_stored.is_some()).then_some(PATIENCE)
    }
}

/// Stores checkpoints on a thread of its own, one at a time.
#[derive(Debug)]
struct Checkpointer {
    requests: mpsc::Sender<(Progress, Vec<TableState>)>,
    answers: mpsc::Receiver<Result<()>>,
}

impl Checkpointer {
    fn start(mut session: Session, mut checkpoint: Checkpoint) -> Result<Self> {
        let (requests, receiver) = mpsc::channel::<(Progress, Vec<TableState>)>();
        let (sender, answers) = mpsc::channel();
        std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || {
                for (progress, tables) in receiver {
                    checkpoint.advance(&progress);
                    if sender.send(session.store(&checkpoint, &tables)).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| {
                Error::transient("the checkpoint's thread cannot be started").with_source(error)
            })?;
        Ok(Checkpointer { requests, answers })
    }

    fn ask(&self, progress: Progress, tables: Vec<TableState>) {
        // A thread that has gone is noticed by `is_done`.
        let _ = self.requests.send((progress, tables));
    }

    fn is_done(&self) -> Result<bool> {
        match self.answers.try_recv() {
            Ok(answer) => answer.map(|()| true),
            Err(mpsc::TryRecvError::Empty) => Ok(false),
            Err(mpsc::TryRecvError::Disconnected) => {
                Err(Error::transient("the checkpoint's thread has ended"))
            }
        }
    }
}
