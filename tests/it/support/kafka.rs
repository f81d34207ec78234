//! Kafka as an independent consumer sees it: read_committed, to the end of every partition.
//!
//! In: a broker and topics. Out: records with keys, headers and offsets. Always: no group is joined and no
//! offset stored, so a test may read as often as it likes.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::PATIENCE;

/// A record as it was published; `value` is `None` for a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<String>,
    pub headers: BTreeMap<String, String>,
    pub value: Option<String>,
}

/// A client's settings for a broker.
pub fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

/// The names of the topics that begin with `prefix`, sorted.
#[track_caller]
pub fn topics(brokers: &str, prefix: &str) -> Vec<String> {
    let metadata = consumer(brokers).fetch_metadata(None, PATIENCE).expect("the broker lists its topics");
    let mut names: Vec<String> = metadata
        .topics()
        .iter()
        .map(|topic| topic.name().to_owned())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// How many partitions a topic has.
#[track_caller]
pub fn partitions(brokers: &str, topic: &str) -> i32 {
    partitions_of(&consumer(brokers), topic)
}

/// Everything committed in these topics up to their ends now, by topic, partition and offset.
#[track_caller]
pub fn read_committed(brokers: &str, topics: &[String]) -> Vec<Record> {
    let consumer = consumer(brokers);
    topics.iter().flat_map(|topic| read_topic(&consumer, topic)).collect()
}

/// Makes a topic as an administrator would.
#[track_caller]
pub fn create_topic(brokers: &str, name: &str, partitions: i32, config: &[(&str, &str)]) {
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for (key, value) in config {
        topic = topic.set(key, value);
    }
    let admin = admin(brokers);
    let made =
        blocking(admin.create_topics([&topic], &AdminOptions::new().operation_timeout(Some(PATIENCE))));
    for result in made.expect("the broker answers") {
        result.unwrap_or_else(|(name, error)| panic!("creating topic {name}: {error}"));
    }
}

/// Changes one setting of a topic.
#[track_caller]
pub fn set_topic_config(brokers: &str, topic: &str, key: &str, value: &str) {
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(key, value);
    let changed = blocking(admin(brokers).alter_configs([&change], &AdminOptions::new()));
    for result in changed.expect("the broker answers") {
        result.unwrap_or_else(|(_, error)| panic!("setting {key} of {topic}: {error}"));
    }
}

/// Removes everything that is in a topic now, as its retention would.
#[track_caller]
pub fn empty_topic(brokers: &str, topic: &str) {
    let mut ends = TopicPartitionList::new();
    for partition in 0..partitions(brokers, topic) {
        ends.add_partition_offset(topic, partition, Offset::End).expect("an offset is legal");
    }
    let removed = blocking(admin(brokers).delete_records(&ends, &AdminOptions::new()));
    removed.unwrap_or_else(|error| panic!("emptying {topic}: {error}"));
}

/// Removes topics.
pub fn delete_topics(brokers: &str, names: &[&str]) {
    let _ = blocking(admin(brokers).delete_topics(names, &AdminOptions::new()));
}

/// A client that makes and removes topics.
pub fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    client(brokers).create().expect("an admin client can be made")
}

fn consumer(brokers: &str) -> BaseConsumer {
    let mut config = client(brokers);
    // librdkafka assigns partitions only to a consumer with a group, which this one never joins.
    config.set("group.id", "walgate-tests-never-joined");
    config.set("enable.auto.commit", "false");
    config.set("enable.partition.eof", "true");
    config.set("isolation.level", "read_committed");
    config.set("auto.offset.reset", "error");
    config.set("fetch.wait.max.ms", "50");
    config.create().expect("a consumer can be made")
}

fn partitions_of(consumer: &BaseConsumer, topic: &str) -> i32 {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("the broker describes a topic");
    let found = metadata.topics().iter().find(|found| found.name() == topic).expect("asked for one topic");
    i32::try_from(found.partitions().len()).expect("a topic has few partitions")
}

/// One topic at a time, because the end of a partition is reported without its topic's name.
#[track_caller]
fn read_topic(consumer: &BaseConsumer, topic: &str) -> Vec<Record> {
    let count = partitions_of(consumer, topic);
    let mut assignment = TopicPartitionList::new();
    for partition in 0..count {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset is legal");
    }
    consumer.assign(&assignment).expect("partitions can be assigned");
    let mut open: std::collections::BTreeSet<i32> = (0..count).collect();
    let mut records = Vec::new();
    let start = std::time::Instant::now();
    while !open.is_empty() {
        assert!(start.elapsed() < 4 * PATIENCE, "the ends of {topic} were not reached: {open:?}");
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(message)) => records.push(record(&message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            Some(Err(error)) if is_passing(&error) => {}
            Some(Err(error)) => panic!("reading {topic}: {error}"),
        }
    }
    consumer.unassign().expect("partitions can be unassigned");
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

/// Whether librdkafka goes on by itself after this error, as it does while a broker restarts.
fn is_passing(error: &KafkaError) -> bool {
    use rdkafka::types::RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut};
    matches!(error.rdkafka_error_code(), Some(AllBrokersDown | BrokerTransportFailure | OperationTimedOut))
}

fn record(message: &BorrowedMessage<'_>) -> Record {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("what Walgate publishes is UTF-8");
    let mut headers = BTreeMap::new();
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        let old = headers.insert(header.key.to_owned(), text(header.value.unwrap_or_default()));
        assert!(old.is_none(), "header {} twice", header.key);
    }
    Record {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(text),
        headers,
        value: message.payload().map(text),
    }
}

fn blocking<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made")
        .block_on(future)
}
