//! Topics: made with the asked partitions and settings, and counted for truncate events.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Handle;

use super::{classify, reader_config};
use crate::config::KafkaHub;
use crate::error::{Error, Result};

/// How long a request may take before the broker counts as unreachable.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// A new topic's partitions have their leaders within this time, or the cluster is ill.
const LEADER_TIME_MAX: Duration = Duration::from_secs(30);
/// Topics made by one request: brokers handle a request's topics one after the other.
const TOPICS_A_REQUEST_MAX: usize = 100;

/// The cluster's topics. All calls block: call them from a thread that may.
pub struct Topics {
    hub: KafkaHub,
    admin: AdminClient<DefaultClientContext>,
    runtime: Handle,
    known: Mutex<HashMap<String, i32>>,
}

impl std::fmt::Debug for Topics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Topics").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Topics {
    /// Within a tokio runtime, whose handle it keeps.
    ///
    /// # Errors
    /// Definite when the properties are wrong.
    pub fn new(hub: &KafkaHub) -> Result<Topics> {
        let admin: AdminClient<_> = reader_config(hub)
            .create()
            .map_err(|error| classify("the Kafka client cannot be made", error))?;
        Ok(Topics { hub: hub.clone(), admin, runtime: Handle::current(), known: Mutex::default() })
    }

    /// Partitions of each of `topics`, as the cluster says now.
    ///
    /// # Errors
    /// Transient when the brokers cannot be reached.
    pub fn existing(&self) -> Result<HashMap<String, i32>> {
        let metadata = self
            .admin
            .inner()
            .fetch_metadata(None, REQUEST_TIME_MAX)
            .map_err(|error| classify(&format!("brokers {}", self.hub.brokers), error))?;
        let counted = metadata.topics().iter().map(|topic| {
            let has_leaders = topic.partitions().iter().all(|partition| partition.leader() >= 0);
            let count = i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX);
            (topic.name().to_owned(), if has_leaders { count } else { 0 })
        });
        Ok(counted.collect())
    }

    /// Makes what is missing of `topics`, with the configured partitions and settings.
    ///
    /// # Errors
    /// Definite: not allowed, or missing with `create_topics = false`.
    pub fn ensure(&self, topics: &[String]) -> Result<()> {
        let settings: Vec<(&str, &str)> =
            self.hub.topic_config.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        self.ensure_with(topics, self.hub.partitions, &settings, self.hub.create_topics)
    }

    /// Makes the checkpoint topic, compacted and of one partition, or checks the one that is there.
    ///
    /// # Errors
    /// Definite when the existing one would be deleted by time, or has several partitions.
    pub fn ensure_checkpoint(&self, topic: &str) -> Result<()> {
        let settings = [
            ("cleanup.policy", "compact"),
            ("segment.bytes", "16777216"),
            ("min.cleanable.dirty.ratio", "0.1"),
        ];
        self.ensure_with(&[topic.to_owned()], 1, &settings, true)?;
        let policy = self.setting(topic, "cleanup.policy")?.unwrap_or_default();
        if policy != "compact" {
            return Err(Error::definite(format!("topic {topic} has cleanup.policy = {policy}: an idle checkpoint would be deleted"))
                .with_hint(format!("kafka-configs --alter --entity-type topics --entity-name {topic} --add-config cleanup.policy=compact")));
        }
        if self.partitions(topic)? != 1 {
            return Err(Error::definite(format!("topic {topic} has more than one partition")).with_hint(
                "a checkpoint topic has one partition: choose another source.name or source.slot",
            ));
        }
        Ok(())
    }

    /// What the topic takes at once, in bytes.
    ///
    /// # Errors
    /// Transient when the brokers cannot be reached.
    pub fn message_bytes_max(&self, topic: &str) -> Result<Option<u64>> {
        Ok(self.setting(topic, "max.message.bytes")?.and_then(|text| text.parse().ok()))
    }

    fn setting(&self, topic: &str, name: &str) -> Result<Option<String>> {
        let specifier = [ResourceSpecifier::Topic(topic)];
        let doing = format!("reading the settings of topic {topic}");
        let described = self
            .runtime
            .block_on(self.admin.describe_configs(&specifier, &options()))
            .map_err(|error| classify(&doing, error))?;
        let resource = described
            .into_iter()
            .next()
            .ok_or_else(|| Error::transient(format!("{doing}: no answer")))?
            .map_err(|code| classify(&doing, KafkaError::AdminOp(code)))?;
        Ok(resource.get(name).and_then(|entry| entry.value.clone()))
    }

    /// The partitions of a topic that exists.
    ///
    /// # Errors
    /// Transient when the brokers cannot be reached; definite when there is no such topic.
    pub fn partitions(&self, topic: &str) -> Result<i32> {
        // Asked anew every time: partitions can be added.
        match self.existing()?.get(topic) {
            Some(0) => Err(leaderless(topic)),
            Some(&count) => Ok(count),
            None => Err(classify(
                &format!("topic {topic}"),
                KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition),
            )),
        }
    }

    /// Those of `topics` that hold records.
    ///
    /// # Errors
    /// Transient when the brokers cannot be reached.
    pub fn not_empty(&self, topics: &[String]) -> Result<Vec<String>> {
        let existing = self.existing()?;
        let mut found = Vec::new();
        for topic in topics {
            let Some(&partitions) = existing.get(topic) else { continue };
            if partitions == 0 {
                return Err(leaderless(topic));
            }
            for partition in 0..partitions {
                let (low, high) = self
                    .admin
                    .inner()
                    .fetch_watermarks(topic, partition, REQUEST_TIME_MAX)
                    .map_err(|error| classify(&format!("topic {topic}"), error))?;
                if high > low {
                    found.push(topic.clone());
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Removes a topic, if it is there, and waits until the cluster speaks of it no more: who makes
    /// it again at once would else be told that it exists.
    ///
    /// # Errors
    /// When the cluster does not let it.
    pub fn remove(&self, topic: &str) -> Result<()> {
        let doing = format!("deleting topic {topic}");
        let results = self
            .runtime
            .block_on(self.admin.delete_topics(&[topic], &options()))
            .map_err(|error| classify(&doing, error))?;
        for result in results {
            match result {
                Ok(_)
                | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)) => {}
                Err((_, code)) => return Err(classify(&doing, KafkaError::AdminOp(code))),
            }
        }
        self.lock().remove(topic);
        let deadline = Instant::now() + LEADER_TIME_MAX;
        while self.existing()?.contains_key(topic) {
            if Instant::now() > deadline {
                return Err(Error::transient(format!("{doing}: the cluster still lists it")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn ensure_with(
        &self,
        topics: &[String],
        partitions: i32,
        settings: &[(&str, &str)],
        create: bool,
    ) -> Result<()> {
        let wanted: Vec<&String> = topics.iter().filter(|topic| !self.lock().contains_key(*topic)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let existing = self.existing()?;
        let missing: Vec<&String> =
            wanted.iter().copied().filter(|topic| !existing.contains_key(*topic)).collect();
        if let Some(first) = missing.first()
            && !create
        {
            return Err(Error::definite(format!("topic {first} does not exist"))
                .with_hint("create it, or set hub.create_topics = true"));
        }
        for some in missing.chunks(TOPICS_A_REQUEST_MAX) {
            self.create(some, partitions, settings)?;
        }
        let deadline = Instant::now() + LEADER_TIME_MAX;
        loop {
            let existing = self.existing()?;
            let unled = wanted.iter().find(|topic| existing.get(**topic).is_none_or(|&count| count == 0));
            match unled {
                None => {
                    let counts =
                        wanted.iter().filter_map(|topic| Some(((*topic).clone(), *existing.get(*topic)?)));
                    self.lock().extend(counts);
                    return Ok(());
                }
                Some(topic) if Instant::now() > deadline => {
                    return Err(leaderless(topic));
                }
                Some(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn create(&self, topics: &[&String], partitions: i32, settings: &[(&str, &str)]) -> Result<()> {
        // -1: the broker's default.replication.factor (KIP-464).
        let replication_factor = self.hub.replication_factor.unwrap_or(-1);
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|topic| {
                let topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication_factor));
                settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
            })
            .collect();
        let results = self
            .runtime
            .block_on(self.admin.create_topics(&new, &options()))
            .map_err(|error| classify("creating topics", error))?;
        for result in results {
            match result {
                Ok(topic) => tracing::info!(topic, partitions, "topic created"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    return Err(classify(
                        &format!("topic {topic} cannot be created"),
                        KafkaError::AdminOp(code),
                    ));
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, i32>> {
        self.known.lock().expect("no holder panics")
    }
}

/// A topic that is there, in a cluster that is just now electing: it passes.
fn leaderless(topic: &str) -> Error {
    Error::transient(format!("topic {topic} has partitions without a leader"))
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(REQUEST_TIME_MAX)).request_timeout(Some(REQUEST_TIME_MAX))
}
