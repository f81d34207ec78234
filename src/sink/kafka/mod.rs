//! The hub as a Kafka cluster, through librdkafka.
//!
//! Comes in: batches. Goes out: records whose key is the aggregate id (murmur2 partitioner, so that
//! Java and librdkafka consumers agree), and the checkpoint in a compacted topic of its own. Always
//! holds: the checkpoint is written in a transaction of the transactional id `<source>.<slot>`,
//! whose epoch fences a predecessor; under exactly-once the events are in the same transaction.
//! A failed delivery is an error of its batch, never a line in a log (FIELD_NOTES 6).

mod at_least_once;
mod deliveries;
mod exactly_once;
mod preflight;
mod producing;
mod reader;
mod scan;
mod session;
mod topics;
mod too_large;

pub use at_least_once::AtLeastOnce;
pub use exactly_once::ExactlyOnce;
pub use preflight::Preflight;
pub use producing::Producing;
pub use reader::{Reader, Start};
pub use scan::scan;
pub use session::{Session, checkpoint_topic, forget, peek};
pub use topics::Topics;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaConfRes;

use crate::config::KafkaHub;
use crate::error::Error;

/// A larger message than the broker takes is the broker's to refuse, with its own figure; bytes.
const MESSAGE_BYTES_MAX: &str = "1000000000";

/// The properties of every client: the user's, and above them those that Walgate depends on.
fn client_config(hub: &KafkaHub) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", "walgate").set("bootstrap.servers", &hub.brokers);
    config.set("socket.keepalive.enable", "true");
    // How soon a broker that came back is noticed, in milliseconds.
    config.set("reconnect.backoff.max.ms", "2000");
    for (key, value) in &hub.properties {
        config.set(key, value);
    }
    config
}

/// A client that only reads or administers: librdkafka warns of every producer property otherwise.
fn reader_config(hub: &KafkaHub) -> ClientConfig {
    const PRODUCER_ONLY: &[&str] = &[
        "compression.",
        "linger.ms",
        "batch.",
        "queue.buffering.",
        "message.timeout.ms",
        "delivery.timeout.ms",
        "retries",
        "retry.backoff",
        "request.required.acks",
        "request.timeout.ms",
        "transaction.",
        "message.send.max.retries",
        "queuing.strategy",
        "sticky.partitioning",
    ];
    let mut hub = hub.clone();
    hub.properties.retain(|key, _| !PRODUCER_ONLY.iter().any(|prefix| key.starts_with(prefix)));
    client_config(&hub)
}

fn producer_config(hub: &KafkaHub) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        // What comes together arrives together: the pipeline cuts batches, and under a load librdkafka fills its
        // own while five requests are on their way.
        .set("linger.ms", "0.5")
        .set("message.max.bytes", MESSAGE_BYTES_MAX)
        // Bounded by the sink's own count of bytes in flight, which lets one huge message through.
        .set("queue.buffering.max.kbytes", "2000000")
        .set("queue.buffering.max.messages", "0");
    // The broker's limit is for whole record batches, which librdkafka fills without regard to it.
    if let Some(limit) = hub.topic_config.get("max.message.bytes").and_then(|text| text.parse::<u64>().ok()) {
        config.set("batch.size", limit.min(1_000_000).to_string());
    }
    let mut defaults =
        config.config_map().iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
    defaults.retain(|(key, _)| !hub.properties.contains_key(key));
    let mut config = client_config(hub);
    for (key, value) in defaults {
        config.set(key, value);
    }
    config.set("enable.idempotence", "true").set("partitioner", "murmur2_random");
    if let Some(bytes) = too_large::batch_bytes_max() {
        let asked = config.get("batch.size").and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
        config.set("batch.size", asked.min(bytes).to_string());
    }
    config
}

/// An error with its class: does it pass by itself?
fn classify(doing: &str, error: KafkaError) -> Error {
    use RDKafkaErrorCode as Code;
    // The crate gives no code for errors of the admin client.
    let code = match &error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    };
    let hint = match code {
        Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch) => {
            return Error::fenced(format!("{doing}: another process has taken over")).with_source(error);
        }
        Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize) => {
            "raise max.message.bytes of the topic (or message.max.bytes of the broker), or leave the large column out"
        }
        Some(Code::TopicAuthorizationFailed) => {
            "allow the user Write, Describe and Create on its topics (kafka-acls)"
        }
        Some(Code::ClusterAuthorizationFailed) => {
            "allow the user Create and IdempotentWrite on the cluster, or create the topics beforehand"
        }
        Some(Code::TransactionalIdAuthorizationFailed) => {
            "allow the user Write and Describe on the transactional id"
        }
        Some(Code::GroupAuthorizationFailed) => "allow the user Read on the group walgate",
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
            "create the topic, or set hub.create_topics = true"
        }
        Some(Code::InvalidTopic) => "choose a topic template that gives names Kafka allows",
        Some(
            Code::PolicyViolation
            | Code::InvalidConfig
            | Code::InvalidReplicationFactor
            | Code::InvalidPartitions,
        ) => "correct hub.partitions, hub.replication_factor and hub.topic_config to what the cluster allows",
        Some(Code::SaslAuthenticationFailed | Code::Authentication) => {
            "correct sasl.username and sasl.password in [hub.properties]"
        }
        Some(Code::UnsupportedSASLMechanism) => "correct sasl.mechanism in [hub.properties]",
        Some(Code::UnsupportedFeature | Code::InvalidTransactionTimeout) => {
            "use Kafka 2.5 or later, or delivery = \"at-least-once\""
        }
        _ => match &error {
            // librdkafka's own words quote the value, which may be a password.
            KafkaError::ClientConfig(result, _, key, _) => {
                let what = match result {
                    RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN => "there is no property",
                    _ => "librdkafka does not take the value of the property",
                };
                return Error::definite(format!("{doing}: {what} {key}"))
                    .with_hint(format!("correct {key} in [hub.properties]"));
            }
            KafkaError::ClientCreation(_) => "correct [hub.properties]",
            _ => return Error::transient(doing.to_owned()).with_source(error),
        },
    };
    Error::definite(doing.to_owned()).with_source(error).with_hint(hint)
}
