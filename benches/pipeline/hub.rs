//! The far side: what a consumer finds in a topic.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Offset, TopicPartitionList};

use crate::Result;

const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// How many events a read_committed consumer finds in a topic, from its beginning to its end.
pub fn count(brokers: &str, topic: &str) -> Result<u64> {
    let mut count = 0;
    each(brokers, topic, |_| {
        count += 1;
        Ok(())
    })?;
    Ok(count)
}

/// Calls `look` with each event that [`count`] counts, each partition in its order.
pub fn each(
    brokers: &str,
    topic: &str,
    mut look: impl FnMut(&BorrowedMessage<'_>) -> Result<()>,
) -> Result<()> {
    let mut config = config(brokers);
    config.set("enable.partition.eof", "true");
    let (consumer, mut open) = assign(&config, topic)?;
    let mut heard_at = Instant::now();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                look(&message)?;
                heard_at = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            Some(Err(error)) => return Err(format!("reading {topic}: {error}").into()),
            None if heard_at.elapsed() > ANSWER_TIME_MAX => {
                return Err(format!("reading {topic}: no answer").into());
            }
            None => {}
        }
    }
    Ok(())
}

/// A read_committed consumer of a whole topic, from its beginning, that gets an event as soon as it is there.
pub fn follow(brokers: &str, topic: &str) -> Result<BaseConsumer> {
    let mut config = config(brokers);
    // The broker answers at once when there is something (fetch.min.bytes = 1); this is for when there is nothing.
    config.set("fetch.wait.max.ms", "5").set("socket.nagle.disable", "true");
    Ok(assign(&config, topic)?.0)
}

/// Removes a topic.
pub fn remove(brokers: &str, topic: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(admin.delete_topics(&[topic], &AdminOptions::new()))?;
    Ok(())
}

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    // librdkafka assigns partitions only to a consumer with a group, which this one never joins.
    config.set("group.id", "walgate-bench-never-joined").set("enable.auto.commit", "false");
    config.set("isolation.level", "read_committed").set("auto.offset.reset", "error");
    config
}

fn assign(config: &ClientConfig, topic: &str) -> Result<(BaseConsumer, BTreeSet<i32>)> {
    let consumer: BaseConsumer = config.create()?;
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_TIME_MAX)?;
    let partitions: BTreeSet<i32> = metadata
        .topics()
        .iter()
        .flat_map(|topic| topic.partitions().iter().map(|partition| partition.id()))
        .collect();
    if partitions.is_empty() {
        return Err(format!("topic {topic} does not exist").into());
    }
    let mut assignment = TopicPartitionList::new();
    for partition in &partitions {
        assignment.add_partition_offset(topic, *partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    Ok((consumer, partitions))
}
