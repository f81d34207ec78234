//! `[hub]`: the event store, Kafka or a directory. Without the section: the directory `hub` beside the file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::file::Section;
use super::schema;
use crate::route::template::TopicTemplate;

/// The hub, as it can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Which one, and where.
    pub kind: HubKind,
    /// Names the topic of each table.
    pub topic: TopicTemplate,
    /// What a crash may repeat.
    pub delivery: Delivery,
    /// The form of an event.
    pub format: Format,
    /// Whether a delete has an event without a value behind it.
    pub tombstones: bool,
}

/// Which event store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubKind {
    /// `kind = "kafka"`
    Kafka(KafkaHub),
    /// `kind = "file"`, the default.
    File(FileHub),
}

/// A Kafka cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaHub {
    /// `host:port,host:port`, librdkafka's `bootstrap.servers`.
    pub brokers: String,
    /// librdkafka properties, without those that Walgate sets itself. Printed without their values.
    pub properties: BTreeMap<String, String>,
    /// Whether missing topics are created.
    pub create_topics: bool,
    /// Partitions of the topics that Walgate creates.
    pub partitions: i32,
    /// Replicas of the topics that Walgate creates. `None`: the broker's `default.replication.factor`.
    pub replication_factor: Option<i32>,
    /// Topic settings of the topics that Walgate creates: `retention.ms` and the like.
    pub topic_config: BTreeMap<String, String>,
}

/// A directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHub {
    /// Holds `<topic>.jsonl`; a relative path has been put behind the configuration file's folder.
    pub path: PathBuf,
}

/// What a crash may repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing, for a consumer that reads committed events.
    ExactlyOnce,
    /// Events since the last checkpoint, with equal ids.
    AtLeastOnce,
}

/// The form of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The envelope of DESIGN.md, section 4.
    Outbox,
    /// Debezium's, under one set of its options.
    Debezium,
    /// CloudEvents 1.0, structured mode.
    CloudEvents,
}

impl Format {
    /// The header `content-type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Outbox | Format::Debezium => "application/json",
            Format::CloudEvents => "application/cloudevents+json; charset=UTF-8",
        }
    }
}

/// What Walgate sets itself, and why nobody else may; aliases of librdkafka included.
const OWNED_PROPERTIES: &[(&str, &str)] = &[
    ("bootstrap.servers", "write hub.brokers instead"),
    ("metadata.broker.list", "write hub.brokers instead"),
    ("transactional.id", "remove it: it is made of source.name and the slot's name, so that it fences"),
    ("enable.idempotence", "remove it, and choose by hub.delivery"),
    ("acks", "remove it: events count as durable only when all replicas in sync have them"),
    ("request.required.acks", "remove it: events count as durable only when all replicas in sync have them"),
    ("partitioner", "remove it: it is murmur2_random, as for Java producers, so that consumers co-partition"),
    ("isolation.level", "remove it: checkpoints are read with read_committed"),
    ("group.id", "remove it: Walgate keeps its place in its checkpoint, not in a group"),
    ("enable.auto.commit", "remove it: Walgate keeps its place in its checkpoint, not in a group"),
];

/// More partitions than any broker takes in one topic's creation, and a guard against a slip of the finger.
const PARTITIONS_MAX: u64 = 100_000;

/// Kafka's replication factor is an Int16.
const REPLICATION_FACTOR_MAX: u64 = 32_767;

pub(super) fn read(section: &Section<'_>, base_dir: &Path) -> Hub {
    section.allow(schema::HUB);
    let formats =
        [("outbox", Format::Outbox), ("debezium", Format::Debezium), ("cloudevents", Format::CloudEvents)];
    let deliveries = [("exactly-once", Delivery::ExactlyOnce), ("at-least-once", Delivery::AtLeastOnce)];
    Hub {
        kind: read_kind(section, base_dir),
        topic: read_topic(section),
        delivery: section.choice("delivery", &deliveries, &[]).unwrap_or(Delivery::ExactlyOnce),
        format: section.choice("format", &formats, &["avro"]).unwrap_or(Format::Outbox),
        tombstones: section.boolean("tombstones").unwrap_or(false),
    }
}

fn read_topic(section: &Section<'_>) -> TopicTemplate {
    let Some(text) = section.string("topic") else { return TopicTemplate::default() };
    TopicTemplate::parse(&text).unwrap_or_else(|error| {
        section.fault("topic", error.to_string(), error.remedy());
        TopicTemplate::default()
    })
}

fn read_kind(section: &Section<'_>, base_dir: &Path) -> HubKind {
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Kafka,
        File,
    }
    let written = section.choice("kind", &[("kafka", Kind::Kafka), ("file", Kind::File)], &[]);
    if section.has("kind") && written.is_none() {
        // Which keys belong to it cannot be known.
        return HubKind::File(FileHub { path: base_dir.to_owned() });
    }
    match written.unwrap_or(Kind::File) {
        Kind::Kafka => {
            if section.has("path") {
                section.fault("path", "belongs to kind = \"file\"", "remove path, or write kind = \"file\"");
            }
            HubKind::Kafka(read_kafka(section))
        }
        Kind::File => {
            for key in schema::HUB_KAFKA.iter().filter(|key| section.has(key)) {
                let remedy = format!("remove {key}, or write kind = \"kafka\"");
                section.fault(key, "belongs to kind = \"kafka\"; the hub is a directory", remedy);
            }
            let path = section.string("path").unwrap_or_else(|| "hub".to_owned());
            HubKind::File(FileHub { path: base_dir.join(path) })
        }
    }
}

fn read_kafka(section: &Section<'_>) -> KafkaHub {
    let narrow = |number: u64| i32::try_from(number).expect("the range of the key is within Int32");
    KafkaHub {
        brokers: read_brokers(section),
        properties: read_properties(section),
        create_topics: section.boolean("create_topics").unwrap_or(true),
        partitions: section.integer("partitions", 1..=PARTITIONS_MAX).map_or(6, narrow),
        replication_factor: section.integer("replication_factor", 1..=REPLICATION_FACTOR_MAX).map(narrow),
        topic_config: section.properties("topic_config"),
    }
}

fn read_brokers(section: &Section<'_>) -> String {
    const EXAMPLE: &str = "write brokers = \"kafka-1:9092,kafka-2:9092\"";
    if !section.has("brokers") {
        section.fault_of_missing("brokers", "kind = \"kafka\" needs it", EXAMPLE);
        return String::new();
    }
    let Some(brokers) = section.string("brokers") else { return String::new() };
    if brokers
        .split(',')
        .any(|broker| broker.trim().is_empty() || broker.trim().contains(char::is_whitespace))
    {
        section.fault_of_value("brokers", "is no list of servers", EXAMPLE);
    }
    brokers
}

fn read_properties(section: &Section<'_>) -> BTreeMap<String, String> {
    let properties = section.properties("properties");
    let written = section.section("properties");
    for (name, remedy) in OWNED_PROPERTIES {
        if properties.contains_key(*name) {
            written.fault(name, "is set by Walgate itself", *remedy);
        }
    }
    properties
}

impl fmt::Debug for KafkaHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaHub")
            .field("brokers", &self.brokers)
            // Their values may be passwords.
            .field("properties", &self.properties.keys())
            .field("create_topics", &self.create_topics)
            .field("partitions", &self.partitions)
            .field("replication_factor", &self.replication_factor)
            .field("topic_config", &self.topic_config)
            .finish()
    }
}
