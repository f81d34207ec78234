//! What librdkafka reports of messages: which failed first, and which batches are acknowledged whole.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{DeliveryResult, ProducerContext};

use super::classify;
use super::too_large::TooLarge;
use crate::error::Error;

/// In place of a batch's sequence number: nobody counts this message's batch.
pub const NOT_COUNTED: usize = usize::MAX;

/// The producer's context: librdkafka calls it from within `poll`, on the sink's own thread.
#[derive(Debug, Default)]
pub struct Deliveries {
    served: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Batches in the order of delivery: sequence, messages without acknowledgement.
    batches: VecDeque<(usize, usize)>,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    topic: String,
    bytes: usize,
    error: KafkaError,
}

impl Deliveries {
    /// A batch of that many messages is about to be produced.
    pub fn begin(&self, sequence: usize, messages: usize) {
        self.lock().batches.push_back((sequence, messages));
    }

    /// Calls of librdkafka so far: a `poll` that made none has left nothing. Log lines and errors count too, since the
    /// report of the message that they speak of lies behind them.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    /// Takes the oldest batch out if every one of its messages is acknowledged.
    pub fn take_acknowledged(&self) -> Option<usize> {
        let mut state = self.lock();
        let is_whole = state.batches.front().is_some_and(|&(_, left)| left == 0);
        is_whole.then(|| state.batches.pop_front().map(|(sequence, _)| sequence)).flatten()
    }

    /// The first failure, with topic and size. What only followed from another one waits for that one, as long as
    /// anything is on its way.
    pub fn take_failure(&self, is_moving: bool) -> Option<Error> {
        let failure = self.lock().failure.take_if(|known| !(is_moving && is_consequence(&known.error)))?;
        let Failure { topic, bytes, error } = failure;
        if is_too_large(&error) {
            return Some(TooLarge { topic, bytes, error }.into_error());
        }
        Some(classify(&format!("topic {topic}, a message of {bytes} bytes"), error))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.served.fetch_add(1, Ordering::Relaxed);
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.served.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%error, reason, "kafka");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, sequence: usize) {
        let message = match result {
            Ok(message) | Err((_, message)) => message,
        };
        self.served.fetch_add(1, Ordering::Relaxed);
        if result.is_ok() && sequence == NOT_COUNTED {
            return;
        }
        let mut state = self.lock();
        match result {
            Ok(_) => {
                let first = state.batches.front().map_or(sequence, |batch| batch.0);
                if let Some(batch) = state.batches.get_mut(sequence.wrapping_sub(first)) {
                    batch.1 = batch.1.saturating_sub(1);
                }
            }
            Err((error, _)) => {
                let bytes = message.payload_len() + message.key_len();
                let knows_better = state.failure.as_ref().is_none_or(|known| {
                    let explains = is_consequence(&known.error) && !is_consequence(error);
                    // Of a refused batch all messages fail: the largest is to blame.
                    let is_larger = is_too_large(&known.error) && is_too_large(error) && bytes > known.bytes;
                    explains || is_larger
                });
                if knows_better {
                    state.failure =
                        Some(Failure { topic: message.topic().to_owned(), bytes, error: error.clone() });
                }
            }
        }
    }
}

/// Whether a message failed only because an earlier one did: that does not tell the reason.
fn is_consequence(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{Fatal, GaplessGuarantee, PurgeInflight, PurgeQueue};
    matches!(error.rdkafka_error_code(), Some(PurgeQueue | PurgeInflight | Fatal | GaplessGuarantee))
}

fn is_too_large(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{InvalidMessageSize, MessageSizeTooLarge};
    matches!(error.rdkafka_error_code(), Some(MessageSizeTooLarge | InvalidMessageSize))
}

/// librdkafka's log lines, at the level they deserve here.
pub fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => {
            tracing::warn!(facility, "kafka: {message}");
        }
        RDKafkaLogLevel::Warning => tracing::info!(facility, "kafka: {message}"),
        _ => tracing::debug!(facility, "kafka: {message}"),
    }
}
