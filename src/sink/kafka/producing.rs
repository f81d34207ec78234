//! From a batch to records, with no more on their way than memory allows.
//!
//! Comes in: batches. Goes out: records in librdkafka's queues, in the order of the batch. Always holds: what is on
//! its way is never thought to be less than it is. librdkafka tells how many messages are left, not how large they
//! are; so their bytes are bounded by what was sent, and by that number times the largest of them.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::deliveries::{Deliveries, NOT_COUNTED};
use super::{classify, too_large};
use crate::config::Format;
use crate::error::{Error, Result};
use crate::route::batch::{Batch, Event, Label, Labels, Moved, headers_of};
use crate::sink::hub::HubTopics;
use crate::sink::{SinkLimits, Stop, label};

/// Events between two looks for failures.
const EVENTS_A_POLL: usize = 1000;
/// Between two looks while too much is on its way.
const LOOK_TIME: Duration = Duration::from_micros(500);

/// How it is found out that a batch is acknowledged. Failures are reported either way.
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
    on_its_way: OnItsWay,
    pub(super) stop: Stop,
}

/// A bound of the bytes that are not acknowledged.
#[derive(Debug, Default)]
struct OnItsWay {
    bytes_max: usize,
    largest: usize,
}

impl OnItsWay {
    fn sent(&mut self, bytes: usize) {
        self.bytes_max += bytes;
        self.largest = self.largest.max(bytes);
    }

    /// So many messages are left.
    fn left(&mut self, messages: usize) {
        self.bytes_max = self.bytes_max.min(messages.saturating_mul(self.largest));
        if messages == 0 {
            *self = OnItsWay::default();
        }
    }
}

impl Producing {
    /// Within `limits`, until told to stop.
    pub fn new(topics: Arc<HubTopics>, labels: Arc<Labels>, limits: SinkLimits, stop: Stop) -> Self {
        let (known, ensured, on_its_way) = (Vec::new(), Vec::new(), OnItsWay::default());
        Producing { topics, labels, known, ensured, limits, on_its_way, stop }
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
        self.on_its_way.left(in_flight(producer));
        for (nth, event) in batch.events.iter().enumerate() {
            let index = event.label.index();
            let label = label(&mut self.known, &self.labels, index);
            if !self.ensured.get(index).copied().unwrap_or(false) {
                self.topics.ensure(std::slice::from_ref(&label.topic))?;
                self.ensured.resize(self.ensured.len().max(index + 1), false);
                self.ensured[index] = true;
            }
            self.on_its_way.sent(send(producer, batch, event, label, sequence)?);
            let is_full = self.on_its_way.bytes_max > self.limits.in_flight_bytes_max;
            if nth % EVENTS_A_POLL == EVENTS_A_POLL - 1 || is_full {
                self.make_room(producer)?;
            }
        }
        Ok(())
    }

    /// Serves what librdkafka reports. Once too much is on its way, waits until a quarter of it is not: a
    /// look after every message would cost more than the message.
    fn make_room(&mut self, producer: &BaseProducer<Deliveries>) -> Result<()> {
        let max = self.limits.in_flight_bytes_max;
        let mut low = max;
        loop {
            take_failure(producer)?;
            self.on_its_way.left(in_flight(producer));
            if self.on_its_way.bytes_max <= low {
                return Ok(());
            }
            low = max / 4 * 3;
            self.stop.check()?;
            std::thread::sleep(LOOK_TIME);
        }
    }
}

/// Messages that are not acknowledged, or whose report was not served.
pub(super) fn in_flight(producer: &BaseProducer<Deliveries>) -> usize {
    usize::try_from(producer.in_flight_count()).unwrap_or(0)
}

/// Serves the reports that are here, without waiting for any: the crate's own wait spins for its last
/// millisecond, on the core that librdkafka's thread needs.
///
/// # Errors
/// The first failure, if one was reported.
pub(super) fn take_failure(producer: &BaseProducer<Deliveries>) -> Result<()> {
    let context = producer.context();
    loop {
        let served = context.served();
        producer.poll(Duration::ZERO);
        if context.served() == served {
            break;
        }
    }
    context.take_failure(in_flight(producer) > 0).map_or(Ok(()), Err)
}

/// Why a message was not taken. A transaction that has failed takes none, and does not say why: the message that it
/// failed of does.
pub(super) fn not_taken(producer: &BaseProducer<Deliveries>, doing: &str, error: KafkaError) -> Error {
    take_failure(producer).err().unwrap_or_else(|| classify(doing, error))
}

/// Hands one event to librdkafka; returns its bytes.
fn send(
    producer: &BaseProducer<Deliveries>,
    batch: &Batch,
    event: &Event,
    label: &Label,
    sequence: usize,
) -> Result<usize> {
    let mut bytes = 0;
    let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(&label.topic, sequence)
        .headers(headers(batch, event, label));
    if let Some(key) = &event.key {
        bytes += key.len();
        record = record.key(batch.part(key));
    }
    if let Some(value) = &event.value
        && !event.is_tombstone
    {
        bytes += value.len();
        record = record.payload(batch.part(value));
    }
    if let Some(partition) = event.partition {
        record = record.partition(partition);
    }
    match producer.send(record) {
        Ok(()) => Ok(bytes),
        Err((error, _)) => {
            Err(not_taken(producer, &format!("topic {}, a message of {bytes} bytes", label.topic), error))
        }
    }
}

fn headers(batch: &Batch, event: &Event, label: &Label) -> OwnedHeaders {
    let header = |key, value| Header { key, value: Some(value) };
    let mut headers = OwnedHeaders::new_with_capacity(8)
        .insert(header("id", batch.part(&event.id)))
        .insert(header("type", label.event_type.as_bytes()))
        .insert(header("aggregate-type", label.aggregate_type.as_bytes()))
        .insert(header("op", label.op.as_bytes()));
    if event.value.is_some() && !event.is_tombstone {
        headers = headers.insert(header("content-type", label.format.content_type().as_bytes()));
    }
    let (from, to) = match label.format {
        Format::Outbox | Format::CloudEvents => ("moved-from", "moved-to"),
        Format::Debezium => ("__debezium.oldkey", "__debezium.newkey"),
    };
    match &event.moved {
        Some(Moved::From(range)) => headers = headers.insert(header(from, batch.part(range))),
        Some(Moved::To(range)) => headers = headers.insert(header(to, batch.part(range))),
        None => {}
    }
    if let Some(place) = event.claim_check() {
        headers = headers.insert(header("claim-check", place.as_bytes()));
    }
    if let Some(range) = &event.traceparent {
        headers = headers.insert(header("traceparent", batch.part(range)));
    }
    for (name, value) in headers_of(batch.part(&event.headers)) {
        headers = headers.insert(header(name, value));
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::OnItsWay;

    #[test]
    fn what_is_on_its_way_is_never_thought_to_be_less() {
        let mut on_its_way = OnItsWay::default();
        for bytes in [10, 1000, 10, 10] {
            on_its_way.sent(bytes);
        }
        on_its_way.left(4);
        assert_eq!(on_its_way.bytes_max, 1030, "no more than was sent");
        on_its_way.left(1);
        assert_eq!(on_its_way.bytes_max, 1000, "it may be the largest that is left");
        on_its_way.left(0);
        on_its_way.sent(10);
        assert_eq!(on_its_way.bytes_max, 10, "with nothing left the largest is forgotten");
    }
}
