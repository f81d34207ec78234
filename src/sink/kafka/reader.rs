//! Reads committed events back, as any consumer would: for `walgate tail`.
//!
//! Comes in: topics and where to start. Goes out: values, in the order of each partition. Always
//! holds: only what is committed is seen, no group is joined and no offset stored, so that reading
//! changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::session::is_passing;
use super::{classify, deliveries, reader_config};
use crate::config::KafkaHub;
use crate::error::Result;

const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

/// Where reading a partition starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With its first event.
    Beginning,
    /// With the next one that comes.
    End,
}

/// A consumer's context. What librdkafka reports as an error, the end of a partition included, also comes as
/// the answer of `poll`: whoever polls judges it.
#[derive(Debug)]
pub(super) struct Reading;

impl ClientContext for Reading {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        deliveries::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
    }
}

impl ConsumerContext for Reading {}

/// See the module. All calls block.
pub struct Reader {
    brokers: String,
    consumer: BaseConsumer<Reading>,
    /// How many partitions of each topic are read.
    followed: BTreeMap<String, i32>,
}

impl Reader {
    /// Connects lazily: the first request finds out whether the brokers are there.
    ///
    /// # Errors
    /// Definite when the properties are wrong.
    pub fn open(hub: &KafkaHub) -> Result<Reader> {
        let mut config = reader_config(hub);
        // librdkafka wants a group for assigned partitions too; it is never joined.
        config
            .set("group.id", "walgate")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest");
        let consumer = config
            .create_with_context(Reading)
            .map_err(|error| classify("the Kafka client cannot be made", error))?;
        Ok(Reader { brokers: hub.brokers.clone(), consumer, followed: BTreeMap::new() })
    }

    /// The cluster's topics with their partitions; those without a leader are not there yet.
    ///
    /// # Errors
    /// Transient when the brokers cannot be reached.
    pub fn topics(&self) -> Result<BTreeMap<String, i32>> {
        let metadata = self
            .consumer
            .fetch_metadata(None, REQUEST_TIME_MAX)
            .map_err(|error| classify(&format!("brokers {}", self.brokers), error))?;
        let ready = metadata.topics().iter().filter(|topic| {
            !topic.name().starts_with("__")
                && topic.partitions().iter().all(|partition| partition.leader() >= 0)
        });
        Ok(ready
            .map(|topic| {
                (topic.name().to_owned(), i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX))
            })
            .collect())
    }

    /// Reads these topics too, as far as it does not yet; partitions that were added are new.
    ///
    /// # Errors
    /// Transient when the brokers cannot be reached.
    pub fn follow(&mut self, topics: &BTreeMap<String, i32>, start: Start) -> Result<()> {
        let doing = |topic: &str| format!("reading topic {topic}");
        for (topic, &count) in topics {
            let known = self.followed.get(topic).copied().unwrap_or(0);
            let mut new = TopicPartitionList::new();
            for partition in known..count {
                let offset = match start {
                    Start::Beginning => Offset::Beginning,
                    // Asked for now, not when the first fetch gets there: nothing after this is missed.
                    Start::End => {
                        let (_, end) = self
                            .consumer
                            .fetch_watermarks(topic, partition, REQUEST_TIME_MAX)
                            .map_err(|error| classify(&doing(topic), error))?;
                        Offset::Offset(end)
                    }
                };
                new.add_partition_offset(topic, partition, offset)
                    .map_err(|error| classify(&doing(topic), error))?;
            }
            if new.count() > 0 {
                self.consumer.incremental_assign(&new).map_err(|error| classify(&doing(topic), error))?;
                self.followed.insert(topic.clone(), count);
            }
        }
        Ok(())
    }

    /// Hands the next value to `take`; `None`: none came within `patience`. A tombstone's is
    /// `null`, as in the file hub.
    ///
    /// # Errors
    /// What librdkafka does not mend by itself, and the error of `take`.
    pub fn next<T>(&self, patience: Duration, take: impl FnOnce(&[u8]) -> Result<T>) -> Result<Option<T>> {
        match self.consumer.poll(patience) {
            Some(Ok(message)) => take(message.payload().unwrap_or(b"null")).map(Some),
            Some(Err(error)) if is_passing(&error) || is_of_deleted_topic(&error) => Ok(None),
            Some(Err(error)) => Err(classify("reading events", error)),
            None => Ok(None),
        }
    }
}

/// A topic that was deleted while it was read has no more events.
pub(super) fn is_of_deleted_topic(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
        )
    )
}
