//! Follows topics of a Kafka cluster. New topics and new partitions are read from their beginning:
//! all that is in them has come since.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::Selection;
use super::printer::Printer;
use crate::config::KafkaHub;
use crate::error::Result;
use crate::sink::kafka::{Reader, Start};

/// Between two looks for new topics.
const TOPICS_TIME: Duration = Duration::from_secs(2);
/// A signal is noticed after this long.
const PATIENCE: Duration = Duration::from_millis(100);

/// Prints until the printer has enough.
///
/// # Errors
/// See [`super::run`].
pub fn follow(hub: &KafkaHub, selection: &Selection, mut printer: Printer) -> Result<()> {
    let mut reader = Reader::open(hub)?;
    let existing = reader.topics()?;
    selection.check(existing.keys())?;
    let start = if selection.from_beginning { Start::Beginning } else { Start::End };
    reader.follow(&chosen(selection, existing), start)?;
    printer.ready();
    let mut looked_at = Instant::now();
    loop {
        if printer.is_stopped() {
            return printer.finish();
        }
        match reader.next(PATIENCE, |value| printer.event(value))? {
            Some(ControlFlow::Break(())) => return printer.finish(),
            Some(ControlFlow::Continue(())) => continue,
            None if printer.flush().is_break() => return Ok(()),
            None => {}
        }
        if looked_at.elapsed() >= TOPICS_TIME {
            match reader.topics() {
                Ok(existing) => reader.follow(&chosen(selection, existing), Start::Beginning)?,
                Err(error) => tracing::warn!("{}", error.chain()),
            }
            looked_at = Instant::now();
        }
    }
}

fn chosen(selection: &Selection, mut existing: BTreeMap<String, i32>) -> BTreeMap<String, i32> {
    let chosen = selection.choose(existing.keys());
    existing.retain(|topic, _| chosen.contains(topic));
    existing
}
