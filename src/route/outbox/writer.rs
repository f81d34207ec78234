//! Writes the events of outbox rows straight into a batch's buffer.
//!
//! Comes in: a plan, a stamp and the row's cells as received. Goes out: one [`Event`] for each row that is inserted: its
//! envelope, or a dead letter. Always holds: what was begun of a refused row is taken back, so that its dead letter is
//! all there is of it; what a service wrote is an outbox envelope whatever `hub.format` says; the same row at the same position gives the same bytes, so that a replay is equal.

use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::OutboxPlan;
use super::headers::{self, OUTBOX_ID, TRACEPARENT};
use crate::change::Cells;
use crate::config::{Format, PayloadFormat};
use crate::error::{Error, Result};
use crate::route::batch::{Batch, Event, Label, LabelId, Labels, headers_of, push_header};
use crate::route::claim::{self, Claims, Written};
use crate::route::event::{Stamp, append, append_json_string, text_of, write_id};
use crate::route::message::MessagePlace;
use crate::route::plan::json_string;
use crate::route::template::{Topic, TopicNames};
use crate::route::value::{self, Kind, Style};
use crate::route::{OutboxSeen, RowMessage};
use crate::wal::pgoutput::{Tuple, Value};

/// See the module. Keeps its scratch space, and the labels of what it has seen.
#[derive(Debug)]
pub struct OutboxWriter {
    labels: Arc<Labels>,
    dead_letter_topic: String,
    claims: Option<Claims>,
    /// By table, type, aggregate type and topic.
    known: HashMap<Vec<u8>, LabelId>,
    scratch: Vec<u8>,
}

/// Why a row is no event.
type Refusable<T> = std::result::Result<T, String>;

const UPDATED: &str = "the row was updated: an outbox row is published once, as it was inserted";

impl OutboxWriter {
    /// `dead_letter_topic` is `<source.name>.<slot name>.dead-letter`.
    pub fn new(labels: Arc<Labels>, dead_letter_topic: String, claims: Option<Claims>) -> Self {
        OutboxWriter { labels, dead_letter_topic, claims, known: HashMap::new(), scratch: Vec::new() }
    }

    /// Appends what becomes of a row message.
    ///
    /// # Errors
    /// Definite: columns that do not fit the relation.
    pub fn row(
        &mut self,
        batch: &mut Batch,
        to: (&OutboxPlan, &Stamp),
        place: MessagePlace,
        row: &RowMessage<'_>,
    ) -> Result<OutboxSeen> {
        match row {
            RowMessage::Insert(new) => {
                let cells = cells(to.0, new, place)?;
                let is_dead = self.insert(batch, to, place, &cells);
                Ok(OutboxSeen { rows: 1, dead_letters: u64::from(is_dead) })
            }
            RowMessage::Update(_, new) => {
                let cells = cells(to.0, new, place)?;
                self.dead_letter(batch, to, place, &cells, UPDATED);
                Ok(OutboxSeen { rows: 0, dead_letters: 1 })
            }
            RowMessage::Delete(_) => Ok(OutboxSeen::default()),
        }
    }

    /// Appends the event of an inserted row; returns whether it became a dead letter.
    pub fn insert(
        &mut self,
        batch: &mut Batch,
        (plan, stamp): (&OutboxPlan, &Stamp),
        place: MessagePlace,
        row: &[Value<'_>],
    ) -> bool {
        let start = batch.bytes.len();
        match self.event(&mut batch.bytes, (plan, stamp), place, row) {
            Ok(event) => {
                batch.push(event);
                false
            }
            Err(reason) => {
                batch.bytes.truncate(start);
                self.dead_letter(batch, (plan, stamp), place, row, &reason);
                true
            }
        }
    }

    /// Appends the dead letter of a row: the reason, and the row's texts to be looked at.
    pub fn dead_letter(
        &mut self,
        batch: &mut Batch,
        (plan, stamp): (&OutboxPlan, &Stamp),
        place: MessagePlace,
        row: &[Value<'_>],
        reason: &str,
    ) {
        let label = self.labels.intern(Label {
            topic: self.dead_letter_topic.clone(),
            relation: plan.relation.clone(),
            event_type: "walgate.dead-letter".to_owned(),
            aggregate_type: "walgate.dead-letter".to_owned(),
            op: "message",
            format: Format::Outbox,
        });
        let out = &mut batch.bytes;
        let id = append(out, |out| write_id(out, stamp, place.number));
        let key = id.clone();
        let start = out.len();
        out.extend_from_slice(br#"{"v":1,"id":"#);
        append_json_string(out, id.clone()).expect("an id is UTF-8: source.name and digits");
        write!(out, r#","lsn":"{}","table":"#, place.lsn).expect("a Vec takes every byte");
        out.extend_from_slice(&json_string(&plan.relation));
        out.extend_from_slice(br#","reason":"#);
        out.extend_from_slice(&json_string(reason));
        out.extend_from_slice(br#","content":{"#);
        let mut separator: &[u8] = b"";
        for ((name, _), cell) in plan.columns.iter().zip(row) {
            let text = match cell {
                Value::Null => b"null".to_vec(),
                Value::Text(text) | Value::Binary(text) => json_string(&String::from_utf8_lossy(text)),
                // What did not change was not sent.
                Value::Unchanged => continue,
            };
            out.extend_from_slice(separator);
            separator = b",";
            out.extend_from_slice(&json_string(name));
            out.push(b':');
            out.extend_from_slice(&text);
        }
        out.extend_from_slice(b"}}");
        let (key, value) = (Some(key), Some(start..out.len()));
        batch.events.push(Event { key, value, ..Event::new(label, id) });
    }

    fn event(
        &mut self,
        out: &mut Vec<u8>,
        (plan, stamp): (&OutboxPlan, &Stamp),
        place: MessagePlace,
        row: &[Value<'_>],
    ) -> Refusable<Event> {
        let at = &plan.at;
        let aggregate_type = required(plan, row, at.aggregate_type)?;
        let event_type = required(plan, row, at.event_type)?;
        let aggregate_id = required(plan, row, at.aggregate_id)?;
        let topic = at.topic.map_or(Ok(None), |at| text(plan, row, at))?.filter(|topic| !topic.is_empty());
        let label = self.label(plan, event_type, aggregate_type, topic)?;

        let id = append(out, |out| write_id(out, stamp, place.number));
        let key = append(out, |out| out.extend_from_slice(aggregate_id.as_bytes()));
        let (headers, traceparent) = write_headers(out, plan, row)?;
        let traceparent = match (&traceparent, stamp.traceparent()) {
            (Some(own), _) => Some(append(out, |out| out.extend_from_slice(own.as_bytes()))),
            (None, Some(shared)) => Some(append(out, |out| out.extend_from_slice(shared))),
            (None, None) => None,
        };

        let start = out.len();
        out.extend_from_slice(br#"{"v":1,"id":"#);
        json_part(out, &id);
        for (name, text) in [("type", event_type), ("aggregate_type", aggregate_type)] {
            write!(out, ",\"{name}\":").expect("a Vec takes every byte");
            value::write_str(out, text);
        }
        out.extend_from_slice(br#","aggregate_id":"#);
        json_part(out, &key);
        out.extend_from_slice(br#","op":"message","occurred_at":""#);
        self.write_time(out, plan, stamp, row)?;
        out.extend_from_slice(&plan.source_json);
        stamp.write_place(out, place);
        out.extend_from_slice(&plan.schema_json);
        let data = out.len();
        let has_payload = self.write_payload(out, plan, row)?;
        out.extend_from_slice(br#","before":null"#);
        let unchanged = out.len();
        out.extend_from_slice(br#","unchanged":[],"moved_from":null,"moved_to":null,"claim":"#);
        let claim = out.len();
        out.extend_from_slice(br#"null,"outbox":{"id":"#);
        match text(plan, row, at.id)? {
            Some(text) => value::write_str(out, text),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(br#","headers":{"#);
        write_headers_json(out, headers.clone());
        out.extend_from_slice(b"}}}");
        // Without a payload Kafka gets no value at all.
        let is_large = |taker: &&Claims| has_payload && taker.is_large(out.len() - start);
        let claims = self.claims.as_ref().filter(is_large).map(|taker| {
            let directory = claim::directory(&plan.source_name, &plan.schema, &plan.table);
            let written = Written { start, data, unchanged, claim };
            taker.take_event(out, written, (&directory, &text_of(out, &id), &plan.relation))
        });
        let claims = claims.into_iter().collect();
        let (key, value) = (Some(key), Some(start..out.len()));
        let is_tombstone = !has_payload;
        Ok(Event { key, value, headers, traceparent, is_tombstone, claims, ..Event::new(label, id) })
    }

    /// The row's own time, without one the commit's.
    fn write_time(
        &mut self,
        out: &mut Vec<u8>,
        plan: &OutboxPlan,
        stamp: &Stamp,
        row: &[Value<'_>],
    ) -> Refusable<()> {
        let own = plan.at.timestamp.map(|at| text(plan, row, at).map(|text| Some((at, text?))));
        let Some((at, own)) = own.transpose()?.flatten() else {
            out.extend_from_slice(stamp.occurred_at());
            return Ok(());
        };
        let (_, kind) = plan.columns.get(at).expect("an index of the columns");
        self.scratch.clear();
        value::write_value(&mut self.scratch, kind, own.as_bytes(), &Style::default())
            .map_err(|error| format!("{}: {error}", named(plan, at)))?;
        match self.scratch.as_slice() {
            [b'"', moment @ .., b'"'] if is_moment(moment) => out.extend_from_slice(moment),
            _ => return Err(format!("{} is no time that an event can have: {own}", named(plan, at))),
        }
        if *kind == Kind::Timestamp {
            out.push(b'Z');
        }
        Ok(())
    }

    /// Appends the payload; false: it is NULL.
    fn write_payload(&mut self, out: &mut Vec<u8>, plan: &OutboxPlan, row: &[Value<'_>]) -> Refusable<bool> {
        let at = plan.at.payload;
        let (_, kind) = plan.columns.get(at).expect("an index of the columns");
        let refused = |error: value::ValueError| format!("{}: {error}", named(plan, at));
        let Some(payload) = cell(plan, row, at)? else {
            out.extend_from_slice(b"null");
            return Ok(false);
        };
        match (kind, plan.payload_format) {
            (Kind::Json, _) | (_, PayloadFormat::Text) => {
                value::write_value(out, kind, payload, &Style::default()).map_err(refused)?;
            }
            (kind, PayloadFormat::Json) => {
                let json = match kind {
                    Kind::Bytea => {
                        self.scratch.clear();
                        value::write_bytes(&mut self.scratch, payload).map_err(refused)?;
                        &self.scratch
                    }
                    _ => payload,
                };
                let json: &RawValue = serde_json::from_slice(json)
                    .map_err(|error| format!("{} is not JSON: {error}", named(plan, at)))?;
                value::write_value(out, &Kind::Json, json.get().as_bytes(), &Style::default())
                    .map_err(refused)?;
            }
        }
        Ok(true)
    }

    /// The label of the row's kind, or why no topic can have it.
    fn label(
        &mut self,
        plan: &OutboxPlan,
        event_type: &str,
        aggregate_type: &str,
        topic: Option<&str>,
    ) -> Refusable<LabelId> {
        self.scratch.clear();
        for part in [&plan.relation, event_type, aggregate_type, topic.unwrap_or_default()] {
            // No text of PostgreSQL holds a zero.
            self.scratch.extend_from_slice(part.as_bytes());
            self.scratch.push(0);
        }
        if let Some(&label) = self.known.get(&self.scratch) {
            return Ok(label);
        }
        let names = TopicNames {
            source: &plan.source_name,
            schema: &plan.schema,
            table: &plan.table,
            aggregate_type,
        };
        let topic = match topic {
            Some(topic) => Topic::legal(topic.to_owned()),
            None => plan.topic.render(&names),
        };
        let topic = topic.map_err(|error| error.to_string())?.legal;
        if topic.ends_with(".checkpoint") {
            // Who may write to the table may not write what a pipeline stores.
            return Err(format!("the topic {topic} is a pipeline's own"));
        }
        let label = self.labels.intern(Label {
            topic,
            relation: plan.relation.clone(),
            event_type: event_type.to_owned(),
            aggregate_type: aggregate_type.to_owned(),
            op: "message",
            format: Format::Outbox,
        });
        self.known.insert(self.scratch.clone(), label);
        Ok(label)
    }
}

/// Appends the row's headers; returns them, and its trace context.
fn write_headers(
    out: &mut Vec<u8>,
    plan: &OutboxPlan,
    row: &[Value<'_>],
) -> Refusable<(Range<usize>, Option<String>)> {
    let start = out.len();
    let mut traceparent = None;
    if let Some(id) = cell(plan, row, plan.at.id)? {
        push_header(out, OUTBOX_ID, id);
    }
    for &at in &plan.at.header_columns {
        let (name, _) = plan.columns.get(at).expect("an index of the columns");
        match text(plan, row, at)? {
            Some(text) if name == TRACEPARENT => traceparent = Some(text.to_owned()),
            Some(text) => headers::push(out, name, text.as_bytes()),
            None => {}
        }
    }
    if let Some(at) = plan.at.headers
        && let Some(json) = cell(plan, row, at)?
    {
        let own = headers::push_object(out, json).map_err(|why| format!("{} {why}", named(plan, at)))?;
        traceparent = own.or(traceparent);
    }
    Ok((start..out.len(), traceparent))
}

/// Appends the headers that stand at `range`, but the row's id, as the inside of a JSON object.
fn write_headers_json(out: &mut Vec<u8>, range: Range<usize>) {
    let list = out.get(range).expect("a range of this buffer").to_vec();
    let mut separator: &[u8] = b"";
    for (name, text) in headers_of(&list).filter(|(name, _)| *name != OUTBOX_ID) {
        out.extend_from_slice(separator);
        separator = b",";
        value::write_str(out, name);
        out.push(b':');
        value::write_str(out, &String::from_utf8_lossy(text));
    }
}

fn json_part(out: &mut Vec<u8>, range: &Range<usize>) {
    append_json_string(out, range.clone()).expect("it was looked at, or is source.name and digits");
}

/// `2026-11-21T04:55:30...`: no infinity, no year of another length, none before Christ.
fn is_moment(text: &[u8]) -> bool {
    text.get(4) == Some(&b'-') && text.get(10) == Some(&b'T') && !text.contains(&b' ')
}

/// A column, for reasons.
fn named(plan: &OutboxPlan, at: usize) -> String {
    let name = plan.columns.get(at).map_or("", |(name, _)| name.as_str());
    format!("column \"{name}\"")
}

/// The value's text as received; `None`: NULL.
fn cell<'a>(plan: &OutboxPlan, row: &[Value<'a>], at: usize) -> Refusable<Option<&'a [u8]>> {
    match row.get(at) {
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(Value::Null) => Ok(None),
        Some(Value::Unchanged | Value::Binary(_)) | None => Err(format!("{} was not sent", named(plan, at))),
    }
}

fn text<'a>(plan: &OutboxPlan, row: &[Value<'a>], at: usize) -> Refusable<Option<&'a str>> {
    let Some(bytes) = cell(plan, row, at)? else { return Ok(None) };
    std::str::from_utf8(bytes).map(Some).map_err(|_| format!("{} is not UTF-8", named(plan, at)))
}

fn required<'a>(plan: &OutboxPlan, row: &[Value<'a>], at: usize) -> Refusable<&'a str> {
    text(plan, row, at)?.ok_or_else(|| format!("{} is NULL", named(plan, at)))
}

fn cells<'a>(plan: &OutboxPlan, row: &Tuple<'a>, place: MessagePlace) -> Result<Cells<'a>> {
    if row.len() == plan.width() {
        return Ok(row.iter().collect());
    }
    Err(Error::definite(format!(
        "table {}: a row of {} columns came at {}, its relation has {}",
        plan.relation,
        row.len(),
        place.lsn,
        plan.width()
    )))
}
