//! Reads a topic from its first event to what is its end now: for `walgate claims`.
//!
//! Comes in: a topic. Goes out: every value that is in it. Always holds: what an aborted transaction left is seen, too,
//! and nothing of an open one hides what lies behind it: who asks whether an event is still there gets too much rather
//! than too little; no group is joined and no offset stored. A topic that is removed meanwhile has no events.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::reader::{Reading, is_of_deleted_topic};
use super::session::is_passing;
use super::{classify, reader_config};
use crate::config::KafkaHub;
use crate::error::{Error, Result};

const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// Without any answer for so long, the brokers are out of reach.
const STILL_TIME_MAX: Duration = Duration::from_secs(30);
const POLL_TIME: Duration = Duration::from_millis(100);
/// What librdkafka fetches ahead, in KiB: its default is 64 MiB.
const AHEAD_KIB_MAX: &str = "16384";

/// Hands every value of the topic to `take`. Blocks.
///
/// # Errors
/// Transient: the brokers do not answer. Definite: the topic may not be read. The error of `take`.
pub fn scan(
    hub: &KafkaHub,
    topic: &str,
    partitions: i32,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let failed = |error| classify(&format!("reading topic {topic}"), error);
    // A consumer for each topic: the end of a partition is told without the topic's name.
    let consumer = open(hub).map_err(failed)?;
    match read(&consumer, topic, partitions, take) {
        Err(Stopped::Kafka(error)) if is_of_deleted_topic(&error) && is_gone(&consumer, topic)? => {}
        Err(Stopped::Kafka(error)) => return Err(failed(error)),
        Err(Stopped::Taken(error)) => return Err(error),
        Ok(()) => {}
    }
    // librdkafka takes 100 ms to end its threads.
    std::thread::spawn(move || drop(consumer));
    Ok(())
}

/// Why reading did not get to the end.
enum Stopped {
    Kafka(KafkaError),
    Taken(Error),
}

impl From<KafkaError> for Stopped {
    fn from(error: KafkaError) -> Self {
        Stopped::Kafka(error)
    }
}

fn read(
    consumer: &BaseConsumer<Reading>,
    topic: &str,
    partitions: i32,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<(), Stopped> {
    let mut ends: HashMap<i32, i64> = HashMap::new();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        let (first, end) = consumer.fetch_watermarks(topic, partition, REQUEST_TIME_MAX)?;
        if first < end {
            assignment.add_partition_offset(topic, partition, Offset::Offset(first))?;
            ends.insert(partition, end);
        }
    }
    consumer.assign(&assignment)?;
    let mut heard_at = Instant::now();
    while !ends.is_empty() {
        match consumer.poll(POLL_TIME) {
            Some(Ok(message)) => {
                heard_at = Instant::now();
                take(message.payload().unwrap_or_default()).map_err(Stopped::Taken)?;
                let partition = message.partition();
                if ends.get(&partition).is_some_and(|end| message.offset() + 1 >= *end) {
                    ends.remove(&partition);
                }
            }
            // The last offsets may be no messages, but the ends of transactions.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                heard_at = Instant::now();
                ends.remove(&partition);
            }
            Some(Err(error)) if !is_passing(&error) => return Err(error.into()),
            _ if heard_at.elapsed() > STILL_TIME_MAX => {
                let message = format!("reading topic {topic}: the brokers do not answer");
                return Err(Stopped::Taken(Error::transient(message)));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_gone(consumer: &BaseConsumer<Reading>, topic: &str) -> Result<bool> {
    let failed = |error| classify("listing the topics", error);
    let metadata = consumer.fetch_metadata(None, REQUEST_TIME_MAX).map_err(failed)?;
    Ok(metadata.topics().iter().all(|found| found.name() != topic))
}

fn open(hub: &KafkaHub) -> Result<BaseConsumer<Reading>, KafkaError> {
    let mut config = reader_config(hub);
    config
        // librdkafka wants a group for assigned partitions too; it is never joined.
        .set("group.id", "walgate")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_uncommitted")
        .set("queued.max.messages.kbytes", AHEAD_KIB_MAX)
        // The end shows in an empty answer, for which the broker would wait 500 ms.
        .set("fetch.wait.max.ms", "5")
        .set("auto.offset.reset", "earliest");
    config.create_with_context(Reading)
}
