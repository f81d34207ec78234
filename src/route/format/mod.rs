//! The forms of an event: the outbox envelope (`route/event.rs`), Debezium's, CloudEvents, and the tombstone behind a delete.
//!
//! Comes in: what the configuration says. Goes out: a form, found once when a table's plan is compiled, with all JSON of that
//! form that does not change from row to row. Always holds: all forms of one change have the same id, topic and order; what
//! differs is the value, the key and which headers name the other half of a key change.

mod cloudevents;
mod debezium;
mod referred;
mod tombstone;

pub(in crate::route) use cloudevents::{CloudEventsForm, write_message as write_cloudevents_message};
pub use debezium::message_topic;
pub(in crate::route) use debezium::{DebeziumForm, SourceBlock, write_message as write_debezium_message};
pub(in crate::route) use tombstone::write_tombstone;

use super::claim::Claims;
use super::value::Style;
use crate::config::Format;

/// What the configuration says about events.
#[derive(Clone, Debug)]
pub struct EventSettings {
    /// `hub.format`
    pub format: Format,
    /// `hub.tombstones`
    pub tombstones: bool,
    /// How values are written.
    pub style: Style,
    /// The source's database, which Debezium's form names.
    pub database: String,
    /// What takes out of them what is too large; `None`: everything travels inline.
    pub claims: Option<Claims>,
}

impl Default for EventSettings {
    fn default() -> Self {
        EventSettings {
            format: Format::Outbox,
            tombstones: false,
            style: Style::default(),
            database: String::new(),
            claims: None,
        }
    }
}

/// The form of a table's events.
#[derive(Debug)]
pub(in crate::route) enum Form {
    /// DESIGN section 4.
    Outbox,
    /// Debezium's envelope.
    Debezium(Box<DebeziumForm>),
    /// CloudEvents 1.0, structured mode.
    CloudEvents(Box<CloudEventsForm>),
}
