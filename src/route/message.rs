//! Logical messages as events: `pg_logical_emit_message(…, 'walgate.outbox', '{…}')`.
//!
//! Comes in: the message's content. Goes out: one event of op `message`, or a dead letter with the
//! reason, since a message that is already in the WAL can be mended by nobody. Messages of other
//! prefixes are not published (DESIGN section 4).

use std::collections::HashMap;
use std::io::Write;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::batch::{Batch, Event, Label, LabelId, Labels};
use super::claim::{self, Claims, Written};
use super::event::{self, Stamp, append, append_json_string};
use super::format::{
    EventSettings, SourceBlock, message_topic, write_cloudevents_message, write_debezium_message,
};
use super::plan::json_string;
use super::template::{Topic, TopicNames, TopicTemplate};
use super::value::{self, Kind, Style};
use crate::config::Format;
use crate::error::{Error, Result};
use crate::lsn::Lsn;

/// The prefix whose messages are published.
pub const OUTBOX_PREFIX: &str = "walgate.outbox";
/// The prefix that sets the trace context of its transaction.
pub const TRACEPARENT_PREFIX: &str = "walgate.traceparent";
/// The prefix of the message by which `resync` asks for a copy.
pub const RESYNC_PREFIX: &str = "walgate.resync";
/// The prefix of the message that `run --until-caught-up` waits for.
pub const CAUGHT_UP_PREFIX: &str = "walgate.caught_up";

/// The content of a message that asks for a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncRequest {
    /// The slot's name: whose tables they are.
    pub pipeline: String,
    /// Their OIDs.
    pub tables: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content<'a> {
    aggregate_type: String,
    aggregate_id: AggregateId,
    r#type: String,
    #[serde(borrow)]
    payload: &'a RawValue,
    topic: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AggregateId {
    Text(String),
    Number(serde_json::Number),
}

/// Where a message stands.
#[derive(Clone, Copy, Debug)]
pub struct MessagePlace {
    /// Of the record in the WAL.
    pub lsn: Lsn,
    /// The ordinal.
    pub number: u64,
}

/// Writes message events.
#[derive(Debug)]
pub struct MessageWriter {
    source_name: String,
    topic: TopicTemplate,
    format: Format,
    /// Debezium's description of where it comes from.
    source: SourceBlock,
    dead_letter_topic: String,
    claims: Option<Claims>,
    claim_directory: String,
    labels: HashMap<(String, String, Option<String>), LabelId>,
}

impl MessageWriter {
    /// `dead_letter_topic` is `<source.name>.<slot name>.dead-letter`.
    pub fn new(
        source_name: &str,
        events: &EventSettings,
        topic: TopicTemplate,
        dead_letter_topic: String,
    ) -> Self {
        MessageWriter {
            claims: events.claims.clone(),
            claim_directory: claim::directory_of_messages(source_name),
            source_name: source_name.to_owned(),
            topic,
            format: events.format,
            source: SourceBlock::new(source_name, &events.database, "", ""),
            dead_letter_topic,
            labels: HashMap::new(),
        }
    }

    /// Appends the event of one `walgate.outbox` message; returns whether it became a dead letter.
    ///
    /// # Errors
    /// Definite: a topic name that Kafka cannot have.
    pub fn write(
        &mut self,
        batch: &mut Batch,
        labels: &Labels,
        stamp: &Stamp,
        place: MessagePlace,
        content: &[u8],
    ) -> Result<bool> {
        let parsed: Content<'_> = match serde_json::from_slice(content) {
            Ok(parsed) => parsed,
            Err(error) => {
                self.write_dead_letter(batch, labels, stamp, place, content, &error.to_string())?;
                return Ok(true);
            }
        };
        let label = match self.label(labels, &parsed) {
            Ok(label) => label,
            Err(reason) => {
                self.write_dead_letter(batch, labels, stamp, place, content, &reason)?;
                return Ok(true);
            }
        };
        let aggregate_id = match &parsed.aggregate_id {
            AggregateId::Text(text) => text.clone(),
            AggregateId::Number(number) => number.to_string(),
        };
        let out = &mut batch.bytes;
        let id = append(out, |out| event::write_id(out, stamp, place.number));
        let key = append(out, |out| match self.format {
            Format::Outbox | Format::CloudEvents => out.extend_from_slice(aggregate_id.as_bytes()),
            Format::Debezium => {
                write!(out, r#"{{"prefix":"{OUTBOX_PREFIX}"}}"#).expect("a Vec takes every byte");
            }
        });
        let payload = parsed.payload.get().as_bytes();
        let start = out.len();
        let mut claims = Vec::new();
        match self.format {
            Format::Outbox => {
                self.write_head(out, &parsed.r#type, &parsed.aggregate_type, &aggregate_id, id.clone())?;
                stamp.write_message_source(out, &self.source_name, place);
                let data = out.len();
                value::write_value(out, &Kind::Json, payload, &Style::default())
                    .map_err(|error| Error::definite("a message's payload is not JSON").with_source(error))?;
                out.extend_from_slice(br#","before":null"#);
                let unchanged = out.len();
                out.extend_from_slice(br#","unchanged":[],"moved_from":null,"moved_to":null,"claim":null}"#);
                let is_large = |taker: &&Claims| taker.is_large(out.len() - start);
                claims.extend(self.claims.as_ref().filter(is_large).map(|taker| {
                    let of = (self.claim_directory.as_str(), &*event::text_of(out, &id), OUTBOX_PREFIX);
                    let claim = out.len() - b"null}".len();
                    taker.take_event(out, Written { start, data, unchanged, claim }, of)
                }));
            }
            Format::Debezium => {
                let of = (self.claims.as_ref(), self.source_name.as_str(), &*event::text_of(out, &id));
                claims.extend(write_debezium_message(out, &self.source, stamp, place, content, of));
            }
            Format::CloudEvents => {
                let of = (self.source_name.as_str(), parsed.aggregate_type.as_str(), parsed.r#type.as_str());
                let content = (payload, self.claims.as_ref());
                claims.extend(write_cloudevents_message(out, of, stamp, place, (&id, &key), content)?);
            }
        }
        let (key, value) = (Some(key), Some(start..out.len()));
        let traceparent = stamp.append_traceparent(out);
        batch.push(Event { key, value, traceparent, claims, ..Event::new(label, id) });
        Ok(false)
    }

    fn write_head(
        &self,
        out: &mut Vec<u8>,
        event_type: &str,
        aggregate_type: &str,
        aggregate_id: &str,
        id: std::ops::Range<usize>,
    ) -> Result<()> {
        out.extend_from_slice(br#"{"v":1,"id":"#);
        append_json_string(out, id)?;
        for (name, text) in
            [("type", event_type), ("aggregate_type", aggregate_type), ("aggregate_id", aggregate_id)]
        {
            write!(out, ",\"{name}\":").expect("a Vec takes every byte");
            out.extend_from_slice(&json_string(text));
        }
        out.extend_from_slice(br#","op":"message","occurred_at":""#);
        Ok(())
    }

    /// The label of the message's kind, or why no topic can have it.
    fn label(&mut self, labels: &Labels, content: &Content<'_>) -> Result<LabelId, String> {
        let known = (content.r#type.clone(), content.aggregate_type.clone(), content.topic.clone());
        if let Some(&label) = self.labels.get(&known) {
            return Ok(label);
        }
        let names = TopicNames {
            source: &self.source_name,
            schema: "walgate",
            table: "outbox",
            aggregate_type: &content.aggregate_type,
        };
        let topic = match &content.topic {
            Some(topic) => Topic::legal(topic.clone()),
            None if self.format == Format::Debezium => Topic::legal(message_topic(&self.source_name)),
            None => self.topic.render(&names),
        };
        let topic = topic.map_err(|error| error.to_string())?;
        if topic.legal.ends_with(".checkpoint") {
            // Who may emit messages may not write what a pipeline stores.
            return Err(format!("the topic {} is a pipeline's own", topic.legal));
        }
        let label = labels.intern(Label {
            topic: topic.legal,
            relation: OUTBOX_PREFIX.to_owned(),
            event_type: content.r#type.clone(),
            aggregate_type: content.aggregate_type.clone(),
            op: "message",
            format: self.format,
        });
        self.labels.insert(known, label);
        Ok(label)
    }

    fn write_dead_letter(
        &self,
        batch: &mut Batch,
        labels: &Labels,
        stamp: &Stamp,
        place: MessagePlace,
        content: &[u8],
        reason: &str,
    ) -> Result<()> {
        let label = labels.intern(Label {
            topic: self.dead_letter_topic.clone(),
            relation: OUTBOX_PREFIX.to_owned(),
            event_type: "walgate.dead-letter".to_owned(),
            aggregate_type: "walgate.dead-letter".to_owned(),
            op: "message",
            // A dead letter is Walgate's own, whatever the events are.
            format: Format::Outbox,
        });
        let out = &mut batch.bytes;
        let id = append(out, |out| event::write_id(out, stamp, place.number));
        let key = id.clone();
        let start = out.len();
        out.extend_from_slice(br#"{"v":1,"id":"#);
        append_json_string(out, id.clone())?;
        write!(out, r#","lsn":"{}","prefix":"{OUTBOX_PREFIX}","reason":"#, place.lsn)
            .expect("a Vec takes every byte");
        out.extend_from_slice(&json_string(reason));
        out.extend_from_slice(br#","content":"#);
        out.extend_from_slice(&json_string(&String::from_utf8_lossy(content)));
        out.push(b'}');
        let (key, value) = (Some(key), Some(start..out.len()));
        batch.events.push(Event { key, value, ..Event::new(label, id) });
        Ok(())
    }
}
