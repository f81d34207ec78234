//! A look at a cluster for `check`: nothing is made, nobody is fenced.
//!
//! Comes in: the configured hub. Goes out: what the cluster says of topics and settings, and why it would
//! refuse. Always holds: a call ends within its limit. All calls block.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};
use tokio::runtime::Handle;

use super::{classify, producer_config, reader_config};
use crate::config::KafkaHub;
use crate::error::{Error, Result};

/// How long the first contact may take.
const CONTACT_TIME_MAX: Duration = Duration::from_secs(6);
/// How long a request may take after that.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(4);

/// How long to listen for why nobody answers.
const LISTEN_TIME: Duration = Duration::from_millis(100);

/// A cluster that answers.
pub struct Preflight {
    hub: KafkaHub,
    admin: AdminClient<DefaultClientContext>,
    runtime: Handle,
    /// Partitions of each topic.
    pub topics: HashMap<String, i32>,
    brokers: Vec<i32>,
}

/// Keeps librdkafka's own words: why a broker cannot be reached is in no return value.
#[derive(Default)]
struct Listener(Mutex<Option<(KafkaError, String)>>);

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // `check` tells in its report what these lines tell.
        tracing::debug!(?level, facility, "kafka: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let mut last = self.0.lock().expect("no holder panics");
        // "All brokers are down" is the consequence; the reason came before it.
        let is_consequence = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
        if last.is_none() || !is_consequence {
            *last = Some((error, reason.to_owned()));
        }
    }
}

impl ProducerContext for Listener {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

impl Preflight {
    /// Reaches the brokers, with the properties that a run would use.
    ///
    /// # Errors
    /// Definite: properties, credentials. Transient: nobody answers.
    pub fn open(hub: &KafkaHub) -> Result<Preflight> {
        let doing = format!("brokers {}", hub.brokers);
        let unmade = |error| classify("the Kafka client cannot be made", error);
        let producer: BaseProducer<Listener> =
            producer_config(hub).create_with_context(Listener::default()).map_err(unmade)?;
        let metadata = producer.client().fetch_metadata(None, CONTACT_TIME_MAX).map_err(|error| {
            // One call takes one event.
            producer.poll(LISTEN_TIME);
            let last = producer.context().0.lock().expect("no holder panics").take();
            match last {
                Some((cause, reason)) => {
                    let judged = classify(&doing, cause);
                    let error = match judged.is_definite() {
                        true => Error::definite(format!("{doing}: {reason}")),
                        false => Error::transient(format!("{doing} cannot be reached: {reason}")),
                    };
                    match judged.hint() {
                        Some(hint) => error.with_hint(hint),
                        None => error,
                    }
                }
                None => classify(&format!("{doing} cannot be reached"), error),
            }
        })?;
        let topics = metadata
            .topics()
            .iter()
            .map(|topic| {
                (topic.name().to_owned(), i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX))
            })
            .collect();
        Ok(Preflight {
            hub: hub.clone(),
            admin: reader_config(hub).create().map_err(unmade)?,
            runtime: Handle::current(),
            topics,
            brokers: metadata.brokers().iter().map(|broker| broker.id()).collect(),
        })
    }

    /// Settings of topics that exist, by topic and name; those that may not be read are left out.
    ///
    /// # Errors
    /// When no broker answers.
    pub fn settings(&self, topics: &[String]) -> Result<HashMap<String, HashMap<String, String>>> {
        let mut found = HashMap::new();
        let specifiers: Vec<ResourceSpecifier<'_>> =
            topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        if specifiers.is_empty() {
            return Ok(found);
        }
        let described = self.describe(&specifiers)?;
        // Answers come in the order of the questions.
        for (topic, settings) in topics.iter().zip(described) {
            found.extend(settings.map(|settings| (topic.clone(), settings)));
        }
        Ok(found)
    }

    /// The brokers' `message.max.bytes`, which a new topic takes over.
    ///
    /// # Errors
    /// When no broker answers.
    pub fn message_bytes_max(&self) -> Result<Option<u64>> {
        let Some(&broker) = self.brokers.first() else { return Ok(None) };
        let described = self.describe(&[ResourceSpecifier::Broker(broker)])?;
        let settings = described.into_iter().next().flatten().unwrap_or_default();
        Ok(settings.get("message.max.bytes").and_then(|value| value.parse().ok()))
    }

    fn describe(&self, resources: &[ResourceSpecifier<'_>]) -> Result<Vec<Option<HashMap<String, String>>>> {
        let described = self
            .runtime
            .block_on(self.admin.describe_configs(resources, &options()))
            .map_err(|error| classify("reading settings", error))?;
        let settings = described.into_iter().map(|resource| {
            let entries = resource.ok()?.entries;
            Some(entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
        });
        Ok(settings.collect())
    }

    /// Which of these missing topics the cluster would not make, and why.
    ///
    /// # Errors
    /// When no broker answers, or the client refuses a setting.
    pub fn would_refuse(&self, topics: &[String]) -> Result<Vec<(String, Error)>> {
        let replication_factor = self.hub.replication_factor.unwrap_or(-1);
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|topic| {
                let replication = TopicReplication::Fixed(replication_factor);
                let topic = NewTopic::new(topic, self.hub.partitions, replication);
                self.hub.topic_config.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
            })
            .collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let results = self
            .runtime
            .block_on(self.admin.create_topics(&new, &options().validate_only(true)))
            .map_err(|error| classify("asking whether topics can be created", error))?;
        let refused = results.into_iter().filter_map(|result| match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => None,
            Err((topic, code)) => {
                let error = classify(&format!("topic {topic} cannot be created"), KafkaError::AdminOp(code));
                Some((topic, error))
            }
        });
        Ok(refused.collect())
    }

    /// Whether the cluster gives out transactional ids, asked with an id that no pipeline has.
    ///
    /// # Errors
    /// Its reason.
    pub fn takes_transactions(&self, name: &str) -> Result<()> {
        let mut config = producer_config(&self.hub);
        config.set("transactional.id", format!("{name}.check"));
        let doing = "a transactional id cannot be taken";
        let producer: BaseProducer<Listener> =
            config.create_with_context(Listener::default()).map_err(|error| classify(doing, error))?;
        producer.init_transactions(CONTACT_TIME_MAX).map_err(|error| classify(doing, error))
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(REQUEST_TIME_MAX)).request_timeout(Some(REQUEST_TIME_MAX))
}
