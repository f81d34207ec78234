//! The transactional producer and the checkpoint topic behind it.
//!
//! Order matters: `init_transactions` first, which fences a predecessor and ends what it had open;
//! only then is the checkpoint read, read_committed, to the end (EXACTLY_ONCE.md, "Who runs").

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::deliveries::{Deliveries, NOT_COUNTED};
use super::producing::{in_flight, not_taken, take_failure};
use super::reader::Reading;
use super::topics::Topics;
use super::{classify, producer_config, reader_config};
use crate::config::KafkaHub;
use crate::error::{Error, Result};
use crate::route::template::Topic;
use crate::sink::Stop;
use crate::sink::checkpoint::{Checkpoint, Stored, TableState};

/// The broker ends a transaction that is open for longer, in milliseconds.
const TRANSACTION_TIME_MAX_MS: &str = "60000";
/// How long one step of a transaction may take before the pipeline starts again.
const STEP_TIME_MAX: Duration = Duration::from_secs(70);
/// How long one wait within a step may be: then it is asked whether anybody still waits for it.
const SLICE_TIME: Duration = Duration::from_secs(1);
/// How long the first contact may take.
const INIT_TIME_MAX: Duration = Duration::from_secs(30);
/// Between two looks at messages on their way: well below what one round trip takes.
const LOOK_TIME: Duration = Duration::from_micros(200);

/// See the module. All calls block.
pub struct Session {
    pub(super) producer: BaseProducer<Deliveries>,
    /// `<source.name>.<slot name>`.
    name: String,
    checkpoint_topic: String,
    /// What the pipeline's record says, with every batch that was accepted.
    pub checkpoint: Option<Checkpoint>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Session {
    /// Fences predecessors and reads what they stored.
    ///
    /// # Errors
    /// Transient when the brokers cannot be reached, definite when they refuse.
    pub fn open(hub: &KafkaHub, topics: &Arc<Topics>, name: &str) -> Result<(Session, Stored)> {
        let checkpoint_topic = checkpoint_topic(name)?;
        topics.ensure_checkpoint(&checkpoint_topic)?;
        let producer = fence(hub, name, &checkpoint_topic)?;
        let (stored, consumer) = read(hub, &checkpoint_topic, name)?;
        // librdkafka takes 100 ms to end its threads.
        std::thread::spawn(move || drop(consumer));
        let session = Session {
            producer,
            name: name.to_owned(),
            checkpoint_topic,
            checkpoint: stored.checkpoint.clone(),
        };
        Ok((session, stored))
    }

    /// Stores the pipeline's record, in a transaction of its own.
    ///
    /// # Errors
    /// Fenced when another process has taken over.
    pub fn store(&mut self, checkpoint: &Checkpoint, tables: &[TableState]) -> Result<()> {
        self.begin()?;
        self.checkpoint = Some(checkpoint.clone());
        self.add_checkpoint(tables)?;
        self.commit(&Stop::default())
    }

    pub(super) fn begin(&self) -> Result<()> {
        self.producer.begin_transaction().map_err(|error| classify("a Kafka transaction cannot begin", error))
    }

    /// Adds the pipeline's record, and those of `tables`, to the open transaction.
    pub(super) fn add_checkpoint(&self, tables: &[TableState]) -> Result<()> {
        for table in tables {
            let key = format!("{}/table/{}", self.name, table.oid);
            self.add_record(&key, &serde_json::to_vec(table).expect("plain data"))?;
        }
        let checkpoint = self.checkpoint.as_ref().expect("a pipeline has a checkpoint before it delivers");
        self.add_record(&self.name, &serde_json::to_vec(checkpoint).expect("plain data"))
    }

    fn add_record(&self, key: &str, value: &[u8]) -> Result<()> {
        let record = BaseRecord::with_opaque_to(&self.checkpoint_topic, NOT_COUNTED)
            .partition(0)
            .key(key)
            .payload(value);
        let Err((error, _)) = self.producer.send(record) else { return Ok(()) };
        Err(not_taken(&self.producer, &format!("topic {}", self.checkpoint_topic), error))
    }

    /// Commits the open transaction: on return, everything in it is durable.
    pub(super) fn commit(&self, stop: &Stop) -> Result<()> {
        self.wait_for_deliveries(stop)?;
        crate::failpoint::hit("kafka.before-commit");
        let deadline = Instant::now() + STEP_TIME_MAX;
        loop {
            stop.check()?;
            match self.producer.commit_transaction(SLICE_TIME) {
                Ok(()) => break,
                // The commit goes on: the next call takes up its wait.
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
                Err(error) => return Err(classify("a Kafka transaction cannot be committed", error)),
            }
        }
        crate::failpoint::hit("kafka.after-commit");
        Ok(())
    }

    /// Waits until every message is acknowledged. librdkafka's own flush, as the crate wraps it,
    /// waits in steps of 100 ms.
    fn wait_for_deliveries(&self, stop: &Stop) -> Result<()> {
        let deadline = Instant::now() + STEP_TIME_MAX;
        loop {
            take_failure(&self.producer)?;
            if in_flight(&self.producer) == 0 {
                return Ok(());
            }
            stop.check()?;
            if Instant::now() > deadline {
                return Err(Error::transient("Kafka acknowledged nothing for too long"));
            }
            std::thread::sleep(LOOK_TIME);
        }
    }
}

/// The checkpoint topic of the pipeline `name`, in the form that Kafka allows.
///
/// # Errors
/// Definite when the name is too long.
pub fn checkpoint_topic(name: &str) -> Result<String> {
    let topic = Topic::legal(format!("{name}.checkpoint"));
    topic
        .map(|topic| topic.legal)
        .map_err(|error| Error::definite(error.to_string()).with_hint("shorten source.name"))
}

/// What is stored, without fencing anybody: for `status`.
///
/// # Errors
/// When the brokers cannot be reached.
pub fn peek(hub: &KafkaHub, topics: &Topics, name: &str) -> Result<Stored> {
    let topic = checkpoint_topic(name)?;
    if !topics.existing()?.contains_key(&topic) {
        return Ok(Stored::default());
    }
    read(hub, &topic, name).map(|(stored, _)| stored)
}

/// Removes the checkpoint: its whole topic; false: there was none. Fences first, so that a frozen
/// process that wakes up late writes nothing, and what it or a killed one had open is ended.
///
/// # Errors
/// When the brokers cannot be reached, or refuse.
pub fn forget(hub: &KafkaHub, topics: &Topics, name: &str) -> Result<bool> {
    let topic = checkpoint_topic(name)?;
    if !topics.existing()?.contains_key(&topic) {
        return Ok(false);
    }
    fence(hub, name, &topic)?;
    topics.remove(&topic)?;
    Ok(true)
}

/// Takes the transactional id, and with it every right to write as this pipeline.
fn fence(hub: &KafkaHub, name: &str, checkpoint_topic: &str) -> Result<BaseProducer<Deliveries>> {
    let mut config = producer_config(hub);
    config.set("transactional.id", name).set("transaction.timeout.ms", TRANSACTION_TIME_MAX_MS);
    let producer = connect(&config)?;
    let failed = |error| classify(&format!("the transactional id {name} cannot be taken"), error);
    // librdkafka asks again after 500 ms when no broker is connected as it looks for the coordinator. The first
    // answer comes from a bootstrap broker, which it then leaves; the second needs one of the cluster's.
    for _ in 0..2 {
        producer.client().fetch_metadata(Some(checkpoint_topic), INIT_TIME_MAX).map_err(failed)?;
    }
    producer.init_transactions(INIT_TIME_MAX).map_err(failed)?;
    Ok(producer)
}

pub(super) fn connect(config: &ClientConfig) -> Result<BaseProducer<Deliveries>> {
    config
        .create_with_context(Deliveries::default())
        .map_err(|error| classify("the Kafka client cannot be made", error))
}

/// Reads the checkpoint topic to its end; gives the consumer back, to be dropped.
fn read(hub: &KafkaHub, topic: &str, name: &str) -> Result<(Stored, BaseConsumer<Reading>)> {
    let doing = format!("reading topic {topic}");
    let mut config = reader_config(hub);
    config
        .set("group.id", "walgate")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        // The topic's end shows in an empty answer, for which the broker would wait 500 ms.
        .set("fetch.wait.max.ms", "5")
        .set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer<Reading> =
        config.create_with_context(Reading).map_err(|error| classify(&doing, error))?;
    // librdkafka asks again after 500 ms when the partition's leader is not known yet as it is assigned.
    consumer.fetch_metadata(Some(topic), INIT_TIME_MAX).map_err(|error| classify(&doing, error))?;
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, Offset::Beginning).map_err(|error| classify(&doing, error))?;
    consumer.assign(&assignment).map_err(|error| classify(&doing, error))?;
    let mut stored = Stored::default();
    let table_prefix = format!("{name}/table/");
    let mut deadline = Instant::now() + INIT_TIME_MAX;
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                deadline = Instant::now() + INIT_TIME_MAX;
                let (Some(key), Some(value)) = (message.key(), message.payload()) else { continue };
                let unreadable = |error: serde_json::Error| {
                    Error::definite(format!(
                        "topic {topic}, offset {}: this is no checkpoint",
                        message.offset()
                    ))
                    .with_source(error)
                    .with_hint("nothing but walgate may write to this topic; begin anew with `walgate drop`")
                };
                if key == name.as_bytes() {
                    stored.checkpoint = Some(serde_json::from_slice(value).map_err(unreadable)?);
                } else if key.starts_with(table_prefix.as_bytes()) {
                    let table: TableState = serde_json::from_slice(value).map_err(unreadable)?;
                    stored.tables.insert(table.oid, table);
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            Some(Err(error)) if is_passing(&error) => {}
            Some(Err(error)) => return Err(classify(&doing, error)),
            None if Instant::now() > deadline => return Err(Error::transient(format!("{doing}: no answer"))),
            None => {}
        }
    }
    Ok((stored, consumer))
}

/// What librdkafka reports and mends by itself.
pub(super) fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
        )
    )
}
