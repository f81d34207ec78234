//! When a topic refuses a request as too large: is it one message, or only a batch of them?
//!
//! Comes in: the largest message of a refused batch. Goes out: a definite error that names topic, size and limit;
//! or a transient one, after which batches are small enough. librdkafka fills a batch to `batch.size`, 1 MB, and
//! does not split it when a topic's `max.message.bytes`, which the broker compares with the whole batch, is
//! smaller. Always holds: the limit learned only falls, so that learning ends. It is the process's own, since a
//! process has one hub. Kafka's documentation: `max.message.bytes`; librdkafka's: `batch.size`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use rdkafka::error::KafkaError;

use crate::error::Error;
use crate::sink::hub::HubTopics;
use crate::wal::sqlstate::source_of;

/// No topic has shown a smaller limit yet.
const UNKNOWN: u64 = u64::MAX;

static BATCH_BYTES_MAX: AtomicU64 = AtomicU64::new(UNKNOWN);

/// What a batch may have, where a topic has shown that librdkafka's default is too much.
pub fn batch_bytes_max() -> Option<u64> {
    Some(BATCH_BYTES_MAX.load(Ordering::Relaxed)).filter(|&bytes| bytes != UNKNOWN)
}

/// A message that was in a refused batch, the largest of them. Prints what Kafka said.
#[derive(Debug)]
pub struct TooLarge {
    /// Where to.
    pub topic: String,
    /// Key and value.
    pub bytes: usize,
    /// What Kafka said.
    pub error: KafkaError,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for TooLarge {}

impl TooLarge {
    /// The error as long as nobody has looked at the topic's limit.
    pub fn into_error(self) -> Error {
        Error::definite(format!("topic {}, a message of {} bytes", self.topic, self.bytes))
            .with_hint("set [claim_check] with a threshold_bytes below it, raise max.message.bytes of the topic (or message.max.bytes of the broker), or leave the large column out")
            .with_source(self)
    }
}

/// Looks at the topic's limit if this is an error of that kind.
pub fn judge(topics: &HubTopics, error: Error) -> Error {
    let Some(TooLarge { topic, bytes, error: reason }) = source_of::<TooLarge>(&error) else { return error };
    let Ok(Some(limit)) = topics.message_bytes_max(topic) else { return error };
    let bytes = u64::try_from(*bytes).unwrap_or(u64::MAX);
    if bytes < limit && learn(limit) {
        return Error::transient(format!(
            "topic {topic} takes {limit} bytes at once (max.message.bytes): going on with smaller batches"
        ));
    }
    let known = TooLarge { topic: topic.clone(), bytes: 0, error: reason.clone() };
    let hint = error.hint().unwrap_or_default().to_owned();
    Error::definite(format!("topic {topic}, a message of {bytes} bytes, its max.message.bytes is {limit}"))
        .with_hint(hint)
        .with_source(known)
}

/// Lowers the batches' size; whether that makes any difference.
fn learn(limit: u64) -> bool {
    // What librdkafka counts and what the broker counts differ a little.
    let bytes = (limit / 4 * 3).max(1);
    BATCH_BYTES_MAX.fetch_min(bytes, Ordering::Relaxed) > bytes
}
